"""What the runs answer: a title, a few sentences with their numbers, and the figure of these numbers.

Which conditions a sentence compares follows from what they are (the blur nearest paper 1's, the mask that keeps nearest
to half of the patches), never from how they came out; only the best of a sweep is chosen by its result, and says so.
"""

from collections.abc import Callable

import numpy as np

from bjax.report import figures, intervals, seeds, words
from bjax.report.intervals import accuracy
from bjax.report.pairs import Pair, blurred_row, distance, is_blurred, row_like, sharp_row
from bjax.report.read import axes
from bjax.report.render import Answers, Figure
from bjax.report.runs import Row, Run, grouped, in_order
from bjax.specs import CONTROLS, KINDS

SENTENCES = 5
NAMED = 3  # comparisons that a sentence tells one by one
DRAWN = 12  # rows of the figure
TELLING = (0.1, 0.9)  # shares of patches kept; a mask that leaves out nearly all or nothing tells little
TRAINED_ON = {"sharp": "sharp", "blurred": "blurred", "mix": "sharp and blurred"}


# How much a sentence matters, 0 the most; the sentence; what it compares: (label, row, whether a control)
Told = tuple[int, str, list[tuple[str, Row, bool]]]


def answers(runs: list[Run], *more: str) -> Answers:
    """The first screen: three to five sentences, and a figure of what they compare. more: those of other sections."""
    ordered = in_order(runs)
    objects = [run for run in ordered if run.config["task"] == "object"]
    plain = [run for run in objects if run.training in ("sharp", "as given")] or objects
    trained = _training(objects)
    told = [*([] if trained else _best(runs)), *_cost(plain), *trained, *_adaptation(plain), *_masks(objects)]
    told += _blur_types(ordered)
    told += [(0, text, []) for text in more]
    most = sorted(told, key=lambda x: x[0])[: SENTENCES - 1]
    told = [x for x in told if x in most]
    if not any(drawn for *_, drawn in told):
        told = _plain(ordered) + told
    marks = {}
    for *_, drawn in told:
        for label, row, control in drawn:
            marks.setdefault(id(row), (label, row, control))
    shown = [row for _, row, _ in marks.values()]
    drawn = list(marks.values())[:DRAWN]
    dots = [_dot(*mark) for mark in drawn]
    caption = f"Top-1 accuracy of what the sentences compare; {intervals.kinds([row for _, row, _ in drawn], 'bars')}"
    if any(control for *_, control in drawn):
        caption += " Hollow: what it is compared with."
    alt = "Top-1 accuracy of what the sentences compare"
    drawing = figures.dots(dots, "top-1 accuracy, %")
    confusions = {row.name: counts for row in shown if (counts := _confusion(row)).any()}
    if confusions and not objects:
        drawing = figures.confusion(confusions, list(KINDS))
        caption = alt = "What each kind of blur is taken for: share of the true kind, and counts."
    figure = Figure("answers", drawing, caption, alt)
    return Answers([text for _, text, _ in told] + [_measured(runs, shown)], figure)


def title(runs: list[Run]) -> str:
    """What was run: models, training and images; of one sweep its name and axes."""
    models = list(dict.fromkeys(run.model for run in runs))
    who = _and(models) if len(models) <= NAMED else f"{len(models)} models"
    data = _and(dict.fromkeys(run.config["data"]["name"] for run in runs))
    sweeps = {run.sweep for run in runs}
    if len(runs) > 1 and len(sweeps) == 1 and "" not in sweeps:
        keys = [{"config": "model", "train": "training blur"}.get(k, k) for k in axes([dict(r.point) for r in runs])]
        return f"{who} on {data}: sweep {sweeps.pop()}, {len(runs)} points over {_and(keys)}"
    if all(run.config["task"] == "blur_type" for run in runs):
        return f"{who} telling kinds of blur apart ({data})"
    if not any(run.trained for run in runs):
        return f"{who} with given weights, tested on {data}"
    trainings = list(dict.fromkeys(run.training for run in in_order(runs) if run.trained))
    if len(trainings) > 1:
        return f"{who} on {data}, trained on {_and(trainings)} images"
    what = TRAINED_ON.get(trainings[0], trainings[0])
    return f"{who} trained on {what} images ({data})"


