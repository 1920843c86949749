"""Images that nobody has split, split by file into what is trained and what is validated on."""

import collections
import random
import re
from pathlib import PurePosixPath

from bjax.errors import UserError

# What programs and people put behind the name of a picture when they keep another version of it.
VERSION = re.compile(
    r"""[\s_.~-]* (?: @\dx | \d+x\d+ | (?: copy | aug | augmented | crop | rot ) [\s_.-]* \d*
    | edit | edited | final | flip | flipped | mirror | mirrored | rotated | cropped | resized | scaled | small | large
    | thumb | blur | blurred | blurry | sharp | noise | noisy | bw | gray | grey
    ) $""",
    re.VERBOSE | re.IGNORECASE,
)
SEPARATORS = " _-.~("  # between the name of a picture and what makes it another's

Images = dict[str, object]  # {"class/…/image": what it is}


def split(classes: dict[str, Images], share: float, seed: int) -> tuple[dict[str, dict[str, Images]], list[list[str]]]:
    """({"train": classes, "validation": classes}, the groups of names that were kept on one side).

    A group is the pictures whose file names say that they are versions of one: the same name in several classes,
    folders or formats, names that another one begins (street1.jpg, street1_b.png, "street1 (2).jpg"), and usual endings
    (street1-edited.jpg, street1_aug3.jpg). Contents are not compared. Groups are drawn at random until each class has
    1 - share of its pictures in validation, rounded, and at least one.

    share: of the pictures that are trained on, above 0 and below 1.

    Raises UserError for a class that has not a picture for both sides.
    """
    groups = _groups([name for images in classes.values() for name in images])
    order = sorted(groups, key=min)
    random.Random(seed).shuffle(order)
    room = {name: max(1, round((1 - share) * len(images))) for name, images in classes.items()}
    held = set()
    for group in order:
        takes = collections.Counter(_class_of(name) for name in group)
        if all(n <= room[name] and n < _left(classes[name], held) for name, n in takes.items()):
            held.update(group)
            room = {name: free - takes[name] for name, free in room.items()}
    sides = {
        "train": {c: {k: v for k, v in images.items() if k not in held} for c, images in classes.items()},
        "validation": {c: {k: v for k, v in images.items() if k in held} for c, images in classes.items()},
    }
    for name, images in sides["validation"].items():
        if not images:
            raise UserError(
                f"{name}: its {len(classes[name])} images cannot be split: by their names they are versions of too few "
                "pictures; add others, or make train/ and val/ yourself"
            )
    return sides, [group for group in order if len(group) > 1]


def _class_of(name: str) -> str:
    return name.partition("/")[0]


def _left(images: Images, held: set[str]) -> int:
    return len(images) - len(held.intersection(images))


def _groups(names: list[str]) -> list[list[str]]:
    """The names, those of versions of one picture together."""
    stems = {name: PurePosixPath(name).stem.casefold() for name in names}
    known = set(stems.values())
    groups = collections.defaultdict(list)
    for name, stem in stems.items():
        groups[_picture(stem, known)].append(name)
    return list(groups.values())


def _picture(stem: str, known: set[str]) -> str:
    """The name of the picture that `stem` is a version of: without its endings, and the shortest of the stems `known`
    that begins it."""
    while (shorter := VERSION.sub("", stem)) and shorter != stem:
        stem = shorter
    ends = (i for i, c in enumerate(stem) if c in SEPARATORS)
    return next((stem[:i] for i in ends if stem[:i] in known), stem)
