"""A photograph in; classes or the type of its blur, its sharpness and what a mask leaves of it out.

    python -m bjax.predict PHOTO_OR_FOLDER … --workdir=RUN [--condition=NAME] [--out=DIR] [--json]

    predict = bjax.predict.load("runs/vit_mask_demo")
    predict("photo.jpg").top(5)

The model is that of the newest checkpoint of RUN (the averaged weights where there are any), or of the weight file that
RUN was evaluated with. Photographs are JPEG, PNG or WebP files (TIFF, BMP, PPM and GIF too, where they are named),
turned upright as their EXIF data says, and then treated as evaluation treats the dataset's: scaled and cropped to the
size that the model sees. Transparency is dropped, of 16 bits the upper 8 are seen, of an animation the first frame.

A photograph is read whole, several at a time in threads, each in some 14 bytes of memory a pixel (WebP: 22). Those of
more than 178,956,970 pixels (2 × `PIL.Image.MAX_IMAGE_PIXELS`) are refused by what their header says, before memory is
taken; so are files above 1 GiB, damaged ones, and what is no regular file. Each of these is a line on stderr, the
others go on, and the exit code is 1.

Where the run tells blur types apart, nothing is scaled, since that would change the blur. A photograph is seen in up to
16 crops, those with the most detail (`bjax.data.decode.detailed_crops`), and probabilities are averaged. Photographs
smaller than a crop are extended by reflection.

No condition's blur is applied: a photograph brings its own. A condition contributes its mask and its ViT options. A
random mask leaves out the same places of every photograph; a bucket mask keeps what attend keeps.
"""

import argparse
import dataclasses
import difflib
import functools
import itertools
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from PIL import Image
from tqdm import tqdm

from bjax import config as configs
from bjax import experiment, sharpness, tokens
from bjax.blur import sample
from bjax.data import decode, loader
from bjax.errors import UserError
from bjax.report import overlay
from bjax.runtime import checkpoint, sharding
from bjax.runtime.console import Progress, columns
from bjax.specs import PARAMETERS
from bjax.step import losses
from bjax.step.inputs import Inputs, apply, see

BATCH = 32
CROPS = 16  # of one photograph, where the type of its blur is asked for


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run left: its model and how images become what that sees."""

    what: str  # which weights, for people
    config: object
    classes: tuple[str, ...]
    model: nn.Module
    inputs: Inputs
    variables: dict

    @property
    def size(self) -> int:
        """Side of the images that the model sees, pixels."""
        return self.config.data.image_size

    @property
    def patch_size(self) -> int:
        return min(self.inputs.patch_size, self.size)

    @property
    def crops(self) -> int:
        """How many crops of a photograph the model sees, at most."""
        return CROPS if self.config.task == "blur_type" else 1


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a run says of one photograph, in n crops (n is 1 where objects are classified)."""

    classes: tuple[str, ...]
    probabilities: np.ndarray  # float32[classes], mean over the crops
    sharpness: float | None  # variance of the Laplacian (0..255) of what the model sees, mean over the crops
    kept: float  # share of the patches that the mask keeps
    crops: np.ndarray  # uint8[n, size, size, 3]: what the model sees
    scores: (
        np.ndarray
    )  # float32[n, rows, columns]: of each patch, by the mask's measure or Laplacian variance
    keep: np.ndarray  # bool[n, rows, columns]: the patches that the mask keeps
    # Of the most probable kind of blur, where the run estimates them: sigma, length, radius in px, angle in degrees.
    estimates: dict[str, float] = dataclasses.field(default_factory=dict)

    def top(self, number: int) -> list[tuple[str, float]]:
        """The most probable classes, with their probabilities."""
        best = np.argsort(-self.probabilities, kind="stable")[:number]
        return [(self.classes[i], float(self.probabilities[i])) for i in best]


