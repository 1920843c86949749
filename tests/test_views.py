"""How photographs are cut: everything is seen, of any shape, and what is seen is what is said."""

import cv2
import numpy as np
import pytest
import skimage
from hypothesis import given, settings
from hypothesis import strategies as st

from bjax import sharpness
from bjax.data import decode, views

RNG = np.random.default_rng(0)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 400), width=st.integers(1, 400), size=st.sampled_from([16, 31]))
def test_tiles_cover_the_photograph_and_overlap(height, width, size):
    photo = np.random.default_rng(height * 401 + width).integers(0, 256, (height, width, 3), np.uint8)
    view = views.tiled(photo, size, 16)
    assert view.crops.shape == (len(view.boxes), size, size, 3)
    assert len(view.crops) <= 16
    pixels = view.boxes * (view.height, view.width, view.height, view.width)
    np.testing.assert_allclose(pixels, np.round(pixels), atol=1e-9)
    covered = np.zeros((view.height, view.width), bool)
    for top, left, bottom, right in np.maximum(pixels.round().astype(int), 0):
        covered[top:bottom, left:right] = True
    assert view.seen == pytest.approx(covered.mean(), abs=1e-9)
    assert (view.seen == 1) == covered.all()
    if max(view.height, view.width) <= size * (1 + 15 * views.STEP):
        assert covered.all()
        starts = (np.unique(pixels[:, axis]) for axis in (0, 1))
        assert all(np.diff(x).max(initial=0) <= size * views.STEP + 1 for x in starts)
    if (view.height, view.width) == (height, width) and min(height, width) >= size:  # pixels as they are
        for (top, left, *_), crop in zip(pixels.round().astype(int), view.crops, strict=True):
            np.testing.assert_array_equal(crop, photo[top : top + size, left : left + size])
    else:
        assert min(height, width) < size or min(view.height, view.width) >= size


def test_a_large_photograph_is_scaled_no_further_than_its_tiles_need():
    view = views.tiled(RNG.integers(0, 256, (3000, 4000, 3), np.uint8), 96, 16)
    assert (view.height, view.width, len(view.crops), view.seen) == (240, 320, 15, 1)
    own = RNG.integers(0, 256, (96, 96, 3), np.uint8)
    view = views.tiled(own, 96, 16)
    np.testing.assert_array_equal(view.crops, own[None])
    strip = views.tiled(RNG.integers(0, 256, (96, 9600, 3), np.uint8), 96, 16)
    assert (strip.height, strip.width, len(strip.crops)) == (96, 9600, 16)
    assert strip.seen == pytest.approx(0.16)


@pytest.mark.parametrize("shape", [(300, 451), (451, 300), (40, 40), (20, 900)])
def test_evaluation_sees_the_middle(shape):
    photo = RNG.integers(0, 256, (*shape, 3), np.uint8)
    view = views.evaluated(photo, 32, 40)
    np.testing.assert_array_equal(view.crops[0], decode.center_crop(photo, 32, resize=40))
    scaled = decode.resized(photo, view.height, view.width)
    top, left, bottom, right = np.round(view.boxes[0] * ([view.height, view.width] * 2)).astype(int)
    np.testing.assert_array_equal(view.crops[0], scaled[top:bottom, left:right])
    assert view.seen == pytest.approx(32 * 32 / (view.height * view.width))


def test_the_share_seen_is_of_the_union():
    boxes = np.array([[0, 0, 0.5, 0.5], [0.25, 0.25, 0.75, 0.75], [-1, 0.9, 2, 1.5]])
    view = views.View(np.zeros((3, 8, 8, 3), np.uint8), boxes, 10, 10)
    assert view.seen == pytest.approx(0.25 + 0.25 - 0.0625 + 0.1)


@pytest.mark.parametrize("shape", [(48, 64), (7, 5), (1, 9)])
def test_sharpness_of_a_whole_photograph_is_opencvs(shape):
    photo = RNG.integers(0, 256, (*shape, 3), np.uint8)
    if min(shape) > 1:
        response = cv2.Laplacian(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), cv2.CV_64F)
        assert sharpness.whole(photo) == pytest.approx(response.var(), rel=1e-12)
    if shape == (48, 64):
        one_patch = sharpness.laplacian_variance(np.float32(photo[None]) / 255, shape)
        assert sharpness.whole(photo) == pytest.approx(float(one_patch[0, 0, 0]), rel=1e-6)
    assert sharpness.own_blur(photo) > 0


def test_a_strip_is_not_enlarged_to_gigabytes():
    strip = np.zeros((3, 120_000, 3), np.uint8)
    assert views.with_side(strip, 224) is None
    assert views.with_side(strip[:, :1000], 224).shape == (224, 74666, 3)


def test_a_photograph_tells_whether_it_is_blurred():
    """Those of scikit-image that are sharp themselves, and OpenCV's Gaussian."""
    names = ("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "rocket")
    for name in names:
        photo = getattr(skimage.data, name)()
        photo = photo if photo.ndim == 3 else np.stack([photo] * 3, axis=-1)
        photo = views.with_side(photo, 224)
        assert sharpness.own_blur(photo) < sharpness.BLURRED
        for sigma in (1, 1.5, 2, 3, 5):
            blurred = cv2.GaussianBlur(photo, (0, 0), sigma)
            assert sharpness.own_blur(blurred) >= sharpness.BLURRED, (name, sigma)
    assert sharpness.own_blur(np.full((50, 60, 3), 90, np.uint8)) == np.inf
