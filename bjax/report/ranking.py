"""The blur ranking: every model that was tested under ImageNet-C's blurs, beside what RobustBench has published.

Blur mCE is the mean over defocus, glass, motion and zoom of the error, summed over the five severities, over AlexNet's
(`stats.ALEXNET`), in per cent. It means something on the benchmark's own images alone: elsewhere accuracies rank.
"""

import csv
import dataclasses
import io
from collections.abc import Callable
from statistics import fmean

from bjax import stats
from bjax.report import figures, intervals, words
from bjax.report.intervals import accuracy
from bjax.report.render import Figure, Heading, Mark, Table, Text, condensed, slug
from bjax.report.runs import Row, Run, grouped, images_text, number_text

BLURS = ("defocus_blur", "glass_blur", "zoom_blur", "motion_blur")  # motion last: it stands apart
SEVERITIES = range(1, 6)
# The order of RobustBench's columns, and the extra one, which it has not.
COLUMNS = ("motion_blur", "defocus_blur", "zoom_blur", "glass_blur", "gaussian_blur")
# Per cent: clean accuracy, and that under `stats.ALEXNET`'s blurs, the mean over five severities; 5,000 of ImageNet's
# validation images, ImageNet-C's JPEG files. From github.com/RobustBench/robustbench (Croce et al. 2021),
# model_info/imagenet/corruptions/unaggregated_results.csv and NAME.json, read at commit 78fcc9e.
THEIRS = {
    "Tian2022Deeper_DeiT-B": ("ViT-B/16, DeiT (Tian 2022)", 81.4, (57.5, 56.4, 60.1, 54.6)),
    "Tian2022Deeper_DeiT-S": ("ViT-S/16, DeiT (Tian 2022)", 79.8, (55.0, 50.0, 56.7, 48.4)),
    "Erichson2022NoisyMix_new": ("ResNet50, NoisyMix", 76.9, (47.6, 39.3, 53.8, 50.3)),
    "Hendrycks2020AugMix": ("ResNet50, AugMix", 77.3, (48.1, 35.1, 53.6, 49.5)),
    "Hendrycks2020Many": ("ResNet50, DeepAugment", 76.9, (51.4, 40.1, 48.3, 39.8)),
    "Geirhos2018_SIN_IN": ("ResNet50, SIN+IN", 75.0, (43.2, 32.7, 45.5, 36.9)),
    "Standard_R50": ("ResNet50", 76.7, (38.9, 26.8, 38.1, 36.3)),
}
THEIR_IMAGES = "5,000 JPEG"
BENCHMARK = (224, 256, "bilinear")  # how ImageNet-C's files were cut, before the corruption

ByBlur = dict[str, list[float]]  # the five severities' shares that are right


@dataclasses.dataclass(frozen=True)
class Images:
    """What models must have been shown to be compared: a split, and how it is cut to `side` pixels."""

    data: str
    split: str
    side: int
    resize: int  # of the shorter side, before; 0: none
    interpolation: str

    @property
    def are_the_benchmarks(self) -> bool:
        """Whether ImageNet-C's files were made of them, but for their number."""
        cut = self.side, self.resize, self.interpolation
        return (self.data, self.split.partition("[")[0]) == ("imagenet2012", "validation") and cut == BENCHMARK

    @property
    def text(self) -> str:
        scaled = f" of {self.resize}" if self.resize else ""
        how = "" if self.interpolation == "bilinear" else f", {self.interpolation}"
        return f"{self.data} {self.split}, {self.side}{scaled} px{how}"

    @property
    def file(self) -> str:
        return f"unaggregated_results_{slug(self.text)}.csv"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model on these images: its rows by ImageNet-C's name and severity, and by σ of a blur in regions."""

    run: Run
    adapted: bool
    images: Images
    sharp: Row | None
    corrupted: dict[tuple[str, int], Row]
    parts: dict[float, Row]

    @property
    def source(self) -> str:
        """What made it, in words."""
        return (self.run.trained_on if self.run.trained else self.run.origin) + ", bn_adapt" * self.adapted

    def has(self, *names: str) -> bool:
        return all((name, severity) in self.corrupted for name in names for severity in SEVERITIES)


