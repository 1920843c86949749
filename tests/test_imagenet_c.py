"""ImageNet-C's blurs against the libraries the original calls: scikit-image, cv2, SciPy, ImageMagick."""

import functools
import shutil
import subprocess

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import skimage

from bjax import blur
from bjax.blur import imagenet_c

KEY = jax.random.key(0)
SEVERITIES = (1, 2, 3, 4, 5)


@pytest.fixture(scope="module")
def photo():
    return cv2.resize(skimage.data.astronaut()[:400, :400], (224, 224), interpolation=cv2.INTER_AREA)


def assert_within_one_level(ours, reference, equal):
    """At most one level off, and the same level in a share `equal` of the pixels: truncation has knife
    edges."""
    difference = np.abs(np.asarray(ours).astype(int) - reference.astype(int))
    assert difference.max() <= 1
    assert (difference == 0).mean() >= equal


def skimage_gaussian(levels, sigma):
    blurred = skimage.filters.gaussian(levels / 255.0, sigma=sigma, channel_axis=-1)
    return np.uint8(np.clip(blurred, 0, 1) * 255)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_is_that_of_skimage(photo, severity):
    expected = skimage_gaussian(photo, (1, 2, 3, 4, 6)[severity - 1])
    assert_within_one_level(imagenet_c.corrupt(KEY, photo, "gaussian_blur", severity), expected, 0.999)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_is_that_of_cv2_with_its_gain(photo, severity):
    radius, alias = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    grid = np.arange(-8, 9) if radius <= 8 else np.arange(-radius, radius + 1)
    disk = np.array(grid**2 + grid[:, None] ** 2 <= radius**2, np.float32)
    kernel = cv2.GaussianBlur(disk / disk.sum(), (3, 3) if radius <= 8 else (5, 5), alias)
    np.testing.assert_allclose(imagenet_c.defocus_kernel(radius, alias), kernel, atol=1e-8)
    assert kernel.sum() == pytest.approx((1, 1, 1, 1.0130, 1.0108)[severity - 1], abs=5e-5)
    blurred = np.stack([cv2.filter2D(photo[..., c] / 255.0, -1, kernel) for c in range(3)], -1)
    expected = np.uint8(np.clip(blurred, 0, 1) * 255)
    assert_within_one_level(imagenet_c.corrupt(KEY, photo, "defocus_blur", severity), expected, 0.999)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_zoom_is_that_of_scipy(photo, severity):
    stop, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity - 1]
    factors = np.arange(1, stop, step)
    assert len(factors) == (12, 16, 11, 13, 11)[severity - 1]
    image = (photo / 255.0).astype(np.float32)
    total = image.copy()
    for factor in factors:
        size = int(np.ceil(224 / factor))
        start = (224 - size) // 2
        centre = image[start : start + size, start : start + size]
        enlarged = scipy.ndimage.zoom(centre, (factor, factor, 1), order=1)
        trim = (len(enlarged) - 224) // 2
        total += enlarged[trim : trim + 224, trim : trim + 224]
    expected = np.uint8(np.clip(total / (len(factors) + 1), 0, 1) * 255)
    assert_within_one_level(imagenet_c.corrupt(KEY, photo, "zoom_blur", severity), expected, 0.999)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_glass_is_the_loop_over_numpy_views(photo, severity):
    sigma, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[severity - 1]
    photo = photo[:96, 60:180]
    offsets = np.asarray(jax.random.randint(KEY, (rounds, *photo.shape[:2], 2), -reach, reach))
    image = skimage_gaussian(photo, sigma)
    for i in range(rounds):
        for h in range(photo.shape[0] - reach, reach, -1):
            for w in range(photo.shape[1] - reach, reach, -1):
                dy, dx = offsets[i, h, w]
                image[h, w], image[h + dy, w + dx] = image[h + dy, w + dx], image[h, w]
    assert_within_one_level(
        imagenet_c.corrupt(KEY, photo, "glass_blur", severity), skimage_gaussian(image, sigma), 0.999
    )


