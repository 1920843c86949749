"""Sections on how strong a blur is: Gaussian σ, ImageNet-C, what all blurs share, and what abstaining gains."""

from collections.abc import Callable, Iterator

import numpy as np

from bjax import stats
from bjax.report import figures, intervals
from bjax.report.intervals import accuracy
from bjax.report.render import Figure, Heading, Table, condensed, without_empty
from bjax.report.runs import Row, Run, firsts, grouped, images_text, in_order, number_text, told_apart
from bjax.report.words import BLUR_DEFAULTS

LINES = len(figures.STYLES)  # of a panel
PANELS = 6  # of a figure
ANSWERED = (0.8, 0.5, 0.2)  # shares in the table
SIMILAR = (0.9, 0.8, 0.7, 0.6, 0.5)  # structural similarities in the table
STRENGTHS = {"gaussian": "Gaussian, σ", "motion": "motion, length", "defocus": "defocus, radius"}  # of fixed blurs
RANKINGS = ("confidence", "sharpness")  # what decides which images are answered first


def sigma_curves(runs: list[Run]) -> list:
    """Accuracy and calibration error against the σ of a Gaussian, on the run's own grid, and the area under them."""
    series = {}  # {(data, split, grid): [(run, adapted, rows)]}
    cut = set()  # grids of which some points are left out
    for run, adapted, split, rows in _series(runs, lambda row: row.one_sigma is not None):
        at = firsts(sorted(rows, key=_taps, reverse=True), lambda row: row.one_sigma)
        grid = tuple(sorted(at))
        if len(grid) >= 3:
            key = run.config["data"]["name"], split, grid
            series.setdefault(key, []).append((run, adapted, [at[s] for s in grid]))
            cut |= {key} if len({(row.sigma, _taps(row)) for row in rows}) > len(grid) else set()
    blocks = []
    for number, (key, lines) in enumerate(series.items(), 1):
        data, split, grid = key
        images = f"{data} {split}, {images_text(row for _, _, rows in lines for row in rows)} images"
        if len(series) > 1:
            blocks.append(Heading(f"{data} {split}, σ up to {grid[-1]:g}", 3))
        for metric, title in (("top1", "top-1 accuracy"), ("ece", "calibration error")):
            measured = [x for x in lines if all(metric in row.result for row in x[2])]
            if not measured:
                continue
            body = []
            for run, adapted, rows in measured:
                values = [100 * row.result[metric] for row in rows]
                cells = [f"{v:.1f}" for v in (*values, stats.area(grid, values))]
                body.append([run.model, _training(run, adapted), *cells, number_text(run, rows)])
            header = ["model", "trained on", *(f"{s:g}" for s in grid), "area", "run"]
            groups = (("", 2), (f"{title} in per cent at σ, pixels", len(grid)), ("", 2))
            caption = (
                f"{images}. Area: under the line through these points (trapezoids) over the length of the axis, that "
                f"is the mean over σ from {grid[0]:g} to {grid[-1]:g}; comparable on the same grid alone."
            )
            if key in cut:
                caption += " Where kernels of several sizes have the same σ, the largest counts."
            if metric == "ece":
                caption += " Expected calibration error: 15 bins of equal width, of the largest probability."
            blocks.append(condensed(Table(header, body, caption, left=2, groups=groups)))
            bars = "bars, of several seeds: Student's t over the seeds, on these images alone."
            if metric == "top1":
                bars = intervals.about([row for *_, rows in measured for row in rows], "bars")
            axes = "σ of the Gaussian, pixels", f"{title}, %"
            told = f"{title.capitalize()} of {images}; {bars}", f"{title} against σ"
            panels = _panels(measured, grid, metric)
            blocks += _figures(f"sigma{number}_{metric}_", panels, axes, *told, x_scale="zero")
    return blocks


