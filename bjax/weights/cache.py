"""Published weights on this machine: downloaded once, verified before every use.

They lie in BJAX_CACHE, XDG_CACHE_HOME/bjax or ~/.cache/bjax, in weights/ZOO/. A download goes to FILE.part, which a
later one goes on with, and is called FILE only once its SHA-256 is right: one that torchvision's file name begins
with, or, for timm's, that which the server sent, kept in FILE.sha256. BJAX_WEIGHTS_URL names a server that is asked
instead of the zoos' own, with the same paths.
"""

import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import filelock
import requests
from tqdm import tqdm

from bjax.errors import UserError
from bjax.published import Published

CHUNK = 2**16  # bytes: what a broken connection loses
TIMEOUT = 10, 60  # seconds: to connect, and between bytes


def folder() -> Path:
    """The folder of the files, which need not be there."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return (Path(os.environ.get("BJAX_CACHE") or caches / "bjax") / "weights").expanduser()


def place(weights: Published) -> Path:
    """Where the file of `weights` is, or will be."""
    return folder() / weights.zoo / weights.file


def get(weights: Published, note: Callable[[str], None]) -> Path:
    """The verified file of `weights`, downloaded where it is not there yet; several processes download it once.

    note: is told what cannot be verified. Raises UserError, in one line with the URL and the file's place, where it
    cannot be had, is another file than the published one, or could not be read for want of PyTorch.
    """
    file = place(weights)
    if file.suffix == ".pth" and importlib.util.find_spec("torch") is None:
        way = "pip install 'bjax[torch]', or take a timm: name, whose files need no PyTorch (python -m bjax.weights)"
        raise UserError(f"{weights.name}: {file.name} is read by PyTorch: {way}")
    if not file.is_file():
        _download_once(weights, file)
    if not (expected := weights.digits or _remembered(file)):
        note(f"{file}: not verified: put there by hand, and its name tells no SHA-256")
    elif not (digest := _sha256(file)).startswith(expected):
        raise UserError(
            f"{file}: is not the published file: its SHA-256 is {digest[: len(expected)]}, expected {expected}; remove "
            f"it, and it is downloaded again from {_url(weights)}"
        )
    return file


def _url(weights: Published) -> str:
    return weights.url(os.environ.get("BJAX_WEIGHTS_URL", ""))


def _download_once(weights: Published, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _lock(weights, file):
            if not file.is_file():  # another process may have got it meanwhile
                _download(weights, file)
    except OSError as error:
        way = "make room, or name another folder in the environment: BJAX_CACHE"
        raise UserError(f"{file}: cannot be written ({error.strerror or error}); {way}") from None


def _lock(weights: Published, file: Path) -> filelock.AcquireReturnProxy:
    lock = filelock.FileLock(file.with_name(f".{file.name}.lock"))
    try:
        return lock.acquire(blocking=False)
    except filelock.Timeout:
        print(f"waiting for another process that downloads {weights.name}", file=sys.stderr, flush=True)
        return lock.acquire()


def _download(weights: Published, file: Path) -> None:
    """Writes `file`, whole and verified."""
    url, part = _url(weights), file.with_name(f"{file.name}.part")
    by_hand = f"without internet, put that file at {file}"
    start = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == 416:  # nothing beyond what is there: it is whole, or of another file
                expected = weights.digits or _sent(response)
            else:
                response.raise_for_status()
                expected = weights.digits or _sent(response)
                if expected:
                    _write(response, part, start if response.status_code == 206 else 0, weights.name)
    except requests.HTTPError as error:
        why = f"{error.response.status_code} {error.response.reason}"
        raise UserError(f"{weights.name}: {url} answers {why}; {by_hand}") from None
    except requests.RequestException as error:
        why = type(error).__name__
        raise UserError(f"{weights.name}: {url} cannot be downloaded ({why}); {by_hand}") from None
    if not expected:
        raise UserError(f"{weights.name}: {url} tells no SHA-256 to verify the file by; {by_hand}")
    if not (digest := _sha256(part)).startswith(expected):
        part.unlink()
        raise UserError(
            f"{weights.name}: what {url} sent has the SHA-256 {digest[: len(expected)]}, expected {expected}; it was "
            f"removed; try again, or put the published file at {file}"
        )
    if not weights.digits:
        _sums(file).write_text(f"{expected}\n")
    os.replace(part, file)


def _write(response, part: Path, start: int, title: str) -> None:
    """The response's bytes into `part` from `start` on, under a progress bar."""
    length = response.headers.get("Content-Length")
    total = start + int(length) if length else None
    if not sys.stderr.isatty():
        size = f" ({total / 1e6:,.0f} MB)" if total else ""
        print(f"downloading {response.url}{size}", file=sys.stderr, flush=True)
    bar = tqdm(desc=title, total=total, initial=start, unit="B", unit_scale=True, disable=None, dynamic_ncols=True)
    with bar, part.open("ab") as file:
        file.truncate(start)
        for chunk in response.iter_content(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())


def _sent(response) -> str:
    """The SHA-256 that the server says the file has; empty: none. Hugging Face's hub sends it with the redirection."""
    for answer in (*response.history, response):
        for header in ("X-Linked-Etag", "ETag"):
            if match := re.fullmatch(r'(?:W/)?"?([0-9a-f]{64})"?', answer.headers.get(header, "")):
                return match[1]
    return ""


def _sums(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def _remembered(file: Path) -> str:
    return _sums(file).read_text().strip() if _sums(file).is_file() else ""


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
