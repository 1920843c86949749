"""Attention against torch's, its padding, and which of its two forms is taken where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from bjax.aot import hlo
from bjax.models import attention, build
from bjax.runtime import sharding


def heads_of(seed, batch, length, heads=2, size=8, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(batch, length, heads, size)), dtype) for _ in range(3)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("length", "there"), [(1, 1), (17, 17), (16, 9)])
def test_attention_is_torchs(length, there, masked, biased):
    torch = pytest.importorskip("torch")
    query, key, value = heads_of(0, 3, length)
    rng = np.random.default_rng(1)
    mask = rng.random((3, length)) < 0.5
    mask[:, 0] = True  # the class token is always there
    bias = rng.normal(size=(3, 1, 1, length)).astype(np.float32) if biased else None
    ours = attention.attend(query, key, value, there=there, key_mask=jnp.asarray(mask) if masked else None, bias=bias)
    seen = mask if masked else np.broadcast_to(np.arange(length) < there, mask.shape)
    scores = np.where(seen[:, None, None, :], 0 if bias is None else bias, -np.inf).astype(np.float32)
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *(torch.tensor(np.asarray(x)).transpose(1, 2) for x in (query, key, value)),
        attn_mask=torch.tensor(scores).expand(3, 2, length, length),
    )
    np.testing.assert_allclose(ours, theirs.transpose(1, 2).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_has_even_numbers_of_tokens(dtype):
    assert [attention.padded_length(n, dtype) for n in (1, 8, 99, 197)] == [2, 8, 100, 198]
    assert [attention.padded_length(n, jnp.float32) for n in (1, 8, 99, 197)] == [1, 8, 99, 197]


@pytest.mark.parametrize("mode", ["none", "attend", "gather"])
def test_padding_changes_neither_logits_nor_gradients_beyond_the_type(mode, monkeypatch):
    """7 tokens, padded to 8: those of float32, which has none, are the judge."""
    images = np.random.default_rng(0).normal(size=(3, 16, 24, 3)).astype(np.float32)
    keep = np.arange(6) % 3 != np.arange(3)[:, None]
    indices = np.broadcast_to(np.arange(6), (3, 6)).astype(np.int32)

    class Tokens:
        pass

    Tokens.mode, Tokens.keep, Tokens.indices = mode, jnp.asarray(keep), jnp.asarray(indices)
    tokens = None if mode == "none" else Tokens

    options = {"num_classes": 5, "variant": "Ti/8", "depth": 1, "width": 24, "heads": 3}
    variables = jax.jit(build("vit", **options).init)(jax.random.key(0), images)
    draw = np.random.default_rng(1)
    variables = jax.tree.map(lambda x: draw.normal(size=x.shape).astype(np.float32) / 5, variables)

    def outcome(dtype):
        def total(variables):
            logits = build("vit", dtype=dtype, **options).apply(variables, images, tokens=tokens)
            return (logits * jnp.arange(5)).sum(), logits

        gradient, logits = jax.jit(jax.grad(total, has_aux=True))(variables)
        return logits, gradient["params"]

    exact, exact_gradient = outcome(jnp.float32)
    padded, gradient = outcome(jnp.bfloat16)
    monkeypatch.setattr(attention, "padded_length", lambda tokens, _: tokens)
    plain, plain_gradient = outcome(jnp.bfloat16)
    assert error(padded, exact) <= 1.5 * error(plain, exact) + 1e-3
    for name, right in exact_gradient.items():
        of_padded, of_plain = (error(x[name], right) for x in (gradient, plain_gradient))
        assert of_padded <= 1.5 * of_plain + 1e-2, name


def error(found, right) -> float:
    found, right = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (found, right))
    return float(np.sqrt(np.square(found - right).mean() / np.square(right).mean()))


@pytest.fixture
def cudnn(monkeypatch):
    """The branch of GPUs, computed by XLA's products here; what cuDNN was asked for, each time."""
    asked = []
    products = jax.nn.dot_product_attention

    def either(*args, implementation, **options):
        if implementation == "cudnn":
            asked.append({k: v.shape for k, v in options.items()})
        return products(*args, implementation="xla", **options)

    monkeypatch.setattr(attention, "has_cudnn", lambda: True)
    monkeypatch.setattr(attention.jax.nn, "dot_product_attention", either)
    monkeypatch.setattr(attention.lax, "platform_dependent", lambda *args, cuda, default: cuda(*args))
    return asked


