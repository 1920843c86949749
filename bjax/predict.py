"""A photograph in; classes or the type of its blur, its sharpness and what a mask leaves of it out.

    python -m bjax.predict PHOTO_OR_FOLDER … --workdir=RUN [--condition=NAME] [--out=DIR] [--json]

    predict = bjax.predict.load("runs/vit_mask_demo")
    predict("photo.jpg").top(5)

The model is that of the newest checkpoint of RUN (the averaged weights where there are any), or of the weight file that
RUN was evaluated with. Photographs are JPEG, PNG or WebP files (TIFF, BMP, PPM and GIF too, where they are named),
turned upright as their EXIF data says. Transparency is dropped, of 16 bits the upper 8 are seen, of an animation the
first frame.

A run with a scale (data.resize) sees a photograph as its evaluation saw the dataset's images: the shorter side resized,
the middle cut out. That is what its accuracy was measured on; how much of the photograph it shows is printed. A run
without one is shown the whole photograph, in up to 16 overlapping tiles over which probabilities are averaged: pixels
as they are as far as 16 tiles reach, and scaled down to that where the photograph is larger.

A photograph is read whole, in some 14 bytes of memory a pixel (WebP: 22), and several at a time in threads, as long as
they take no more together than the largest alone, 3.9 GB. Those of more than 178,956,970 pixels (2 ×
`PIL.Image.MAX_IMAGE_PIXELS`) are refused by what their header says, before memory is taken; so are files above 1 GiB,
damaged ones, and what is no regular file. Each of these is a line on stderr, the others go on, and the exit code is 1.

Where the run tells blur types apart, nothing is scaled, since that would change the blur. A photograph is seen in up to
16 crops, those with the most detail (`bjax.data.views.detailed`), and probabilities are averaged. Photographs
smaller than a crop are extended by reflection.

Sharpness is the variance of the Laplacian over the whole photograph, its shorter side brought to the run's evaluation
size (data.resize, else data.image_size), so that photographs can be compared: `bjax.thresholds --size` has the same.

Probabilities are softmax(logits / T), T fitted when the run's condition `sharp` was evaluated (calibration.json; 1
where its images were all right, or logits of a short training hardly differ), and are of the run's own classes: what is
none of them gets one of them all the same.
Where a mask leaves nothing, there is no class but "nothing left to classify".

No condition's blur is applied: a photograph brings its own. A condition contributes its mask and its ViT options. A
random mask leaves out the same places of every photograph; a bucket mask keeps what attend keeps.
"""

import contextlib
import itertools
import json
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from bjax import stats
from bjax.data import decode
from bjax.errors import Parser, UserError, as_command, new_folder, shown
from bjax.predictor import Prediction, Predictor, Run, load, look, probabilities, read
from bjax.report import overlay
from bjax.runtime import compile_cache
from bjax.runtime.console import Progress, columns

__all__ = ["Prediction", "Predictor", "Run", "load", "look", "predict", "probabilities", "read"]

BATCH = 32
MEMORY = 22 * 2 * 89_478_485  # bytes for photographs that are read at a time: of the largest alone


def predict(predictor: Predictor, paths: list[Path]) -> Iterator[tuple[Path, Prediction | None, str | None]]:
    """(path, prediction, None) for every photograph, or (path, None, cause) where it cannot be read."""

    room = _Room(MEMORY)

    def look(path):
        try:
            with room.taken(decode.memory(path)):
                return predictor.look(path), None
        except (ValueError, OSError) as error:
            return None, " ".join(str(error).split())

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), BATCH):
            group = paths[start : start + BATCH]
            looks = list(pool.map(look, group))
            good = [seen for seen, _ in looks if seen is not None]
            predictions = iter(predictor.of_looks(good) if good else ())
            for path, (seen, cause) in zip(group, looks, strict=True):
                yield path, None if seen is None else next(predictions), cause


class _Room:
    """So much of something that threads share; who asks for more than there is gets all of it, alone."""

    def __init__(self, size: int):
        self.size = self.free = size
        self.changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, amount: int) -> Iterator[None]:
        amount = min(amount, self.size)
        with self.changed:
            self.changed.wait_for(lambda: self.free >= amount)
            self.free -= amount
        try:
            yield
        finally:
            with self.changed:
                self.free += amount
                self.changed.notify_all()


