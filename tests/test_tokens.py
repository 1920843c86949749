"""Masks: what is kept, by which rule, and what erasing does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bjax import sharpness, tokens
from bjax.tokens import MaskSpec

PATCH = 8
OTHERS = [selector for selector in tokens.SELECTORS if selector not in sharpness.MEASURES]


def photos_like(seed, batch=3, height=32, width=48):
    """Images whose patches differ in sharpness: noise, each patch with an amplitude of its own."""
    rng = np.random.default_rng(seed)
    amplitude = rng.uniform(0, 0.5, (batch, -(-height // PATCH), -(-width // PATCH), 1))
    amplitude = amplitude.repeat(PATCH, 1).repeat(PATCH, 2)[:, :height, :width]
    return jnp.asarray(0.5 + amplitude * rng.uniform(-1, 1, (batch, height, width, 3)), jnp.float32)


def keys(batch, seed=0):
    return jax.random.split(jax.random.key(seed), batch)


def kept(images, seed=0, truth=None, **fields):
    spec = MaskSpec(**{"mode": "attend", **fields})
    return np.asarray(tokens.select(keys(len(images), seed), images, spec, PATCH, truth=truth).keep)


def maps(batch, rows=4, columns=6, seed=0):
    """How blurred patches are, with many that are alike."""
    return np.random.default_rng(seed).integers(0, 4, (batch, rows, columns)).astype(np.float32)


def scores_of(images, **options):
    return np.asarray(sharpness.laplacian_variance(images, PATCH, **options)).reshape(len(images), -1)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    quantile=st.floats(0, 1),
    keep_rate=st.one_of(st.none(), st.floats(0.01, 1)),
    drop=st.sampled_from(["below", "above"]),
    scope=st.sampled_from(["image", "patch"]),
)
def test_threshold_and_budget_keep_the_patches_a_loop_would_keep(seed, quantile, keep_rate, drop, scope):
    images = photos_like(seed)
    scores = scores_of(images, scope=scope)
    threshold = float(np.quantile(scores, quantile))
    mask = kept(images, drop=drop, threshold=threshold, keep_rate=keep_rate, scope=scope)
    for row, keep in zip(scores, mask, strict=True):
        best_first = sorted(range(len(row)), key=lambda i: -row[i] if drop == "below" else row[i])
        limit = np.float32(threshold)
        passing = [i for i in best_first if (row[i] >= limit if drop == "below" else row[i] <= limit)]
        if keep_rate is not None:
            passing = passing[: max(1, round(keep_rate * len(row)))]
        assert set(np.flatnonzero(keep)) == set(passing)


@pytest.mark.parametrize("selector", tokens.CONTROLS)
@pytest.mark.parametrize("drop", ["below", "above"])
@pytest.mark.parametrize("limits", [{"threshold": 500.0}, {"keep_rate": 0.4}, {"threshold": 500.0, "keep_rate": 0.4}])
def test_controls_keep_as_many_patches_of_each_image(selector, drop, limits):
    images = photos_like(1, batch=16)
    own = kept(images, drop=drop, **limits)
    control = kept(images, truth=maps(16), drop=drop, selector=selector, **limits)
    np.testing.assert_array_equal(control.sum(axis=1), own.sum(axis=1))
    assert (control != own).any()


def test_inverse_keeps_the_other_end():
    images = photos_like(2)
    scores = scores_of(images)
    mask = kept(images, selector="inverse", drop="below", keep_rate=0.25)
    for row, keep in zip(scores, mask, strict=True):
        assert row[keep].max() <= row[~keep].min()


def test_centre_keeps_the_patches_nearest_the_centre():
    mask = kept(photos_like(3, batch=1), selector="centre", keep_rate=4 / 24).reshape(4, 6)
    np.testing.assert_array_equal(np.argwhere(mask), [[1, 2], [1, 3], [2, 2], [2, 3]])


def test_random_depends_on_the_images_own_key_alone():
    images = photos_like(4, batch=8)
    spec = MaskSpec(mode="attend", selector="random", keep_rate=0.5)
    whole = tokens.select(keys(8), images, spec, PATCH).keep
    part = tokens.select(keys(8)[3:5], images[3:5], spec, PATCH).keep
    np.testing.assert_array_equal(whole[3:5], part)
    assert len({tuple(np.asarray(row)) for row in whole}) > 1
    share = np.mean([kept(images, seed=s, selector="random", keep_rate=0.5) for s in range(50)], axis=(0, 1))
    np.testing.assert_allclose(share, 0.5, atol=0.12)  # 400 draws: 0.5 ± 4.8 standard errors


def test_the_oracle_keeps_the_least_blurred():
    images, truth = photos_like(7, batch=8), maps(8)
    for drop, sign in (("below", 1), ("above", -1)):
        mask = kept(images, truth=truth, selector="oracle", drop=drop, keep_rate=0.4)
        for row, keep in zip(sign * truth.reshape(8, -1), mask, strict=True):
            assert keep.sum() == 10
            assert sorted(row[keep]) == sorted(row)[:10]
    for wrong in (None, truth[:, :2], truth[:4]):
        with pytest.raises(ValueError, match=r"truth: .*selector=oracle needs \[8, 4, 6\]"):
            kept(images, truth=wrong, selector="oracle", keep_rate=0.4)


@pytest.mark.parametrize(("height", "width"), [(32, 48), (40, 24)])
@pytest.mark.parametrize("drop", ["below", "above"])
def test_stratified_takes_the_best_of_every_cell_before_the_second_of_any(height, width, drop):
    images = photos_like(8, height=height, width=width)
    rows, columns = height // PATCH, width // PATCH
    scores = (1 if drop == "below" else -1) * scores_of(images).reshape(3, rows, columns)
    for keep_rate in (0.1, 0.25, 0.5, 0.7, 0.75):
        mask = kept(images, selector="stratified", drop=drop, keep_rate=keep_rate).reshape(scores.shape)
        for row, keep in zip(scores, mask, strict=True):
            ranked = []
            for y in range(0, rows, 2):
                for x in range(0, columns, 2):
                    cell = sorted(row[y : y + 2, x : x + 2].ravel(), reverse=True)
                    ranked += [(place, -score) for place, score in enumerate(cell)]
            best = [-score for _, score in sorted(ranked)][: max(1, round(keep_rate * rows * columns))]
            assert sorted(row[keep]) == sorted(best)
            if (keep_rate, height) == (0.25, 32):
                assert (keep.reshape(2, 2, 3, 2).sum((1, 3)) == 1).all()
    limit = float(np.median(scores))
    passing = (scores >= limit).reshape(3, -1)
    masks = [
        kept(images, selector="stratified", drop=drop, threshold=abs(limit), keep_rate=keep_rate)
        for keep_rate in (None, 0.3)
    ]
    np.testing.assert_array_equal(masks[0], passing)
    assert (masks[1] <= passing).all() and (masks[1].sum(1) == round(0.3 * rows * columns)).all()


@pytest.mark.parametrize("selector", ["laplacian", *OTHERS])
def test_patches_preferred_alike_are_drawn_by_the_images_own_key(selector):
    """By place, the first patches of a flat image would always stay."""
    flat = np.full((400, 32, 48, 3), 0.5, np.float32)
    spec = MaskSpec("attend", selector=selector, keep_rate=0.25)

    def choose(key, images):
        truth = np.zeros((len(images), 4, 6), np.float32)
        return np.asarray(tokens.select(key, images, spec, PATCH, truth=truth).keep)

    mask = choose(keys(400), flat)
    assert (mask.sum(1) == 6).all()
    if selector == "centre":  # all but the corners of a diamond are alike in no more than fours
        assert (mask[:, [8, 9, 14, 15]]).all() and len(np.unique(mask, axis=0)) > 4
    else:
        np.testing.assert_allclose(mask.mean(0), 0.25, atol=0.1)  # 400 draws: 4.6 standard errors
    order = np.random.default_rng(0).permutation(400)
    np.testing.assert_array_equal(choose(keys(400)[order], flat), mask[order])
    if selector == "random":
        with pytest.raises(ValueError, match="key: None, selector=random needs one per image"):
            choose(None, flat)
    else:  # one order for all images, and not that of the grid
        alike = choose(None, flat)
        assert len(np.unique(alike, axis=0)) == 1 and not alike[0, :6].all()


def test_overlap_is_that_of_sets():
    rng = np.random.default_rng(0)
    keep, right = rng.random((2, 40, 12)) < rng.random((2, 40, 1))
    keep[0], right[1] = False, False
    keep[2] = right[2] = False
    found = tokens.overlap(jnp.asarray(keep), jnp.asarray(right))
    for i in range(40):
        ours, theirs = set(np.flatnonzero(keep[i])), set(np.flatnonzero(right[i]))
        for name, of in (("precision", ours), ("recall", theirs), ("iou", ours | theirs)):
            share = len(ours & theirs) / len(of) if of else np.nan
            np.testing.assert_allclose(found[name][i], share, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    keep_rate=st.floats(0.01, 1),
    threshold=st.one_of(st.none(), st.floats(0, 3000)),
)
def test_gather_holds_every_kept_patch_within_its_budget(seed, keep_rate, threshold):
    images = photos_like(seed)
    spec = MaskSpec(mode="gather", keep_rate=keep_rate, threshold=threshold)
    chosen = tokens.select(keys(3), images, spec, PATCH)
    budget = tokens.budget(spec, 24)
    assert chosen.indices.shape == (3, budget)
    assert chosen.indices.dtype == jnp.int32
    for keep, indices in zip(np.asarray(chosen.keep), np.asarray(chosen.indices), strict=True):
        assert (np.diff(indices) > 0).all()
        assert set(np.flatnonzero(keep)) <= set(indices)
        if chosen.full:
            assert keep[indices].all()
    assert chosen.full == (threshold is None)


def test_a_threshold_above_every_score_keeps_nothing_and_zero_keeps_all():
    images = photos_like(5)
    assert not kept(images, threshold=1e9).any()
    assert kept(images, threshold=0.0).all()
    assert kept(images, keep_rate=1.0).all()
    assert tokens.select(keys(3), images, MaskSpec(), PATCH) is None


@pytest.mark.parametrize("fill", [0.0, (0.4, 0.5, 0.6)])
def test_erase_paints_exactly_the_dropped_patches(fill):
    images = photos_like(6)
    chosen = tokens.select(keys(3), images, MaskSpec("zero_pixels", keep_rate=0.5), PATCH)
    erased = np.asarray(tokens.erase(images, chosen, PATCH, jnp.asarray(fill)))
    keep = np.asarray(chosen.keep).reshape(3, 4, 6)
    for b, y, x in np.ndindex(3, 32, 48):
        expected = images[b, y, x] if keep[b, y // PATCH, x // PATCH] else np.broadcast_to(np.float32(fill), 3)
        np.testing.assert_array_equal(erased[b, y, x], expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "gahter"}, r"mode=gahter: expected one of .* \(did you mean gather\?\)"),
        ({"selector": "sharp"}, "selector=sharp: expected one of laplacian"),
        ({"drop": "over"}, "drop=over: expected one of below, above"),
        ({"scope": "all"}, "scope=all"),
        ({"fill": "white"}, "fill=white"),
        ({"keep_rate": 0.0}, r"keep_rate=0.0: .* \(0, 1\]"),
        ({"keep_rate": float("nan")}, "keep_rate=nan"),
        ({"threshold": -1.0}, "threshold=-1.0"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"mode": "attend"}, "mode=attend: needs a threshold, a keep_rate, or both"),
        ({"mode": "gather", "threshold": 1.0}, "mode=gather: needs a keep_rate"),
        ({"mode": "bucket", "keep_rate": 0.5}, "mode=bucket: needs a threshold"),
    ],
)
def test_a_wrong_mask_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MaskSpec(**fields)
