"""What the files beside a run's checkpoints held when they were written: a changed digit in one is not believed.

`sums.sha256` lies in the folder of these files, and `cd FOLDER && sha256sum -c sums.sha256` checks them without this
code; its last line is of the lines above it. A file that it does not list, as of runs of before there were sums, is
believed. Whoever changes a file by hand deletes `sums.sha256`, which says so.
"""

import contextlib
import functools
import hashlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

NAME = "sums.sha256"
ABSENT = 64 * "0"  # the sum of a file that was not there before its first write


def read(path: Path) -> bytes:
    """What the file holds. Raises ValueError where that is not what was written, FileNotFoundError without a file."""
    accepted = listed(path)
    content = path.read_bytes()
    # Of a file that is being replaced both are listed; whoever reads slowly may need those of before and after.
    if accepted and _sum(content) not in accepted and _sum(content) not in listed(path):
        raise ValueError(f"it is not what was written; if you changed it, delete {NAME} beside it")
    return content


def check(path: Path) -> None:
    """Raises ValueError where the file is not what was written, also where it is gone."""
    if is_gone(path):
        raise ValueError("it is missing")
    if path.exists():
        read(path)


def is_gone(path: Path) -> bool:
    """Whether the file was written, and is missing."""
    accepted = listed(path)
    return not path.exists() and bool(accepted) and ABSENT not in accepted


def write(path: Path, content: bytes) -> None:
    """Writes the file whole or not at all; a process that dies in between leaves one that is believed."""
    sums = _read(path.parent)
    new = _sum(content)
    before = sums.get(path.name) or [_sum(path.read_bytes()) if path.is_file() else ABSENT]
    if before != [new]:
        _write(path.parent, sums | {path.name: [*before, new]})
    replace(path, content)
    note(path, new)


def note(path: Path, new: str) -> None:
    """Lists the file with this sum alone, for one that grows: the SHA-256 of what it holds by now."""
    sums = _read(path.parent)
    if sums.get(path.name) != [new]:
        _write(path.parent, sums | {path.name: [new]})


def listed(path: Path) -> list[str]:
    """The sums that a file may have; none: any."""
    return _read(path.parent).get(path.name, [])


def replace(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, onto the disk: a reader never sees half of it, a power cut leaves none."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()  # on a full disk it takes the room of what comes next
        raise


def _read(folder: Path) -> dict[str, list[str]]:
    path = folder / NAME
    try:
        text, mark, last = path.read_text().rpartition("# ")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError):
        text, mark, last = "", "", ""
    if not mark or last != _sum(text.encode()) + "\n":
        _say_once(path)
        return {}
    sums = {}
    for line in text.splitlines():
        value, name = line.split("  ", 1)
        sums.setdefault(name, []).append(value)
    return sums


def _write(folder: Path, sums: dict[str, Iterable[str]]) -> None:
    text = "".join(f"{value}  {name}\n" for name, values in sorted(sums.items()) for value in dict.fromkeys(values))
    replace(folder / NAME, f"{text}# {_sum(text.encode())}\n".encode())


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@functools.cache
def _say_once(path: Path) -> None:
    print(f"bjax: {path}: damaged; what is beside it is believed unchecked until it is written", file=sys.stderr)
