"""Spatially varying blur against a direct sum per pixel, and its ground-truth maps."""

import jax
import numpy as np
import pytest

from bjax import blur
from bjax.blur import psf, varying

KEYS = jax.random.split(jax.random.key(0), 6)
IMAGES = np.random.default_rng(0).random((6, 24, 32, 3), dtype=np.float32)


def test_every_pixel_has_its_own_gaussian():
    sigma_map = np.random.default_rng(1).uniform(0, 3, (1, 24, 32)).astype(np.float32)
    ours = np.asarray(varying.gaussian(IMAGES[:1], sigma_map))[0]
    padded = np.pad(IMAGES[0], ((9, 9), (9, 9), (0, 0)), mode="reflect")
    kernels = np.asarray(psf.gaussian(sigma_map[0]))
    for y in range(24):
        for x in range(32):
            expected = np.einsum("ij,ijc->c", kernels[y, x], padded[y : y + 19, x : x + 19])
            np.testing.assert_allclose(ours[y, x], expected, rtol=0, atol=2e-6)


def test_a_constant_map_is_the_uniform_blur():
    sigma_map = np.broadcast_to(np.linspace(0, 3, 6, dtype=np.float32)[:, None, None], (6, 24, 32))
    expected = blur.gaussian(IMAGES, np.linspace(0, 3, 6))
    np.testing.assert_allclose(varying.gaussian(IMAGES, sigma_map), expected, rtol=0, atol=2e-6)


def test_regions_are_blurred_inside_and_untouched_outside():
    sigmas = np.linspace(0.5, 3, 6)
    images, sigma_map = varying.regions(KEYS, IMAGES, sigmas, count=2, size=(0.3, 0.5))
    sigma_map, blurred = np.asarray(sigma_map), np.asarray(blur.gaussian(IMAGES, sigmas))
    for i in range(6):
        inside = sigma_map[i] > 0
        np.testing.assert_allclose(np.unique(sigma_map[i][inside]), sigmas[i], rtol=1e-6)
        np.testing.assert_array_equal(images[i][~inside], IMAGES[i][~inside])
        np.testing.assert_allclose(images[i][inside], blurred[i][inside], atol=1e-6)
        assert 0.06 < inside.mean() < 0.55  # one to two rectangles of 9 to 25 % of the image, to whole pixels
    assert (sigma_map[0] > 0).tolist() != (sigma_map[1] > 0).tolist()
    reversed_images, reversed_map = varying.regions(KEYS[::-1], IMAGES[::-1], sigmas[::-1], count=2, size=(0.3, 0.5))
    np.testing.assert_array_equal(reversed_map[::-1], sigma_map)
    np.testing.assert_array_equal(reversed_images[::-1], images)


def test_ramp_runs_from_near_to_far():
    images, sigma_map = varying.ramp(KEYS, IMAGES, 0.0, 3.0)
    sigma_map = np.asarray(sigma_map)
    np.testing.assert_allclose(sigma_map.min((1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(sigma_map.max((1, 2)), 3, atol=1e-5)
    # Linear: second differences vanish.
    np.testing.assert_allclose(np.diff(sigma_map, 2, axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(np.diff(sigma_map, 2, axis=2), 0, atol=1e-5)
    np.testing.assert_allclose(images, varying.gaussian(IMAGES, sigma_map), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: varying.gaussian(IMAGES, np.ones((6, 24, 24))), r"sigma_map: shape \[6, 24, 24\] must be"),
        (lambda: varying.gaussian(IMAGES, -np.ones((6, 24, 32))), r"sigma_map=-1"),
        (lambda: varying.regions(jax.random.key(0), IMAGES, 1.0), r"key: .* one per image"),
        (lambda: varying.regions(KEYS, IMAGES, 1.0, count=0), r"count=0"),
        (lambda: varying.regions(KEYS, IMAGES, 1.0, size=(0.5, 2)), r"size=\(0.5, 2\)"),
        (lambda: varying.ramp(KEYS, IMAGES, -1.0, 3.0), r"near=-1"),
        (lambda: varying.ramp(KEYS, IMAGES, 0.0, [1.0, 2.0]), r"far: shape \[2\]"),
    ],
)
def test_bad_arguments_say_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
