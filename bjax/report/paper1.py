"""Paper 1's five tables beside ours; matrix.py has the whole that they are cuts of.

Kim, Kim, Han: Image Classification of Blurred Images Without Deblurring. Which run feeds which cell follows from what
its config says (model, blur of the training images and of a condition, mask), never from a name.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bjax.report import intervals, seeds
from bjax.report.intervals import accuracy, signed
from bjax.report.render import Heading, Table, Text, condensed, without_empty
from bjax.report.runs import Row, Run, firsts, grouped, number_text, told_apart
from bjax.report.words import is_papers

# {table: {model: {column: per cent}}}; 1 and 3 are top-1, 2 and 4 top-5, 5 is "classification accuracy"
PAPER = {
    1: {
        "resnet50": {"sharp": 76.13, "blurred": 63.16},
        "vgg19": {"sharp": 72.38, "blurred": 54.12},
        "googlenet": {"sharp": 69.78, "blurred": 55.03},
    },
    2: {
        "resnet50": {"sharp": 92.86, "blurred": 85.08},
        "vgg19": {"sharp": 90.88, "blurred": 78.19},
        "googlenet": {"sharp": 89.53, "blurred": 79.14},
    },
    3: {
        "resnet50": {"blurred": 58.69, "mix": 61.24},
        "vgg19": {"blurred": 46.33, "mix": 48.19},
        "googlenet": {"blurred": 48.97, "mix": 51.62},
    },
    4: {
        "resnet50": {"blurred": 80.12, "mix": 83.72},
        "vgg19": {"blurred": 71.86, "mix": 73.55},
        "googlenet": {"blurred": 73.42, "mix": 76.98},
    },
    5: {"vit": {"original": 58.04, "removed": 51.75}},
}
PAPER_THRESHOLD = 100.0  # of the Laplacian's variance
FAMILY = {"vgg19_bn": "vgg19"}  # a model with BatchNorm stands in that row, under its own name
NAMES = {"resnet50": "ResNet50", "vgg19": "VGG19", "googlenet": "GoogLeNet", "vit": "ViT"}
TITLES = {
    1: "Table 1. Top-1, trained on sharp images",
    2: "Table 2. Top-5, trained on sharp images",
    3: "Table 3. Top-1 on blurred test images",
    4: "Table 4. Top-5 on blurred test images",
    5: "Table 5. Top-1 of the ViT with patches removed",
}
TRAINED = {
    "blurred": "trained on blurred",
    "mix": "trained on blurred + sharp",
    "sharp": "trained on sharp (control)",
}
TESTED = {"sharp": "sharp test images", "blurred": "blurred test images"}
CELL = ("paper", "ours (95 %)", "difference")


def is_sharp(row: Row) -> bool:
    return row.whole and not row.adapted and row.one_sigma == 0


def is_blurred(row: Row) -> bool:
    """Paper 1's test blur, all patches seen."""
    return row.whole and _has_paper_blur(row)


def _has_paper_blur(row: Row) -> bool:
    return not row.adapted and row.sigma not in (None, (0.0, 0.0)) and is_papers(row.condition["blur"])


def tables(runs: list[Run]) -> list:
    """Paper 1's five tables, its numbers beside ours; of runs on its images, ImageNet, or of its own sweep."""
    runs = [run for run in runs if run.config["task"] == "object"]
    if not any(run.config["data"]["name"] == "imagenet2012" or _is_papers_sweep(run) for run in runs):
        return []
    by_number = {
        1: _beside(runs, 1, "top1", _baselines, TESTED, PRETRAINED),
        2: _beside(runs, 2, "top5", _baselines, TESTED, PRETRAINED),
        3: _beside(runs, 3, "top1", _trainings, TRAINED, FROM_SCRATCH),
        4: _beside(runs, 4, "top5", _trainings, TRAINED, FROM_SCRATCH),
        5: _patches_removed(runs),
    }
    shown = {number: blocks for number, blocks in by_number.items() if blocks}
    if not shown:
        return []
    rows = [row for run in runs for row in run.rows if is_sharp(row) or is_blurred(row) or _removes(row)]
    blocks = [Text(f"{ABOUT} {intervals.about(rows)} {NUMBERS}")]
    for number, content in shown.items():
        blocks += [Heading(TITLES[number], 3), *content]
    missing = [TITLES[number] for number in by_number if number not in shown]
    if missing:
        blocks.append(Text(f"No run here feeds {'; '.join(missing)}."))
    return blocks


