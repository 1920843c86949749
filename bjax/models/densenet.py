"""DenseNet-BC (Huang et al. 2017, arXiv:1608.06993) as torchvision has it."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from bjax.models.layers import batch_norm, global_average, normalised
from bjax.models.pooling import max_pool


class DenseNet(nn.Module):
    """Normalised images `[B, H, W, 3]` to logits `float32[B, num_classes]`.

    Random initialisation is torchvision's, Kaiming normal over the fan-in; the bias starts at zero.
    """

    stages: tuple[int, ...]  # layers per dense block
    num_classes: int
    growth: int = 32  # channels that a layer adds
    width: int = 64  # channels of the stem
    dropout: float = 0.0  # after every layer
    dtype: jnp.dtype = jnp.float32
    norm_group: int = 0  # images per statistic of BatchNorm; 0: the batch
    norm_prior: float | None = None  # of BatchNorm in evaluation: None, or statistics of the batch, see its prior

    @property
    def smallest(self) -> int:
        """Side of the images, pixels: two halvings that round up, and one that rounds down after every block
        but the last."""
        return 4 * 2 ** (len(self.stages) - 1) - 3

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        conv = partial(
            nn.Conv,
            use_bias=False,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_in", "normal"),
            dtype=self.dtype,
        )
        norm = batch_norm(self, train)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        stem = conv(self.width, (7, 7), strides=2, padding=3, name="conv0")
        x = nn.relu(normalised(stem, norm(name="norm0"), images))
        x = max_pool(x, 3, 2, padding=1)
        for i, layers in enumerate(self.stages, start=1):
            for j in range(1, layers + 1):
                y = DenseLayer(self.growth, conv, norm, name=f"denseblock{i}_denselayer{j}")(x)
                x = jnp.concatenate([x, drop(y)], axis=-1)
            if i < len(self.stages):
                x = nn.relu(norm(name=f"transition{i}_norm")(x))
                x = conv(x.shape[-1] // 2, (1, 1), name=f"transition{i}_conv")(x)
                x = nn.avg_pool(x, (2, 2), (2, 2))
        x = nn.relu(norm(name="norm5")(x))
        x = global_average(x)
        kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        return nn.Dense(self.num_classes, kernel_init=kernel_init, name="classifier")(x)


class DenseLayer(nn.Module):
    """The channels that a layer adds, by way of a bottleneck of four times as many."""

    growth: int
    conv: Callable
    norm: Callable

    @nn.compact
    def __call__(self, x):
        x = nn.relu(self.norm(name="norm1")(x))
        bottleneck = self.conv(4 * self.growth, (1, 1), name="conv1")
        x = nn.relu(normalised(bottleneck, self.norm(name="norm2"), x))
        return self.conv(self.growth, (3, 3), padding=1, name="conv2")(x)
