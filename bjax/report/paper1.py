"""Paper 1's five tables beside ours; matrix.py has the whole that they are cuts of.

Kim, Kim, Han: Image Classification of Blurred Images Without Deblurring. Which run feeds which cell follows from what
its config says (model, blur of the training images and of a condition, mask), never from a name.
"""

from bjax.report import intervals, seeds
from bjax.report.intervals import accuracy, signed
from bjax.report.render import Heading, Table, Text
from bjax.report.runs import Row, Run, number_text, told_apart
from bjax.report.words import is_noisy, is_papers

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
    return row.whole and not row.adapted and row.sigma == (0.0, 0.0) and not is_noisy(row.condition["blur"])


def is_blurred(row: Row) -> bool:
    """Paper 1's test blur, all patches seen."""
    return row.whole and _has_paper_blur(row)


def _has_paper_blur(row: Row) -> bool:
    return not row.adapted and row.sigma not in (None, (0.0, 0.0)) and is_papers(row.condition["blur"])


def tables(runs: list[Run]) -> list:
    """Paper 1's five tables, its numbers beside ours."""
    runs = [run for run in runs if run.config["task"] == "object"]
    by_number = {
        1: _baseline(runs, 1, "top1"),
        2: _baseline(runs, 2, "top5"),
        3: _by_training(runs, 3, "top1"),
        4: _by_training(runs, 4, "top5"),
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


def _baseline(runs: list[Run], number: int, metric: str) -> list:
    """Tables 1 and 2: models trained on sharp images, or given weights, on both test sets."""
    body, used = [], False
    for name, paper in PAPER[number].items():
        baselines = [r for r in runs if _family(r) == name and r.training in ("sharp", "as given")]
        lines = [
            line for run in baselines for line in _splits(run, lambda row: is_sharp(row) or is_blurred(row))
        ]
        for run, rows in lines:
            cells = {
                "sharp": next(filter(is_sharp, rows), None),
                "blurred": next(filter(is_blurred, rows), None),
            }
            numbers = [x for test in TESTED for x in _cell(paper[test], run, cells[test], metric)]
            shown = [row for row in cells.values() if row]
            body.append([run.model, _images(run, rows), *numbers, number_text(run, shown)])
            used = True
        if not lines:
            body.append([NAMES[name], "", *(x for t in TESTED for x in (f"{paper[t]:.2f}", "", "")), ""])
    header = ["model", "trained on → tested on", *CELL, *CELL, "run"]
    groups = (("", 2), *((title, 3) for title in TESTED.values()), ("", 1))
    caption = (
        f"Paper 1, table {number}: pretrained models, trained on all sharp images of ImageNet. Blurred: Gaussian "
        "of 19 taps, σ uniform in 1 to 2 pixels."
    )
    return [Table(header, body, caption, left=2, groups=groups)] if used else []


def _by_training(runs: list[Run], number: int, metric: str) -> list:
    """Tables 3 and 4: the same model and data under three training blurs, all on blurred test images."""
    body, used = [], False
    for name, paper in PAPER[number].items():
        alike = {}
        for run in runs:
            if _family(run) == name and run.training in TRAINED:
                for _, rows in _splits(run, is_blurred):
                    key = seeds.identity(run.config, "blur", "eval"), rows[0].condition["split"]
                    alike.setdefault(key, {}).setdefault(run.training, []).append((run, rows[0]))
        for by_training in alike.values():
            for i in range(max(map(len, by_training.values()))):
                cells = {
                    t: by_training[t][i] if len(by_training.get(t, ())) > i else (None, None) for t in TRAINED
                }
                chosen = [(run, row) for run, row in cells.values() if run]
                run, row = chosen[0]
                numbers = [x for t in ("blurred", "mix") for x in _cell(paper[t], *cells[t], metric)]
                control = _cell(None, *cells["sharp"], metric)[1]
                which = ", ".join(number_text(run, [row]) for run, row in chosen)
                body.append([run.model, _images(run, [row]), *numbers, control, which])
                used = True
        if not alike:
            empty = [x for t in ("blurred", "mix") for x in (f"{paper[t]:.2f}", "", "")]
            body.append([NAMES[name], "", *empty, "", ""])
    header = ["model", "trained on → tested on", *CELL, *CELL, "ours (95 %)", "runs"]
    groups = (("", 2), (TRAINED["blurred"], 3), (TRAINED["mix"], 3), (TRAINED["sharp"], 1), ("", 1))
    caption = (
        f"Paper 1, table {number}: from random weights, on 20 % of ImageNet. The paper compares with baselines trained "
        "on all of it; the control, sharp images of the same share and everything else alike, is ours."
    )
    return [Table(header, body, caption, left=2, groups=groups)] if used else []


def _patches_removed(runs: list[Run]) -> list:
    """Table 5: a ViT on blurred images, whole, and without the patches on either side of the threshold."""
    paper = PAPER[5]["vit"]
    body = []
    for run in runs:
        if _family(run) != "vit":
            continue
        for _, rows in _splits(run, lambda row: is_blurred(row) or _removes(row) is not None):
            lines = [("original", row, paper["original"]) for row in rows if is_blurred(row)]
            removing = [row for row in rows if _removes(row)]
            what_of = told_apart(removing, _removes)
            lines += [(what_of(row), row, paper["removed"]) for row in removing]
            for what, row, number in lines:
                control = row.mask["mode"] != "none" and row.mask["selector"] == "random"
                kept = f"{100 * row.result['kept']:.1f}" if "kept" in row.result else ""
                cell = _cell(None if control else number, run, row, "top1")
                who = [run.model, run.trained_on, _tested(run, [row])]
                random = None if control else next((r for r in rows if _is_control(r, row)), None)
                paired = intervals.difference(row, random)
                beside = "" if paired is None else paired.text
                body.append([*who, what, kept, *cell, beside, number_text(run, [row])])
    header = ["model", "trained on", "tested on", "patches", "kept %", *CELL, "− random", "run"]
    caption = (
        "Paper 1, table 5, which names neither the ViT's size nor its training. It removes patches “above 100”, "
        "although a low variance of the Laplacian means blurry: below 100 are the blurry ones, above 100 its wording. "
        "Neither polarity is proven to be what the authors ran; both stand beside 51.75, each with a random choice of "
        "as many patches, which the paper lacks, and with the share of patches kept."
    )
    if any(line[-2] for line in body):
        caption += f" − random: the difference from that choice, percentage points, {intervals.PAIRED}."
    return [Table(header, body, caption, left=4)] if body else []


def _removes(row: Row) -> str | None:
    """Which patches a condition of table 5 removes; None for any other condition."""
    mask = row.mask
    ours = mask["mode"] != "none" and mask["threshold"] == PAPER_THRESHOLD and mask["keep_rate"] is None
    if not ours or not _has_paper_blur(row) or mask["selector"] not in ("laplacian", "random"):
        return None
    how = {"zero_pixels": ""}.get(mask["mode"], f", {mask['mode']}") + (
        ", own borders" if mask.get("scope") == "patch" else ""
    )
    if mask["selector"] == "random":
        return f"as many as {mask['drop']} 100, at random{how}"
    return f"{mask['drop']} 100 removed{' (blurry)' if mask['drop'] == 'below' else ' (wording)'}{how}"


def _is_control(row: Row, masked: Row) -> bool:
    """Whether `row` is the random choice of as many patches as `masked` leaves."""
    return row.condition == {**masked.condition, "mask": {**masked.mask, "selector": "random"}}


def _family(run: Run) -> str:
    name = run.config["model"]["name"]
    return FAMILY.get(name, name)


def _splits(run: Run, wanted) -> list[tuple[Run, list[Row]]]:
    """The rows that are `wanted`, by the split they were measured on."""
    by_split = {}
    for row in filter(wanted, run.rows):
        by_split.setdefault(row.condition["split"], []).append(row)
    return [(run, rows) for rows in by_split.values()]


def _cell(paper: float | None, run: Run | None, row: Row | None, metric: str) -> list[str]:
    """Paper, ours with its interval, difference; "" for what there is not."""
    shown = "" if paper is None else f"{paper:.2f}"
    if row is None or metric not in row.result:
        return [shown, "", ""]
    ours, digits = 100 * row.result[metric], 2 if row.result["n"] >= 10_000 else 1
    difference = ""
    if paper is not None and run.config["data"]["name"] == "imagenet2012":
        difference = signed(ours - paper, digits)
    return [shown, accuracy(row, metric), difference]


def _images(run: Run, rows: list[Row]) -> str:
    return f"{run.origin} → {_tested(run, rows)}"


def _tested(run: Run, rows: list[Row]) -> str:
    return f"{run.config['data']['name']} {rows[0].condition['split']}, {rows[0].result['n']:,}"
