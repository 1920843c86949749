"""What the families share: BatchNorm's momentum, and pooling by averages.

Flax keeps the biased variance of a batch for evaluation, torch the unbiased one; both normalise with the biased one in
training. A running variance that is learned here is (n - 1) / n of what torch would have kept, where n counts a
channel's values, images × height × width: 0.008 % less for 256 images of 7 by 7 pixels, 0.8 % for 32 of 2 by 2, 6 % for
4 of 2 by 2 (a batch of 32 in 8 parts, `optim.accumulate`). What evaluation then computes is half as many per cent
larger. Weights from files bring torch's statistics with them.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

MOMENTUM = 0.9  # share of the running statistics that a step keeps; torch counts the other share, 0.1


def global_average(x: Float[Array, "b h w c"]) -> Float32[Array, "b c"]:
    """The mean of every channel; ValueError where no pixel is left."""
    _check(x)  # the mean of nothing is NaN
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


def adaptive_average_pool(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b size size c"]:
    """`torch.nn.AdaptiveAvgPool2d(size)`; the bins may overlap."""
    _check(x)
    if x.shape[1:3] == (size, size):
        return x
    rows, columns = _bins(x.shape[1], size), _bins(x.shape[2], size)
    return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns).astype(x.dtype)


def _check(x: Float[Array, "b h w c"]) -> None:
    if not x.size:
        raise ValueError(f"nothing left to pool, feature map of shape {x.shape}: the images are too small")


def _bins(length: int, size: int) -> Float32[np.ndarray, "size length"]:
    """Row i averages from floor(i·length/size) to ceil((i+1)·length/size)."""
    i = np.arange(size)[:, None]
    position = np.arange(length)
    inside = (position >= i * length // size) & (position < -(-(i + 1) * length // size))
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)
