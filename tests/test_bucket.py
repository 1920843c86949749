"""Masks through the model: what every way of computing fewer tokens must agree on, on one device and on eight."""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding

from bjax import models, tokens
from bjax.blur.sample import BlurSpec
from bjax.evaluate import bucket
from bjax.models.vit import patchify
from bjax.runtime import sharding
from bjax.step.eval_step import eval_step
from bjax.step.inputs import Inputs
from bjax.step.losses import Objective
from bjax.tokens import MaskSpec

PATCH, BATCH = 16, 8
MODEL = models.build("vit", num_classes=3, variant="Ti/16", depth=2, width=16, heads=2)
GRIDS = ((2, 2), (3, 4))  # rows and columns of patches
OBJECTIVE = Objective("object", 3)


@functools.cache
def mesh(devices):
    return sharding.make_mesh(-1, 1, jax.devices()[:devices])


@functools.cache
def variables(grid):
    images = jnp.zeros((1, PATCH * grid[0], PATCH * grid[1], 3))
    random = np.random.RandomState(0)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), images)
    return jax.tree.map(lambda leaf: jnp.float32(random.normal(0, 0.4, leaf.shape)), shapes)


def photos_like(seed, grid, batch=BATCH):
    """uint8 images whose patches differ in sharpness, some of them flat."""
    rng = np.random.default_rng(seed)
    amplitude = np.maximum(rng.uniform(-30, 120, (batch, *grid, 1)), 0).repeat(PATCH, 1).repeat(PATCH, 2)
    noise = rng.uniform(-1, 1, (batch, PATCH * grid[0], PATCH * grid[1], 3))
    return np.uint8(128 + amplitude * noise)


def put(tree, devices):
    place = NamedSharding(mesh(devices), sharding.BATCH)
    return jax.tree.map(lambda leaf: jax.device_put(leaf, place), tree)


def chosen(images, spec, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(images))
    grid = images.shape[1] // PATCH, images.shape[2] // PATCH
    truth = np.random.default_rng(seed).integers(0, 3, (len(images), *grid)).astype(np.float32)
    return tokens.select(keys, jnp.float32(images) / 255, spec, PATCH, truth=truth)


@jax.jit
def apply(variables, images, kept):
    return MODEL.apply(variables, (images / 255 - 0.5) / 0.25, tokens=kept)


def logits(grid, images, kept, devices=1):
    return np.asarray(apply(variables(grid), *put((jnp.float32(images), kept), devices)))


def in_units(fields):
    """A threshold that the selector can have: of sigma in pixels."""
    if fields["selector"] == "sigma" and fields["threshold"] is not None:
        return fields | {"threshold": min(fields["threshold"], 8.0)}
    return fields


some_spec = st.fixed_dictionaries(
    {
        "selector": st.sampled_from(tokens.SELECTORS),
        "drop": st.sampled_from(("below", "above")),
        "scope": st.sampled_from(("image", "patch")),
        "keep_rate": st.sampled_from((0.2, 0.5, 1.0)),
        "threshold": st.one_of(st.none(), st.sampled_from((0.0, 1e3, 1e9)), st.floats(0, 3e4)),
    }
).map(in_units)
devices = st.sampled_from((1, 8))
seeds = st.integers(0, 2**31)
grids = st.sampled_from(GRIDS)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, fields=some_spec, grid=grids, devices=devices)
def test_gather_is_attend(seed, fields, grid, devices):
    images = photos_like(seed, grid)
    gathered, attended = (chosen(images, MaskSpec(mode, **fields)) for mode in ("gather", "attend"))
    np.testing.assert_array_equal(gathered.keep, attended.keep)
    ours, expected = logits(grid, images, gathered, devices), logits(grid, images, attended)
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


@settings(max_examples=8, deadline=None)
@given(seed=seeds, selector=st.sampled_from(tokens.SELECTORS), grid=grids, devices=devices)
def test_keeping_all_changes_no_bit(seed, selector, grid, devices):
    images = photos_like(seed, grid)
    expected = logits(grid, images, None, devices)
    for mode in ("zero_tokens", "attend", "gather"):
        for threshold in (None, 0.0):
            kept = chosen(images, MaskSpec(mode, selector, threshold=threshold, keep_rate=1.0))
            assert kept.keep.all()
            np.testing.assert_array_equal(logits(grid, images, kept, devices), expected)
    erased = tokens.erase(jnp.float32(images), chosen(images, MaskSpec("zero_pixels", keep_rate=1.0)), PATCH, 0.0)
    np.testing.assert_array_equal(erased, images)


