"""Blur of patches in pixels: against a NumPy oracle and blurs that are known, as a selector, and what is refused."""

import functools
import operator
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from benchmarks import tokens as timing
from bjax import config as configs
from bjax import sharpness, thresholds, tokens
from bjax.data import photos
from bjax.errors import UserError
from bjax.report import figures, overlay, words
from bjax.tokens import MaskSpec

DEMO = "configs/vit_mask.py:demo"
SIDE, PATCH = 96, 16
FAR = (0, 0.5, 0.75, 3, 4, 6)  # px: σ on either side of the limit
LIMIT = 1.5  # px


@functools.cache
def crops() -> np.ndarray:
    """uint8[54, 96, 96, 3]: the middle of every embedded photograph, reduced to 1, .5 and .25 of its size."""
    found = []
    for name in photos.TRAIN + photos.UNSEEN:
        photo = Image.fromarray(photos.load(photos.photographs() / name))
        for scale in (1, 0.5, 0.25):
            width, height = (round(scale * side) for side in photo.size)
            small = photo.resize((width, height), Image.Resampling.LANCZOS) if scale < 1 else photo
            left, top = (max(0, side - SIDE) // 2 for side in small.size)
            found.append(np.asarray(small)[top : top + SIDE, left : left + SIDE])
    return np.stack([crop for crop in found if crop.shape == (SIDE, SIDE, 3)])


def blurred(images: np.ndarray, sigma: float, contrast=1.0) -> np.ndarray:
    """float32 in [0, 1], at 8 bits, of uint8 images: less contrast first, then a Gaussian of `sigma` pixels."""
    images = 128 + contrast * (images.astype(np.float64) - 128)
    images = gaussian_filter(images, (0, sigma, sigma, 0), mode="mirror")
    return np.float32(np.round(images) / 255)


def energies(greys: np.ndarray, again: float = 0.0, size: tuple[int, int] = (PATCH, PATCH)) -> np.ndarray:
    """Mean squared central differences of patches of [B, H, W], after a Gaussian of `again` pixels."""
    greys = gaussian_filter(greys.astype(np.float64), (0, again, again), mode="mirror")
    p = np.pad(greys, [(0, 0), (1, 1), (1, 1)], mode="reflect")
    squared = (p[:, 2:, 1:-1] - p[:, :-2, 1:-1]) ** 2 / 4 + (p[:, 1:-1, 2:] - p[:, 1:-1, :-2]) ** 2 / 4
    batch, height, width = greys.shape
    return squared.reshape(batch, height // size[0], size[0], width // size[1], size[1]).mean((2, 4))


def oracle(greys: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`sharpness.sigma` of grey levels, one σ after the other, in float64."""
    again = np.array([0, 0.5, 1, 1.5, 2])
    seen = np.stack([energies(greys, s, size) for s in again], -1)
    flat = seen[..., 0] < 0.3
    seen = np.log(seen + 0.1)
    seen -= seen.mean(-1, keepdims=True)
    least, best = np.full(flat.shape, np.inf), np.zeros(flat.shape)
    for sigma in (*np.arange(0, 3, 0.05), *np.arange(3, 8.1, 0.25)):
        total = np.log(sigma**2 + again**2 + 0.5)
        total -= total.mean()
        power = np.clip((0.1 - seen @ total) / (total @ total + 0.1), 0.3, 2)
        left = ((seen + power[..., None] * total) ** 2).sum(-1) + 0.1 * (power - 1) ** 2
        best = np.where(left < least, sigma, best)
        least = np.minimum(left, least)
    return np.where(flat, np.nan, best)


def right(blurry: np.ndarray, truth: np.ndarray) -> float:
    return float((blurry == (truth > LIMIT)).mean())


def best_threshold(scores: np.ndarray, truth: np.ndarray) -> float:
    """The share of verdicts that are right at the threshold that suits these very scores best."""
    blurred = np.sort(scores[truth > LIMIT])
    sharp = np.sort(scores[truth <= LIMIT])
    below = [np.searchsorted(part, scores) for part in (blurred, sharp)]
    return float((below[0] + len(sharp) - below[1]).max() / len(scores))


def test_the_error_on_photographs_and_the_verdict_against_a_limit():
    """The oracle of what was promised, on 1,220 textured patches of 48 crops, contrast × .5 to 1, nine blurs.

    Textured: the mean squared gradient of the patch, sharp and at full contrast, is over 25. Measured: median error
    0.35 px for σ of .5 to 3, nine tenths within 1.01; 3.8 % cannot be told (16 % at σ = 6). Which side of 1.5 px: right
    on 96.7 %. The variance of the Laplacian at paper 1's threshold of 100 is right on 90.0 % of the same patches, at
    the threshold that suits these patches best (9.2, which nobody knows before) on 99.4 %: that a patch is textured
    says how strong its gradients were. Over all patches, smooth ones too, that can be told: 93.1 % against 91.9.
    """
    images = crops()
    contrast = np.random.default_rng(0).uniform(0.5, 1, (len(images), 1, 1, 1))
    textured = energies(np.asarray(sharpness.grey_levels(images / np.float32(255)))) > 25
    assert textured.sum() > 1000
    found, laplacian = {}, {}
    sharpness.sigma.clear_cache()
    for sigma in (0, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6):
        seen = blurred(images, sigma, contrast)
        found[sigma] = np.asarray(sharpness.sigma(seen, PATCH))
        laplacian[sigma] = np.asarray(sharpness.laplacian_variance(seen, PATCH))
    assert sharpness.sigma._cache_size() == 1  # one program, whatever the images
    medians = [np.nanmedian(values[textured]) for values in found.values()]
    expected, within = (0.05, 0.45, 0.75, 0.95, 1.45, 1.9, 2.75, 3.5, 5), (0.2, *[0.1] * 5, 0.25, 0.5, 0.5)
    assert (np.abs(np.subtract(medians, expected)) <= within).all()
    errors = np.concatenate([np.abs(found[sigma][textured] - sigma) for sigma in (0.5, 0.75, 1, 1.5, 2, 3)])
    assert np.nanmedian(errors) < 0.45 and np.nanquantile(errors, 0.9) < 1.15

    def both(where):
        """sigma, the Laplacian's variance and the truth of the patches that sigma can tell; and the share it cannot."""
        truth = np.repeat(FAR, where.sum())
        ours, theirs = (np.concatenate([values[sigma][where] for sigma in FAR]) for values in (found, laplacian))
        told = ~np.isnan(ours)
        return ours[told], theirs[told], truth[told], 1 - told.mean()

    ours, theirs, truth, untold = both(textured)
    assert right(ours > LIMIT, truth) > 0.95 and untold < 0.06 and np.isnan(found[6][textured]).mean() < 0.2
    assert right(ours > LIMIT, truth) > right(theirs < 100, truth) + 0.05
    assert best_threshold(theirs, truth) > right(ours > LIMIT, truth)
    ours, theirs, truth, _ = both(np.ones_like(textured))
    assert right(ours > LIMIT, truth) > best_threshold(theirs, truth)


@pytest.mark.parametrize("sigma", [0.75, 3])
def test_contrast_does_not_matter(sigma):
    """Half of it leaves less than half of the Laplacian's variance (a quarter, where rounding is not most of it)."""
    images = crops()
    full, half = (blurred(images, sigma, contrast) for contrast in (1, 0.5))
    clear = energies(np.asarray(sharpness.grey_levels(full))) > 25
    measures = sharpness.sigma, sharpness.laplacian_variance
    ours, theirs = ([np.asarray(measure(x, PATCH))[clear] for x in (full, half)] for measure in measures)
    difference = np.abs(ours[0] - ours[1])
    assert np.median(difference) <= 0.05 and np.quantile(difference, 0.9) <= 0.3
    assert np.median(theirs[1] / theirs[0]) < 0.5


@pytest.mark.parametrize(("size", "scope"), [((16, 16), "image"), ((32, 48), "patch")])
def test_it_is_the_oracles(size, scope):
    sigmas = np.random.default_rng(1).choice([0, 1.2, 2.5], len(crops()))
    images = np.concatenate([blurred(crop[None], sigma) for crop, sigma in zip(crops(), sigmas, strict=True)])
    images[0, :32] = images[1, 40, 40]  # flat
    tiles = np.asarray(sharpness.grey_levels(images)).reshape(-1, 1, SIDE, 1, SIDE)
    if scope == "patch":
        tiles = tiles.reshape(-1, SIDE // size[0], size[0], SIDE // size[1], size[1])
    apart = tiles.swapaxes(2, 3)
    expected = oracle(apart.reshape(-1, *apart.shape[3:]), size).reshape(len(images), SIDE // size[0], SIDE // size[1])
    found = np.asarray(sharpness.sigma(images, size if scope == "patch" else 16, scope=scope))
    assert found.dtype == np.float32 and np.isnan(expected[0, 0]).all() and np.isnan(expected).mean() < 0.2
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


def test_what_is_flat_cannot_be_told():
    levels = np.random.default_rng(0).integers(0, 256, (len(crops()), 1, 1, 3))
    assert np.isnan(sharpness.sigma(np.float32(np.broadcast_to(levels, crops().shape) / 255), PATCH)).all()


# As a selector


def loop(row, drop, threshold, keep_rate) -> tuple[set[int], set[int], int]:
    """Patches that stay for sure, those of which chance takes some, and how many stay in all; one by one."""
    sign = 1 if drop == "below" else -1
    untold = np.inf if threshold is None else sign * threshold
    order = [untold if np.isnan(blur) else sign * blur for blur in row]
    passing = [i for i in range(len(row)) if threshold is None or order[i] <= sign * threshold]
    room = len(row) if keep_rate is None else max(1, round(keep_rate * len(row)))
    sure, perhaps = set(), set()
    for i in passing:
        before, alike = (sum(test(order[j], order[i]) for j in passing) for test in (operator.lt, operator.eq))
        if before + alike <= room:
            sure.add(i)
        elif before < room:
            perhaps.add(i)
    return sure, perhaps, min(room, len(passing))


@pytest.mark.parametrize("drop", ["below", "above"])
@pytest.mark.parametrize("threshold", [None, 0.0, 1.5, 1.75])
@pytest.mark.parametrize("keep_rate", [0.1, 0.6, None])
def test_it_keeps_the_patches_a_loop_would_keep(drop, threshold, keep_rate, monkeypatch):
    if threshold is None and keep_rate is None:
        return
    values = np.random.default_rng(0).choice(np.float32([0, 1, 1.5, 2, 8, np.nan, np.nan]), (120, 3, 4))
    monkeypatch.setitem(sharpness.MEASURES, "sigma", lambda *args, **more: jnp.asarray(values))
    images, keys = np.zeros((120, 48, 64, 3), np.float32), jax.random.split(jax.random.key(0), 120)
    spec = MaskSpec("attend", selector="sigma", drop=drop, threshold=threshold, keep_rate=keep_rate)
    for row, keep in zip(values.reshape(120, 12).tolist(), tokens.select(keys, images, spec, PATCH).keep, strict=True):
        sure, perhaps, number = loop(row, drop, threshold, keep_rate)
        stays = set(np.flatnonzero(keep))
        assert len(stays) == number and sure <= stays <= sure | perhaps


@pytest.mark.parametrize("threshold", [None, 1.5])
def test_chance_decides_between_those_that_cannot_be_told(threshold, monkeypatch):
    values = jnp.full((120, 3, 4), jnp.nan).at[:, 1, 1:3].set(1.0).at[:, 2, 0].set(1.5)
    monkeypatch.setitem(sharpness.MEASURES, "sigma", lambda *args, **more: values)
    spec = MaskSpec("attend", selector="sigma", threshold=threshold, keep_rate=0.5)
    images, keys = np.zeros((120, 48, 64, 3), np.float32), jax.random.split(jax.random.key(0), 120)
    share = np.asarray(tokens.select(keys, images, spec, PATCH).keep).mean(0)
    told = [5, 6] if threshold else [5, 6, 8]  # what is exactly at the threshold is as good as they are
    assert (share[told] == 1).all()
    rest = np.delete(share, told)
    np.testing.assert_allclose(rest, (6 - len(told)) / len(rest), atol=0.2)  # 120 draws: 4.5 standard errors


def test_it_keeps_what_is_not_blurred():
    images = crops() / np.float32(255)
    images[:, :, 48:] = blurred(crops(), 4)[:, :, 48:]
    for drop, stays in (("below", slice(0, 3)), ("above", slice(3, 6))):
        spec = MaskSpec("attend", selector="sigma", drop=drop, keep_rate=1 / 3)
        keep = np.asarray(tokens.select(None, images, spec, PATCH).keep).reshape(-1, 6, 6)
        assert keep[:, :, stays].sum() > 0.9 * keep.sum()


# As a picture


def test_its_scale_is_linear_and_what_is_sharp_has_the_colour_of_all_scales():
    scores = np.array([[[0.0, 8.0], [4.0, np.nan]]], np.float32)
    keep, box, photo = np.ones((1, 2, 2), bool), np.array([[0, 0, 1, 1]]), np.full((32, 32, 3), 200, np.uint8)
    mask = MaskSpec(selector="sigma", threshold=6.0)
    page = np.asarray(overlay.draw(photo, box, scores, keep, patch=0.5, title="", mask=mask), int)
    top, left = overlay.MARGIN + overlay.HEAD, overlay.MARGIN + overlay.SIDE + overlay.GAP
    cells = page[top:, left:][: overlay.SIDE, : overlay.SIDE][120::240, 120::240]
    sharp, blurred, between = (overlay.COLOURS[i].tolist() for i in (-1, 0, 2))
    assert cells.tolist() == [[sharp, blurred], [between, list(overlay.UNTOLD)]]
    bar = page[top:, left + overlay.SIDE + 2 * overlay.GAP + overlay.BAR // 2]
    reds = np.flatnonzero((bar == (214, 39, 40)).all(-1))
    assert abs(reds.mean() / (overlay.SIDE - 2 * overlay.BAR) - 6 / 8) < 0.01
    assert (bar == overlay.UNTOLD).all(-1).any()  # in the legend
    # Where crops overlap, of those that can be told.
    twice = overlay.draw(
        photo, box[[0, 0]], np.stack([scores[0], np.full((2, 2), np.nan)]), keep[[0, 0]], patch=0.5, title="", mask=mask
    )
    np.testing.assert_array_equal(np.asarray(twice)[top:, left:], page[top:, left:])


def test_the_gallery_shows_it_in_the_same_colours():
    pytest.importorskip("matplotlib")
    scores = np.array([[[0.0, 8.0], [4.0, np.nan]]], np.float32)
    images, kept = np.zeros((1, 32, 32, 3), np.uint8), np.ones((1, 2, 2), bool)
    drawn = figures.gallery(images, kept, scores, ["a"], 1.5, "sigma")
    expected = [[overlay.COLOURS[-1], overlay.COLOURS[0]], [overlay.COLOURS[2], overlay.UNTOLD]]
    np.testing.assert_array_equal(drawn.axes[1].images[0].get_array(), np.uint8(expected))
    bar = drawn.axes[-1]
    labels = dict(zip([label.get_text() for label in bar.get_yticklabels()], bar.get_yticks(), strict=True))
    assert labels == {"0 px": 1, "2 px": 0.75, "4 px": 0.5, "6 px": 0.25, "8 px": 0}
    assert bar.lines[-1].get_ydata()[0] == 1 - 1.5 / 8 and bar.get_ylabel() == "estimated blur, σ in pixels"
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["unknown: no texture"]
    assert not figures.gallery(images, kept, np.ones_like(scores), ["a"], None, "sigma").legends


def test_a_report_says_it_in_pixels():
    limit = {"mode": "zero_pixels", "selector": "sigma", "threshold": 1.5, "keep_rate": None}
    assert words.mask_text({**limit, "drop": "below"}) == "sigma, blurrier than 1.5 px dropped"
    assert words.mask_text({**limit, "drop": "above"}) == "sigma, sharper than 1.5 px dropped"
    tenengrad = {**limit, "drop": "below", "selector": "tenengrad", "threshold": 2000.0}
    assert words.mask_text(tenengrad) == "tenengrad, below 2000 dropped"
    assert words.mask_text({**tenengrad, "selector": "random"}) == "random, as many as below 2000 dropped"


# What is refused


def test_patches_that_are_too_small_are_refused():
    with pytest.raises(ValueError, match="patch_size=8: this measure needs patches of at least 16 px a side"):
        sharpness.sigma(np.zeros((1, 16, 16, 3), np.float32), 8)
    with pytest.raises(ValueError, match=r"patch_size=\(16, 4\): this measure needs"):
        sharpness.sigma(np.zeros((1, 16, 16, 3), np.float32), (16, 4), scope="patch")


MASK = {"mode": "zero_pixels", "selector": "sigma", "threshold": 1.5}
SMALL = {"model.options.variant": "Ti/8"}
WHY = "needs patches of at least 16 px, config.model.options.variant=Ti/8 has 8; choose another selector, or S/16, say"


@pytest.mark.parametrize("key", ["mask", "eval.sharp.mask"])
def test_small_patches_are_one_line_before_any_device_is_touched(key):
    mask = {f"{key}.{name}": value for name, value in MASK.items()}
    load = functools.partial(configs.load, DEMO)
    with pytest.raises(UserError, match=f"^{re.escape(f'config.{key}.selector=sigma: {WHY}')}$"):
        load([(name, str(value)) for name, value in {**SMALL, **mask}.items()])
    load([(name, str(value)) for name, value in {**SMALL, **mask, f"{key}.mode": "none"}.items()])
    load([(name, str(value)) for name, value in mask.items()])
    alone = {**SMALL, "mask_quality.masks.laplacian_below_50.selector": "sigma"}
    with pytest.raises(UserError, match=r"^config\.mask_quality\.masks\.laplacian_below_50\.selector=sigma: needs"):
        configs.load(f"{DEMO},grid=true", list(alone.items()))


def test_a_threshold_is_in_pixels():
    assert MaskSpec(**MASK).threshold == 1.5 and MaskSpec(**MASK | {"threshold": 8}).measure == "sigma"
    with pytest.raises(ValueError, match="threshold=100: selector=sigma measures blur in pixels, at most 8"):
        MaskSpec(**MASK | {"threshold": 100.0})


def test_the_benchmark_names_its_own_flags(capsys):
    assert timing.main(["--variant=Ti/8", "--selector=sigma"]) == 2
    said = "bjax: --variant=Ti/8: --selector=sigma needs patches of at least 16 px\n"
    assert capsys.readouterr().err == said


def test_thresholds_needs_to_find_none(capsys):
    assert thresholds.main(["docs/blur.png", "--measure=sigma"]) == 2
    flags = "--config.mask.mode=zero_pixels --config.mask.selector=sigma --config.mask.threshold=1.5"
    said = f"bjax: --measure=sigma: is in pixels already; give a limit in pixels to bjax.main, such as {flags}\n"
    assert capsys.readouterr().err == said