def ranking(runs: list[Run]) -> list:
    """Models by blur mCE beside the published ones; by mean accuracy where these cannot be compared with."""
    blocks, by_images = [], grouped(entries(runs), lambda entry: entry.images)
    for number, (images, group) in enumerate(by_images.items(), 1):
        benchmark, whole = images.are_the_benchmarks, [entry for entry in group if entry.has(*BLURS)]
        if not whole:
            continue
        whole.sort(key=lambda e, rule=mce if benchmark else _errors: over_severities(e, rule, *BLURS)["value"])
        if len(by_images) > 1:
            blocks.append(Heading(images.text, 3))
        blocks += _beside_theirs(whole, number) if benchmark else _among_ours(whole)
        if parted := [entry for entry in whole if entry.parts]:
            blocks.append(_in_parts(parted))
        if lacking := [str(entry.run.number) for entry in group if entry not in whole]:
            blocks.append(Text(f"Not ranked, for want of some severities of the four blurs: run {', '.join(lacking)}."))
    return blocks


def files(runs: list[Run]) -> dict[str, str]:
    """{file name: text}: of every set of images the accuracies by blur and severity, in RobustBench's layout.

    That is pandas' of two header lines, corruption and severity, and a row of shares for each model. Empty: not tested.
    """
    texts = {}
    for images, group in grouped(entries(runs), lambda entry: entry.images).items():
        tested = {name for entry in group for name, _ in entry.corrupted}
        columns = [(name, severity) for name in COLUMNS if name in tested for severity in SEVERITIES]
        names = [(e.run.name if e.run.trained else e.run.origin) + "_bn_adapt" * e.adapted for e in group]
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerows(["", *header] for header in zip(*columns, strict=True))
        for name, entry in zip(names, group, strict=True):
            told = name if names.count(name) == 1 else f"{name} (run {entry.run.number})"
            rows = [entry.corrupted.get(at) for at in columns]
            writer.writerow([told, *(round(row.result["top1"], 6) if row else "" for row in rows)])
        texts[images.file] = buffer.getvalue()
    return texts


def entries(runs: list[Run]) -> list[Entry]:
    """Of every run that was tested under one of ImageNet-C's blurs, without a mask."""
    made = []
    for run in runs:
        rows = [row for row in run.rows if row.whole] if run.config["task"] == "object" else []
        for (split, adapted), alike in grouped(rows, lambda r: (r.condition["split"], r.adapted)).items():
            corrupted = {row.corruption: row for row in reversed(alike) if row.corruption}
            parts = {sigma: row for row in reversed(alike) if (sigma := _sigma_of_regions(row))}
            sharp = next((row for row in alike if row.one_sigma == 0), None)
            data = run.config["data"]
            how = data["image_size"], data.get("resize", 0), data.get("interpolation", "bilinear")
            if corrupted:
                made.append(Entry(run, adapted, Images(data["name"], split, *how), sharp, corrupted, parts))
    return made


def _sigma_of_regions(row: Row) -> float | None:
    """The fixed σ of a Gaussian inside of rectangles alone, without noise; None for any other blur."""
    blur, (low, high) = row.condition["blur"], row.drawn_sigma or (0.0, 0.0)
    return low if low == high and words.where_of(blur) == "regions" and not words.is_noisy(blur) else None


# --- numbers


def mce(by_blur: ByBlur) -> float:
    """The mean of the blurs' corruption errors, as a share of AlexNet's."""
    errors = {name: [1 - x for x in right] for name, right in by_blur.items()}
    return fmean(stats.corruption_error(name, e) for name, e in errors.items()) / 100


