"""Intervals and paired tests beside scipy's, and how often the interval over photographs holds the truth."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from benchmarks import coverage
from bjax import stats

DOCS = Path(__file__).parents[1] / "docs/intervals.md"
RNG = np.random.default_rng(0)
shares = st.lists(st.floats(0, 1), min_size=2, max_size=12)


def test_interval_of_a_mean_is_scipys():
    x = RNG.normal(3, 2, 200)
    expected = scipy_stats.norm.interval(0.95, x.mean(), scipy_stats.sem(x))
    np.testing.assert_allclose(stats.mean_interval(x), expected, rtol=1e-9)
    assert stats.mean_interval(np.array([5.0])) == (5.0, 5.0)


@given(n=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_is_scipys(n, share):
    hits = round(share * n)
    expected = scipy_stats.binomtest(hits, n).proportion_ci(method="wilson")
    np.testing.assert_allclose(stats.wilson(hits, n), (expected.low, expected.high), atol=1e-12)
    assert stats.wilson(0, 0) == (0, 1)


@pytest.mark.parametrize("n", [2, 3, 5, 40])
def test_t_interval_is_scipys(n):
    values = np.random.default_rng(n).uniform(0.3, 0.6, n)
    expected = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert stats.t_interval(values) == pytest.approx((expected.low, expected.high), abs=1e-12)
    # 12.706 is the 97.5 % quantile with one degree of freedom, in any table
    assert stats.t_interval([0.0, 0.2])[1] == pytest.approx(0.1 + 12.706 * 0.1, abs=1e-4)
    assert stats.t_interval([0.0, 0.2], within=(0, 1)) == (0, 1)


def test_one_value_says_nothing_of_others():
    assert stats.t_interval([0.3], within=(0, 1)) == (0, 1)


@given(
    first=st.lists(st.booleans(), min_size=1, max_size=40),
    flips=st.lists(st.booleans(), min_size=40, max_size=40),
)
def test_mcnemar_is_the_binomial_test_of_what_only_one_got_right(first, flips):
    first = np.array(first)
    second = first ^ np.array(flips[: len(first)])
    ours, theirs = (first & ~second).sum(), (second & ~first).sum()
    expected = scipy_stats.binomtest(int(ours), int(ours + theirs)).pvalue if ours + theirs else 1.0
    assert stats.mcnemar(first, second) == pytest.approx(expected, rel=1e-9)
    assert stats.mcnemar(second, first) == stats.mcnemar(first, second)


@given(hits=st.lists(st.integers(0, 48), min_size=2, max_size=14))
def test_photographs_of_one_size_give_students_t_over_their_means(hits):
    means, alone = np.array(hits) / 48, stats.wilson(sum(hits), 48 * len(hits))
    low, high = stats.over_photographs(means, alone, within=(0, 1))
    if means.std() < 1e-9:  # no spread would be no width
        assert (low, high) == pytest.approx(alone, abs=1e-12)
        return
    t = scipy_stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert low == pytest.approx(min(max(0, t.low), alone[0]), abs=1e-12)
    assert high == pytest.approx(max(min(1, t.high), alone[1]), abs=1e-12)


def test_one_photograph_says_nothing_of_others():
    assert stats.over_photographs(np.ones(1), stats.wilson(48, 48), within=(0, 1)) == (0, 1)


@given(values=shares, half=st.floats(0, 0.2))
def test_seeds_are_nowhere_narrower_than_one_of_them(values, half):
    own = [(v - half, v + half) for v in values]
    low, high = stats.over_seeds(values, own)
    mean = math.fsum(values) / len(values)
    assert low <= mean - half + 1e-12 and high >= mean + half - 1e-12
    t = stats.t_interval(values)
    assert low <= t[0] and high >= t[1]
    assert stats.over_seeds(values, []) == t


def test_the_interval_over_photographs_holds_the_truth_as_often_as_the_docs_say():
    """A smaller simulation, of another seed, beside every cell of docs/intervals.md."""
    printed, repetitions = coverage.read(DOCS.read_text()), 2000
    found = coverage.simulate(repetitions=repetitions, seed=1)
    assert printed.keys() == found.keys()
    for cell, shares in printed.items():
        for share, again in zip(shares, found[cell], strict=True):
            assert abs(again - share) < 4.5 * math.sqrt(share * (1 - share) / repetitions) + 0.001, cell
    over = {cell: share for cell, (share, _) in printed.items()}
    assert all(0.9 <= share <= 0.98 for (number, mean, _), share in over.items() if mean == 0.5)
    assert all(0.9 <= share <= 0.98 for (number, mean, _), share in over.items() if mean == 0.8 and number >= 14)


def test_what_is_called_covered_is_what_the_docs_show():
    over = {cell: share for cell, (share, _) in coverage.read(DOCS.read_text()).items()}
    for number, limit in stats.COVERED:
        worst = {mean: min(over[number, mean, c] for c in coverage.CORRELATIONS) for mean in coverage.MEANS}
        assert {mean for mean, share in worst.items() if share >= 0.9} == {m for m in worst if m <= limit}


@pytest.mark.parametrize(
    ("photographs", "mean", "expected"),
    [
        (3, 0.5, False),
        (4, 0.5, True),
        (4, 0.8, False),
        (14, 0.8, True),
        (14, 0.2, True),
        (14, 0.81, False),
        (50, 0.85, True),
    ],
)
def test_what_is_covered(photographs, mean, expected):
    assert stats.covered(photographs, mean) is expected


def test_intervals_to_print_are_those_over_photographs():
    row = {"top1_95": [0.4, 0.6], "top1_95_photographs": [0.2, 0.8], "top5_95": [0.9, 1.0]}
    assert stats.interval(row) == (0.2, 0.8) and stats.interval(row, "top5") == (0.9, 1.0)
    assert stats.interval(row, "loss") is None


def test_the_docs_name_the_command():
    assert re.search(r"python -m benchmarks.coverage --repetitions=\d{5,} --seed=\d", DOCS.read_text())
