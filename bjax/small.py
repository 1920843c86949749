"""What a config of `small` leaves open, chosen for some tens to some thousands of one's own images and the device.

From random weights a small set needs many passes, small batches and a short warm-up; from published ones a fifth of the
passes and a lower rate. The rules are plain functions of a few facts; `python -m benchmarks.small` measures them beside
the recipes for ImageNet. What the command line gives stays as it is.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from bjax import config as configs
from bjax import published
from bjax.data import decode, loader, prepared
from bjax.data.builder import cores, data_root
from bjax.errors import UserError
from bjax.runtime.console import columns

SAMPLE = 100  # images whose sides are read
FEWEST = 12  # training images
EVALUATED = ("validation", "test")  # splits, the first that is there


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the choices depend on."""

    images: int  # of the training split
    classes: int
    side: int  # median of the images' shorter sides, pixels
    splits: tuple[str, ...]
    platform: str  # cpu | gpu | tpu
    devices: int
    cores: int  # of this process


def fit(config: ConfigDict, overrides: list[tuple[str, str]]) -> tuple[ConfigDict, str]:
    """(The config with every choice made, what was chosen and why as a table for people).

    overrides: (key, text) pairs of the command line, which `config` has already. Raises UserError where the data set
    has no name, is not there, or is too small, and for what `config.validate` refuses.
    """
    facts = facts_of(config)
    given, rows = {key for key, _ in overrides}, []
    config = configs.copied(config)
    for key, value, why in choices(config, facts):
        if key not in given:
            text = ",".join(f"{x:g}" for x in value) if isinstance(value, tuple) else str(value)
            configs.override(config, key, text)
            rows.append((key, text, why))
    configs.validate(config)
    about = f"{facts.images:,} training images in {facts.classes:,} classes, about {facts.side:,} px"
    on = f"{facts.devices} {facts.platform} device{'s' * (facts.devices > 1)}, {facts.cores} cores"
    shown = columns(("chosen", "value", "why"), _merged(rows), left=3)
    return config, f"small: {about}; {on}\n{shown}\n--config.KEY=VALUE chooses otherwise"


