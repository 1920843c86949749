"""Does it matter which patches stay? Choices of patches beside a random one, where parts of the images are blurred."""

import dataclasses
from collections.abc import Callable

from bjax.report import figures, intervals, seeds, words
from bjax.report.pairs import FEW
from bjax.report.render import Figure, Items, Mark, Table, Text
from bjax.report.runs import Row, Run, grouped, in_order, told_apart
from bjax.specs import MEASURES, STRATIFIED

ALL = "all patches"
BY_SHARPNESS = (*MEASURES, STRATIFIED)  # what can be chosen of a photograph, whose blur nobody knows

CARRYING = 2  # photographs that are named

Cell = dict[str, Row]  # by the choice: its row, of one blur and one keep rate


def section(runs: list[Run]) -> list:
    """The answer, its averages, and every difference: a figure and a table."""
    runs = _asked(runs)
    if not runs:
        return []
    choices = list(dict.fromkeys(choice for run in runs for choice in _averages(run)))
    against_all = _against_all(runs)
    return [
        Text(_answer(runs)),
        *([Text(against_all)] if against_all else []),
        Items(_beside(runs)),
        _means(runs, choices),
        _figure(runs, choices),
        _each(runs, choices),
    ]


def answer(runs: list[Run]) -> str | None:
    """The section's first sentence, of the runs that can answer."""
    runs = _asked(runs)
    return _answer(runs) if runs else None


def _asked(runs: list[Run]) -> list[Run]:
    """Those that can answer: partly blurred images, a choice by sharpness and a random one at one keep rate."""
    objects = [run for run in in_order(runs) if run.config["task"] == "object"]
    return [run for run in objects if set(BY_SHARPNESS) & set(_averages(run))]


def _cells(run: Run) -> dict[tuple[str, float], Cell]:
    """{(blur, keep rate): its choices}, of those that have a random one; blurs as they come, keep rates from above."""
    rows = [row for row in run.rows if not row.adapted and not row.corruption]
    masked = [row for row in rows if row.keep_rate and row.mask["threshold"] is None and row.mask["drop"] == "below"]
    # Leaving out means one thing in all of them: that of the first.
    masked = [row for row in masked if row.mask["mode"] == masked[0].mask["mode"]]
    rows = masked + [row for row in rows if row.whole]
    blur_of = told_apart(rows, lambda row: row.blur, lambda key: not key.startswith(("mask.", "options.")))
    whole = {blur_of(row): row for row in rows if row.whole}
    cells = {}
    for key, alike in grouped(masked, lambda row: (blur_of(row), row.keep_rate)).items():
        cell = {row.mask["selector"]: row for row in alike}
        if "random" in cell:
            cells[key] = ({ALL: whole[key[0]]} if key[0] in whole else {}) | cell
    return dict(sorted(cells.items(), key=lambda item: -item[0][1]))


def _partly(run: Run, keep: float | None = None) -> list[Cell]:
    """The cells whose images are blurred in parts, at one keep rate or at all: elsewhere there is nothing to find."""
    cells = {key: cell for key, cell in _cells(run).items() if keep in (None, key[1])}
    return [cell for cell in cells.values() if words.where_of(cell["random"].condition["blur"]) != "whole"]


def _averages(run: Run, control: str = "random", keep: float | None = None) -> dict[str, intervals.Difference]:
    """{choice: its mean difference from the control} over the partly blurred conditions, if all of them have it."""
    cells = _partly(run, keep)
    found = {}
    for choice in cells[0] if cells else ():
        if choice != control and all({choice, control} <= cell.keys() for cell in cells):
            found[choice] = intervals.mean_difference([(cell[choice], cell[control]) for cell in cells])
    found = {choice: difference for choice, difference in found.items() if difference is not None}
    if cells and cells[0]["random"].result.get("n_photographs", FEW) < FEW:  # which tell nothing from chance
        return {choice: dataclasses.replace(difference, sign=0) for choice, difference in found.items()}
    return found


def _names(runs: list[Run]) -> Callable[[Run], str]:
    """What a run is called: its training, and its number where others have the same."""
    by_training = grouped(runs, lambda run: run.training)
    return lambda run: run.training + (f" (run {run.number})" if len(by_training[run.training]) > 1 else "")


def _keeps(runs: list[Run]) -> list[float]:
    return list(dict.fromkeys(keep for run in runs for _, keep in _cells(run)))


