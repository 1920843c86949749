"""The classifiers, by name: `build("resnet50", num_classes=10)` gives a Linen module.

Every model is called as `model.apply(variables, images, train=False)` with normalised `float32[B, H, W, 3]`
images and returns `float32[B, num_classes]` logits. Parameters are float32 whatever `dtype` (the type of the
computation) is; BatchNorm statistics are float32 too, and those of the global batch where it is sharded under
`jax.jit`, or of groups of its images (`norm_group`); a clone with `norm_prior=0.0` takes those of the batch in
evaluation too (`layers.BatchNorm`). Dropout and stochastic depth draw from the "dropout" stream. Images have at least
`smallest` pixels a side (those of the ViT a multiple of its patches'), others are a ValueError.
Two models say more: `vit.ViT` takes `tokens=`, and `googlenet.GoogLeNet` returns `(logits, aux_logits)` in training.
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


def _whole(x: object, most: int = 2**17) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and 1 <= x <= most


def _rate(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x < 1


def _tuple_of(x: object, good: Callable[[object], bool]) -> bool:
    return isinstance(x, tuple | list) and 0 < len(x) <= 32 and all(map(good, x))


# What every option must be, wherever a model has it: (whether it is, in words). The ViT's bounds are its own.
_YES_NO = (lambda x: isinstance(x, bool), "True or False")
_WIDTH = (_whole, "a whole number of at least 1")
_SHARE = (_rate, "a rate in [0, 1)")
_NUMBER = (lambda x: isinstance(x, int | float) and not isinstance(x, bool) and x == x, "a number")
_LAYERS = (lambda x: _tuple_of(x, lambda n: _whole(n, 1000)), "whole numbers of at least 1, such as (3, 4, 6, 3)")
_CHANNELS = (lambda x: _tuple_of(x, lambda stage: _tuple_of(stage, _whole)), "a tuple a stage, such as ((64,), (128,))")
_OF_VIT = {
    "variant": (lambda x: isinstance(x, str), "a size, then /patch size, as in S/16"),
    "representation_size": (lambda x: x is None or _whole(x), "None, or a whole number of at least 1"),
    "evit_keep": _NUMBER,
    "evit_layers": (
        lambda x: x is None or isinstance(x, int) or (isinstance(x, tuple | list) and all(type(n) is int for n in x)),
        "layers from 0 on, such as (3, 6, 9)",
    ),
    "tome_r": (lambda x: _NUMBER[0](x) and x <= 2**31, "a whole number"),
}
_EXPECTED = {
    **dict.fromkeys(("bottleneck", "batch_norm", "aux_heads", "transform_input", "tanh_gelu"), _YES_NO),
    **dict.fromkeys(("hidden", "growth"), _WIDTH),
    **dict.fromkeys(("dropout", "aux_dropout", "drop_path"), _SHARE),
    **_OF_VIT,
}


def build(name: str, *, num_classes: int = 1000, dtype=jnp.float32, norm_group: int = 0, **options) -> nn.Module:
    """The model called `name`, not yet initialised.

    name: a key of `MODELS`.
    num_classes: width of the logits.
    dtype: type of the computation, `float32` or `bfloat16`; parameters and logits are float32 in both.
    norm_group: in training BatchNorm takes its statistics from so many consecutive images; 0: from the whole batch.
    **options: the keyword arguments of that model's constructor, such as `variant="S/16"` of the ViT.

    Raises UserError for a name or an option that is unknown, where the line lists what there is, for an option's value
    that is not of its kind, and for a norm_group where there is no BatchNorm.
    """
    if name not in MODELS:
        raise _unknown("model", name, MODELS)
    constructor = MODELS[name]
    own = {"num_classes", "dtype", "norm_group", "norm_prior", "parent", "name"}
    allowed = inspect.signature(constructor).parameters.keys() - own
    for option in options:
        if option not in allowed:
            raise _unknown(f"option of model {name!r}", option, sorted(allowed))
    expected = _EXPECTED | ({} if name == "vit" else {"width": _WIDTH})
    expected["stages"] = _CHANNELS if name.startswith("vgg") else _LAYERS
    for option, value in options.items():
        good, words = expected.get(option, (lambda x: True, ""))
        if not good(value):
            raise UserError(f"{option}={value!r}: expected {words}")
    model = constructor(num_classes=num_classes, dtype=dtype, **options)
    if not norm_group:
        return model
    if norm_of(model) != "BatchNorm":
        raise UserError(f"{name} has no BatchNorm; leave the group at 0")
    return model.clone(norm_group=norm_group)


def norm_of(model: nn.Module) -> str | None:
    """BatchNorm, LayerNorm, or None of a model without norms."""
    if not hasattr(model, "norm_group"):
        return "LayerNorm"
    return "BatchNorm" if getattr(model, "batch_norm", True) else None


def _unknown(what: str, given: str, known) -> UserError:
    hint = nearest(given, known, cutoff=0.4)
    return UserError(f"unknown {what}: {given!r}; known: {', '.join(known) or 'none'}{hint}")
