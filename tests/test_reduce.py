"""EViT, ToMe and highpass against their definitions, written as loops over tokens, inside a whole ViT."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf

from bjax.models import build, reduce

SMALL = {"num_classes": 5, "variant": "Ti/8", "depth": 3, "width": 24, "heads": 3}


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def evit_loop(x, attention, keep):
    """One image: class token, the attentive tokens in their order, the sum of the others weighted by attention."""
    others = len(x) - 1
    kept = math.ceil(keep * others)
    if kept == others:
        return x
    best = sorted(range(others), key=lambda i: -attention[i])[:kept]
    fused = sum(attention[i] * x[1 + i] for i in range(others) if i not in best)
    return np.stack([x[0], *(x[1 + i] for i in sorted(best)), fused])


def tome_loop(x, metric, sizes, r):
    """One image: the r sources with the most similar destination are averaged into it, by size."""
    sources, destinations = range(2, len(x), 2), range(1, len(x), 2)
    cosine = lambda i, j: (  # noqa: E731
        metric[i] @ metric[j] / np.linalg.norm(metric[i]) / np.linalg.norm(metric[j])
    )
    edges = {i: max(destinations, key=lambda j: cosine(i, j)) for i in sources}
    ranked = sorted(sources, key=lambda i: -cosine(i, edges[i]))
    gone = ranked[: min(r, (len(x) - 1) // 2)]
    groups = [[i] for i in range(0, len(x), 2) if i not in gone]
    groups += [[j] + [i for i in gone if edges[i] == j] for j in destinations]
    return (
        np.stack([sum(sizes[i] * x[i] for i in g) / sum(sizes[i] for i in g) for g in groups]),
        np.array([sum(sizes[i] for i in g) for g in groups]),
    )


def highpass_loop(x, attention, sizes, keep):
    """One image: class token, the tokens that attention treats most unlike the mean, the mean of the others by size."""
    others = len(x) - 1
    kept = math.ceil(keep * others)
    if kept == others:
        return x, sizes
    # attention[head, query, token]
    high = [np.abs(attention[:, :, j] - sizes[j] / sizes.sum()).sum(axis=1).mean() for j in range(len(x))]
    best = sorted(range(1, len(x)), key=lambda j: -high[j])[:kept]
    left = [j for j in range(1, len(x)) if j not in best]
    mean = sum(sizes[j] * x[j] for j in left) / sum(sizes[j] for j in left)
    stay = [0, *sorted(best)]
    return np.stack([*(x[j] for j in stay), mean]), np.array([*(sizes[j] for j in stay), sum(sizes[j] for j in left)])


def vit_loop(model, params, image):
    """Logits of one image in float64, with what its layers leave out."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    dense = lambda x, name, at=p: x @ at[name]["kernel"] + at[name]["bias"]  # noqa: E731

    def norm(x, q):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * q["scale"] + q["bias"]

    side = image.shape[0] // 8
    patches = [image[8 * y : 8 * y + 8, 8 * x : 8 * x + 8].ravel() for y in range(side) for x in range(side)]
    x = np.concatenate([p["class_token"][0], dense(np.array(patches, np.float64), "embedding")])
    x = x + p["position_embedding"][0]
    sizes = np.ones(len(x))
    for i in range(model.depth):
        block = p[f"block_{i}"]
        q, k, v = dense(norm(x, block["norm1"]), "qkv", block).reshape(len(x), 3, model.heads, -1).transpose(1, 2, 0, 3)
        attention = softmax(q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1]) + np.log(sizes))
        x = x + dense((attention @ v).transpose(1, 0, 2).reshape(x.shape), "out", block)
        if model.evit_keep < 1 and i in model.evit_layers:
            x = evit_loop(x, attention[:, 0, 1:].mean(axis=0), model.evit_keep)
            sizes = np.ones(len(x))
        if model.tome_r:
            x, sizes = tome_loop(x, k.mean(axis=0), sizes, model.tome_r)
        if model.highpass_keep < 1 and i in model.evit_layers:
            x, sizes = highpass_loop(x, attention, sizes, model.highpass_keep)
        y = dense(norm(x, block["norm2"]), "mlp_1", block)
        x = x + dense(y * (1 + erf(y / math.sqrt(2))) / 2, "mlp_2", block)
    return dense(norm(x[0], p["norm"]), "head")


