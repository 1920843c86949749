"""The state of a run: one pytree, born on the devices that keep it."""

import jax
import jax.numpy as jnp
import optax
from flax import struct


@struct.dataclass
class State:
    """step: int32[] steps done; params, batch_stats: the model's variables; ema: averages of both, or None if off."""

    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: optax.OptState
    ema: dict | None

    @property
    def variables(self) -> dict:
        """What evaluation applies: the averaged weights where there are any."""
        return {"params": self.params, "batch_stats": self.batch_stats} if self.ema is None else self.ema


def load(state: State, variables: dict, plan: State) -> State:
    """`state` with the params (and batch_stats, where there are any) of `variables`, placed by `plan`."""
    loaded = {}
    for name in ("params", "batch_stats"):
        place = jax.jit(lambda x: x, out_shardings=getattr(plan, name))
        loaded[name] = place(variables.get(name, {}))
    return state.replace(**loaded, ema=None if state.ema is None else jax.tree.map(jnp.copy, loaded))


def init(key: jax.Array, model, tx: optax.GradientTransformation, image_size: int, ema: bool) -> State:
    """Random weights, fresh optimiser state. Pure: run it under `jit` with the plan as `out_shardings`."""
    variables = model.init(key, jnp.zeros((1, image_size, image_size, 3)))
    born = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    averages = jax.tree.map(jnp.copy, born) if ema else None
    return State(jnp.zeros((), jnp.int32), **born, opt_state=tx.init(born["params"]), ema=averages)
