"""Which two conditions are compared, and whether they differ by more than chance."""

import dataclasses

from bjax.report import intervals, words
from bjax.report.intervals import Difference, difference
from bjax.report.runs import Row, Run

USUAL = 1.5  # pixels: the middle of paper 1's σ
FEW = 4  # photographs that a difference needs, see docs/intervals.md


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two conditions on the same images; who: the run, in words."""

    who: str
    row: Row
    control: Row

    @property
    def difference(self) -> Difference | None:
        return difference(self.row, self.control)

    @property
    def sign(self) -> int:
        """1 or -1 where the difference is beyond chance, else 0."""
        return self.difference.sign if self.difference and not self.few else 0

    @property
    def few(self) -> bool:
        return self.row.result.get("n_photographs", FEW) < FEW

    @property
    def text(self) -> str:
        """The difference in points, and, where it cannot be paired, the plain one."""
        gap = 100 * (self.row.result["top1"] - self.control.result["top1"])
        return self.difference.text if self.difference else f"{intervals.signed(gap)} (not paired)"

    @property
    def points(self) -> str:
        """As `text`, with the unit: "−23.4 points (−30.1 to −16.7)"."""
        return self.text.replace(" (", " points (", 1)

    @property
    def verdict(self) -> str:
        if self.difference is None:
            return "not paired, so whether by chance is not told"
        if self.few:
            return "too few photographs to tell it from chance"
        if (ends := self.difference.ends) and ends[0] == ends[1] != 0 and self.difference.p is None:
            return "too alike on the photographs to tell it from chance"
        return "more than chance explains" if self.sign else "no difference beyond chance"


def sharp_row(run: Run) -> Row | None:
    """All patches of sharp images, BatchNorm as trained."""
    return next((row for row in run.rows if row.whole and not row.adapted and row.one_sigma == 0), None)


def blurred_row(run: Run) -> Row | None:
    """All patches of blurred images, the blur nearest paper 1's; of the split of the sharp ones, if there are any."""
    rows = [row for row in run.rows if row.whole and not row.adapted and is_blurred(row)]
    sharp = sharp_row(run)
    alike = [row for row in rows if sharp and row.condition["split"] == sharp.condition["split"]]
    return min(alike or rows, key=distance, default=None)


def row_like(run: Run, condition: dict) -> Row | None:
    """The row of a condition of the same effect, BatchNorm as trained."""
    effect = words.effective(condition)
    return next((row for row in run.rows if not row.adapted and words.effective(row.condition) == effect), None)


def is_blurred(row: Row) -> bool:
    return bool(row.corruption) or list(words.kinds_of(row.condition["blur"])) != ["sharp"]


def distance(row: Row) -> tuple:
    """From paper 1's blur; corruptions by their severity, after Gaussians."""
    if row.corruption:
        return 2, abs(row.corruption[1] - 3)
    if row.sigma is None:
        return 1, 0
    return 0, abs(sum(row.sigma) / 2 - USUAL), row.sigma[0] - row.sigma[1]
