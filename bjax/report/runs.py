"""What a report knows of a run and of its conditions, and how it names and orders them."""

import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from bjax.report import words
from bjax.specs import CONTROLS

# Methods that lose tokens inside the model: the option that asks for each, and its value that does not.
INSIDE = {"EViT": ("evit_keep", 1), "ToMe": ("tome_r", 0), "highpass": ("highpass_keep", 1)}
STRENGTHS = {"gaussian": "sigma", "motion": "length", "defocus": "radius"}
TRAINING = {"sharp": {"sharp": 1.0}, "blurred": {"gaussian": 1.0}, "mix": {"sharp": 0.5, "gaussian": 0.5}}


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
    similarity: dict | None = None  # see bjax/evaluate/similarity.py

    @property
    def seeds(self) -> int:
        """How many seeds have it: of a run of several perhaps not all."""
        return max(1, len(self.by_seed))

    @property
    def adapted(self) -> bool:
        """Whether BatchNorm statistics were taken anew, from images blurred like the condition's."""
        return bool(self.condition.get("bn_adapt"))

    @property
    def mask(self) -> dict:
        return self.condition["mask"]

    @property
    def corruption(self) -> tuple[str, int] | None:
        """Name and severity of ImageNet-C, where the condition has one."""
        name = self.condition.get("corruption")
        return (name, self.condition.get("severity", 1)) if name else None

    @property
    def drawn_sigma(self) -> tuple[float, float] | None:
        """Range of a Gaussian blur in pixels, (0, 0) where images stay sharp; None for any other blur."""
        kinds = words.kinds_of(self.condition["blur"])
        if self.corruption or list(kinds) not in (["sharp"], ["gaussian"]):
            return None
        return (0.0, 0.0) if list(kinds) == ["sharp"] else tuple(self.condition["blur"]["sigma"])

    @property
    def sigma(self) -> tuple[float, float] | None:
        """The same, None for a blur of parts, too."""
        return self.drawn_sigma if words.where_of(self.condition["blur"]) == "whole" else None

    @property
    def one_sigma(self) -> float | None:
        """That of a Gaussian of a fixed σ without noise, 0 where images stay sharp."""
        fixed = self.sigma and self.sigma[0] == self.sigma[1] and not words.is_noisy(self.condition["blur"])
        return self.sigma[0] if fixed else None

    @property
    def strength(self) -> tuple[str, float] | None:
        """Kind and strength of a blur of one kind that is always as strong, all over the image and without noise.

        Of a corruption its name and severity, else sigma, length or radius in pixels.
        """
        if self.corruption:
            return self.corruption
        blur, kinds = self.condition["blur"], list(words.kinds_of(self.condition["blur"]))
        low, high = (blur.get(STRENGTHS.get(kinds[0])) if len(kinds) == 1 else None) or (0, 0)
        usual = words.where_of(blur) == "whole" and not words.is_noisy(blur)
        return (kinds[0], low) if usual and 0 < low == high else None

    @property
    def whole(self) -> bool:
        """Whether the model sees every patch and loses none on the way."""
        return self.mask["mode"] == "none" and self.method not in INSIDE

    @property
    def in_matrix(self) -> bool:
        """Not of the grids that other sections show: fixed strengths, corruptions, matched keep rates, `INSIDE`."""
        rule = self.mask["threshold"] is not None and self.mask["keep_rate"] is None
        usual = self.mask["mode"] == "none" or rule
        grid = self.corruption or self.one_sigma or (self.strength and self.similarity)
        return usual and not grid and self.method not in INSIDE

    @property
    def blur(self) -> str:
        if self.corruption:
            return "{} {}".format(*self.corruption).replace("_", " ")
        return words.blur_text(self.condition["blur"])

    @property
    def method(self) -> str:
        """What decides which patches stay; "all patches" where all do."""
        options = self.condition.get("options", {})
        for name, (option, off) in INSIDE.items():
            if options.get(option, off) != off:
                return name
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
        """Share of the tokens computed: of the patches that a mask kept, or over the layers of `INSIDE`."""
        return self.speed["tokens"] if self.method in INSIDE and self.speed else self.result.get("kept", 1.0)

    @property
    def label(self) -> str:
        """Blur and mask in words."""
        if self.method in INSIDE:
            return f"{self.blur}: {' '.join([self.method, *map(str, self.condition['options'].values())])}"
        return self.blur + (f": {words.mask_text(self.mask)}" if self.mask["mode"] != "none" else "")


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
    gallery: dict[str, dict[str, np.ndarray]] | None = None  # by condition, see bjax/evaluate/gallery.py
    calibration: dict | None = None  # see bjax/evaluate/calibration.py; of several seeds the first's that has it
    adapt: dict | None = None  # see bjax/evaluate/adapt.py; of several seeds the first's that has it
    sweep: str = ""  # the sweep it belongs to
    sweep_config: str = ""  # the config that names its points
    point: tuple[tuple[str, str], ...] = ()  # its overrides there, without the seed
    number: int = 0  # in the report

    @property
    def model(self) -> str:
        return words.model_text(self.config["model"])

    @property
    def training(self) -> str:
        """What blur the training images had: sharp | blurred | mix as in paper 1, other blurs in words; and AugMix."""
        if not self.trained:
            return "as given"
        blur = self.config["blur"]
        kinds = words.kinds_of(blur)
        usual = words.is_papers(blur) if "gaussian" in kinds else not words.is_noisy(blur)
        named = (name for name, shares in TRAINING.items() if usual and kinds == shares)
        augmix = " + AugMix" if self.config.get("augmix", {}).get("width") else ""
        jsd = " with JSD" if self.config.get("loss", {}).get("jsd") else ""
        return next(named, words.blur_text(blur)) + augmix + jsd

    @property
    def regimen(self) -> str:
        """The blur of the training images, and the patches left out of them."""
        mask = self.config.get("mask") or {"mode": "none"}
        masked = self.trained and mask["mode"] != "none"
        return self.training + (f", {words.mask_text(mask)}" if masked else "")

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
    order = {training: place for place, training in enumerate(TRAINING)}
    return sorted(runs, key=lambda run: (run.model, order.get(run.training, len(order))))


