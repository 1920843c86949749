"""VGG-19 (Simonyan and Zisserman 2015, arXiv:1409.1556) as torchvision has it, with or without BatchNorm."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from bjax.models.layers import adaptive_average_pool, batch_norm, normalised
from bjax.models.pooling import max_pool


class VGG(nn.Module):
    """Normalised images `[B, H, W, 3]` to logits `float32[B, num_classes]`.

    Layers carry torchvision's numbers ("features_5"), which count activations and pools too. Random
    initialisation is torchvision's: Kaiming normal over the fan-out, normal of deviation 0.01 in the three
    last layers.
    """

    stages: tuple[tuple[int, ...], ...]  # channels of the convolutions of every stage
    batch_norm: bool
    num_classes: int
    hidden: int = 4096
    dropout: float = 0.5
    dtype: jnp.dtype = jnp.float32
    norm_group: int = 0  # images per statistic of BatchNorm; 0: the batch
    norm_prior: float | None = None  # of BatchNorm in evaluation: None, or statistics of the batch, see its prior

    @property
    def smallest(self) -> int:
        """Side of the images, pixels: every stage halves it."""
        return 2 ** len(self.stages)

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        conv = partial(
            nn.Conv,
            kernel_size=(3, 3),
            padding=1,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            dtype=self.dtype,
        )
        norm = batch_norm(self, train)
        dense = partial(nn.Dense, kernel_init=nn.initializers.normal(0.01))
        x = images
        layer = 0
        for stage in self.stages:
            for channels in stage:
                convolution = conv(channels, name=f"features_{layer}")
                if self.batch_norm:
                    x = normalised(convolution, norm(name=f"features_{layer + 1}"), x)
                else:
                    x = convolution(x)
                x = nn.relu(x)
                layer += 3 if self.batch_norm else 2
            x = max_pool(x, 2, 2)
            layer += 1
        # Row, column, channel; torchvision flattens channel, row, column: the import permutes the kernel.
        x = adaptive_average_pool(x, 7).reshape(x.shape[0], -1)
        for name in ("classifier_0", "classifier_3"):
            x = nn.relu(dense(self.hidden, dtype=self.dtype, name=name)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return dense(self.num_classes, dtype=jnp.float32, name="classifier_6")(x)
