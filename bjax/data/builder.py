"""What the builders of data sets share: writing them once, whole, and free of damaged images.

A data set is TFDS's ArrayRecord layout, written without TensorFlow and readable by plain TFDS.
"""

import collections
import concurrent.futures
import contextlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import filelock
import tensorflow_datasets as tfds
import tqdm
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from bjax import manifest
from bjax.data import decode
from bjax.errors import UserError, shown

LISTED = 10
SIZES = "sizes.json"  # of a data set: {shard: bytes}


class ReproducibleWriter(tfds.core.ExampleWriter):
    """TFDS's writer with a record's features in a fixed order.

    Protocol buffers leave that order open, and so it changes from process to process.
    """

    def write(self, path: epath.PathLike, examples: Iterable[tuple[object, bytes]]):
        def in_order(record: bytes) -> bytes:
            return tf_example_pb2.Example.FromString(record).SerializeToString(deterministic=True)

        return super().write(path, ((key, in_order(record)) for key, record in examples))


def data_root(data_dir: str | os.PathLike | None = None) -> str:
    """The folder of all data sets: data_dir, or TFDS's default (TFDS_DATA_DIR, ~/tensorflow_datasets)."""
    # TFDS takes a TFDS_DATA_DIR that is set to nothing for the current folder.
    return os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR or "~/tensorflow_datasets")


