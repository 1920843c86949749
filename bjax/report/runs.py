"""What a report knows of a run and of its conditions, and the words it has for them."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bjax import stats

BLUR_TYPES = ("sharp", "gaussian", "motion", "defocus")  # in the order of labels and confusion matrices
TRAINING = {"sharp": {"sharp": 1.0}, "blurred": {"gaussian": 1.0}, "mix": {"sharp": 0.5, "gaussian": 0.5}}
CONTROLS = ("random", "centre", "inverse")  # selectors without sharp and blurry ends
PAPER_BLUR = {"sigma": [1.0, 2.0], "kernel_size": 19, "noise": [0.0, 0.0]}  # paper 1's, of kind gaussian
# What a config leaves out has these values.
BLUR_DEFAULTS = {"kernel_size": 19, "psf_size": 21, "noise": [0.0, 0.0]}
MASK_DEFAULTS = {"scope": "image", "fill": "black"}
# What decides the blur of each kind.
BLUR_FIELDS = {
    "sharp": (),
    "gaussian": ("sigma", "kernel_size"),
    "motion": ("length", "angle", "psf_size"),
    "defocus": ("radius", "psf_size"),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One condition of a run: a row of results.json with its entry of config.json.

    What `seeds.merge` makes of several: result has means, the intervals NAME_95, or, of two seeds, both values as
    NAME_seeds; by_seed has each seed's own result.
    """

    name: str
    condition: dict
    result: dict
    speed: dict | None = None
    by_seed: dict[int, dict] = dataclasses.field(default_factory=dict)
    run: int = 0  # the number of its run in the report

    @property
    def seeds(self) -> int:
        """How many seeds have it: of a run of several perhaps not all."""
        return max(1, len(self.by_seed))

    def interval(self, metric: str = "top1") -> tuple[float, float] | None:
        """The 95 % interval to print, in shares; None of two seeds, which show both values instead."""
        return stats.interval(self.result, metric)

    @property
    def adapted(self) -> bool:
        """Whether BatchNorm statistics were taken anew, from images blurred like the condition's."""
        return bool(self.condition.get("bn_adapt"))

    @property
    def mask(self) -> dict:
        return self.condition["mask"]

    @property
    def measure(self) -> str:
        """The focus measure that its mask's threshold belongs to."""
        return "laplacian" if self.mask["selector"] in CONTROLS else self.mask["selector"]

    @property
    def corruption(self) -> tuple[str, int] | None:
        """Name and severity of ImageNet-C, where the condition has one."""
        name = self.condition.get("corruption")
        return (name, self.condition.get("severity", 1)) if name else None

    @property
    def sigma(self) -> tuple[float, float] | None:
        """Range of a Gaussian blur in pixels, (0, 0) where images stay sharp; None for any other blur."""
        kinds = kinds_of(self.condition["blur"])
        if self.corruption or list(kinds) not in (["sharp"], ["gaussian"]):
            return None
        return (0.0, 0.0) if list(kinds) == ["sharp"] else tuple(self.condition["blur"]["sigma"])

    @property
    def whole(self) -> bool:
        """Whether the model sees every patch and loses none on the way."""
        options = self.condition.get("options", {})
        return self.mask["mode"] == "none" and options.get("evit_keep", 1) >= 1 and not options.get("tome_r")

    @property
    def blur(self) -> str:
        if self.corruption:
            return "{} {}".format(*self.corruption).replace("_", " ")
        return blur_text(self.condition["blur"])

    @property
    def method(self) -> str:
        """What decides which patches stay; "all patches" where all do."""
        options = self.condition.get("options", {})
        if options.get("evit_keep", 1) < 1:
            return "EViT"
        if options.get("tome_r"):
            return "ToMe"
        if self.mask["mode"] == "none":
            return "all patches"
        name = self.mask["selector"]
        if name not in CONTROLS:
            name += ", sharpest" if self.mask["drop"] == "below" else ", blurriest"
        return name if self.mask["mode"] == "gather" else f"{name} ({self.mask['mode']})"

    @property
    def keep_rate(self) -> float | None:
        """What a mask was asked to keep."""
        return self.mask["keep_rate"] if self.mask["mode"] != "none" else None

    @property
    def kept(self) -> float:
        """Share of the tokens computed: of the patches that a mask kept, or over the layers of EViT and ToMe."""
        inside = self.method.startswith(("EViT", "ToMe"))
        return self.speed["tokens"] if inside and self.speed else self.result.get("kept", 1.0)

    @property
    def label(self) -> str:
        """Blur and mask in words."""
        mask, parts = self.mask, [self.blur]
        if self.method in ("EViT", "ToMe"):
            parts.append(" ".join([self.method, *map(str, self.condition["options"].values())]))
        elif mask["mode"] != "none":
            parts.append(mask_text(mask))
        return ": ".join(parts)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run, or what `merge` makes of several that differ in their seed alone."""

    name: str
    workdirs: tuple[Path, ...]
    seeds: tuple[int, ...]
    config: dict
    rows: list[Row]
    trained: bool  # False: given weights that were only evaluated
    speed: dict | None = None
    quality: dict | None = None
    sessions: tuple[dict, ...] = ()
    classes: tuple[str, ...] = ()  # names, where the run left them
    gallery: dict[str, dict[str, np.ndarray]] | None = None  # {condition: arrays}, see bjax/gallery.py
    sweep: str = ""  # the sweep it belongs to
    point: tuple[tuple[str, str], ...] = ()  # its overrides there, without the seed
    number: int = 0  # in the report

    @property
    def model(self) -> str:
        return model_text(self.config["model"])

    @property
    def training(self) -> str:
        """What blur the training images had: sharp | blurred | mix as in paper 1, other blurs in words."""
        if not self.trained:
            return "as given"
        blur = self.config["blur"]
        kinds = kinds_of(blur)
        for name, those in TRAINING.items():
            if kinds == those and (is_papers(blur) if "gaussian" in kinds else not is_noisy(blur)):
                return name
        return blur_text(blur)

    @property
    def regimen(self) -> str:
        """The blur of the training images, and the patches left out of them."""
        mask = self.config.get("mask") or {"mode": "none"}
        return self.training + (f", {mask_text(mask)}" if self.trained and mask["mode"] != "none" else "")

    @property
    def trained_on(self) -> str:
        return f"{self.regimen}: {self.origin}" if self.trained else self.origin

    @property
    def origin(self) -> str:
        """What made the weights: images, and the file they started from."""
        file = Path(self.config.get("init_from") or "").name
        return f"{self.data}, from {file}" if self.trained and file else file or self.data

    @property
    def data(self) -> str:
        """The images it learned from."""
        name, split = self.config["data"]["name"], self.config["data"]["train"]
        share = re.fullmatch(r"train\[:(\d+)%\]", split)
        if not self.trained:
            return "as given"
        if split == "train":
            return f"{name}, all"
        return f"{name}, {share[1]} %" if share else f"{name} {split}"

    def find(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name), None)


def in_order(runs: list[Run]) -> list[Run]:
    """By model, and by training blur as in paper 1: the same blur has the same style in every figure."""
    order = list(TRAINING)
    return sorted(
        runs, key=lambda r: (r.model, order.index(r.training) if r.training in order else len(order))
    )


def firsts(rows: list[Row], key) -> dict:
    """{key(row): row}: of rows that are alike in it the first."""
    found = {}
    for row in rows:
        found.setdefault(key(row), row)
    return found


def kinds_of(blur: dict) -> dict[str, float]:
    """The kinds of blur that occur, in the order of sharp, gaussian, motion, defocus."""
    return {k: blur["kinds"][k] for k in BLUR_TYPES if blur["kinds"].get(k)}


def is_noisy(blur: dict) -> bool:
    """Whether noise is added to the images, sharp ones too."""
    return any(blur.get("noise") or ())


def is_papers(blur: dict) -> bool:
    """Whether its Gaussian is paper 1's: σ uniform in 1 to 2 pixels, 19 taps, no noise."""
    blur = BLUR_DEFAULTS | blur
    return all(blur[key] == value for key, value in PAPER_BLUR.items())