def read(workdir: str | Path, condition: str | None = None) -> Run:
    """Reads a run on one device, with the mask and the ViT options of one of its evaluation conditions (or none).

    Raises UserError where the workdir holds no run, or no condition of that name.
    """
    workdir = Path(workdir).expanduser()
    if not (workdir / "config.json").is_file():
        raise UserError(f"--workdir={workdir}: holds no config.json; name the --workdir of a bjax.main run")
    note = functools.partial(print, file=sys.stderr)  # stdout may be for JSON
    config = configs.reload(workdir / "config.json", [("eval_only", "")], note)
    if not config.init_from and not checkpoint.exists(workdir / "checkpoints"):
        raise UserError(f"--workdir={workdir}: holds no checkpoint yet; let the run save one, or finish it")
    classes = _classes(config, workdir)
    exp = experiment.build(config, len(classes))
    if condition is None:
        model, inputs = exp.model, dataclasses.replace(exp.train, mask=tokens.MaskSpec())
    elif condition in exp.conditions:
        model, inputs = exp.conditions[condition].model, exp.conditions[condition].inputs
    else:
        near = difflib.get_close_matches(condition, exp.conditions, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(
            f"--condition={condition}: no condition of {workdir}{hint}; there are {', '.join(exp.conditions)}"
        )
    if inputs.mask.mode == "bucket":  # groups images of one length; alone, each is what attend computes
        inputs = dataclasses.replace(inputs, mask=dataclasses.replace(inputs.mask, mode="attend"))
    exp = dataclasses.replace(exp, mesh=sharding.make_mesh(1, 1, jax.local_devices()[:1]))
    what, variables = experiment.variables_of(exp, workdir)
    return Run(what, config, classes, model, dataclasses.replace(inputs, blur=sample.SHARP), variables)


def _classes(config, workdir: Path) -> tuple[str, ...]:
    """The names of the classes: as the run left them or, for a run of before that file was left, the dataset's."""
    if config.task == "blur_type":
        return sample.KINDS
    path = workdir / "classes.json"
    if path.is_file():
        try:
            return tuple(json.loads(path.read_text()))
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}: is no JSON ({error}); delete it, the dataset has the names too"
            ) from None
    try:
        source = loader.open_split(config.data.name, config.data.train, data_dir=config.data.data_dir or None)
    except UserError as error:
        raise UserError(
            f"{path}: missing, and the dataset, which names the classes too, cannot be opened: {error}"
        ) from None
    return source.class_names


