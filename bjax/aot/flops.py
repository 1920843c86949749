"""How many operations the matrix products and convolutions of a function take, from its jaxpr.

Two a multiply-add, as vendors count them; of a convolution only those that touch the image (not padding, nor the holes
of a dilated gradient), as XLA's own cost analysis has it. What else a program computes is left out: on chips with
matrix units its time is that of its memory traffic.
"""

import math
from collections.abc import Callable

import jax
import numpy as np
from jax.extend import core


def of(function: Callable, *args, device: jax.Device) -> float:
    """Operations of one call on all devices together, which are like this one; the arguments may be shapes."""
    platform = "cuda" if device.platform == "gpu" else device.platform
    return _of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr, platform)


def _of_jaxpr(jaxpr: core.Jaxpr, platform: str) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, p = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _product(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        inner = [_of_jaxpr(x, platform) for x in _inside(p)]
        if name == "cond":  # one of its branches runs
            platforms = p.get("branches_platforms") or [None] * len(inner)
            # Beside the platform's own the default's: a library's kernel does not say here what it computes.
            total += max(n for n, names in zip(inner, platforms, strict=True) if names is None or platform in names)
        elif name == "scan":
            total += p["length"] * sum(inner)
        elif name == "shard_map":
            total += math.prod(p["mesh"].axis_sizes) * sum(inner)
        else:
            total += sum(inner)
    return total


def _inside(params: dict):
    """The jaxprs that an equation runs."""
    for value in params.values():
        for x in value if isinstance(value, tuple | list) else (value,):
            if isinstance(x, core.ClosedJaxpr):
                yield x.jaxpr
            elif isinstance(x, core.Jaxpr):
                yield x


def _product(equation) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, result = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2.0 * math.prod(result) * math.prod(left[i] for i in contracted)


def _convolution(equation) -> float:
    p = equation.params
    image, kernel = (x.aval.shape for x in equation.invars)
    result = equation.outvars[0].aval.shape
    numbers = p["dimension_numbers"]
    touched = 1.0
    for axis, (before, _) in enumerate(p["padding"]):
        touched *= _touched(
            image[numbers.lhs_spec[2 + axis]],
            kernel[numbers.rhs_spec[2 + axis]],
            result[numbers.out_spec[2 + axis]],
            p["window_strides"][axis],
            before,
            p["lhs_dilation"][axis],
            p["rhs_dilation"][axis],
        )
    batch, features = (result[i] for i in numbers.out_spec[:2])
    return 2.0 * batch * features * kernel[numbers.rhs_spec[1]] * touched


def _touched(image: int, kernel: int, result: int, stride: int, before: int, spread: int, dilation: int) -> int:
    """Pairs along one axis of a place in the result and one in the kernel that meet a pixel of the image."""
    at = np.arange(result)[:, None] * stride + np.arange(kernel) * dilation - before
    return int(((at >= 0) & (at % spread == 0) & (at <= (image - 1) * spread)).sum())
