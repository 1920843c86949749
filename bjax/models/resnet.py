"""ResNet (He et al. 2016, arXiv:1512.03385) as torchvision has it: the stride is on the 3x3 convolution."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from bjax.models.layers import batch_norm, global_average, normalised
from bjax.models.pooling import max_pool


class ResNet(nn.Module):
    """Normalised images `[B, H, W, 3]` to logits `float32[B, num_classes]`.

    Random initialisation is torchvision's, Kaiming normal over the fan-out; biases start at zero.
    """

    stages: tuple[int, ...]  # blocks per stage
    bottleneck: bool
    num_classes: int
    width: int = 64  # channels of the stem
    dtype: jnp.dtype = jnp.float32
    norm_group: int = 0  # images per statistic of BatchNorm; 0: the batch
    norm_prior: float | None = None  # of BatchNorm in evaluation: None, or statistics of the batch, see its prior
    smallest = 1  # side of the images, pixels

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        conv = partial(
            nn.Conv,
            use_bias=False,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            dtype=self.dtype,
        )
        norm = batch_norm(self, train)
        block = Bottleneck if self.bottleneck else BasicBlock
        stem = conv(self.width, (7, 7), strides=2, padding=3, name="conv1")
        x = nn.relu(normalised(stem, norm(name="bn1"), images))
        x = max_pool(x, 3, 2, padding=1)
        for i, blocks in enumerate(self.stages):
            for j in range(blocks):
                stride = 2 if i > 0 and j == 0 else 1
                x = block(self.width * 2**i, stride, conv, norm, name=f"layer{i + 1}_{j}")(x)
        x = global_average(x)
        kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        return nn.Dense(self.num_classes, kernel_init=kernel_init, name="fc")(x)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: ResNet-18 and -34."""

    features: int
    stride: int
    conv: Callable
    norm: Callable

    @nn.compact
    def __call__(self, x):
        conv1 = self.conv(self.features, (3, 3), strides=self.stride, padding=1, name="conv1")
        y = nn.relu(normalised(conv1, self.norm(name="bn1"), x))
        conv2 = self.conv(self.features, (3, 3), padding=1, name="conv2")
        y = normalised(conv2, self.norm(name="bn2"), y)
        return nn.relu(y + _shortcut(x, y.shape, self.stride, self.conv, self.norm))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last to four times the channels: ResNet-50 and deeper."""

    features: int
    stride: int
    conv: Callable
    norm: Callable

    @nn.compact
    def __call__(self, x):
        conv1 = self.conv(self.features, (1, 1), name="conv1")
        y = nn.relu(normalised(conv1, self.norm(name="bn1"), x))
        conv2 = self.conv(self.features, (3, 3), strides=self.stride, padding=1, name="conv2")
        y = nn.relu(normalised(conv2, self.norm(name="bn2"), y))
        conv3 = self.conv(4 * self.features, (1, 1), name="conv3")
        y = normalised(conv3, self.norm(name="bn3"), y)
        return nn.relu(y + _shortcut(x, y.shape, self.stride, self.conv, self.norm))


def _shortcut(x, shape, stride, conv, norm):
    if x.shape == shape:
        return x
    projection = conv(shape[-1], (1, 1), strides=stride, padding=0, name="downsample_0")
    return normalised(projection, norm(name="downsample_1"), x)
