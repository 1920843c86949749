"""Sections on masks: selection or deletion, accuracy against kept and speed, mask quality, the gallery."""

from collections.abc import Callable

from bjax.report import figures
from bjax.report.read import Row, Run
from bjax.report.render import Figure, Heading, Mark, Table

INSIDE = ("EViT", "ToMe")


def each(runs: list[Run], section: Callable[[Run], list]) -> list:
    """The blocks of every run that has some, under its name."""
    blocks = []
    for run in runs:
        if own := section(run):
            blocks += [Heading(run.name, 3), *own]
    return blocks


def matched_rates(runs: list[Run]) -> list:
    """Accuracy of every choice of patches at the same keep rate: selection beside mere deletion."""
    return each(runs, _matched_rates)


def _matched_rates(run: Run) -> list:
    masked = [
        r
        for r in run.rows
        if r.keep_rate is not None and r.keep_rate < 1 and r.mask["threshold"] is None and not r.adapted
    ]
    rates = {r.keep_rate for r in masked}
    if not masked or (run.sweep and len(rates) == 1):  # a sweep's own tables have that one
        return []
    blurs = _unique(r.blur for r in run.rows if any(m.blur == r.blur for m in masked))
    at = {(r.keep_rate, r.method, r.blur): r for r in masked}
    whole = {r.blur: r for r in run.rows if r.whole and not r.adapted}
    body = []
    if whole:
        body.append(["100 %", "all patches", *(_accuracy(whole.get(b), None) for b in blurs)])
    for rate in sorted(rates, reverse=True):
        for method in _unique(r.method for r in masked if r.keep_rate == rate):
            cells = [
                _accuracy(
                    at.get((rate, method, b)), at.get((rate, "random", b)) if method != "random" else None
                )
                for b in blurs
            ]
            body.append([f"{100 * rate:g} %", method, *cells])
    n = max(r.result["n"] for r in masked)
    caption = (
        f"Top-1 in per cent, 95 % interval in brackets, {n:,} images. Bold: the interval lies above random's own at "
        "the same keep rate and blur; italic: below it."
    )
    return [Table(["kept", "patches that stay", *blurs], body, caption, left=2)]


def accuracy_against_kept(runs: list[Run]) -> list:
    """The same as curves, with EViT and ToMe at their mean share of tokens."""
    return each(runs, _accuracy_against_kept)


def _accuracy_against_kept(run: Run) -> list:
    rows = [r for r in run.rows if r.keep_rate is not None or r.method in ("all patches", *INSIDE)]
    rows = [r for r in rows if (r.method not in INSIDE or r.speed) and not r.adapted and not r.corruption]
    masked = {r.blur for r in rows if not r.whole}
    rows = [r for r in rows if r.blur in masked]
    if len({round(r.kept, 3) for r in rows}) < 3:
        return []
    drawing = _curves(rows, lambda r: 100 * r.kept, "tokens computed, % of all")
    caption = (
        f"Top-1 accuracy of {rows[0].result['n']:,} images. Grey band: 95 % interval of a random choice; a choice that "
        "is worth its scores lies above it. EViT and ToMe begin with all patches and lose them from layer to layer: "
        "they stand at their mean over the layers."
    )
    return [
        Figure(
            f"run{run.number}_accuracy_kept",
            drawing,
            caption,
            "Top-1 accuracy against the share of tokens kept",
        )
    ]


def accuracy_against_speed(runs: list[Run]) -> list:
    """Accuracy against measured images per second."""
    return each(runs, _accuracy_against_speed)


def _accuracy_against_speed(run: Run) -> list:
    rows = [r for r in run.rows if r.speed]
    if not rows:
        return []
    drawing = _curves(rows, lambda r: r.speed["images_per_second"], "images per second, measured")
    about = run.speed
    caption = (
        f"Top-1 accuracy of {rows[0].result['n']:,} images. Speed on {about['device']}, {about['rounds']} rounds of "
        f"batches of {about['batch_size']}: {about['how']}."
    )
    return [
        Figure(
            f"run{run.number}_accuracy_speed", drawing, caption, "Top-1 accuracy against images per second"
        )
    ]


def mask_quality(runs: list[Run]) -> list:
    """Precision and recall of what masks drop, where parts of the image are blurred."""
    return each(runs, _mask_quality)


def _mask_quality(run: Run) -> list:
    if not run.quality:
        return []
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
    caption = (
        f"Images with blurred rectangles, {first['patches']:,} patches, {100 * first['blurred']:.0f} % of them "
        "blurred. Precision / recall / share dropped, in per cent. A choice that knows nothing of the blur has the "
        "share blurred as its precision and the share dropped as its recall."
    )
    return [Table(["mask", *(f"σ = {sigma}" for sigma in sigmas)], body, caption)]


def _accuracy(row: Row | None, random: Row | None) -> str | Mark:
    if row is None:
        return ""
    low, high = row.result["top1_95"]
    text = f"{100 * row.result['top1']:.1f} ({100 * low:.0f}–{100 * high:.0f})"
    if random is not None and low > random.result["top1_95"][1]:
        return Mark(text, "strong")
    if random is not None and high < random.result["top1_95"][0]:
        return Mark(text, "em")
    return text


def _unique(values) -> list:
    return list(dict.fromkeys(values))


def _curves(rows: list[Row], x: Callable[[Row], float], label: str):
    """Top-1 over `x`: a panel per blur, a line per method; the random choice is black, with its interval as a band."""
    blurs = _unique(r.blur for r in rows)
    blurs = [b for b in blurs if len({r.method for r in rows if r.blur == b}) > 1] or blurs
    methods = _unique(r.method for r in rows)
    panels = {}
    for blur in blurs:
        panels[blur] = []
        for method in sorted(methods, key=lambda m: m != "random"):  # its band lies behind the others
            own = sorted((r for r in rows if r.blur == blur and r.method == method), key=x)
            if own:
                kind = {"random": "band", "all patches": "point"}.get(method, "line")
                low, high = ([100 * r.result["top1_95"][i] for r in own] for i in (0, 1))
                values = [x(r) for r in own], [100 * r.result["top1"] for r in own]
                bounds = (low, high) if kind == "band" else (None, None)
                panels[blur].append(figures.Line(method, *values, *bounds, kind))
    return figures.lines(panels, label, "top-1 accuracy, %", x_zero=True)
