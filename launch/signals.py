"""What a launcher hears while its children run: to be passed on by its own loop, never by the handler."""

import contextlib
import signal
from collections.abc import Iterator

STOPPED = 75  # the exit code of a run that was told to stop, as in bjax.runtime.distributed


@contextlib.contextmanager
def heard() -> Iterator[list[int]]:
    """Yields the list to which every SIGINT, SIGTERM and SIGHUP is added as it comes, instead of ending the process.

    The handler does no more, because it may run between a child's start and the line that notes the child: who passes
    signals on from a loop over the children forgets none. Under nohup SIGHUP stays ignored. SIGINT does not: a
    launcher started by a script in the background is told as its runs are.
    """
    told = []
    signals = [signal.SIGINT, signal.SIGTERM]
    signals += [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
    before = {number: signal.signal(number, lambda number, _: told.append(number)) for number in signals}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