@functools.partial(jax.jit, static_argnames="spec")
def gradient(variables, images, spec):
    """Of the logits' sum, by the pixels, through scores, choice and model."""

    def total(images):
        keys = jax.random.split(jax.random.key(0), len(images))
        kept = tokens.select(keys, images, spec, PATCH)
        return MODEL.apply(variables, (images - 0.5) / 0.25, tokens=kept).sum(), kept.keep

    return jax.grad(total, has_aux=True)(images)


@settings(max_examples=12, deadline=None)
@given(
    seed=seeds,
    spec=st.sampled_from(
        (
            MaskSpec("attend", threshold=5e3),
            MaskSpec("gather", threshold=5e3, keep_rate=0.5),
            MaskSpec("gather", drop="above", keep_rate=0.25),
        )
    ),
    devices=devices,
)
def test_dropped_pixels_have_no_influence_and_no_gradient(seed, spec, devices):
    grid = GRIDS[1]
    images = photos_like(seed, grid)
    slope, keep = gradient(variables(grid), put(jnp.float32(images) / 255, devices), spec)
    patches = np.asarray(patchify(slope, PATCH))
    np.testing.assert_array_equal((patches != 0).any(axis=2), keep)

    kept = chosen(images, spec)
    pixels = np.asarray(keep).reshape(BATCH, *grid).repeat(PATCH, 1).repeat(PATCH, 2)[..., None]
    other = np.where(pixels, images, photos_like(seed + 1, grid))
    np.testing.assert_array_equal(logits(grid, other, kept, devices), logits(grid, images, kept, devices))


def test_the_class_token_stays_where_nothing_else_does():
    grid = GRIDS[1]
    images = photos_like(0, grid)
    for spec in (MaskSpec("attend", threshold=1e9), MaskSpec("gather", threshold=1e9, keep_rate=0.5)):
        kept = chosen(images, spec)
        assert not kept.keep.any()
        alone = logits(grid, images, kept)
        assert np.isfinite(alone).all()
        np.testing.assert_array_equal(alone, alone[:1].repeat(BATCH, 0))  # nothing of the images is left
        moved = jax.tree.map(lambda leaf: leaf, variables(grid))  # a copy
        moved["params"]["class_token"] += jnp.arange(16) / 16  # not a constant: LayerNorm would not see it
        assert np.abs(apply(moved, jnp.float32(images), kept) - alone).max() > 1e-3


# Buckets


