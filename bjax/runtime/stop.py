"""SIGTERM, SIGUSR1 and Ctrl-C, heard from the first line of a command on: nothing slow is imported here.

A process that has nothing to save ends at once, even in the middle of a compilation, where Python runs no handlers: a
thread waits for the byte that the interpreter's C handler writes. From `defer` on a request is only noted, and whoever
asks `told` saves first. Ctrl-C is a KeyboardInterrupt, and ends the process where Python cannot raise it in time.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
INTERRUPTED = 130  # exit code after Ctrl-C
STOPPED = 75  # exit code of a run that was told to stop and can go on: EX_TEMPFAIL of sysexits.h, "try again"
LINE = b"bjax: told to stop, with nothing to save since its last checkpoint; the same command goes on\n"
INTERRUPTED_LINE = b"bjax: interrupted; the same command goes on from the last checkpoint\n"
IMPATIENCE = 1.0  # seconds that Python has to answer Ctrl-C; it does at once, unless it waits for a compilation

told = threading.Event()
_interrupted = threading.Event()
_lock = threading.Lock()
_patience: float | None = None  # seconds between a request and the end; None: it is up to who asks `told`


def listen() -> None:
    """From here on this process ends, when it is told to stop, at once with code 75; see `defer`."""
    defer(0)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, _note)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # ignored in a script's background
        signal.signal(signal.SIGINT, _interrupt)


def defer(patience: float | None = None) -> None:
    """From here on there is something to save, and a request to stop is noted in `told`.

    patience: seconds after which it ends the process all the same: what takes longer is lost to SIGKILL anyway.
    """
    global _patience
    with _lock:
        _patience = patience


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Within it requests are noted in `told` also where nobody called `listen`."""
    before = {number: signal.signal(number, _note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        told.clear()


def ended() -> None:
    """From here on a request changes nothing: the exit code is known, and what is left is to leave.

    Python gives a signal that it handled back to the system before the libraries' own ends, which take their time; and
    srun tells all processes of a job to end as soon as the first of them has ended with 75.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def leave(code: int) -> None:
    """Ends this process: after Ctrl-C at once, since libraries' threads would be waited for, some of them in vain."""
    ended()
    if code == INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _note(*_) -> None:
    told.set()


def _interrupt(number, frame) -> None:
    _interrupted.set()
    signal.default_int_handler(number, frame)


def _watch(reader: int) -> None:
    while number := os.read(reader, 1):
        if number[0] == signal.SIGINT and not _interrupted.wait(IMPATIENCE):
            os.write(2, INTERRUPTED_LINE)
            os._exit(INTERRUPTED)
        since = time.monotonic()
        while number[0] in SIGNALS and _patience is not None:
            with _lock:
                if _patience is not None and time.monotonic() - since >= _patience:
                    os.write(1, LINE)
                    os._exit(STOPPED)
            time.sleep(0.02)
