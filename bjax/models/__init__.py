"""The classifiers, by name: `build("resnet50", num_classes=10)` gives a Linen module.

Every model is called as `model.apply(variables, images, train=False)` with normalised `float32[B, H, W, 3]`
images and returns `float32[B, num_classes]` logits. Parameters are float32 whatever `dtype` (the type of the
computation) is; BatchNorm statistics are float32 too, and those of the global batch where it is sharded under
`jax.jit`. Dropout and stochastic depth draw from the "dropout" stream. Images have at least `smallest` pixels
a side (those of the ViT a multiple of its patches'), others are a ValueError. Two models say more: `vit.ViT`
takes `tokens=`, and `googlenet.GoogLeNet` returns `(logits, aux_logits)` in training.
"""

import inspect
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from bjax.errors import UserError, nearest
from bjax.models.densenet import DenseNet
from bjax.models.googlenet import GoogLeNet
from bjax.models.resnet import ResNet
from bjax.models.vgg import VGG
from bjax.models.vit import vit

_VGG19 = ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4)

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": partial(ResNet, stages=(2, 2, 2, 2), bottleneck=False),
    "resnet34": partial(ResNet, stages=(3, 4, 6, 3), bottleneck=False),
    "resnet50": partial(ResNet, stages=(3, 4, 6, 3), bottleneck=True),
    "resnet101": partial(ResNet, stages=(3, 4, 23, 3), bottleneck=True),
    "resnet152": partial(ResNet, stages=(3, 8, 36, 3), bottleneck=True),
    "vgg19": partial(VGG, stages=_VGG19, batch_norm=False),
    "vgg19_bn": partial(VGG, stages=_VGG19, batch_norm=True),
    "googlenet": GoogLeNet,
    "densenet121": partial(DenseNet, stages=(6, 12, 24, 16)),
    "densenet169": partial(DenseNet, stages=(6, 12, 32, 32)),
    "densenet201": partial(DenseNet, stages=(6, 12, 48, 32)),
    "vit": vit,
}


def build(name: str, *, num_classes: int = 1000, dtype=jnp.float32, **options) -> nn.Module:
    """The model called `name`, not yet initialised.

    name: a key of `MODELS`.
    num_classes: width of the logits.
    dtype: type of the computation, `float32` or `bfloat16`; parameters and logits are float32 in both.
    **options: the keyword arguments of that model's constructor, such as `variant="S/16"` of the ViT.

    Raises UserError for a name or an option that is unknown; the line lists what there is, and the nearest.
    """
    if name not in MODELS:
        raise _unknown("model", name, MODELS)
    constructor = MODELS[name]
    allowed = inspect.signature(constructor).parameters.keys() - {"num_classes", "dtype", "parent", "name"}
    for option in options:
        if option not in allowed:
            raise _unknown(f"option of model {name!r}", option, sorted(allowed))
    return constructor(num_classes=num_classes, dtype=dtype, **options)


def _unknown(what: str, given: str, known) -> UserError:
    hint = nearest(given, known, cutoff=0.4)
    return UserError(f"unknown {what}: {given!r}; known: {', '.join(known) or 'none'}{hint}")