def imagenet_c(runs: list[Run]) -> list:
    """Errors under ImageNet-C's blurs by severity, and the corruption errors that AlexNet's make of them."""
    series = list(_series(runs, lambda row: row.corruption is not None))
    if not series:
        return []
    shown = [row for *_, rows in series for row in rows]
    several = len({split for _, _, split, _ in series}) > 1
    body, comparable = [], False
    for run, adapted, split, rows in series:
        data = run.config["data"]["name"]
        who, ces = [run.model, _training(run, adapted), data + f" {split}" * several], {}
        for name, of_name in grouped(rows, lambda row: row.corruption[0]).items():
            at = {row.corruption[1]: 1 - row.result["top1"] for row in of_name}
            errors = [at[s] for s in range(1, 6) if s in at]
            cells = [f"{100 * at[s]:.1f}" if s in at else "" for s in range(1, 6)]
            mean = f"{20 * sum(errors):.1f}" if len(errors) == 5 else ""
            ces[name] = stats.corruption_error(name, errors) if data == "imagenet2012" else None
            ce = "" if ces[name] is None else f"{ces[name]:.1f}"
            body.append([*who, name.replace("_", " "), *cells, mean, ce, number_text(run, of_name)])
        blurs = [ces.get(name) for name in stats.ALEXNET]
        if None not in blurs:
            comparable = True
            mean = f"{sum(blurs) / len(blurs):.1f}"
            body.append([*who, "blur mCE", *[""] * 6, mean, number_text(run, rows)])
    header = ["model", "trained on", "images", "corruption", *"12345", "mean", "CE", "run"]
    groups = (("", 4), ("top-1 error in per cent at severity", 5), ("", 3))
    caption = (
        f"ImageNet-C's blurs, {images_text(shown)} images. CE: the mean error "
        "over AlexNet's, in per cent (Hendrycks and Dietterich 2019); blur mCE: its mean over defocus, glass, motion "
        "and zoom. Gaussian blur is one of the benchmark's extras, without AlexNet's error."
    )
    if not comparable or any(run.config["data"]["name"] != "imagenet2012" for run, *_ in series):
        caption += " AlexNet's errors are those on ImageNet's thousand classes: on other images there is no CE."
    panels = {}
    for name in dict.fromkeys(row.corruption[0] for row in shown):
        drawn = []
        for run, adapted, split, rows in series:
            points = sorted((r for r in rows if r.corruption[0] == name), key=lambda r: r.corruption[1])
            label = f"{run.number}: {run.model}, {_training(run, adapted)}" + f", {split}" * several
            severities = [row.corruption[1] for row in points]
            drawn.append(_line(label, points, severities, "top1", error=True) if points else None)
        panels |= _parts(name.replace("_", " "), drawn)
    axes = "severity", "top-1 error, %"
    bars = intervals.about(shown, "bars")
    told = f"Top-1 error against ImageNet-C's severity; {bars}", "Top-1 error against severity"
    table = condensed(Table(header, body, caption, left=4, groups=groups))
    return [table, *_figures("imagenet_c", panels, axes, *told)]