@pytest.fixture(scope="module")
def variables():
    shapes = jax.eval_shape(build("vit", **SMALL).init, jax.random.key(0), jnp.zeros((1, 48, 48, 3)))
    random = np.random.RandomState(0)
    return jax.tree.map(lambda leaf: jnp.float32(random.normal(0, 0.3, leaf.shape)), shapes)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"evit_keep": 0.5},
        {"evit_keep": 0.7, "evit_layers": (0, 1, 2)},
        {"evit_keep": 0.97, "evit_layers": 1},  # one token is left out
        {"evit_keep": 0.01, "evit_layers": (0,)},
        {"tome_r": 4},
        {"highpass_keep": 0.5, "evit_layers": (0, 1, 2)},
        {"highpass_keep": 0.9, "evit_layers": 1},
        {"tome_r": 1000},  # half of the tokens in every layer
    ],
)
def test_the_whole_model_is_what_a_loop_computes(variables, options):
    model = build("vit", **SMALL, **options)
    images = np.random.RandomState(1).normal(size=(3, 48, 48, 3)).astype(np.float32)
    ours = jax.jit(model.apply)(variables, images)
    theirs = np.stack([vit_loop(model, variables["params"], image) for image in images])
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
    if options:
        full = jax.jit(build("vit", **SMALL).apply)(variables, images)
        assert np.abs(ours - full).max() > 1e-3
    counts = model.token_counts(37)
    assert counts[0][0] == 37
    assert all(later[0] == earlier[1] for earlier, later in itertools.pairwise(counts))


def test_tokens_of_every_layer():
    evit = build("vit", variant="S/16", evit_keep=0.7)
    assert evit.evit_layers == (3, 6, 9)  # the paper's, of 12
    # 196 → 138 (137.2) → 98 (97.3) → 70 (69.3) with the fused token: ceil(.7·196), ceil(.7·139), ceil(.7·99)
    assert [mlp for _, mlp in evit.token_counts(197)] == [197] * 3 + [140] * 3 + [100] * 3 + [72] * 3
    tome = build("vit", variant="S/16", tome_r=16)
    assert [mlp for _, mlp in tome.token_counts(197)] == [197 - 16 * i for i in range(1, 12)] + [11]


def test_flops_are_those_of_the_matrix_products():
    model = build("vit", variant="Ti/8", depth=2, width=24, heads=3, num_classes=5)
    for side in (16, 48):
        images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        shapes = jax.eval_shape(model.init, jax.random.key(0), images)
        jaxpr = jax.make_jaxpr(model.apply)(shapes, images)
        assert model.flops((side // 8) ** 2 + 1) == matrix_flops(jaxpr.jaxpr)
    # FLOP ratios of ViT-B/16 at keep rates .75, .5 and .25, from the literature's formula
    base = build("vit", variant="B/16")
    ratios = [base.flops(197) / base.flops(1 + k) for k in (147, 98, 49)]
    np.testing.assert_allclose(ratios, (1.34, 2.03, 4.06), atol=0.02)


def matrix_flops(jaxpr):
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += matrix_flops(inner)
    return total


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.sampled_from((2, 3, 10, 17)),
    keep=st.sampled_from((0.01, 0.3, 0.9, 1.0)),
)
def test_evit_keeps_the_attentive_tokens_and_the_sum_of_the_others(seed, tokens, keep):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, tokens, 4)).astype(np.float32)
    attention = rng.random((3, tokens - 1), dtype=np.float32)
    ours = np.asarray(reduce.keep_attentive(jnp.asarray(x), jnp.asarray(attention), keep))
    np.testing.assert_allclose(ours, [evit_loop(a, b, keep) for a, b in zip(x, attention, strict=True)], atol=1e-5)
    assert ours.shape[1] == reduce.tokens_after(tokens, keep, 0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), tokens=st.sampled_from((2, 3, 10, 17)), r=st.sampled_from((1, 3, 100)))
