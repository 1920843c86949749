"""Intervals in words, and paired differences: what a cell, a caption and a bar say of how sure a number is."""

import base64
import dataclasses

import numpy as np

from bjax import stats
from bjax.report.runs import Row

SHOWN = 3  # conditions of which a caption has the photographs' own values; the section has all
SIGNIFICANT = 0.05
# What `difference` does, for captions
PAIRED = (
    "paired over the same images: 95 % interval of Student's t over the photographs' differences, or, where every "
    "image is a photograph of its own, p of McNemar's exact test; of two seeds both differences"
)


def brackets(result: dict, metric: str = "top1", digits: int = 1) -> str:
    """What stands behind a mean: " (43.5–56.5)", its 95 % interval in per cent; of two seeds both values; or ""."""
    ends, joint = stats.interval(result, metric), "–"
    if f"{metric}_seeds" in result:
        ends, joint = result[f"{metric}_seeds"], " and "
    return f" ({joint.join(f'{100 * x:.{digits}f}' for x in ends)})" if ends else ""


def accuracy(row: Row | None, metric: str = "top1") -> str:
    """Per cent with the 95 % interval, in as many digits as the number of images bears; "" without a value."""
    if row is None or metric not in row.result:
        return ""
    digits = 2 if row.result["n"] >= 10_000 else 1
    return f"{100 * row.result[metric]:.{digits}f}{brackets(row.result, metric)}"


def bars(results: list[dict], metric: str = "top1") -> tuple[list[float], list[float]] | tuple[None, None]:
    """The lower and the upper ends of a line's intervals, per cent; none where a point of it has none."""
    ends = [stats.interval(result, metric) for result in results]
    if None in ends:
        return None, None
    return [100 * low for low, _ in ends], [100 * high for _, high in ends]


def about(rows: list[Row], where: str = "brackets") -> str:
    """What the intervals of `rows` are; which are not to be trusted, and the photographs' own values of these.

    where: in brackets, or as the bars of a figure.
    """
    text, doubted = kinds(rows, where), [row for row in rows if doubtful(row)]
    if not doubted:
        return text
    told = [f"{row.name} (run {row.run}): {values(row)}" for row in doubted[:SHOWN]]
    if len(doubted) > SHOWN:
        told.append(f"of the other {len(doubted) - SHOWN} under Photographs")
    return f"{text} {doubt(len(doubted))}. The photographs' own values, %: {'; '.join(told)}."


def doubt(number: int) -> str:
    """That so many intervals are not to be trusted."""
    return (
        f"{number} of them {'is' if number == 1 else 'are'} over too few photographs for so high or low a share, and "
        "may miss the truth more often than 1 time in 10 (docs/intervals.md)"
    )


def kinds(rows: list[Row], where: str) -> str:
    """Which kinds of intervals those of `rows` are."""
    drawn = where == "bars"
    if {row.seeds for row in rows} == {2}:
        return "no bars, of two seeds." if drawn else "In brackets the values of both seeds."
    of = sorted({row.result["n_photographs"] for row in rows if "n_photographs" in row.result})
    methods = []
    if of:
        methods.append(
            f"Student's t over the {' or '.join(map(str, of))} photographs that the images are crops of, never "
            "narrower than Wilson's over the images"
        )
    if any("n_photographs" not in row.result for row in rows):
        methods.append("Wilson's, over the images")
    what = "bars are 95 % intervals" if drawn else "95 % interval in brackets"
    text = f"{what}: {'; where no photographs are named '.join(methods)}"
    if any(row.seeds > 2 for row in rows):
        text += "; of several seeds Student's t over the seeds, nowhere narrower than one seed's"
    if any(row.seeds == 2 for row in rows):
        text += f"; of two seeds {'none' if drawn else 'both values'}"
    return text + "."


def doubtful(row: Row) -> bool:
    """Whether its interval is shown, and is over too few photographs to be trusted."""
    number = row.result.get("n_photographs")
    shown = number is not None and stats.interval(row.result) is not None
    return shown and not stats.covered(number, row.result["top1"])


def values(row: Row) -> str:
    """Top-1 on each photograph, per cent."""
    known = row.result.get("photographs")
    if not known:
        return "not kept of so many"
    return ", ".join(f"{name} {100 * p['hits'] / p['n']:.1f}" for name, p in known.items())


