"""Numbers on their way out: intervals, the results table, metrics.jsonl, the progress bar."""

import importlib.util
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def wilson(hits: float, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion `hits / n` (Wilson 1927); n > 0."""
    p, z2 = hits / n, Z95**2 / n
    centre = (p + z2 / 2) / (1 + z2)
    half = Z95 / (1 + z2) * math.sqrt(p * (1 - p) / n + z2 / (4 * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(total: float, squares: float, n: int) -> tuple[float, float]:
    """95 % interval of a mean, by the normal approximation, from the sum and the sum of squares of n values."""
    mean = total / n
    half = Z95 * math.sqrt(max(squares / n - mean**2, 0.0) / max(n - 1, 1))
    return mean - half, mean + half


def summarise(sums: dict[str, float]) -> dict[str, object]:
    """Sums of `step.eval_step` over a split -> means, with 95 % intervals; n and empty are counts."""
    n = round(sums["n"])
    return {
        "top1": sums["top1"] / n,
        "top1_95": list(wilson(sums["top1"], n)),
        "top5": sums["top5"] / n,
        "top5_95": list(wilson(sums["top5"], n)),
        "loss": sums["loss"] / n,
        "loss_95": list(mean_interval(sums["loss"], sums["loss_squared"], n)),
        "n": n,
        "kept": sums["kept"] / n,
        "kept_95": list(mean_interval(sums["kept"], sums["kept_squared"], n)),
        "empty": round(sums["empty"]),
    }


def table(results: dict[str, dict]) -> str:
    """The results as text: a row per condition, accuracies in per cent with their 95 % intervals."""
    header = ("condition", "top-1 %", "95 %", "top-5 %", "95 %", "loss", "kept %", "n")
    rows = [
        (
            name,
            f"{100 * r['top1']:.2f}",
            "{:.1f}–{:.1f}".format(*(100 * x for x in r["top1_95"])),
            f"{100 * r['top5']:.2f}",
            "{:.1f}–{:.1f}".format(*(100 * x for x in r["top5_95"])),
            f"{r['loss']:.4f}",
            f"{100 * r['kept']:.1f}",
            str(r["n"]),
        )
        for name, r in results.items()
    ]
    return columns(header, rows)


def columns(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Aligned text columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(row):
        cells = (row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)))
        return "  ".join(cells).rstrip()

    return "\n".join([line(header), "  ".join("─" * w for w in widths), *map(line, rows)])


def write_text(path: Path, text: str) -> None:
    """Writes the file whole or not at all: a reader never sees half of it."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


class Log:
    """metrics.jsonl, one object a row, and TensorBoard files where the `tensorboard` extra is installed.

    `start_step`: rows of later steps, left by a run that was killed after its last checkpoint, are dropped. Only the
    process that `writes` writes; the others do nothing.
    """

    def __init__(self, workdir: Path, start_step: int, *, writes: bool):
        self.writes = writes
        self.board = None
        if not writes:
            return
        path = workdir / "metrics.jsonl"
        rows = path.read_text().splitlines(keepends=True) if path.exists() else []
        # A killed process may have left half a line at the end.
        rows = [row for row in rows if row.endswith("\n") and json.loads(row)["step"] <= start_step]
        write_text(path, "".join(rows))
        self.file = path.open("a", buffering=1)
        if importlib.util.find_spec("tensorboardX"):
            from tensorboardX import SummaryWriter

            self.board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        if self.writes:
            self.file.write(json.dumps({"step": step, **values}) + "\n")
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        if self.writes:
            self.file.close()
        if self.board:
            self.board.close()


class Progress:
    """A bar with rate and time left on a terminal; plain lines elsewhere, where a bar would fill the log."""

    def __init__(self, total: int, start: int, what: str, *, shown: bool, unit: str = "step"):
        self.terminal = shown and sys.stderr.isatty()
        self.shown = shown
        self.total, self.step, self.what = total, start, what
        self.bar = (
            tqdm(total=total, initial=start, desc=what, unit=unit, dynamic_ncols=True)
            if self.terminal
            else None
        )

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
        held = sum(
            math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in zip(leaves, places, strict=True)
        )
        row = [len(leaves), sum(x.size for x in leaves), sum(x.size * x.dtype.itemsize for x in leaves), held]
        total = np.add(total, row)
        rows.append((name, row))
    shown = [
        (name, f"{arrays:,}", f"{numbers:,}", f"{size / 1e6:.2f}", f"{held / 1e6:.2f}")
        for name, (arrays, numbers, size, held) in [*rows, ("total", total)]
    ]
    return columns(("module", "arrays", "parameters", "MB", "MB a device"), shown)
