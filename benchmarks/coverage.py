"""How often the interval over photographs (`bjax.stats.over_photographs`) holds the truth: docs/intervals.md's table.

    python -m benchmarks.coverage --repetitions=20000 --seed=0

Photographs differ in how hard they are: their shares of right answers are drawn from a Beta distribution with a given
mean and intra-class correlation (the correlation of two crops of one photograph), and 48 crops of each are right
independently with that share. Counted is how often the 95 % interval of the mean over all of them holds the mean of the
distribution, and how often Wilson's, which takes the crops for independent, does.
"""

import itertools
import re
import sys

import numpy as np

from bjax import stats
from bjax.errors import Parser, UserError, as_command, positive

CROPS = 48
PHOTOGRAPHS = (4, 14, 50, 200)
MEANS = (0.5, 0.65, 0.8, 0.9, 0.95)
CORRELATIONS = (0.02, 0.2, 0.4)


def simulate(*, repetitions: int, seed: int) -> dict[tuple[int, float, float], tuple[float, float]]:
    """Shares of intervals that hold the mean: {(photographs, mean, correlation): (over photographs, Wilson's)}."""
    rng, shares = np.random.default_rng(seed), {}
    for number, mean, correlation in itertools.product(PHOTOGRAPHS, MEANS, CORRELATIONS):
        both = (1 - correlation) / correlation  # a + b of a Beta distribution with that correlation
        hits = rng.binomial(CROPS, rng.beta(mean * both, (1 - mean) * both, (repetitions, number)))
        wilson = stats.wilson(hits.sum(axis=1), CROPS * number)
        over = stats.over_photographs(hits / CROPS, wilson, within=(0.0, 1.0))
        held = [float(np.mean((low <= mean) & (mean <= high))) for low, high in (over, wilson)]
        shares[number, mean, correlation] = tuple(held)
    return shares


def table(repetitions: int, seed: int) -> str:
    """All of it in per cent, as Markdown: a row per number of photographs and mean."""
    shares = simulate(repetitions=repetitions, seed=seed)
    correlations = [f"{c:g}" for c in CORRELATIONS]
    header = ["photographs", "mean", *correlations, *(f"Wilson, {c}" for c in correlations)]
    rows = [header, ["-" * (len(name) - 1) + ":" for name in header]]
    for number, mean in itertools.product(PHOTOGRAPHS, MEANS):
        cells = [shares[number, mean, c][i] for i in (0, 1) for c in CORRELATIONS]
        rows.append([f"{number}", f"{mean:g}", *(f"{100 * share:.1f}" for share in cells)])
    form = "| " + " | ".join(f"{{:>{len(name)}}}" for name in header) + " |"
    return "\n".join(form.format(*row) for row in rows)


def read(text: str) -> dict[tuple[int, float, float], tuple[float, float]]:
    """What `simulate` returns, of such a table in `text`."""
    shares = {}
    for line in re.findall(r"^\| +(\d+ .*) \|$", text, re.MULTILINE):
        number, mean, *cells = line.split("|")
        over, wilson = np.split(np.array(cells, float) / 100, 2)
        shares |= {(int(number), float(mean), c): (over[i], wilson[i]) for i, c in enumerate(CORRELATIONS)}
    return shares


@as_command
def main(argv: list[str]) -> None:
    parser = Parser("python -m benchmarks.coverage", __doc__.partition("\n")[0])
    cells = "of each cell (default: %(default)s)"
    parser.add_argument("--repetitions", type=positive, default=20_000, help=cells)
    parser.add_argument("--seed", type=int, default=0, help="of all draws (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.seed < 0:
        raise UserError(f"--seed={args.seed}: expected 0 or more")
    print(table(args.repetitions, args.seed))


if __name__ == "__main__":
    sys.exit(main())
