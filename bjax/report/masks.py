"""Sections on masks: selection or deletion, accuracy against kept and speed, mask quality, the gallery."""

from collections.abc import Callable

from bjax.report import figures, intervals
from bjax.report.render import Figure, Mark, Table, Text, per_run, slug
from bjax.report.runs import INSIDE, Row, Run, grouped, told_apart
from bjax.report.words import MEASURES
from bjax.specs import CONTROLS, KINDS

GALLERIES = 4  # runs whose photographs are shown
CONDITIONS = 4  # of each of them


def matched_rates(run: Run) -> list:
    """Accuracy of every choice of patches at the same keep rate: selection beside mere deletion."""
    rows = [r for r in run.rows if not r.adapted]
    masked = [r for r in rows if r.keep_rate is not None and r.keep_rate < 1 and r.mask["threshold"] is None]
    rates = {r.keep_rate for r in masked}
    if not masked or (run.sweep and len(rates) == 1):  # a sweep's own tables have that one
        return []
    whole = [r for r in rows if r.whole]
    blur_of, method_of = _blurs(masked + whole), _methods(masked)
    blurs = _unique(map(blur_of, masked))
    at = {(r.keep_rate, method_of(r), blur_of(r)): r for r in masked}
    whole = {blur_of(r): r for r in whole if blur_of(r) in blurs}
    body, shown, pairs = [], [], []
    if whole:
        cells = [whole.get(b) for b in blurs]
        shown += filter(None, cells)
        body.append(["100 %", "all patches", *map(_accuracy, cells), *[""] * len(blurs)])
    for rate in sorted(rates, reverse=True):
        for method in _unique(method_of(r) for r in masked if r.keep_rate == rate):
            cells = [at.get((rate, method, b)) for b in blurs]
            controls = [at.get((rate, "random", b)) if method != "random" else None for b in blurs]
            paired = [intervals.difference(*pair) for pair in zip(cells, controls, strict=True)]
            shown += filter(None, cells)
            pairs += [pair for pair, control in zip(paired, controls, strict=True) if control]
            body.append([f"{100 * rate:g} %", method, *map(_accuracy, cells), *map(_beside_random, paired)])
    header, groups = ["kept", "patches that stay", *blurs], ()
    caption = f"Top-1 in per cent, {max(r.result['n'] for r in shown):,} images. {intervals.about(shown)}"
    if any(pairs):
        header, groups = [*header, *blurs], (("", 2), ("top-1 %", len(blurs)), ("minus random", len(blurs)))
        caption += (
            " Minus random: the difference from a random choice of as many patches under the same blur, percentage "
            f"points, {intervals.PAIRED}. Bold: more, italic: less than chance explains, each looked at on its own: of "
            "twenty without any effect one is marked."
        )
    else:
        body = [row[: len(header)] for row in body]
        if pairs:
            caption += (
                " No difference from a random choice is told: these results keep no answers that could be paired; "
                "evaluate again with --mode=eval."
            )
    return [Table(header, body, caption, left=2, groups=groups)]


def _blurs(rows: list[Row]) -> Callable[[Row], str]:
    """What images of a row are, in words that differ where the images do."""
    return told_apart(rows, lambda r: r.blur, lambda key: not key.startswith(("mask.", "options.")))


def _methods(rows: list[Row]) -> Callable[[Row], str]:
    """What decides which patches of a row stay, in words that differ where the rule does; not how many stay."""
    along = ("mask.keep_rate", "mask.threshold", "options.evit_keep", "options.tome_r", "options.highpass_keep")
    return told_apart(
        rows,
        lambda r: r.method + (", bn_adapt" if r.adapted else ""),
        lambda key: key.startswith(("mask.", "options.")) and key not in along,
    )


