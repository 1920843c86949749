"""Kernels, convolutions and what a draw applies, against cv2, torchvision, SciPy and dm-pix."""

import sys
import types

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from bjax import blur
from bjax.blur import psf, sample, varying
from bjax.specs import gaussian_size

pytestmark = pytest.mark.usefixtures("optimized")

REFLECT = cv2.BORDER_REFLECT_101
GAUSSIAN = jax.jit(blur.gaussian, static_argnames=("kernel_size", "quantize", "impl"))
MOTION = jax.jit(blur.motion, static_argnames="kernel_size")
DEFOCUS = jax.jit(blur.defocus, static_argnames="kernel_size")
DRAW = jax.jit(sample.draw, static_argnums=2)
QUIET_KINDS = sample.BlurSpec(dict.fromkeys(sample.KINDS, 0.25), sigma=(0.5, 3))
ALL_KINDS = sample.BlurSpec(dict.fromkeys(sample.KINDS, 0.25), noise=(0.0, 0.05))


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def random_levels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


@pytest.fixture(scope="module")
def torchvision_blur():
    """torchvision.transforms.functional.gaussian_blur on one NHWC image."""
    torch = pytest.importorskip("torch")
    # torchvision's meta registrations fail to import where its compiled operators do not match; blur needs
    # none.
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))
    functional = pytest.importorskip("torchvision.transforms.functional")

    def run(image, sigma, kernel_size):
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return functional.gaussian_blur(tensor, kernel_size, sigma).numpy().transpose(1, 2, 0)

    return run


# Gaussian


@pytest.mark.parametrize("kernel_size", [1, 3, 19, 31])
def test_gaussian_equals_cv2_per_image(kernel_size):
    images = random_images(12, 33, 47, 3, seed=kernel_size)
    sigmas = np.geomspace(0.1, 10, 12).astype(np.float32)
    ours = np.asarray(GAUSSIAN(images, sigmas, kernel_size=kernel_size))
    for image, sigma, result in zip(images, sigmas, ours, strict=True):
        expected = cv2.GaussianBlur(image, (kernel_size, kernel_size), float(sigma), borderType=REFLECT)
        np.testing.assert_allclose(result, expected, rtol=0, atol=2e-6)


def test_gaussian_equals_torchvision(torchvision_blur):
    images = random_images(6, 40, 29, 3)
    sigmas = np.linspace(0.1, 10, 6).astype(np.float32)
    ours = np.asarray(GAUSSIAN(images, sigmas))
    for image, sigma, result in zip(images, sigmas, ours, strict=True):
        np.testing.assert_allclose(result, torchvision_blur(image, float(sigma), 19), rtol=0, atol=2e-6)
    scalar = np.asarray(GAUSSIAN(images, 1.7))
    np.testing.assert_allclose(scalar[2], torchvision_blur(images[2], 1.7, 19), rtol=0, atol=2e-6)


def test_quantized_gaussian_equals_torchvision_on_uint8(torchvision_blur):
    levels = random_levels(4, 64, 48, 3)
    sigmas = np.array([0.5, 1.0, 1.5, 2.0], np.float32)
    ours = np.asarray(GAUSSIAN(levels / np.float32(255), sigmas, quantize=True)) * 255
    assert np.abs(ours - np.rint(ours)).max() < 1e-4
    expected = np.stack([torchvision_blur(x, float(s), 19) for x, s in zip(levels, sigmas, strict=True)])
    off = np.rint(ours) != expected
    # A level may differ only where the exact value is a tie that float32, here or there, cannot resolve.
    exact = np.stack(
        [
            cv2.GaussianBlur(x.astype(np.float64), (19, 19), float(s), borderType=REFLECT)
            for x, s in zip(levels, sigmas, strict=True)
        ]
    )
    assert off.mean() < 1e-4
    assert np.all(np.abs(exact[off] % 1 - 0.5) < 1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 12), (2, 3), (9, 9), (10, 4)])
