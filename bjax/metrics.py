"""Numbers on their way out: results with intervals, their table, metrics.jsonl, the progress bar."""

import base64
import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bjax import stats

VERSIONS = ("bjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
SHARES = tuple(i / 10 for i in range(1, 11))  # of the images, in coverage
RANKINGS = ("confidence", "sharpness")  # what decides which images are answered first
KINDS = ("sharp", "gaussian", "motion", "defocus")  # those of bjax.blur.sample, in its order
STRENGTHS = {"gaussian": "sigma", "motion": "length", "defocus": "radius"}
LISTED = 200  # photographs whose own hits are kept: enough for any data set whose crops are cut from few
MEANS = {"top1": 1.0, "top5": 1.0, "loss": math.inf, "kept": 1.0}  # and the most that they can be
PARAMETERS = {"sigma": "gaussian", "length": "motion", "angle": "motion", "radius": "defocus"}  # as estimated


def summarise(answers: dict[str, np.ndarray], blur=None) -> dict[str, object]:
    """Rows of `step.eval_step` over a split -> one row of results.json.

    Means with 95 % intervals; n and empty are counts; ece and coverage as their functions say. blur: of a condition
    whose labels are kinds of blur; adds confusion, by_strength and, where the model estimates parameters, estimates.

    The intervals NAME_95 are over the images, as if these were independent. Where several are of one photograph,
    answers["photograph"], str[n], names each image's: adds n_photographs, the intervals NAME_95_photographs over these
    (`stats.over_photographs`) and, where they are few, photographs: {name: {hits, n}}. answers["id"], uint32[n], adds
    what a comparison with another condition on the same images needs: images, a checksum of which they are, and, where
    each is a photograph of its own, hits: a bit for each, 1 where it was right, in the order of the ids, as base64.
    """
    answers = {
        k: np.asarray(v, np.float64) if np.asarray(v).dtype.kind == "f" else v for k, v in answers.items()
    }
    n, row = len(answers["label"]), {}
    names, photographs = None, None
    if "photograph" in answers:
        names, photographs = np.unique(answers["photograph"], return_inverse=True)
    for name, most in MEANS.items():
        row[name] = float(answers[name].mean())
        counted = name in ("top1", "top5")
        alone = stats.wilson(answers[name].sum(), n) if counted else stats.mean_interval(answers[name])
        row[f"{name}_95"] = list(alone)
        if names is not None:
            means = np.bincount(photographs, answers[name]) / np.bincount(photographs)
            over = stats.over_photographs(means, alone, within=(0.0, most))
            if math.isfinite(over[1]):  # one photograph says nothing of the loss on others
                row[f"{name}_95_photographs"] = list(over)
    row["n"] = n
    if names is not None:
        row["n_photographs"] = len(names)
        if len(names) <= LISTED:
            hits, of_each = np.bincount(photographs, answers["top1"]), np.bincount(photographs)
            row["photographs"] = {
                str(name): {"hits": round(float(h)), "n": int(images)}
                for name, h, images in zip(names, hits, of_each, strict=True)
            }
    if "id" in answers:
        order = np.argsort(answers["id"], kind="stable")
        row["images"] = f"{zlib.crc32(answers['id'][order].tobytes()):08x}"
        if names is None:
            row["hits"] = base64.b64encode(np.packbits(answers["top1"][order] > 0)).decode()
    row["empty"] = int((answers["kept"] == 0).sum())
    row["ece"] = calibration_error(answers["confidence"], answers["top1"])
    row["coverage"] = {
        "share": list(SHARES),
        **{by: accuracy_at(answers["top1"], answers[by]) for by in RANKINGS if by in answers},
    }
    if blur is not None:
        row["confusion"] = confusion(answers["label"], answers["prediction"], len(KINDS))
        row["by_strength"] = by_strength(answers, blur, photographs)
        if "estimates" in answers:
            row["estimates"] = estimate_errors(answers)
    return row


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017): |accuracy − confidence| over equal bins, weighted by images."""
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # (0, 1/15], (1/15, 2/15], …
    gaps = np.bincount(bin_of, correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(correct))


def accuracy_at(correct: np.ndarray, ranking: np.ndarray) -> list[float]:
    """Accuracy on the shares `SHARES` of the images that rank highest, ties in the order of the images: what remains
    where a classifier abstains on the others."""
    ordered = correct[np.argsort(-ranking, kind="stable")]
    return [float(ordered[: math.ceil(share * len(ordered))].mean()) for share in SHARES]


def confusion(labels: np.ndarray, predictions: np.ndarray, classes: int) -> list[list[int]]:
    """Counts: a row per true class, a column per predicted one."""
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, predictions), 1)
    return counts.tolist()


def by_strength(
    answers: dict[str, np.ndarray], blur, photographs: np.ndarray | None = None, bins: int = 4
) -> dict[str, list[dict]]:
    """Accuracy per kind of blur in equal bins of the strength drawn: {kind: [{low, high, n, top1}]}, in pixels.

    A bin without images has top1 None. blur: has the ranges (low, high) of sigma, length and radius. photographs:
    int[n], which one each image is of; adds top1_95_photographs and n_photographs.
    """
    found = {}
    for kind, name in STRENGTHS.items():
        own = answers["label"] == KINDS.index(kind)
        if not own.any():
            continue
        low, high = getattr(blur, name)
        edges = np.linspace(low, high, bins + 1) if high > low else np.array([low, high])
        bin_of = np.clip(np.searchsorted(edges, answers[name][own], side="right") - 1, 0, len(edges) - 2)
        found[kind] = []
        for i in range(len(edges) - 1):
            right = answers["top1"][own][bin_of == i]
            part = {"low": float(edges[i]), "high": float(edges[i + 1]), "n": len(right)}
            part["top1"] = float(right.mean()) if len(right) else None
            if photographs is not None and len(right):
                names, of = np.unique(photographs[own][bin_of == i], return_inverse=True)
                alone = stats.wilson(right.sum(), len(right))
                means = np.bincount(of, right) / np.bincount(of)
                interval = stats.over_photographs(means, alone, within=(0.0, 1.0))
                part |= {"top1_95_photographs": list(interval), "n_photographs": len(names)}
            found[kind].append(part)
    return found


def estimate_errors(answers: dict[str, np.ndarray]) -> dict[str, dict]:
    """Mean absolute error of each estimated parameter over the images whose blur has it: {name: {mae, n}}.

    Pixels; the angle in degrees, modulo 180: at most 90.
    """
    found = {}
    for i, (name, kind) in enumerate(PARAMETERS.items()):
        own = answers["label"] == KINDS.index(kind)
        if not own.any():
            continue
        error = np.abs(answers["estimates"][own, i] - answers[name][own])
        if name == "angle":
            error = np.rad2deg(np.minimum(error % np.pi, np.pi - error % np.pi))
        found[name] = {"mae": float(error.mean()), "n": int(own.sum())}
    return found


def table(results: dict[str, dict]) -> str:
    """The results as text: a row per condition, accuracies in per cent with 95 % intervals, and what these are."""
    header = ("condition", "top-1 %", "95 %", "top-5 %", "95 %", "loss", "kept %", "n")
    of_few = {name: r for name, r in results.items() if "n_photographs" in r}
    if of_few:
        header += ("photographs",)
    rows = [
        (
            name,
            f"{100 * r['top1']:.2f}",
            "{:.1f}–{:.1f}".format(*(100 * x for x in stats.interval(r, "top1"))),
            f"{100 * r['top5']:.2f}",
            "{:.1f}–{:.1f}".format(*(100 * x for x in stats.interval(r, "top5"))),
            f"{r['loss']:.4f}",
            f"{100 * r['kept']:.1f}",
            str(r["n"]),
            *([str(r.get("n_photographs", ""))] if of_few else []),
        )
        for name, r in results.items()
    ]
    lines = [columns(header, rows)]
    if of_few:
        lines.append(
            "95 %: Student's t over the photographs that the images are crops of, never narrower than Wilson's over "
            "the images" + ("" if len(of_few) == len(results) else ", which stands where none are named")
        )
    for name, r in of_few.items():
        if not stats.covered(r["n_photographs"], r["top1"]):
            lines.append(
                f"{name}: too few photographs to trust that interval (docs/intervals.md)"
                + (f"; top-1 on each: {on_each(r['photographs'])}" if "photographs" in r else "")
            )
    return "\n".join(lines)


def on_each(photographs: dict[str, dict]) -> str:
    """{photograph: {hits, n}} in words: "cat 64.6, gravel 75.0", in per cent."""
    return ", ".join(f"{name} {100 * p['hits'] / p['n']:.1f}" for name, p in photographs.items())


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


@contextlib.contextmanager
def session(workdir: Path, mode: str, *, writes: bool):
    """Adds to run.json, when it ends, how long this process worked on the run, with which versions and on what.

    {"sessions": [{started, seconds, mode, commit, versions, device, processes}]}: one per command that began to work,
    interrupted ones too; commit is None outside a git checkout. Only the process that `writes` writes. A damaged
    run.json is put aside as run.json.damaged.
    """
    started, since = datetime.datetime.now(datetime.UTC), time.perf_counter()
    try:
        yield
    finally:
        if writes and workdir.is_dir():
            import jax  # on the devices of the run, which are known by now

            path = workdir / "run.json"
            sessions = _sessions(path)
            device = jax.devices()[0].device_kind
            sessions.append(
                {
                    "started": started.isoformat(timespec="seconds"),
                    "seconds": round(time.perf_counter() - since, 1),
                    "mode": mode,
                    "commit": _commit(),
                    "versions": {"python": platform.python_version(), **_versions()},
                    "device": f"{jax.device_count()} × {device}",
                    "processes": jax.process_count(),
                }
            )
            write_text(path, json.dumps({"sessions": sessions}, indent=2) + "\n")


def _sessions(path: Path) -> list[dict]:
    if not path.exists():
        return []
    try:
        sessions = json.loads(path.read_bytes())["sessions"]
        if isinstance(sessions, list):
            return sessions
    except (ValueError, KeyError, TypeError):
        pass
    aside = path.with_name("run.json.damaged")
    os.replace(path, aside)
    print(f"bjax: {path}: damaged; kept as {aside.name}, and begun anew", file=sys.stderr, flush=True)
    return []


def _versions() -> dict[str, str]:
    """Of what decides the numbers, as far as it is installed: a clone may be run in place."""
    found = {}
    for name in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _commit() -> str | None:
    """The commit of this code, with a + where files that git knows are changed."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        found = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True)
    except FileNotFoundError:  # git is not installed
        return None
    return found.stdout.strip() or None


