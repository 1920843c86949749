"""What a step holds, whatever the threads and processes; every image evaluated once; bad input named."""

import dataclasses
import io
import itertools
import logging
import re
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from bjax.data import decode, loader
from bjax.errors import UserError
from bjax.specs import Data

SIZE = 16


def png(number):
    """A 24 x 20 image whose colours tell its number (red) and the pixel's row (green) and column (blue)."""
    image = np.zeros((20, 24, 3), np.uint8)
    image[..., 0] = number
    image[..., 1] = np.arange(20)[:, None]
    image[..., 2] = np.arange(24)
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    return data.getvalue()


def make_source(n=37, broken=()):
    records = []
    for number in range(n):
        example = tf_example_pb2.Example()
        feature = example.features.feature
        feature["image"].bytes_list.value.append(b"broken" if number in broken else png(number))
        feature["label"].int64_list.value.append(number % 5)
        feature["file_name"].bytes_list.value.append(f"{number}.png".encode())
        records.append(example.SerializeToString())
    return loader.Source("tiny", "train", 5, tuple("abcde"), records)


def spelt(**options):
    """What the loader takes for options that are all said by name."""
    fields = {f.name for f in dataclasses.fields(Data)}
    data = Data(**{"image_size": SIZE, "resize": 0} | {k: v for k, v in options.items() if k in fields})
    rest = {k: v for k, v in options.items() if k not in fields}
    rest["process"] = rest.pop("process_index", 0), rest.pop("process_count", 1)
    return data, rest


def train(source, steps, **options):
    data, rest = spelt(**{"seed": 0, "batch_size": 12} | options)
    rest["steps"] = rest.pop("start_step", 0), rest.pop("num_steps", None)
    return list(itertools.islice(loader.train_batches(source, data, **rest), steps))


def evaluate(source, **options):
    data, rest = spelt(**{"batch_size": 12} | options)
    return list(loader.eval_batches(source, data, **rest))


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])


