"""Finished runs -> tables and figures: `python -m bjax.report WORKDIR… --out=DIR`.

Reads what a run left (config.json, results.json, and speed.json and mask_quality.json where there are any) and writes
report.md with the figures beside it. Sections without data in any run are left out, and the last line says which.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

from bjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Row:
    """One condition of a run, with what is known of it."""

    name: str
    blur: str  # "sharp", "σ = 1", …
    method: str  # what decides which patches stay; "all patches" where all do
    keep_rate: float | None  # what a mask was asked to keep
    result: dict
    speed: dict | None

    @property
    def kept(self) -> float:
        """Share of the tokens computed: of the patches that a mask kept, or over the layers of EViT and ToMe."""
        inside = self.method.startswith(("EViT", "ToMe"))
        return self.speed["tokens"] if inside and self.speed else self.result["kept"]


@dataclasses.dataclass(frozen=True)
class Run:
    name: str
    rows: list[Row]
    config: dict
    speed: dict | None
    quality: dict | None


# --- reading


def read_run(workdir: Path) -> Run:
    """What `workdir` holds. Raises UserError for a folder that is no finished run, and for a file that is no JSON."""
    config, results = _json(workdir / "config.json"), _json(workdir / "results.json")
    missing = [n for n, x in (("config.json", config), ("results.json", results)) if x is None]
    if missing:
        raise UserError(f"{workdir}: holds no {missing[0]}; finish the run, or evaluate it with --mode=eval")
    speed, quality = _json(workdir / "speed.json"), _json(workdir / "mask_quality.json")
    rows = []
    for name, result in results.items():
        condition = config["eval"].get(name.removesuffix("_bn_adapt"))
        if condition is None:
            raise UserError(
                f"{workdir}: results.json has {name}, config.json has not; evaluate again with --mode=eval"
            )
        rows.append(
            Row(
                name=name,
                blur=_blur(condition["blur"]),
                method=_method(condition),
                keep_rate=condition["mask"]["keep_rate"] if condition["mask"]["mode"] != "none" else None,
                result=result,
                speed=(speed or {}).get("conditions", {}).get(name),
            )
        )
    return Run(workdir.resolve().name, rows, config, speed, quality)


def _json(path: Path):
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: is no JSON ({error}); evaluate the run again with --mode=eval") from None


def _blur(blur: dict) -> str:
    kinds = [kind for kind, probability in blur["kinds"].items() if probability]
    if kinds == ["sharp"]:
        return "sharp"
    if kinds == ["gaussian"]:
        low, high = blur["sigma"]
        return f"σ = {low:g}" if low == high else f"σ = {low:g}–{high:g}"
    return " + ".join(kinds)


def _method(condition: dict) -> str:
    options, mask = condition.get("options", {}), condition["mask"]
    if options.get("evit_keep", 1) < 1:
        return "EViT"
    if options.get("tome_r"):
        return "ToMe"
    if mask["mode"] == "none":
        return "all patches"
    name = mask["selector"]
    if name not in ("random", "centre", "inverse"):
        name += ", sharpest" if mask["drop"] == "below" else ", blurriest"
    return name if mask["mode"] == "gather" else f"{name} ({mask['mode']})"


# --- sections: each turns a run into Markdown, and draws what it names into `out`; None where the run has no data


def matched_rates(run: Run, out: Path) -> str | None:
    """Accuracy of every choice of patches at the same keep rate: selection beside mere deletion."""
    masked = [r for r in run.rows if r.keep_rate is not None and r.keep_rate < 1 and not _thresholded(run, r)]
    if not masked:
        return None
    blurs = _unique(r.blur for r in run.rows if any(m.blur == r.blur for m in masked))
    at = {(r.keep_rate, r.method, r.blur): r for r in masked}
    whole = {r.blur: r for r in run.rows if r.method == "all patches" and r.keep_rate is None}
    body = []
    if whole:
        body.append(["100 %", "all patches", *(_accuracy(whole.get(b), None) for b in blurs)])
    for rate in sorted({r.keep_rate for r in masked}, reverse=True):
        for method in _unique(r.method for r in masked if r.keep_rate == rate):
            cells = [
                _accuracy(
                    at.get((rate, method, b)), at.get((rate, "random", b)) if method != "random" else None
                )
                for b in blurs
            ]
            body.append([f"{100 * rate:g} %", method, *cells])
    n = max(r.result["n"] for r in masked)
    return "\n\n".join(
        [
            "## Selection or deletion: top-1 accuracy at matched keep rates",
            _table(["kept", "patches that stay", *blurs], body),
            f"Top-1 in per cent, 95 % interval in brackets, {n} images. **Bold**: the interval lies above random's own "
            "at the same keep rate and blur; _italic_: below it.",
        ]
    )


def accuracy_against_kept(run: Run, out: Path) -> str | None:
    """The same as curves, with EViT and ToMe at their mean share of tokens."""
    rows = [r for r in run.rows if r.keep_rate is not None or r.method in ("all patches", *INSIDE)]
    rows = [r for r in rows if r.method not in INSIDE or r.speed]
    if len({round(r.kept, 3) for r in rows}) < 3:
        return None
    file = out / f"{run.name}_accuracy_kept.png"
    _curves(rows, lambda r: 100 * r.kept, "tokens computed, % of all", file)
    return "\n\n".join(
        [
            "## Accuracy against kept fraction",
            f"![Top-1 accuracy against the share of tokens kept]({file.name})",
            "Grey band: 95 % interval of a random choice; a choice that is worth its scores lies above it. EViT and "
            "ToMe begin with all patches and lose them from layer to layer: they stand at their mean over the layers.",
        ]
    )


def accuracy_against_speed(run: Run, out: Path) -> str | None:
    """Accuracy against measured images per second."""
    rows = [r for r in run.rows if r.speed]
    if not rows:
        return None
    file = out / f"{run.name}_accuracy_speed.png"
    _curves(rows, lambda r: r.speed["images_per_second"], "images per second, measured", file)
    about = run.speed
    return "\n\n".join(
        [
            "## Accuracy against measured speed",
            f"![Top-1 accuracy against images per second]({file.name})",
            f"Measured on {about['device']}, {about['rounds']} rounds of batches of {about['batch_size']}: "
            f"{about['how']}.",
        ]
    )


def mask_quality(run: Run, out: Path) -> str | None:
    """Precision and recall of what masks drop, where parts of the image are blurred."""
    if not run.quality:
        return None
    sigmas = list(run.quality)
    body = []
    for name in run.quality[sigmas[0]]:
        cells = [run.quality[sigma][name] for sigma in sigmas]
        rates = [
            " / ".join(
                "–" if c[k] is None else f"{100 * c[k]:.0f}" for k in ("precision", "recall", "dropped")
            )
            for c in cells
        ]
        body.append([name, *rates])
    first = next(iter(run.quality[sigmas[0]].values()))
    return "\n\n".join(
        [
            "## Do masks drop what is blurred?",
            _table(["mask", *(f"σ = {sigma}" for sigma in sigmas)], body),
            f"Images with blurred rectangles, {first['patches']:,} patches, {100 * first['blurred']:.0f} % of them "
            "blurred. Precision / recall / share dropped, in per cent. A choice that knows nothing of the blur has the "
            "share blurred as its precision and the share dropped as its recall.",
        ]
    )


SECTIONS: tuple[Callable[[Run, Path], str | None], ...] = (
    matched_rates,
    accuracy_against_kept,
    accuracy_against_speed,
    mask_quality,
)


# --- text


def _table(header: list[str], body: list[list[str]]) -> str:
    """A Markdown table that also reads well as text: columns are padded."""
    widths = [max(len(row[i]) for row in (header, *body)) for i in range(len(header))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in (header, *body)
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def _accuracy(row: Row | None, random: Row | None) -> str:
    if row is None:
        return "–"
    low, high = row.result["top1_95"]
    text = f"{100 * row.result['top1']:.1f}"
    if random is not None:
        if low > random.result["top1_95"][1]:
            text = f"**{text}**"
        elif high < random.result["top1_95"][0]:
            text = f"_{text}_"
    return f"{text} ({100 * low:.0f}–{100 * high:.0f})"


def _unique(values) -> list:
    return list(dict.fromkeys(values))


def _thresholded(run: Run, row: Row) -> bool:
    return run.config["eval"][row.name.removesuffix("_bn_adapt")]["mask"]["threshold"] is not None


# --- figures

INSIDE = ("EViT", "ToMe")
# Marker, line, grey level: any two differ in two of them, so that a photocopy tells them apart.
STYLES = (
    ("o", "-", "#0b3c6f"),
    ("s", "--", "#c2571a"),
    ("^", "-.", "#1b7f5c"),
    ("v", ":", "#b8860b"),
    ("D", "--", "#7d3c98"),
    ("P", "-", "#5a5a5a"),
    ("X", "-.", "#8c1c2c"),
    ("*", ":", "#2a9fd6"),
)


def _curves(rows: list[Row], x: Callable[[Row], float], label: str, file: Path) -> None:
    """Top-1 over `x`: a panel per blur, a line per method; the random choice is black, with its interval as a band."""
    figure_class = _matplotlib()
    blurs = _unique(r.blur for r in rows)
    blurs = [b for b in blurs if len({r.method for r in rows if r.blur == b}) > 1] or blurs
    methods = _unique(r.method for r in rows if r.method not in ("all patches", "random"))
    columns = min(3, len(blurs))
    lines = -(-len(blurs) // columns)
    figure = figure_class(figsize=(1.2 + 3.1 * columns, 1.3 + 2.9 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for panel, blur in zip(panels.flat, blurs, strict=False):
        own = [r for r in rows if r.blur == blur]
        whole = next((r for r in own if r.method == "all patches"), None)
        if whole:
            panel.plot(
                x(whole), 100 * whole.result["top1"], "h", color="black", markersize=9, label="all patches"
            )
            panel.axhline(100 * whole.result["top1"], color="black", linewidth=0.6, linestyle=(0, (1, 3)))
        random = sorted((r for r in own if r.method == "random"), key=x)
        if random:
            at = [x(r) for r in random]
            bounds = [[100 * r.result["top1_95"][i] for r in random] for i in (0, 1)]
            panel.fill_between(at, *bounds, color="0.87", linewidth=0, label="random, 95 %")
            panel.plot(
                at,
                [100 * r.result["top1"] for r in random],
                "-",
                color="black",
                linewidth=2.2,
                label="random",
            )
        for method, (marker, line, colour) in zip(methods, STYLES * len(methods), strict=False):
            points = sorted((r for r in own if r.method == method), key=x)
            panel.plot(
                [x(r) for r in points],
                [100 * r.result["top1"] for r in points],
                marker=marker,
                linestyle=line,
                color=colour,
                linewidth=1.4,
                markersize=6,
                markeredgecolor="white",
                markeredgewidth=0.7,
                label=method,
            )
        panel.set_title(blur, fontsize=11)
        panel.grid(color="0.92", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels.flat[len(blurs) :]:
        panel.set_visible(False)
    lowest = min(100 * r.result["top1"] for r in rows)
    panels.flat[0].set_ylim(bottom=max(0, 10 * (lowest // 10) - 10))
    panels.flat[0].set_xlim(left=0)
    figure.supxlabel(label, fontsize=11)
    figure.supylabel("top-1 accuracy, %", fontsize=11)
    handles = {}
    for panel in panels.flat:
        handles |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper center",
        ncols=min(5, len(handles)),
        frameon=False,
    )
    figure.savefig(file, dpi=160)


def _matplotlib():
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UserError(
            'bjax.report: draws with matplotlib, which is missing; pip install "bjax[report]"'
        ) from None
    return Figure


# --- command line


def write(runs: list[Run], out: Path) -> Path:
    """Writes report.md and its figures into `out`; returns the path of report.md."""
    out.mkdir(parents=True, exist_ok=True)
    text, empty = ["# Report"], dict.fromkeys(SECTIONS)
    for run in runs:
        parts = {section: section(run, out) for section in SECTIONS}
        text += [f"# {run.name}"] if len(runs) > 1 else []
        text += [part for part in parts.values() if part]
        empty = {section: None for section in empty if not parts[section]}
    if empty:
        text.append(
            "Left out, for want of data: " + ", ".join(s.__name__.replace("_", " ") for s in empty) + "."
        )
    path = out / "report.md"
    path.write_text("\n\n".join(text) + "\n")
    return path


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, or 2 for a user's mistake, told in one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m bjax.report", description="Tables and figures of finished runs.", allow_abbrev=False
    )
    parser.add_argument("workdirs", nargs="+", type=Path, metavar="WORKDIR", help="a finished run")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where report.md goes")
    args = parser.parse_args(argv)
    try:
        runs = [read_run(workdir) for workdir in args.workdirs]
        names = [run.name for run in runs]
        double = next((name for name in names if names.count(name) > 1), None)
        if double:
            raise UserError(f"{double}: two runs of this name; rename one, figures are named after runs")
        path = write(runs, args.out)
    except UserError as error:
        print(f"bjax.report: {error}", file=sys.stderr)
        return 2
    print(path.read_text(), end="")
    print(f"\nwrote {path}", file=sys.stderr)
    return 0
