"""Model × training blur × test condition: everything that was evaluated, of which paper 1's tables are five cuts."""

from bjax.report import figures, intervals, seeds
from bjax.report.intervals import accuracy
from bjax.report.render import Figure, Heading, Table
from bjax.report.runs import Run, firsts, images_text, in_matrix, in_order, number_text, told_apart


def matrix(runs: list[Run]) -> list:
    """Model × training blur × test condition; a table for every data set."""
    blocks = []
    by_data = {}
    for run in runs:
        if run.config["task"] == "object":
            by_data.setdefault(run.config["data"]["name"], []).append(run)
    for number, (data, own) in enumerate(by_data.items(), 1):
        rows = {run.number: [row for row in run.rows if in_matrix(row)] for run in own}
        every = [row for found in rows.values() for row in found]
        several = len({row.condition["split"] for row in every}) > 1
        name = told_apart(every, lambda r, s=several: f"{r.condition['split']}: {r.label}" if s else r.label)
        columns = list(dict.fromkeys(map(name, every)))
        if not columns:
            continue
        own = in_order(own)
        body = []
        for run in own:
            for adapted in (False, True):
                found = firsts([row for row in rows[run.number] if row.adapted == adapted], name)
                if found:
                    what = [
                        run.model,
                        run.regimen + (", bn_adapt" if adapted else ""),
                        run.origin,
                    ]
                    cells = [accuracy(found.get(c)) for c in columns]
                    body.append([*what, *cells, number_text(run, list(found.values()))])
        if len(by_data) > 1:
            blocks.append(Heading(data, 3))
        header = [
            "model",
            "training blur",
            "trained on",
            *columns,
            "run",
        ]
        caption = (
            f"Top-1 in per cent, {images_text(every)} images of {data}. {intervals.about(every)} Dropped are patches "
            "below or above that variance of the Laplacian."
        )
        blocks.append(Table(header, body, caption, left=3))
        drawn = _matrix_figure(own, rows, name, number, data)
        blocks += [drawn] if drawn else []
    return blocks


def _matrix_figure(runs: list[Run], rows: dict, name, number: int, data: str) -> Figure | None:
    """A panel for every model that was trained on more than one blur."""
    trainings = [t for t in ("sharp", "blurred", "mix") if any(run.training == t for run in runs)]
    alike = {}  # runs that differ in their blur alone, by it
    for run in runs:
        if run.regimen == run.training in trainings:
            found = alike.setdefault(seeds.identity(run.config, "blur", "eval"), {})
            found.setdefault(run.training, []).append(run)
    alike = [found for found in alike.values() if len(found) > 1]
    titles = [f"{run.model} · {run.origin}" for run in (next(iter(found.values()))[0] for found in alike)]
    panels, shown = {}, []
    for title, found in zip(titles, alike, strict=True):
        by_condition = {}
        for training in sorted(found, key=trainings.index):
            every = [row for run in found[training] for row in rows[run.number]]
            whole = firsts([row for row in every if row.whole and not row.adapted], name)
            for label, row in whole.items():
                by_condition.setdefault(label, []).append((trainings.index(training), row))
        panel = []
        for i, (label, points) in enumerate(by_condition.items()):
            shift = 0.08 * (i - (len(by_condition) - 1) / 2)
            values = [100 * row.result["top1"] for _, row in points]
            low, high = intervals.bars([row.result for _, row in points])
            panel.append(figures.Line(label, [x + shift for x, _ in points], values, low, high))
        if titles.count(title) > 1:
            numbers = sorted(run.number for those in found.values() for run in those)
            title += f" (runs {', '.join(map(str, numbers))})"
        panels[title] = panel
        shown += [row for points in by_condition.values() for _, row in points]
    if not panels:
        return None
    drawing = figures.lines(
        panels, "blur of the training images", "top-1 accuracy, %", x_ticks=(range(len(trainings)), trainings)
    )
    caption = f"Top-1 accuracy on {images_text(shown)} images of {data}; bars: the table's 95 % intervals."
    return Figure(f"matrix{number}", drawing, caption, "Top-1 accuracy by blur of the training images")
