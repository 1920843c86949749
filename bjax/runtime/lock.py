"""One holder of a workdir at a time: whoever writes into it holds its lock, whoever reads does not ask for it.

The lock is the kernel's (flock) on WORKDIR/.lock: it is gone with the process that held it, however that died, so a
file that was left behind is never in the way. On NFS (Linux from 2.6.12 on) the server keeps it, and hosts see one
another's; a host that vanishes holds it until the server's lease ends, a minute or two. Where a file system has no
locks (Lustre mounted without `flock`) a line says so, and the run goes on without one.
"""

import contextlib
import datetime
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bjax.errors import UserError

NAME = ".lock"
# To look whether a lock is held is to hold it for a moment: who is refused may have met that.
TRIES, PAUSE = 5, 0.05  # seconds


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Holds the lock of `workdir`, which is made where it is not there and goes again where nothing came into it.

    Raises UserError, naming the holder, where another process has it.
    """
    made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / NAME
    fd = _taken(path)
    if fd is None:
        raise UserError(
            f"--workdir={workdir}: in use by {_told(path)}; wait until it ends, end it, or name another --workdir"
        )
    try:
        since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        os.ftruncate(fd, 0)
        os.write(fd, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode())
        yield
    finally:
        # Still held: whoever opened the file before it goes finds out by `_taken`.
        with contextlib.suppress(OSError):
            path.unlink()
            for folder in made:
                folder.rmdir()  # only where it is empty
        os.close(fd)


def held(workdir: Path) -> bool:
    """Whether a process holds the lock of `workdir`."""
    try:
        fd = os.open(workdir / NAME, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks on this file system
        return False
    finally:
        os.close(fd)
    return False


def _taken(path: Path) -> int | None:
    """The descriptor of the locked file; None where another process holds it."""
    for _ in range(TRIES):
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except FileNotFoundError:  # its holder has just ended
            pass
        except BlockingIOError:
            time.sleep(PAUSE)
        except OSError as error:
            print(
                f"bjax: {path}: this file system has no locks ({error.strerror}); see yourself that one process at a "
                "time writes here",
                file=sys.stderr,
                flush=True,
            )
            return fd
        os.close(fd)
    return None


def _told(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, LookupError, TypeError):  # it has just begun, or ended
        return "another process"