def _row(line: bytes) -> dict | None:
    """The row of metrics.jsonl that `line` holds, or None."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(row, dict) and isinstance(row.get("step"), int)
    return (
        row if whole and all(isinstance(x, int | float) and math.isfinite(x) for x in row.values()) else None
    )


class Log:
    """metrics.jsonl, one object a row, and TensorBoard files where the `tensorboard` extra is installed.

    `start_step`: rows of later steps, left by a run that was killed after its last checkpoint, are dropped; so are
    lines that are no rows (half a line of a killed process, NULs after a power cut), which are counted on stderr. Only
    the process that `writes` writes; the others do nothing. evaluated: the steps whose evaluation has a row.
    """

    def __init__(self, workdir: Path, start_step: int, *, writes: bool):
        self.writes = writes
        self.board = None
        self.evaluated = set()
        if not writes:
            return
        path = workdir / "metrics.jsonl"
        lines = path.read_bytes().splitlines() if path.exists() else []
        rows = [_row(line) for line in lines]
        # A killed process leaves half a line at the end, which is nothing to speak of.
        damaged = rows[:-1].count(None)
        if damaged:
            print(f"bjax: {path}: {damaged} damaged lines are left out", file=sys.stderr, flush=True)
        rows = [row for row in rows if row is not None and row["step"] <= start_step]
        self.evaluated = {row["step"] for row in rows if any("/" in key for key in row)}
        write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
        self.file = path.open("a", buffering=1)
        if importlib.util.find_spec("tensorboardX"):
            from tensorboardX import SummaryWriter

            self.board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        if self.writes:
            self.file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
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
