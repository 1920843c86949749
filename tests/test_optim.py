"""Schedules against torch's and optax's own words; which parameters decay; clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bjax.configs.common import default
from bjax.step import optim


def config(**changes):
    c = default().optim
    c.update(changes)
    return c


def rates(total, **changes):
    rate = optim.schedule(config(**changes), total)
    return np.array([float(rate(i)) for i in range(total)])


def test_cosine_with_warm_up():
    lr = rates(100, lr=2.0, warmup=10)
    np.testing.assert_allclose(lr[:10], 2.0 * np.linspace(0.1, 1, 10), rtol=1e-6)
    np.testing.assert_allclose(lr[10:], 1 + np.cos(np.pi * np.arange(90) / 90), atol=1e-6)


def test_step_schedule_falls_every_third():
    lr = rates(90, lr=1.0, schedule="step", warmup=5)
    np.testing.assert_allclose(lr[5:], np.repeat([1.0, 0.1, 0.01], 30)[5:], rtol=1e-5)
    assert rates(10, schedule="constant", lr=0.3).tolist() == pytest.approx([0.3] * 10)


def test_a_warm_up_never_takes_more_than_half_of_a_short_run():
    lr = rates(20, lr=1.0, warmup=10_000)
    assert lr.argmax() == 9
    assert lr[9] == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_only_kernels_decay(name):
    params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "position_embedding": jnp.ones(3)}
    zero = jax.tree.map(jnp.zeros_like, params)
    for decay, changed in (("kernels", [False, True, False]), ("all", [True, True, True])):
        tx = optim.build(config(name=name, weight_decay=0.1, lr=1.0, schedule="constant", decay=decay), 10)
        updates, _ = tx.update(zero, tx.init(params), params)
        assert [bool((u != 0).any()) for u in jax.tree.leaves(updates)] == changed


def test_sgd_is_torchs():
    torch = pytest.importorskip("torch", reason="torch, the peer of this test, is not installed")
    start, gradients = np.array([1.0, -2.0], np.float32), np.random.default_rng(0).normal(size=(5, 2))
    p = torch.nn.Parameter(torch.tensor(start))
    peer = torch.optim.SGD([p], lr=0.1, momentum=0.9, weight_decay=1e-2)
    options = config(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-2, decay="all", schedule="constant")
    tx = optim.build(options, 100)
    params = {"kernel": jnp.asarray(start)}
    state = tx.init(params)
    for g in gradients.astype(np.float32):
        p.grad = torch.tensor(g)
        peer.step()
        updates, state = tx.update({"kernel": jnp.asarray(g)}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    np.testing.assert_allclose(params["kernel"], p.detach().numpy(), rtol=1e-5)


def test_clipping_limits_the_norm():
    params = {"kernel": jnp.zeros(2)}
    tx = optim.build(config(name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0, clip=1.0, schedule="constant"), 10)
    updates, _ = tx.update({"kernel": jnp.array([3.0, 4.0])}, tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], [-0.6, -0.8], rtol=1e-5)
