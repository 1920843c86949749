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


def photos_like(seed, batch=3, height=32, width=48):
    """Images whose patches differ in sharpness: noise, each patch with an amplitude of its own."""
    rng = np.random.default_rng(seed)
    amplitude = rng.uniform(0, 0.5, (batch, -(-height // PATCH), -(-width // PATCH), 1))
    amplitude = amplitude.repeat(PATCH, 1).repeat(PATCH, 2)[:, :height, :width]
    return jnp.asarray(0.5 + amplitude * rng.uniform(-1, 1, (batch, height, width, 3)), jnp.float32)


def keys(batch, seed=0):
    return jax.random.split(jax.random.key(seed), batch)


def kept(images, seed=0, **fields):
    spec = MaskSpec(**{"mode": "attend", **fields})
    return np.asarray(tokens.select(keys(len(images), seed), images, spec, PATCH).keep)


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
    control = kept(images, drop=drop, selector=selector, **limits)
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
