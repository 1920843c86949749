"""GoogLeNet (Szegedy et al. 2015, arXiv:1409.4842) as torchvision has it.

That is with BatchNorm (eps 1e-3), 3x3 convolutions in the paper's 5x5 branch, and pools that round up.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from bjax.models.layers import adaptive_average_pool, batch_norm, global_average, normalised
from bjax.models.pooling import max_pool

# 1x1, 3x3 reduction, 3x3, "5x5" reduction, "5x5", pool projection
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class GoogLeNet(nn.Module):
    """Normalised images `[B, H, W, 3]` to logits `float32[B, num_classes]`.

    In training with `aux_heads` it returns `(logits, (aux1, aux2))`, three arrays of that shape: the losses
    of the auxiliary heads, which sit after inception 4a and 4d, are added with a weight of 0.3 each. In
    evaluation they are not computed.

    `transform_input` moves images normalised by ImageNet's mean and deviation to those of the published
    weights, 0.5 and 0.5. torchvision turns it on with its weights only; here it is on by default, so that
    there is one function, and from scratch it is one more fixed normalisation.

    Random initialisation is torchvision's, normal of deviation 0.01 (it truncates at ±2, 200 deviations
    away); biases start at zero.
    """

    num_classes: int
    aux_heads: bool = True
    transform_input: bool = True
    dropout: float = 0.2
    aux_dropout: float = 0.7
    dtype: jnp.dtype = jnp.float32
    norm_group: int = 0  # images per statistic of BatchNorm; 0: the batch
    norm_prior: float | None = None  # of BatchNorm in evaluation: None, or statistics of the batch, see its prior
    smallest = 15  # side of the images, pixels: a pool of 3 by 3 that rounds up needs two

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        kernel_init = nn.initializers.normal(0.01)
        conv = partial(
            ConvNorm,
            conv=partial(nn.Conv, use_bias=False, kernel_init=kernel_init, dtype=self.dtype),
            norm=batch_norm(self, train, epsilon=1e-3),
        )
        dense = partial(nn.Dense, kernel_init=kernel_init)
        aux_head = partial(AuxHead, self.num_classes, self.aux_dropout, conv, dense, dtype=self.dtype, train=train)
        with_aux = self.aux_heads and (train or self.is_initializing())
        aux_logits = []

        x = images
        if self.transform_input:
            mean, std = jnp.array([0.485, 0.456, 0.406]), jnp.array([0.229, 0.224, 0.225])
            x = x * (std / 0.5) + (mean - 0.5) / 0.5
        x = conv(64, 7, stride=2, name="conv1")(x)
        x = max_pool(x, 3, 2, ceil=True)
        x = conv(64, 1, name="conv2")(x)
        x = conv(192, 3, name="conv3")(x)
        x = max_pool(x, 3, 2, ceil=True)
        for name, channels in INCEPTIONS.items():
            x = Inception(channels, conv, name=f"inception{name}")(x)
            if name == "3b":
                x = max_pool(x, 3, 2, ceil=True)
            if name == "4e":
                x = max_pool(x, 2, 2, ceil=True)
            if name in ("4a", "4d") and with_aux:
                aux_logits.append(aux_head(name=f"aux{len(aux_logits) + 1}")(x))
        x = global_average(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        logits = dense(self.num_classes, name="fc")(x)
        return (logits, tuple(aux_logits)) if train and self.aux_heads else logits


class ConvNorm(nn.Module):
    """Convolution that keeps the size up to the stride, BatchNorm, ReLU."""

    features: int
    kernel_size: int
    conv: Callable
    norm: Callable
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        size, padding = (self.kernel_size, self.kernel_size), self.kernel_size // 2
        conv = self.conv(self.features, size, strides=self.stride, padding=padding, name="conv")
        return nn.relu(normalised(conv, self.norm(name="bn"), x))


class Inception(nn.Module):
    """Four branches side by side, concatenated along the channels."""

    channels: tuple[int, ...]
    conv: Callable

    @nn.compact
    def __call__(self, x):
        ch1x1, ch3x3_reduce, ch3x3, ch5x5_reduce, ch5x5, pool = self.channels
        branch1 = self.conv(ch1x1, 1, name="branch1")(x)
        branch2 = self.conv(ch3x3_reduce, 1, name="branch2_0")(x)
        branch2 = self.conv(ch3x3, 3, name="branch2_1")(branch2)
        branch3 = self.conv(ch5x5_reduce, 1, name="branch3_0")(x)
        branch3 = self.conv(ch5x5, 3, name="branch3_1")(branch3)
        branch4 = self.conv(pool, 1, name="branch4_1")(max_pool(x, 3, 1, padding=1))
        return jnp.concatenate([branch1, branch2, branch3, branch4], axis=-1)


class AuxHead(nn.Module):
    """A small classifier on a feature map in the middle of the network."""

    num_classes: int
    dropout: float
    conv: Callable
    dense: Callable
    dtype: jnp.dtype
    train: bool

    @nn.compact
    def __call__(self, x):
        x = self.conv(128, 1, name="conv")(adaptive_average_pool(x, 4))
        # Row, column, channel; torchvision flattens channel, row, column: the import permutes fc1's kernel.
        x = nn.relu(self.dense(1024, dtype=self.dtype, name="fc1")(x.reshape(len(x), -1)))
        x = nn.Dropout(self.dropout, deterministic=not self.train)(x)
        return self.dense(self.num_classes, dtype=jnp.float32, name="fc2")(x)
