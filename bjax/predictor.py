"""A run, ready to be asked about photographs: `load(RUN)(photo)` gives a `Prediction`. Documented in `bjax.predict`."""

import dataclasses
import functools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from PIL import Image

from bjax import config as configs
from bjax import experiment, sharpness, stats, sums, tokens
from bjax.data import decode, loader, views
from bjax.errors import UserError, nearest
from bjax.runtime import checkpoint, sharding
from bjax.specs import KINDS, PARAMETERS
from bjax.step import losses
from bjax.step.inputs import Inputs, apply, see

CROPS = 16  # of one photograph, at most, where the run has no scale: tiles of it, or its most detailed parts
NOTHING = "nothing left to classify"


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run left: its model and how images become what that sees."""

    what: str  # which weights, for people
    config: object
    classes: tuple[str, ...]
    model: nn.Module
    inputs: Inputs
    variables: dict
    calibration: dict | None = None  # what the run's calibration.json holds; None: not calibrated
    # What the run is worth: a condition with its row of results.json; None: it was not evaluated.
    worth: tuple[str, dict] | None = None

    @property
    def temperature(self) -> float | None:
        """What logits are divided by; None: not calibrated."""
        return self.calibration and self.calibration["temperature"]

    @property
    def uncalibrated(self) -> str | None:
        """Why probabilities are not calibrated; None where they are."""
        if self.calibration is None:
            return "no calibration.json, which evaluating a condition named sharp writes"
        if self.temperature is None:
            return "its condition sharp was all right, or its logits hardly differ yet, which tells no temperature"
        return None

    @property
    def size(self) -> int:
        """Side of the images that the model sees, pixels."""
        return self.config.data.image_size

    @property
    def patch_size(self) -> int:
        return min(self.inputs.patch_size, self.size)

    @property
    def scaled(self) -> bool:
        """Whether evaluation scales images, so that one crop shows most of any."""
        return self.config.task == "object" and bool(self.config.data.resize)

    @property
    def crops(self) -> int:
        """How many crops of a photograph the model sees, at most."""
        return 1 if self.scaled else CROPS

    @property
    def side(self) -> int:
        """Shorter side of a whole photograph at the run's evaluation size, pixels: its sharpness is measured there."""
        return self.config.data.resize or self.size


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a run says of one photograph, of which it saw `view` (`bjax.data.views`) in n crops."""

    classes: tuple[str, ...]
    # float32[classes], mean over the crops of which the mask keeps something; None: it keeps nothing, see `reason`.
    # Of these classes alone: what is none of them gets probabilities all the same.
    probabilities: np.ndarray | None
    sharpness: float | None  # `bjax.sharpness.whole` of the photograph at the run's evaluation size; None: too large
    kept: float  # share of the patches that the mask keeps
    view: views.View
    # float32[n, rows, columns]: of patches, by the mask's measure (of sigma NaN where unknown) or Laplacian variance
    scores: np.ndarray
    keep: np.ndarray  # bool[n, rows, columns]: the patches that the mask keeps
    picture: np.ndarray  # uint8[h, w, 3]: the whole photograph, small
    # Of the most probable kind of blur, where the run estimates them: sigma, length, radius in px, angle in degrees.
    estimates: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def crops(self) -> np.ndarray:
        """uint8[n, size, size, 3]: what the model sees."""
        return self.view.crops

    @property
    def seen(self) -> float:
        """Share of the photograph's area that the model sees."""
        return self.view.seen

    @property
    def reason(self) -> str | None:
        """Why there is no class; None where there is one."""
        return NOTHING if self.probabilities is None else None

    def top(self, number: int) -> list[tuple[str, float]]:
        """The most probable classes, with their probabilities; none where nothing was left to classify."""
        if self.probabilities is None:
            return []
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
    exp = experiment.build(_without_blur(config), len(classes))
    if condition is None:
        model, inputs = exp.model, dataclasses.replace(exp.train, mask=tokens.MaskSpec(), augmix=None, views=1)
    elif condition in exp.conditions:
        model, inputs = exp.conditions[condition].model, exp.conditions[condition].inputs
    else:
        raise UserError(
            f"--condition={condition}: no condition of {workdir}{nearest(condition, exp.conditions)}; "
            f"there are {', '.join(exp.conditions)}"
        )
    if inputs.mask.needs_truth:
        raise UserError(
            f"--condition={condition}: its mask (selector=oracle) knows which patches were blurred, which nobody knows "
            "of a photograph; name another condition, or none"
        )
    if inputs.mask.mode == "bucket":  # groups images of one length; alone, each is what attend computes
        inputs = dataclasses.replace(inputs, mask=dataclasses.replace(inputs.mask, mode="attend"))
    exp = dataclasses.replace(exp, mesh=sharding.make_mesh(1, 1, jax.local_devices()[:1]))
    what, variables = experiment.variables_of(exp, workdir)
    inputs = dataclasses.replace(inputs, blur=None, corruption=None)
    fitted, rows = (_read_json(workdir / name) for name in ("calibration.json", "results.json"))
    temperature = fitted and fitted.get("temperature", "missing")
    if temperature is not None and not (isinstance(temperature, int | float) and 0 < temperature < float("inf")):
        fitted = None
    worth = next(((k, rows[k]) for k in (condition, "sharp", *(rows or {})) if rows and _is_row(rows.get(k))), None)
    return Run(what, config, classes, model, inputs, variables, fitted, worth)


