"""What `small` gives over the recipe for ImageNet in the same time on this machine, as a page.

    python -m benchmarks.small --images=60,600 --minutes=10 --out=small.md

Trained on crops of the embedded photographs, as many of each, and tested on the 224 crops of `test`, from parts of
them that no training crop shows. A few steps of each recipe are timed first; then both get as many as fill the minutes.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bjax.data import loader, prepare
from bjax.data.builder import cores
from bjax.errors import Parser, UserError, as_command, new_file, positive
from bjax.report import pairs, read
from bjax.report.intervals import accuracy
from bjax.runtime.workdir import commit

TIMED = 5  # steps, the first of which is not counted
SIDE = 96  # pixels, of what the model sees
CONFIG = "vit_mask.py"
HEADER = ("images", "recipe", "batch", "steps", "minutes", "sharp %", "blurred %", "difference on sharp")


@as_command
def main(argv: list[str]) -> None:
    parser = Parser("python -m benchmarks.small", __doc__.partition("\n")[0])
    parser.add_argument("--images", type=_numbers, default="60,600", help="training images (default: %(default)s)")
    parser.add_argument("--minutes", type=positive, default=10, help="of training each (default: %(default)s)")
    parser.add_argument("--steps", type=positive, help="of each, instead of the minutes")
    parser.add_argument("--out", type=new_file, help="where the page goes too")
    args = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number in args.images:
            rows += compared(number, Path(folder), args)
    page = _page(rows, argv)
    print(page)
    if args.out:
        args.out.write_text(page)


def compared(number: int, folder: Path, args: argparse.Namespace) -> list[tuple[str, ...]]:
    """The rows of `HEADER` of as many images, one a recipe."""
    name, rows, first = prepared(number, folder), [], None
    for recipe, flags in recipes(number).items():
        workdir = folder / f"{name}_{recipe}"
        flags = [*flags, f"--config.data.name={name}", f"--config.data.data_dir={folder}"]
        steps = args.steps or fitting(flags, workdir.with_suffix(".timed"), 60 * args.minutes)
        seconds = train(flags, workdir, steps)
        (run,), _ = read.load([workdir])
        sharp, blurred = pairs.sharp_row(run), pairs.blurred_row(run)
        gain = pairs.Pair("", sharp, first).points if first else ""
        cells = f"{run.config['batch_size']}", f"{steps}", f"{seconds / 60:.1f}", accuracy(sharp), accuracy(blurred)
        rows.append((f"{number}", recipe, *cells, gain))
        print(" | ".join(rows[-1]), flush=True)
        first = first or sharp
    return rows


def prepared(number: int, folder: Path) -> str:
    """The name of a data set of as many training crops, by turns of each photograph, written below `folder`."""
    train, by_class = loader.open_split("photos", "train"), {}
    if number > len(train):
        raise UserError(f"--images={number}: there are {len(train)} training crops")
    for image in train:
        by_class.setdefault(image["label"], []).append(image)
    by_turns = (image for turn in itertools.zip_longest(*by_class.values()) for image in turn if image)
    splits = {"train": itertools.islice(by_turns, number), "test": loader.open_split("photos", "test")}
    for split, image in ((split, image) for split, images in splits.items() for image in images):
        place = folder / f"images{number}" / split / train.class_names[image["label"]]
        place.mkdir(parents=True, exist_ok=True)
        (place / Path(image["file_name"]).name).write_bytes(image["image"])
    name = f"own{number}"
    command = ["folder", name, f"--source={folder / f'images{number}'}", f"--data_dir={folder}"]
    if prepare.main(command):
        raise UserError(f"{name} could not be prepared")
    return name


def recipes(number: int) -> dict[str, list[str]]:
    """{name: flags}; of ImageNet's only what does not fit is changed: the batch, the size and the split."""
    shared = ["--config.eval_only=sharp,blurred", "--config.checkpoint_every=1000000", "--config.gallery=0"]
    sizes = {"batch_size": min(1024, number), "eval_batch_size": 112, "data.image_size": SIDE, "data.resize": 110}
    imagenet = [f"--config.{key}={value}" for key, value in (sizes | {"data.threads": cores()}).items()]
    return {
        "ImageNet's": [f"--config={CONFIG}:eval_split=test", *imagenet, *shared],
        "small": [f"--config={CONFIG}:small", f"--config.data.image_size={SIDE}", *shared],
    }


def fitting(flags: list[str], workdir: Path, seconds: float) -> int:
    """How many steps take as long, of the median of a few."""
    train([*flags, "--config.log_every=1", "--config.eval.sharp.split=test[:14]"], workdir, TIMED)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rates = [row["images_per_second"] for row in rows if "images_per_second" in row]
    batch = json.loads((workdir / "config.json").read_text())["batch_size"]
    return max(2, round(seconds * statistics.median(rates[1:]) / batch))


def train(flags: list[str], workdir: Path, steps: int) -> float:
    """Trains for as many steps and evaluates; returns the seconds that all of it took."""
    command = [sys.executable, "-m", "bjax.main", *flags, f"--workdir={workdir}", f"--config.steps={steps}"]
    since = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return time.perf_counter() - since


def _numbers(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


def _page(rows: list[tuple[str, ...]], argv: list[str]) -> str:
    table = "\n".join("| " + " | ".join(row) + " |" for row in (HEADER, ["---"] * len(HEADER), *rows))
    return f"""\
# `small` beside the recipe for ImageNet

`python -m benchmarks.small {" ".join(argv)}` on commit {commit()}, {cores()} CPU cores: `{CONFIG}` (ViT-S/16,
half of the patches in training) from random weights on crops of {SIDE} pixels of the 14 embedded photographs, a class
each. Tested on the 224 crops of the split `test`, from parts of the photographs that no training crop shows. Both
recipes were given the steps that fill the same time; minutes are of the whole command, with start, compilation and
evaluation. Of ImageNet's recipe only what cannot be used is changed: batch, image size, split and threads. Intervals
are over photographs (docs/intervals.md), the difference is paired.

{table}
"""


if __name__ == "__main__":
    sys.exit(main())
