"""What a command shows while it works: aligned tables and a progress bar."""

import math
import re
import sys

from tqdm import tqdm

COMPILING = "compiling …"


def columns(header: tuple[str, ...], rows: list[tuple[str, ...]], left: int = 1) -> str:
    """Aligned text columns: the first `left` to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(row):
        cells = (f"{c:{'<' if i < left else '>'}{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        return "  ".join(cells).rstrip()

    return "\n".join([line(header), "  ".join("─" * w for w in widths), *map(line, rows)])


class Progress:
    """A bar with rate and time left on a terminal; plain lines elsewhere, where a bar would fill the log.

    first: what is done before the first step is there, such as "compiling …".
    """

    def __init__(self, total: int, start: int, what: str, *, shown: bool, unit: str = "step", first: str = ""):
        self.terminal = shown and sys.stderr.isatty()
        self.shown = shown
        self.total, self.step, self.what = total, start, what
        self.bar = None
        if self.terminal:
            # At 80 columns there is no room for steps a second beside the loss: images a second stand there.
            shape = {"bar_format": "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"}
            shape = shape if unit == "step" else {}
            self.bar = tqdm(total=total, initial=start, desc=what, unit=unit, dynamic_ncols=True, **shape)
        self.first = first if start < total else ""
        if self.first:
            self.line(self.first)

    def advance(self) -> None:
        self.step += 1
        if self.bar is not None:
            if self.first:
                self.bar.set_postfix_str("", refresh=False)
            self.bar.update()
        self.first = ""

    def line(self, text: str) -> None:
        """Shows `text`: beside the bar on a terminal, as a line of its own elsewhere."""
        if self.bar is not None:
            self.bar.set_postfix_str(text)
        elif self.shown:
            print(f"{self.what} {self.step}/{self.total}  {text}", flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def parameters_line(params: dict, shardings: dict) -> str:
    """Of all parameters: how many, arrays, MB, and MB on a device; with a model's name at most 80 columns."""
    arrays, numbers, size, held = _totals(params, shardings)
    return f"{numbers:,} parameters, {arrays:,} arrays, {size / 1e6:.1f} MB, {held / 1e6:.1f} a device"


def parameter_table(params: dict, shardings: dict) -> str:
    """The same by top-level module, in the order of their numbers: block_10 comes after block_9."""
    names = sorted(
        params, key=lambda name: [(int(x), "") if x.isdigit() else (-1, x) for x in re.split(r"(\d+)", name)]
    )
    rows = [(name, _totals(params[name], shardings[name])) for name in names]
    shown = [
        (name, f"{arrays:,}", f"{numbers:,}", f"{size / 1e6:.2f}", f"{held / 1e6:.2f}")
        for name, (arrays, numbers, size, held) in [*rows, ("total", _totals(params, shardings))]
    ]
    return columns(("module", "arrays", "parameters", "MB", "MB a device"), shown)


def _totals(params: dict, shardings: dict) -> tuple[int, int, int, int]:
    """Arrays, numbers, bytes, and bytes that each device holds."""
    import jax  # the only use here: walking a tree

    leaves, places = jax.tree.leaves(params), jax.tree.leaves(shardings)
    held = sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in zip(leaves, places, strict=True))
    return len(leaves), sum(x.size for x in leaves), sum(x.size * x.dtype.itemsize for x in leaves), held