ABOUT = (
    "Per cent. Empty: no run for that cell. The difference, ours − paper's, is given on ImageNet alone: accuracy on "
    "other images and classes answers another question, and its distance from the paper's number means nothing."
)
NUMBERS = "Runs go by their numbers above, 3 ×5 being the five seeds of run 3."
PRETRAINED = (
    "pretrained models, trained on all sharp images of ImageNet. Blurred: Gaussian "
    "of 19 taps, σ uniform in 1 to 2 pixels."
)
FROM_SCRATCH = (
    "from random weights, on 20 % of ImageNet. The paper compares with baselines trained "
    "on all of it; the control, sharp images of the same share and everything else alike, is ours."
)
Lines = Iterator[tuple[str, str, dict[str, tuple[Run, Row]]]]  # model, images, {column: what stands there}


def _beside(runs: list[Run], number: int, metric: str, lines_of: Callable, titles: dict[str, str], about: str) -> list:
    """Tables 1 to 4: a line for every one of a model's runs, an empty one for a model without.

    titles: of the columns. Of one that the paper lacks, our control, there is our number alone.
    """
    body, used = [], False
    known = {column for paper in PAPER[number].values() for column in paper}
    for name, paper in PAPER[number].items():
        lines = list(lines_of([run for run in runs if _family(run) == name]))
        used |= bool(lines)
        for model, images, cells in lines or [(NAMES[name], "", {})]:
            numbers = []
            for column in titles:
                cell = _cell(paper.get(column), *cells.get(column, (None, None)), metric)
                numbers += cell if column in known else cell[1:2]
            by_run = grouped(cells.values(), lambda cell: cell[0].number).values()
            which = [number_text(of_run[0][0], [row for _, row in of_run]) for of_run in by_run]
            body.append([model, images, *numbers, ", ".join(which)])
    parts = {title: CELL if column in known else CELL[1:2] for column, title in titles.items()}
    header = ["model", "trained on → tested on", *sum(parts.values(), ())]
    header.append("runs" if titles is TRAINED else "run")
    groups = (("", 2), *((title, len(cell)) for title, cell in parts.items()), ("", 1))
    table = Table(header, body, f"Paper 1, table {number}: {about}", left=2, groups=groups)
    return [without_empty(table, "difference")] if used else []


def _baselines(runs: list[Run]) -> Lines:
    """Tables 1 and 2: models trained on sharp images, or given weights, on both test sets."""
    for run in runs:
        if run.training in ("sharp", "as given"):
            for rows in _splits(run, lambda row: is_sharp(row) or is_blurred(row)):
                cells = firsts(rows, lambda row: "sharp" if is_sharp(row) else "blurred")
                yield run.model, _images(run, rows[0]), {test: (run, row) for test, row in cells.items()}


def _trainings(runs: list[Run]) -> Lines:
    """Tables 3 and 4: the same model and data under three training blurs, all on blurred test images."""
    tested = [(r, rows[0]) for r in runs if r.training in TRAINED for rows in _splits(r, is_blurred)]
    alike = grouped(tested, lambda x: (seeds.identity(x[0].config, "blur", "eval"), x[1].condition["split"]))
    for pairs in alike.values():
        by_training = grouped(pairs, lambda pair: pair[0].training)
        for line in itertools.zip_longest(*(by_training.get(training, ()) for training in TRAINED)):
            cells = {training: pair for training, pair in zip(TRAINED, line, strict=True) if pair}
            run, row = next(iter(cells.values()))
            yield run.model, _images(run, row), cells