def look(run: Run, images: jax.Array, variables: dict) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the model of `run` says, as one pure function, for any batch size.

    images: uint8[B, size, size, 3]. Returns the model's outputs float32[B, outputs], the scores of all patches
    float32[B, rows, columns] and whether the mask keeps them, bool[B, rows, columns].
    """
    batch = images.shape[0]
    # Every image gets the same key: what it is told does not depend on its place in a batch, or on a name.
    keys = jnp.broadcast_to(jax.random.key(experiment.SEED), (batch,))
    seen = see(keys, images, run.inputs)
    outputs = apply(run.model, variables, seen.images, seen.kept, train=False)
    mask, patch = run.inputs.mask, run.patch_size
    measure = sharpness.MEASURES[mask.measure]
    side = run.size // patch * patch  # without a mask a CNN may see images that patches do not fill
    scores = measure(images[:, :side, :side].astype(jnp.float32) / 255, patch, scope=mask.scope)
    keep = jnp.ones(scores.shape, bool) if seen.kept is None else seen.kept.keep.reshape(scores.shape)
    return outputs, scores, keep


def probabilities(run: Run, outputs: jax.Array) -> jax.Array:
    """Of the classes, float32[B, classes]; outputs beyond those are no logits."""
    return jax.nn.softmax(outputs[:, : len(run.classes)].astype(jnp.float32))


class Predictor:
    """A run, ready to be asked: `predictor(photo)`; see `load`."""

    def __init__(self, run: Run, batch_size: int):
        self.run, self.batch_size = run, batch_size
        self._ask = jax.jit(self._answers)

    def __call__(self, photo) -> Prediction:
        """What the run says of a path, a Pillow image, or uint8[H, W, 3].

        Raises ValueError with the cause, in one line, for a file that is damaged, too large or no image (see the
        module) and for any other array; OSError for one that may not be read.
        """
        return self.of_crops([self.crops(photo)])[0]

    def crops(self, photo) -> np.ndarray:
        """What the model sees of a photograph: uint8[n, size, size, 3]."""
        if isinstance(photo, str | Path):
            photo = decode.decode(decode.read(photo), exif_rotate=True)
        elif isinstance(photo, Image.Image):
            photo = decode.to_rgb(photo, exif_rotate=True)
        photo = np.asarray(photo)
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or not photo.size:
            raise ValueError(f"photo: {photo.dtype}{list(photo.shape)}, expected uint8[H, W, 3]")
        data = self.run.config.data
        if self.run.config.task == "blur_type":
            return decode.detailed_crops(photo, data.image_size, self.run.crops)
        crop = decode.center_crop(
            photo, data.image_size, resize=data.resize, interpolation=data.interpolation
        )
        return crop[None]

    def of_crops(self, photos: list[np.ndarray]) -> list[Prediction]:
        """The predictions for photographs that `crops` has cut; one program, whatever their number."""
        crops = np.concatenate(photos)
        padded = np.pad(crops, [(0, -len(crops) % self.batch_size), (0, 0), (0, 0), (0, 0)])
        batches = [padded[i : i + self.batch_size] for i in range(0, len(padded), self.batch_size)]
        answers = jax.device_get([self._ask(batch, self.run.variables) for batch in batches])
        answers = [np.concatenate(parts) for parts in zip(*answers, strict=True)]
        ends = np.cumsum([len(photo) for photo in photos])
        parts = [np.split(x[: len(crops)], ends[:-1]) for x in (crops, *answers)]
        return [self._prediction(*part) for part in zip(*parts, strict=True)]

    def _answers(self, images, variables):
        outputs, scores, keep = look(self.run, images, variables)
        size = self.run.size
        whole = jnp.full(len(images), jnp.nan)
        if size <= 1024:  # the largest patch that can be scored
            whole = sharpness.laplacian_variance(images.astype(jnp.float32) / 255, size)[:, 0, 0]
        return probabilities(self.run, outputs), scores, keep, whole, outputs[:, len(self.run.classes) :]

    def _prediction(self, crops, shares, scores, keep, whole, estimates) -> Prediction:
        return Prediction(
            classes=self.run.classes,
            probabilities=shares.mean(axis=0),
            sharpness=None if np.isnan(whole).any() else float(whole.mean()),
            kept=float(keep.mean()),
            crops=crops,
            scores=scores,
            keep=keep,
            estimates=self._estimates(int(shares.mean(axis=0).argmax()), estimates.mean(axis=0)),
        )

    def _estimates(self, kind: int, outputs: np.ndarray) -> dict[str, float]:
        """outputs: those beyond the classes. Averaged over crops before they are decoded: angles have no mean."""
        if not len(outputs):
            return {}
        values = np.array(losses.decode_parameters(outputs[None])[0], float)
        values[2] = np.rad2deg(values[2])
        own = PARAMETERS.items()
        return {
            name: float(v) for (name, of), v in zip(own, values, strict=True) if of == self.run.classes[kind]
        }


def load(workdir: str | Path, condition: str | None = None, *, batch_size: int | None = None) -> Predictor:
    """A function from a photograph (path, Pillow image, or uint8[H, W, 3]) to a `Prediction`.

    condition: one of the run's evaluation conditions, whose mask and ViT options are used; None: no mask.
    batch_size: crops that are computed at a time; by default those of one photograph.
    Raises UserError where the workdir holds no run, or no condition of that name.
    """
    run = read(workdir, condition)
    return Predictor(run, batch_size or run.crops)


def predict(predictor: Predictor, paths: list[Path]) -> Iterator[tuple[Path, Prediction | None, str | None]]:
    """(path, prediction, None) for every photograph, or (path, None, cause) where it cannot be read."""

    def crops(path):
        try:
            return predictor.crops(path), None
        except (ValueError, OSError) as error:
            return None, " ".join(str(error).split())

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), BATCH):
            group = paths[start : start + BATCH]
            read = list(pool.map(crops, group))
            good = [crop for crop, _ in read if crop is not None]
            found = iter(predictor.of_crops(good) if good else ())
            for path, (crop, cause) in zip(group, read, strict=True):
                yield path, None if crop is None else next(found), cause


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0; 1: a photograph could not be read; 2: a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m bjax.predict",
        description="What a trained run says of photographs.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "photos",
        nargs="+",
        type=Path,
        metavar="PHOTO",
        help=f"a photograph, or a folder of {', '.join(decode.SUFFIXES)}",
    )
    parser.add_argument("--workdir", required=True, type=Path, metavar="RUN", help="the run that predicts")
    parser.add_argument(
        "--condition",
        metavar="NAME",
        help="use the mask of this evaluation condition of the run (default: none)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="draw each photograph with its patches and their scores into DIR",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a line instead of a table")
    args = parser.parse_args(argv)
    try:
        return _run(args)
    except UserError as error:
        print(f"bjax.predict: {error}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    experiment.keep_compiled()
    paths = decode.find(args.photos)
    if args.out and args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out={args.out}: is a file; name a folder")
    run = read(args.workdir, args.condition)
    predictor = Predictor(run, min(BATCH, len(paths) * run.crops))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    bar = Progress(len(paths), 0, "predict", shown=len(paths) > 1, unit="photo")
    rows, drawn, broken = [], set(), 0
    for path, prediction, cause in predict(predictor, paths):
        bar.advance()
        if prediction is None:
            tqdm.write(f"bjax.predict: {path}: {cause}", file=sys.stderr)  # above the bar, not through it
            broken += 1
            continue
        file = None
        if args.out:
            file = _free(args.out, path.stem, drawn)
            overlay.draw(
                prediction.crops,
                prediction.scores,
                prediction.keep,
                patch_size=run.patch_size,
                title="{}  {:.1%}".format(*prediction.top(1)[0]),
                caption=_caption(path, prediction),
                threshold=run.inputs.mask.threshold,
            ).save(file)
        if args.json:
            tqdm.write(json.dumps(_record(path, prediction, file), ensure_ascii=False))
        else:
            rows += _rows(path, prediction)
    bar.close()
    if rows:
        print(columns(("photo", "sharpness", "kept %", "prediction", "%"), rows))
        print(
            f"\nby {run.what}; sharpness: variance of the Laplacian (0..255) of what the model sees, "
            f"{run.size} × {run.size} px"
        )
    return 1 if broken else 0


def _rows(path: Path, prediction: Prediction) -> list[tuple[str, ...]]:
    """A row for each of the most probable classes; what is said of the photograph stands in the first."""
    of_photo = (str(path), _number(prediction.sharpness), f"{100 * prediction.kept:.1f}")
    top = prediction.top(5)
    units = {"angle": "°"}
    found = ", ".join(f"{k} {v:.1f} {units.get(k, 'px')}" for k, v in prediction.estimates.items())
    if found:
        top[0] = (f"{top[0][0]} ({found})", top[0][1])
    return [
        (*(of_photo if i == 0 else ("",) * 3), name, f"{100 * share:.1f}")
        for i, (name, share) in enumerate(top)
    ]


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
    return f"{path.name}: sharpness {_number(prediction.sharpness)}, kept {prediction.kept:.1%}{crops}"


def _number(x: float | None) -> str:
    return "unknown" if x is None else f"{x:.1f}"


def _free(folder: Path, stem: str, drawn: set[Path]) -> Path:
    """FOLDER/STEM.png, or STEM_2.png and so on where this command has drawn another photograph of that name."""
    names = (f"{stem}{'' if i == 1 else f'_{i}'}.png" for i in itertools.count(1))
    file = next(folder / name for name in names if folder / name not in drawn)
    drawn.add(file)
    return file


if __name__ == "__main__":
    sys.exit(main())
