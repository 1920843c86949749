"""Prepared data sets as batches of uint8 images: a pure function of the seed and the step."""

import dataclasses
import functools
import hashlib
import itertools
import logging
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.decode import DeserializeMethod
from tensorflow_datasets.proto import tf_example_pb2

from bjax.data import decode, prepared
from bjax.data.builder import cores, data_root
from bjax.errors import UserError
from bjax.specs import Data

log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]

CROP = re.compile(r"(.+)_[^_/]+_y\d+_x\d+")  # PHOTOGRAPH_SPLIT_yTOP_xLEFT: how photos names its crops


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a data set: a sequence of {"image": bytes, "label": int, "file_name": str, "photograph": str}.

    photograph: what the image is a crop of: the feature `source` where the record has one, else as its file name
    says (`photograph_of`).

    `records` are the stored tf.train.Examples; parsed here, since TFDS's own parsing takes 15 times as
    long, and with it the one thread at a time that Python allows would hold up the decoding in all others.
    """

    name: str
    split: str
    num_classes: int
    class_names: tuple[str, ...]
    records: Any = dataclasses.field(repr=False)
    starts: tuple[int, ...] = (0,)  # where each part of a split such as "train+test" begins
    labelled: bool = False  # reading a record without a label (-1) is an error
    labels: tuple[int, ...] = ()  # what the stored labels stand for among class_names; empty: themselves
    files: tuple[tuple[epath.Path, int], ...] = ()  # that the records lie in, in their order, and how many in each

    def __len__(self):
        return len(self.records)

    @property
    def num_examples(self):
        return len(self.records)

    def __getitem__(self, index):
        try:
            feature = tf_example_pb2.Example.FromString(self.records[index]).features.feature
        except RuntimeError as error:
            ends = itertools.accumulate(number for _, number in self.files)
            file = next(file for (file, _), end in zip(self.files, ends, strict=True) if index < end)
            raise prepared.damaged_shard(self.name, file, error) from None
        file_name = feature["file_name"].bytes_list.value[0].decode()
        label = feature["label"].int64_list.value[0]
        stored = len(self.labels) or self.num_classes
        if not -1 <= label < stored:
            raise UserError(
                f"data set {self.name}, {self.split}: {file_name} has the label {label}, but there are "
                f"{stored} classes; {prepared.AGAIN}"
            )
        if self.labels and label >= 0:
            label = self.labels[label]
        named = feature["source"].bytes_list.value if "source" in feature else ()
        return {
            "image": feature["image"].bytes_list.value[0],
            "label": label,
            "file_name": file_name,
            "photograph": b"".join(named).decode() or photograph_of(file_name),
        }

    def __iter__(self):
        return (self[index] for index in range(len(self)))


def photograph_of(file_name):
    """What the image is a crop of: "a/chelsea" of "a/chelsea_unseen_y0012_x0040.jpg"; any other name itself."""
    crop = CROP.fullmatch(os.path.splitext(file_name)[0])
    return crop[1] if crop else file_name


def fingerprint(photograph):
    """uint32[2] that stands for the photograph's name in a batch: among a million names no two are alike."""
    return np.frombuffer(hashlib.blake2b(photograph.encode(), digest_size=8).digest(), np.uint32)


class Corrupt:
    """The damaged images that were met and skipped: {file_name: cause}. Shared by the loader's threads."""

    def __init__(self):
        self.causes = {}
        self._lock = threading.Lock()

    def __len__(self):
        return len(self.causes)

    def add(self, source, file_name, cause):
        with self._lock:
            if file_name not in self.causes:
                where = f"{source.name}, {source.split}"
                log.warning("%s: skipping corrupt image %s: %s", where, file_name, cause)
                self.causes[file_name] = cause


