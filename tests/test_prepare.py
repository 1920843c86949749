"""Data sets from tars in ImageNet's official layout and from folders of images, and the command for it."""

import functools
import hashlib
import http.server
import io
import os
import re
import subprocess
import sys
import tarfile
import threading
from collections import Counter

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.core.utils import shard_utils

from bjax.data import builder as builders
from bjax.data import decode, folder, imagenet, imagenette, loader
from bjax.data.builder import prepare
from bjax.data.prepare import main
from bjax.errors import UserError
from bjax.specs import Data

CLASSES = ("n01440764", "n01530575", "n02105855")  # labels 0, 10 and 230
COUNTS = imagenet.Counts(classes=3, train=15, validation=7)


def picture(seed, mode="RGB", format="JPEG"):
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(coarse).resize((50, 40)).convert(mode).save(data, format)
    return data.getvalue()


def tar(files, mode="w"):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return data.getvalue()


def train_images():
    return {name: {f"{name}_{k}.JPEG": picture(10 * c + k) for k in range(5)} for c, name in enumerate(CLASSES)}


def validation_images():
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in (3, 1, 7, 2, 6, 5, 4)]  # in no order
    return {name: picture(100 + k) for k, name in enumerate(names)}


def write_tars(path, train, validation):
    path.mkdir(exist_ok=True)
    outer = {f"{name}.tar": tar(images) for name, images in train.items()}
    (path / "ILSVRC2012_img_train.tar").write_bytes(tar(outer))
    (path / "ILSVRC2012_img_val.tar").write_bytes(tar(validation))
    return path


def builder(manual_dir, data_dir, **options):
    return imagenet.Imagenet2012(manual_dir=manual_dir, data_dir=data_dir, **{"counts": COUNTS} | options)


def stored(name, split, data_dir):
    source = loader.open_split(name, split, data_dir=data_dir)
    return {example["file_name"]: example for example in source}


@pytest.fixture(scope="module")
def odd_images():
    return {
        "n02105855_0.JPEG": picture(0, mode="CMYK"),
        "n02105855_1.JPEG": picture(1, format="PNG"),
        "n02105855_2.JPEG": picture(2, mode="L"),
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, odd_images):
    train = train_images()
    train["n02105855"] |= odd_images
    manual_dir = write_tars(tmp_path_factory.mktemp("tars"), train, validation_images())
    data_dir = tmp_path_factory.mktemp("data")
    assert prepare(builder(manual_dir, data_dir))
    return data_dir


def test_imagenet_holds_every_image_with_its_label(prepared, odd_images):
    train = stored("imagenet2012", "train", prepared)
    images = {name: image for of_class in train_images().values() for name, image in of_class.items()}
    assert train.keys() == images.keys()
    for name, example in train.items():
        assert example["label"] == {"n01440764": 0, "n01530575": 10, "n02105855": 230}[name[:9]]
        if name not in odd_images:
            assert example["image"] == images[name]  # not encoded again


def test_imagenet_validation_labels_follow_the_sorted_names(prepared):
    validation = stored("imagenet2012", "validation", prepared)
    assert {name: example["image"] for name, example in validation.items()} == validation_images()
    path = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
    names = loader.open_split("imagenet2012", "validation", data_dir=prepared).class_names
    labels = [names[validation[name]["label"]] for name in sorted(validation)]
    assert labels == path.read_text().split()[:7]


def test_imagenet_odd_images_become_rgb_jpeg(prepared, odd_images):
    train = stored("imagenet2012", "train", prepared)
    cmyk, png, grey = (train[name]["image"] for name in odd_images)
    assert grey == odd_images["n02105855_2.JPEG"]
    for name, data in zip(odd_images, (cmyk, png), strict=False):
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
        error = decode.decode(data).astype(int) - decode.decode(odd_images[name])
        assert abs(error).mean() < 3