def blur_text(blur: dict) -> str:
    kinds = kinds_of(blur)
    text = f"σ = {_value(blur['sigma'])}" if list(kinds) == ["gaussian"] else " + ".join(kinds)
    return text + (f", noise {_value(blur['noise'])}" if is_noisy(blur) else "")


def mask_text(mask: dict) -> str:
    which, threshold = mask["selector"], mask["threshold"]
    end = "" if which in CONTROLS else {"below": "sharpest ", "above": "blurriest "}[mask["drop"]]
    rule = [f"{mask['drop']} {threshold:g} dropped"] if threshold is not None else []
    rule += [f"{end}{100 * mask['keep_rate']:g} % kept"] if mask["keep_rate"] is not None else []
    own = {"laplacian": ""}.get(which, f"{which}, as many as " if threshold is not None else f"{which}, ")
    return own + ", ".join(rule) + ("" if mask["mode"] == "zero_pixels" else f" ({mask['mode']})")


NAMES = {
    "resnet": "ResNet",
    "vgg": "VGG",
    "googlenet": "GoogLeNet",
    "densenet": "DenseNet-",
    "vit": "ViT",
}


def model_text(model: dict) -> str:
    family, size = re.fullmatch(r"([a-z]+)(.*)", model["name"]).groups()
    options = dict(model.get("options", {}))
    text = NAMES.get(family, family) + size.replace("_bn", " (BatchNorm)")
    if "variant" in options:
        text += f"-{options.pop('variant')}"
    return text + (f" ({', '.join(f'{k} {v}' for k, v in options.items())})" if options else "")


