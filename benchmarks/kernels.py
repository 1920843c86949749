"""Where a step's time goes: what the profiler says of its kernels, by the kinds of bjax.aot.hlo."""

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax

from bjax.aot import hlo


def seconds(run: Callable[[], object], text: str) -> dict[str, float]:
    """{kind of kernel: seconds} of a round, summed over threads, the longest first.

    run: makes the round and waits for it. text: that of the compiled program that it runs. What the profiler names is
    looked up there; empty where it names none of the program's kernels.
    """
    kinds = {k.name: k.kind for k in hlo.kernels(hlo.parse(text))}
    found = Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        for path in Path(folder).rglob("*.xplane.pb"):
            for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
                for event in (event for line in plane.lines for event in line.events):
                    name = next((value for key, value in event.stats if key == "hlo_op"), None)
                    if name in kinds:
                        found[kinds[name]] += event.duration_ns / 1e9
    return dict(found.most_common())


def told(name: str, found: dict[str, float]) -> str:
    """A line of the shares: resnet50: 63 % convolution, 25 % transpose."""
    total = sum(found.values())
    shares = [f"{100 * x / total:.0f} % {kind}" for kind, x in found.items() if x >= 0.005 * total]
    return f"{name}: {', '.join(shares) or 'the profiler names no kernel'}"