def _answer(runs: list[Run]) -> str:
    looks = [(run, c, d) for run in runs for c, d in _averages(run).items() if c in BY_SHARPNESS]
    better, worse = ([x for x in looks if x[2].sign == sign] for sign in (1, -1))
    if better:
        verdict = "It depends" if worse or len(better) < len(looks) else "Yes"
    elif worse:
        verdict = "No, chance chooses better" if len(worse) == len(looks) else "No"
    else:
        verdict = "Not that these images could tell"
    name = _names(runs)
    run, choice, most = max(looks, key=lambda x: x[2].mean)
    counts = f"{len(better)} more and {len(worse)} less often than a random choice of as many"
    return (
        f"{verdict}: of {len(looks)} choices of patches by sharpness ({_and(c for _, c, _ in looks)}; trained on: "
        f"{'; '.join(map(name, runs))}), averaged over {_conditions(_partly(runs[0]))}, {counts} are right, beyond "
        f"chance; the best of them, {choice} after training on {name(run)}, by {_points(most)}."
    )


def _against_all(runs: list[Run]) -> str:
    """Whether leaving patches out at all is worth it; "" where no condition shows all of them."""
    looks = [
        (run, keep, choice, found)
        for run in runs
        for keep in _keeps(runs)
        for choice, found in _averages(run, ALL, keep).items()
        if choice in BY_SHARPNESS
    ]
    if not looks:
        return ""
    better, worse = (sum(found.sign == sign for *_, found in looks) for sign in (1, -1))
    run, keep, choice, most = max(looks, key=lambda x: x[-1].mean)
    return (
        f"Beside all patches: of {len(looks)} such choices, each averaged over {_conditions(_partly(run, keep))} at "
        f"one keep rate, {better} are right more and {worse} less often than with all patches, beyond chance; the best "
        f"of them, {choice} with {100 * keep:g} % kept after training on {_names(runs)(run)}, by {_points(most)}. The "
        "best of several looks better than it is."
    )


def _means(runs: list[Run], choices: list[str]) -> Table:
    """Averages over the partly blurred conditions, beside a random choice and beside all patches."""
    body, masked = [], [choice for choice in choices if choice != ALL]
    for run in runs:
        for keep in _keeps([run]):
            beside_random, beside_all = _averages(run, keep=keep), _averages(run, ALL, keep)
            cells = [*(_cell(beside_random.get(c)) for c in choices), *(_cell(beside_all.get(c)) for c in masked)]
            body.append([run.training, f"{100 * keep:g} %", *cells, str(run.number)])
    caption = (
        f"Means over {_conditions(_partly(runs[0], _keeps(runs)[0]))} at each keep rate, percentage points, "
        f"{intervals.PAIRED}; a photograph counts once, however many conditions show it. {_of(choices)} Bold: more, "
        "italic: less than chance explains, each looked at on its own."
    )
    groups = (("", 2), ("minus a random choice of as many", len(choices)), ("minus all patches", len(masked)), ("", 1))
    return Table(["trained on", "kept", *choices, *masked, "run"], body, caption, left=2, groups=groups)


def _beside(runs: list[Run]) -> list[str]:
    """Of each training: how often it is right at all, what the blur's map and all patches give, what it is worth."""
    lines, name = [], _names(runs)
    for run in runs:
        cells, found = _partly(run), _averages(run)
        share = sum(cell["random"].result["top1"] for cell in cells) / len(cells)
        told = [f"Trained on {name(run)}: a random choice is right on {100 * share:.1f} %"]
        known = {"oracle": "the patches known to be least blurred (oracle)", ALL: "all patches"}
        told += [f"{what} {_points(found[choice])}" for choice, what in known.items() if choice in found]
        base = next((r for r in runs if r.training == "sharp" and _recipe(r) == _recipe(run)), run)
        pairs = _whole_beside(run, base) if run is not base else []
        if pairs and (gain := intervals.mean_difference(pairs)):
            told += [f"all patches of this training beside all patches of sharp {_points(gain)}"]
        lines.append("; ".join(told) + ".")
    return lines + _carried(runs)


def _recipe(run: Run) -> str:
    """What it was trained by, but for the images' blur."""
    return seeds.identity(run.config, "blur", "augmix", "loss.jsd", "eval")


def _whole_beside(run: Run, base: Run) -> list[tuple[Row, Row]]:
    """The same partly blurred images with all their patches, under both runs."""
    ours, theirs = ({cell[ALL].blur: cell[ALL] for cell in _partly(r) if ALL in cell} for r in (run, base))
    return [(ours[blur], theirs[blur]) for blur in ours if blur in theirs]