def accuracy_against_kept(run: Run) -> list:
    """The same as curves, with those of `INSIDE` at their mean share of tokens."""
    rows = [r for r in run.rows if r.keep_rate is not None or r.method in ("all patches", *INSIDE)]
    rows = [r for r in rows if (r.method not in INSIDE or r.speed) and not r.adapted and not r.corruption]
    blur_of = _blurs(rows)
    masked = {blur_of(r) for r in rows if not r.whole}
    rows = [r for r in rows if blur_of(r) in masked]
    if len({round(r.kept, 3) for r in rows}) < 3:
        return []
    drawing = _curves(rows, lambda r: 100 * r.kept, "tokens computed, % of all")
    caption = (
        f"Top-1 accuracy of {rows[0].result['n']:,} images. Grey band: a random choice's own 95 % interval; how others "
        "differ from it on the same images is in the table at matched keep rates. EViT, ToMe and highpass begin with "
        "all patches and lose them from layer to layer: they stand at their mean over the layers."
    )
    alt = "Top-1 accuracy against the share of tokens kept"
    return [Figure(f"run{run.number}_accuracy_kept", drawing, caption, alt)]


def accuracy_against_speed(run: Run) -> list:
    """Accuracy against measured images per second."""
    rows = [r for r in run.rows if r.speed]
    if not rows:
        return []
    drawing = _curves(rows, lambda r: r.speed["images_per_second"], "images per second, measured")
    about = run.speed
    caption = (
        f"Top-1 accuracy of {rows[0].result['n']:,} images. Speed on {about['device']}, {about['rounds']} rounds of "
        f"batches of {about['batch_size']}: {about['how']}."
    )
    alt = "Top-1 accuracy against images per second"
    return [Figure(f"run{run.number}_accuracy_speed", drawing, caption, alt)]


def mask_quality(run: Run) -> list:
    """Whether masks keep what is sharp and drop what is blurred, where parts of the image are blurred."""
    return [*_kept_and_sharp(run), *_dropped_and_blurred(run)]


def _kept_and_sharp(run: Run) -> list:
    """Of the conditions whose images are blurred in parts, on the images of their accuracy."""
    rows = [r for r in run.rows if "iou" in r.result and not r.adapted]
    if not rows:
        return []
    blur_of, method_of, metrics = _blurs(rows), _methods(rows), ("precision", "recall", "iou")
    body = []
    for r in rows:
        cells = [intervals.accuracy(r, metric) for metric in metrics]
        body.append([blur_of(r), f"{100 * r.result['kept']:.0f} %", method_of(r), *cells, _accuracy(r)])
    caption = (
        "Patches that are kept beside those that are not blurred (at most half of their pixels are), in per cent, the "
        "mean over the images: precision, the share of the kept that are not blurred; recall, the share of these that "
        "are kept; IoU, what is both, of what is either. In brackets: 95 % intervals, over the photographs that the "
        "images are crops of, and over seeds, where there are several; of two seeds both values."
    )
    return [
        Table(["blur", "kept", "patches that stay", "precision", "recall", "IoU", "top-1 %"], body, caption, left=3)
    ]


def _dropped_and_blurred(run: Run) -> list:
    """Of mask_quality.json, which needs no model: precision and recall of what masks drop, over all patches."""
    by_sigma = run.quality or {}
    first = next(iter(by_sigma.values()), {})
    names = [name for name in first if all(name in masks for masks in by_sigma.values())]
    if not names:
        return []
    body = []
    for name in names:
        cells = [[masks[name][k] for k in ("precision", "recall", "dropped")] for masks in by_sigma.values()]
        body.append([name, *(" / ".join("–" if x is None else f"{100 * x:.0f}" for x in c) for c in cells)])
    first = first[names[0]]
    caption = (
        f"Images with blurred rectangles, {first['patches']:,} patches, {100 * first['blurred']:.0f} % of them "
        "blurred. Precision / recall / share dropped, in per cent. A choice that knows nothing of the blur has the "
        "share blurred as its precision and the share dropped as its recall."
    )
    return [Table(["mask", *(f"σ = {sigma}" for sigma in by_sigma)], body, caption)]


def gallery(runs: list[Run]) -> list:
    """Photographs with what masks drop, the scores that decide it, and what the model said."""
    with_one = [run for run in runs if run.gallery]
    blocks = per_run(_gallery)(with_one[:GALLERIES])
    if len(with_one) > GALLERIES:
        others = ", ".join(str(run.number) for run in with_one[GALLERIES:])
        blocks.append(Text(f"Those of runs {others} are in gallery.npz of their folders."))
    return blocks


