"""Max-pooling as PyTorch has it: its borders, which Flax's "SAME" does not have, and its gradient, also at ties.

The gradient that JAX gives `reduce_window` searches every window again and scatters, which compilers for GPUs do with
arrays of 32-bit indices: a third of the bytes that a step of GoogLeNet moved. Here the pass that finds the maximum
notes in a byte where in the window it lay, and the gradient is sums of shifted arrays, compared with that byte.
The compiler for TPUs searches and scatters in one kernel, without indices: there JAX's gradient stays where it can be
compiled, and a step of GoogLeNet moves 26 GB instead of the 56 that it moves with shifted arrays.
"""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Borders = tuple[tuple[int, int], tuple[int, int]]  # rows and columns of -inf before and after the image


def max_pool(
    x: Float[Array, "b h w c"], window: int, stride: int, *, padding: int = 0, ceil: bool = False
) -> Float[Array, "b rows columns c"]:
    """`torch.nn.MaxPool2d(window, stride, padding, ceil_mode=ceil)`; borders are -inf.

    A window's gradient goes to its first maximum, row by row; a border has none. A NaN is the maximum of its window,
    and of several the last takes the gradient. On TPUs, where it has no padding or no stride, a window of nothing but
    -inf may give its gradient to a border, one with a NaN to another of its pixels, and a pixel's gradients are summed
    in the type of x. Has a gradient in reverse mode only.
    """

    def border(size: int) -> tuple[int, int]:
        # Rounding up means that the last window may hang over the far edge by less than one stride.
        return padding, padding + (window - size - 2 * padding) % stride * ceil

    how = window, stride, (border(x.shape[1]), border(x.shape[2]))
    if padding and stride > 1:  # libtpu 0.0.42 overflows its stack over JAX's gradient in ResNet50 (v6e, 32 images)
        return _max_pool(x, *how)
    return lax.platform_dependent(x, tpu=lambda x: _maxima(x, *how), default=lambda x: _max_pool(x, *how))


def _maxima(x: Array, window: int, stride: int, borders: Borders) -> Array:
    return nn.max_pool(x, (window, window), (stride, stride), padding=borders)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: Array, window: int, stride: int, borders: Borders) -> Array:
    # For a window the compiler for CPUs makes a loop over its numbers, which takes 2 to 6 times as long.
    how = window, stride, borders
    return lax.platform_dependent(x, cpu=lambda x: _of_shifted(x, *how), default=lambda x: _maxima(x, *how))


def _of_shifted(x: Array, window: int, stride: int, borders: Borders) -> Array:
    x = _bordered(x, borders)
    for axis in (1, 2):
        last = (x.shape[axis] - window) // stride * stride
        shifted = [lax.slice_in_dim(x, k, k + last + 1, stride, axis) for k in range(window) if last >= 0]
        x = functools.reduce(jnp.maximum, shifted or [lax.slice_in_dim(x, 0, 0, axis=axis)])  # smaller than a window
    return x


def _bordered(x: Array, borders: Borders) -> Array:
    return lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), *((*border, 0) for border in borders), (0, 0, 0)))


def _forward(x: Array, window: int, stride: int, borders: Borders):
    """The maxima, and what the gradient needs: where in its window each lay, uint8, and the size of the images."""
    height, width = x.shape[1:3]
    padded = _bordered(x, borders)
    rows, columns = ((n - window) // stride + 1 for n in padded.shape[1:3])
    # Of a window of nothing but -inf the first that is no border counts.
    row, column = (np.maximum(b[0] - stride * np.arange(n), 0) for b, n in zip(borders, (rows, columns), strict=True))
    where = jnp.asarray(window * row[:, None] + column, jnp.uint8)[None, :, :, None]
    most = jnp.array(-jnp.inf, x.dtype)
    for place, (row, column) in enumerate(itertools.product(range(window), repeat=2)):
        end = row + stride * (rows - 1) + 1, column + stride * (columns - 1) + 1
        shifted = padded[:, row : end[0] : stride, column : end[1] : stride]
        more = (shifted > most) | jnp.isnan(shifted)
        most, where = jnp.where(more, shifted, most), jnp.where(more, jnp.uint8(place), where)
    return most, (where, (height, width))


def _backward(window: int, stride: int, borders: Borders, residuals, gradient: Array):
    """The gradient of the images: for each place in a window, that of the maxima found there, where these pixels are.

    Summed in float32 at least: a pixel may be the maximum of several windows.
    """
    where, sizes = residuals
    wide = jnp.promote_types(gradient.dtype, jnp.float32)
    total = jnp.zeros((len(gradient), *sizes, gradient.shape[3]), wide)
    for place, at in enumerate(itertools.product(range(window), repeat=2)):
        spread = []  # pixels before the first window's, after the last one's, between one and the next
        for first, (border, _), size, n in zip(at, borders, sizes, gradient.shape[1:3], strict=True):
            before = first - border
            spread.append((before, size - before - stride * (n - 1) - 1, stride - 1))
        found = jnp.where(where == place, gradient, 0).astype(wide)
        total += lax.pad(found, jnp.zeros((), wide), ((0, 0, 0), *spread, (0, 0, 0)))
    return (total.astype(gradient.dtype),)


_max_pool.defvjp(_forward, _backward)