def similarity(runs: list[Run]) -> list:
    """Accuracy against what each kind of blur leaves of the images' structure, which all of them share as an axis."""
    series = list(_series(runs, lambda row: row.similarity is not None))
    several = len({split for _, _, split, _ in series}) > 1
    body, panels, shown = [], {}, []
    for run, adapted, split, rows in series:
        sharp = [row for row in rows if row.one_sigma == 0][:1]
        kinds = grouped([row for row in rows if row.strength], lambda row: row.strength[0])
        lines = {}
        for kind, of_kind in kinds.items():
            at = firsts(sorted(of_kind, key=_taps, reverse=True), lambda row: row.strength[1])
            if len(at) > 1:
                lines[_strengths(kind, sorted(at))] = [*sharp, *(at[strength] for strength in sorted(at))]
        if not lines:
            continue
        who = [run.model, _training(run, adapted), f"{run.config['data']['name']} {split}"]
        title = f"{run.number}: {run.model}, {_training(run, adapted)}" + f", {split}" * several
        drawn = panels[title] = []
        for label, points in lines.items():
            x = [row.similarity["mean"] for row in points]
            y = [100 * row.result["top1"] for row in points]
            # The Gaussian is what the others are read against. Eight lines with intervals would hide one another.
            drawn.append(figures.Line(label, x, y, kind="band" if points[-1].strength[0] == "gaussian" else "line"))
            cells = [_at(similarity, x, y) for similarity in SIMILAR]
            body.append([*who, label, *cells, number_text(run, points)])
            shown += points
    if not body:
        return []
    measured = " or ".join(f"{n:,}" for n in sorted({row.similarity["n"] for row in shown}))
    header = ["model", "trained on", "images", "blur", *(f"{s:g}" for s in SIMILAR), "run"]
    groups = (("", 4), ("top-1 in per cent where SSIM is", len(SIMILAR)), ("", 1))
    caption = (
        f"SSIM: the mean structural similarity of {measured} images to what they were before the blur (dm-pix; Wang et "
        f"al. 2004, a window of 11 pixels, so of images of one size alone). Top-1 of {images_text(shown)} images, in "
        "straight lines between the measured strengths; empty: no strength of that blur leaves so little."
    )
    told = (
        "Top-1 accuracy against SSIM; each line begins at the sharp images. All points are of the same images: the "
        "intervals of the σ curve and of ImageNet-C tell how others would move all lines together. None are drawn here."
    )
    axes = "SSIM with the image before the blur, stronger blur to the right", "top-1 accuracy, %"
    table = condensed(Table(header, body, caption, left=4, groups=groups))
    for similarity in SIMILAR:
        table = without_empty(table, f"{similarity:g}")
    alt = "Top-1 accuracy against structural similarity"
    drawings = _figures("similarity", panels, axes, told, alt, x_scale="down")
    return [table, *drawings]


def _strengths(kind: str, values: list[float]) -> str:
    """A kind of blur and the range of its strengths, in words."""
    if kind in STRENGTHS:
        return f"{STRENGTHS[kind]} {values[0]:g}–{values[-1]:g} px"
    return f"ImageNet-C {kind.removesuffix('_blur')} {values[0]:g}–{values[-1]:g}"


def _at(similarity: float, x: list[float], y: list[float]) -> str:
    """Of the line through the points (x, y) the y at that similarity; "" where it does not reach so far."""
    order = np.argsort(x)
    value = np.interp(similarity, np.array(x)[order], np.array(y)[order], left=np.nan, right=np.nan)
    return f"{value:.1f}" if np.isfinite(value) else ""


def abstention(runs: list[Run]) -> list:
    """Accuracy on the images that are answered, when confidence or sharpness decides which."""
    answered = []
    for run in in_order(runs):
        rows = [row for row in run.rows if "coverage" in row.result and row.whole and row.in_matrix]
        answered += [(run, rows)] if rows else []
    if not answered:
        return []
    shown = [row for _, rows in answered for row in rows]
    tested = told_apart(shown, lambda row: row.label)
    body, panels = [], {}
    for run, rows in answered:
        panel = panels[f"{run.number}: {run.model}, {run.regimen}"] = []
        for name, row in firsts(rows, lambda row: tested(row) + ", bn_adapt" * row.adapted).items():
            coverage, at = row.result["coverage"], {}
            shares = coverage["share"]
            for ranking in (r for r in RANKINGS if r in coverage):
                values = [100 * x for x in coverage[ranking]]
                at |= {(ranking, round(s, 3)): f"{v:.1f}" for s, v in zip(shares, values, strict=True)}
                panel.append(figures.Line(f"{name}: by {ranking}", [100 * s for s in shares], values))
            who = [run.model, _training(run, row.adapted), tested(row), accuracy(row)]
            cells = [at.get((ranking, s), "") for ranking in RANKINGS for s in ANSWERED]
            body.append([*who, *cells, number_text(run, [row])])
    shares = [f"{100 * s:g} %" for s in ANSWERED]
    header = ["model", "trained on", "test images", "all (95 %)", *shares, *shares, "run"]
    groups = (("", 4), *((f"top-1 %, by {ranking}", len(ANSWERED)) for ranking in RANKINGS), ("", 1))
    caption = (
        f"{images_text(shown)} images. The share with the largest probability, "
        "or with the largest variance of the Laplacian, is answered; on the rest the classifier abstains. "
    ) + intervals.about(shown)
    axes = "images answered, %", "top-1 accuracy of these, %"
    told = "Accuracy on what is answered.", "Accuracy against coverage"
    table = condensed(Table(header, body, caption, left=3, groups=groups))
    return [table, *_figures("abstention", panels, axes, *told, x_scale="zero")]


