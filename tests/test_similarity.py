"""Structural similarity, the axis that blurs share: the number against scikit-image's, its file, table and figure."""

import json

import jax
import jax.numpy as jnp
import made_up
import numpy as np
import pytest
from skimage.metrics import structural_similarity

from bjax import blur, experiment, report
from bjax import config as configs
from bjax.blur import imagenet_c
from bjax.errors import UserError
from bjax.evaluate import ADD_ONS, gallery, similarity
from bjax.report import figures, render
from bjax.report.runs import Row
from bjax.runtime import sharding

# The settings of scikit-image's that are Wang et al.'s, and so dm-pix's
WANG = {"win_size": 11, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}


def theirs(first, second):
    """scikit-image's, in float64."""
    return structural_similarity(first.astype(np.float64), second.astype(np.float64), channel_axis=-1, **WANG)


def pairs(size):
    """uint8[8, size, size, 3], and what becomes of them, float32: nothing, one colour, noise, less contrast, …"""
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (8, size // 8 + 1, size // 8 + 1, 3))
    images = np.kron(tiles, np.ones((1, 8, 8, 1)))[:, :size, :size]
    images = np.uint8(np.clip(images + rng.normal(0, 12, images.shape), 0, 255))
    images[7] = 200  # without structure
    other = images.astype(np.float32) / 255
    other[1] = other[1].mean((0, 1))
    other[2] = np.clip(other[2] + rng.normal(0, 0.3, other[2].shape), 0, 1)
    other[3] = other[3] * 0.25 + 0.5
    other[4] = 1 - other[4]
    other[5] = np.round(other[5])
    other[6, :, 1:] = other[6, :, :-1].copy()
    return images, other


@pytest.mark.parametrize("size", [11, 29, 61])
def test_it_is_that_of_scikit_image(size):
    images, other = pairs(size)
    expected = [theirs(a / 255, b) for a, b in zip(images, other, strict=True)]
    assert expected[0] == pytest.approx(1) and min(expected) < 0 and np.ptp(expected) > 1
    counted = np.arange(8) != 5
    for devices in (1, 8) if size == 11 else (1,):
        mesh = sharding.make_mesh(-1, 1, jax.devices()[:devices])
        placed = sharding.put({"image": images, "mask": counted, "other": other}, mesh)
        scale = np.float32(((0.4, 0.5, 0.6), (0.2, 0.3, 0.1)))
        placed["other"] = (placed["other"] - scale[0]) / scale[1]
        values, mask = similarity.similarity(placed, placed["other"], scale, mesh=mesh)
        np.testing.assert_allclose(values, expected, atol=2e-5)
        np.testing.assert_array_equal(mask, counted)


def test_a_condition_has_the_mean_over_images_blurred_like_its_own(data_dir):
    wanted = "sharp,blurred_drop_below,sigma_2,defocus_blur_3"
    overrides = {"data.data_dir": data_dir, "data.image_size": "32", "eval_batch_size": "8", "eval_only": wanted}
    config = configs.load("configs/vit.py:demo,curves=true", [*overrides.items(), ("similarity_images", "5")])
    exp = experiment.build(config)
    found = similarity.run(exp, {})["similarity.json"]
    assert list(found) == [name for name in wanted.split(",") if "drop" not in name]
    (batch,) = gallery.spread(exp, "test", 5)
    images = batch["image"][batch["mask"]]
    assert len(images) == 5 == len({image.tobytes() for image in images})
    sharp = jnp.float32(images) / 255
    key = jax.random.key(0)  # which a defocus ignores
    expected = {
        "sharp": sharp,
        "sigma_2": blur.gaussian(sharp, 2.0, kernel_size=33),
        "defocus_blur_3": [imagenet_c.corrupt(key, image, "defocus_blur", 3) / 255 for image in images],
    }
    for name, blurred in expected.items():
        values = [theirs(np.asarray(a), np.asarray(b)) for a, b in zip(sharp, blurred, strict=True)]
        assert found[name] == {
            "mean": pytest.approx(np.mean(values), abs=2e-5),
            "std": pytest.approx(np.std(values), abs=2e-5),
            "n": 5,
        }
    assert found["sharp"]["mean"] == pytest.approx(1) and found["defocus_blur_3"]["mean"] < 0.9
    assert similarity in ADD_ONS and config.similarity_images == 5
    config.similarity_images = 0
    assert similarity.run(exp, {}) == {}


@pytest.mark.parametrize("size", ["10", "1"])
def test_images_smaller_than_the_window_are_refused_before_anything_is_opened(size, monkeypatch):
    monkeypatch.setattr(experiment.loader, "open_split", lambda *_, **__: pytest.fail("opens data"))
    overrides = [("data.image_size", size), ("data.resize", "0")]
    configs.load("configs/resnet50.py", overrides)
    with pytest.raises(UserError, match=rf"^config\.similarity_images=3: .* 11 px, config\.data\.image_size={size}"):
        configs.load("configs/resnet50.py", [*overrides, ("similarity_images", "3")])


# --- the report


def similar(name):
    """Made up: each kind of blur leaves so much at each strength."""
    if not name[-1].isdigit():
        return 0.9
    strength = float(name.rpartition("_")[2].replace("p", "."))
    steps = {"sigma": 0.1, "length": 0.02, "radius": 0.08}
    return 1 - strength * steps.get(name.rpartition("_")[0], 0.1)


def finished(workdir, top1, only=lambda name: True, **more):
    spec = "configs/vit.py:demo,curves=true"
    config = json.loads(configs.to_json(configs.load(spec)))
    eval_only = {name: c for name, c in config["eval"].items() if only(name)}
    made_up.run(workdir, spec, top1=top1, eval_only=eval_only, n=1000, **more)
    whole = {name: c for name, c in eval_only.items() if c["mask"]["mode"] == "none"}
    content = {name: {"mean": similar(name) if name != "sharp" else 1.0, "std": 0.1, "n": 64} for name in whole}
    (workdir / "similarity.json").write_text(json.dumps(content))
    return workdir


def written(*folders, out):
    report.write(list(folders), out)
    return (out / "report.md").read_text()


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("sharp", {}, None),
        ("blurred", {}, None),  # σ from 1 to 2
        ("sigma_2", {}, ("gaussian", 2)),
        ("sigma_2", {"where": "regions"}, None),
        ("sigma_2", {"noise": [0, 0.01]}, None),
        ("length_9", {}, ("motion", 9)),
        ("radius_1p5", {}, ("defocus", 1.5)),
        ("radius_1p5", {"kinds": {"motion": 0.5, "defocus": 0.5}}, None),
        ("zoom_blur_4", {}, ("zoom_blur", 4)),
    ],
)
def test_only_a_blur_that_is_always_as_strong_has_a_strength(name, changes, expected):
    condition = made_up.conditions("configs/resnet50.py:curves=true")[name]
    condition["blur"] |= changes
    assert Row(name, condition, {}).strength == expected


