"""Numbers from numbers: intervals, paired comparisons, areas under curves, corruption errors, rates of a matrix."""

import functools
import math
from collections.abc import Sequence

import numpy as np

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
# Where `over_photographs` holds the truth at least 90 times in 100, whatever photographs have in common: from so many
# photographs on, for accuracies from 1 − the second number to it. By docs/intervals.md.
COVERED = ((4, 0.65), (14, 0.8), (50, 0.9), (200, 0.95))
# AlexNet's mean top-1 error over the five severities, the unit of the corruption error (Hendrycks & Dietterich 2019)
ALEXNET = {"defocus_blur": 0.819880, "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360}

Interval = tuple[float, float]  # low, high; of functions that take arrays: arrays


def wilson(hits: float | np.ndarray, n: int) -> Interval:
    """95 % Wilson score interval of a proportion `hits / n` (Wilson 1927), hits: [...]; (0, 1) of none."""
    if not n:
        return 0.0, 1.0
    p, z2 = hits / n, Z95**2 / n
    centre = (p + z2 / 2) / (1 + z2)
    half = Z95 / (1 + z2) * np.sqrt(p * (1 - p) / n + z2 / (4 * n))
    return np.maximum(0.0, centre - half), np.minimum(1.0, centre + half)


def mean_interval(values: np.ndarray) -> Interval:
    """95 % interval of the mean of values [n], by the normal approximation."""
    half = Z95 * float(np.std(values)) / math.sqrt(max(len(values) - 1, 1))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def t_interval(values: Sequence[float] | np.ndarray, *, within: Interval = (-math.inf, math.inf)) -> Interval:
    """95 % interval of the mean of values [..., n] over n, by Student's t; cut off at the ends of what is possible.

    One value says nothing of others: its interval is `within`.
    """
    n = np.shape(values)[-1]
    if n == 1:
        return within
    mean, spread = np.mean(values, axis=-1), np.std(values, axis=-1, ddof=1)
    from scipy import special  # here: every command reads this file, and few get this far

    half = special.stdtrit(n - 1, 0.975) * spread / math.sqrt(n)
    return np.maximum(within[0], mean - half), np.minimum(within[1], mean + half)


def over_photographs(means: np.ndarray, at_least: Interval, *, within: Interval = (-math.inf, math.inf)) -> Interval:
    """95 % interval of a mean over images of which several are of one photograph, and so are not independent.

    Student's t over the photographs' own means [..., photographs], widened to hold `at_least`: what the interval were
    if the images were independent. How often it holds the truth is simulated in docs/intervals.md.
    """
    return hull(t_interval(means, within=within), at_least)


def hull(*intervals: Interval) -> Interval:
    """The smallest interval that holds them all."""
    lows, highs = zip(*intervals, strict=True)
    return functools.reduce(np.minimum, lows), functools.reduce(np.maximum, highs)


def over_seeds(
    values: Sequence[float], intervals: Sequence[Interval], *, within: Interval = (-math.inf, math.inf)
) -> Interval:
    """95 % interval of the mean of one value per seed: Student's t over the seeds, nowhere narrower than one seed's.

    intervals: each seed's own over the images, which are the same for all: seeds that agree on them say nothing about
    other images. None where there are none.
    """
    mean = math.fsum(values) / len(values)
    pairs = zip(values, intervals, strict=bool(intervals))
    ends = [(mean - (value - low), mean + (high - value)) for value, (low, high) in pairs]
    low, high = hull(t_interval(values, within=within), *ends)
    return max(within[0], low), min(within[1], high)


def covered(photographs: int, mean: float) -> bool:
    """Whether `over_photographs` of so many photographs is to be trusted about an accuracy of that size."""
    most = max((limit for number, limit in COVERED if photographs >= number), default=0)
    return max(mean, 1 - mean) <= most


def interval(row: dict, name: str = "top1") -> Interval | None:
    """The 95 % interval of a row of results.json that is to be printed: over photographs where the row has one."""
    bounds = row.get(f"{name}_95_photographs", row.get(f"{name}_95"))
    return None if bounds is None else tuple(bounds)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided p of McNemar's exact test that two classifiers are right equally often on the same n images.

    first, second: bool[n], whether each was right. The binomial test of those images that only one got right (McNemar
    1947); 1 where there are none.
    """
    from scipy import special

    first, second = np.asarray(first, bool), np.asarray(second, bool)
    fewer, more = sorted((int((first & ~second).sum()), int((second & ~first).sum())))
    return min(1.0, 2 * float(special.bdtr(fewer, fewer + more, 0.5)))


def area(x: Sequence[float], y: Sequence[float]) -> float:
    """Area under y over x by the trapezoid rule, over the length of x: the mean of y over that range."""
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def corruption_error(corruption: str, errors: Sequence[float]) -> float | None:
    """CE in per cent: the mean error of severities 1 to 5 over AlexNet's; None for a corruption without AlexNet's."""
    if corruption not in ALEXNET or len(errors) != 5:
        return None
    return 100 * math.fsum(errors) / (5 * ALEXNET[corruption])


def per_class(confusion: Sequence[Sequence[int]]) -> list[dict[str, float | None]]:
    """precision, recall and f1 of every class, and its number n, from counts (rows true, columns predicted).

    None where there is nothing to divide by.
    """

    def share(part: float, of: float) -> float | None:
        return part / of if of else None

    counts, rates = np.asarray(confusion, float), []
    for i, hits in enumerate(np.diag(counts)):
        predicted, n = counts[:, i].sum(), counts[i].sum()
        rate = {"precision": share(hits, predicted), "recall": share(hits, n)}
        rates.append({**rate, "f1": share(2 * hits, predicted + n), "n": int(n)})
    return rates
