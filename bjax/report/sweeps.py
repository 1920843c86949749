"""Sweeps: what each point of a grid reached, as a matrix where the grid has two axes."""

import json

import numpy as np

from bjax.report import figures, intervals
from bjax.report.intervals import accuracy
from bjax.report.read import axes
from bjax.report.render import Figure, Heading, Items, Table, Text
from bjax.report.runs import Run, images_text, number_text
from bjax.report.words import leaves


def grids(runs: list[Run]) -> list:
    """Every sweep: its axes, and the results of its points, aggregated over seeds."""
    blocks = []
    for number, name in enumerate(dict.fromkeys(run.sweep for run in runs if run.sweep), 1):
        points = [run for run in runs if run.sweep == name]
        keys = axes([dict(run.point) for run in points])
        names = dict.fromkeys(row.name for run in points for row in run.rows)
        # A grid with a condition that few points have, such as the curves of one model, is mostly empty.
        conditions = [c for c in names if 2 * sum(run.find(c) is not None for run in points) >= len(points)]
        seeds = sorted({len(run.seeds) for run in points})
        fixed = [f"{k} = {v}" for k, v in points[0].point if all((k, v) in run.point for run in points)]
        about = f"Points: {len(points)}; seeds of each: {' or '.join(map(str, seeds))}"
        blocks += [Heading(name, 3), Text(about + (f"; {', '.join(fixed)} for all." if fixed else "."))]
        if len(conditions) < len(names):
            blocks.append(Text("Conditions of fewer than half of the points are left to the other sections."))
        differing = [text for c in conditions if (text := _differs(c, points))]
        if differing:
            blocks += [Text("Conditions that themselves differ from point to point:"), Items(differing)]
        values = {key: _sorted(dict(run.point).get(key, "") for run in points) for key in keys}
        if len(keys) == 2 and min(map(len, values.values())) > 1:
            blocks += _matrices(points, keys, values, conditions, number)
        else:
            blocks.append(_list(points, keys, conditions))
    return blocks


def _list(runs: list[Run], keys: list[str], conditions: list[str]) -> Table:
    """A row for every point."""
    body = []
    for run in runs:
        rows = [run.find(condition) for condition in conditions]
        point = [dict(run.point).get(key, "") for key in keys]
        body.append([*point, *map(accuracy, rows), number_text(run, [*filter(None, rows)])])
    return Table([*keys, *conditions, "run"], body, _caption(runs, conditions), left=len(keys))


def _matrices(runs: list[Run], keys: list[str], values: dict, conditions: list[str], number: int) -> list:
    """A matrix for every condition, and all of them as heat maps."""
    down, across = sorted(keys, key=lambda k: len(values[k]))
    at = {(dict(run.point).get(down, ""), dict(run.point).get(across, "")): run for run in runs}
    maps, body = {}, []
    for condition in conditions:
        shares = []
        for d in values[down]:
            rows = [at[d, a].find(condition) if (d, a) in at else None for a in values[across]]
            shares.append([100 * row.result["top1"] if row else np.nan for row in rows])
            body.append([condition, d, *map(accuracy, rows)])
        maps[condition] = np.array(shares)
    header = ["condition", down, *values[across]]
    groups = (("", 2), (across, len(values[across])))
    table = Table(header, body, _caption(runs, conditions), left=2, groups=groups)
    drawing = figures.heat_maps(maps, values[down], values[across], down, across)
    caption = f"Top-1 accuracy in per cent, {_images(runs)} images"
    caption += "; one scale for all conditions, dark is high."
    return [table, Figure(f"sweep{number}", drawing, caption, f"Top-1 accuracy over {down} and {across}")]


def _caption(runs: list[Run], conditions: list[str]) -> str:
    rows = [row for run in runs for c in conditions if (row := run.find(c))]
    return f"Top-1 in per cent of {_images(runs)} images. {intervals.about(rows)} Empty: no finished run."


def _images(runs: list[Run]) -> str:
    return images_text(row for run in runs for row in run.rows)


def _differs(name: str, runs: list[Run]) -> str | None:
    """What of a condition is another from point to point."""
    conditions = [leaves(row.condition) for run in runs if (row := run.find(name))]
    keys = [k for k in conditions[0] if len({json.dumps(x.get(k)) for x in conditions}) > 1]
    texts = [f"{k} = {', '.join(_sorted(str(x.get(k)) for x in conditions))}" for k in keys]
    return f"{name}: {'; '.join(texts)}" if texts else None


def _sorted(values) -> list[str]:
    """Numbers by size; words as they come."""
    unique = list(dict.fromkeys(values))
    try:
        return sorted(unique, key=float)
    except ValueError:
        return unique