def open_split(name: str, split: str, *, data_dir: str | os.PathLike | None = None) -> Source:
    """Opens a split for reading; `photos` and `imagenette` are prepared on first use.

    name: "photos", "imagenette", or any data set prepared under data_dir in ArrayRecord with features image, label and
    file_name; TFDS's name/config:version works too. split: as TFDS has it: "train", "train[:20%]",
    "train[1000:]+validation". data_dir: where data sets lie; None is TFDS's default (TFDS_DATA_DIR, else
    ~/tensorflow_datasets).

    The files are open from now on: a data set that is written anew meanwhile is read on as it was. Raises UserError
    where there is no such data set or split, or its files are damaged.
    """
    builder = prepared.find(name, data_root(data_dir))
    info, place = builder.info, f"data set {name} in {builder.data_dir}"
    if missing := {"image", "label", "file_name"} - set(info.features):
        raise UserError(f"{place} has no feature {', '.join(sorted(missing))}")
    if "source" in info.features and not isinstance(info.features["source"], tfds.features.Text):
        raise UserError(
            f"{place}: the feature source must be text, the name of the photograph that an image is a crop of; prepare "
            "it so, or without that feature"
        )
    if info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        stored = f"{info.file_format.value}, which cannot be read by index"
        raise UserError(f"{place} is stored as {stored}; prepare it as array_record")
    try:
        records = builder.as_data_source(split, deserialize_method=DeserializeMethod.RAW_BYTES)
    except (ValueError, KeyError, AssertionError) as error:
        raise UserError(
            f"data set {name}: split {split!r} names nothing; there are {', '.join(info.splits)}, and parts such as "
            "train[:20%] (config.data.train, config.eval.NAME.split, or the argument eval_split= of the config)"
        ) from error
    files, sizes = [], prepared.sizes(epath.Path(builder.data_dir))
    for part in info.splits[split].file_instructions:
        file, first = epath.Path(part.filename), sum(take for _, take in files)
        prepared.check_shard(name, file, sizes.get(file.name), part.examples_in_shard)
        try:
            records[first]  # TFDS opens a file at its first record
        except RuntimeError as error:
            raise prepared.damaged_shard(name, file, error) from None
        files.append((file, part.take))
    names = tuple(info.features["label"].names)
    return Source(name, split, len(names), names, records, _starts(split, info.splits), files=tuple(files))


def with_labels(source: Source, key: str) -> Source:
    """`source`, whose records must all have a label from here on.

    key: "config.data.train=SPLIT", which the message begins with. Raises UserError where a part of the split has no
    labels. Reading any record without one raises it later.
    """
    if any(source[start]["label"] < 0 for start in source.starts):
        way = "use another split, or task=blur_type"
        raise UserError(f"{key}: images of {source.name} in it have no label; {way}")
    return dataclasses.replace(source, labelled=True)


def _starts(split: str, splits) -> tuple[int, ...]:
    """The index of the first record of each part of `split`; parts without records have none."""
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
    ends = [splits[part.splitname].num_examples if part.to is None else part.to for part in parts]
    lengths = [end - (part.from_ or 0) for part, end in zip(parts, ends, strict=True)]
    return tuple(sum(lengths[:i]) for i, length in enumerate(lengths) if length)


def train_batches(
    source: Source,
    data: Data,
    *,
    seed: int,
    batch_size: int,
    steps: tuple[int, int | None] = (0, None),
    process: tuple[int, int] = (0, 1),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    corrupt: Corrupt | None = None,
) -> Iterator[Batch]:
    """Shuffled, augmented batches, each a function of (seed, step) alone.

    Every epoch is a new permutation; a batch may span two. Which examples a step holds, in which order and how each is
    cropped and flipped does not depend on the numbers of threads and processes: process h of P holds rows h * b to
    (h + 1) * b of the global batch, b = batch_size / P.

    data: of it image_size, crop (resized: torchvision's RandomResizedCrop), scale, flip, threads, prefetch and
    on_corrupt (skip: zeros, with mask False). seed: of the shuffling and the augmentation. batch_size: of the global
    batch, over all processes. steps: the first to yield, where a resumed run goes on, and the one to end before; None
    goes on for ever. process: (h, P). ratio: of the resized crop, width over height. corrupt: records what was skipped.

    Yields {"image": uint8[b, size, size, 3], "label": int32[b], "id": uint32[b], "photograph": uint32[b, 2],
    "mask": bool[b]}. The id is the CRC-32 of the file name: the same image has the same id in every split, run and
    order; photograph is the `fingerprint` of what the image is a crop of.

    Raises ValueError where an argument is out of range; UserError, while iterating, for a corrupt image.
    """
    local_size = _local_batch_size(batch_size, *process)
    if data.crop not in ("resized", "random"):
        raise ValueError(f"crop={data.crop!r}: expected resized or random")
    read = _reader(source, data, corrupt)

    def cut(rng, image):
        if data.crop == "random":
            return decode.random_crop(rng, image, data.image_size)
        return decode.random_resized_crop(rng, image, data.image_size, scale=data.scale, ratio=ratio)

    def load(index, rng):
        example = read(index, functools.partial(cut, rng))
        if data.flip and rng.random() < 0.5:
            example["image"] = decode.mirror(example["image"])
        return example

    examples = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat().random_map(load)
    batches = examples.batch(local_size, drop_remainder=True, batch_fn=_stack)
    return _iterate(batches[slice(process[0], None, process[1])][slice(*steps)], data)