def test_motion_is_that_of_imagemagick(photo, tmp_path):
    convert = shutil.which("convert")
    version = subprocess.run([convert, "-version"], capture_output=True, text=True).stdout if convert else ""
    if not version.startswith("Version: ImageMagick"):  # other programs are called convert too
        pytest.skip(f"needs ImageMagick's convert; {convert or 'none'} is on PATH")
    run = jax.jit(imagenet_c.motion_at_angle, static_argnums=(1, 2))
    cv2.imwrite(str(tmp_path / "in.png"), photo[..., ::-1])
    for (radius, sigma), angle in zip(
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)), (-45.0, -33.3, 0.0, 12.7, 44.0), strict=True
    ):
        # The exact 16-bit values; ImageMagick's own 8-bit files truncate or round with its version.
        blur = [f"{radius}x{sigma}+{angle}", "-depth", "16"]
        subprocess.run([convert, "in.png", "-motion-blur", *blur, "out.png"], cwd=tmp_path, check=True)
        exact = cv2.imread(str(tmp_path / "out.png"), cv2.IMREAD_UNCHANGED)[..., ::-1] / 257
        assert_within_one_level(run(photo, radius, sigma, angle), np.floor(exact), 0.99)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_motion_is_one_sided_half_gaussian(severity):
    """The same, on an impulse, without ImageMagick: the trail lies on one side and has the half Gaussian's
    weights."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    image = np.zeros((64, 64, 3), np.uint8)
    image[32, 50] = 255
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    weights = weights / weights.sum()
    trail = np.asarray(imagenet_c.motion_at_angle(jnp.asarray(image), radius, sigma, 0.0))[32, :, 0]
    np.testing.assert_allclose(trail[50 : 50 - 2 * radius - 1 : -1], np.floor(255 * weights), atol=1)
    assert trail[51:].sum() == 0


def test_motion_draws_its_angle_from_the_key(photo):
    one, same, other = (np.asarray(imagenet_c.corrupt(jax.random.key(k), photo, "motion_blur", 3)) for k in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_batches_by_vmap_and_other_sizes(photo):
    batch = np.stack([photo[:64, :80], photo[100:164, 100:180]])
    keys = jax.random.split(KEY, 2)
    for name in imagenet_c.NAMES:
        run = functools.partial(imagenet_c.corrupt, name=name, severity=2)
        np.testing.assert_array_equal(jax.vmap(run)(keys, batch)[1], run(keys[1], batch[1]))


@pytest.mark.parametrize(
    ("name", "severity", "shape", "dtype", "message"),
    [
        ("fog", 1, (64, 64, 3), np.uint8, r"name='fog': must be one of gaussian_blur, defocus_blur"),
        ("zoom_blur", 0, (64, 64, 3), np.uint8, r"severity=0: must be 1, 2, 3, 4 or 5"),
        ("zoom_blur", 1, (64, 64, 3), np.float32, r"image: float32\[64, 64, 3\] must be uint8"),
        ("zoom_blur", 1, (64, 31, 3), np.uint8, r"at least 32 px"),
    ],
)
def test_bad_arguments_say_what_is_allowed(name, severity, shape, dtype, message):
    with pytest.raises(ValueError, match=message):
        imagenet_c.corrupt(KEY, np.zeros(shape, dtype), name, severity)


def test_mean_corruption_error():
    alexnet = {name: [error] * 5 for name, error in imagenet_c.ALEXNET_ERRORS.items()}
    assert imagenet_c.mean_corruption_error(alexnet) == pytest.approx(1)
    better = {**alexnet, "zoom_blur": [0.1, 0.2, 0.3, 0.4, 0.5]}
    assert imagenet_c.mean_corruption_error(better) == pytest.approx((3 + 0.3 / 0.798360) / 4)
    for errors, message in (
        ({"zoom_blur": [0.5] * 5}, "must have exactly"),
        ({**alexnet, "zoom_blur": [0.5] * 4}, "zoom_blur"),
        ({**alexnet, "zoom_blur": [50] * 5}, r"in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            imagenet_c.mean_corruption_error(errors)


# One image in NumPy


def test_one_image_in_numpy_is_the_benchmarks():
    image = skimage.data.chelsea()[:96, :128]
    for name in imagenet_c.NAMES:
        ours = blur.corrupt(image, name, 3)
        assert type(ours) is np.ndarray and ours.dtype == np.uint8 and ours.shape == image.shape
        np.testing.assert_array_equal(ours, imagenet_c.corrupt(jax.random.key(0), image, name, 3))
    np.testing.assert_array_equal(blur.corrupt(image, "glass_blur", 1), blur.corrupt(image, "glass_blur", 1, seed=0))
    assert (blur.corrupt(image, "glass_blur", 1, seed=1) != blur.corrupt(image, "glass_blur", 1, seed=2)).any()


def test_one_image_in_numpy_says_what_it_takes():
    image = skimage.data.chelsea()
    for arguments, message in (
        ((image[..., 0], "gaussian_blur", 1), r"image: uint8\[300, 451\] is grey"),
        ((image / 255, "gaussian_blur", 1), r"image: float64\[300, 451, 3\] must be uint8"),
        ((image[:20], "gaussian_blur", 1), "at least 32 px"),
        ((image, "fog", 1), "name='fog': must be one of gaussian_blur, "),
        ((image, "zoom_blur", 6), "severity=6: must be 1, 2, 3, 4 or 5"),
    ):
        with pytest.raises(ValueError, match=message):
            blur.corrupt(*arguments)