def mean_accuracy(by_blur: ByBlur) -> float:
    return fmean(x for right in by_blur.values() for x in right)


def _errors(by_blur: ByBlur) -> float:
    return 1 - mean_accuracy(by_blur)


def over_severities(entry: Entry, function: Callable[[ByBlur], float], *names: str) -> dict[str, object]:
    """`function` of the accuracies under the blurs `names`, as "value" of a row, with its "value_95" or "value_seeds".

    The interval is the function of the conditions' own ends. They are of the same images, which the mean of twenty does
    not make more: it is as wide as if all conditions erred together, and never too narrow.
    """

    def applied(of_row: Callable[[Row], float]) -> float:
        return function({name: [of_row(entry.corrupted[name, s]) for s in SEVERITIES] for name in names})

    result = {"value": applied(lambda row: row.result["top1"])}
    rows = [entry.corrupted[name, s] for name in names for s in SEVERITIES]
    seeds = {tuple(row.by_seed) for row in rows}
    if all(stats.interval(row.result) for row in rows):
        result["value_95"] = sorted(applied(lambda row, i=i: stats.interval(row.result)[i]) for i in (0, 1))
    elif len(seeds) == 1:
        result["value_seeds"] = [applied(lambda row, s=s: row.by_seed[s]["top1"]) for s in seeds.pop()]
    return result


def _cell(result: dict) -> str:
    return f"{100 * result['value']:.1f}{intervals.brackets(result, 'value')}"


def _plain(value: float) -> str:
    return f"{100 * value:.1f}"


# --- tables


def _beside_theirs(group: list[Entry], number: int) -> list:
    """On the benchmark's images."""
    ranked = []
    for entry in group:
        ours = over_severities(entry, mce, *BLURS)
        errors = [over_severities(entry, mce, *names)["value"] for names in (BLURS[:3], BLURS[3:])]
        cells = [entry.run.model, entry.source, *_accuracies(entry), *map(_plain, errors), _cell(ours)]
        rows = list(entry.corrupted.values())
        ends = tuple(100 * x for x in ours.get("value_95", ())) or None
        dot = figures.Dot(f"{entry.run.model}: {entry.source}", 100 * ours["value"], ends)
        ranked.append((ours["value"], [*cells, images_text(rows), number_text(entry.run, rows)], dot))
    ranked += [_theirs(key) for key in THEIRS]
    ranked.sort(key=lambda line: line[0])
    told = Text(
        "In italics, and hollow in the figure, is not ours but RobustBench's (github.com/RobustBench/robustbench, "
        "model_info/imagenet/corruptions/unaggregated_results.csv), on 5,000 of the 50,000 validation images. Motion "
        "stands apart: ours, computed from the crop as it is, is not ImageMagick's, which made theirs, and all of "
        "theirs are ImageNet-C's JPEG files."
    )
    header = ["model", "weights", "sharp, top-1 %", "defocus", "glass", "zoom", "motion", "Gaussian"]
    header += ["the first three", "motion", "blur mCE", "images", "run"]
    groups = (("", 3), ("top-1 %, mean over severities", 5), ("error, % of AlexNet's", 3), ("", 2))
    shown = [row for entry in group for row in entry.corrupted.values()]
    caption = (
        "By blur mCE, the mean of the errors under defocus, glass, zoom and motion over AlexNet's (Hendrycks and "
        "Dietterich 2019; the errors as google-research/augmix, imagenet.py, lists them). Less is better. Gaussian "
        f"blur is the benchmark's extra one. {intervals.kinds(shown, 'brackets')} {_how(group[0])}"
    )
    axis = "blur mCE: error under blur, % of AlexNet's"
    drawing = figures.dots([dot for *_, dot in ranked], axis, most=None)
    alt = "Blur mCE of every model, ours and RobustBench's"
    figure = Figure(f"ranking{number}", drawing, f"{axis}; hollow: RobustBench's.", alt)
    return [told, Table(header, [line for _, line, _ in ranked], caption, left=2, groups=groups), figure]