def _carried(runs: list[Run]) -> list[str]:
    """On which photographs the best choice by sharpness is better or worse: few may carry all of it."""
    looks = [(run, c, d) for run in runs for c, d in _averages(run).items() if c in BY_SHARPNESS]
    run, choice, _ = max(looks, key=lambda x: x[2].mean)
    each = intervals.on_each([(cell[choice], cell["random"]) for cell in _partly(run)])
    if len(each) <= CARRYING:
        return []
    most = sorted(each, key=lambda name: -abs(each[name]))
    told = ", ".join(f"{name} {intervals.signed(100 * each[name])}" for name in most[:CARRYING])
    others = [100 * each[name] for name in most[CARRYING:]]
    low, high = intervals.signed(min(others)), intervals.signed(max(others))
    line = f"Where {choice} after training on {_names(runs)(run)} differs from random most: {told} points"
    return [f"{line}; on the other {len(others)} photographs {low} to {high}."]


def _figure(runs: list[Run], choices: list[str]) -> Figure:
    """A panel for every training and keep rate: differences from random, blur by blur."""
    panels, step, name = {}, 0.7 / len(choices), _names(runs)
    blurs = list(dict.fromkeys(blur for run in runs for blur, _ in _cells(run)))
    for keep in _keeps(runs):
        for run in runs:
            cells = _cells(run)
            panel = panels[f"trained on {name(run)}, {100 * keep:g} % kept"] = []
            for i, choice in enumerate(choices):
                points = []
                for place, blur in enumerate(blurs):
                    cell = cells.get((blur, keep), {})
                    if found := intervals.difference(cell.get(choice), cell.get("random")):
                        low, high = found.ends or (min(found.seeds), max(found.seeds))
                        points.append((place + step * (i - (len(choices) - 1) / 2), found.mean, low, high))
                if points:
                    x, *values = zip(*points, strict=True)
                    panel.append(
                        figures.Line(choice, list(x), *([100 * v for v in value] for value in values), kind="marks")
                    )
    panels = {title: panel for title, panel in panels.items() if panel}
    ticks = range(len(blurs)), blurs
    drawing = figures.lines(panels, "blur", "points more than random", x_ticks=ticks, signed=True)
    caption = (
        "Top-1 minus that of a random choice of as many patches of the same images, percentage points; bars: 95 % "
        "intervals, of two seeds both values. Above the line a choice is worth more than chance."
    )
    return Figure("patches", drawing, caption, "Differences from a random choice, by blur, keep rate and training")


def _each(runs: list[Run], choices: list[str]) -> Table:
    body = []
    for run in runs:
        for (blur, keep), cell in _cells(run).items():
            found = [intervals.difference(cell.get(choice), cell["random"]) for choice in choices]
            random = intervals.accuracy(cell["random"])
            body.append([run.training, blur, f"{100 * keep:g} %", random, *map(_cell, found), str(run.number)])
    rows = [row for run in runs for cell in _cells(run).values() for row in cell.values()]
    header = ["trained on", "blur", "kept", "random, top-1 %", *choices, "run"]
    groups = (("", 4), ("minus random, points", len(choices)), ("", 1))
    return Table(header, body, f"{intervals.about(rows)} {_of(choices)}", left=3, groups=groups)


def _cell(found: intervals.Difference | None) -> str | Mark:
    if found is None:
        return ""
    return Mark(found.text, {1: "strong", -1: "em"}[found.sign]) if found.sign else found.text


def _of(choices: list[str]) -> str:
    meaning = {
        ALL: "all patches: no mask",
        "oracle": "oracle: the least blurred by the map that the blur was drawn by, which no photograph has",
        "sigma": "sigma: the least blurred by an estimate in pixels",
        "laplacian": "laplacian: the largest variance of the Laplacian",
        "stratified": "stratified: the same within each 2 × 2 cell, spread over the image",
    }
    told = "; ".join(meaning[c] for c in choices if c in meaning)
    return f"{told[:1].upper()}{told[1:]}." if told else ""


def _conditions(cells: list[Cell]) -> str:
    return f"{len(cells)} partly blurred condition{'s' * (len(cells) != 1)}"


def _points(found: intervals.Difference) -> str:
    return found.text.replace(" (", " points (", 1)


def _and(items) -> str:
    *head, last = list(dict.fromkeys(items)) or [""]
    return f"{', '.join(head)} and {last}" if head else last
