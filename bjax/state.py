"""The state of a run: one pytree, born on the devices that keep it."""

import jax
import jax.numpy as jnp
import optax
from flax import struct


@struct.dataclass
class State:
    """step: int32[] steps done; params, batch_stats: the model's variables; ema: averaged params, or None if off."""

    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: optax.OptState
    ema: dict | None

    @property
    def variables(self) -> dict:
        """What evaluation applies: the averaged weights where there are any."""
        return {"params": self.params if self.ema is None else self.ema, "batch_stats": self.batch_stats}


def load(state: State, variables: dict, plan: State) -> State:
    """`state` with the params (and batch_stats, where there are any) of `variables`, placed by `plan`."""

    def place(tree, shardings):
        return jax.jit(lambda x: x, out_shardings=shardings)(tree)

    params = place(variables["params"], plan.params)
    return state.replace(
        params=params,
        batch_stats=place(variables.get("batch_stats", {}), plan.batch_stats),
        ema=None if state.ema is None else jax.tree.map(jnp.copy, params),
    )


def init(key: jax.Array, model, tx: optax.GradientTransformation, image_size: int, ema: bool) -> State:
    """Random weights, fresh optimiser state. Pure: run it under `jit` with the plan as `out_shardings`."""
    variables = model.init(key, jnp.zeros((1, image_size, image_size, 3)))
    params = variables["params"]
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
    )