def facts_of(config: ConfigDict) -> Facts:
    """Of the data set and the devices. Raises UserError where there is no such data set or split."""
    if not config.data.name:
        way = "--config.data.name=NAME, of python -m bjax.data.prepare folder NAME --source=DIR"
        raise UserError(f"config.data.name: small needs a data set of yours: {way}")
    info = prepared.find(config.data.name, data_root(config.data.data_dir)).info
    source = loader.open_split(config.data.name, config.data.train, data_dir=config.data.data_dir)
    sample = range(0, len(source), -(-len(source) // SAMPLE))
    sides, number = [side for i in sample if (side := _shorter_side(source[i]["image"]))], len(source)
    if number < FEWEST:
        raise UserError(f"config.data.train={config.data.train}: {number} images; small needs at least {FEWEST}")
    return Facts(
        images=number,
        classes=source.num_classes,
        side=round(statistics.median(sides or [0])),
        splits=tuple(info.splits),
        platform=jax.default_backend(),
        devices=jax.device_count(),
        cores=cores(),
    )


def _shorter_side(image: bytes) -> int | None:
    try:
        with decode.opened(image) as header:
            return min(header.size)
    except ValueError:  # the loader names it, and leaves it out where that is asked for
        return None


def choices(c: ConfigDict, facts: Facts) -> Iterator[tuple[str, object, str]]:
    """(key, value, why) of each choice; later ones follow what `c` has when they are asked for.

    Raises UserError where no images are left to evaluate on, or fewer than devices to train on.
    """
    on_cpu, tuned = facts.platform == "cpu", bool(c.init_from)
    images = facts.images
    for key, split, why in _splits(c, facts):
        yield key, split, why
        if key == "data.train":
            images = round(0.8 * images)
    yield from _images(c, facts)
    yield "data.threads", min(facts.cores, 16), "cores"
    if on_cpu:
        yield "dtype", "float32", "bfloat16 is no faster on a CPU"
    batch, most = _batch(images, facts), 128 - 128 % facts.devices
    yield "batch_size", batch, "a third of the images, 8 to 64" if on_cpu else "a third of the images, 8 to 128"
    yield "eval_batch_size", min(most, images - images % facts.devices), "at most 128, and the images"
    passes = 100 * math.sqrt(500 / images)
    if tuned:
        yield "init_new_head", True, "your classes, not the file's"
        epochs, why = min(max(passes / 5, 10), 60), "few: from weights"
    else:
        yield from _architecture(c)
        epochs, why = min(max(passes, 30), 300), "many: from random weights"
    if not c.steps:
        yield "epochs", round(epochs), f"{why}; for {images:,} images"
    steps = c.steps or math.ceil(c.epochs * images / c.batch_size)
    new_cnn, root = not tuned and c.model.name != "vit", math.sqrt(c.batch_size / 64)
    peak, of = (1e-3, "a new CNN") if new_cnn else (2e-4, "weights" if tuned else "a new ViT")
    yield "optim.name", "adamw", "fewer steps than SGD needs"
    yield "optim.schedule", "cosine", "falls to 0 whatever the length"
    yield "optim.lr", float(f"{peak * root:.2g}"), f"of {of}: {peak:g} at batch 64, by its root"
    yield "optim.weight_decay", 0.05, "of AdamW, times the rate"
    yield "optim.warmup", round(steps * (0.1 if tuned else 0.05)), f"{10 if tuned else 5} % of {steps:,} steps"
    yield "optim.clip", 1.0, "no step runs away"
    yield "loss.label_smoothing", 0.1, "few images are learned by heart"
    yield "log_every", max(1, steps // 25), "25 rows"
    yield "checkpoint_every", max(1, steps // 5), "5 times"
    yield "gallery", 6, "images in the report"


def _splits(c: ConfigDict, facts: Facts) -> Iterator[tuple[str, str, str]]:
    """Which images are evaluated, and, where they are taken from the training images, which are trained on."""
    open_keys = [f"eval.{name}.split" for name, condition in c.eval.items() if not condition.split]
    if not open_keys:
        return
    there = [split for split in EVALUATED if split in facts.splits]
    split, why = there[0] if there else "train[80%:]", "not trained on"
    if not there:
        if c.data.train != "train":
            raise UserError(
                f"config.data.train={c.data.train}: {c.data.name} has no split {' or '.join(EVALUATED)} to evaluate "
                "on; leave it out, and the last fifth of train is"
            )
        yield "data.train", "train[:80%]", "the last fifth is to be evaluated"
        why = "no other split (by file: prepare --split is safer)"
    elif split in c.data.train:
        why = f"TRAINED ON: data.train={c.data.train} has it"
    for key in open_keys:
        yield key, split, why


def _images(c: ConfigDict, facts: Facts) -> Iterator[tuple[str, object, str]]:
    """Their size and crops. Of kinds of blur pixels stay as they are: scaled, they would be another blur."""
    patch = int(c.model.options.get("variant", "/32").partition("/")[2] or 32)
    weights = published.find(c.init_from)
    if weights:
        if weights.variant:
            yield "model.options.variant", weights.variant, "of the weights"
        for name in ("mean", "std"):
            yield f"normalize.{name}", getattr(weights, name), "what the weights were trained on"
        yield "data.image_size", weights.image_size, "of the weights"
        yield "data.interpolation", weights.interpolation, "of the weights"
    elif not c.init_from:  # what a file was trained on is not known: the config's size stays
        most = 96 if facts.platform == "cpu" else 224
        cap = min(most, max(facts.side, 64))
        yield "data.image_size", cap - cap % patch, f"the images' own, 64 to {most} on a {facts.platform.upper()}"
    if c.task == "object":
        yield "data.resize", round(c.data.image_size * 8 / 7), "8/7 of it before the centre crop"
        yield "data.scale", (0.08, 1.0), "crops of all sizes: few images are seen often"


def _architecture(c: ConfigDict) -> Iterator[tuple[str, object, str]]:
    if c.model.name == "vgg19":
        yield "model.name", "vgg19_bn", "19 layers without norms do not get going"
    if c.model.name.startswith("vgg"):
        yield "model.options.hidden", 256, "two layers of 4,096 learn by heart"


def _batch(images: int, facts: Facts) -> int:
    """A power of two where the devices allow: a third of the images, at least 8 and at most 64 (GPU, TPU: 128)."""
    batch = min(max(2 ** int(math.log2(images / 3)), 8), 64 if facts.platform == "cpu" else 128)
    batch = max(batch // facts.devices, 1) * facts.devices
    if batch > images:
        raise UserError(
            f"small: {images} training images are fewer than the {facts.devices} devices; use fewer devices"
        )
    return batch


def _merged(rows: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """One row for the conditions' splits."""
    merged = {}
    for key, value, why in rows:
        merged["eval.*.split" if key.startswith("eval.") and key.endswith(".split") else key] = (value, why)
    return [(key, *rest) for key, rest in merged.items()]