def test_images_smaller_than_the_kernel_reflect_as_often_as_it_takes(shape):
    image = random_images(1, *shape, 3)
    padded = np.pad(image[0], ((9, 9), (9, 9), (0, 0)), mode="reflect")
    kernel = np.asarray(psf.gaussian(2.5))
    expected = np.stack([scipy.signal.correlate2d(padded[..., c], kernel, mode="valid") for c in range(3)], -1)
    np.testing.assert_allclose(np.asarray(GAUSSIAN(image, 2.5))[0], expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(
        np.asarray(GAUSSIAN(image, 2.5))[0],
        cv2.GaussianBlur(image[0], (19, 19), 2.5).reshape(*shape, 3),
        atol=2e-6,
    )


def test_sigma_zero_is_the_identity_and_never_nan():
    images = random_images(3, 16, 16, 3)
    np.testing.assert_array_equal(GAUSSIAN(images, np.array([0, 1e-30, 0.04], np.float32)), images)
    gradient = jax.grad(lambda s: blur.gaussian(images, s).var())(jnp.zeros(3))
    np.testing.assert_array_equal(gradient, 0)


def test_impl_pix_is_the_same_blur():
    images, sigmas = random_images(4, 21, 34, 3), np.array([0, 0.5, 2, 6], np.float32)
    np.testing.assert_allclose(GAUSSIAN(images, sigmas, impl="pix"), GAUSSIAN(images, sigmas), rtol=0, atol=2e-6)


# Motion and defocus


@pytest.mark.parametrize("size", [9, 21])
def test_kernels_are_correlated_as_cv2_does(size):
    images = random_images(6, 25, 30, 3)
    lengths, angles, radii = np.linspace(1, size, 6), np.linspace(-1, 4, 6), np.linspace(0, size / 2, 6)
    lines, disks = np.asarray(psf.motion(lengths, angles, size)), np.asarray(psf.defocus(radii, size))
    moved = np.asarray(MOTION(images, lengths, angles, kernel_size=size))
    defocused = np.asarray(DEFOCUS(images, radii, kernel_size=size))
    for i, (image, line, disk) in enumerate(zip(images, lines, disks, strict=True)):
        np.testing.assert_allclose(moved[i], cv2.filter2D(image, -1, line, borderType=REFLECT), rtol=0, atol=2e-6)
        np.testing.assert_allclose(defocused[i], cv2.filter2D(image, -1, disk, borderType=REFLECT), rtol=0, atol=2e-6)


@settings(max_examples=40, deadline=None)
@given(length=st.floats(1, 21), angle=st.floats(-10, 10), radius=st.floats(0, 10.5), sigma=st.floats(0, 3.3))
def test_kernels_sum_to_one_and_are_centred(length, angle, radius, sigma):
    offsets = np.arange(21) - 10
    for kernel in (psf.motion(length, angle), psf.defocus(radius), psf.gaussian(sigma, 21)):
        kernel = np.asarray(kernel, np.float64)
        assert kernel.min() >= 0
        assert kernel.sum() == pytest.approx(1, abs=2e-6)
        np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=2e-6)  # so the centre of mass is the centre
        assert abs((kernel * offsets).sum()) + abs((kernel * offsets[:, None]).sum()) < 1e-4


@pytest.mark.parametrize("length", [1, 3, 7, 21])
def test_axis_aligned_motion_is_the_uniform_row(length):
    kernel = np.zeros((21, 21))
    kernel[10, 10 - length // 2 : 11 + length // 2] = 1 / length
    np.testing.assert_allclose(psf.motion(length, 0.0), kernel, atol=1e-6)
    np.testing.assert_allclose(psf.motion(length, np.pi / 2), kernel.T, atol=1e-6)


def test_even_motion_keeps_its_centre_with_half_weight_ends():
    np.testing.assert_allclose(psf.motion(4.0, 0.0, 5)[2], [0.125, 0.25, 0.25, 0.25, 0.125], atol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 0.3, 0.8, 2.0])
def test_motion_of_length_one_is_the_identity(angle):
    kernel = np.zeros((21, 21), np.float32)
    kernel[10, 10] = 1
    np.testing.assert_array_equal(psf.motion(1.0, angle), kernel)


def test_motion_turns_counter_clockwise():
    kernel = np.asarray(psf.motion(9.0, np.pi / 4, 9))
    assert kernel[1, 7] > 0.05  # up and to the right
    assert kernel[1, 1] == 0


def test_motion_has_the_moments_of_a_line():
    offsets = np.arange(41) - 20
    for angle in np.linspace(0, np.pi, 7):
        kernel = np.asarray(psf.motion(31.0, angle, 41), np.float64)
        along = np.cos(angle) * offsets - np.sin(angle) * offsets[:, None]
        across = np.sin(angle) * offsets + np.cos(angle) * offsets[:, None]
        # A uniform line has variance L² / 12; one pixel wide and soft, it has little variance across.
        assert (kernel * along**2).sum() == pytest.approx(31**2 / 12, rel=0.01)
        assert (kernel * across**2).sum() < 0.3


