"""Max-pooling and its gradient are torch's, ties, borders and NaN included, and no gradient scatters."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bjax.models import pooling
from bjax.models.pooling import max_pool

# Window, stride, padding, whether it rounds up: those of the models, and more.
POOLS = [(3, 2, 1, False), (2, 2, 0, False), (3, 2, 0, True), (2, 2, 0, True), (3, 1, 1, False), (3, 2, 1, True)]
VALUES = {
    "different": lambda x: x,
    "after a ReLU": lambda x: np.maximum(x, 0),
    "whole numbers": np.round,
    "nothing": lambda x: np.where(x > 0, -np.inf, x),  # windows of nothing but what borders are
    "not a number": lambda x: np.where(x > 1, np.nan, x),
}


def both(x, how, dtype):
    """(Maxima, gradients) of ours and of torch's; the gradient that comes in is of whole numbers: sums are exact."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    window, stride, padding, ceil = how
    pool = functools.partial(max_pool, window=window, stride=stride, padding=padding, ceil=ceil)

    @jax.jit
    def ours(x, given):
        maxima, backward = jax.vjp(pool, x)
        return maxima, *backward(given), pool(x)

    x = jnp.asarray(x, dtype)
    given = np.random.RandomState(0).randint(-9, 10, jax.eval_shape(pool, x).shape)
    found = ours(x, jnp.asarray(given, dtype))
    assert {a.dtype for a in found} == {x.dtype}
    maxima, gradient, alone, x = (np.asarray(a, np.float32) for a in (*found, x))
    np.testing.assert_array_equal(maxima, alone)  # without a gradient

    leaf = torch.tensor(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    theirs = torch.nn.functional.max_pool2d(leaf, window, stride, padding, ceil_mode=ceil)
    theirs.backward(torch.tensor(given.transpose(0, 3, 1, 2), dtype=torch.float32))
    expected = (theirs.detach().numpy(), leaf.grad.numpy())
    return (maxima, gradient), tuple(a.transpose(0, 2, 3, 1) for a in expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("how", POOLS, ids=str)
def test_maxima_and_gradients_are_torchs(how, values, dtype):
    for height, width in ((3, 4), (8, 7)):
        x = VALUES[values](np.random.RandomState(height).normal(0, 1, (2, height, width, 3)))
        ours, theirs = both(x, how, dtype)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


@settings(max_examples=20, deadline=None)
@given(
    how=st.sampled_from(POOLS),
    size=st.tuples(st.integers(3, 13), st.integers(3, 13)),
    levels=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_ties_go_where_torchs_go_at_any_size(how, size, levels, seed):
    x = np.random.RandomState(seed).randint(-levels, levels, (1, *size, 2)).astype(np.float32)
    (_, ours), (_, theirs) = both(x, how, jnp.float32)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("values", ["different", "after a ReLU", "whole numbers"])
@pytest.mark.parametrize("how", POOLS, ids=str)
def test_what_tpus_compute_is_torchs_too(how, values, monkeypatch):
    monkeypatch.setattr(
        pooling.lax, "platform_dependent", lambda x, *, default, tpu=None, cpu=None: (tpu or default)(x)
    )
    x = VALUES[values](np.random.RandomState(0).normal(0, 1, (2, 8, 7, 3)))
    for a, b in zip(*both(x, how, jnp.float32), strict=True):
        np.testing.assert_array_equal(a, b)


def test_tpus_alone_search_and_scatter():
    x = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)
    for stride, expected in ((1, {"tpu"}), (2, set())):  # with a stride, the padded one overflows libtpu's stack
        total = jax.jit(jax.grad(lambda x: max_pool(x, 3, stride, padding=1).sum()))  # noqa: B023
        programs = {on: total.trace(x).lower(lowering_platforms=(on,)).as_text() for on in ("cpu", "cuda", "tpu")}
        assert {on for on, text in programs.items() if "select_and_scatter" in text} == expected


@pytest.mark.parametrize("shape", [(2, 2, 9, 3), (2, 9, 2, 3), (2, 1, 1, 3)])
def test_of_images_smaller_than_a_window_nothing_is_left(shape):
    x = jnp.zeros(shape)
    for pool in (max_pool, jax.jit(max_pool, static_argnums=(1, 2))):
        assert not pool(x, 3, 2).size
        assert pool(x, 3, 2).shape == nn.max_pool(x, (3, 3), (2, 2)).shape


def test_gradients_neither_scatter_nor_search_the_windows_again():
    total = lambda x: max_pool(x, 3, 2, padding=1).sum()  # noqa: E731
    program = jax.jit(jax.grad(total)).lower(jnp.zeros((2, 8, 8, 4))).as_text()
    assert "pad" in program
    assert "select_and_scatter" not in program
    assert "reduce_window" not in program


def test_gradients_of_doubles_are_doubles():
    with jax.enable_x64(True):
        gradient = np.asarray(jax.grad(lambda x: max_pool(x, 3, 2, padding=1).sum())(jnp.zeros((1, 4, 4, 1))))
    assert gradient.dtype == np.float64 and gradient.sum() == 4