def _read_json(path: Path) -> dict | None:
    """What a file beside the weights holds, none of which is needed to predict; None where it is missing or damaged."""
    try:
        content = json.loads(sums.read(path))
        if isinstance(content, dict):
            return content
        raise ValueError
    except FileNotFoundError:
        return None
    except (ValueError, OSError):
        print(f"bjax: {path}: damaged, and left aside; --mode=eval writes it anew", file=sys.stderr)
        return None


def _is_row(row) -> bool:
    try:
        return 0 <= row["top1"] <= 1 <= row["n"] and len(stats.interval(row)) == 2
    except (TypeError, KeyError):
        return False


def _without_blur(config):
    """Photographs bring their own blur; that of a run of before may be one that is refused today."""
    config = configs.copied(config)
    with config.unlocked():
        for node in (config, *config.eval.values()):
            node.blur.kinds = dict.fromkeys(KINDS, 0.0) | {"sharp": 1.0}
    return config


def _classes(config, workdir: Path) -> tuple[str, ...]:
    """The names of the classes: as the run left them or, for a run of before that file was left, the dataset's."""
    if config.task == "blur_type":
        return KINDS
    path = workdir / "classes.json"
    if path.is_file():
        try:
            names = json.loads(sums.read(path))
            if not (names and isinstance(names, list) and all(isinstance(name, str) for name in names)):
                raise ValueError("no list of names")
            return tuple(names)
        except ValueError as error:
            raise UserError(f"{path}: damaged ({error}); delete it, the dataset has the names too") from None
    data = config.data
    try:
        return loader.open_split(data.name, data.train, data_dir=data.data_dir).class_names
    except UserError as error:
        why = "missing, and the dataset, which names the classes too, cannot be opened"
        raise UserError(f"{path}: {why}: {error}") from None


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
    """Of the classes, float32[B, classes], at the run's temperature; outputs beyond those are no logits."""
    return jax.nn.softmax(outputs[:, : len(run.classes)].astype(jnp.float32) / (run.temperature or 1.0))


@dataclasses.dataclass(frozen=True)
class Look:
    """A photograph before the model is asked."""

    view: views.View
    picture: np.ndarray  # uint8[h, w, 3]
    sharpness: float | None