def prepare(builder: tfds.core.DatasetBuilder, *, overwrite: bool = False) -> bool:
    """Writes a builder's data set unless it is there already: True if it was written now, False if it was there.

    It is written beside its place and moved there when all is done, so a data set is there whole or not at all, and one
    that is written anew stays until then. A lock file beside it lets one process work while others wait for the result;
    the system releases it when that process dies, so whoever holds it may remove what a killed one left behind.

    overwrite: write it anew if it is there. Whoever has the old one open (`loader.open_split`) goes on reading it; it
        is gone when the last one closes it.

    Raises UserError where the builder refuses its input or the folder cannot be written.
    """
    target = epath.Path(builder.data_dir)
    if _is_prepared(target) and not overwrite:
        return False
    if "://" in builder.data_dir:
        raise UserError(f"{builder.name}: prepare it in a local folder and copy that to {builder.data_dir}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target):
            _finish_swap(target)
            if _is_prepared(target) and not overwrite:
                return False
            new, old = _new(target), _old(target)
            for leftover in (new, old, *target.parent.glob(f"incomplete.*_{target.name}")):
                leftover.rmtree(missing_ok=True)
            # TFDS's own hook for writers, here for every builder at once.
            builder._example_writer = lambda: ReproducibleWriter(builder.info.file_format)
            tfds.disable_progress_bar()  # its bars lack totals; `intact` has its own
            with (
                contextlib.redirect_stdout(io.StringIO()),  # "Downloading … Unknown size" would mislead
                tfds.core.utils.temporary_assignment(builder, "_data_dir", os.fspath(new)),
            ):
                builder.download_and_prepare()
            _seal(new)
            builder.info.update_data_dir(builder.data_dir)
            if target.exists():
                target.rename(old)
            new.rename(target)
            # On NFS a folder stays while another process has its files open.
            shutil.rmtree(old, ignore_errors=True)
            if old.exists():
                print(f"{old} cannot be removed while it is read: remove it afterwards", file=sys.stderr)
    except OSError as error:
        raise UserError(
            f"{builder.name}: preparing {target} failed: {error}; another folder is chosen with --data_dir, "
            "data.data_dir in the config or TFDS_DATA_DIR in the environment"
        ) from error
    return True


def finish_swaps(folder: epath.Path) -> None:
    """Puts the versions of a data set into place whose replacement was killed between its two renames.

    folder: of the data set, which holds a folder a version.
    """
    for old in folder.glob("replaced_*"):
        target = folder / old.name.removeprefix("replaced_")
        with _lock(target):
            _finish_swap(target)


def _seal(folder: epath.Path) -> None:
    """Leaves what `bjax.data.prepared` checks a data set by."""
    shards = {file.name: file.stat().length for file in sorted(folder.glob("*.array_record-*"))}
    (folder / SIZES).write_text(json.dumps(shards, indent=0))
    manifest.write(Path(folder), leave_out=shards)


def _new(target: epath.Path) -> epath.Path:
    """Where a data set is written before it is moved to `target`."""
    return target.parent / f"new_{target.name}"


def _old(target: epath.Path) -> epath.Path:
    """Where the data set that was in `target` is until the new one is there."""
    return target.parent / f"replaced_{target.name}"


def _finish_swap(target: epath.Path) -> None:
    if not target.exists() and _old(target).exists():
        (_new(target) if _is_prepared(_new(target)) else _old(target)).rename(target)


def dataset_info(
    builder: tfds.core.DatasetBuilder, classes: Sequence[str], *, image=None, **more
) -> tfds.core.DatasetInfo:
    """What a data set of images in classes declares: features image, label and file_name.

    image: the feature of that name; None: images of any size. more: of `DatasetInfo`.
    """
    features = {
        "image": image or tfds.features.Image(shape=(None, None, None)),
        "label": tfds.features.ClassLabel(names=classes),
        "file_name": tfds.features.Text(),
    }
    features = tfds.features.FeaturesDict(features)
    return tfds.core.DatasetInfo(builder=builder, features=features, supervised_keys=("image", "label"), **more)


def intact(
    files: Iterable[tuple[str, str, bytes | os.PathLike]],
    *,
    total: int,
    title: str,
    where: str | os.PathLike,
    on_corrupt: str = "raise",
    corrupt: dict[str, str] | None = None,
    convert: Callable[[bytes], bytes] = lambda data: data,
) -> Iterator[tuple[str, dict]]:
    """The records of the images that decode, in order; decoding runs ahead in threads, under a progress bar.

    Yields file_name, {"image": bytes, "label": label, "file_name": file_name}.

    files: file_name, label, and the bytes or the path of the file that holds them.
    total: how many files there should be.
    title: of the progress bar.
    where: what the files come from, for the error.
    on_corrupt: "raise", or "skip".
    corrupt: {file_name: cause}; those that do not decode are added.
    convert: what is stored in their place.

    Raises UserError after the last file, if there are not as many as there should be, or any is corrupt and on_corrupt
    is "raise".
    """
    corrupt = {} if corrupt is None else corrupt
    before = len(corrupt)
    threads = cores()
    waiting = collections.deque()

    def check(data: bytes | os.PathLike) -> bytes:
        if isinstance(data, os.PathLike):
            data = decode.read(data)
        decode.decode(data)
        return convert(data)

    def finish() -> Iterator[tuple[str, dict]]:
        file_name, label, future = waiting.popleft()
        try:
            data = future.result()
        except ValueError as cause:
            corrupt[file_name] = str(cause)
        else:
            yield file_name, {"image": data, "label": label, "file_name": file_name}

    interval = 1 if sys.stderr.isatty() else 60
    count = 0  # the bar's own stays 0 where TQDM_DISABLE is set
    bar = tqdm.tqdm(files, title, total, unit=" images", mininterval=interval)
    with bar, concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for file_name, label, data in bar:
            count += 1
            waiting.append((file_name, label, pool.submit(check, data)))
            if len(waiting) > 4 * threads:
                yield from finish()
        while waiting:
            yield from finish()

    if count != total:
        raise UserError(f"{where} holds {count} images instead of {total}; get it again")
    damaged = [f"{file_name} ({cause})" for file_name, cause in list(corrupt.items())[before:]]
    if damaged and on_corrupt == "raise":
        raise UserError(
            f"{where} holds {len(damaged)} corrupt images: {some(damaged)}; mend them, or leave them out with "
            "--on_corrupt=skip"
        )
    print(f"{title}: shuffling and writing {total - len(damaged)} images", file=sys.stderr)


def cores() -> int:
    """How many of the machine's cores this process may use: fewer than it has, in many a cluster's job."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def some(names: Sequence[str]) -> str:
    """A list of names for an error's one line: the first ten, and how many more there are."""
    names = [shown(name) for name in names]
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def _is_prepared(target: epath.Path) -> bool:
    return (target / "dataset_info.json").is_file()


def _lock(target: epath.Path) -> filelock.AcquireReturnProxy:
    lock = filelock.FileLock(target.parent / f".{target.name}.lock")
    try:
        return lock.acquire(blocking=False)
    except filelock.Timeout:
        print(f"waiting for another process that is preparing {target}", file=sys.stderr)
        return lock.acquire()
