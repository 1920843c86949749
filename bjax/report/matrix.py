"""Model × training blur × test condition: everything that was evaluated, of which paper 1's tables are five cuts."""

from bjax.report import figures, intervals, seeds
from bjax.report.intervals import accuracy
from bjax.report.render import Figure, Heading, Table, condensed
from bjax.report.runs import Run, firsts, grouped, images_text, in_order, number_text, told_apart


def matrix(runs: list[Run]) -> list:
    """Model × training blur × test condition; a table for every data set."""
    blocks = []
    runs = [run for run in runs if run.config["task"] == "object"]
    by_data = grouped(runs, lambda run: run.config["data"]["name"])
    for number, (data, group) in enumerate(by_data.items(), 1):
        rows = {run.number: [row for row in run.rows if row.in_matrix] for run in group}
        shown = [row for some in rows.values() for row in some]
        several = len({row.condition["split"] for row in shown}) > 1
        name = told_apart(shown, lambda r, s=several: f"{r.condition['split']}: " * s + r.label)
        columns = list(dict.fromkeys(map(name, shown)))
        if not columns:
            continue
        group, body = in_order(group), []
        for run in group:
            for adapted in (False, True):
                by_name = firsts([row for row in rows[run.number] if row.adapted == adapted], name)
                if by_name:
                    what = [run.model, run.regimen + ", bn_adapt" * adapted, run.origin]
                    cells = [accuracy(by_name.get(c)) for c in columns]
                    body.append([*what, *cells, number_text(run, list(by_name.values()))])
        if len(by_data) > 1:
            blocks.append(Heading(data, 3))
        header = ["model", "training blur", "trained on", *columns, "run"]
        caption = (
            f"Top-1 in per cent, {images_text(shown)} images of {data}. {intervals.about(shown)} Dropped are patches "
            "below or above that variance of the Laplacian."
        )
        blocks.append(condensed(Table(header, body, caption, left=3)))
        drawn = _matrix_figure(group, rows, name, number, data)
        blocks += [drawn] if drawn else []
    return blocks


def _matrix_figure(runs: list[Run], rows: dict, name, number: int, data: str) -> Figure | None:
    """A panel for every model that was trained on more than one blur."""
    trainings = [t for t in ("sharp", "blurred", "mix") if any(run.training == t for run in runs)]
    told = [run for run in runs if run.regimen == run.training in trainings]
    alike = grouped(told, lambda run: seeds.identity(run.config, "blur", "eval"))  # but for their blur
    alike = [grouped(some, lambda run: run.training) for some in alike.values()]
    alike = [by_training for by_training in alike if len(by_training) > 1]
    titles = [f"{run.model} · {run.origin}" for run in (next(iter(by.values()))[0] for by in alike)]
    panels, shown = {}, []
    for title, by_training in zip(titles, alike, strict=True):
        by_condition = {}
        for place, training in enumerate(trainings):
            tested = [row for run in by_training.get(training, ()) for row in rows[run.number]]
            whole = firsts([row for row in tested if row.whole and not row.adapted], name)
            for label, row in whole.items():
                by_condition.setdefault(label, []).append((place, row))
        panel = []
        for i, (label, points) in enumerate(by_condition.items()):
            shift = 0.08 * (i - (len(by_condition) - 1) / 2)
            values = [x + shift for x, _ in points], [100 * row.result["top1"] for _, row in points]
            panel.append(figures.Line(label, *values, *intervals.bars([row.result for _, row in points])))
            shown += [row for _, row in points]
        if titles.count(title) > 1:
            numbers = sorted(run.number for some in by_training.values() for run in some)
            title += f" (runs {', '.join(map(str, numbers))})"
        panels[title] = panel
    if not panels:
        return None
    axes = "blur of the training images", "top-1 accuracy, %"
    drawing = figures.lines(panels, *axes, x_ticks=(range(len(trainings)), trainings))
    caption = f"Top-1 accuracy on {images_text(shown)} images of {data}; bars: the table's 95 % intervals."
    return Figure(f"matrix{number}", drawing, caption, "Top-1 accuracy by blur of the training images")
