"""Images split by file: every class on both sides, versions of one picture on one."""

import re
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bjax.data.split import split
from bjax.errors import UserError


def images(**classes):
    """{class: {"class/name": name}} of names a class."""
    return {c: {f"{c}/{name}": name for name in names} for c, names in classes.items()}


def numbered(count, stem="img_"):
    return [f"{stem}{i:04}.jpg" for i in range(count)]


def sides(classes, share=0.8, seed=0):
    tree, together = split(classes, share, seed)
    train, held = ({name for side in tree[part].values() for name in side} for part in ("train", "validation"))
    return train, held, [set(group) for group in together]


def test_each_class_by_the_share():
    tree, together = split(images(cat=numbered(50), dog=numbered(10, "d")), 0.8, 0)
    assert {c: len(side) for c, side in tree["train"].items()} == {"cat": 40, "dog": 8}
    assert {c: len(side) for c, side in tree["validation"].items()} == {"cat": 10, "dog": 2}
    assert tree["train"]["cat"].keys().isdisjoint(tree["validation"]["cat"])
    assert together == []


def test_the_seed_draws_and_the_order_of_the_files_does_not():
    classes = images(cat=numbered(50), dog=numbered(50, "d"))
    turned = {c: dict(reversed(files.items())) for c, files in reversed(classes.items())}
    assert sides(classes) == sides(turned)
    assert sides(classes)[1] != sides(classes, seed=1)[1]


@pytest.mark.parametrize(
    "versions",
    [
        ["a/street.jpg", "a/street.png", "a/deeper/street.jpg"],
        ["a/street.jpg", "b/street.jpg"],  # the same scene, sharp and blurred
        ["a/street.jpg", "a/street (1).jpg", "a/street (2).jpg"],
        ["a/street.jpg", "b/street_b.jpg", "a/Street-17.JPG"],
        ["a/street_copy.jpg", "a/street - Copy 2.jpg"],
        ["a/street_aug1.jpg", "a/street_aug_12.jpg", "a/street_rot90_flipped.jpg"],
        ["a/street-640x480.jpg", "a/street@2x.jpg", "a/street-EDITED.jpg", "b/street_blurred.jpg"],
    ],
)
def test_versions_of_a_picture_stay_together(versions):
    classes = images(a=numbered(20, "a"), b=numbered(20, "b"))
    for name in versions:
        classes[name[0]][name] = name
    for seed in range(20):
        train, held, together = sides(classes, 0.7, seed)
        assert set(versions) <= train or set(versions) <= held
        assert together == [set(versions)]


@pytest.mark.parametrize(
    "names",
    [
        numbered(20),
        [f"photo ({i}).jpg" for i in range(20)],
        [f"car_blurred_{i:03}.jpg" for i in range(20)],
        ["blur.jpg", "sharp.jpg", "small.jpg", "final.jpg"],
    ],
)
def test_numbered_pictures_are_pictures(names):
    assert sides(images(a=names, b=numbered(9, "b")))[2] == []


@pytest.mark.parametrize("names", [["one.jpg"], ["one.jpg", "one (1).jpg", "one_edited.png"]])
def test_a_class_of_one_picture_is_refused(names):
    with pytest.raises(UserError, match=re.escape(f"dog: its {len(names)} images cannot be split")):
        split(images(cat=numbered(9), dog=names), 0.8, 0)


NAMES = st.from_regex(r"[ab]?[_ -]?[0-2](_aug[12]| \([12]\)|-copy)?\.(jpg|png)", fullmatch=True)


@given(
    st.dictionaries(st.sampled_from("xyz"), st.lists(NAMES, min_size=1, max_size=8, unique=True), min_size=2),
    st.floats(0.05, 0.95),
    st.integers(0, 99),
)
def test_whatever_the_names(classes, share, seed):
    classes = images(**classes)
    everything = {name for files in classes.values() for name in files}
    try:
        train, held, together = sides(classes, share, seed)
    except UserError:
        return
    assert train | held == everything
    assert not train & held
    assert all(group <= train or group <= held for group in together)
    for c, files in classes.items():
        here = [name for name in held if PurePosixPath(name).parts[0] == c]
        assert 1 <= len(here) < len(files)
        assert len(here) <= max(1, round((1 - share) * len(files)))
