"""The roofline of a step on a chip whose figures are published (bjax.aot.targets): what it could do at full rate.

A step makes the operations of its products and convolutions (bjax.aot.flops) and moves bytes, as programs do that go
from layer to layer: a convolution or a dense layer reads its input and its weights and writes its output, and in
training does as much twice backward; a normalisation of a layer reads and writes once, in training once more forward
for a batch's statistics, and backward reads what it got and the gradient, twice for a batch's, and writes; the arrays
of the optimiser go in and out. Pooling, sums and attention's scores count for nothing. Its time is the longer of
the two.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from bjax.aot.targets import CHIPS, Chip
from bjax.step.inputs import apply
from bjax.step.state import State

# What JAX calls the chips; not those of a name alike and of other figures, such as cards for PCIe.
KINDS = {
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


def chip(device_kind: str) -> Chip | None:
    """The published figures of what `jax.Device.device_kind` says; None where it is none of them, as of a CPU."""
    return CHIPS.get(KINDS.get(device_kind))


def moved(model: nn.Module, state: State, images: jax.ShapeDtypeStruct, *, train: bool, kept=None) -> int:
    """Bytes that a step of normalised images [B, H, W, 3] moves; state, kept (tokens): arrays or shapes.

    Activations and weights count in the model's type, the optimiser's arrays in their own.
    """
    width = jnp.dtype(model.dtype).itemsize
    total, counted = 0, []

    def count(call, args, kwargs, context):
        nonlocal total
        result, layer = call(*args, **kwargs), context.module
        if context.method_name != "__call__" or any(layer is other for other in counted):  # calls what it inherits
            return result
        counted.append(layer)
        if isinstance(layer, nn.Conv | nn.Dense):
            total += width * (args[0].size + result.size) * (3 if train else 1)
        elif isinstance(layer, nn.BatchNorm):
            total += width * result.size * (8 if train else 0)  # in evaluation it is part of the layer before
        elif isinstance(layer, nn.LayerNorm):
            total += width * result.size * (5 if train else 2)
        return result

    def forward(variables, images, kept):
        options = {"mutable": ["batch_stats"] if train else False, "rngs": {"dropout": jax.random.key(0)}}
        return apply(model, variables, images, kept, train=train, **options)

    with nn.intercept_methods(count):
        jax.eval_shape(forward, state.variables, images, kept)
    weights = sum(width * x.size for x in jax.tree.leaves(state.params))
    if not train:
        return total + weights
    arrays = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((state.params, state.opt_state)))
    return total + 3 * weights + 2 * arrays


def seconds(operations: float, moved: float, chip: Chip, dtype: str) -> float:
    """dtype: of the computation, bfloat16 or float32."""
    rate = chip.bfloat16 if dtype == "bfloat16" else chip.float32
    return max(operations / rate, moved / chip.bandwidth)