class Predictor:
    """A run, ready to be asked: `predictor(photo)`; see `load`."""

    def __init__(self, run: Run, batch_size: int):
        self.run, self.batch_size = run, batch_size
        self.program = jax.jit(self._answers)

    def __call__(self, photo) -> Prediction:
        """What the run says of a path, a Pillow image, or uint8[H, W, 3].

        Raises ValueError with the cause, in one line, for a file that is damaged, too large or no image (see the
        module) and for any other array; OSError for one that may not be read.
        """
        return self.of_looks([self.look(photo)])[0]

    def look(self, photo) -> Look:
        """What the model sees of a photograph, and what is known of it without the model."""
        if isinstance(photo, str | Path):
            photo = decode.decode(decode.read(photo), exif_rotate=True)
        elif isinstance(photo, Image.Image):
            photo = decode.to_rgb(photo, exif_rotate=True)
        photo = np.asarray(photo)
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or not photo.size:
            raise ValueError(f"photo: {photo.dtype}{list(photo.shape)}, expected uint8[H, W, 3]")
        size, data = self.run.size, self.run.config.data
        if self.run.config.task == "blur_type":
            view = views.detailed(photo, size, CROPS)
        elif self.run.scaled:
            view = views.evaluated(photo, size, data.resize, data.interpolation)
        else:
            view = views.tiled(photo, size, CROPS, data.interpolation)
        whole = views.with_side(photo, self.run.side)
        return Look(view, views.picture(photo), None if whole is None else sharpness.whole(whole))

    def of_looks(self, photos: list[Look]) -> list[Prediction]:
        """The predictions for photographs that were looked at; one program, whatever their number."""
        crops = np.concatenate([photo.view.crops for photo in photos])
        padded = np.pad(crops, [(0, -len(crops) % self.batch_size), (0, 0), (0, 0), (0, 0)])
        batches = [padded[i : i + self.batch_size] for i in range(0, len(padded), self.batch_size)]
        answers = jax.device_get([self.program(batch, self.run.variables) for batch in batches])
        answers = [np.concatenate(parts) for parts in zip(*answers, strict=True)]
        ends = np.cumsum([len(photo.view.crops) for photo in photos])
        parts = [np.split(x[: len(crops)], ends[:-1]) for x in answers]
        return [self._prediction(*part) for part in zip(photos, *parts, strict=True)]

    def _answers(self, images, variables):
        outputs, scores, keep = look(self.run, images, variables)
        return probabilities(self.run, outputs), scores, keep, outputs[:, len(self.run.classes) :]

    def _prediction(self, photo, shares, scores, keep, estimates) -> Prediction:
        # What a model answers to an empty image is no answer.
        answered, of_blur = keep.any(axis=(1, 2)), {}
        shares = shares[answered].mean(axis=0) if answered.any() else None
        if shares is not None:
            of_blur = self.estimates(int(shares.argmax()), estimates[answered].mean(axis=0))
        return Prediction(
            self.run.classes,
            shares,
            photo.sharpness,
            float(keep.mean()),
            photo.view,
            scores,
            keep,
            photo.picture,
            of_blur,
        )

    def estimates(self, kind: int, outputs: np.ndarray) -> dict[str, float]:
        """{name: value} of the blur's parameters that `kind`, the number of a class, has.

        outputs: float32[parameters], those beyond the classes. Averaged over crops before they are decoded: angles
        have no mean.
        """
        if not len(outputs):
            return {}
        values = np.array(losses.decode_parameters(outputs[None])[0], float)
        values[2] = np.rad2deg(values[2])
        named = zip(PARAMETERS.items(), values.tolist(), strict=True)
        return {name: value for (name, of), value in named if of == self.run.classes[kind]}


def load(workdir: str | Path, condition: str | None = None, *, batch_size: int | None = None) -> Predictor:
    """A function from a photograph (path, Pillow image, or uint8[H, W, 3]) to a `Prediction`.

    condition: one of the run's evaluation conditions, whose mask and ViT options are used; None: no mask.
    batch_size: crops that are computed at a time; by default those of one photograph.
    Raises UserError where the workdir holds no run, or no condition of that name.

    >>> predict = load("runs/vit_mask_demo")
    >>> prediction = predict("photo.jpg")
    >>> [0 <= probability <= 1 for name, probability in prediction.top(3)]
    [True, True, True]
    """
    run = read(workdir, condition)
    return Predictor(run, batch_size or run.crops)
