"""Sections on how strong a blur is: Gaussian σ, ImageNet-C, and what abstaining gains."""

from bjax import stats
from bjax.report import figures, intervals
from bjax.report.intervals import accuracy
from bjax.report.render import Figure, Heading, Table
from bjax.report.runs import Row, Run, firsts, images_text, in_matrix, in_order, number_text, told_apart
from bjax.report.words import BLUR_DEFAULTS, is_noisy

LINES = len(figures.STYLES)  # of a panel
PANELS = 6  # of a figure
ANSWERED = (0.8, 0.5, 0.2)  # shares in the table
RANKINGS = ("confidence", "sharpness")  # what decides which images are answered first


def sigma_curves(runs: list[Run]) -> list:
    """Accuracy and calibration error against the σ of a Gaussian, on the run's own grid, and the area under them."""
    series = {}  # {(data, split, grid): [(run, adapted, rows)]}
    cut = set()  # grids of which some points are left out
    for run in in_order(runs):
        if run.config["task"] != "object":
            continue
        for (split, adapted), rows in _by(run, _has_one_sigma).items():
            at = firsts(sorted(rows, key=_taps, reverse=True), lambda row: row.sigma[0])
            grid = tuple(sorted(at))
            if len(grid) >= 3:
                key = run.config["data"]["name"], split, grid
                series.setdefault(key, []).append((run, adapted, [at[s] for s in grid]))
                cut |= {key} if len({(row.sigma, _taps(row)) for row in rows}) > len(grid) else set()
    blocks = []
    for number, ((data, split, grid), lines) in enumerate(series.items(), 1):
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
                under = f"{stats.area(grid, values):.1f}"
                body.append(
                    [
                        run.model,
                        _training(run, adapted),
                        *(f"{v:.1f}" for v in values),
                        under,
                        number_text(run, rows),
                    ]
                )
            header = ["model", "trained on", *(f"{s:g}" for s in grid), "area", "run"]
            groups = (("", 2), (f"{title} in per cent at σ, pixels", len(grid)), ("", 2))
            caption = (
                f"{images}. Area: under the line through these points (trapezoids) over the length of the axis, that "
                f"is the mean over σ from {grid[0]:g} to {grid[-1]:g}; comparable on the same grid alone."
            )
            if (data, split, grid) in cut:
                caption += " Where kernels of several sizes have the same σ, the largest counts."
            if metric == "ece":
                caption += " Expected calibration error: 15 bins of equal width, of the largest probability."
            blocks.append(Table(header, body, caption, left=2, groups=groups))
            panels = _panels(measured, lambda rows, m=metric: _line(rows, [row.sigma[0] for row in rows], m))
            for part, some in enumerate(_chunks(panels), 1):
                drawing = figures.lines(some, "σ of the Gaussian, pixels", f"{title}, %", x_zero=True)
                bars = _bars([row for *_, rows in measured for row in rows], metric)
                caption = f"{title.capitalize()} of {images}; {bars}"
                blocks.append(
                    Figure(f"sigma{number}_{metric}_{part}", drawing, caption, f"{title} against σ")
                )
    return blocks