def test_imagenet_is_read_by_plain_tfds(prepared):
    source = tfds.data_source("imagenet2012", split="train", data_dir=prepared)
    images = {example["file_name"].decode(): example for example in source}
    assert len(images) == 15
    example = images["n01530575_3.JPEG"]
    assert example["label"] == 10
    np.testing.assert_array_equal(example["image"], decode.decode(train_images()["n01530575"]["n01530575_3.JPEG"]))


def test_imagenet_parts_mix_the_classes(prepared):
    whole = loader.open_split("imagenet2012", "train", data_dir=prepared)
    part = loader.open_split("imagenet2012", "train[:60%]", data_dir=prepared)
    assert (whole.num_classes, len(part)) == (1000, 9)
    assert len({example["label"] for example in part}) == 3
    assert list(whole.class_names) == sorted(whole.class_names)  # torchvision's order


def test_batches_of_imagenet(prepared):
    source = loader.open_split("imagenet2012", "validation", data_dir=prepared)
    batches = list(loader.eval_batches(source, Data(image_size=24, resize=32), batch_size=4))
    assert sum(batch["mask"].sum() for batch in batches) == 7
    source = loader.open_split("imagenet2012", "train", data_dir=prepared)
    batch = next(loader.train_batches(source, Data(image_size=24), seed=0, batch_size=15))
    assert Counter(batch["label"].tolist()) == {0: 5, 10: 5, 230: 5}


def refuse(manual_dir, data_dir, message, **options):
    with pytest.raises(UserError, match=message) as error:
        prepare(builder(manual_dir, data_dir, **options))
    assert "\n" not in str(error.value)
    assert not list(data_dir.rglob("*array_record*"))
    assert not list(data_dir.rglob("incomplete.*"))


def test_a_missing_class_is_refused(tmp_path):
    train = train_images()
    del train["n01530575"]
    tars = write_tars(tmp_path / "tars", train, validation_images())
    refuse(
        tars,
        tmp_path / "data",
        r"ILSVRC2012_img_train\.tar holds 2 classes of 3, lacking n01443537, .* get it again",
    )


def test_an_unknown_class_is_refused(tmp_path):
    tars = write_tars(tmp_path / "tars", train_images() | {"n99999999": {"a.JPEG": picture(0)}}, validation_images())
    refuse(tars, tmp_path / "data", r"ILSVRC2012_img_train\.tar holds n99999999, no classes of ImageNet")


def test_a_missing_training_image_is_refused(tmp_path):
    train = train_images()
    del train["n01530575"]["n01530575_2.JPEG"]
    tars = write_tars(tmp_path / "tars", train, validation_images())
    refuse(tars, tmp_path / "data", r"ILSVRC2012_img_train\.tar holds 14 images instead of 15; get it again")


def test_a_missing_validation_image_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    validation = validation_images()
    del validation["ILSVRC2012_val_00000002.JPEG"]
    tars = write_tars(tmp_path / "tars", train_images(), validation)
    monkeypatch.setattr(imagenet, "intact", None)  # which would raise
    refuse(tars, tmp_path / "data", r"ILSVRC2012_img_val\.tar lacks ILSVRC2012_val_00000002\.JPEG of 7 images")


