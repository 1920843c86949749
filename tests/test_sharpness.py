"""Focus measures against cv2, thresholds against NumPy and scikit-image, and the calibration command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage
from PIL import Image, ImageFilter

from bjax import blur, sharpness, thresholds
from bjax import config as configs
from bjax.tokens import MaskSpec

pytestmark = pytest.mark.usefixtures("optimized")

ROOT = Path(__file__).parents[1]
LEVELS = np.random.default_rng(0).integers(0, 256, (2, 48, 96, 3), dtype=np.uint8)
LEVELS[1] = cv2.GaussianBlur(LEVELS[1], (0, 0), 3)  # small responses too
LEVELS[1, :, :32] = 200  # and none
IMAGES = LEVELS / np.float32(255)


def cv2_greys(levels=LEVELS):
    return np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in levels])


def cv2_patches(response, patch, scope):
    """`response` (grey image -> image) of every patch: `[B, H/p, W/p, p, p]`."""
    greys = cv2_greys()
    batch, height, width = greys.shape

    def tiles(x):
        return x.reshape(batch, height // patch, patch, width // patch, patch).swapaxes(2, 3)

    if scope == "image":
        return tiles(np.stack([response(grey) for grey in greys]))
    flat = np.ascontiguousarray(tiles(greys)).reshape(-1, patch, patch)
    return np.stack([response(grey) for grey in flat]).reshape(tiles(greys).shape)


def laplacian(grey):
    return cv2.Laplacian(grey, cv2.CV_64F)


def squared_sobel(grey):
    return cv2.Sobel(grey, cv2.CV_64F, 1, 0) ** 2 + cv2.Sobel(grey, cv2.CV_64F, 0, 1) ** 2


def modified_laplacian(grey):
    kernel = np.array([[-1.0, 2.0, -1.0]])
    return np.abs(cv2.filter2D(grey, cv2.CV_64F, kernel)) + np.abs(cv2.filter2D(grey, cv2.CV_64F, kernel.T))


def high_pass(grey):
    return grey - cv2.GaussianBlur(grey.astype(np.float32), (7, 7), 1)


def test_grey_is_cv2s_for_every_colour():
    red, green, blue = np.meshgrid(*[np.arange(0, 256, 3, dtype=np.uint8)] * 3, indexing="ij")
    levels = np.stack([red, green, blue], -1).reshape(1, -1, 86, 3)
    levels = np.concatenate([levels, 255 - levels])
    ours = jax.jit(sharpness.grey_levels)(levels / np.float32(255))
    np.testing.assert_array_equal(ours, cv2_greys(levels))


def test_grey_rounds_half_to_even_before_weighting():
    images = np.random.default_rng(1).random((1, 40, 40, 3), dtype=np.float32)
    np.testing.assert_array_equal(sharpness.grey_levels(images), cv2_greys(np.rint(images * 255).astype(np.uint8)))
    half = np.full((1, 1, 1, 3), 0.5, np.float32)  # 127.5 levels
    assert int(sharpness.grey_levels(half)[0, 0, 0]) == 128
    assert sharpness.grey_levels(jnp.asarray(half, jnp.bfloat16)).shape == (1, 1, 1)


def test_laplacian_response_is_cv2s_bit_for_bit():
    ours = sharpness.laplacian(jnp.asarray(cv2_greys(), jnp.int32)).astype(jnp.float32)
    np.testing.assert_array_equal(ours, np.stack([laplacian(grey) for grey in cv2_greys()]))


@pytest.mark.parametrize("scope", ["image", "patch"])
@pytest.mark.parametrize("patch", [1, 3, 16, 48])
def test_laplacian_variance_is_cv2s(patch, scope):
    expected = cv2_patches(laplacian, patch, scope).var((-2, -1))
    ours = np.asarray(sharpness.laplacian_variance(IMAGES, patch, scope=scope))
    assert ours.shape == (2, 48 // patch, 96 // patch)
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=0)


def test_laplacian_variance_of_a_whole_photograph():
    photo = skimage.data.astronaut()  # 262,144 pixels in one sum
    expected = laplacian(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)).var()
    ours = sharpness.laplacian_variance(photo[None] / np.float32(255), 512)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_the_largest_sums_are_exact():
    checks = np.indices((1024, 1024)).sum(0)
    for period, measure, reference in (
        (1, sharpness.laplacian_variance, lambda grey: laplacian(grey).var()),
        (2, sharpness.tenengrad, lambda grey: squared_sobel(grey).mean()),
        (1, sharpness.sum_modified_laplacian, lambda grey: modified_laplacian(grey).sum()),
    ):
        levels = np.repeat((checks // period % 2 * np.uint8(255))[..., None], 3, -1).astype(np.uint8)
        ours = measure(levels[None] / np.float32(255), 1024)
        np.testing.assert_allclose(ours, reference(cv2_greys(levels[None])[0]), rtol=1e-6)


def test_the_scopes_differ_at_patch_borders_only():
    image, patch = (np.asarray(sharpness.laplacian_variance(IMAGES, 16, scope=s)) for s in ("image", "patch"))
    assert (image != patch).any()
    whole, same = (np.asarray(sharpness.laplacian_variance(IMAGES[:, :, :48], 48, scope=s)) for s in ("image", "patch"))
    np.testing.assert_array_equal(whole, same)


@pytest.mark.parametrize("scope", ["image", "patch"])
def test_the_other_measures_are_cv2s(scope):
    tenengrad = cv2_patches(squared_sobel, 16, scope).mean((-2, -1))
    np.testing.assert_allclose(sharpness.tenengrad(IMAGES, 16, scope=scope), tenengrad, rtol=1e-6)
    modified = cv2_patches(modified_laplacian, 16, scope).sum((-2, -1))
    np.testing.assert_array_equal(sharpness.sum_modified_laplacian(IMAGES, 16, scope=scope), modified)
    energy = (cv2_patches(high_pass, 16, scope) ** 2).mean((-2, -1))
    ours = sharpness.high_frequency_energy(IMAGES, 16, scope=scope)
    np.testing.assert_allclose(ours, energy, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sharpness.MEASURES)
def test_every_measure_falls_with_blur_and_sigma_rises(name):
    photo = skimage.data.astronaut()[None, :256, :256] / np.float32(255)
    scores = [
        float(np.median(sharpness.MEASURES[name](blur.gaussian(photo, sigma), 32))) for sigma in (0.0, 0.7, 1.5, 3.0)
    ]
    assert scores == sorted(scores, reverse=name != "sigma")
    assert len(set(scores)) == 4


@pytest.mark.parametrize(
    ("images", "patch", "scope", "message"),
    [
        (IMAGES, 5, "image", r"patch_size=5: must divide the image's height 48 and width 96"),
        (IMAGES, 0, "image", r"patch_size=0"),
        (np.zeros((1, 1025, 1025, 3), np.float32), 1025, "image", r"patch_size=1025: must be at most 1024"),
        (IMAGES, 16, "batch", r"scope='batch': must be 'image' or 'patch'"),
        (LEVELS, 16, "image", r"images: uint8\[2, 48, 96, 3\] must be float"),
        (IMAGES[0], 16, "image", r"images: float32\[48, 96, 3\]"),
        (IMAGES[..., :1], 16, "image", r"images: float32\[2, 48, 96, 1\]"),
    ],
)
def test_bad_arguments_say_what_is_allowed(images, patch, scope, message):
    for measure in sharpness.MEASURES.values():
        with pytest.raises(ValueError, match=message):
            measure(images, patch, scope=scope)


# Thresholds


@pytest.mark.parametrize("keep_rate", [0.01, 0.25, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("n", [1, 7, 100, 1001])
def test_threshold_keeps_the_rate_asked_for(keep_rate, n):
    scores = np.random.default_rng(n).permutation(n) + 1.5
    kept = (scores >= sharpness.threshold(scores, keep_rate=keep_rate)).sum()
    assert kept == np.ceil(keep_rate * n - 1e-9)


def test_otsu_is_skimages_on_log_scores():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.lognormal(2, 0.7, 3000), rng.lognormal(6, 1, 2000)])
    expected = np.expm1(skimage.filters.threshold_otsu(np.log1p(scores)))
    assert sharpness.threshold(scores.reshape(50, 100)) == pytest.approx(expected)


def test_bad_scores_are_refused():
    for scores, options, message in (
        ([], {}, "at least one"),
        ([1.0, np.nan], {}, "finite"),
        ([1.0, 2.0], {"keep_rate": 0}, r"keep_rate=0: must be in \(0, 1\]"),
        ([3.0, 3.0], {}, "all equal 3"),
    ):
        with pytest.raises(ValueError, match=message):
            sharpness.threshold(scores, **options)


# The command


@pytest.fixture
def photos(tmp_path):
    Image.fromarray(skimage.data.astronaut()).save(tmp_path / "astronaut.png")
    Image.fromarray(skimage.data.chelsea()).save(tmp_path / "chelsea.jpg")
    (tmp_path / "notes.txt").write_text("not a photograph")
    return tmp_path


def test_command_prints_and_plots(photos, capsys):
    pytest.importorskip("matplotlib")
    out = photos / "plots" / "scores.png"
    assert thresholds.main([str(photos), "--size=64", "--sigma", "2", "--keep_rate", "0.5", f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert "laplacian of 32 patches of 16 px, 2 photographs" in printed
    assert "sharp 50.0%" in printed
    assert "Otsu" in printed
    with Image.open(out) as plot:
        assert plot.size[0] > 500


@pytest.fixture
def mixed(photos):
    """Two sharp photographs, three that are blurred at 224 px, and one that is turned."""
    sharp = Image.fromarray(skimage.data.chelsea())
    for sigma in (2, 4, 6):
        sharp.filter(ImageFilter.GaussianBlur(sigma)).save(photos / f"blurred_{sigma}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    sharp.transpose(Image.Transpose.ROTATE_90).save(photos / "turned.png", exif=exif)
    return photos


def test_command_says_which_photographs_are_blurred(mixed, capsys):
    """And takes none of them for sharp, where most are blurred."""
    assert thresholds.main([str(mixed), "--json"]) == 0
    *rows, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {Path(row["photo"]).stem for row in rows if row["blurred"]} == {"blurred_2", "blurred_4", "blurred_6"}
    assert [row["sharpness"] for row in rows] == sorted(row["sharpness"] for row in rows)
    named = {Path(row["photo"]).stem: row["sharpness"] for row in rows}
    upright = Image.open(mixed / "turned.png").transpose(Image.Transpose.ROTATE_270).convert("RGB")
    scaled = np.asarray(upright.resize((int(224 * 451 / 300), 224), Image.Resampling.BILINEAR))
    response = cv2.Laplacian(cv2.cvtColor(scaled, cv2.COLOR_RGB2GRAY), cv2.CV_64F)
    assert named["turned"] == pytest.approx(response.var(), rel=1e-9)
    sharp = [str(mixed / name) for name in ("astronaut.png", "chelsea.jpg", "turned.png")]
    assert thresholds.main([*sharp, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == last
    assert last["kept"]["sharp"] - last["kept"]["σ = 2"] > 0.5
    assert thresholds.main([str(mixed)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:7]] == [row["photo"] for row in rows]
    assert [line.endswith("  blurred") for line in lines[1:7]] == [True] * 3 + [False] * 3
    assert "3 of 6 seem blurred already: they are left out of what follows" in lines


def test_the_last_line_can_be_pasted(mixed, capsys):
    flags = ["--measure=tenengrad", "--scope=patch"]
    assert thresholds.main([str(mixed), *flags]) == 0
    pairs = [flag.removeprefix("--config.").split("=") for flag in capsys.readouterr().out.splitlines()[-1].split()]
    config = configs.load(f"{ROOT}/configs/resnet50.py:demo", [tuple(pair) for pair in pairs])
    mask = MaskSpec(**config.mask)
    assert (mask.mode, mask.selector, mask.scope) == ("zero_pixels", "tenengrad", "patch")
    assert mask.threshold > 0
    assert thresholds.main([str(mixed / "blurred_4.png"), str(mixed / "blurred_6.png")]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("no threshold is recommended: every photograph seems blurred already")


def test_the_recommended_threshold_separates_best():
    rng = np.random.default_rng(0)
    sharp, *blurred = (rng.lognormal(mean, 1.5, 300) for mean in (6, 4, 2))
    scores = {"sharp": sharp, "σ = 1": blurred[0], "σ = 2": blurred[1]}
    everything = np.concatenate(blurred)
    gain = [(sharp >= t).mean() - (everything >= t).mean() for t in np.concatenate([sharp, everything])]
    best = thresholds.recommended(scores)
    assert (sharp >= best).mean() - (everything >= best).mean() == pytest.approx(max(gain), abs=0.005)


def test_command_blurs_with_the_whole_gaussian(photos, monkeypatch, capsys):
    """cv2's kernel of a size that it finds itself reaches 3σ on 8 bits and 4σ on float: σ = 6 needs 49 taps."""
    seen = []
    monkeypatch.setitem(sharpness.MEASURES, "laplacian", lambda x, *args, **more: seen.append(x) or x[..., 0])
    thresholds.main([str(photos / "astronaut.png"), "--size=96", "--sigma", "6"])
    sharp, ours = (np.asarray(x)[0] for x in seen)
    expected = cv2.GaussianBlur(sharp, (49, 49), 6, borderType=cv2.BORDER_REFLECT_101)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=0.5 / 255 + 1e-5)


