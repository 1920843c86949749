"""Telling kinds of blur apart: paper 2's headline, confusion, rates per class, accuracy against strength, estimates.

Thi et al. 2024: A Deep Learning-Based Method for Blur Image Classification Using DenseNet-121 Architecture.
"""

import dataclasses

import numpy as np

from bjax import stats
from bjax.report import figures, intervals
from bjax.report.intervals import accuracy
from bjax.report.render import Figure, Table
from bjax.report.runs import Row, Run, number_text
from bjax.report.words import kinds_of
from bjax.specs import KINDS

PAPER_ACCURACY = 97.8  # per cent, of its abstract
STRENGTHS = {"gaussian": "σ", "motion": "length", "defocus": "radius"}  # pixels
UNITS = {
    "sigma": "σ, pixels",
    "length": "length, pixels",
    "angle": "angle, degrees",
    "radius": "radius, pixels",
}


def headline(runs: list[Run]) -> list:
    """Paper 2's accuracy beside ours."""
    body = [["paper 2", "DenseNet-121", "its own, not published", "", "", "", f"{PAPER_ACCURACY:.1f}", ""]]
    rows = _of_blur_types(runs)
    for run, row in rows:
        size = run.config["data"]["image_size"]
        split = f"{run.config['data']['name']} {row.condition['split']}"
        cells = [row.name, run.model, split, _strengths(row), f"{size} × {size}", f"{row.result['n']:,}"]
        body.append([*cells, accuracy(row), number_text(run, [row])])
    header = ["", "model", "test images", "blur", "crop, pixels", "images", "accuracy %", "run"]
    caption = (
        "Accuracy on four kinds of blur. The paper publishes neither its images nor how "
        "strong its blurs are, and milder blurs and smaller crops are harder: its number is a landmark, no comparison "
        "of like with like, so no difference is given. "
    ) + intervals.about([row for _, row in rows])
    return [Table(header, body, caption, left=4)] if rows else []


def confusion(run: Run) -> list:
    """What is taken for what, and precision, recall and F1 of every class."""
    rows = [row for row in run.rows if "confusion" in row.result]
    if run.config["task"] != "blur_type" or not rows:
        return []
    drawing = figures.confusion({row.name: np.array(row.result["confusion"]) for row in rows}, list(KINDS))
    n = ", ".join(
        f"{row.name}: {sum(map(sum, row.result['confusion'])):,} answers"
        + (f" of {row.seeds} seeds to the same images" if row.seeds > 1 else "")
        for row in rows
    )
    alt = "Confusion matrices of the kinds of blur"
    body = []
    for row in rows:
        rates = stats.per_class(row.result["confusion"])
        for name, counts, rate in zip(KINDS, row.result["confusion"], rates, strict=True):
            shares = [rate[k] for k in ("precision", "recall", "f1")]
            cells = ["" if share is None else f"{100 * share:.1f}" for share in shares]
            body.append([row.name, name, *map(str, counts), *cells])
    header = ["condition", "true", *KINDS, "precision", "recall", "F1"]
    groups = (("", 2), ("predicted, images", 4), ("per cent", 3))
    return [
        Figure(f"run{run.number}_confusion", drawing, f"Share of each true kind, and counts. {n}.", alt),
        Table(header, body, left=2, groups=groups),
    ]


def strengths(run: Run) -> list:
    """Accuracy against how strong the blur is, a panel for every kind."""
    if run.config["task"] != "blur_type":
        return []
    rows = [row for row in run.rows if row.result.get("by_strength")]
    body, panels, binned = [], {}, []
    for kind, strength in STRENGTHS.items():
        for row in rows:
            bins = [b for b in row.result["by_strength"].get(kind, ()) if b["n"] and b["top1"] is not None]
            if not bins:
                continue
            middle = [(b["low"] + b["high"]) / 2 for b in bins]
            line = figures.Line(row.name, middle, [100 * b["top1"] for b in bins], *intervals.bars(bins))
            panels.setdefault(f"{kind}: {strength}, pixels", []).append(line)
            for b in bins:
                binned.append(dataclasses.replace(row, result=b))
                value = f"{100 * b['top1']:.1f}{intervals.brackets(b, digits=0)}"
                body.append([row.name, kind, strength, f"{b['low']:g}–{b['high']:g}", f"{b['n']:,}", value])
    if not panels:
        return []
    axes = "strength of the blur, pixels", "recognised as their kind, %"
    drawing = figures.lines(panels, *axes, share_x=False, top=102)
    caption = (
        f"Share of the images of a kind that are recognised, by the strength drawn; {intervals.kinds(binned, 'bars')}"
    )
    if doubted := sum(map(intervals.doubtful, binned)):
        told = [f"{row.name}: {intervals.values(row)}" for row in rows[: intervals.SHOWN]]
        values = f"On each photograph, all strengths together, %: {'; '.join(told)}."
        caption += f" {intervals.doubt(doubted)}. {values}"
    header = ["condition", "kind", "strength", "pixels", "images", "recognised %"]
    alt = "Share recognised against the strength of the blur"
    return [Figure(f"run{run.number}_strength", drawing, caption, alt), Table(header, body, left=3)]


def estimates(runs: list[Run]) -> list:
    """Errors of the estimated parameters, of runs with a regression head."""
    body = []
    for run, row in _of_blur_types(runs):
        for name, estimate in (row.result.get("estimates") or {}).items():
            error = "" if estimate["mae"] is None else f"{estimate['mae']:.2f}"
            what = [run.model, row.name, UNITS.get(name, name), f"{estimate['n']:,}"]
            body.append([*what, error, number_text(run, [row])])
    caption = "Mean absolute error over the images whose blur has that parameter; of the angle modulo 180°, 90 at most."
    header = ["model", "condition", "parameter", "images", "error", "run"]
    return [Table(header, body, caption, left=3)] if body else []


def _of_blur_types(runs: list[Run]) -> list[tuple[Run, Row]]:
    """All conditions of those that learned kinds of blur."""
    return [(run, row) for run in runs if run.config["task"] == "blur_type" for row in run.rows]


def _strengths(row: Row) -> str:
    """The kinds of blur in a condition with the ranges of their strengths."""
    blur = row.condition["blur"]
    ranges = {"gaussian": ("σ", "sigma"), "motion": ("L", "length"), "defocus": ("R", "radius")}
    parts = ["{} {:g}–{:g}".format(ranges[k][0], *blur[ranges[k][1]]) for k in kinds_of(blur) if k in ranges]
    noise = blur.get("noise") or (0, 0)
    return ", ".join(parts + ([f"noise up to {noise[1]:g}"] if any(noise) else []))
