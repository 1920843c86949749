"""The device functions: what counts, what is drawn, and that neither devices nor parts change the result."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bjax import config as configs
from bjax import experiment, models
from bjax.blur import imagenet_c
from bjax.blur.sample import BlurSpec
from bjax.runtime import sharding
from bjax.step import state
from bjax.step.eval_step import eval_step, prepare
from bjax.step.inputs import Inputs, see
from bjax.step.inputs import mask as normalise
from bjax.step.losses import Objective, cross_entropy, hits
from bjax.step.train_step import train_step
from bjax.tokens import MaskSpec

CLASSES, SIZE = 4, 16
MODEL = models.build("vit", num_classes=CLASSES, variant="Ti/8", depth=2, width=64, heads=2)
SHARP = BlurSpec({"sharp": 1.0})
MIX = BlurSpec({"sharp": 0.5, "gaussian": 0.5})
# Not Adam: it turns the rounding noise of a gradient that is zero in theory (the keys' biases) into whole steps.
SGD = optax.sgd(0.1, momentum=0.9)
ADAM = optax.adamw(3e-3)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def inputs(blur=SHARP, mask=MaskSpec()):  # noqa: B008 - frozen
    return Inputs(blur, mask, 8, MEAN, STD)


def batch_of(size, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, SIZE, SIZE, 3), dtype=np.uint8),
        "label": rng.integers(0, CLASSES, size, dtype=np.int32),
        "id": rng.integers(0, 2**32, size, dtype=np.uint32),
        "mask": np.ones(size, bool),
    }


@functools.cache
def initial(mesh, model, tx, ema):
    init = functools.partial(state.init, model=model, tx=tx, image_size=SIZE, ema=ema)
    plan = sharding.plan(jax.eval_shape(init, jax.random.key(0)), mesh, ((".*", "fsdp"),))
    return jax.jit(init, out_shardings=plan), plan


def run(mesh, batches, *, model=MODEL, blur=MIX, mask=MaskSpec(), tx=SGD, **objective):  # noqa: B008
    """Trains on `batches` from a fixed start; returns the losses, and the state after every step, on the host.

    The last return value is the final state as it lies on the devices.
    """
    objective = Objective(**{"task": "object", "num_classes": CLASSES, **objective})
    init, plan = initial(mesh, model, tx, objective.ema > 0)
    current = init(jax.random.key(0))
    update = jax.jit(
        functools.partial(train_step, model=model, tx=tx, inputs=inputs(blur, mask), objective=objective, mesh=mesh),
        donate_argnums=1,
        out_shardings=(plan, None),
    )
    losses, states = [], []
    for batch in batches:
        current, values = update(jax.random.key(1), current, sharding.put(batch, mesh))
        losses.append(float(values["loss"]))
        states.append(jax.device_get(current))
    return np.array(losses), states, current


def blurred_and_kind(blur, batch):
    """What `step` draws for every image of a batch, from a fixed key."""

    def draw(ids, images):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), ids)
        return tuple(see(keys, images, inputs(blur), one_device()).blurred)

    return jax.device_get(jax.jit(draw)(batch["id"], batch["image"]))


def one_device():
    return sharding.make_mesh(1, 1, jax.devices()[:1])


def close(a, b, tolerance):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance, err_msg=jax.tree_util.keystr(path))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), k=st.integers(1, 7), ties=st.booleans())
def test_hits_are_those_of_top_k(seed, k, ties):
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, 3, (5, 7)).astype(np.float32) if ties else rng.normal(size=(5, 7)).astype(np.float32)
    labels = rng.integers(0, 7, 5)
    best = np.asarray(jax.lax.top_k(logits, k)[1])
    expected = (best == labels[:, None]).any(axis=1)
    np.testing.assert_array_equal(hits(jnp.asarray(logits), jnp.asarray(labels), k), expected)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_row_with_a_logit_that_is_not_finite_is_no_hit(wrong):
    logits = np.array([[wrong, 1, wrong], [0, 1, wrong], [wrong] * 3, [0, 1, 0.5]], np.float32)
    labels = jnp.full(4, 1)
    for k in (1, 3):
        found = np.asarray(jax.lax.top_k(logits, k)[1] == 1).any(axis=1)
        expected = found & np.isfinite(logits).all(axis=1)
        assert expected.tolist() == [False, False, False, True]
        np.testing.assert_array_equal(hits(jnp.asarray(logits), labels, k), expected)
    if np.isnan(wrong):  # to `lax.top_k` a NaN is the largest: the label would be no hit there either
        assert np.asarray(jax.lax.top_k(logits, 1)[1])[:2, 0].tolist() == [0, 2]


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (4, 2), pytest.param(1, 8, marks=pytest.mark.slow)])
def test_eight_devices_train_as_one(data, fsdp):
    batches = [batch_of(16, seed) for seed in range(5)]
    mask = MaskSpec("gather", selector="random", keep_rate=0.5)
    losses, one, _ = run(one_device(), batches, mask=mask)
    more_losses, many, placed = run(sharding.make_mesh(data, fsdp), batches, mask=mask)
    assert losses[-1] != losses[0]
    np.testing.assert_allclose(more_losses, losses, rtol=0, atol=1e-5)
    close(many[-1].params, one[-1].params, 1e-5)
    split = [x for x in jax.tree.leaves(placed.params) if x.addressable_shards[0].data.size < x.size]
    assert bool(split) == (fsdp > 1)


@pytest.mark.slow
def test_batch_norm_sees_the_whole_batch_of_all_devices():
    model = models.build("resnet18", num_classes=CLASSES)
    batches = [batch_of(16)]
    losses, one, _ = run(one_device(), batches, model=model, blur=SHARP)
    more_losses, many, _ = run(sharding.make_mesh(8, 1), batches, model=model, blur=SHARP)
    assert jax.tree.leaves(one[0].batch_stats)
    np.testing.assert_allclose(more_losses, losses, rtol=1e-5)
    close(many[0].batch_stats, one[0].batch_stats, 1e-5)


def test_a_batch_in_parts_gives_the_same_update():
    batches = [batch_of(16, seed) for seed in range(2)]
    losses, whole, _ = run(one_device(), batches)
    part_losses, parts, _ = run(one_device(), batches, accumulate=4)
    np.testing.assert_allclose(part_losses, losses, atol=1e-5)
    close(parts[-1].params, whole[-1].params, 1e-5)


def test_masked_rows_do_not_count():
    full, padded = batch_of(8), batch_of(8)
    padded["mask"][5:] = False
    padded["image"][5:] = 255
    padded["label"][5:] = 0
    alone = {k: v[:5] for k, v in full.items()}
    mesh = one_device()
    losses, a, _ = run(mesh, [padded])
    alone_losses, b, _ = run(mesh, [alone])
    np.testing.assert_allclose(losses, alone_losses, atol=1e-6)
    close(a[0].params, b[0].params, 1e-5)

    variables = {"params": a[0].params}
    options = {
        "model": MODEL,
        "inputs": inputs(MIX, MaskSpec("attend", keep_rate=0.5)),
        "objective": Objective("object", CLASSES),
        "mesh": mesh,
    }
    evaluate = jax.jit(functools.partial(eval_step, **options))
    answers = evaluate(jax.random.key(0), variables, padded)
    expected = evaluate(jax.random.key(0), variables, alone)
    for k in answers:
        np.testing.assert_allclose(answers[k][:5], expected[k], rtol=1e-5, err_msg=k)
    np.testing.assert_array_equal(answers["mask"], padded["mask"])


def test_blur_type_is_learned_from_the_draw_not_the_label():
    kinds = BlurSpec({"sharp": 0.25, "gaussian": 0.25, "motion": 0.25, "defocus": 0.25})
    batch = batch_of(64)
    kind = blurred_and_kind(kinds, batch)[1]
    assert set(kind) == {0, 1, 2, 3}
    # A model that always answers 0 is right exactly for the sharp ones, whatever the labels say.
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    evaluate = functools.partial(
        eval_step,
        model=MODEL,
        inputs=inputs(kinds),
        objective=Objective("blur_type", 4),
        mesh=one_device(),
    )
    answers = jax.jit(evaluate)(jax.random.key(0), variables, batch)
    np.testing.assert_array_equal(answers["label"], kind)
    np.testing.assert_array_equal(answers["top1"], kind == 0)
    np.testing.assert_allclose(answers["confidence"], 0.25)
    drawn = {"gaussian": "sigma", "motion": "length", "defocus": "radius"}
    for number, name in enumerate(drawn.values(), 1):
        np.testing.assert_array_equal(answers[name] > 0, kind == number)


@pytest.mark.parametrize("task", ["blur_type", "object"])
def test_levels_of_8_bits_tell_nothing_of_the_type_of_blur(task):
    """Blurred images that are not rounded lie between the levels, sharp ones on them: no blur needs to be seen."""
    kinds = [(f"blur.kinds.{kind}", "0.25") for kind in ("sharp", "gaussian", "motion", "defocus")]
    values = [*kinds, ("blur.noise", "0,0"), ("data.image_size", "32")]
    exp = experiment.build(configs.load(f"configs/densenet121.py:demo,task={task}", values), CLASSES)
    batch = batch_of(64)
    options = {"objective": Objective("blur_type", 4), "mesh": one_device()}
    for own in (exp.train, *(condition.inputs for condition in list(exp.conditions.values())[:1])):
        plain = dataclasses.replace(own, blur=exp.train.blur, mean=(0.0,) * 3, std=(1.0,) * 3)
        images, _, kind, _ = prepare(jax.random.key(0), batch, inputs=plain, **options)
        images, kind = 255 * np.asarray(images, np.float64), np.asarray(kind)
        levels = np.round(images)  # what a file would hold
        on_a_level = (abs(images - levels) < 1e-4).mean(axis=(1, 2, 3))
        shares = [on_a_level[kind == k].mean() for k in range(4)]
        assert shares[0] == 1
        assert all(share == 1 if task == "blur_type" else share < 0.02 for share in shares[1:]), shares
        np.testing.assert_array_equal(levels[kind == 0], batch["image"][kind == 0])


def test_a_model_learns_how_strong_the_blur_is():
    blur = BlurSpec({"gaussian": 1}, sigma=(0.3, 3.0), kernel_size=19)
    model = models.build("vit", num_classes=4 + 5, variant="Ti/8", depth=2, width=64, heads=2)
    objective = {"task": "blur_type", "num_classes": 4, "parameters": 5.0}
    batches = [batch_of(64)] * 60
    losses, _, last = run(one_device(), batches, model=model, blur=blur, tx=optax.adamw(2e-3), **objective)
    answers = eval_step(
        jax.random.key(2),
        last.variables,
        batches[0],
        model=model,
        inputs=inputs(blur),
        objective=Objective(**objective),
        mesh=one_device(),
    )
    assert answers["estimates"].shape == (64, 4)
    assert losses[-10:].mean() < 0.3 * losses[0]
    # Better than the best constant, under draws that training has not seen.
    errors = np.abs(answers["estimates"][:, 0] - answers["sigma"])
    constant = np.abs(np.median(answers["sigma"]) - answers["sigma"])
    assert errors.mean() < 0.7 * constant.mean()


def test_the_sharpness_of_an_image_is_opencvs_after_the_blur():
    cv2 = pytest.importorskip("cv2")
    batch = batch_of(8)
    blur = BlurSpec({"gaussian": 1}, sigma=1.0, kernel_size=9)
    options = {"objective": Objective("object", CLASSES), "mesh": sharding.make_mesh(8, 1)}
    batch["image"] = batch["image"][:, :8]  # not square
    *_, facts = prepare(jax.random.key(0), batch, inputs=inputs(blur), **options)
    plain = Inputs(blur, MaskSpec(), 8, (0.0,) * 3, (1.0,) * 3)
    images, *_ = prepare(jax.random.key(0), batch, inputs=plain, **options)
    for image, found in zip(np.asarray(images), facts["sharpness"], strict=True):
        grey = cv2.cvtColor(np.uint8(np.round(255 * image)), cv2.COLOR_RGB2GRAY)
        assert float(found) == pytest.approx(cv2.Laplacian(grey, cv2.CV_64F).var(), rel=1e-5)


def test_a_corruption_is_imagenet_cs_of_the_uint8_crop():
    batch = {k: v[:8] for k, v in batch_of(8).items()}
    batch["image"] = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    corrupted = Inputs(SHARP, MaskSpec(), 8, (0.0,) * 3, (1.0,) * 3, ("defocus_blur", 3))
    images, _, labels, facts = prepare(
        jax.random.key(0),
        batch,
        inputs=corrupted,
        objective=Objective("object", CLASSES),
        mesh=sharding.make_mesh(8, 1),
    )
    for image, source in zip(np.asarray(images), batch["image"], strict=True):
        expected = imagenet_c.corrupt(jax.random.key(0), source, "defocus_blur", 3)
        np.testing.assert_allclose(255 * image, expected, atol=1e-4)
    np.testing.assert_array_equal(labels, batch["label"])
    assert not facts["sigma"].any()


def test_the_draw_of_an_image_depends_on_its_id_alone():
    batch = batch_of(16)
    order = np.random.default_rng(0).permutation(16)
    images, kinds, *_ = blurred_and_kind(MIX, batch)
    shuffled, shuffled_kinds, *_ = blurred_and_kind(MIX, {k: v[order] for k, v in batch.items()})
    assert len(set(kinds)) == 2
    np.testing.assert_array_equal(shuffled_kinds, kinds[order])
    np.testing.assert_array_equal(shuffled, images[order])


def test_inputs_are_normalised_and_erased_in_the_documented_order():
    images = jnp.full((1, SIZE, SIZE, 3), 0.25)
    keys = jax.random.split(jax.random.key(0), 1)
    mean, std = np.array(MEAN), np.array(STD)
    for fill, dropped in (("black", -mean / std), ("mean", np.zeros(3))):
        mask = MaskSpec("zero_pixels", selector="centre", keep_rate=0.25, fill=fill)
        out, kept = jax.jit(functools.partial(normalise, inputs=inputs(mask=mask), mesh=one_device()))(keys, images)
        keep = np.asarray(kept.keep)[0].reshape(2, 2).repeat(8, 0).repeat(8, 1)
        np.testing.assert_allclose(out[0][keep], np.broadcast_to((0.25 - mean) / std, (64, 3)), atol=1e-6)
        np.testing.assert_allclose(out[0][~keep], np.broadcast_to(dropped, (192, 3)), atol=1e-6)


def test_ema_follows_the_weights(emitters_of_users):
    batches = [batch_of(8, seed) for seed in range(3)]
    _, states, _ = run(one_device(), batches, ema=0.9)
    assert states[0].variables is states[0].ema
    for before, after in itertools.pairwise(states):
        decay = (1 + before.step) / (10 + before.step)  # 0.9 only after 80 steps
        expected = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, before.ema["params"], after.params)
        close(after.ema["params"], expected, 1e-6)
    _, without, _ = run(one_device(), batches)
    close(states[-1].params, without[-1].params, 0)
    assert without[-1].variables["params"] is without[-1].params


@pytest.mark.parametrize("options", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}])
def test_mixing_trains(options):
    losses, _, _ = run(one_device(), [batch_of(8)] * 40, blur=SHARP, tx=ADAM, **options)
    assert np.isfinite(losses).all()
    # Not to zero: how much a step mixes decides how low its loss can be.
    assert losses[-10:].mean() < 0.7 * losses[0]


def test_a_step_that_is_not_finite_leaves_all_but_its_number(monkeypatch):

    def poisoned(logits, targets):  # by what is in the batch, as overflow would be
        return jnp.where(targets[0].argmax() == 3, jnp.nan, 1.0) * cross_entropy(logits, targets)

    batches = [batch_of(8, seed) for seed in (0, 1, 2)]
    for batch, label in zip(batches, (0, 3, 1), strict=True):
        batch["label"][0] = label
    model = models.build("resnet18", num_classes=CLASSES, stages=(1, 1), width=8)  # has statistics of the batch by then
    tx = optax.sgd(optax.linear_schedule(0.1, 0.01, 3), momentum=0.9)  # its counter is a part of the state
    options = {"model": model, "tx": tx, "ema": 0.5, "blur": SHARP}
    _, with_two, _ = run(one_device(), [batches[0], batches[2]], **options)
    monkeypatch.setattr("bjax.step.losses.cross_entropy", poisoned)
    _, without, _ = run(one_device(), batches, **options)
    assert not all(np.isfinite(x).all() for x in jax.tree.leaves(without[2]))  # or this test could not tell
    seen, (first, second, third), _ = run(one_device(), batches, skip_nonfinite=True, **options)
    assert np.isnan(seen[1]) and np.isfinite(seen[[0, 2]]).all()
    assert (first.step, second.step, third.step) == (1, 2, 3)
    jax.tree.map(np.testing.assert_array_equal, second.replace(step=1), first.replace(step=1))
    close(first, with_two[0], 1e-6)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(third))
    assert not np.array_equal(*(x.params["fc"]["kernel"] for x in (second, third)))


def test_without_skipping_nothing_is_added_to_the_program():
    batch, mesh = batch_of(8), one_device()
    texts = []
    for more in ({}, {"skip_nonfinite": False}, {"skip_nonfinite": True}):
        objective = Objective("object", CLASSES, **more)
        options = {"model": MODEL, "tx": SGD, "inputs": inputs(), "objective": objective, "mesh": mesh}
        init = functools.partial(state.init, model=MODEL, tx=SGD, image_size=SIZE, ema=False)
        shapes = jax.eval_shape(init, jax.random.key(0))
        texts.append(str(jax.make_jaxpr(functools.partial(train_step, **options))(jax.random.key(1), shapes, batch)))
    assert texts[0] == texts[1]
    assert texts[2].count("is_finite") == texts[0].count("is_finite") + 2
