"""Data sets on disk: TFDS's ArrayRecord layout, written without TensorFlow, once, whatever is killed or
started twice."""

import contextlib
import io
import shutil
import sys
from pathlib import Path

import filelock
import tensorflow_datasets as tfds

from bjax.errors import UserError


def prepare(builder, *, progress=True):
    """Writes a builder's data set unless it is there already.

    TFDS writes into a temporary folder and renames it when all is done, so a data set is there whole or not
    at all. A lock file beside it lets one process work while others wait for the result; the system
    releases it when that process dies, so whoever holds it may remove what a killed one left behind.

    Args:
      builder: a TFDS builder.
      progress: show TFDS's progress bars.

    Returns:
      True if the data set was written now, False if it was there.

    Raises:
      UserError: the folder cannot be written.
    """
    target = Path(builder.data_dir)
    if _is_prepared(target):
        return False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target):
            if _is_prepared(target):
                return False
            for leftover in target.parent.glob(f"incomplete.*_{target.name}"):
                shutil.rmtree(leftover)
            tfds.display_progress_bar(progress)
            with contextlib.redirect_stdout(io.StringIO()):  # "Downloading … Unknown size" would mislead
                builder.download_and_prepare()
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"{builder.name}: cannot write {target}: {error.strerror}; choose another with --data_dir, "
            "data.data_dir in the config or TFDS_DATA_DIR in the environment"
        ) from None
    return True


def _is_prepared(target):
    return (target / "dataset_info.json").is_file()


def _lock(target):
    lock = filelock.FileLock(target.parent / f".{target.name}.lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        print(f"waiting for another process that is preparing {target}", file=sys.stderr)
        lock.acquire()
    return lock