def imagenet_c(runs: list[Run]) -> list:
    """Errors under ImageNet-C's blurs by severity, and the corruption errors that AlexNet's make of them."""
    series = []
    for run in in_order(runs):
        if run.config["task"] == "object":
            for (split, adapted), rows in _by(run, lambda row: row.corruption is not None).items():
                series.append((run, adapted, split, rows))
    if not series:
        return []
    several = len({split for _, _, split, _ in series}) > 1
    body, comparable = [], False
    for run, adapted, split, rows in series:
        images = run.config["data"]["name"] + (f" {split}" if several else "")
        who, known = [run.model, _training(run, adapted), images], {}
        for name in dict.fromkeys(row.corruption[0] for row in rows):
            at = {row.corruption[1]: 1 - row.result["top1"] for row in rows if row.corruption[0] == name}
            errors = [at[s] for s in range(1, 6) if s in at]
            mean = f"{20 * sum(errors):.1f}" if len(errors) == 5 else ""
            ce = (
                stats.corruption_error(name, errors) if run.config["data"]["name"] == "imagenet2012" else None
            )
            known[name] = ce
            cells = [f"{100 * at[s]:.1f}" if s in at else "" for s in range(1, 6)]
            body.append(
                [
                    *who,
                    name.replace("_", " "),
                    *cells,
                    mean,
                    "" if ce is None else f"{ce:.1f}",
                    number_text(run, [row for row in rows if row.corruption[0] == name]),
                ]
            )
        ces = [known.get(name) for name in stats.ALEXNET]
        if None not in ces:
            comparable = True
            body.append([*who, "blur mCE", *[""] * 6, f"{sum(ces) / len(ces):.1f}", number_text(run, rows)])
    header = ["model", "trained on", "images", "corruption", *"12345", "mean", "CE", "run"]
    groups = (("", 4), ("top-1 error in per cent at severity", 5), ("", 3))
    caption = (
        f"ImageNet-C's blurs, {images_text(row for *_, rows in series for row in rows)} images. CE: the mean error "
        "over AlexNet's, in per cent (Hendrycks and Dietterich 2019); blur mCE: its mean over defocus, glass, motion "
        "and zoom. Gaussian blur is one of the benchmark's extras, without AlexNet's error."
    )
    if not comparable or any(run.config["data"]["name"] != "imagenet2012" for run, *_ in series):
        caption += (
            " AlexNet's errors are those on ImageNet's thousand classes: on other images there is no CE."
        )
    blocks = [Table(header, body, caption, left=4, groups=groups)]
    panels = {}
    for name in dict.fromkeys(row.corruption[0] for *_, rows in series for row in rows):
        for start in range(0, len(series), LINES):
            title = name.replace("_", " ") + (f" ({start // LINES + 1})" if len(series) > LINES else "")
            panels[title] = []
            for run, adapted, split, rows in series[start : start + LINES]:
                points = sorted((r for r in rows if r.corruption[0] == name), key=lambda r: r.corruption[1])
                if points:
                    line = _line(points, [r.corruption[1] for r in points], "top1", error=True)
                    label = f"{run.number}: {run.model}, {_training(run, adapted)}"
                    panels[title].append(figures.Line(label + (f", {split}" if several else ""), *line))
    for part, some in enumerate(_chunks(panels), 1):
        drawing = figures.lines(some, "severity", "top-1 error, %")
        bars = _bars([row for *_, rows in series for row in rows])
        caption = f"Top-1 error against ImageNet-C's severity; {bars}"
        blocks.append(Figure(f"imagenet_c{part}", drawing, caption, "Top-1 error against severity"))
    return blocks


def abstention(runs: list[Run]) -> list:
    """Accuracy on the images that are answered, when confidence or sharpness decides which."""
    answered = {}
    for run in in_order(runs):
        rows = [row for row in run.rows if "coverage" in row.result and row.whole and in_matrix(row)]
        if rows:
            answered[run.number] = run, rows
    if not answered:
        return []
    shown = [row for _, rows in answered.values() for row in rows]
    tested = told_apart(shown, lambda row: row.label)

    def name(row: Row) -> str:
        return tested(row) + (", bn_adapt" if row.adapted else "")

    body, panels = [], {}
    for run, rows in answered.values():
        title = f"{run.number}: {run.model}, {run.regimen}"
        panels[title] = []
        for row in firsts(rows, name).values():
            coverage, at = row.result["coverage"], {}
            shares = coverage["share"]
            for ranking in (r for r in RANKINGS if r in coverage):
                values = [100 * x for x in coverage[ranking]]
                at |= {(ranking, round(s, 3)): f"{v:.1f}" for s, v in zip(shares, values, strict=True)}
                label = f"{name(row)}: by {ranking}"
                panels[title].append(figures.Line(label, [100 * s for s in shares], values))
            cells = [at.get((ranking, s), "") for ranking in RANKINGS for s in ANSWERED]
            body.append(
                [
                    run.model,
                    _training(run, row.adapted),
                    tested(row),
                    accuracy(row),
                    *cells,
                    number_text(run, [row]),
                ]
            )
    shares = [f"{100 * s:g} %" for s in ANSWERED]
    header = ["model", "trained on", "test images", "all (95 %)", *shares, *shares, "run"]
    groups = (("", 4), *((f"top-1 %, by {ranking}", len(ANSWERED)) for ranking in RANKINGS), ("", 1))
    caption = (
        f"{images_text(shown)} images. The share with the largest probability, "
        "or with the largest variance of the Laplacian, is answered; on the rest the classifier abstains. "
    ) + intervals.about(shown)
    blocks = [Table(header, body, caption, left=3, groups=groups)]
    for part, some in enumerate(_chunks(panels), 1):
        drawing = figures.lines(some, "images answered, %", "top-1 accuracy of these, %", x_zero=True)
        blocks.append(
            Figure(f"abstention{part}", drawing, "Accuracy on what is answered.", "Accuracy against coverage")
        )
    return blocks