@as_command
def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code: 0; 1: a photograph could not be read; 2: a user's mistake."""
    args = _parser().parse_args(argv)
    compile_cache.keep()
    paths = decode.find(args.photos)
    run = read(args.workdir, args.condition)
    predictor = Predictor(run, min(BATCH, len(paths) * run.crops))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    bar = Progress(len(paths), 0, "predict", shown=len(paths) > 1, unit="photo")
    rows, drawn, broken, photos = [], set(), 0, {os.path.realpath(path) for path in paths}
    for path, prediction, cause in predict(predictor, paths):
        bar.advance()
        if prediction is None:
            tqdm.write(f"bjax: {shown(path)}: {cause}", file=sys.stderr)  # above the bar, not through it
            broken += 1
            continue
        file = None
        if args.out:
            file = _free(args.out, path.stem, drawn, photos)
            try:
                _overlay(run, path, prediction).save(file)
            except OSError as error:
                raise UserError(f"--out={args.out}: {shown(file.name)} cannot be written: {error.strerror}") from None
        if args.json:
            # A name that is no UTF-8 is escaped; Python's json reads it back to what os.fsencode takes.
            record = _record(run, path, prediction, file)
            tqdm.write(json.dumps(record, ensure_ascii=not str(path).isprintable()))
        else:
            rows += _rows(path, prediction)
    bar.close()
    if rows:
        print(columns(("photo", "seen %", "sharpness", "kept %", "prediction", "%"), rows))
        print("\n" + "\n".join(_footer(run)))
    return 1 if broken else 0


def _rows(path: Path, prediction: Prediction) -> list[tuple[str, ...]]:
    """A row for each of the most probable classes; what is said of the photograph stands in the first."""
    seen, kept = f"{100 * prediction.seen:.1f}", f"{100 * prediction.kept:.1f}"
    of_photo = (shown(path), seen, _number(prediction.sharpness), kept)
    top = prediction.top(5)
    if prediction.reason:
        return [(*of_photo, prediction.reason, "–")]
    estimates = [f"{k} {v:.1f} {'°' if k == 'angle' else 'px'}" for k, v in prediction.estimates.items()]
    if estimates:
        top[0] = (f"{top[0][0]} ({', '.join(estimates)})", top[0][1])
    shares = [(name, f"{100 * share:.1f}") for name, share in top]
    return [(*of_photo, *shares[0]), *(("", "", "", "", *row) for row in shares[1:])]


def _record(run: Run, path: Path, prediction: Prediction, drawn: Path | None) -> dict:
    top, view = prediction.top(5), prediction.view
    record = {
        "photo": str(path),
        "class": top[0][0] if top else None,
        "reason": prediction.reason,  # why there is no class
        "prediction": [{"class": name, "probability": share} for name, share in top],
        "calibrated": run.temperature is not None,
        "classes": len(run.classes),  # that the probabilities are of
        "estimates": prediction.estimates,
        "sharpness": prediction.sharpness,
        "sharpness_side": run.side,
        "kept": prediction.kept,
        "seen": prediction.seen,
        "size": [view.height, view.width],
        "crops": len(prediction.crops),
        "worth": run.worth and {"condition": run.worth[0]} | {k: run.worth[1][k] for k in ("top1", "n")},
    }
    return record | ({"overlay": str(drawn)} if drawn else {})


def _footer(run: Run) -> list[str]:
    """How the table is to be read, and what the run's answers are worth."""
    if run.config.task == "blur_type":
        how = f"in up to {run.crops} crops of {run.size} px with the most detail, pixels as they are"
    elif run.scaled:
        how = f"in the middle {run.size} px, the shorter side at {run.config.data.resize} px, as the run evaluates"
    else:
        how = f"in up to {run.crops} overlapping tiles of {run.size} px, scaled down where they do not reach"
    return [
        f"by {run.what}",
        f"seen %: of the photograph, {how}",
        f"sharpness: variance of the Laplacian (0..255) of the whole, shorter side at {run.side} px",
        f"%: probability among the {len(run.classes)} classes it knows; anything else gets one of them too",
        f"   {_calibrated(run)}",
        *_worth(run),
    ]


