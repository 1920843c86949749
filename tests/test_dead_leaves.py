"""Generated images: what they are made of, and that they have the statistics of photographs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bjax import dead_leaves

SIZE = 64


def keys(number, seed=0):
    return jax.random.split(jax.random.key(seed), number)


@functools.cache
def images(number=64, size=SIZE):
    return np.asarray(dead_leaves.draw(keys(number), size))


def test_images_are_float32_in_the_unit_range_and_full_of_contrast():
    assert images().shape == (64, SIZE, SIZE, 3)
    assert images().dtype == np.float32
    assert np.isfinite(images()).all()
    assert images().min() >= 0
    assert images().max() <= 1
    assert images().std(axis=(1, 2, 3)).min() > 0.05


def test_an_image_depends_on_its_key_alone():
    alone = dead_leaves.draw(keys(64)[5:6], SIZE)
    np.testing.assert_allclose(alone[0], images()[5], atol=1e-5)
    flat = images().reshape(64, -1)
    assert len(np.unique(flat.round(3), axis=0)) == 64


def test_one_at_a_time_and_batched_agree():
    """What a CPU computes and what other platforms do."""
    batched = jax.jit(jax.vmap(functools.partial(dead_leaves._paint, size=SIZE)))(keys(4))
    np.testing.assert_allclose(batched, images()[:4], atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), smallest=st.floats(0.01, 0.2))
def test_radii_follow_the_power_law(seed, smallest):
    """Density r^-3 cut off at both ends: scipy's truncated Pareto distribution with exponent 2."""
    radii = np.asarray(dead_leaves.radii(jax.random.key(seed), 2000, smallest, 0.5))
    law = stats.truncpareto(b=2, c=0.5 / smallest, scale=smallest)
    assert stats.kstest(radii, law.cdf).pvalue > 1e-5
    assert stats.kstest(radii, stats.truncpareto(b=1, c=0.5 / smallest, scale=smallest).cdf).pvalue < 1e-5


def test_the_discs_cover_the_image():
    """Poisson: discs of which as many lie on a place as LAYERS says on average leave exp(-LAYERS) of it bare."""
    law = stats.truncpareto(
        b=2, c=dead_leaves.LARGEST / dead_leaves.SMALLEST[0], scale=dead_leaves.SMALLEST[0]
    )
    mean_area = np.pi * law.moment(2)
    assert dead_leaves._number() * mean_area == pytest.approx(dead_leaves.LAYERS, rel=0.01)


def slope(images, low, high):
    """Of log power against log frequency, between two frequencies in cycles per image."""
    grey = images.mean(axis=-1)
    grey = grey - grey.mean(axis=(1, 2), keepdims=True)
    power = (np.abs(np.fft.fft2(grey)) ** 2).mean(axis=0)
    place = np.fft.fftfreq(len(power)) * len(power)
    frequency = np.hypot(place[:, None], place[None])
    band = (frequency >= low) & (frequency < high)
    return stats.linregress(np.log(frequency[band]), np.log(power[band])).slope


def test_the_power_spectrum_falls_as_that_of_photographs():
    """Photographs: about f^-2, between f^-1.6 and f^-2.8 each (Field 1987; Torralba and Oliva 2003)."""
    assert slope(images(), 2, 16) == pytest.approx(-2.2, abs=0.3)
    white = np.random.default_rng(0).uniform(size=(64, SIZE, SIZE, 3))
    assert slope(white, 2, 16) == pytest.approx(0, abs=0.1)


def test_noise_has_the_spectrum_it_is_named_for():
    noise = np.asarray(jax.vmap(lambda key: dead_leaves._noise(key, SIZE))(keys(32)))
    assert slope(np.moveaxis(noise, 1, -1)[..., :1], 1, 32) == pytest.approx(-2, abs=0.05)
    assert noise.var() == pytest.approx(1, rel=0.15)
    np.testing.assert_allclose(noise.mean(axis=(2, 3)), 0, atol=1e-5)


def test_brightness_varies_most_and_green_against_magenta_least():
    grey = images().mean(axis=-1)
    chroma = images() @ dead_leaves.CHROMA.T
    np.testing.assert_allclose(dead_leaves.CHROMA @ dead_leaves.CHROMA.T, np.eye(2), atol=1e-6)
    assert grey.std() > 2 * chroma[..., 0].std() > 2 * chroma[..., 1].std() > 0
    np.testing.assert_allclose(chroma.std(axis=(0, 1, 2)), dead_leaves.CHROMA_STD, rtol=0.25)


def test_replace_takes_its_share_and_leaves_the_rest_as_it_is():
    black = jnp.zeros((64, 32, 32, 3), jnp.uint8)
    replace = jax.jit(dead_leaves.replace)
    out = np.asarray(replace(keys(64), black, share=0.25))
    assert out.dtype == np.uint8
    replaced = (out != 0).any(axis=(1, 2, 3))
    assert 6 <= replaced.sum() <= 28  # binomial: beyond four standard deviations
    again = np.asarray(replace(keys(64)[::2], black[::2], share=0.25))
    np.testing.assert_array_equal(again, out[::2])  # the batch does not matter
    np.testing.assert_array_equal(replace(keys(64), black + 7, share=0.0), black + 7)
    assert (np.asarray(replace(keys(64), black, share=1.0)) != 0).any(axis=(1, 2, 3)).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"size=8: must be at least 16"):
        dead_leaves.draw(keys(1), 8)
    with pytest.raises(ValueError, match=r"key"):
        dead_leaves.draw(jax.random.key(0), 64)
    with pytest.raises(ValueError, match=r"images: 32 x 48"):
        dead_leaves.replace(keys(1), jnp.zeros((1, 32, 48, 3), jnp.uint8), 0.5)