def test_an_unknown_validation_image_is_refused(tmp_path):
    tars = write_tars(tmp_path / "tars", train_images(), validation_images() | {"cat.JPEG": picture(0)})
    refuse(
        tars,
        tmp_path / "data",
        r"ILSVRC2012_img_val\.tar holds cat\.JPEG besides ILSVRC2012_val_00000001\.JPEG",
    )


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.9])
@pytest.mark.parametrize("name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
def test_a_truncated_tar_is_refused(tmp_path, name, share):
    tars = write_tars(tmp_path / "tars", train_images(), validation_images())
    data = (tars / name).read_bytes().rstrip(b"\0")
    (tars / name).write_bytes(data[: int(share * len(data))])
    refuse(tars, tmp_path / "data", rf"{name}.* get it again")


def test_a_missing_tar_is_refused_unless_not_wanted(tmp_path):
    tars = write_tars(tmp_path / "tars", train_images(), validation_images())
    (tars / "ILSVRC2012_img_train.tar").unlink()
    refuse(tars, tmp_path / "data", r"lacks ILSVRC2012_img_train\.tar, .*--splits=validation")
    assert prepare(builder(tars, tmp_path / "data", splits=("validation",)))
    assert len(stored("imagenet2012", "validation", tmp_path / "data")) == 7


@pytest.fixture
def corrupt_tars(tmp_path):
    train, validation = train_images(), validation_images()
    train["n01440764"]["n01440764_3.JPEG"] = train["n01440764"]["n01440764_3.JPEG"][:-100]
    train["n02105855"]["n02105855_4.JPEG"] = b""
    validation["ILSVRC2012_val_00000005.JPEG"] = b"<html>not found</html>"
    return write_tars(tmp_path / "tars", train, validation)


def test_corrupt_images_are_refused_by_name(corrupt_tars, tmp_path):
    message = (
        r"ILSVRC2012_img_train\.tar holds 2 corrupt images: n01440764_3\.JPEG \(truncated: .*\), "
        r"n02105855_4\.JPEG \(empty file\); .* --on_corrupt=skip"
    )
    refuse(corrupt_tars, tmp_path / "data", message)
    message = r"ILSVRC2012_img_val\.tar holds 1 corrupt images: ILSVRC2012_val_00000005\.JPEG \(no image format"
    refuse(corrupt_tars, tmp_path / "data", message, splits=("validation",))


def test_corrupt_images_are_left_out_when_asked(corrupt_tars, tmp_path):
    made = builder(corrupt_tars, tmp_path / "data", on_corrupt="skip")
    assert prepare(made)
    assert list(made.corrupt) == ["n01440764_3.JPEG", "n02105855_4.JPEG", "ILSVRC2012_val_00000005.JPEG"]
    train = stored("imagenet2012", "train", tmp_path / "data")
    assert len(train) == 13
    assert not train.keys() & made.corrupt.keys()
    assert len(stored("imagenet2012", "validation", tmp_path / "data")) == 6


def test_many_corrupt_images_stay_one_line(tmp_path):
    train = {name: dict.fromkeys(images, b"") for name, images in train_images().items()}
    tars = write_tars(tmp_path / "tars", train, validation_images())
    refuse(tars, tmp_path / "data", r"holds 15 corrupt images: .* and 5 more;")


def test_a_killed_preparation_starts_afresh(tmp_path):
    tars = write_tars(tmp_path / "tars", train_images(), validation_images())
    code = (
        "import os\nfrom bjax.data import imagenet\nfrom bjax.data.builder import prepare\n"
        "imagenet.validation_files = lambda path, count: (os.kill(os.getpid(), 9) for _ in range(count))\n"
        f"prepare(imagenet.Imagenet2012(manual_dir={str(tars)!r}, data_dir={str(tmp_path / 'data')!r}, "
        f"counts=imagenet.{COUNTS}))"
    )
    killed = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE)
    assert killed.returncode == -9 or os.name == "nt"
    assert list((tmp_path / "data").rglob("incomplete.*"))
    assert prepare(builder(tars, tmp_path / "data"))
    assert not list((tmp_path / "data").rglob("incomplete.*"))
    assert len(stored("imagenet2012", "train", tmp_path / "data")) == 15