def eval_batches(
    source: Source,
    data: Data,
    *,
    batch_size: int,
    process: tuple[int, int] = (0, 1),
    corrupt: Corrupt | None = None,
) -> Iterator[Batch]:
    """Every image of the split exactly once over all processes, in order, centrally cropped.

    The last batches are filled up with zeros whose mask is False, so that all are of one size and every process yields
    the same number of them.

    data: of it image_size, resize (the shorter side before the crop; 0 crops the pixels as they are), interpolation (of
    that resizing, antialiased), threads, prefetch and on_corrupt. The others, what is yielded and errors as for
    `train_batches`.
    """
    local_size = _local_batch_size(batch_size, *process)
    size = data.image_size
    if data.resize and data.resize < size:
        raise ValueError(f"resize={data.resize} is smaller than image_size={size}")
    read = _reader(source, data, corrupt)
    padding = _example(np.zeros((size, size, 3), np.uint8), 0, 0, np.zeros(2, np.uint32), False)

    def cut(image):
        return decode.center_crop(image, size, resize=data.resize, interpolation=data.interpolation)

    def load(position):
        return padding if position >= len(source) else read(position, cut)

    steps = -(-len(source) // batch_size)
    examples = grain.MapDataset.range(steps * batch_size).map(load)
    batches = examples.batch(local_size, drop_remainder=True, batch_fn=_stack)
    return _iterate(batches[slice(process[0], None, process[1])], data)


def _reader(source: Source, data: Data, corrupt: Corrupt | None) -> Callable[[int, Callable], dict]:
    if data.on_corrupt not in ("raise", "skip"):
        raise ValueError(f"on_corrupt={data.on_corrupt!r}: expected raise or skip")
    corrupt = Corrupt() if corrupt is None else corrupt
    blank = np.zeros((data.image_size, data.image_size, 3), np.uint8)

    def read(index, cut):
        record = source[index]
        file_name = record["file_name"]
        if source.labelled and record["label"] < 0:
            raise UserError(f"{source.name}, {source.split}: {file_name} has no label; use task=blur_type")
        identity = zlib.crc32(file_name.encode()), fingerprint(record["photograph"])
        try:
            image = decode.decode(record["image"])
        except ValueError as cause:
            if data.on_corrupt == "raise":
                raise UserError(
                    f"{source.name}, {source.split}: corrupt image {file_name}: {cause}; "
                    "--config.data.on_corrupt=skip leaves such images out and counts them"
                ) from None
            corrupt.add(source, file_name, str(cause))
            return _example(blank, record["label"], *identity, False)
        return _example(cut(image), record["label"], *identity, True)

    return read


def _example(image: np.ndarray, label: int, identity: int, photograph: np.ndarray, mask: bool) -> Batch:
    return {
        "image": image,
        "label": np.int32(label),
        "id": np.uint32(identity),
        "photograph": photograph,
        "mask": np.bool_(mask),
    }


def _stack(examples: list[Batch]) -> Batch:
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}


def _local_batch_size(batch_size: int, process_index: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        expected = f"a positive multiple of process_count={process_count}"
        raise ValueError(f"batch_size={batch_size} must be {expected}")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} is not in [0, {process_count})")
    return batch_size // process_count


def _iterate(batches: grain.MapDataset, data: Data) -> Iterator[Batch]:
    threads = data.threads or cores()
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=data.prefetch or threads)
    return iter(batches.to_iter_dataset(options))