def _theirs(key: str) -> tuple[float, list, figures.Dot]:
    """A published row, all of it in italics."""
    name, sharp, means = THEIRS[key]
    at = dict(zip(stats.ALEXNET, ([x / 100] * 5 for x in means), strict=True))
    values = [mce({name: at[name] for name in names}) for names in (BLURS[:3], BLURS[3:], BLURS)]
    accuracies = [f"{x:.1f}" for x in (sharp, *(100 * at[name][0] for name in BLURS))]
    cells = [name, f"RobustBench: {key}", *accuracies, "", *map(_plain, values), THEIR_IMAGES, "theirs"]
    dot = figures.Dot(f"{name} (RobustBench)", 100 * values[-1], control=True)
    return values[-1], [Mark(cell, "em") if cell else "" for cell in cells], dot


def _among_ours(group: list[Entry]) -> list:
    """On other images than the benchmark's."""
    body = []
    for entry in group:
        rows = list(entry.corrupted.values())
        mean = over_severities(entry, mean_accuracy, *BLURS)
        cells = [entry.run.model, entry.source, *_accuracies(entry), _cell(mean)]
        body.append([*cells, images_text(rows), number_text(entry.run, rows)])
    told = Text(
        "AlexNet's errors and the published rows are of ImageNet's validation images, a thousand classes, scaled to "
        f"256 pixels and cut to 224. These are {group[0].images.text}: neither is comparable, there is no blur mCE, "
        "and the mean accuracy ranks."
    )
    header = ["model", "weights", "sharp, top-1 %", "defocus", "glass", "zoom", "motion", "Gaussian"]
    header += ["mean of the four", "images", "run"]
    groups = (("", 3), ("top-1 %, mean over severities", 6), ("", 2))
    shown = [row for entry in group for row in entry.corrupted.values()]
    caption = (
        "ImageNet-C's blurs; Gaussian, the benchmark's extra one, is not in the mean. "
        f"{intervals.about(shown)} {_how(group[0])}"
    )
    return [told, condensed(Table(header, body, caption, left=2, groups=groups))]


def _in_parts(group: list[Entry]) -> Table:
    """Accuracy where only regions are blurred, beside the sharp images."""
    sigmas = sorted({sigma for entry in group for sigma in entry.parts})
    body = []
    for entry in group:
        rows = [entry.sharp, *(entry.parts.get(sigma) for sigma in sigmas)]
        body.append(
            [entry.run.model, entry.source, *map(accuracy, rows), number_text(entry.run, [*filter(None, rows)])]
        )
    header = ["model", "weights", "sharp, top-1 %", *(f"σ = {sigma:g}" for sigma in sigmas), "run"]
    groups = (("", 3), ("top-1 %, regions blurred", len(sigmas)), ("", 1))
    shown = [row for entry in group for row in entry.parts.values()]
    caption = (
        f"One to three rectangles of each of {images_text(shown)} images, half of it on average, blurred by a Gaussian "
        f"of σ pixels. {intervals.about(shown)}"
    )
    return condensed(Table(header, body, caption, left=2, groups=groups))


def _accuracies(entry: Entry) -> list[str]:
    """Of sharp images, and the means under each blur."""
    means = [_plain(over_severities(entry, mean_accuracy, n)["value"]) for n in BLURS]
    extra = (
        _plain(over_severities(entry, mean_accuracy, "gaussian_blur")["value"]) if entry.has("gaussian_blur") else ""
    )
    return [accuracy(entry.sharp), *means, extra]


def _how(entry: Entry) -> str:
    return (
        "That of a mean is the mean of its conditions' ends: they are of the same images, and it is never too narrow. "
        f"Each severity alone: {entry.images.file}, in RobustBench's layout."
    )
