"""ImageNet's classes by their wnids, and data sets that have some of them."""

import dataclasses

import tensorflow_datasets as tfds

from bjax.data.builder import some
from bjax.data.loader import Source
from bjax.errors import UserError


def imagenet() -> tuple[str, ...]:
    """The wnids of ImageNet's 1,000 classes, sorted: the order of TFDS's labels and of published weights' logits."""
    return tuple(tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split())


def among(source: Source, classes: tuple[str, ...]) -> Source:
    """`source` with its labels among `classes`, ImageNet's wnids in their order, which a model keeps logits for.

    Raises UserError where a class of the data set is none of them.
    """
    place = {name: label for label, name in enumerate(classes)}
    unknown = [name for name in source.class_names if name not in place]
    if unknown:
        number = "none" if len(unknown) == source.num_classes else f"not all, {len(unknown)} not,"
        raise UserError(
            f"config.data.name={source.name}: {number} of its {source.num_classes} classes are ImageNet's, whose "
            f"{len(classes):,} logits the weights have; unknown: {some(unknown)}; name folders by wnid, such as "
            f"{classes[0]}, and leave others out, or start a head for these classes: --config.init_new_head=true"
        )
    labels = tuple(place[name] for name in source.class_names)
    return dataclasses.replace(source, num_classes=len(classes), class_names=classes, labels=labels)