def _gallery(run: Run) -> list:
    rows = [row for row in run.rows if row.name in run.gallery]
    # What is dropped says more than what is not, and by a rule more than at random; images of which next to nothing is
    # left come last. A run without masks shows its first conditions.
    masked = [row for row in rows if row.mask["mode"] != "none"]
    chosen = [row for row in masked if row.mask["selector"] not in CONTROLS] or masked
    chosen = sorted(chosen, key=lambda row: not 0.1 <= row.kept <= 0.9)
    chosen = chosen[:CONDITIONS] or rows[: CONDITIONS // 2]
    blocks = []
    for row in chosen:
        shown = run.gallery[row.name]
        number = len(shown["image"])
        masked = row.mask["mode"] != "none"
        ranked = row.mask["selector"] if row.mask["selector"] in MEASURES else "laplacian"
        threshold = row.mask["threshold"] if masked and ranked == shown["measure"] else None
        titles = [title(run, shown, i, masked) for i in range(number)]
        measure = MEASURES.get(shown["measure"], shown["measure"])
        pixels = shown["measure"] == "sigma"
        drawing = figures.gallery(shown["image"], shown["kept"], shown["score"], titles, threshold, shown["measure"])
        caption = (
            f"{row.name}, {row.label}: {number} images spread evenly over {run.config['data']['name']} "
            f"{row.condition['split']}. Above: blurred as in the evaluation; patches that are left out are dark and "
            f"hatched. Below: each patch's {measure}, yellow is sharp"
            + (", pale has no texture to tell by" if pixels else "")
            + (f"; red on the scale: the threshold, {threshold:g}{' px' if pixels else ''}." if threshold else ".")
        )
        name, alt = f"gallery_{slug(row.name)}", f"Photographs under {row.name}, with patches and scores"
        blocks.append(Figure(f"run{run.number}_{name}", drawing, caption, alt))
    return blocks


def title(run: Run, shown: dict, i: int, masked: bool) -> str:
    """True class; whether the answer is right, or else the answer; how sure, and how much was kept."""
    label, answer = (_class(run, int(shown[k][i])) for k in ("label", "prediction"))
    said = "right" if shown["label"][i] == shown["prediction"][i] else f"not {answer}"
    kept = f"\n{100 * shown['kept'][i].mean():.0f} % kept" if masked else ""
    return f"{label}\n{said}, {100 * shown['confidence'][i]:.0f} %{kept}"


def _class(run: Run, number: int) -> str:
    names = run.classes or (KINDS if run.config["task"] == "blur_type" else ())
    name = names[number] if number < len(names) else f"class {number}"
    return name if len(name) <= 18 else f"{name[:17]}…"


def _accuracy(row: Row | None) -> str:
    return "" if row is None else f"{100 * row.result['top1']:.1f}{intervals.brackets(row.result, digits=0)}"


def _beside_random(paired: intervals.Difference | None) -> str | Mark:
    if paired is None:
        return ""
    return Mark(paired.text, {1: "strong", -1: "em"}[paired.sign]) if paired.sign else paired.text


def _unique(values) -> list:
    return list(dict.fromkeys(values))


def _curves(rows: list[Row], x: Callable[[Row], float], label: str):
    """Top-1 over `x`: a panel per blur, a line per method; the random choice is black, with its interval as a band."""
    blur_of, method_of = _blurs(rows), _methods(rows)
    by_blur = grouped(rows, blur_of)
    several = {b: alike for b, alike in by_blur.items() if len(set(map(method_of, alike))) > 1}
    methods = sorted(_unique(map(method_of, rows)), key=lambda m: m != "random")  # its band lies behind
    panels = {}
    for blur, alike in (several or by_blur).items():
        panels[blur], by_method = [], grouped(sorted(alike, key=x), method_of)
        for method in filter(by_method.get, methods):
            points = by_method[method]
            kind = {"random": "band", "all patches": "point"}.get(method, "line")
            values = [x(r) for r in points], [100 * r.result["top1"] for r in points]
            bounds = intervals.bars([r.result for r in points]) if kind == "band" else (None, None)
            panels[blur].append(figures.Line(method, *values, *bounds, kind))
    return figures.lines(panels, label, "top-1 accuracy, %", x_scale="zero")