def test_command_names_what_is_wrong(photos, capsys):
    (photos / "pipes").mkdir()
    os.mkfifo(photos / "pipe.jpg")
    os.mkfifo(photos / "pipes" / "pipe.png")
    for arguments, message in (
        ([str(photos / "missing.jpg")], "missing.jpg: no such file or folder"),
        ([str(photos / "pipe.jpg")], "pipe.jpg: cannot be read as a photograph (not a regular file)"),
        ([str(photos / "pipes")], "pipe.png: cannot be read as a photograph (not a regular file)"),
        ([str(photos / "notes.txt")], "notes.txt: cannot be read"),
        ([str(photos / "chelsea.jpg"), "--patch_size=15"], "patch_size=15: must divide"),
        ([str(photos / "chelsea.jpg"), "--keep_rate", "2"], "keep_rate=2"),
        ([str(photos), "--size=0"], "--size=0: must be at least 1"),
        ([str(photos), "--sigma", "inf"], "sigma=inf: must be at least 0"),
        ([str(photos), "--sigma", "-1"], "sigma=-1: must be at least 0"),
    ):
        assert thresholds.main(["--size=64", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_the_command_says_where_it_went():
    command = [sys.executable, "-m", "bjax.sharpness", "photos", "--out=scores.png"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "bjax: python -m bjax.sharpness is python -m bjax.thresholds now; the arguments are the same"
    ]


def test_a_wrong_flag_is_one_line(capsys):
    assert thresholds.main(["photos", "--sizes=3"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bjax: unrecognized arguments: --sizes=3 (did you mean --size?)")
    assert len(error.splitlines()) == 1