@settings(max_examples=60, deadline=None)
@given(
    seed=seeds,
    batch_size=st.integers(1, 7),
    lengths=st.sets(st.integers(0, 9), max_size=3),
    sizes=st.lists(st.integers(0, 9), max_size=6),
)
def test_a_stream_answers_every_image_once_and_in_order(seed, batch_size, lengths, sizes):
    rng = np.random.default_rng(seed)
    lengths = sorted({*lengths, 9})
    runs, finishing = [], []

    def program(length, batch):
        real = batch["mask"]
        assert len(real) == batch_size and real.any()
        assert (batch["count"][real] <= length).all()
        if not finishing:  # a full group is computed at the shortest length; rests may join a longer one
            shorter = [n for n in lengths if n < length]
            assert (batch["count"] > max(shorter, default=-1)).all()
        runs.append(length)
        return {"id": jnp.asarray(batch["id"]), "pair": np.stack([batch["id"], batch["count"]], axis=1)}

    stream = bucket.Stream(
        lambda batch: jnp.asarray(batch["count"]),
        {length: functools.partial(program, length) for length in lengths},
        batch_size,
    )
    expected, counts = [], []
    for size in sizes:
        batch = {
            "id": rng.integers(0, 1000, size),
            "count": rng.integers(0, 10, size),
            "mask": rng.random(size) < 0.8,
        }
        stream.add(batch)
        expected += batch["id"][batch["mask"]].tolist()
        counts += batch["count"][batch["mask"]].tolist()
    finishing.append(True)
    answers = stream.finish()
    assert answers.get("id", np.zeros(0)).tolist() == expected
    assert answers.get("pair", np.zeros((0, 2)))[:, 1].tolist() == counts
    # No more batches than full ones and a rest per length
    shortest = [next(n for n in lengths if n >= c) for c in counts]
    assert len(runs) <= sum(-(-n // batch_size) for n in collections.Counter(shortest).values())


@settings(max_examples=40, deadline=None)
@given(
    patches=st.integers(1, 200),
    keep_rate=st.one_of(st.none(), st.floats(0.001, 1)),
    number=st.integers(1, 6),
)
def test_programs_cover_every_count_within_the_budget(patches, keep_rate, number):
    spec = MaskSpec("bucket", threshold=1.0, keep_rate=keep_rate)
    programs = bucket.programs_of(spec, patches, number)
    assert len(programs) <= number
    assert max(programs) == tokens.budget(spec, patches)
    assert all(tokens.budget(mask, patches) == length for length, mask in programs.items())


class Traced:
    """The model, counting how often it is traced for how many tokens."""

    def __init__(self):
        self.traces = collections.Counter()

    def apply(self, variables, images, *, tokens, **options):
        self.traces[tokens.indices.shape[1]] += 1
        return MODEL.apply(variables, images, tokens=tokens, **options)


def streamed(model, batches, spec, devices):
    grid = GRIDS[1]
    stream = bucket.stream(
        jax.random.key(0),
        variables(grid),
        batch_size=BATCH,
        patches=grid[0] * grid[1],
        model=model,
        inputs=Inputs(BlurSpec({"sharp": 1}), spec, PATCH, (0.5,) * 3, (0.25,) * 3),
        objective=OBJECTIVE,
        mesh=mesh(devices),
    )
    for batch in batches:
        stream.add(batch)
    return stream.finish()


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("fields", [{"threshold": 4e3}, {"threshold": 2e3, "keep_rate": 0.5, "drop": "above"}])
def test_bucket_is_a_gather_per_image_and_compiles_once_per_length(fields, devices):
    grid = GRIDS[1]
    spec = MaskSpec("bucket", **fields)
    batches = [
        {
            "image": photos_like(seed, grid),
            "label": np.arange(BATCH, dtype=np.int32) % 3,
            "id": np.arange(BATCH, dtype=np.uint32) + BATCH * seed,
            "mask": np.arange(BATCH) < (BATCH if seed < 3 else 5),
        }
        for seed in range(4)
    ]
    batches[0]["image"][0] = 128  # flat: keeps nothing, or everything
    model = Traced()
    answers = streamed(model, batches, spec, devices)
    assert len(answers["label"]) == 29
    lengths = bucket.programs_of(spec, 12)
    assert set(model.traces) <= set(lengths) and len(model.traces) > 1
    assert set(model.traces.values()) == {1}

    counts, i = set(), 0
    for batch in batches:
        # The stream's own keys: of patches that are alike, as in the flat image, they decide which stay.
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(jax.random.key(0), i), 1))(batch["id"])
        kept = tokens.select(keys, jnp.float32(batch["image"]) / 255, MaskSpec("attend", **fields), PATCH)
        for image, keep, label in zip(
            batch["image"][batch["mask"]], np.asarray(kept.keep), batch["label"], strict=False
        ):
            indices = np.flatnonzero(keep).astype(np.int32)[None]
            counts.add(indices.shape[1])
            own = tokens.Tokens(keep[None], indices, mode="gather", full=True)
            alone = apply(variables(grid), jnp.float32(image[None]), own)[0]
            loss = jax.nn.logsumexp(alone) - alone[label]
            np.testing.assert_allclose(answers["loss"][i], loss, rtol=0, atol=1e-5)
            assert answers["top1"][i] == (alone.argmax() == label)
            assert answers["kept"][i] == pytest.approx(keep.mean())
            i += 1
    assert len(counts) > 3  # images differ in what they keep
    if fields.get("drop") != "above":
        assert (answers["kept"] == 0).any()

    again = Traced()
    again.traces = model.traces
    streamed(model, batches, spec, devices)
    assert set(model.traces.values()) == {1}  # nothing is compiled a second time


def test_one_compile_per_k_over_blurs_and_selectors():
    grid = GRIDS[1]
    model = Traced()
    for keep_rate, selector, sigma in itertools.product((0.25, 0.5), ("laplacian", "random"), (1.0, 2.0)):
        batch = {
            "image": photos_like(int(sigma), grid),
            "label": np.zeros(BATCH, np.int32),
            "id": np.arange(BATCH, dtype=np.uint32),
            "mask": np.ones(BATCH, bool),
        }
        mask = MaskSpec("gather", selector, keep_rate=keep_rate)
        blur = BlurSpec({"gaussian": 1}, sigma=sigma, kernel_size=13)
        answers = eval_step(
            jax.random.key(0),
            variables(grid),
            sharding.put(batch, mesh(8)),
            model=model,
            inputs=Inputs(blur, mask, PATCH, (0.5,) * 3, (0.25,) * 3),
            objective=OBJECTIVE,
            mesh=mesh(8),
        )
        assert float(answers["kept"].sum()) == pytest.approx(BATCH * keep_rate)
    assert model.traces == {3: 1, 6: 1}