def test_tome_merges_the_most_similar_pairs(seed, tokens, r):
    rng = np.random.default_rng(seed)
    x, metric = rng.normal(size=(2, 3, tokens, 4)).astype(np.float32)
    sizes = rng.integers(1, 5, (3, tokens)).astype(np.float32)
    ours, new_sizes = map(np.asarray, reduce.merge_similar(*map(jnp.asarray, (x, metric, sizes)), r))
    for i in range(3):
        theirs, their_sizes = tome_loop(x[i], metric[i], sizes[i], r)
        np.testing.assert_allclose(ours[i], theirs, atol=1e-5)
        np.testing.assert_array_equal(new_sizes[i], their_sizes)
    assert ours.shape[1] == reduce.tokens_after(tokens, 1.0, r)
    np.testing.assert_allclose(ours[:, 0], x[:, 0], rtol=1e-6)  # the class token: times its size, divided by it
    np.testing.assert_allclose(new_sizes.sum(axis=1), sizes.sum(axis=1))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), tokens=st.sampled_from((3, 10, 17)), keep=st.sampled_from((0.01, 0.3, 0.9, 1.0)))
def test_highpass_keeps_what_attention_treats_unlike_the_mean(seed, tokens, keep):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, tokens, 4)).astype(np.float32)
    query, key = rng.normal(size=(2, 3, tokens, 2, 4)).astype(np.float32)
    sizes = rng.integers(1, 5, (3, tokens)).astype(np.float32)
    shares = reduce.high_pass(*map(jnp.asarray, (query, key, sizes)))
    ours, new_sizes = reduce.keep_high(jnp.asarray(x), shares, jnp.asarray(sizes), keep)
    for i in range(3):
        attention = softmax(np.einsum("qhd,thd->hqt", query[i], key[i]) + np.log(sizes[i]))
        theirs, their_sizes = highpass_loop(x[i], attention, sizes[i], keep)
        np.testing.assert_allclose(ours[i], theirs, atol=1e-5)
        np.testing.assert_allclose(new_sizes[i], their_sizes, rtol=1e-6)
    assert ours.shape[1] == reduce.tokens_after(tokens, keep, 0)


def test_highpass_changes_nothing_where_what_it_merges_is_the_same(variables):
    """A mean of equal tokens that counts as all of them, without position embeddings that tell them apart."""
    params = variables["params"]
    params = {**params, "position_embedding": 0 * params["position_embedding"]}
    images = np.random.RandomState(1).normal(size=(2, 48, 48, 3)).astype(np.float32)
    images[:, 8:] = np.tile(images[:, :8, :8], (1, 5, 6, 1))  # 31 patches of 36 are the same
    reduced = jax.jit(build("vit", **SMALL, highpass_keep=0.5, evit_layers=(0,)).apply)({"params": params}, images)
    full = jax.jit(build("vit", **SMALL).apply)({"params": params}, images)
    np.testing.assert_allclose(reduced, full, rtol=0, atol=1e-4 * np.abs(full).max())


@pytest.mark.parametrize("options", [{"evit_keep": 0.5}, {"tome_r": 4}, {"highpass_keep": 0.5}])
def test_they_train(variables, options):
    model = build("vit", **SMALL, **options)
    images = np.random.RandomState(1).normal(size=(2, 48, 48, 3)).astype(np.float32)
    loss = lambda v: jnp.square(model.apply(v, images, train=True)).sum()  # noqa: E731
    for path, leaf in jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(variables)):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evit_keep": 0.0}, r"evit_keep=0.0: .* \(0, 1\]"),
        ({"evit_layers": (12,)}, "evit_layers=.*from 0 to 11"),
        ({"tome_r": -1}, "tome_r=-1"),
        ({"tome_r": 1.5}, "tome_r=1.5: .* a whole number"),
        ({"tome_r": 1, "evit_keep": 0.5}, "tome_r with evit_keep: one of them"),
        ({"tome_r": 1, "highpass_keep": 0.5}, "tome_r with highpass_keep: one of them"),
        ({"highpass_keep": 1.5}, r"highpass_keep=1.5: .* \(0, 1\]"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build("vit", **options)