def test_a_constant_image_stays_the_same_to_a_few_roundings():
    """Hundred taps or more, which must not add their roundings up."""
    images = np.broadcast_to(random_images(64, 1, 1, 3), (64, 32, 32, 3))
    radius, length = np.linspace(1, 6, 64, dtype=np.float32), np.linspace(5, 17, 64, dtype=np.float32)
    for blurred in (DEFOCUS(images, radius), MOTION(images, length, length)):
        np.testing.assert_allclose(blurred, images, rtol=5e-7)


@pytest.mark.parametrize("radius", [0.6, 1.0, 2.37, 5.5, 10.0])
def test_defocus_is_the_area_of_the_disk_in_each_pixel(radius):
    fine = 200
    grid = (np.arange(21 * fine) + 0.5) / fine - 10.5
    covered = (grid**2 + grid[:, None] ** 2 <= radius**2).reshape(21, fine, 21, fine).mean((1, 3))
    np.testing.assert_allclose(np.asarray(psf.defocus(radius)) * np.pi * radius**2, covered, atol=2e-3)


@pytest.mark.parametrize(("sigma", "kernel_size", "deviation"), [(4.0, 19, 3.76), (3.5, 19, 3.40), (2.0, 5, 1.29)])
def test_a_gaussian_that_its_kernel_would_cut_is_refused(sigma, kernel_size, deviation):
    """The deviation that is told is that of the taps; the size and the σ that are named work."""
    x = np.arange(kernel_size) - kernel_size // 2
    taps = np.exp(-0.5 * (x / sigma) ** 2)
    assert np.sqrt((taps * x**2).sum() / taps.sum()) == pytest.approx(deviation, abs=5e-3)
    enough, most = gaussian_size(sigma), kernel_size // 2 / 3
    way = f"use kernel_size={enough}, or a sigma of at most {np.floor(100 * most) / 100:g}"
    message = rf"sigma={sigma:g}: .* to a standard deviation of {deviation:.2f}; {way}"
    images = random_images(2, 9, 9, 3)
    for cut in (
        lambda: blur.gaussian(images, sigma, kernel_size=kernel_size),
        lambda: blur.gaussian(images, [1.0, sigma], kernel_size=kernel_size, impl="pix"),
        lambda: jax.jit(lambda x: blur.gaussian(x, sigma, kernel_size=kernel_size))(images),
        lambda: varying.gaussian(images, np.full((2, 9, 9), sigma), kernel_size=kernel_size),
        lambda: psf.gaussian(sigma, kernel_size),
        lambda: psf.gaussian_taps([0.5, sigma], kernel_size),
        lambda: sample.BlurSpec({"gaussian": 1}, sigma=(1, sigma), kernel_size=kernel_size),
    ):
        with pytest.raises(ValueError, match=message):
            cut()
    # Not cut, or not drawn.
    blur.gaussian(images, sigma, kernel_size=enough)
    blur.gaussian(images, np.floor(100 * most) / 100, kernel_size=kernel_size)
    sample.BlurSpec({"gaussian": 1}, sigma=sigma, kernel_size=enough)
    sample.BlurSpec({"motion": 1}, sigma=sigma, kernel_size=kernel_size)
    sample.BlurSpec({"gaussian": 1}, sigma=(1, 3), kernel_size=19)  # three deviations


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: blur.gaussian(x, -1.0), r"sigma=-1: must be at least 0"),
        (lambda x: blur.gaussian(x, [1.0, np.nan]), r"sigma=nan"),
        (lambda x: blur.gaussian(x, [1.0, 2.0, 3.0]), r"sigma: shape \[3\] must be \[\] or \[2\]"),
        (lambda x: blur.gaussian(x, 1.0, kernel_size=18), r"kernel_size=18: must be a positive odd"),
        (lambda x: blur.gaussian(x, 1.0, impl="fft"), r"impl='fft': must be 'auto' or 'pix'"),
        (lambda x: blur.gaussian(x[0], 1.0), r"images: float32\[8, 8, 3\] must be a float batch"),
        (lambda x: blur.gaussian((x * 255).astype(np.uint8), 1.0), r"images: uint8.* scale uint8 images"),
        (lambda x: blur.motion(x, 0.5, 0.0), r"length=0.5: must be in \[1, 21\]"),
        (lambda x: blur.motion(x, [3.0, 22.0], 0.0), r"length=22: .*larger odd kernel_size"),
        (lambda x: blur.motion(x, 3.0, np.inf), r"angle=inf"),
        (lambda x: blur.defocus(x, 10.6), r"radius=10.6: must be in \[0, 10.5\]"),
        (
            lambda x: sample.draw(jax.random.key(0), x, sample.SHARP),
            r"key: key<fry>\[\] must be typed keys \[2\]",
        ),
        (lambda x: sample.draw(np.zeros((2, 2), np.uint32), x, sample.SHARP), r"key: uint32"),
    ],
)
def test_bad_arguments_say_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_images(2, 8, 8, 3))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kinds": {"gausian": 1}}, r"unknown kind 'gausian', .*did you mean gaussian"),
        ({"kinds": {"sharp": 0.5, "motion": 0.6}}, r"sum to 1.1, must be 1"),
        ({"kinds": {"sharp": -1, "motion": 2}}, r"sharp=-1 is no probability"),
        ({"kinds": (("sharp", 0.5), ("sharp", 0.5))}, r"named twice"),
        ({"sigma": (2, 1)}, r"sigma=\(2, 1\): must be low ≤ high within \[0, inf\]"),
        ({"sigma": (1, 2, 3)}, r"sigma=\(1, 2, 3\): must be a number or a range"),
        ({"sigma": "wide"}, r"sigma='wide': must be a number or a range"),
        ({"length": (0, 5)}, r"length=\(0, 5\): .*\[1, 21\]"),
        ({"radius": 11}, r"radius=11"),
        ({"angle": (0, np.inf)}, r"angle"),
        ({"noise": (0, 2)}, r"noise"),
        ({"kernel_size": 4}, r"kernel_size=4: must be a positive odd"),
        ({"psf_size": 0}, r"psf_size=0"),
    ],
)
def test_bad_specs_name_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        sample.BlurSpec(**{"kinds": {"sharp": 1}, **fields})