def grouped(items: Iterable, key: Callable) -> dict:
    """{key(item): items that are alike in it}, in their order."""
    by_key = {}
    for item in items:
        by_key.setdefault(key(item), []).append(item)
    return by_key


def firsts(rows: list[Row], key: Callable) -> dict:
    """{key(row): row}: of rows that are alike in it the first."""
    return {k: alike[0] for k, alike in grouped(rows, key).items()}


def told_apart(rows: list[Row], text: Callable[[Row], str], compared=lambda key: True) -> Callable[[Row], str]:
    """`text` of a row, with the fields in which rows of equal text differ: "sharp: below 100 dropped, fill mean".

    Rows that still have the same words have conditions of one effect, and so the same numbers. compared: whether a
    field ("mask.fill") belongs to what the words are to tell.
    """
    differ = {}
    for label, alike in grouped(rows, text).items():
        effects = [words.effective(row.condition) for row in alike]
        keys = dict.fromkeys(key for effect in effects for key in effect if compared(key))
        differ[label] = [k for k in keys if any(effect.get(k) != effects[0].get(k) for effect in effects)]

    def name(row: Row) -> str:
        effect, label = words.effective(row.condition), text(row)
        fields = [key for key in differ[label] if key in effect]
        told = [f"{key.rpartition('.')[2]} {words.value_text(effect[key])}" for key in fields]
        return ", ".join([label, *told])

    return name


def images_text(rows: Iterable[Row]) -> str:
    """How many images: "1,000", or "1,000 or 5,000"."""
    return " or ".join(f"{n:,}" for n in sorted({row.result["n"] for row in rows}))


def number_text(run: Run, rows: list[Row] = ()) -> str:
    """The run's number: "3", of five seeds "3 ×5", and "3 ×2–4 of 5" where not all of them have these `rows`."""
    seeds = len(run.seeds)
    counts = sorted({row.seeds for row in rows}) or [seeds]
    if seeds == 1:
        return f"{run.number}"
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    return f"{run.number} ×{number}" + (f" of {seeds}" if counts != [seeds] else "")