def told_apart(
    rows: list[Row], text: Callable[[Row], str], compared=lambda key: True
) -> Callable[[Row], str]:
    """`text` of a row, with the fields in which rows of equal text differ: "sharp: below 100 dropped, fill mean".

    Rows that still have the same words have conditions of one effect, and so the same numbers. compared: whether a
    field ("mask.fill") belongs to what the words are to tell.
    """
    alike = {}
    for row in rows:
        alike.setdefault(text(row), []).append(_effective(row.condition))
    differ = {}
    for words, found in alike.items():
        keys = dict.fromkeys(key for own in found for key in own if compared(key))
        differ[words] = [key for key in keys if any(own.get(key) != found[0].get(key) for own in found)]

    def name(row: Row) -> str:
        own, words = _effective(row.condition), text(row)
        fields = [f"{key.rpartition('.')[2]} {_value(own[key])}" for key in differ[words] if key in own]
        return ", ".join([words, *fields])

    return name


def _effective(condition: dict) -> dict:
    """{dotted key: value} of what in a condition has an effect on its numbers; bn_adapt, told anyhow, is not in it."""
    found = {"split": condition["split"]}
    if condition.get("corruption"):
        found |= {"corruption": condition["corruption"], "severity": condition.get("severity", 1)}
    else:
        blur = BLUR_DEFAULTS | condition["blur"]
        kinds = kinds_of(blur)
        fields = ("noise", *(field for kind in kinds for field in BLUR_FIELDS[kind]))
        found |= leaves({"blur": {"kinds": kinds, **{field: blur.get(field) for field in fields}}})
    mask = MASK_DEFAULTS | condition["mask"]
    unused = set() if mask["mode"] == "zero_pixels" else {"fill"}
    if mask["selector"] in ("random", "centre") and mask["threshold"] is None:  # no score decides
        unused |= {"drop", "scope"}
    if mask["mode"] == "none":
        unused = mask.keys() - {"mode"}
    found |= leaves({"mask": {field: value for field, value in mask.items() if field not in unused}})
    return found | leaves({"options": condition.get("options", {})})


def _value(value) -> str:
    """A field in words: a range of blur as such, of one number as that number."""
    if isinstance(value, list) and len(value) == 2:
        return "–".join(dict.fromkeys(f"{x:g}" for x in value))
    return str(value)


def leaves(node: dict, prefix: str = "") -> dict:
    """{dotted key: value} of a nested dictionary."""
    flat = {}
    for key, value in node.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