def _cost(runs: list[Run]) -> list[Told]:
    """What blur costs."""
    name = _namer(runs)
    pairs = [Pair(name(run), row, sharp) for run in runs if (sharp := sharp_row(run)) and (row := blurred_row(run))]
    if not pairs:
        return []
    (first, *_), blurs = pairs, _and(dict.fromkeys(p.row.blur for p in pairs))
    if len(pairs) == 1:
        text = (
            f"Blur ({blurs}): {first.who} is right on {_percent(first.control)} of the sharp images and on "
            f"{_percent(first.row)} of the same blurred, {first.points}, {first.verdict}."
        )
    else:
        text = f"Blur ({blurs}) changes top-1, in points: {_list(pairs)}."
    drawn = [x for p in pairs[:NAMED] for x in ((p.who + ", sharp", p.control, True), _mark(p, p.row.blur))]
    return [(0, text, drawn)]


def _training(runs: list[Run]) -> list[Told]:
    """What training on blur gives on blurred images, and on sharp ones, beside the same run trained on sharp images."""
    told = {}
    for alike in grouped(runs, lambda run: seeds.identity(run.config, "blur", "augmix", "loss.jsd", "eval")).values():
        base = next((run for run in alike if run.training == "sharp"), None)
        for run in alike if base else ():
            sharp, row = sharp_row(run), blurred_row(run)
            theirs, control = (row_like(base, ours.condition) if ours else None for ours in (sharp, row))
            if run.training == "sharp" or None in (row, control, sharp, theirs):
                continue
            of_blurred, of_sharp = told.setdefault(run.training, ([], []))
            of_blurred.append(Pair(run.model, row, control))
            of_sharp.append(Pair(run.model, sharp, theirs))
    sentences = []
    for training, (of_blurred, of_sharp) in sorted(told.items()):
        (first, *_), (beside, *_) = of_blurred, of_sharp
        how = TRAINED_ON.get(training, training)
        if len(of_blurred) == 1:
            text = (
                f"Training {first.who} on {how} instead of sharp images: on blurred ones {_percent(first.row)} right "
                f"against {_percent(first.control)}, {first.points}, {first.verdict}; on sharp ones "
                f"{beside.text}, {beside.verdict}."
            )
        else:
            text = (
                f"Training on {how} instead of sharp images gives, on blurred ones, {_list(of_blurred)}; on sharp "
                f"ones {_list(of_sharp)}."
            )
        drawn = []
        for p in of_blurred[:NAMED]:
            drawn += [(f"{p.who} trained on sharp, {p.control.blur}", p.control, True)]
            drawn += [(f"{p.who} trained on {training}, {p.row.blur}", p.row, False)]
        sentences.append((1 if training == "mix" else 4, text, drawn))
    return sentences


def _adaptation(runs: list[Run]) -> list[Told]:
    """What BatchNorm statistics of blurred images give, on the blurred images."""
    name, pairs = _namer(runs), []
    for run in runs:
        adapted = [row for row in run.rows if row.adapted and row.whole and is_blurred(row)]
        row = min(adapted, key=distance, default=None)
        control = row_like(run, row.condition) if row else None
        pairs += [Pair(name(run), row, control)] if control else []
    if not pairs:
        return []
    first = pairs[0]
    if len(pairs) == 1:
        text = (
            f"BatchNorm adapted to blurred images ({first.row.blur}) takes {first.who} from {_percent(first.control)} "
            f"to {_percent(first.row)}: {first.points}, {first.verdict}."
        )
    else:
        text = f"BatchNorm adapted to blurred images gives, in points: {_list(pairs)}."
    return [(3, text, [(f"{p.who}, {p.row.blur}, adapted", p.row, False) for p in pairs[:NAMED]])]


