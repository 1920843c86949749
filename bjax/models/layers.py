"""What the families share: BatchNorm, also folded into the convolution before it, and pooling by averages.

Flax keeps the biased variance of a batch for evaluation, torch the unbiased one; both normalise with the biased one in
training. A running variance that is learned here is (n - 1) / n of what torch would have kept, where n counts a
channel's values, images × height × width: 0.008 % less for 256 images of 7 by 7 pixels, 0.8 % for 32 of 2 by 2, 6 % for
4 of 2 by 2 (a batch of 32 in 8 parts, `optim.accumulate`). What evaluation then computes is half as many per cent
larger. Weights from files bring torch's statistics with them.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32

MOMENTUM = 0.9  # share of the running statistics that a step keeps; torch counts the other share, 0.1


class BatchNorm(nn.BatchNorm):
    """`nn.BatchNorm`, in training with statistics of every `group` consecutive images; 0: of the whole batch.

    Running statistics move towards the mean of the groups'. What is computed depends on the group alone; where a group
    lies within a device, no statistic is sent. Raises ValueError for a batch that `group` does not divide.

    prior: in evaluation with the statistics of the batch at hand, n images, each mixed with the running one, which has
    the share prior / (prior + n) (Schneider et al. 2020, N); 0: the batch's alone, as in training. None: the running
    ones. Nothing is kept of the batch.
    """

    group: int = 0
    prior: float | None = None
    momentum: float = MOMENTUM

    @property
    def of_batch(self) -> bool:
        """Whether what it computes depends on the other images of the batch."""
        return not self.use_running_average or self.prior is not None

    def __call__(self, x: Float[Array, "b *d c"]) -> Float[Array, "b *d c"]:
        if self.use_running_average and self.of_batch and not self.is_initializing():
            return self._mixed(x)
        if not self.group or self.use_running_average or self.is_initializing():
            return super().__call__(x)
        if len(x) % self.group:
            raise ValueError(f"norm_group={self.group}: does not divide a batch of {len(x)} images")
        grouped = x.reshape(-1, self.group, *x.shape[1:]).astype(jnp.float32)
        axes = tuple(range(1, grouped.ndim - 1))
        mean = grouped.mean(axes, keepdims=True)
        var = jnp.maximum(jnp.square(grouped).mean(axes, keepdims=True) - jnp.square(mean), 0)  # as Flax computes it
        for name, value in {"mean": mean, "var": var}.items():
            kept = self.get_variable("batch_stats", name)
            seen = value.reshape(-1, x.shape[-1]).mean(axis=0)
            self.put_variable("batch_stats", name, self.momentum * kept + (1 - self.momentum) * seen)
        scale, bias = (self.get_variable("params", name) for name in ("scale", "bias"))
        normalised = (grouped - mean) * (scale * lax.rsqrt(var + self.epsilon)) + bias
        return normalised.reshape(x.shape).astype(self.dtype)

    def _mixed(self, x: Float[Array, "b *d c"]) -> Float[Array, "b *d c"]:
        wide, axes = x.astype(jnp.float32), tuple(range(x.ndim - 1))
        share = self.prior / (self.prior + len(x))
        kept, params = self.variables["batch_stats"], self.variables["params"]
        mean = share * kept["mean"] + (1 - share) * wide.mean(axes)
        var = share * kept["var"] + (1 - share) * wide.var(axes)  # biased, as torch normalises with in training
        return ((wide - mean) * (params["scale"] * lax.rsqrt(var + self.epsilon)) + params["bias"]).astype(self.dtype)

    def affine(self) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        """What evaluation multiplies a channel by and what it then adds, in float32, in float64 of such variables."""
        params, stats = self.variables["params"], self.variables["batch_stats"]
        var = stats["var"].astype(jnp.promote_types(stats["var"].dtype, jnp.float32))
        scale = params["scale"] * lax.rsqrt(var + self.epsilon)
        return scale, params["bias"] - stats["mean"] * scale


def batch_norm(model: nn.Module, train: bool, **more) -> Callable[..., BatchNorm]:
    """What makes the BatchNorm layers of a model, as its norm_group, norm_prior and dtype say. more: fields of all."""
    fields = {"group": model.norm_group, "prior": model.norm_prior, "dtype": model.dtype, **more}
    return functools.partial(BatchNorm, use_running_average=not train, **fields)


def normalised(conv: nn.Conv, norm: BatchNorm, x: Float[Array, "b *d c"]) -> Float[Array, "b *e f"]:
    """`norm(conv(x))`; in evaluation, but on a CPU, a convolution whose kernel and bias contain the norm.

    That is a pass over the activations less: XLA makes one kernel of a convolution, its bias, a sum and a ReLU on GPUs
    and TPUs. On a CPU it would be none less, and the kernel is scaled at every call. Variables and gradients are the
    same. In half precision the bias is rounded too: a channel's error is alike everywhere, and counts where its mean is
    many times its deviation.
    """
    if norm.of_batch or norm.is_initializing():
        return norm(conv(x))
    scale, offset = norm.affine()
    params = conv.variables["params"]
    kernel, offset = _scaled(params["kernel"], scale), params.get("bias", 0.0) * scale + offset
    x = conv.clone(parent=None, use_bias=False).apply({"params": {"kernel": kernel}}, x)
    return _moved(x, scale, offset)


@jax.jit
def _scaled(kernel: Array, scale: Array) -> Array:
    wide = jnp.promote_types(kernel.dtype, scale.dtype)
    return lax.platform_dependent(kernel, scale, cpu=lambda kernel, _: kernel.astype(wide), default=jnp.multiply)


@jax.jit
def _moved(x: Array, scale: Array, offset: Array) -> Array:
    """The rest of a norm, of what a convolution with the kernel that `_scaled` gives has made."""

    def apart(x, scale, offset):
        return (x * scale + offset).astype(x.dtype)

    def folded(x, scale, offset):
        return x + offset.astype(x.dtype)

    return lax.platform_dependent(x, scale, offset, cpu=apart, default=folded)


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
