"""Blurs and their draws by properties of their own: gradients, dtypes, platforms, randomness."""

import os
import subprocess
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from test_blur import ALL_KINDS, DEFOCUS, DRAW, GAUSSIAN, MOTION, QUIET_KINDS, keys, random_images

from bjax import blur
from bjax.blur import convolve, sample, varying

# Gradients


def test_gradients_flow_through_every_parameter():
    images = random_images(2, 15, 15, 3) - 0.5  # small losses: less rounding in their differences
    losses = {
        "sigma": lambda v: (blur.gaussian(images, v) ** 2).sum(),
        "length": lambda v: (blur.motion(images, v, 0.4) ** 2).sum(),
        "angle": lambda v: (blur.motion(images, 7.0, v / 4) ** 2).sum(),
        "radius": lambda v: (blur.defocus(images, v) ** 2).sum(),
    }
    step = 1e-2
    for name, loss in losses.items():
        loss = jax.jit(jax.value_and_grad(loss))
        for value in (1.6, 2.3, 4.7):
            slope = float(loss(value + step)[0] - loss(value - step)[0]) / (2 * step)
            assert abs(slope) > 0.01, name
            assert float(loss(value)[1]) == pytest.approx(slope, rel=0.02), (name, value)


def test_gradient_of_the_images_is_the_adjoint():
    images, other = random_images(2, 12, 17, 3), random_images(2, 12, 17, 3, seed=1)
    for run in (
        lambda x: blur.gaussian(x, 1.5),
        lambda x: blur.motion(x, 9.0, 0.5),
        lambda x: blur.defocus(x, 3.0),
    ):
        blurred, pull = jax.vjp(run, images)
        np.testing.assert_allclose((blurred * other).sum(), (images * pull(other)[0]).sum(), rtol=1e-5)
        np.testing.assert_allclose(jax.jvp(run, (images,), (other,))[1], run(other), atol=2e-6)


def test_gradients_are_finite_at_the_ends_of_the_ranges():
    images = random_images(2, 9, 9, 3)
    for gradient in (
        jax.grad(lambda v: blur.motion(images, v, 0.0).var())(1.0),
        jax.grad(lambda v: blur.motion(images, 21.0, v).var())(0.0),
        *jax.grad(lambda v: blur.defocus(images, v).var())(jnp.array([0.0, 10.5])),
    ):
        assert np.isfinite(gradient)


# dtypes, batches and platforms


@pytest.mark.parametrize("run", [lambda x: GAUSSIAN(x, 1.5), lambda x: MOTION(x, 7.0, 0.3), lambda x: DEFOCUS(x, 3.0)])
def test_bfloat16_in_bfloat16_out(run):
    images = random_images(2, 16, 20, 3)
    result = run(jnp.asarray(images, jnp.bfloat16))
    assert result.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(result, np.float32), run(images), atol=0.01)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_the_batched_forms_of_gpu_and_tpu_are_the_same_blur(platform, monkeypatch):
    jax.clear_caches()
    images, key = random_images(8, 20, 24, 3), keys(8)
    sigma_map = np.linspace(0, 3, 8 * 20 * 24).reshape(8, 20, 24)
    sigmas, lengths, radii = np.linspace(0, 3, 8), np.linspace(1, 21, 8), np.linspace(0, 10, 8)
    runs = (
        lambda n: blur.gaussian(images[:n], sigmas[:n]),
        lambda n: blur.motion(images[:n], lengths[:n], 0.7),
        lambda n: blur.defocus(images[:n], radii[:n]),
        lambda n: sample.draw(key[:n], images[:n], QUIET_KINDS)[0],
        lambda n: varying.gaussian(images[:n], sigma_map[:n]),
    )
    batched_form = lambda one, batched, *args, tpu=None: (tpu if tpu and platform == "tpu" else batched)(*args)  # noqa: E731
    monkeypatch.setattr(convolve, "by_platform", batched_form)
    batched = [run(7) for run in runs]  # 7 images here and 8 below: compiled functions are cached by shape
    monkeypatch.undo()
    for run, result in zip(runs, batched, strict=True):
        np.testing.assert_allclose(result, run(8)[:7], rtol=0, atol=2e-6)
    jax.clear_caches()


@pytest.mark.parametrize("run", [lambda x: GAUSSIAN(x, 1.5), lambda x: MOTION(x, 7.0, 0.3), lambda x: DEFOCUS(x, 3.0)])
def test_a_batch_of_any_size_can_be_exported(run):
    (number,) = jax.export.symbolic_shape("b")
    exported = jax.export.export(jax.jit(run), platforms=("cpu", "cuda", "tpu"))
    exported = exported(jax.ShapeDtypeStruct((number, 16, 20, 3), jnp.float32))
    images = random_images(2, 16, 20, 3)
    np.testing.assert_allclose(exported.call(images), run(images), rtol=0, atol=1e-6)


def lowered_for(run, *shapes):
    traced = jax.jit(run).trace(*shapes)
    return {on: traced.lower(lowering_platforms=(on,)).as_text() for on in ("cpu", "cuda", "tpu")}


@pytest.mark.parametrize(("side", "expected"), [(1024, {"tpu"}), (1025, set())])
def test_tpus_alone_multiply_matrices_and_no_larger_ones_than_images(side, expected):
    shapes = jax.ShapeDtypeStruct((2, 8, side, 3), jnp.float32), jax.ShapeDtypeStruct((2, 5), jnp.float32)
    texts = lowered_for(convolve.separable, *shapes)
    assert {on for on, text in texts.items() if "dot_general" in text} == expected


def test_tpus_alone_convolve_by_group():
    shapes = jax.ShapeDtypeStruct((2, 8, 9, 3), jnp.float32), jax.ShapeDtypeStruct((2, 5, 5), jnp.float32)
    texts = lowered_for(convolve.depthwise, *shapes)
    assert {on for on, text in texts.items() if "stablehlo.convolution" in text} == {"tpu"}


@pytest.mark.parametrize(
    ("spec", "side", "expected"),
    [
        (sample.PAPER1_MIX, 16, {"tpu"}),
        (sample.PAPER2, 16, {"tpu"}),
        (sample.SHARP, 16, set()),
        (sample.PAPER1_MIX, 1025, set()),
        (sample.BlurSpec({"motion": 1}), 16, set()),
        (sample.BlurSpec({"gaussian": 1}, impl="pix"), 16, set()),
        (sample.BlurSpec({"gaussian": 1}, where="ramp"), 16, set()),
    ],
)
def test_images_are_laid_out_on_tpus_alone_where_products_read_them(spec, side, expected):
    texts = lowered_for(lambda x: sample.laid_out(x, spec), jax.ShapeDtypeStruct((2, 8, side, 3), jnp.uint8))
    assert {on for on, text in texts.items() if "LayoutConstraint" in text} == expected
    images = np.arange(2 * 8 * side * 3, dtype=np.uint8).reshape(2, 8, side, 3)
    np.testing.assert_array_equal(sample.laid_out(images, spec), images)


@pytest.mark.parametrize("border", ["reflect", "edge"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (7, 4), (33, 20)])
def test_the_products_of_tpus_are_scipys_correlation(height, width, border):
    images, taps = random_images(3, height, width, 3), random_images(3, 1, 19, 1)[:, 0, :, 0]
    taps /= taps.sum(axis=1, keepdims=True)
    for mine, image, weights in zip(convolve._products(images, taps, border), images, taps, strict=True):
        expected = image.astype(np.float64)
        for axis in (0, 1):
            mode = {"reflect": "mirror", "edge": "nearest"}[border]
            expected = scipy.ndimage.correlate1d(expected, weights.astype(np.float64), axis, mode=mode)
        np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_draw_under_shard_map_equals_one_device():
    # Devices are counted once per process, so four of them need their own.
    program = """
import jax, numpy as np
from jax.sharding import AxisType, PartitionSpec as P
from bjax.blur import sample
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
images = np.random.default_rng(0).random((8, 16, 16, 3), dtype=np.float32)
keys = jax.random.split(jax.random.key(0), 8)
run = lambda k, x: sample.draw(k, x, sample.PAPER2)
sharded = jax.shard_map(run, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
def loss(x, draw):
    blurred, kind, params = draw(keys, x)
    return (blurred ** 2).sum(), (blurred, kind, params)
one, many = (jax.jit(jax.grad(lambda x: loss(x, draw), has_aux=True))(images) for draw in (run, sharded))
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, many)
"""
    environment = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": "4",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# The random draw


def test_draw_depends_on_the_image_key_alone():
    images, n = random_images(16, 12, 12, 3), 16
    whole = DRAW(keys(n), images, ALL_KINDS)
    order = np.random.default_rng(0).integers(0, n, n)  # another order, some images left out, some there twice
    other = DRAW(keys(n)[order], images[order], ALL_KINDS)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a)[order], b), whole, other)
    other = DRAW(keys(n, seed=1), images, ALL_KINDS)
    assert (np.asarray(other[1]) != np.asarray(whole[1])).any()


def test_draw_follows_the_distribution():
    spec = sample.BlurSpec({"sharp": 0.1, "gaussian": 0.2, "motion": 0.3, "defocus": 0.4}, sigma=(1, 2))
    n = 8000
    kind, params, _ = jax.jit(jax.vmap(lambda k: sample.draw_one(k, spec)))(keys(n))
    counts = np.bincount(kind, minlength=4) / n
    np.testing.assert_allclose(counts, [0.1, 0.2, 0.3, 0.4], atol=0.02)
    sigma = np.asarray(params.sigma)[np.asarray(kind) == 1]
    assert sigma.min() >= 1
    assert sigma.max() <= 2
    assert sigma.mean() == pytest.approx(1.5, abs=0.03)
    assert sigma.std() == pytest.approx(12**-0.5, abs=0.02)


def test_noise_is_added_last_and_to_every_kind():
    images = np.full((64, 16, 16, 3), 0.5, np.float32)
    spec = sample.BlurSpec(dict.fromkeys(sample.KINDS, 0.25), noise=0.05)
    blurred, kind, params = DRAW(keys(64), images, spec)
    np.testing.assert_allclose(params.noise, 0.05)
    for k in range(4):  # blurred noise would be weaker and correlated
        noise = np.asarray(blurred)[np.asarray(kind) == k] - 0.5
        assert noise.std() == pytest.approx(0.05, rel=0.03)
        assert abs(np.corrcoef(noise[:, :, 1:].ravel(), noise[:, :, :-1].ravel())[0, 1]) < 0.03
    clipped, _, _ = DRAW(keys(64), images * 2, spec)
    assert clipped.max() == 1


def test_draw_in_bfloat16():
    images = random_images(16, 12, 12, 3)
    blurred, kind, _ = DRAW(keys(16), jnp.asarray(images, jnp.bfloat16), ALL_KINDS)
    assert blurred.dtype == jnp.bfloat16
    expected, expected_kind, _ = DRAW(keys(16), images, ALL_KINDS)
    np.testing.assert_array_equal(kind, expected_kind)
    np.testing.assert_allclose(np.asarray(blurred, np.float32), expected, atol=0.02)


def test_no_kind_leaks_through_border_or_level():
    """A linear probe on the outer 9 px of constant images must not tell the kinds apart."""
    n, rng = 400, np.random.default_rng(0)
    images = np.broadcast_to(rng.random((n, 1, 1, 3), dtype=np.float32), (n, 32, 32, 3))
    spec = sample.BlurSpec(dict.fromkeys(sample.KINDS, 0.25), sigma=(1, 3), noise=(0, 0.02))
    blurred, kind, _ = DRAW(keys(n), images, spec)
    accuracy = probe_accuracy(border_features(blurred, images), np.asarray(kind))
    assert accuracy < 0.25 + 0.1, accuracy  # 4 standard deviations of chance on 200 images are 0.12

    # The probe can tell: zero padding, as in dm-pix, gives the Gaussian away.
    quiet, kind, params = DRAW(keys(n), images, QUIET_KINDS)
    np.testing.assert_allclose(quiet, images, atol=1e-6)
    darkened = [
        cv2.GaussianBlur(x, (19, 19), float(s), borderType=cv2.BORDER_CONSTANT) if s else x
        for x, s in zip(images, np.asarray(params.sigma), strict=True)
    ]
    is_gaussian = (np.asarray(kind) == sample.KINDS.index("gaussian")).astype(int)
    assert probe_accuracy(border_features(np.array(darkened), images), is_gaussian) > 0.9


def border_features(blurred, images):
    """The outer 9 px: mean per ring and its spread, relative to the image's level."""
    blurred = np.asarray(blurred, np.float64) - np.asarray(images[:, :1, :1])
    rows = np.concatenate([blurred[:, :9], blurred[:, -9:][:, ::-1]], 2)
    return np.concatenate([rows.mean((2, 3)), np.abs(rows).mean((2, 3)), blurred[:, :9, ::4].reshape(len(rows), -1)], 1)


def probe_accuracy(features, labels):
    """Ridge regression onto one-hot labels, trained on one half of the images, scored on the other."""
    half = len(labels) // 2
    features = (features - features[:half].mean(0)) / (features[:half].std(0) + 1e-12)
    targets = np.eye(labels.max() + 1)[labels]
    train = features[:half]
    weights = np.linalg.solve(
        train.T @ train + 10 * np.eye(train.shape[1]), train.T @ (targets[:half] - targets.mean(0))
    )
    return ((features[half:] @ weights + targets.mean(0)).argmax(1) == labels[half:]).mean()