def test_a_progress_bar_that_the_environment_turns_off_counts_too(tmp_path):
    tars = write_tars(tmp_path / "tars", train_images(), validation_images())
    code = (
        "from bjax.data import imagenet\nfrom bjax.data.builder import prepare\n"
        f"prepare(imagenet.Imagenet2012(manual_dir={str(tars)!r}, data_dir={str(tmp_path / 'data')!r}, "
        f"counts=imagenet.{COUNTS}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"TQDM_DISABLE": "1"})
    assert len(stored("imagenet2012", "train", tmp_path / "data")) == 15


def test_imagenet_from_the_command_line(tmp_path, capsys):
    tars = write_tars(tmp_path / "tars", train_images(), validation_images())
    command = ["imagenet2012", f"--manual_dir={tars}", f"--data_dir={tmp_path / 'data'}"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("bjax: imagenet2012: ")
    assert "holds 3 classes of 1000" in error
    assert error.count("\n") == 1
    assert main([*command, "--splits=validation"]) == 2
    assert "lacks ILSVRC2012_val_00000008.JPEG, " in capsys.readouterr().err


def write_tree(source, tree):
    for path, content in tree.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(content)
    return source


TREE = {
    "train/cat/1.jpg": picture(1),
    "train/cat/deeper/2.JPEG": picture(2, mode="CMYK"),
    "train/dog/1.png": picture(3, format="PNG"),
    "train/dog/2.webp": picture(4, format="WEBP"),
    "val/dog/1.jpg": picture(5),
    "test/cat/7.bmp": picture(6, format="BMP"),
}


def test_folder(tmp_path, capsys):
    source = write_tree(
        tmp_path / "pets", TREE | {"README.txt": b"", "train/dog/notes.txt": b"", "train/.x/1.jpg": b""}
    )
    command = ["folder", "pets", f"--source={source}", f"--data_dir={tmp_path / 'data'}"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "pets: 1 test, 4 train, 1 validation, 2 classes" in printed
    assert "Ignored, being no images:" in printed
    assert "README.txt" in printed
    assert "notes.txt" in printed
    train = stored("pets", "train", tmp_path / "data")
    assert {name: example["label"] for name, example in train.items()} == {
        "cat/1.jpg": 0,
        "cat/deeper/2.JPEG": 0,
        "dog/1.png": 1,
        "dog/2.webp": 1,
    }
    for name, example in train.items():
        assert example["image"] == TREE[f"train/{name}"]
    assert stored("pets", "validation", tmp_path / "data")["dog/1.jpg"]["label"] == 1
    assert stored("pets", "test", tmp_path / "data")["cat/7.bmp"]["label"] == 0
    for split in ("train", "validation", "test"):
        source_split = loader.open_split("pets", split, data_dir=tmp_path / "data")
        assert source_split.class_names == ("cat", "dog")
        assert next(loader.eval_batches(source_split, Data(image_size=24, resize=32), batch_size=4))["mask"].any()


def test_folder_prepared_again(tmp_path, capsys):
    source = write_tree(tmp_path / "pets", TREE)
    command = ["folder", "pets", f"--source={source}", f"--data_dir={tmp_path / 'data'}"]
    assert main(command) == 0
    write_tree(source, {"train/cat/new.jpg": picture(9)})
    capsys.readouterr()
    assert main(command) == 0
    assert "4 train" in (printed := capsys.readouterr().out)
    assert "It was there already; --overwrite" in printed
    assert main([*command, "--overwrite"]) == 0
    assert "5 train" in capsys.readouterr().out
    assert "new.jpg" in str(stored("pets", "train", tmp_path / "data").keys())


@pytest.fixture
def replaced(tmp_path, monkeypatch):
    """A data set `pets` of three files, and the command that writes it anew from as many other images."""
    # Small data sets have one file; TFDS opens each of several at its first record.
    monkeypatch.setattr(shard_utils.ShardConfig, "get_number_shards", lambda *args: 3)
    images = {f"train/cat/{k}.jpg": picture(k) for k in range(12)}
    command = ["folder", "pets", f"--source={write_tree(tmp_path / 'pets', images)}"]
    command += [f"--data_dir={tmp_path / 'data'}"]
    assert main(command) == 0
    write_tree(tmp_path / "pets", {name: picture(100 + k) for k, name in enumerate(images)})
    return [*command, "--overwrite"]


def contents(data_dir):
    """Which of the two data sets of `replaced` is there: "old" or "new"."""
    images = {example["image"] for example in stored("pets", "train", data_dir).values()}
    return {frozenset(picture(k + n) for k in range(12)): what for n, what in ((0, "old"), (100, "new"))}[
        frozenset(images)
    ]


def test_a_data_set_is_there_while_it_is_written_anew(tmp_path, replaced, monkeypatch):
    data_dir = tmp_path / "data"
    assert len(list(data_dir.rglob("*.array_record-*"))) == 3
    seen = []

    def watched(files, **options):
        yield from builders.intact(files, **options)
        seen.append(contents(data_dir))

    monkeypatch.setattr(folder, "intact", watched)
    held = loader.open_split("pets", "train", data_dir=data_dir)
    part = loader.open_split("pets", "train[50%:]", data_dir=data_dir)
    assert main(replaced) == 0
    assert seen == ["old"]
    assert contents(data_dir) == "new"
    # Who had it open reads it to its end.
    assert {example["image"] for example in held} == {picture(k) for k in range(12)}
    assert {example["image"] for example in part} < {picture(k) for k in range(12)}
    assert [path.name for path in (data_dir / "pets").iterdir() if path.is_dir()] == ["1.0.0"]
    assert not list((data_dir / "pets").rglob("*incomplete*"))


@pytest.mark.parametrize(("moment", "left"), [("writing", "old"), ("moving", "new")])
def test_a_replacement_that_is_killed_leaves_a_data_set(tmp_path, replaced, moment, left):
    data_dir = tmp_path / "data"
    kill = {
        "writing": "from bjax.data import decode\ndecode.decode = lambda data: os.kill(os.getpid(), 9)\n",
        "moving": (
            "from etils import epath\nrename = epath.Path('/').rename.__func__\n"
            "def killed(self, target):\n"
            "    os.kill(os.getpid(), 9) if self.name == 'new_1.0.0' else rename(self, target)\n"
            "type(epath.Path('/')).rename = killed\n"
        ),
    }
    code = f"import os\n{kill[moment]}from bjax.data.prepare import main\nmain({replaced!r})"
    assert subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE).returncode == -9
    assert (data_dir / "pets" / "1.0.0").exists() == (moment == "writing")
    assert contents(data_dir) == left
    assert main(replaced) == 0
    assert contents(data_dir) == "new"
    assert [path.name for path in (data_dir / "pets").iterdir() if path.is_dir()] == ["1.0.0"]


def test_a_killed_replacement_is_finished_by_preparing_without_overwriting(tmp_path, replaced):
    home = tmp_path / "data" / "pets"
    (home / "1.0.0").rename(home / "replaced_1.0.0")
    (home / "new_1.0.0").mkdir()  # not whole
    assert main(replaced[:-1]) == 0
    assert contents(tmp_path / "data") == "old"


def test_a_damaged_data_set_is_named(tmp_path, replaced):
    home = tmp_path / "data" / "pets" / "1.0.0"
    file = home / "pets-train.array_record-00002-of-00003"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=rf"data set pets in .*: {file.name} is damaged: 1,000 bytes .*--overwrite"):
        loader.open_split("pets", "train", data_dir=tmp_path / "data")
    file.unlink()
    with pytest.raises(UserError, match=rf"data set pets in .*: {file.name} is missing; .*--overwrite"):
        loader.open_split("pets", "train", data_dir=tmp_path / "data")
    (home / "dataset_info.json").write_bytes(bytes(100))
    with pytest.raises(UserError, match=r"data set pets in .* dataset_info.json is damaged; "):
        loader.open_split("pets", "train", data_dir=tmp_path / "data")


def test_an_empty_tfds_data_dir_is_none(monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", "")  # as TFDS reads TFDS_DATA_DIR= in the environment
    assert builders.data_root() == os.path.expanduser("~/tensorflow_datasets")
    assert builders.data_root("~/data") == os.path.expanduser("~/data")


def test_folder_of_classes_that_is_split(tmp_path, capsys):
    flat = {f"{c}/{i}.jpg": picture(10 * i) for c in ("cat", "dog") for i in range(10)}
    source = write_tree(tmp_path / "pets", flat | {"cat/3 (1).jpg": picture(30), "notes.txt": b""})
    command = ["folder", "pets", f"--source={source}", f"--data_dir={tmp_path / 'data'}", "--split=0.8"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "one side: 10 groups, such as cat/3 (1).jpg = cat/3.jpg = dog/3.jpg; cat/0.jpg = dog/0.jpg; " in printed
    assert "Ignored, being no images: " in printed
    train, held = (stored("pets", split, tmp_path / "data") for split in ("train", "validation"))
    assert len(train) + len(held) == 21
    assert [sum(x["label"] == label for x in held.values()) for label in (0, 1)] == [2, 2]
    assert not train.keys() & held.keys()
    assert {"cat/3.jpg", "cat/3 (1).jpg", "dog/3.jpg"} <= train.keys() or {"cat/3.jpg", "dog/3.jpg"} <= held.keys()
    assert main([*command, "--overwrite", "--seed=1"]) == 0
    assert stored("pets", "validation", tmp_path / "data").keys() != held.keys()


@pytest.mark.parametrize(
    ("tree", "share", "message"),
    [
        (TREE, "0.8", "holds test/, train/, val/: it is split already; leave --split out"),
        ({"cat/1.jpg": b""}, "0.8", "must hold a folder a class, two at least; it holds cat"),
        ({"cat/1.jpg": b"", "cat/2.jpg": b"", "dog/1.jpg": b""}, "0.8", "dog: its 1 images cannot be split"),
        ({}, "80", "'80': expected a share of the images between 0 and 1, such as 0.8"),
        ({}, "x", "'x': expected a share of the images"),
    ],
)
def test_folder_that_cannot_be_split(tmp_path, capsys, tree, share, message):
    source = write_tree(tmp_path / "pets", tree)
    assert main(["folder", "pets", f"--source={source}", f"--data_dir={tmp_path}", f"--split={share}"]) == 2
    assert message in capsys.readouterr().err


def test_folder_without_train(tmp_path):
    source = write_tree(
        tmp_path / "pets", {"val/b/1.jpg": picture(1), "test/a/1.jpg": picture(2), "test/b/1.jpg": picture(2)}
    )
    assert prepare(folder.Folder(name="pets", source=source, data_dir=tmp_path / "data"))
    assert loader.open_split("pets", "validation", data_dir=tmp_path / "data").class_names == ("a", "b")


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"cat/1.jpg": b"", "dog/1.jpg": b""}, "must hold train/, val/ or test/, .*it holds cat, dog; .*--split=0.8"),
        ({"1.jpg": b""}, r"must hold train/, val/ or test/, .*it holds 1\.jpg$"),
        ({"train/cat/1.txt": b""}, "cat holds no images"),
        ({"train/1.jpg": b""}, "train holds no classes"),
        ({"train/a/1.jpg": b"", "val/a/1.jpg": b"", "valid/a/1.jpg": b""}, "val/ and valid/, .* keep one"),
        ({"train/a/1.jpg": b"", "val/b/1.jpg": b""}, "val holds classes that train/ has not: b$"),
        ({"train/a/1.jpg": b"", "test/b/1.jpg": b""}, "test holds classes that train/ has not: b$"),
        ({"train/a /1.jpg": b""}, "train/a ': a class's name has no space at its ends and is one line$"),
        ({"train/a\nb/1.jpg": b""}, "a class's name has no space at its ends and is one line$"),
        ({b"train/a/\xff.jpg".decode(errors="surrogateescape"): b""}, "a name that is no UTF-8"),
        (
            {"train/a/1.jpg": picture(0), "train/a/2.jpg": b""},
            r"1 corrupt images: a/2\.jpg \(empty file\); .*skip",
        ),
    ],
)
def test_folder_that_is_refused(tmp_path, capsys, tree, message):
    source = write_tree(tmp_path / "pets", tree)
    assert main(["folder", "pets", f"--source={source}", f"--data_dir={tmp_path / 'data'}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("bjax: ")
    assert re.search(message, error), error


def test_folder_with_what_is_no_regular_file(tmp_path, capsys):
    source = write_tree(tmp_path / "pets", TREE)
    os.mkfifo(source / "train" / "cat" / "pipe.jpg")
    (source / "train" / "cat" / "link.jpg").symlink_to("nowhere")
    command = ["folder", "pets", f"--source={source}", f"--data_dir={tmp_path / 'data'}"]
    assert main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "2 corrupt images: cat/link.jpg (no such file), cat/pipe.jpg (not a regular file); " in error
    assert main([*command, "--on_corrupt=skip"]) == 0
    assert "Left out 2 corrupt images: cat/link.jpg (no such file), " in capsys.readouterr().out


def test_folder_with_links_in_a_circle(tmp_path, capsys):
    source = write_tree(tmp_path / "pets", TREE | {"train/cat/more/1.jpg": picture(1)})
    (source / "train" / "dog" / "linked").symlink_to(source / "train" / "cat" / "more")  # as it may be
    command = ["folder", "pets", f"--source={source}", f"--data_dir={tmp_path / 'data'}"]
    assert main(command) == 0
    assert "6 train" in capsys.readouterr().out
    (source / "train" / "cat" / "more" / "back").symlink_to(source / "train" / "dog")
    assert main([*command, "--overwrite"]) == 2
    error = capsys.readouterr().err
    assert error.endswith("links to a folder that it lies in: remove it\n")
    assert error.count("\n") == 1


def test_folder_that_cannot_be_read(tmp_path, capsys, monkeypatch):
    source = write_tree(tmp_path / "pets", TREE)
    walk = os.scandir

    def refuses(path):
        if "deeper" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return walk(path)

    monkeypatch.setattr(os, "scandir", refuses)  # root may read everything
    assert main(["folder", "pets", f"--source={source}", f"--data_dir={tmp_path / 'data'}"]) == 2
    assert re.fullmatch(r"bjax: --source=.* cannot be read: .* Permission denied: .*deeper'\n", capsys.readouterr().err)


def test_folder_with_a_corrupt_image_left_out(tmp_path, capsys):
    source = write_tree(tmp_path / "pets", TREE | {"train/dog/3.jpg": picture(8)[:-200]})
    command = ["folder", "pets", f"--source={source}", f"--data_dir={tmp_path / 'data'}", "--on_corrupt=skip"]
    assert main(command) == 0
    assert "Left out 1 corrupt images: dog/3.jpg (truncated" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["Pets", "my pets", "1st", "", "a/b", "photos", "imagenet2012", "imagenette"])
def test_folder_name(tmp_path, capsys, name):
    source = write_tree(tmp_path / "pets", TREE)
    assert main(["folder", name, f"--source={source}", f"--data_dir={tmp_path / 'data'}"]) == 2
    assert f"data set name {name!r}" in capsys.readouterr().err


def test_folder_that_is_not_there(tmp_path, capsys):
    assert main(["folder", "pets", f"--source={tmp_path / 'nowhere'}", f"--data_dir={tmp_path}"]) == 2
    assert capsys.readouterr().err == f"bjax: --source={tmp_path / 'nowhere'} is no folder\n"


def imagenette_archive(monkeypatch, counts):
    """A small archive in Imagenette's layout, which the builder takes for the published one."""
    names = tfds.core.tfds_path("image_classification/imagenette_labels.txt").read_text().split()
    files = {
        f"imagenette2-320/{split}/{name}/{name}_{k}.JPEG": picture(k)
        for split, count in (("train", 2), ("val", 1))
        for name in names
        for k in range(count)
    }
    data = tar(files, "w:gz")
    sha256 = hashlib.sha256(data).hexdigest()
    info = checksums.UrlInfo(tfds.core.utils.Size(len(data)), sha256, "imagenette2-320.tgz")
    monkeypatch.setattr(imagenette.Imagenette, "url_infos", {imagenette.URL: info})
    monkeypatch.setattr(imagenette, "COUNTS", counts)
    return data


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The folder of a web server from which Imagenette is to be had."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    (tmp_path / "web").mkdir()
    handler = functools.partial(Handler, directory=tmp_path / "web")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setattr(imagenette, "URL", f"http://127.0.0.1:{running.server_port}/imagenette2-320.tgz")
        yield tmp_path / "web"
        running.shutdown()


def no_internet(monkeypatch):
    def head(*args, **kwargs):
        raise requests.ConnectionError("no internet in the tests")

    monkeypatch.setattr(requests, "head", head)


def test_imagenette_is_downloaded_on_first_use(tmp_path, monkeypatch, server):
    archive = imagenette_archive(monkeypatch, {"train": 20, "validation": 10})
    (server / "imagenette2-320.tgz").write_bytes(archive)
    assert len(loader.open_split("imagenette", "train", data_dir=tmp_path / "data")) == 20
    (server / "imagenette2-320.tgz").unlink()
    assert len(loader.open_split("imagenette", "validation", data_dir=tmp_path / "data")) == 10


def test_imagenette_that_the_server_has_not(tmp_path, server):
    with pytest.raises(UserError, match=r"^imagenette: downloading http.* failed \(HTTPError\)"):
        loader.open_split("imagenette", "train", data_dir=tmp_path / "data")


def test_imagenette_downloaded_by_hand(tmp_path, monkeypatch):
    data = imagenette_archive(monkeypatch, {"train": 20, "validation": 10})
    no_internet(monkeypatch)
    write_tree(tmp_path, {"downloads/manual/imagenette2-320.tgz": data})
    train = loader.open_split("imagenette", "train", data_dir=tmp_path)
    assert (len(train), train.num_classes) == (20, 10)
    for example in train:
        assert train.class_names[example["label"]] == example["file_name"].split("/")[0]
    assert len(loader.open_split("imagenette", "validation", data_dir=tmp_path)) == 10


def test_imagenette_that_is_incomplete(tmp_path, monkeypatch):
    write_tree(tmp_path, {"downloads/manual/imagenette2-320.tgz": imagenette_archive(monkeypatch, {"train": 21})})
    with pytest.raises(UserError, match=r"imagenette2-320\.tgz holds 20 images instead of 21; get it again"):
        loader.open_split("imagenette", "train", data_dir=tmp_path)


def test_imagenette_that_is_another_file(tmp_path, monkeypatch):
    imagenette_archive(monkeypatch, {"train": 20, "validation": 10})
    write_tree(tmp_path, {"downloads/manual/imagenette2-320.tgz": b"another file"})
    with pytest.raises(UserError, match=r"^imagenette: imagenette2-320\.tgz .* not the published file .* remove it"):
        loader.open_split("imagenette", "train", data_dir=tmp_path)


def test_imagenette_without_internet(tmp_path, monkeypatch):
    no_internet(monkeypatch)
    with pytest.raises(
        UserError, match=r"^imagenette: downloading http.* failed \(ConnectionError\); .*downloads.manual$"
    ):
        loader.open_split("imagenette", "train", data_dir=tmp_path)


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["imagenet"],
        ["imagenet2012"],
        ["imagenet2012", "--manual_dir=x", "--splits=test"],
        ["imagenet2012", "--manual_dir=x", "--on_corrupt=ignore"],
        ["folder", "pets"],
    ],
)
def test_wrong_usage_exits_with_2(command, capsys):
    assert main(command) == 2
    assert "--help" in capsys.readouterr().err


@pytest.mark.slow
def test_module_runs_as_a_command(tmp_path):
    command = [sys.executable, "-m", "bjax.data.prepare", "photos", f"--data_dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("photos: 672 train, 224 test, 960 detailed, 192 unseen, 14 classes in ")
    command = [sys.executable, "-m", "bjax.data.prepare", "imagenet2012", f"--manual_dir={tmp_path}"]
    done = subprocess.run([*command, f"--data_dir={tmp_path}"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("bjax: ")
    assert done.stderr.count("\n") == 1
