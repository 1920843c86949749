"""Checkpoints: what comes back is what was saved, on other devices too, and what does not fit is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bjax import models
from bjax.errors import UserError
from bjax.runtime import checkpoint, sharding
from bjax.step import state


def parts(mesh, width=64, ema=True):
    model = models.build("vit", num_classes=4, variant="Ti/8", depth=1, width=width, heads=2)
    init = functools.partial(
        state.init, model=model, tx=optax.chain(optax.clip(1.0), optax.adamw(1e-3)), image_size=16, ema=ema
    )
    shapes = jax.eval_shape(init, jax.random.key(0))
    return init, shapes, sharding.plan(shapes, mesh, ((".*", "fsdp"),))


def test_a_state_comes_back_on_another_mesh(tmp_path):
    init, shapes, plan = parts(sharding.make_mesh(2, 4))
    saved = jax.jit(init, out_shardings=plan)(jax.random.key(3))
    with checkpoint.manager(tmp_path) as manager:
        assert checkpoint.restore(manager, shapes, plan) is None
        checkpoint.save(manager, 7, saved)
    _, shapes, plan = parts(sharding.make_mesh(1, 2, jax.devices()[:2]))
    with checkpoint.manager(tmp_path) as manager:
        restored = checkpoint.restore(manager, shapes, plan)
    for (path, a), b, place in zip(
        jax.tree_util.tree_leaves_with_path(saved),
        jax.tree.leaves(restored),
        jax.tree.leaves(plan),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
        assert b.dtype == a.dtype
        assert b.sharding.is_equivalent_to(place, b.ndim)


def test_the_newest_is_restored_and_the_oldest_goes(tmp_path):
    init, shapes, plan = parts(sharding.make_mesh(1, 1, jax.devices()[:1]), ema=False)
    current = jax.jit(init, out_shardings=plan)(jax.random.key(0))
    with checkpoint.manager(tmp_path, keep=2) as manager:
        for step in (1, 2, 3):
            current = current.replace(step=jnp.int32(step))
            checkpoint.save(manager, step, current)
    (tmp_path / "4.orbax-checkpoint-tmp").mkdir()  # a killed process leaves such folders
    with checkpoint.manager(tmp_path, keep=2) as manager:
        assert int(checkpoint.restore(manager, shapes, plan).step) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 32}, r"at 57 arrays; .* is \(\(256,\), .* there and \(\(128,\)"),
        ({"ema": True}, "ema/.* is absent there"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, changes, message):
    mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
    init, _, plan = parts(mesh, ema=False)
    with checkpoint.manager(tmp_path) as manager:
        checkpoint.save(manager, 1, jax.jit(init, out_shardings=plan)(jax.random.key(0)))
    _, shapes, plan = parts(mesh, **{"ema": False, **changes})
    with checkpoint.manager(tmp_path) as manager, pytest.raises(UserError, match=message) as e:
        checkpoint.restore(manager, shapes, plan)
    assert "use another --workdir" in str(e.value)
