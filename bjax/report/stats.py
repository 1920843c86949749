"""The numbers of the report itself: intervals, areas under curves, ImageNet-C's corruption error, rates of a matrix."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
# AlexNet's mean top-1 error over the five severities, the unit of the corruption error (Hendrycks & Dietterich 2019)
ALEXNET = {"defocus_blur": 0.819880, "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360}


def t_interval(values: Sequence[float], *, within: tuple[float, float]) -> list[float]:
    """95 % interval of the mean of at least two values, by Student's t; cut off at the ends of what is possible."""
    n = len(values)
    mean, spread = np.mean(values), np.std(values, ddof=1)
    half = special.stdtrit(n - 1, 0.975) * spread / math.sqrt(n)
    return [max(within[0], float(mean - half)), min(within[1], float(mean + half))]


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share of n; (0, 1) of none."""
    if not n:
        return 0.0, 1.0
    z2 = Z95**2 / n
    centre = (share + z2 / 2) / (1 + z2)
    half = Z95 / (1 + z2) * math.sqrt(share * (1 - share) / n + z2 / (4 * n))
    return max(0.0, centre - half), min(1.0, centre + half)


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
    counts = np.asarray(confusion, float)
    rates = []
    for i, hits in enumerate(np.diag(counts)):
        predicted, n = counts[:, i].sum(), counts[i].sum()
        rates.append(
            {
                "precision": hits / predicted if predicted else None,
                "recall": hits / n if n else None,
                "f1": 2 * hits / (predicted + n) if predicted + n else None,
                "n": int(n),
            }
        )
    return rates