def _patches_removed(runs: list[Run]) -> list:
    """Table 5: a ViT on blurred images, whole, and without the patches on either side of the threshold."""
    paper, body = PAPER[5]["vit"], []
    for run in runs:
        if _family(run) != "vit":
            continue
        for rows in _splits(run, lambda row: is_blurred(row) or _removes(row) is not None):
            lines = [("original", row, paper["original"]) for row in rows if is_blurred(row)]
            removing = [row for row in rows if _removes(row)]
            what_of = told_apart(removing, _removes)
            lines += [(what_of(row), row, paper["removed"]) for row in removing]
            for what, row, number in lines:
                control = row.mask["mode"] != "none" and row.mask["selector"] == "random"
                kept = f"{100 * row.result['kept']:.1f}" if "kept" in row.result else ""
                cell = _cell(None if control else number, run, row, "top1")
                random = None if control else next((r for r in rows if _is_control(r, row)), None)
                paired = intervals.difference(row, random)
                who = [run.model, run.trained_on, _tested(run, row), what, kept]
                body.append([*who, *cell, paired.text if paired else "", number_text(run, [row])])
    header = ["model", "trained on", "tested on", "patches", "kept %", *CELL, "− random", "run"]
    caption = (
        "Paper 1, table 5, which names neither the ViT's size nor its training. It removes patches “above 100”, "
        "although a low variance of the Laplacian means blurry: below 100 are the blurry ones, above 100 its wording. "
        "Neither polarity is proven to be what the authors ran; both stand beside 51.75, each with a random choice of "
        "as many patches, which the paper lacks, and with the share of patches kept."
    )
    if any(line[-2] for line in body):
        caption += f" − random: the difference from that choice, percentage points, {intervals.PAIRED}."
    return [without_empty(condensed(Table(header, body, caption, left=4)), "difference")] if body else []


def _removes(row: Row) -> str | None:
    """Which patches a condition of table 5 removes; None for any other condition."""
    mask = row.mask
    ours = mask["mode"] != "none" and mask["threshold"] == PAPER_THRESHOLD and mask["keep_rate"] is None
    if not ours or not _has_paper_blur(row) or mask["selector"] not in ("laplacian", "random"):
        return None
    how = {"zero_pixels": ""}.get(mask["mode"], f", {mask['mode']}")
    how += ", own borders" * (mask.get("scope") == "patch")
    if mask["selector"] == "random":
        return f"as many as {mask['drop']} 100, at random{how}"
    return f"{mask['drop']} 100 removed{' (blurry)' if mask['drop'] == 'below' else ' (wording)'}{how}"


def _is_control(row: Row, masked: Row) -> bool:
    """Whether `row` is the random choice of as many patches as `masked` leaves."""
    return row.condition == {**masked.condition, "mask": {**masked.mask, "selector": "random"}}


def _is_papers_sweep(run: Run) -> bool:
    """Of configs/papers.py."""
    return Path(run.sweep_config.partition(":")[0]).name == "papers.py"


def _family(run: Run) -> str:
    name = run.config["model"]["name"]
    return FAMILY.get(name, name)


def _splits(run: Run, wanted: Callable[[Row], object]) -> Iterable[list[Row]]:
    """The rows that are `wanted`, by the split they were measured on."""
    return grouped(filter(wanted, run.rows), lambda row: row.condition["split"]).values()


def _cell(paper: float | None, run: Run | None, row: Row | None, metric: str) -> list[str]:
    """Paper, ours with its interval, difference; "" for what there is not."""
    shown = "" if paper is None else f"{paper:.2f}"
    if row is None or metric not in row.result:
        return [shown, "", ""]
    ours, digits = 100 * row.result[metric], 2 if row.result["n"] >= 10_000 else 1
    compared = paper is not None and run.config["data"]["name"] == "imagenet2012"
    return [shown, accuracy(row, metric), signed(ours - paper, digits) if compared else ""]


def _images(run: Run, row: Row) -> str:
    return f"{run.origin} → {_tested(run, row)}"


def _tested(run: Run, row: Row) -> str:
    return f"{run.config['data']['name']} {row.condition['split']}, {row.result['n']:,}"
