"""What a command shows while it works: aligned tables and a progress bar."""

import math
import sys

import numpy as np
from tqdm import tqdm


def columns(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Aligned text columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(row):
        cells = (row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)))
        return "  ".join(cells).rstrip()

    return "\n".join([line(header), "  ".join("─" * w for w in widths), *map(line, rows)])


class Progress:
    """A bar with rate and time left on a terminal; plain lines elsewhere, where a bar would fill the log."""

    def __init__(self, total: int, start: int, what: str, *, shown: bool, unit: str = "step"):
        self.terminal = shown and sys.stderr.isatty()
        self.shown = shown
        self.total, self.step, self.what = total, start, what
        self.bar = tqdm(total=total, initial=start, desc=what, unit=unit, dynamic_ncols=True) if self.terminal else None

    def advance(self) -> None:
        self.step += 1
        if self.bar is not None:
            self.bar.update()

    def line(self, text: str) -> None:
        """Shows `text`: beside the bar on a terminal, as a line of its own elsewhere."""
        if self.bar is not None:
            self.bar.set_postfix_str(text)
        elif self.shown:
            print(f"{self.what} {self.step}/{self.total}  {text}", flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def parameter_table(params: dict, shardings: dict) -> str:
    """Parameters by top-level module: arrays, numbers, MB, and how much of it each device holds."""
    import jax  # the only use here: walking a tree

    rows, total = [], [0, 0, 0, 0]
    for name, module in params.items():
        leaves = jax.tree.leaves(module)
        places = jax.tree.leaves(shardings[name])
        held = sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in zip(leaves, places, strict=True))
        row = [len(leaves), sum(x.size for x in leaves), sum(x.size * x.dtype.itemsize for x in leaves), held]
        total = np.add(total, row)
        rows.append((name, row))
    shown = [
        (name, f"{arrays:,}", f"{numbers:,}", f"{size / 1e6:.2f}", f"{held / 1e6:.2f}")
        for name, (arrays, numbers, size, held) in [*rows, ("total", total)]
    ]
    return columns(("module", "arrays", "parameters", "MB", "MB a device"), shown)