def _masks(runs: list[Run]) -> list[Told]:
    """What a mask that knows the sharpness gives beside a random one that keeps as many patches."""
    name, pairs, useless = _namer(runs), [], {}
    for run in runs:
        for row in run.rows:
            if row.mask["mode"] == "none" or row.mask["selector"] in CONTROLS or row.adapted:
                continue
            if not TELLING[0] <= row.result.get("kept", row.keep_rate or 0.5) <= TELLING[1]:
                useless[row.name] = row
            elif control := row_like(run, {**row.condition, "mask": {**row.mask, "selector": "random"}}):
                pairs.append((run, Pair(name(run), row, control)))
    told = [f"{n} {100 * row.result.get('kept', row.keep_rate or 0):.1f} %" for n, row in useless.items()]
    aside = f"too many or too few patches stay with {_some(told)}"
    if not pairs:
        return [(5, f"No mask can be judged: {aside}.", [])] if told else []
    run, chosen = min(pairs, key=lambda pair: _usual(pair[1].row))
    end = {"below": "sharpest", "above": "blurriest"}[chosen.row.mask["drop"]]
    what = "blurred" if is_blurred(chosen.row) else "sharp"
    share = f"{100 * chosen.row.result.get('kept', chosen.row.keep_rate or 0):.0f} %"
    whole = row_like(run, {**chosen.row.condition, "mask": {**chosen.row.mask, "mode": "none"}})
    by = "" if chosen.row.mask["selector"] == "laplacian" else f" by {chosen.row.mask['selector']}"
    text = (
        f"With the {end} {share} of the patches{by} of {what} images alone "
        f"{chosen.who} is right on {_percent(chosen.row)}, with as many at random on "
        f"{_percent(chosen.control)}: {chosen.points}, {chosen.verdict}"
        + (f"; with all patches on {_percent(whole)}." if whole else ".")
    )
    if len(pairs) > 1:
        signs = [pair.sign for _, pair in pairs]
        text += (
            f" Of {len(pairs)} such comparisons {signs.count(1)} are better and {signs.count(-1)} worse than random "
            "beyond chance, each looked at on its own."
        )
    drawn = [(f"{chosen.who}, {what}, all patches", whole, True)] if whole else []
    drawn += [(f"{chosen.who}, {what}, {end} {share}", chosen.row, False)]
    drawn += [(f"{chosen.who}, {what}, random {share}", chosen.control, True)]
    return [(2, text + (f" Left aside: {aside}." if told else ""), drawn)]


def _best(runs: list[Run]) -> list[Told]:
    """The best point of a sweep, beside the second."""
    told = []
    for sweep, points in grouped([run for run in runs if run.sweep], lambda run: run.sweep).items():
        keys = axes([dict(run.point) for run in points])
        rows = [(run, row) for run in points if (row := blurred_row(run) or sharp_row(run) or run.rows[0])]
        condition = rows[0][1].condition
        rows = [(run, row) for run, row in rows if words.effective(row.condition) == words.effective(condition)]
        if len(rows) < 2 or not keys:
            continue

        def point(run: Run, keys=keys) -> str:
            return " ".join(f"{k}={dict(run.point)[k]}" for k in keys if k in dict(run.point))

        (best, row), (second, other), *_ = sorted(rows, key=lambda x: -x[1].result["top1"])
        pair = Pair("", row, other)
        text = (
            f"Of the {len(rows)} points of {sweep}, {point(best)} is right most often on {_images(row)}, on "
            f"{_percent(row)}; the second, {point(second)}, on {_percent(other)}: {pair.points}, {pair.verdict}. "
            "Chosen on the images it is measured on, the best looks better than it is."
        )
        drawn = [(f"{point(run)}, {row.label}", row, run is not best) for run, row in rows]
        told.append((1, text, drawn))
    return told[:2]


def _blur_types(runs: list[Run]) -> list[Told]:
    """How often kinds of blur are told apart, and what is confused most."""
    told = []
    for run in [run for run in runs if run.config["task"] == "blur_type"][:2]:
        row = run.rows[0]
        text = f"{run.model} names the kind of blur of {_percent(row)} of the images ({row.name})"
        counts = _confusion(row)
        wrong = counts - np.diag(np.diag(counts))
        if wrong.any():
            true, answer = np.unravel_index(np.argmax(wrong / np.maximum(counts.sum(1, keepdims=True), 1)), wrong.shape)
            part, whole = wrong[true, answer], counts[true].sum()
            text += f"; most often {KINDS[true]} is taken for {KINDS[answer]}, {part:,.0f} of {whole:,.0f} times"
        known = [(kind, n, hits) for kind, n, hits in zip(KINDS, counts.sum(axis=1), np.diag(counts), strict=True) if n]
        each = ", ".join(f"{kind} {100 * hits / n:.0f} %" for kind, n, hits in known)
        text += f". Of each kind it names rightly: {each}" if each else ""
        told.append((2, text + ".", [(f"{run.model}, {row.name}", row, False)]))
    return told


