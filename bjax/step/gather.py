"""Weights that lie split over devices (mesh.fsdp), whole where a step uses them."""

import functools
from collections.abc import Callable

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def gathered(params: dict, plan: dict, use: Callable) -> dict:
    """`params` whole on every device, in the type that they are computed in; their gradients come back split.

    plan: their NamedShardings. use: the function of params that the step differentiates. A weight that it only converts
    is converted before it is sent: half the bytes in bfloat16, and the same numbers. Left to itself the compiler may
    send the activations, which are larger, from device to device instead.
    """
    types = _read_as(use, params)

    def whole(x, place, dtype):
        # Said twice: else the compiler sends first, and converts then.
        return _whole(jax.lax.with_sharding_constraint(x.astype(dtype), place), place)

    return jax.tree.map(whole, params, plan, types)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _whole(x: jax.Array, place: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, NamedSharding(place.mesh, P()))


def _forward(x, place):
    return _whole(x, place), None


def _backward(place, _, gradient):
    # Split as the weight is: each device needs the sum of its part only.
    return (jax.lax.with_sharding_constraint(gradient, place),)


_whole.defvjp(_forward, _backward)


def _read_as(use: Callable, params: dict) -> dict:
    """The type in which `use` reads each array: what it converts it to wherever it uses it, or else its own."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    jaxpr = jax.make_jaxpr(use)(shapes).jaxpr
    uses = {id(x): set() for x in jaxpr.invars}
    for equation in jaxpr.eqns:
        converts = equation.primitive.name == "convert_element_type"
        for x in equation.invars:
            if id(x) in uses:
                uses[id(x)].add(equation.params["new_dtype"] if converts else x.aval.dtype)
    for x in jaxpr.outvars:
        if id(x) in uses:
            uses[id(x)].add(x.aval.dtype)
    types = [uses[id(x)].pop() if len(uses[id(x)]) == 1 else x.aval.dtype for x in jaxpr.invars]
    return jax.tree.unflatten(jax.tree.structure(params), types)
