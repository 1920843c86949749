"""Data sets on disk: found by name, and checked against what was written before anything is read from them.

Beside its files a data set has sizes.json, the bytes of each shard, and manifest.sha256, the sums of all files but the
shards. The contents of a shard need no sum: ArrayRecord has one for each piece of it and checks it at every reading.
What plain TFDS wrote, or bjax before there were sums, has neither and is read without: there, names of classes that
were changed, put into another order or removed all together are not seen.
"""

import json
import re

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from bjax import manifest
from bjax.data.builder import SIZES, finish_swaps, prepare
from bjax.data.imagenette import Imagenette
from bjax.data.photos import Photos
from bjax.errors import UserError, nearest

ON_FIRST_USE = {"photos": Photos, "imagenette": Imagenette}
AGAIN = "prepare it again (python -m bjax.data.prepare … --overwrite)"


def find(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """The data set of that name under data_dir (NAME, NAME/CONFIG:VERSION); some are prepared on first use.

    Raises UserError where there is none, and where a file that describes it is missing or not as it was written.
    """
    if made := ON_FIRST_USE.get(name):
        folder = home(data_dir, name, made)
        if (folder / "dataset_info.json").exists():
            check(name, folder)
        prepare(made(data_dir=data_dir))
        return tfds.builder_from_directory(folder)
    versions = epath.Path(data_dir) / re.split("[/:]", name)[0]
    for _ in range(2):
        try:
            builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
        except Exception as error:  # of a damaged file comes what its damage leads to
            shards = {file.parent for depth in ("*", "*/*") for file in versions.glob(f"{depth}/*.array_record*")}
            for folder in sorted(shards):
                if re.fullmatch(r"[\d.]+", folder.name):
                    check(name, folder)
            if not isinstance(error, ValueError):
                raise
            finish_swaps(versions)  # TFDS's DatasetNotFoundError, or a name that cannot be one
        else:
            check(name, epath.Path(builder.data_dir))
            return builder
    raise _unknown(name, epath.Path(data_dir))


def home(data_dir: str, name: str, builder: type[tfds.core.DatasetBuilder]) -> epath.Path:
    """Where the data set `name` that `builder` writes lies."""
    return epath.Path(data_dir) / name / str(builder.VERSION)


def check(name: str, folder: epath.Path) -> None:
    """Raises UserError where a file that describes the data set in `folder` is missing or not as it was written."""
    if fault := fault_of(folder):
        raise UserError(f"data set {name} in {folder}: {fault}; {AGAIN}")


def fault_of(folder: epath.Path) -> str | None:
    """The first such file, as "FILE is missing"; None where all are good."""
    if manifest.exists(folder) and (wrong := manifest.wrong(folder)):
        return wrong
    readers = {
        "dataset_info.json": _version,
        "features.json": _number_of_classes,
    }
    for file, read in readers.items():
        if not (folder / file).exists():
            return f"{file} is missing"
        try:
            classes = read(folder)
        except Exception as error:  # JSON's, Unicode's, those of protocol buffers, AttributeError, KeyError, …
            return f"{file} is damaged ({' '.join(str(error).split())})"
    names = folder / "label.labels.txt"
    if classes and names.exists():
        lines = {line.strip() for line in names.read_bytes().decode(errors="replace").split("\n")} - {""}
        if len(lines) != classes:
            return f"{names.name} is damaged: it names {len(lines)} of {classes} classes"
    return None


def _version(folder: epath.Path) -> None:
    version = tfds.core.dataset_info.read_proto_from_builder_dir(folder).version
    if version != folder.name:
        raise ValueError(f"it is of version {version!r}")


def _number_of_classes(folder: epath.Path) -> int | None:
    label = dict(tfds.features.FeaturesDict.from_config(folder)).get("label")
    return label.num_classes if isinstance(label, tfds.features.ClassLabel) else None


def sizes(folder: epath.Path) -> dict[str, int]:
    """{shard: bytes} as it was written; empty for a data set without."""
    return json.loads((folder / SIZES).read_text()) if (folder / SIZES).exists() else {}


def check_shard(name: str, file: epath.Path, size: int | None, records: int) -> None:
    """Raises UserError where a shard is missing or not of `size` bytes, or, where that is not known, holds not as many
    records as it should."""
    place = f"data set {name} in {file.parent}: {file.name}"
    if not file.exists():
        raise UserError(f"{place} is missing; {AGAIN}")
    if size is not None and size != file.stat().length:
        raise UserError(f"{place} is damaged: {file.stat().length:,} bytes instead of {size:,}; {AGAIN}")
    if size is None:
        try:
            held = ArrayRecordReader(str(file)).num_records()
        except RuntimeError as error:
            raise damaged_shard(name, file, error) from None
        if held != records:
            raise UserError(f"{place} holds {held} records instead of {records}; {AGAIN}")


def damaged_shard(name: str, file: epath.Path, error: Exception) -> UserError:
    """What is told of a shard whose reading failed with `error`."""
    # "Corrupted Riegeli/records file: chunk data hash mismatch (…), chunk at 379285 with length 6137; …"
    cause = " ".join(str(error).split()).partition(" (computed")[0]
    return UserError(f"data set {name} in {file.parent}: {file.name} is damaged ({cause}); {AGAIN}")


def _unknown(name: str, data_dir: epath.Path) -> UserError:
    if name == "imagenet2012":
        return UserError(
            f"data set imagenet2012 is not in {data_dir}: prepare it with python -m bjax.data.prepare "
            "imagenet2012 --manual_dir=…, or train on the embedded photographs (--config=…:demo) or on a "
            "small download (--config=…:imagenette)"
        )
    files = [*data_dir.glob("*/*/dataset_info.json"), *data_dir.glob("*/*/*/dataset_info.json")]
    prepared = {path.relative_to(data_dir).parts[0] for path in files}
    known = sorted({*ON_FIRST_USE, "imagenet2012", *prepared})
    return UserError(
        f"unknown data set {name!r}{nearest(name, known)}: there are {', '.join(known)}; "
        f"python -m bjax.data.prepare folder {name} --source=… makes one from a folder of images"
    )