def _taps(row: Row) -> int:
    """Of its Gaussian; 0 of any other blur, and where the images stay sharp."""
    return (BLUR_DEFAULTS | row.condition["blur"])["kernel_size"] if row.sigma and any(row.sigma) else 0


def _series(runs: list[Run], wanted: Callable[[Row], bool]) -> Iterator[tuple[Run, bool, str, list[Row]]]:
    """(run, whether BatchNorm was adapted, split, the rows without a mask that are `wanted`)."""
    for run in in_order(runs):
        if run.config["task"] == "object":
            rows = [row for row in run.rows if row.whole and wanted(row)]
            for (split, adapted), alike in grouped(rows, lambda r: (r.condition["split"], r.adapted)).items():
                yield run, adapted, split, alike


def _training(run: Run, adapted: bool) -> str:
    return (run.regimen if run.trained else run.origin) + ", bn_adapt" * adapted


def _line(label: str, rows: list[Row], x: list[float], metric: str, *, error: bool = False) -> figures.Line:
    """In per cent, with its intervals; error: of one minus the metric."""
    y = [row.result[metric] for row in rows]
    low, high = intervals.bars([row.result for row in rows], metric)
    if error and low:
        low, high = [100 - x for x in high], [100 - x for x in low]
    return figures.Line(label, x, [100 * (1 - v if error else v) for v in y], low, high)


def _panels(series: list, grid: tuple[float, ...], metric: str) -> figures.Panels:
    """A panel for every model and its images, a line for every training and for bn_adapt."""
    panels = {}
    for run, adapted, rows in series:
        panel = panels.setdefault(f"{run.model} · {run.origin}", {})
        name = run.regimen + ", bn_adapt" * adapted
        if name in panel:
            name = f"{name} (run {run.number})"
        panel[name] = _line(name, rows, grid, metric)
    return {k: part for title, panel in panels.items() for k, part in _parts(title, [*panel.values()]).items()}


def _parts(title: str, drawn: list[figures.Line | None]) -> figures.Panels:
    """The lines of a panel in as many panels as they need to be told apart."""
    several = len(drawn) > LINES
    return {
        title + f" ({start // LINES + 1})" * several: [x for x in drawn[start : start + LINES] if x]
        for start in range(0, len(drawn), LINES)
    }


def _figures(name: str, panels: figures.Panels, axes: tuple, caption: str, alt: str, **options) -> list[Figure]:
    """As many panels in each as a figure has room for; the lines of a figure are few enough to tell apart.

    axes: what is along x and y. options: of `figures.lines`.
    """
    chunks, labels = [{}], set()
    for title, drawn in panels.items():
        more = labels | {line.label for line in drawn}
        if len(chunks[-1]) == PANELS or len(more) > LINES:
            chunks.append({})
            more = {line.label for line in drawn}
        chunks[-1][title], labels = drawn, more
    return [
        Figure(f"{name}{number}", figures.lines(chunk, *axes, **options), caption, alt)
        for number, chunk in enumerate(filter(None, chunks), 1)
    ]
