"""The one stopwatch, of conditions and of benchmarks: it needs no part of a run."""

import time
from collections.abc import Callable, Hashable


def timed(runs: dict[Hashable, Callable], rounds: int, *, pause: float = 0.0) -> dict[Hashable, list[float]]:
    """Seconds of every round of each, run interleaved, `pause` seconds before each run."""
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(pause)
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds
