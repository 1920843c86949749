"""Blur of a part of an image: which pixels take it, what they are then, and the map that says so."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bjax import blur
from bjax.blur import sample, varying
from bjax.blur.sample import BlurSpec
from bjax.models import build
from bjax.step.inputs import Inputs, see
from bjax.tokens import MaskSpec

N = 8
IMAGES = np.random.default_rng(0).random((N, 48, 64, 3), dtype=np.float32)
MIXED = dict.fromkeys(sample.KINDS, 0.25)
TAPS = {"sigma": (0.5, 1), "kernel_size": 7, "psf_size": 9, "length": (3, 9), "radius": (1, 4)}
PARTS = ("regions", "centre", "surround")
SMALL = IMAGES[:, :24, :32]


def keys(number=N, seed=0):
    return jax.random.split(jax.random.key(seed), number)


def drawn(where, kinds=None, *, key=None, images=IMAGES, **fields):
    spec = BlurSpec(kinds or {"gaussian": 1}, where=where, **(TAPS | fields))
    return jax.device_get(sample.draw_with_truth(keys() if key is None else key, images, spec))


def test_whole_images_are_drawn_as_before_there_was_another_choice():
    images, kind, params = sample.draw(keys(), SMALL, BlurSpec(MIXED, **TAPS))
    assert np.asarray(kind).tolist() == [1, 2, 0, 3, 3, 2, 0, 1]
    np.testing.assert_allclose(params.sigma, [0.89404863, 0, 0, 0, 0, 0, 0, 0.7249847], rtol=1e-6)
    np.testing.assert_allclose(params.length, [0, 3.6243804, 0, 0, 0, 3.6233976, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(params.angle, [0, 1.070304, 0, 0, 0, 1.4825498, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(params.radius, [0, 0, 0, 3.7921171, 1.9389831, 0, 0, 0], rtol=1e-6)
    pixels = [0.56841, 0.5686168, 0.6375819, 0.5115158, 0.5302177, 0.5249392, 0.1012156, 0.619467]
    np.testing.assert_allclose(np.asarray(images)[:, 7, 11].mean(-1), pixels, rtol=0, atol=1e-6)
    assert sample.draw_with_truth(keys(), SMALL, BlurSpec(MIXED, **TAPS)).truth is None


@pytest.mark.parametrize("where", PARTS)
def test_pixels_of_the_part_are_the_whole_image_s_and_others_stay(where):
    images, _, params, truth = drawn(where)
    inside = truth > 0
    expected = blur.gaussian(IMAGES, params.sigma, kernel_size=7)
    np.testing.assert_allclose(images, jnp.where(inside[..., None], expected, IMAGES), rtol=0, atol=1e-6)
    for i, sigma in enumerate(params.sigma.astype(float)):
        peer = cv2.GaussianBlur(IMAGES[i], (7, 7), sigma, borderType=cv2.BORDER_REFLECT_101)
        np.testing.assert_allclose(images[i][inside[i]], peer[inside[i]], rtol=0, atol=2e-6)
        np.testing.assert_array_equal(images[i][~inside[i]], IMAGES[i][~inside[i]])
        np.testing.assert_allclose(np.unique(truth[i]), [0, sigma], rtol=1e-6)


def test_every_kind_is_blurred_in_parts_and_the_map_has_its_strength():
    images, kind, params, truth = drawn("regions", MIXED, images=SMALL)
    same, same_kind, same_params = sample.draw(keys(), SMALL, BlurSpec(MIXED, **TAPS))
    assert set(kind.tolist()) == {0, 1, 2, 3}
    np.testing.assert_array_equal(kind, same_kind)
    jax.tree.map(np.testing.assert_array_equal, params, same_params)
    np.testing.assert_allclose(images, jnp.where(truth[..., None] > 0, same, SMALL), rtol=0, atol=1e-6)
    strength = np.stack([np.zeros(N), params.sigma, params.length, params.radius])[kind, np.arange(N)]
    np.testing.assert_array_equal(truth.max((1, 2)), strength.astype(np.float32))


def test_a_ramp_grows_from_0_to_the_sigma_drawn():
    spec = BlurSpec({"sharp": 0.3, "gaussian": 0.7}, where="ramp", **TAPS)
    images, kind, params, truth = jax.device_get(sample.draw_with_truth(keys(), IMAGES, spec))
    assert 0 < kind.sum() < N
    where = jax.vmap(lambda k: jax.random.fold_in(k, 2))(keys())
    expected, sigma_map = varying.ramp(where, IMAGES, 0.0, params.sigma, kernel_size=7)
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(truth, sigma_map, atol=1e-6)
    np.testing.assert_allclose(truth.max((1, 2)), params.sigma, rtol=1e-5)
    np.testing.assert_allclose(truth.min((1, 2)), 0, atol=1e-6)
    np.testing.assert_array_equal(images[kind == 0], IMAGES[kind == 0])


@pytest.mark.parametrize(("where", "shape"), [("regions", varying.rectangles), ("centre", varying.middle)])
def test_half_of_the_image_is_blurred_on_average(where, shape):
    del where
    inside = np.asarray(shape(keys(1000), 48, 64))
    share = inside.mean((1, 2))
    assert share.mean() == pytest.approx(0.5, abs=0.015)  # 4 standard errors
    assert 0.15 < share.min() < 0.35
    assert 0.65 < share.max() < 0.85
    assert len(np.unique(share.round(2))) > 20


def test_the_middle_is_a_rectangle_or_an_ellipse_and_the_surround_the_rest():
    shapes = np.asarray(varying.middle(keys(200), 48, 64))
    assert shapes[:, 24, 32].all() and not shapes[:, 0].any() and not shapes[:, :, 0].any()
    np.testing.assert_array_equal(shapes, shapes[:, ::-1, ::-1])
    boxes = [shape[np.ix_(shape.any(1), shape.any(0))].mean() for shape in shapes]
    assert 0.35 < np.mean(np.array(boxes) == 1) < 0.65
    assert all(box == 1 or abs(box - np.pi / 4) < 0.05 for box in boxes)
    centre, surround = (drawn(where).truth > 0 for where in ("centre", "surround"))
    np.testing.assert_array_equal(centre, ~surround)


@pytest.mark.parametrize("where", PARTS)
def test_a_draw_depends_on_the_image_s_key_alone(where):
    whole, order = drawn(where), np.array([5, 2, 2, 7, 0, 1, 4, 4])  # another order, some left out, some there twice
    part = drawn(where, key=keys()[order], images=IMAGES[order])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[order], b), whole, part)
    assert len(np.unique(whole.truth, axis=0)) == N


def test_patches_of_a_map():
    sigma_map = np.zeros((3, 16, 24), np.float32)
    sigma_map[0, :8, :4] = 3  # half of the first patch
    sigma_map[0, 8:, 8:13] = 3  # five eighths of the fifth
    sigma_map[1] = np.linspace(0, 4, 24)
    means = np.asarray(varying.per_patch(jnp.asarray(sigma_map), 8))
    blurred = np.asarray(varying.blurred_patches(jnp.asarray(sigma_map), 8))
    assert means.shape == blurred.shape == (3, 2, 3)
    np.testing.assert_allclose(means[0], [[1.5, 0, 0], [0, 15 / 8, 0]])
    for i, y, x in np.ndindex(3, 2, 3):
        assert means[i, y, x] == pytest.approx(sigma_map[i, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].mean())
    assert blurred[0].tolist() == [[False, False, False], [False, True, False]]
    # Of the ramp the blurrier half: 2 and more, from the fifth pixel of the middle patch on, which is no majority.
    assert blurred[1].tolist() == [[False, False, True]] * 2
    assert not blurred[2].any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"where": "center"}, r"where=center: expected one of whole, .* \(did you mean centre\?\)"),
        ({"kinds": MIXED, "where": "ramp"}, "where=ramp: motion and defocus cannot grow over an image"),
        ({"kinds": MIXED, "impl": "pix"}, "impl=pix: dm-pix has no motion and defocus, only gaussian; use impl=auto"),
        ({"kinds": {"gaussian": 1}, "impl": "pix", "where": "ramp"}, "impl=pix: dm-pix has no blur that grows"),
        ({"impl": "cv2"}, "impl=cv2: expected one of auto, pix"),
        ({"kinds": {"gaussian": 1}, "where": "regions", "sigma": 8}, "sigma=8: kernel_size=19 would cut the Gaussian"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        BlurSpec(**fields)


@pytest.mark.parametrize("platform", ["one at a time", "batched"])
@pytest.mark.parametrize("where", ["whole", "regions"])
def test_dm_pix_draws_the_same_and_leaves_sharp_images_as_they_are(where, platform, monkeypatch):
    if platform == "batched":  # as on GPUs and TPUs
        monkeypatch.setattr(sample.convolve, "by_platform", lambda one, batched, *args, tpu=None: batched(*args))
        jax.clear_caches()
    kinds = {"sharp": 0.5, "gaussian": 0.5}
    ours, pix = (drawn(where, kinds, images=SMALL, impl=impl, noise=(0, 0.1)) for impl in ("auto", "pix"))
    np.testing.assert_allclose(pix.images, ours.images, rtol=0, atol=2e-6)
    jax.tree.map(np.testing.assert_array_equal, ours[1:], pix[1:])
    quiet = drawn(where, kinds, images=SMALL, impl="pix")
    sharp = quiet.kind == sample.KINDS.index("sharp")
    assert 0 < sharp.sum() < N
    np.testing.assert_array_equal(quiet.images[sharp], SMALL[sharp])
    jax.clear_caches()


@pytest.mark.slow
def test_a_model_sees_the_same_under_both():
    """Each image gets the same prediction, or it is a tie."""
    spec = {"kinds": {"gaussian": 1}, **TAPS}
    images = np.uint8(SMALL * 255)
    model = build("vit", num_classes=5, variant="Ti/8", depth=1, width=24, heads=3)
    variables = jax.jit(model.init)(jax.random.key(0), SMALL)
    variables = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape) / 5, variables)

    def logits(impl):
        inputs = Inputs(BlurSpec(**spec, impl=impl), MaskSpec(), 8, (0.5,) * 3, (0.25,) * 3)
        return np.asarray(model.apply(variables, see(keys(), images, inputs).images))

    ours, pix = logits("auto"), logits("pix")
    top = np.sort(ours, axis=1)
    assert ((ours.argmax(1) == pix.argmax(1)) | (top[:, -1] - top[:, -2] < 1e-3)).all()
    np.testing.assert_allclose(pix, ours, rtol=0, atol=1e-3)
    assert (ours != pix).any()  # two programs
