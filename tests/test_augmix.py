"""AugMix: Pillow's operations level by level, what is drawn, the mix, and what a step does with several views."""

import dataclasses
import functools
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import made_up
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_step import CLASSES, MIX, MODEL, SGD, batch_of, initial, inputs, one_device

from benchmarks import augmix as benchmark
from bjax import config as configs
from bjax import experiment
from bjax.errors import UserError
from bjax.report import answers, read
from bjax.specs import AugMix
from bjax.step import augmix, losses
from bjax.step.inputs import apply, blur, image_keys, see
from bjax.step.losses import Objective
from bjax.step.train_step import train_step
from bjax.tokens import MaskSpec

NAMES = augmix.OPERATIONS
OPERATE = jax.jit(augmix.operate)
SPEC = AugMix(width=3, severity=10)
DEMO = str(ROOT / "configs" / "vit.py") + ":demo"
# Of operations that have one: the ends of what severity 10 draws, and some between.
AMOUNTS = {
    "posterize": (1, 2, 3, 4, 8),
    "rotate": (-30, -29, -11, -1, 0, 2, 17, 30),
    "solarize": (0, 1, 100, 255, 256),
    "shear_x": (-9830, -4000, -1, 0, 3, 9830),
    "shear_y": (-9830, -77, 1, 5000, 9830),
    "translate_x": (-7, -1, 0, 4),
    "translate_y": (-6, 0, 1, 7),
}