# The random draw


def test_spec_is_hashable_and_normalised():
    spec = sample.BlurSpec({"defocus": 0.5, "sharp": 0.5, "motion": 0}, sigma=2, noise=[0, 0.1])
    assert spec.kinds == (("sharp", 0.5), ("defocus", 0.5))
    assert spec.sigma == (2.0, 2.0)
    assert hash(spec) == hash(sample.BlurSpec((("sharp", 0.5), ("defocus", 0.5)), sigma=(2, 2), noise=(0, 0.1)))


def test_draw_applies_what_it_reports():
    images = random_images(16, 20, 28, 3)
    spec = QUIET_KINDS
    blurred, kind, params = DRAW(keys(16), images, spec)
    assert sorted(set(np.asarray(kind))) == [0, 1, 2, 3]
    for i in range(16):
        name, p = sample.KINDS[kind[i]], jax.tree.map(lambda x, i=i: float(x[i]), params)
        kernel = {
            "sharp": lambda p: np.ones((1, 1), np.float32),
            "gaussian": lambda p: np.asarray(psf.gaussian(p.sigma)),
            "motion": lambda p: np.asarray(psf.motion(p.length, p.angle)),
            "defocus": lambda p: np.asarray(psf.defocus(p.radius)),
        }[name](p)
        np.testing.assert_allclose(blurred[i], cv2.filter2D(images[i], -1, kernel, borderType=REFLECT), atol=2e-6)
        used = {"sharp": set(), "gaussian": {"sigma"}, "motion": {"length", "angle"}, "defocus": {"radius"}}[name]
        for field, value in p._asdict().items():
            low, high = getattr(spec, field)
            assert (low <= value <= high) if field in used else value == 0


def test_papers_are_specs():
    paper1 = sample.BlurSpec({"gaussian": 1}, sigma=(1, 2), kernel_size=19)
    assert paper1 == sample.PAPER1_BLURRED
    assert sample.PAPER1_MIX.kinds == (("sharp", 0.5), ("gaussian", 0.5))
    assert [name for name, _ in sample.PAPER2.kinds] == list(sample.KINDS)
    assert sample.PAPER2.noise[1] > 0
