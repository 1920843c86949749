"""What a folder held when it was written: the SHA-256 of each of its files, so that a flipped bit is not believed.

`cd STEP && sha256sum -c manifest.sha256` checks it without this code. The last line is of the lines above it: a
manifest that was cut or changed itself is no manifest.
"""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NAME = "manifest.sha256"
THREADS = 8  # hashing lets other threads run


def write(folder: Path, *, leave_out: Iterable[str] = ()) -> None:
    """Writes the manifest of all files below `folder`, whole or not at all; last, and onto the disk.

    leave_out: paths in it that change, or come, later.
    """
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if name not in (NAME, *leave_out)]
    with ThreadPoolExecutor(THREADS) as pool:
        sums = pool.map(_sum, (folder / name for name in names))
        lines = [f"{x}  {name}\n" for x, name in zip(sums, names, strict=True)]
    text = "".join(lines)
    temporary = folder / f"{NAME}.tmp"
    with temporary.open("w") as file:
        file.write(f"{text}# {hashlib.sha256(text.encode()).hexdigest()}\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / NAME)


def exists(folder: Path) -> bool:
    return (folder / NAME).is_file()


def wrong(folder: Path, part: tuple[int, int] = (0, 1)) -> str | None:
    """The first file that is not as the manifest says, as "FILE is missing"; None where all are.

    part: (h, n): of the files only each n-th, from the h-th on, where n processes share the work.
    """
    try:
        text, mark, last = (folder / NAME).read_text().rpartition("# ")
    except (OSError, UnicodeDecodeError) as error:
        return f"{NAME} is {'missing' if isinstance(error, FileNotFoundError) else 'damaged'}"
    if not mark or last != hashlib.sha256(text.encode()).hexdigest() + "\n":
        return f"{NAME} is damaged"
    entries = [line.split("  ", 1) for line in text.splitlines()][part[0] :: part[1]]
    with ThreadPoolExecutor(THREADS) as pool:
        faults = pool.map(lambda entry: _fault(folder / entry[1], entry[0]), entries)
        return next((f"{name} is {fault}" for (_, name), fault in zip(entries, faults, strict=True) if fault), None)


def _fault(path: Path, expected: str) -> str | None:
    try:
        return None if _sum(path) == expected else "damaged"
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError as error:
        return f"unreadable ({error.strerror})"


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