def pictures(height, width):
    """Of noise, of one colour (black, white), smooth, of few levels, and of narrow ranges of levels."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (2, height, width, 3))
    flat = np.ones((3, height, width, 3), int) * np.array([0, 255, 97])[:, None, None, None]
    smooth = np.linspace(3, 250, height)[:, None, None] + np.linspace(-40, 40, width)[:, None] + np.arange(3)
    low, high = np.sort(rng.integers(0, 256, (2, 6, 1, 1, 3)), axis=0)
    narrow = rng.integers(low, high + 1, (6, height, width, 3))
    few = 85 * rng.integers(0, 4, (1, height, width, 3))
    return np.clip(np.concatenate([noise, flat, smooth[None], narrow, few]), 0, 255).astype(np.uint8)


# One smaller than a step of Pillow's equalize, of 255 pixels; odd sides; more than one pixel a level.
@pytest.mark.parametrize(("height", "width"), [(9, 11), (33, 47)])
def test_operations_are_pillows(height, width):
    images = pictures(height, width)
    asked = [(NAMES.index(name), amount) for name in NAMES for amount in AMOUNTS.get(name, (0,))]
    asked.append((augmix.NONE, 0))
    many = np.repeat(images, len(asked), axis=0)
    operation, amount = np.tile(np.array(asked, np.int32).T, len(images))
    found = np.asarray(OPERATE(many, operation, amount))
    assert found.dtype == np.uint8
    pairs = zip(many, operation, amount, strict=True)
    expected = np.stack([np.asarray(benchmark.pillow(Image.fromarray(x), int(o), int(a))) for x, o, a in pairs])
    turned = (operation == NAMES.index("rotate")) & (amount != 0)
    np.testing.assert_array_equal(found[~turned], expected[~turned])
    off = abs(found[turned].astype(int) - expected[turned])
    assert off.max() <= 1 and (off > 0).mean() < 5e-4
    white = turned & (many.min(axis=(1, 2, 3)) == 255)
    np.testing.assert_array_equal(found[white], expected[white])  # so the edge is where Pillow has it
    cut = (expected[white] == 0).any(axis=(1, 2, 3))
    assert cut.sum() > len(cut) / 2  # or this test could not tell


def test_autocontrast_is_pillows_between_a_third_of_all_levels():
    low, high = np.array([(low, high) for high in range(1, 256) for low in range(high % 3, high, 3)]).T
    counts = jnp.zeros((len(low), 256), jnp.int32).at[np.arange(len(low)), [low, high]].set(1)
    found = np.asarray(jax.jit(augmix._autocontrast)(counts))
    scale = 255.0 / (high - low)  # as in PIL.ImageOps.autocontrast
    expected = np.clip((np.arange(256) * scale[:, None] + (-low * scale)[:, None]).astype(int), 0, 255)
    there = (np.arange(256) >= low[:, None]) & (np.arange(256) <= high[:, None])
    np.testing.assert_array_equal(found[there], expected[there])
    whole = (np.arange(256) - low[:, None]) * 255 // (high - low)[:, None]
    assert (whole != expected)[there].sum() > 1000  # what float64 makes of it, and this test is for


@pytest.fixture(scope="module")
def mixed():
    """A compiled mix of four pictures, twice: (the function, keys, images, mixes)."""
    images, keys = pictures(16, 24)[[0, 2, 5, 7]], image_keys(jax.random.key(3), jnp.arange(4))
    function = jax.jit(functools.partial(augmix.mix, spec=SPEC))
    return function, keys, images, np.asarray(function(keys, images))


def test_a_mix_is_the_published_one_of_what_is_drawn(mixed):
    _, keys, images, found = mixed
    drawn = jax.device_get(augmix.draw(keys, SPEC, 16, 24))
    pairs = zip(images, zip(*drawn, strict=True), strict=True)
    expected = [benchmark.pillow_mix(image, augmix.Drawn(*one)) for image, one in pairs]
    assert found.dtype == np.float32 and found.min() >= 0 and found.max() <= 1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1.1 / 255)  # of a rotation, here and there
    assert (abs(found - expected) > 1e-6).mean() < 1e-3
    assert abs(found - images / 255).max() > 0.1


def test_a_mix_depends_on_the_image_and_its_key_alone_and_is_compiled_once(mixed):
    function, keys, images, found = mixed
    order = np.array([2, 0, 3, 1])
    np.testing.assert_array_equal(function(keys[order], images[order]), found[order])
    others = np.asarray(function(image_keys(jax.random.key(4), jnp.arange(4)), images))
    assert (abs(others - found).max(axis=(1, 2, 3)) > 0)[[0, 2, 3]].all()
    assert function._cache_size() == 1
    np.testing.assert_array_equal(function(keys[1:2], images[1:2]), found[1:2])  # in another batch


def test_what_is_drawn_is_as_published():
    keys, draw = jax.random.split(jax.random.key(0), 3000), jax.jit(augmix.draw, static_argnums=(1, 2, 3))
    own, weights, operations, amounts = jax.device_get(draw(keys, AugMix(width=3, severity=3), 224, 160))
    np.testing.assert_allclose(own + weights.sum(axis=1), 1, atol=1e-5)
    assert abs(own.mean() - 0.5) < 0.02 and abs(weights.mean(axis=0) - 1 / 6).max() < 0.02  # uniform, and a third each
    assert operations.shape == (3000, 3, 3)
    depth = (operations != augmix.NONE).sum(axis=2)
    assert (np.diff(operations == augmix.NONE, axis=2).astype(int) >= 0).all()  # the ones that are there come first
    shares = np.bincount(depth.ravel(), minlength=4) / depth.size
    np.testing.assert_allclose(shares, [0, 1 / 3, 1 / 3, 1 / 3], atol=0.02)
    counts = np.bincount(operations[operations != augmix.NONE], minlength=9)
    np.testing.assert_allclose(counts / counts.sum(), 1 / 9, atol=0.01)
    # Of a level that is uniform between 0.1 and 3 of 10: the ends, whole numbers cut.
    ends = {"posterize": (3, 4), "rotate": (-8, 8), "solarize": (180, 254), "translate_x": (-15, 15)}
    ends |= {"translate_y": (-22, 22), "shear_x": (-2949, 2949), "shear_y": (-2949, 2949)}
    for name in NAMES:
        low, high = ends.get(name, (0, 0))
        values = amounts[operations == NAMES.index(name)]
        assert low <= values.min() <= low + 0.01 * (high - low) + 1e-9, name
        assert high - 0.01 * (high - low) <= values.max() <= high, name
    assert not amounts[operations == augmix.NONE].any()
    fixed = jax.eval_shape(lambda keys: augmix.draw(keys, AugMix(width=2, depth=4), 32, 32), keys)
    assert fixed.operations.shape == (3000, 2, 4) and fixed.weights.shape == (3000, 2)


def test_the_divergence_is_the_entropy_of_the_mean_less_the_mean_entropy():
    logits = np.random.default_rng(0).normal(size=(6, 3, 5)).astype(np.float32) * 4
    logits[0] = logits[0, :1]
    p = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    entropy = lambda p: -(p * np.log(p)).sum(axis=-1)  # noqa: E731
    expected = entropy(p.mean(axis=1)) - entropy(p).mean(axis=1)
    np.testing.assert_allclose(losses.jensen_shannon(logits), expected, atol=2e-6)
    assert expected[0] == pytest.approx(0, abs=1e-6) and expected[1:].min() > 0.01
    # As certain as float32 can say: the published clamp keeps it finite.
    sure = jnp.array([[[300.0, 0], [0, 300.0], [0, 300.0]]])
    assert np.isfinite(jax.grad(lambda x: losses.jensen_shannon(x).sum())(sure)).all()


VIEWS = dataclasses.replace(inputs(MIX), augmix=AugMix(width=2), views=3)


def dimmed(key, images, spec):
    """In the place of a mix: by as much as the key says."""
    return images / np.float32(255) * jax.vmap(jax.random.uniform)(key)[:, None, None, None]


def test_views_are_the_image_and_two_mixes_with_one_blur_and_one_mask(monkeypatch):
    batch, mask = batch_of(8), MaskSpec("zero_pixels", keep_rate=0.5)
    keys = image_keys(jax.random.key(0), batch["id"])
    look = lambda own: jax.jit(functools.partial(see, inputs=own))(keys, batch["image"])  # noqa: E731
    alone = look(inputs(MIX, mask))
    monkeypatch.setattr(augmix, "mix", dimmed)
    seen = look(dataclasses.replace(VIEWS, mask=mask))
    assert seen.images.shape == (8, 3, 16, 16, 3) and set(np.asarray(seen.blurred.kind)) == {0, 1}
    np.testing.assert_allclose(seen.images[:, 0], alone.images, atol=1e-6)
    np.testing.assert_array_equal(seen.kept.keep, alone.kept.keep)
    jax.tree.map(np.testing.assert_array_equal, seen.blurred[1:], alone.blurred[1:])
    # An image that is dimmed and then blurred by the same kernel, and loses the same patches, is one dimmed after that.
    shown = np.asarray(seen.images) * np.array(inputs().std) + np.array(inputs().mean)
    shares = shown.sum(axis=(2, 3, 4)) / shown[:, :1].sum(axis=(2, 3, 4))
    np.testing.assert_allclose(shown, shown[:, :1] * shares[..., None, None, None], atol=1e-5)
    assert len(np.unique(shares[:, 1:])) == 16


def test_without_the_divergence_the_mix_is_what_is_classified(monkeypatch):
    monkeypatch.setattr(augmix, "mix", dimmed)
    batch = batch_of(4)
    keys = image_keys(jax.random.key(0), batch["id"])
    found = blur(keys, batch["image"], dataclasses.replace(inputs(None), augmix=AugMix(width=2)))
    shares = found.images.sum(axis=(1, 2, 3)) / (batch["image"] / 255).sum(axis=(1, 2, 3))
    assert found.images.shape == (4, 16, 16, 3) and found.kind.shape == (4,)
    assert len(np.unique(shares)) == 4 and max(shares) < 1


@pytest.mark.slow
def test_a_step_weighs_the_loss_of_the_image_and_the_divergence_of_its_views(monkeypatch):
    monkeypatch.setattr(augmix, "mix", dimmed)
    batch, mask = batch_of(8), MaskSpec("gather", selector="random", keep_rate=0.5)
    batch["mask"][5] = False
    views = dataclasses.replace(VIEWS, blur=None, mask=mask)
    begin, noise = initial(one_device(), MODEL, SGD, False)[0](jax.random.key(0)), np.random.default_rng(0)
    # Else all logits are 0, and the divergence too.
    begin = begin.replace(params=jax.tree.map(lambda x: x + 0.3 * noise.normal(size=x.shape), begin.params))
    objective = Objective("object", CLASSES, jsd=12.0, accumulate=2)  # in parts, which do not part the views
    options = {"model": MODEL, "tx": SGD, "inputs": views, "objective": objective, "mesh": one_device()}
    _, metrics = jax.jit(functools.partial(train_step, **options))(jax.random.key(1), begin, batch)
    draw_keys, *_ = jax.random.split(jax.random.fold_in(jax.random.key(1), 0), 3)

    @jax.jit
    def by_hand(batch):
        seen = see(image_keys(draw_keys, batch["id"]), batch["image"], views)
        logits = [apply(MODEL, begin.variables, seen.images[:, i], seen.kept) for i in range(3)]
        loss = losses.cross_entropy(logits[0], losses.targets(batch["label"], CLASSES))
        divergence = losses.jensen_shannon(jnp.stack(logits, axis=1))
        return loss, divergence, losses.hits(logits[0], batch["label"], 1)

    loss, divergence, hits = (np.asarray(x)[batch["mask"]] for x in by_hand(batch))
    assert metrics["loss"] == pytest.approx(float((loss + 12 * divergence).mean()), rel=1e-5)
    assert 12 * divergence.mean() > 0.01  # or this test could not tell
    assert metrics["top1"] == pytest.approx(hits.mean())


@pytest.mark.parametrize("name", ["densenet121", "googlenet", "resnet50", "vgg19", "vit", "vit_mask"])
def test_every_config_trains_with_it_and_evaluates_without(name):
    spec = str(ROOT / "configs" / f"{name}.py:demo") + (",task=object" if name == "densenet121" else "")
    assert configs.load(spec).augmix.width == 0
    for train, kinds in {"augmix": {"sharp": 1.0}, "blurred+augmix": {"gaussian": 1.0}}.items():
        config = configs.load(f"{spec},train={train}")
        assert config.augmix.to_dict() == {"width": 3, "depth": -1, "severity": 1, "alpha": 1.0}
        assert {kind: share for kind, share in config.blur.kinds.items() if share} == kinds
    exp = experiment.build(config, CLASSES)
    assert exp.train.augmix == AugMix(width=3) and exp.train.views == 1
    assert all(condition.inputs.augmix is None for condition in exp.conditions.values())


def test_what_the_divergence_needs_is_told_in_a_line():
    for overrides, message in (
        ({"loss.jsd": 12}, "config.loss.jsd=12: compares an image with mixes of it, of which there are none; set"),
        ({"loss.jsd": 12, "augmix.width": 3, "loss.mixup": 0.2}, "set config.loss.mixup and config.loss.cutmix to 0"),
        ({"loss.jsd": 12, "augmix.width": 3, "loss.cutmix": 1}, "set config.loss.mixup and config.loss.cutmix to 0"),
        ({"augmix.severity": 11}, "config.augmix.severity=11: expected at least 1 and at most 10"),
        ({"augmix.alpha": 0}, "config.augmix.alpha=0"),
    ):
        with pytest.raises(UserError, match=re.escape(message)) as error:
            configs.load(DEMO, [(key, str(value)) for key, value in overrides.items()])
        assert "\n" not in str(error.value)
    exp = experiment.build(configs.load(f"{DEMO},train=augmix", [("loss.jsd", "12")]), CLASSES)
    assert (exp.train.views, exp.objective.jsd) == (3, 12)


def test_a_report_names_the_training(tmp_path):
    trainings = {"sharp": (), "augmix": (), "blurred+augmix": (("loss.jsd", "12"),)}
    for i, (train, more) in enumerate(trainings.items()):
        made_up.run(tmp_path / f"r{i}", f"configs/resnet50.py:train={train}", more)
    runs, _ = read.load([tmp_path / f"r{i}" for i in range(3)])
    named = [run.training for run in runs]
    assert named == ["sharp", "sharp + AugMix", "blurred + AugMix with JSD"]
    told = " ".join(text for _, text, _ in answers._training(runs))
    assert "Training ResNet50 on sharp + AugMix instead of sharp images" in told


@pytest.mark.slow
def test_the_benchmark_compares_the_same_mixes(tmp_path, monkeypatch, capsys):
    out = tmp_path / "augmix.json"
    asked = []

    def training(model, name, batch, sizes, inputs):
        asked.append(inputs.augmix)
        return SimpleNamespace(run=lambda: None)

    monkeypatch.setattr(benchmark.rates, "training", training)
    assert benchmark.main(["--batch=2", "--size=32", "--rounds=1", f"--json={out}"]) == 0
    assert asked == [None, AugMix(width=3)]
    found = json.loads(out.read_text())
    assert found["mix"]["off_by"] < 1.01 and found["mix"]["pillow"]["images_per_s"] > 0
    own, theirs = (found["mix"][name]["seconds"][0] for name in ("bjax", "pillow"))
    assert found["mix"]["ratio"] == pytest.approx(theirs / own)
    plain, mixed = (found["step"]["seconds"][name][0] for name in ("plain", "augmix"))
    assert found["step"]["share"] == pytest.approx(1 - plain / mixed)
    assert "Pillow on one core" in capsys.readouterr().out


@pytest.mark.slow
def test_the_benchmark_measures_a_step(tmp_path, monkeypatch):
    small = functools.partial(benchmark.models.build, stages=(1, 1, 1, 1))
    monkeypatch.setattr(benchmark.models, "build", small)
    assert benchmark.main(["--batch=2", "--size=32", "--rounds=1", f"--json={tmp_path / 'out.json'}"]) == 0
    assert set(json.loads((tmp_path / "out.json").read_text())["step"]["seconds"]) == {"plain", "augmix"}