def _has_one_sigma(row: Row) -> bool:
    noise = is_noisy(row.condition["blur"])
    return row.sigma is not None and row.sigma[0] == row.sigma[1] and not noise


def _taps(row: Row) -> int:
    """Of its Gaussian; 0 where the images stay sharp."""
    return (BLUR_DEFAULTS | row.condition["blur"])["kernel_size"] if any(row.sigma) else 0


def _by(run: Run, wanted) -> dict[tuple[str, bool], list[Row]]:
    """The rows without a mask that are `wanted`, by split and by whether BatchNorm was adapted."""
    by_split = {}
    for row in run.rows:
        if row.whole and wanted(row):
            by_split.setdefault((row.condition["split"], row.adapted), []).append(row)
    return by_split


def _training(run: Run, adapted: bool) -> str:
    return (run.regimen if run.trained else run.origin) + (", bn_adapt" if adapted else "")


def _line(rows: list[Row], x: list[float], metric: str, *, error: bool = False) -> tuple:
    """x, y, low, high in per cent; error: of one minus the metric."""

    def percent(value):
        return 100 * (1 - value if error else value)

    y = [percent(row.result[metric]) for row in rows]
    low, high = intervals.bars([row.result for row in rows], metric)
    if error and low:
        low, high = [100 - x for x in high], [100 - x for x in low]
    return x, y, low, high


def _bars(rows: list[Row], metric: str = "top1") -> str:
    """What the bars of a figure are."""
    if metric == "ece":
        return "bars, of several seeds: Student's t over the seeds, on these images alone."
    return intervals.about(rows, "bars")


def _panels(series: list, line) -> dict[str, list[figures.Line]]:
    """A panel for every model and its images, a line for every training and for bn_adapt."""
    panels = {}
    for run, adapted, rows in series:
        panel = panels.setdefault(" · ".join((run.model, run.origin)), {})
        name = _training(run, adapted) if run.trained else "as given" + (", bn_adapt" if adapted else "")
        if name in panel:
            name = f"{name} (run {run.number})"
        panel[name] = figures.Line(name, *line(rows))
    parts = {}
    for title, panel in panels.items():
        drawn = list(panel.values())
        for start in range(0, len(drawn), LINES):
            parts[title + (f" ({start // LINES + 1})" if len(drawn) > LINES else "")] = drawn[
                start : start + LINES
            ]
    return parts


def _chunks(panels: dict) -> list[dict]:
    """As many panels as a figure has room for; the lines of a figure are few enough to tell apart."""
    chunks, labels = [{}], set()
    for title, drawn in panels.items():
        more = labels | {line.label for line in drawn}
        if len(chunks[-1]) == PANELS or len(more) > LINES:
            chunks.append({})
            more = {line.label for line in drawn}
        chunks[-1][title], labels = drawn, more
    return [chunk for chunk in chunks if chunk]
