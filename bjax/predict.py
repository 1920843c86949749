"""A photograph in; classes or the type of its blur, its sharpness and what a mask leaves of it out.

    python -m bjax.predict PHOTO_OR_FOLDER … --workdir=RUN [--condition=NAME] [--out=DIR] [--json]

    predict = bjax.predict.load("runs/vit_mask_demo")
    predict("photo.jpg").top(5)

The model is that of the newest checkpoint of RUN (the averaged weights where there are any), or of the weight file that
RUN was evaluated with. Photographs are JPEG, PNG or WebP files (TIFF, BMP, PPM and GIF too, where they are named),
turned upright as their EXIF data says, and then treated as evaluation treats the dataset's: scaled and cropped to the
size that the model sees. Transparency is dropped, of 16 bits the upper 8 are seen, of an animation the first frame.

A photograph is read whole, in some 14 bytes of memory a pixel (WebP: 22), and several at a time in threads, as long as
they take no more together than the largest alone, 3.9 GB. Those of more than 178,956,970 pixels (2 ×
`PIL.Image.MAX_IMAGE_PIXELS`) are refused by what their header says, before memory is taken; so are files above 1 GiB,
damaged ones, and what is no regular file. Each of these is a line on stderr, the others go on, and the exit code is 1.

Where the run tells blur types apart, nothing is scaled, since that would change the blur. A photograph is seen in up to
16 crops, those with the most detail (`bjax.data.decode.detailed_crops`), and probabilities are averaged. Photographs
smaller than a crop are extended by reflection.

No condition's blur is applied: a photograph brings its own. A condition contributes its mask and its ViT options. A
random mask leaves out the same places of every photograph; a bucket mask keeps what attend keeps.
"""

import contextlib
import itertools
import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from bjax import experiment
from bjax.data import decode
from bjax.errors import Parser, UserError, as_command, new_folder, shown
from bjax.predictor import Prediction, Predictor, Run, load, look, probabilities, read
from bjax.report import overlay
from bjax.runtime.console import Progress, columns

__all__ = ["Prediction", "Predictor", "Run", "load", "look", "predict", "probabilities", "read"]

BATCH = 32
MEMORY = 22 * 2 * 89_478_485  # bytes for photographs that are read at a time: of the largest alone


def predict(predictor: Predictor, paths: list[Path]) -> Iterator[tuple[Path, Prediction | None, str | None]]:
    """(path, prediction, None) for every photograph, or (path, None, cause) where it cannot be read."""

    room = _Room(MEMORY)

    def crops(path):
        try:
            with room.taken(decode.memory(path)):
                return predictor.crops(path), None
        except (ValueError, OSError) as error:
            return None, " ".join(str(error).split())

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), BATCH):
            group = paths[start : start + BATCH]
            cut = list(pool.map(crops, group))
            good = [crop for crop, _ in cut if crop is not None]
            predictions = iter(predictor.of_crops(good) if good else ())
            for path, (crop, cause) in zip(group, cut, strict=True):
                yield path, None if crop is None else next(predictions), cause


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
    experiment.keep_compiled()
    paths = decode.find(args.photos)
    run = read(args.workdir, args.condition)
    predictor = Predictor(run, min(BATCH, len(paths) * run.crops))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    bar = Progress(len(paths), 0, "predict", shown=len(paths) > 1, unit="photo")
    rows, drawn, broken = [], set(), 0
    for path, prediction, cause in predict(predictor, paths):
        bar.advance()
        if prediction is None:
            tqdm.write(f"bjax: {shown(path)}: {cause}", file=sys.stderr)  # above the bar, not through it
            broken += 1
            continue
        file = None
        if args.out:
            file = _free(args.out, path.stem, drawn)
            picture = overlay.draw(
                prediction.crops,
                prediction.scores,
                prediction.keep,
                patch_size=run.patch_size,
                title="{}  {:.1%}".format(*prediction.top(1)[0]),
                caption=_caption(path, prediction),
                threshold=run.inputs.mask.threshold,
            )
            try:
                picture.save(file)
            except OSError as error:
                raise UserError(f"--out={args.out}: {shown(file.name)} cannot be written: {error.strerror}") from None
        if args.json:
            # A name that is no UTF-8 is escaped; Python's json reads it back to what os.fsencode takes.
            tqdm.write(json.dumps(_record(path, prediction, file), ensure_ascii=not str(path).isprintable()))
        else:
            rows += _rows(path, prediction)
    bar.close()
    if rows:
        print(columns(("photo", "sharpness", "kept %", "prediction", "%"), rows))
        seen = f"what the model sees, {run.size} × {run.size} px"
        print(f"\nby {run.what}; sharpness: variance of the Laplacian (0..255) of {seen}")
    return 1 if broken else 0


def _rows(path: Path, prediction: Prediction) -> list[tuple[str, ...]]:
    """A row for each of the most probable classes; what is said of the photograph stands in the first."""
    of_photo = (shown(path), _number(prediction.sharpness), f"{100 * prediction.kept:.1f}")
    top = prediction.top(5)
    estimates = [f"{k} {v:.1f} {'°' if k == 'angle' else 'px'}" for k, v in prediction.estimates.items()]
    if estimates:
        top[0] = (f"{top[0][0]} ({', '.join(estimates)})", top[0][1])
    shares = [(name, f"{100 * share:.1f}") for name, share in top]
    return [(*of_photo, *shares[0]), *(("", "", "", *row) for row in shares[1:])]


def _record(path: Path, prediction: Prediction, drawn: Path | None) -> dict:
    record = {
        "photo": str(path),
        "prediction": [{"class": name, "probability": share} for name, share in prediction.top(5)],
        "estimates": prediction.estimates,
        "sharpness": prediction.sharpness,
        "kept": prediction.kept,
        "crops": len(prediction.crops),
    }
    return record | ({"overlay": str(drawn)} if drawn else {})


def _caption(path: Path, prediction: Prediction) -> str:
    crops = f", {len(prediction.crops)} crops" if len(prediction.crops) > 1 else ""
    return f"{shown(path.name)}: sharpness {_number(prediction.sharpness)}, kept {prediction.kept:.1%}{crops}"


def _number(x: float | None) -> str:
    return "unknown" if x is None else f"{x:.1f}"


def _free(folder: Path, stem: str, drawn: set[Path]) -> Path:
    """FOLDER/STEM.png, or STEM_2.png and so on where this command has drawn another photograph of that name."""
    names = (f"{stem}{'' if i == 1 else f'_{i}'}.png" for i in itertools.count(1))
    file = next(folder / name for name in names if folder / name not in drawn)
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