NAME = "Accuracy against structural similarity"


def test_blurs_share_an_axis(tmp_path, monkeypatch):
    drawn, intact = {}, figures.lines
    monkeypatch.setattr(render.Figure, "png", b"")

    def lines(panels, x, y, **options):
        drawn[x] = panels, intact(panels, x, y, **options)
        return drawn[x][1]

    monkeypatch.setattr(figures, "lines", lines)

    def top1(name, _):
        return 0.2 + 0.6 * (similar(name) if name != "sharp" else 1) - 0.1 * ("length" in name)

    text = written(finished(tmp_path / "run", top1), out=tmp_path / "out")
    section = text.partition(f"\n## {NAME}\n")[2].partition("\n## ")[0]
    (((panel,), figure),) = [(panels.values(), figure) for x, (panels, figure) in drawn.items() if "SSIM" in x]
    assert figure.axes[0].xaxis_inverted()
    lines = {line.label: line for line in panel}
    assert list(lines) == [
        "Gaussian, σ 0.5–4 px",
        "motion, length 5–21 px",
        "defocus, radius 1.5–6 px",
        *(f"ImageNet-C {name} 1–5" for name in ("gaussian", "defocus", "glass", "motion", "zoom")),
    ]
    line = lines["defocus, radius 1.5–6 px"]
    np.testing.assert_allclose(line.x, [1, 0.88, 0.76, 0.64, 0.52])  # from the sharp images on
    np.testing.assert_allclose(line.y, [100 * (0.2 + 0.6 * x) for x in line.x], atol=0.05)
    reference = lines["Gaussian, σ 0.5–4 px"]
    assert reference.kind == "band" and line.kind == "line" and line.low is reference.low is None
    rows = [[c.strip() for c in row.strip("|").split("|")] for row in section.splitlines() if row.startswith("| ")]
    (defocus,) = [row for row in rows if row[0] == "defocus, radius 1.5–6 px"]
    # 0.2 + 0.6 · 0.9 = 74 %; below 0.52 nothing was measured
    assert defocus[1:] == ["74.0", "68.0", "62.0", "56.0", "", "1"]
    assert "0.5" in section.split("| run |")[0]
    (motion,) = [row for row in rows if row[0] == "motion, length 5–21 px"]
    assert motion[1] == "64.0" and "64 images" in section


def test_without_similarities_or_with_damaged_ones_there_is_no_such_section(tmp_path, monkeypatch):
    monkeypatch.setattr(render.Figure, "png", b"")
    run = finished(tmp_path / "run", 0.5)
    (run / "similarity.json").write_text('{"sharp": {"mean": "?", "std": 0, "n": 1}}')
    text = written(run, out=tmp_path / "out")
    assert "similarity.json: sharp.mean is missing or damaged; evaluate the run again" in text
    assert f"## {NAME}" not in text and NAME in text.splitlines()[-1]
    (run / "similarity.json").unlink()
    assert f"## {NAME}" not in written(run, out=tmp_path / "out")