def _calibrated(run: Run) -> str:
    if run.uncalibrated:
        return f"not calibrated: {run.uncalibrated}"
    said = f"calibrated by temperature {run.temperature:.3g}, fitted on its condition sharp"
    errors = [part.get("ece") for k in ("before", "after") if isinstance(part := run.calibration.get(k), dict)]
    if len(errors) == 2 and all(isinstance(error, float) for error in errors):
        said += "; error {:.1%} before, {:.1%} after, held out".format(*errors)
    return said


def _worth(run: Run) -> list[str]:
    if run.worth is None:
        return ["what these answers are worth is not known: the run was not evaluated"]
    name, row = run.worth
    low, high = (100 * x for x in stats.interval(row))
    photographs = row.get("n_photographs")
    of = f"{row['n']:,} images" + (f" of {photographs:,} photographs" if photographs else "")
    split = run.config.eval[name].split if name in run.config.eval else ""
    tested = f"{run.config.data.name} {split}".strip()
    right = f"{100 * row['top1']:.1f} % (95 %: {low:.1f}–{high:.1f})"
    lines = [f"worth: right on {right} of {of}: {tested}, condition {name}"]
    if not stats.covered(photographs or row["n"], row["top1"]):
        lines.append("   too few to trust that interval (docs/intervals.md)")
    if run.config.data.only_known_classes:
        lines.append(
            f"   measured among the classes of {run.config.data.name} alone; here all {len(run.classes):,} compete"
        )
    if not run.scaled:
        lines.append(
            f"   measured, as the calibration was, on single crops; an answer here is the mean of up to {run.crops}"
        )
    return lines


def _overlay(run: Run, path: Path, prediction: Prediction) -> Image.Image:
    view, several = prediction.view, len(prediction.crops) > 1
    picture, boxes = prediction.picture, view.boxes
    if run.config.task == "blur_type":  # at that scale a crop of a large photograph would be a dot
        picture, boxes = overlay.mosaic(view.crops)
    top = prediction.top(1)
    seen = f"{prediction.seen:.1%} seen" + (f" in {len(prediction.crops)} crops" if several else "")
    page = overlay.draw(
        picture,
        boxes,
        prediction.scores,
        prediction.keep,
        patch=run.patch_size / run.size,
        title="{}  {:.1%}".format(*top[0]) if top else prediction.reason,
        caption=f"{shown(path.name)}: {seen} at {view.width} x {view.height} px, kept {prediction.kept:.1%}, "
        f"sharpness {_number(prediction.sharpness)}",
        mask=run.inputs.mask,
    )
    return page if boxes is view.boxes else overlay.with_places(page, prediction.picture, view.boxes)


def _number(x: float | None) -> str:
    return "unknown" if x is None else f"{x:.1f}"


def _free(folder: Path, stem: str, drawn: set[Path], photos: set[str]) -> Path:
    """FOLDER/STEM.png, or STEM_2.png and so on where this command has drawn another photograph of that name, or that
    is one of the `photos` themselves."""
    names = (f"{stem}{'' if i == 1 else f'_{i}'}.png" for i in itertools.count(1))
    files = (folder / name for name in names)
    file = next(file for file in files if file not in drawn and os.path.realpath(file) not in photos)
    drawn.add(file)
    return file


def _parser() -> Parser:
    parser = Parser("python -m bjax.predict", "What a trained run says of photographs.")
    photos = f"a photograph, or a folder of {', '.join(decode.SUFFIXES)}"
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help=photos)
    parser.add_argument("--workdir", required=True, type=Path, metavar="RUN", help="the run that predicts")
    mask = "use the mask of this evaluation condition of the run (default: none)"
    parser.add_argument("--condition", metavar="NAME", help=mask)
    drawn = "draw each photograph with its patches and their scores into DIR"
    parser.add_argument("--out", type=new_folder, metavar="DIR", help=drawn)
    parser.add_argument("--json", action="store_true", help="print one JSON object a line instead of a table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