# --- two conditions on the same images


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of two conditions' top-1 on the same images, in shares, mean over the seeds.

    ends: 95 % interval; None of two seeds. p: of McNemar's exact test; one seed, every image a photograph of its own.
    seeds: each seed's difference. sign: 1 or -1 where chance alone does not explain it, else 0.
    """

    mean: float
    ends: stats.Interval | None
    p: float | None
    seeds: tuple[float, ...]
    sign: int

    @property
    def text(self) -> str:
        """In percentage points: "+2.0 (+0.3 to +3.7)", "+2.0 (p = 0.031)", of two seeds "+2.0 (+1.0 and +3.0)"."""
        if self.p is not None:
            behind = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}"
        elif self.ends is None:
            behind = " and ".join(signed(100 * x) for x in self.seeds)
        elif self.ends[0] == self.ends[1]:
            behind = "the same on each"  # no interval: that so few agree says little
        else:
            behind = " to ".join(signed(100 * x) for x in self.ends)
        return f"{signed(100 * self.mean)} ({behind})"


def difference(row: Row | None, control: Row | None) -> Difference | None:
    """`row` minus `control`, paired by seed and by photograph; None where they have no answers to the same images.

    Student's t over the photographs' differences; where every image is a photograph of its own McNemar's exact test; of
    several seeds Student's t over their differences, nowhere narrower than one seed's. Of two seeds each must show it.
    """
    return None if row is None or control is None else mean_difference([(row, control)])


def mean_difference(pairs: list[tuple[Row, Row]]) -> Difference | None:
    """`difference`, of the mean over `pairs` of rows and controls that all are of the same images and seeds.

    Each photograph's differences are averaged before anything else: conditions of the same photographs are no more
    photographs than one.
    """
    seeds = _seeds(pairs)
    per_seed = [_paired([(row.by_seed[s], control.by_seed[s]) for row, control in pairs]) for s in seeds]
    if not per_seed or None in per_seed:
        return None
    means, ends, ps = zip(*per_seed, strict=True)
    mean = sum(means) / len(means)
    signs = {_sign(*one) for one in per_seed}
    if len(per_seed) == 1:
        return Difference(mean, ends[0], ps[0], means, signs.pop())
    if len(per_seed) == 2:
        return Difference(mean, None, None, means, signs.pop() if len(signs) == 1 else 0)
    over = stats.over_seeds(means, ends, within=(-1.0, 1.0))
    return Difference(mean, over, None, means, _sign(mean, over, None))


def on_each(pairs: list[tuple[Row, Row]]) -> dict[str, float]:
    """{photograph: the mean difference of `pairs` on it, over the seeds}; {} where every image is one of its own."""
    both = [(row.by_seed[seed], control.by_seed[seed]) for seed in _seeds(pairs) for row, control in pairs]
    names = {tuple(result.get("photographs", ())) for results in both for result in results}
    if len(names) != 1 or () in names:
        return {}
    each = [_differences(*results) for results in both]
    return dict(zip(names.pop(), np.mean(each, axis=0).tolist(), strict=True))


def _seeds(pairs: list[tuple[Row, Row]]) -> list[int]:
    """Those that all of them have."""
    return [seed for seed in pairs[0][0].by_seed if all(seed in row.by_seed for pair in pairs for row in pair)]


def _paired(pairs: list[tuple[dict, dict]]) -> tuple[float, stats.Interval, float | None] | None:
    """Mean difference of pairs of rows of results.json, its 95 % interval, and McNemar's p where that applies."""
    ours, theirs = pairs[0]
    if len({(r.get("images"), r["n"]) for pair in pairs for r in pair}) > 1 or "images" not in ours:
        return None
    each = [_differences(*pair) for pair in pairs]
    if any(one is None or one.shape != each[0].shape for one in each):
        return None
    differences, p = np.mean(each, axis=0), None
    if len(pairs) == 1 and "photographs" not in ours:
        p = stats.mcnemar(_bits(ours) > 0, _bits(theirs) > 0)
    mean = float(np.mean(differences))
    if np.ptp(differences) < 1e-9:  # the same on each, but for rounding: of a spread of 1e-17 all would be significant
        return mean, (mean, mean), p
    return mean, stats.t_interval(differences, within=(-1.0, 1.0)), p


def _differences(ours: dict, theirs: dict) -> np.ndarray | None:
    """Of each photograph's share of right answers, or, where every image is one, of each image's answer."""
    if "photographs" in ours and ours["photographs"].keys() == theirs.get("photographs", {}).keys():
        pairs = [(a, theirs["photographs"][name]) for name, a in ours["photographs"].items()]
        return np.array([a["hits"] / a["n"] - b["hits"] / b["n"] for a, b in pairs])
    return _bits(ours) - _bits(theirs) if "hits" in ours and "hits" in theirs else None


def _bits(row: dict) -> np.ndarray:
    packed = np.frombuffer(base64.b64decode(row["hits"]), np.uint8)
    return np.unpackbits(packed, count=row["n"]).astype(float)


def _sign(mean: float, ends: stats.Interval, p: float | None) -> int:
    shown = p < SIGNIFICANT if p is not None else ends[0] < ends[1] and not ends[0] <= 0 <= ends[1]
    return int(np.sign(mean)) if shown else 0


def signed(x: float, digits: int = 1) -> str:
    """With a sign, and a minus as wide as the plus."""
    return f"{x:+.{digits}f}".replace("-", "−")