def test_the_fused_kernel_is_asked_for_the_same(cudnn):
    query, key, value = heads_of(1, 3, 16, dtype=jnp.bfloat16)
    mask = jnp.asarray(np.random.default_rng(1).random((3, 16)) < 0.5).at[:, 0].set(True)
    for options in ({}, {"there": 10}, {"there": 16}, {"key_mask": mask}):
        found = attention.attend(query, key, value, **options)
        right = attention.attend(query, key, value, **options, implementation="xla")
        assert error(np.float32(found), np.float32(right)) < 0.01
    assert cudnn == [{}, {"key_value_seq_lengths": (3,)}, {}, {"mask": (3, 1, 16, 16)}]


@pytest.mark.parametrize("what", ["float32", "head of 12", "head of 136", "odd", "bias", "xla", "no plugin"])
def test_what_the_fused_kernel_does_not_take_goes_through_products(cudnn, monkeypatch, what):
    size = {"head of 12": 12, "head of 136": 136}.get(what, 8)
    length = 15 if what == "odd" else 16
    qkv = heads_of(1, 2, length, size=size, dtype=jnp.float32 if what == "float32" else jnp.bfloat16)
    if what == "no plugin":
        monkeypatch.setattr(attention, "has_cudnn", lambda: False)
    bias = jnp.zeros((2, 1, 1, length), jnp.bfloat16) if what == "bias" else None
    attention.attend(*qkv, bias=bias, implementation="xla" if what == "xla" else "auto")
    assert not cudnn


@pytest.mark.plugins
@pytest.mark.parametrize("masked", [False, True])
def test_a_gpus_program_has_the_fused_kernel(masked):
    """Forward and backward, on a CPU with JAX's plugin for GPUs."""
    if not attention.has_cudnn():
        pytest.skip("needs JAX's plugin for NVIDIA's GPUs: pip install 'bjax[preflight-gpu]'")
    qkv = heads_of(1, 2, 16, dtype=jnp.bfloat16)
    mask = jnp.ones((2, 16), bool) if masked else None
    total = lambda *qkv: attention.attend(*qkv, there=10, key_mask=mask).astype(jnp.float32).sum()  # noqa: E731
    lowered = jax.jit(jax.grad(total)).trace(*qkv)
    text = lowered.lower(lowering_platforms=("cuda",)).as_text()
    assert "cudnn$fmha" in text and "Backward" in text
    assert "cudnn" not in lowered.lower(lowering_platforms=("cpu",)).as_text()


def test_training_alone_and_on_gpus_alone_lays_images_outermost():
    model = build("vit", variant="Ti/8", depth=1, width=16, heads=2, num_classes=3)
    images = jnp.zeros((2, 16, 16, 3))
    variables = model.init(jax.random.key(0), images)

    def loss(variables, train):
        return model.apply(variables, images, train=train).sum()

    for train in (False, True):
        traced = jax.jit(jax.grad(lambda variables: loss(variables, train))).trace(variables)  # noqa: B023
        programs = {on: traced.lower(lowering_platforms=(on,)).as_text() for on in ("cpu", "cuda", "tpu")}
        laid = {on for on, text in programs.items() if "LayoutConstraint" in text}
        assert laid == ({"cuda"} if train else set())


@pytest.mark.parametrize("split", [(1, 1), (8, 1), (2, 4)])
def test_the_layout_changes_no_value_and_gathers_nothing(split):
    mesh = sharding.make_mesh(*split, jax.devices()[: split[0] * split[1]])
    x = jax.random.normal(jax.random.key(0), (16, 6, 8))
    gradient = jax.grad(lambda x: jnp.sin(attention.images_outermost(2 * x)).sum())
    program = jax.jit(gradient).lower(jax.device_put(x, NamedSharding(mesh, sharding.BATCH))).compile()
    np.testing.assert_allclose(program(jax.device_put(x, NamedSharding(mesh, sharding.BATCH))), 2 * jnp.cos(2 * x))
    assert hlo.collectives(hlo.parse(program.as_text())) == {}


def test_the_layout_leaves_gradients_of_examples_and_of_gradients():
    x = jax.random.normal(jax.random.key(0), (4, 2, 6, 8))
    loss = lambda x: jnp.sin(attention.images_outermost(2 * x)).sum()  # noqa: E731
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(loss)))(x), 2 * jnp.cos(2 * x), rtol=1e-6)
    second = jax.jit(jax.grad(lambda x: jax.grad(loss)(x).sum()))(x[0])
    np.testing.assert_allclose(second, -4 * jnp.sin(2 * x[0]), rtol=1e-5, atol=1e-6)