def _confusion(row: Row) -> np.ndarray:
    """Counts, rows true, columns predicted; all 0 where there are none of the kinds of blur."""
    matrix = row.result.get("confusion", [])
    square = [len(line) for line in matrix] == [len(KINDS)] * len(KINDS)
    return np.array(matrix, float) if square else np.zeros((len(KINDS), len(KINDS)))


def _plain(runs: list[Run]) -> list[Told]:
    """Where nothing can be compared: how often the first runs are right."""
    told = []
    for run in runs[:NAMED]:
        row = sharp_row(run) or run.rows[0]
        text = f"{run.model} ({run.trained_on}) is right on {_percent(row)} of the images ({row.label})."
        told.append((0, text, [(f"{run.model}, {row.label}", row, False)]))
    return told


def _measured(runs: list[Run], rows: list[Row]) -> str:
    """On what, of how many seeds; and whether the intervals can be trusted."""
    images = {}
    for row in rows:
        run = next(run for run in runs if run.number == row.run)
        of = row.result.get("n_photographs")
        number = f"{row.result['n']:,}" + (f" crops of {of} photographs" if of else " images")
        images[f"{run.config['data']['name']} {row.condition['split']}, {number}"] = None
    some = sorted({row.seeds for row in rows})
    count = " or ".join(map(str, some))
    text = f"Measured on {_some(list(images))}; {count} seed{'' if some == [1] else 's'}{' of each' * (len(runs) > 1)}."
    behind = "values of both seeds" if some == [2] else "95 % intervals"
    text += f" In brackets: {behind}" + (", of two seeds both values." if 2 in some and some != [2] else ".")
    if some == [1] and any(run.trained for run in runs):
        text += " One seed says nothing of another training."
    if any(map(intervals.doubtful, rows)):
        text += " Some are over too few photographs to be trusted (Photographs, below)."
    return text


# --- words


def _usual(row: Row) -> tuple:
    kept = row.result.get("kept", row.keep_rate or 0.5)
    simple = row.mask["drop"] != "below", row.mask["selector"] != "laplacian"
    return not is_blurred(row), *simple, abs(kept - 0.5), distance(row)


def _namer(runs: list[Run]) -> Callable[[Run], str]:
    """What a run is called: its model; what it was trained on, or its own name, where needed."""
    by_model = grouped(runs, lambda run: run.model)
    by_both = grouped(runs, lambda run: (run.model, run.trained_on))

    def name(run: Run) -> str:
        if len(by_model[run.model]) == 1:
            return run.model
        if len(by_both[run.model, run.trained_on]) > 1:
            return run.name
        return f"{run.model} trained on {run.regimen}" if run.trained else f"{run.model} from {run.origin}"

    return name


def _percent(row: Row) -> str:
    """ "75.0 % (68.9–80.2)"."""
    value, _, behind = accuracy(row).partition(" ")
    return f"{value} % {behind}".strip()


def _images(row: Row) -> str:
    return f"blurred images ({row.label})" if is_blurred(row) else f"{row.label} images"


def _list(pairs: list[Pair]) -> str:
    """Every difference, the first few by name, and how many are beyond chance."""
    shown = "; ".join(f"{pair.who} {pair.text}" for pair in pairs[:NAMED])
    more = f"; and {len(pairs) - NAMED} more" if len(pairs) > NAMED else ""
    signs = [pair.sign != 0 for pair in pairs]
    beyond = f"all {len(pairs)}" if all(signs) else f"{sum(signs) or 'none'} of {len(pairs)}"
    return f"{shown}{more} – beyond chance in {beyond}"


def _mark(pair: Pair, label: str) -> tuple[str, Row, bool]:
    return f"{pair.who}, {label}", pair.row, False


def _dot(label: str, row: Row, control: bool) -> figures.Dot:
    (values,) = intervals.bars([row.result])[:1]
    ends = (values[0], intervals.bars([row.result])[1][0]) if values else None
    both = tuple(100 * x for x in row.result.get("top1_seeds", ()))
    return figures.Dot(label.replace(" = ", "\u00a0=\u00a0"), 100 * row.result["top1"], ends, both, control)


def _and(items) -> str:
    *head, last = list(items) or [""]
    return f"{', '.join(head)} and {last}" if head else last


def _some(items: list[str]) -> str:
    return "; ".join(items[:NAMED]) + (f"; and {len(items) - NAMED} more" if len(items) > NAMED else "")
