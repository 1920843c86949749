"""The embedded default: where crops are cut, the same bytes every time, and several processes at once."""

import importlib.util
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from bjax.data import decode, loader, photos
from bjax.data.builder import prepare
from bjax.errors import UserError

skimage = pytest.importorskip("skimage", reason="scikit-image holds the photographs")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    assert prepare(photos.Photos(data_dir=folder))
    return folder


@pytest.fixture(scope="module")
def examples(data_dir):
    return {split: list(loader.open_split("photos", split, data_dir=data_dir)) for split in photos.CROPS}


def place(example):
    """(photograph, top, left) of a crop, from its name."""
    name, top, left = re.fullmatch(
        r"(\w+)_(?:train|test|detailed|unseen)_y(\d+)_x(\d+)\.jpg", example["file_name"]
    ).groups()
    return name, int(top), int(left)


def records(data_dir):
    return {path.name: path.read_bytes() for path in Path(data_dir).rglob("*array_record*")}


def test_at_least_14_photographs_to_learn_and_4_unseen(examples):
    names = {split: {place(example)[0] for example in examples[split]} for split in examples}
    assert len(names["train"]) >= 14
    assert names["test"] == names["train"]
    assert len(names["unseen"]) >= 4
    assert not names["unseen"] & names["train"]
    assert len(names["detailed"]) == 10
    assert names["detailed"] < names["train"]
    scenes = Counter(name.removesuffix("_left").removesuffix("_right") for name in names["train"] | names["unseen"])
    assert set(scenes.values()) == {1}  # scikit-image has a motorcycle twice


def test_labels_are_the_photographs(examples, data_dir):
    classes = loader.open_split("photos", "train", data_dir=data_dir).class_names
    for split in ("train", "test"):
        counts = Counter(example["label"] for example in examples[split])
        assert counts == dict.fromkeys(range(len(classes)), photos.CROPS[split])
        for example in examples[split]:
            assert place(example)[0] == classes[example["label"]]
    for split in ("detailed", "unseen"):
        assert {example["label"] for example in examples[split]} == {-1}


def test_train_and_test_are_disjoint_with_a_gap(examples):
    for name in {place(example)[0] for example in examples["train"]}:
        train = [place(example)[1:] for example in examples["train"] if place(example)[0] == name]
        test = [place(example)[1:] for example in examples["test"] if place(example)[0] == name]
        for top, left in train:
            for other_top, other_left in test:
                gap = max(abs(top - other_top), abs(left - other_left)) - photos.CROP
                assert gap >= 32


def test_no_crop_is_stored_twice(examples):
    for together in (("train", "test", "unseen"), ("detailed", "unseen")):
        places = [place(example) for split in together for example in examples[split]]
        assert len(set(places)) == len(places)


def test_detailed_photographs_are_sharper_than_those_left_out():
    """By the variance of the Laplacian, halved as for the blur-type demo."""

    def sharpness(file):
        with Image.open(photos.photographs() / file) as image:
            grey = np.asarray(image.convert("L").reduce(2), np.float64)
        return scipy.ndimage.laplace(grey).var()

    least = min(sharpness(file) for file in photos.FILES["detailed"])
    assert max(sharpness(file) for file in photos.SMOOTH) < least / 4


def test_crops_show_what_their_names_say(examples):
    folder = photos.photographs()
    files = {Path(file).stem: file for file in photos.TRAIN + photos.UNSEEN}
    for split in examples:
        for example in examples[split][::7]:
            name, top, left = place(example)
            photo = photos.load(folder / files[name])[top : top + photos.CROP, left : left + photos.CROP]
            crop = decode.decode(example["image"])
            assert crop.shape == (photos.CROP, photos.CROP, 3)
            assert abs(crop - photo.astype(int)).mean() < 3  # JPEG, quality 95


def test_crops_hold_something(examples):
    for split in examples:
        for example in examples[split]:
            assert decode.decode(example["image"]).std() > 2, example["file_name"]


def test_the_half_with_most_content_is_kept():
    photo = np.zeros((400, 700, 3), np.uint8)
    photo[:, 200:] = np.random.default_rng(0).integers(0, 256, (400, 500, 3))
    assert min(left for _, left in photos.positions(photo, "unseen")) > 100


@pytest.mark.parametrize("shape", [(512, 512), (172, 448), (303, 384), (660, 550)])
def test_regions_cover_the_photograph_but_for_the_gap(shape):
    train, test = photos.region(*shape, "train"), photos.region(*shape, "test")
    along = int(shape[1] >= shape[0])
    assert train[along] == 0
    assert test[along] - train[along + 2] == 32
    assert test[along + 2] == shape[along]
    for split in ("detailed", "unseen"):
        assert photos.region(*shape, split) == (0, 0, *shape)


def run(code, data_dir):
    """Starts a process of its own that opens photos in data_dir, after running code."""
    code += (
        f"\nfrom bjax.data import loader\nprint(len(loader.open_split('photos', 'train', data_dir={str(data_dir)!r})))"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_prepared_data_set_is_not_prepared_again(data_dir, monkeypatch):
    monkeypatch.setattr(photos, "photographs", None)  # which would raise
    assert not prepare(photos.Photos(data_dir=data_dir))
    assert len(loader.open_split("photos", "train", data_dir=data_dir))


def test_several_processes_at_once_write_the_same_bytes(data_dir, tmp_path):
    processes = [run("", tmp_path) for _ in range(3)]
    for printed, errors in [process.communicate() for process in processes]:
        assert printed == "672\n", errors
    assert not list(tmp_path.rglob("incomplete.*"))
    # Another process is what shows it: orders that depend on Python's hashes stay the same within one.
    assert len(records(data_dir)) == len(photos.CROPS)
    assert records(tmp_path) == records(data_dir)


def test_a_killed_preparation_starts_afresh(data_dir, tmp_path):
    code = (
        "import os\nfrom bjax.data import photos\n"
        "load, loaded = photos.load, []\n"
        "def load_and_die(path):\n"
        "    loaded.append(path)\n"
        "    return load(path) if len(loaded) < 20 else os.kill(os.getpid(), 9)\n"
        "photos.load = load_and_die"
    )
    killed = run(code, tmp_path)
    assert killed.communicate()[0] == ""
    assert killed.returncode != 0
    assert list(tmp_path.rglob("incomplete.*"))
    assert prepare(photos.Photos(data_dir=tmp_path))
    assert not list(tmp_path.rglob("incomplete.*"))
    assert records(tmp_path) == records(data_dir)


def test_without_scikit_image(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'^photos: scikit-image.*pip install "bjax\[demo\]"$'):
        loader.open_split("photos", "train", data_dir=tmp_path)


def test_a_scikit_image_without_a_photograph(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "UNSEEN", ("chelsea.png", "unicorn.png"))
    with pytest.raises(UserError, match=r'lacks unicorn\.png; .*pip install -U "bjax\[demo\]"$'):
        loader.open_split("photos", "train", data_dir=tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "photos").write_text("a file in the way")
    with pytest.raises(UserError, match=r"^photos: preparing .* failed: .*--data_dir"):
        loader.open_split("photos", "train", data_dir=tmp_path)