def join(per_process):
    return [
        {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
        for batches in zip(*per_process, strict=True)
    ]


@pytest.fixture(scope="module")
def source():
    return make_source()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    loader.open_split("photos", "train", data_dir=folder)
    return folder


def test_batch_layout(source):
    for batch in train(source, 2) + evaluate(source):
        assert {key: (value.dtype.name, value.shape) for key, value in batch.items()} == {
            "image": ("uint8", (12, SIZE, SIZE, 3)),
            "label": ("int32", (12,)),
            "id": ("uint32", (12,)),
            "photograph": ("uint32", (12, 2)),
            "mask": ("bool", (12,)),
        }


def test_labels_and_ids_belong_to_their_images(source):
    for batch in train(source, 4, crop="random") + evaluate(source)[:-1]:
        numbers = batch["image"][:, 0, 0, 0]
        np.testing.assert_array_equal(batch["label"], numbers % 5)
        np.testing.assert_array_equal(batch["id"], [zlib.crc32(f"{number}.png".encode()) for number in numbers])
        assert batch["mask"].all()


def test_crops_name_their_photograph():
    for file_name, expected in (
        ("chelsea_unseen_y0012_x0040.jpg", "chelsea"),
        ("motorcycle_left_test_y0000_x1004.jpg", "motorcycle_left"),
        ("cat/a_b_train_y1_x2.png", "cat/a_b"),
        ("ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000001.JPEG"),
        ("n01440764/y12_x3.jpg", "n01440764/y12_x3.jpg"),
    ):
        assert loader.photograph_of(file_name) == expected


def test_a_field_of_the_record_names_the_photograph_first():
    source = make_source(4)
    for number, name in ((0, "a"), (1, "a"), (2, "")):
        example = tf_example_pb2.Example.FromString(source.records[number])
        example.features.feature["source"].bytes_list.value.append(name.encode())
        source.records[number] = example.SerializeToString()
    assert [record["photograph"] for record in source] == ["a", "a", "2.png", "3.png"]
    (batch,) = evaluate(source, batch_size=4)
    marks = [tuple(row) for row in batch["photograph"].tolist()]
    assert marks[0] == marks[1] == tuple(loader.fingerprint("a").tolist()) and len(set(marks)) == 3


@pytest.mark.parametrize("options", [{"threads": 1, "prefetch": 1}, {"threads": 5}, {"prefetch": 7}])
def test_threads_do_not_change_the_stream(source, options):
    assert_same(train(source, 8, **options), train(source, 8))


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_processes_share_the_same_global_batches(source, processes):
    parts = [train(source, 6, process_index=h, process_count=processes) for h in range(processes)]
    assert_same(join(parts), train(source, 6))
    parts = [evaluate(source, process_index=h, process_count=processes) for h in range(processes)]
    assert_same(join(parts), evaluate(source))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_run_sees_the_same_steps(source, processes):
    options = {"process_count": processes, "process_index": processes - 1}
    assert_same(train(source, 3, start_step=5, **options), train(source, 8, **options)[5:])


def test_num_steps_is_the_step_to_end_before(source):
    assert_same(train(source, None, start_step=5, num_steps=8), train(source, 8)[5:])
    assert train(source, None, start_step=8, num_steps=8) == []


def test_seeds_differ(source):
    assert not np.array_equal(train(source, 1)[0]["id"], train(source, 1, seed=1)[0]["id"])


def test_every_epoch_is_a_new_permutation(source):
    batches = train(source, 37, batch_size=6)  # 6 epochs of 37
    epochs = np.concatenate([batch["id"] for batch in batches]).reshape(6, 37)
    assert (np.sort(epochs) == np.sort(epochs[0])).all()
    assert len(np.unique(epochs[0])) == 37
    assert len({epoch.tobytes() for epoch in epochs}) == 6


def test_a_batch_may_hold_several_epochs():
    (batch,) = train(make_source(5), 1, batch_size=20)
    ids, counts = np.unique(batch["id"], return_counts=True)
    assert len(ids) == 5
    assert (counts == 4).all()


def test_the_same_image_is_cropped_anew_each_time():
    crops = [batch["image"].tobytes() for batch in train(make_source(1), 6, batch_size=1)]
    assert len(set(crops)) == 6


def test_flip_mirrors_half_of_the_images(source):
    options = {"batch_size": 200, "image_size": 20}
    (batch,) = train(source, 1, crop="random", **options)
    mirrored = batch["image"][:, 0, 0, 2] > batch["image"][:, 0, 1, 2]
    assert 70 < mirrored.sum() < 130
    (batch,) = train(source, 1, crop="random", flip=False, **options)
    assert (batch["image"][:, 0, 0, 2] < batch["image"][:, 0, 1, 2]).all()


def test_random_crops_are_not_rescaled(source):
    (batch,) = train(source, 1, crop="random", flip=False)
    assert (np.diff(batch["image"][..., 1].astype(int), axis=1) == 1).all()
    assert (np.diff(batch["image"][..., 2].astype(int), axis=2) == 1).all()


def test_crop_options_reach_the_crop(source):
    (batch,) = train(source, 1, scale=(1, 1), ratio=(1.2, 1.2), flip=False)
    image = decode.decode(png(0))
    expected = np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(batch["image"][0, ..., 1:], expected[..., 1:])


@pytest.mark.parametrize("n", [1, 11, 12, 13, 37])
@pytest.mark.parametrize("processes", [1, 3])
def test_every_image_is_evaluated_exactly_once(n, processes):
    source = make_source(n)
    parts = [evaluate(source, process_index=h, process_count=processes) for h in range(processes)]
    assert {len(part) for part in parts} == {-(-n // 12)}
    batch = {key: np.concatenate([b[key] for b in join(parts)]) for key in ("image", "mask", "id", "label")}
    np.testing.assert_array_equal(batch["mask"], np.arange(len(batch["mask"])) < n)
    np.testing.assert_array_equal(batch["image"][:n, 0, 0, 0], np.arange(n))
    for key in ("image", "id", "label"):
        assert not batch[key][n:].any()


def test_evaluation_crops_as_center_crop(source):
    image = evaluate(source, resize=18)[0]["image"][3]
    np.testing.assert_array_equal(image, decode.center_crop(decode.decode(png(3)), SIZE, resize=18))
    image = evaluate(source)[0]["image"][3]
    np.testing.assert_array_equal(image, decode.decode(png(3))[2:18, 4:20])


@pytest.mark.parametrize("batches", [train, lambda source, steps: evaluate(source)])
def test_corrupt_images_stop_the_run_by_name(batches):
    with pytest.raises(
        UserError,
        match=r"^tiny, train: corrupt image 7\.png: no image format .*--config.data.on_corrupt=skip",
    ):
        batches(make_source(broken=[7]), 8)


def test_corrupt_images_are_left_out_and_counted(caplog):
    corrupt = loader.Corrupt()
    options = {"on_corrupt": "skip", "corrupt": corrupt}
    with caplog.at_level(logging.WARNING):
        batches = train(make_source(broken=[7, 9]), 37, **options)
    assert set(corrupt.causes) == {"7.png", "9.png"}
    assert len(corrupt) == 2
    assert sorted(record.args[1] for record in caplog.records) == ["7.png", "9.png"]  # each once
    out = np.concatenate([~batch["mask"] for batch in batches])
    assert out.sum() == 12 * 2  # 12 epochs
    ids = np.concatenate([batch["id"] for batch in batches])
    assert set(ids[out]) == {zlib.crc32(b"7.png"), zlib.crc32(b"9.png")}
    assert not np.concatenate([batch["image"] for batch in batches])[out].any()

    mask = np.concatenate([batch["mask"] for batch in evaluate(make_source(broken=[7, 9]), **options)])
    assert np.flatnonzero(~mask[:37]).tolist() == [7, 9]
    # Leaving images out changes nothing about the others.
    whole = train(make_source(), 37)
    for batch, other in zip(batches, whole, strict=True):
        np.testing.assert_array_equal(batch["image"][batch["mask"]], other["image"][batch["mask"]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        (
            {"batch_size": 10, "process_count": 4},
            "batch_size=10 must be a positive multiple of process_count=4",
        ),
        ({"process_index": 2, "process_count": 2}, r"process_index=2 is not in \[0, 2\)"),
        ({"on_corrupt": "ignore"}, "on_corrupt='ignore': expected raise or skip"),
    ],
)
def test_arguments_out_of_range(source, options, message):
    with pytest.raises(ValueError, match=message):
        train(source, 1, **options)
    with pytest.raises(ValueError, match=message):
        evaluate(source, **options)


def test_unknown_crop(source):
    with pytest.raises(ValueError, match="crop='center': expected resized or random"):
        train(source, 1, crop="center")


def test_resize_smaller_than_the_image(source):
    with pytest.raises(ValueError, match="resize=8 is smaller than image_size=16"):
        evaluate(source, resize=8)


def test_open_split(data_dir):
    whole = loader.open_split("photos", "train", data_dir=data_dir)
    part = loader.open_split("photos", "train[:20%]", data_dir=data_dir)
    assert (whole.name, whole.split, part.split) == ("photos", "train", "train[:20%]")
    assert whole.num_examples == len(whole) == 672
    assert len(part) == 134
    assert part[5] == whole[5]
    both = loader.open_split("photos", "train[600:]+test", data_dir=data_dir)
    assert len(both) == 72 + 224
    assert both.num_classes == len(both.class_names) == 14
    assert both[0]["file_name"] == whole[600]["file_name"]


@pytest.mark.parametrize("data_dir", ["~/sets", Path("~/sets"), None])
def test_home_is_resolved(tmp_path, monkeypatch, data_dir):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", "~/sets")  # as from TFDS_DATA_DIR
    with pytest.raises(UserError, match=re.escape(f"imagenet2012 is not in {tmp_path / 'sets'}:")):
        loader.open_split("imagenet2012", "train", data_dir=data_dir)


@pytest.mark.parametrize("split", ["trian", "train[:0]", "train[900:]", "train[a]", "train[", "", "test[:x%]"])
def test_a_split_that_does_not_exist(data_dir, split):
    with pytest.raises(
        UserError,
        match=r"^data set photos: split .* there are train, test, detailed, unseen, and parts such as",
    ):
        loader.open_split("photos", split, data_dir=data_dir)


def test_imagenet_that_is_not_prepared(tmp_path):
    with pytest.raises(UserError) as error:
        loader.open_split("imagenet2012", "train", data_dir=tmp_path)
    message = str(error.value)
    assert "\n" not in message
    for part in (
        "python -m bjax.data.prepare imagenet2012 --manual_dir=",
        ":demo",
        ":imagenette",
        str(tmp_path),
    ):
        assert part in message


@pytest.mark.parametrize("name", ["photo", "imagenet", "no/such:1.0.0", "", "a b"])
def test_an_unknown_data_set(data_dir, name):
    with pytest.raises(UserError, match=r"there are imagenet2012, imagenette, photos; .*prepare folder") as error:
        loader.open_split(name, "train", data_dir=data_dir)
    assert "\n" not in str(error.value)
    if name == "photo":
        assert "did you mean photos?" in str(error.value)


def test_no_tensorflow(data_dir):
    code = (
        "import sys; from bjax.data import loader; from bjax.specs import Data\n"
        f"source = loader.open_split('photos', 'test', data_dir={str(data_dir)!r})\n"
        "next(loader.train_batches(source, Data(image_size=8), seed=0, batch_size=4))\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
