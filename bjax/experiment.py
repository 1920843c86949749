"""One config -> the model, the inputs of every condition, the objective, for training, evaluation and prediction.

Constructors find what `config.validate` cannot know (unknown selectors, model options, sizes); their one-line
ValueErrors become UserErrors here that begin with the config key. Nothing here touches a device.
"""

import dataclasses
import difflib
import functools
import math
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import linen as nn

from bjax import distributed, losses, models, weights
from bjax.blur import imagenet_c
from bjax.blur.sample import KINDS, BlurSpec
from bjax.data import loader
from bjax.errors import UserError
from bjax.models.vit import TOKEN_OPTIONS
from bjax.step import Inputs, Objective
from bjax.tokens import MaskSpec

CNN_PATCH = 16  # patch grid of zero_pixels for models without patches of their own; that of a ViT-*/16


@dataclasses.dataclass(frozen=True)
class Condition:
    """One row of the results."""

    split: str
    inputs: Inputs
    model: nn.Module  # the run's weights; may leave out or merge tokens by itself
    bn_adapt: bool = False  # BatchNorm statistics of training images that go through `inputs`


@dataclasses.dataclass(frozen=True)
class Experiment:
    model: nn.Module
    objective: Objective
    train: Inputs
    conditions: dict[str, Condition]
    quality: dict[str, MaskSpec]  # masks whose choice is compared with where blur is


def build(config, num_classes: int) -> Experiment:
    """config: as `bjax.config.load` returns it. num_classes: of the dataset (task=blur_type has its own four)."""
    num_classes = len(KINDS) if config.task == "blur_type" else num_classes
    outputs = num_classes + (losses.PARAMETERS if config.loss.parameters else 0)

    def build_model(key: str, options) -> nn.Module:
        dtype = jnp.dtype(config.dtype)
        return _named(
            f"{key}.options",
            lambda: models.build(config.model.name, num_classes=outputs, dtype=dtype, **options),
        )

    if config.model.name not in models.MODELS:
        near = difflib.get_close_matches(config.model.name, models.MODELS, n=1)
        raise UserError(
            f"config.model.name={config.model.name}: expected one of {', '.join(models.MODELS)}"
            + (f" (did you mean {near[0]}?)" if near else "")
        )
    model = build_model("model", config.model.options)
    own_patch = getattr(model, "patch_size", None)
    patch = own_patch or CNN_PATCH

    size, smallest = config.data.image_size, getattr(model, "smallest", 1)
    if size < smallest:
        raise UserError(
            f"config.data.image_size={size}: {config.model.name} needs at least {smallest} pixels a side"
        )

    def check_size(mask: MaskSpec) -> None:
        if size % patch and (own_patch or mask.mode != "none"):
            fits = size // patch * patch
            raise UserError(
                f"config.data.image_size={size}: not divisible by the patch size {patch}; "
                f"use {fits or patch} or {fits + patch}"
            )

    def inputs(key: str, blur, mask, model, corruption=None) -> Inputs:
        blur = _named(f"{key}blur", lambda: BlurSpec(**blur.to_dict()))
        mask = _named(f"{key}mask", lambda: MaskSpec(**mask))
        if own_patch is None and mask.mode not in ("none", "zero_pixels"):
            raise UserError(
                f"config.{key}mask.mode={mask.mode}: {config.model.name} has no tokens; use zero_pixels"
            )
        if getattr(model, "reduces", False) and (
            mask.mode in ("attend", "bucket") or (mask.mode == "gather" and mask.threshold is not None)
        ):
            raise UserError(
                f"config.{key}mask.mode={mask.mode}: evit_keep and tome_r need tokens that all count; with them use "
                "zero_pixels, zero_tokens, or gather at a keep_rate alone"
            )
        check_size(mask)
        return Inputs(
            blur,
            mask,
            patch,
            config.normalize.mean,
            config.normalize.std,
            corruption,
            quantize=config.task == "blur_type",
        )

    train = inputs("", config.blur, config.mask, model)
    if train.mask.mode == "bucket":
        raise UserError(
            "config.mask.mode=bucket: for evaluation only, its batches follow what the images keep; "
            "train with gather and a keep_rate, or with attend"
        )
    if config.task == "object" and config.loss.parameters:
        raise UserError(
            f"config.loss.parameters={config.loss.parameters:g}: the blur's parameters are learned with "
            "task=blur_type; set it to 0"
        )
    if config.task == "blur_type" and (config.loss.mixup or config.loss.cutmix):
        raise UserError(
            "config.task=blur_type: mixing images hides their blur; set config.loss.mixup and config.loss.cutmix to 0"
        )
    if config.dead_leaves and config.task != "blur_type":
        raise UserError(
            f"config.dead_leaves={config.dead_leaves}: generated images show no object; for config.task=blur_type only"
        )
    wanted = [name.strip() for name in config.eval_only.split(",") if name.strip()] or list(config.eval)
    for name in wanted:
        if name not in config.eval:
            raise UserError(
                f"config.eval_only={config.eval_only}: no condition {name}; there are {', '.join(config.eval)}"
            )
    conditions = {}
    for name, c in config.eval.items():
        if name not in wanted:
            continue
        other = sorted(set(c.options) - set(TOKEN_OPTIONS))
        if other:
            raise UserError(
                f"config.eval.{name}.options.{other[0]}: the weights are the run's; a condition may change only "
                f"{', '.join(TOKEN_OPTIONS)} of the ViT"
            )
        own_model = build_model(f"eval.{name}", {**config.model.options, **c.options})
        corruption = _corruption(config, name, c)
        own_inputs = inputs(f"eval.{name}.", c.blur, c.mask, own_model, corruption)
        conditions[name] = Condition(c.split, own_inputs, own_model, c.bn_adapt)
    objective = Objective(
        task=config.task,
        num_classes=num_classes,
        accumulate=config.optim.accumulate,
        ema=config.optim.ema,
        dead_leaves=config.dead_leaves,
        dead_leaves_steps=config.dead_leaves_steps,
        **config.loss,
    )
    quality = {}
    for name, mask in config.mask_quality.masks.items():
        quality[name] = _named(f"mask_quality.masks.{name}", functools.partial(MaskSpec, **mask))
        check_size(quality[name])
    sigmas = config.mask_quality.sigma
    if quality and not (sigmas and all(0 < sigma < math.inf for sigma in sigmas)):
        raise UserError(
            f"config.mask_quality.sigma={','.join(f'{s:g}' for s in sigmas)}: expected standard deviations in pixels, "
            "more than 0, such as 1,2,4"
        )
    return Experiment(model, objective, train, conditions, quality)


def _corruption(config, name: str, condition) -> tuple[str, int] | None:
    """ImageNet-C's blur of a condition, which stands in the place of a drawn one."""
    if not condition.corruption:
        return None
    key = f"config.eval.{name}.corruption={condition.corruption}"
    if condition.corruption not in imagenet_c.NAMES:
        near = difflib.get_close_matches(condition.corruption, imagenet_c.NAMES, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"{key}: expected one of {', '.join(imagenet_c.NAMES)}{hint}")
    if condition.severity not in range(1, 6):
        raise UserError(f"config.eval.{name}.severity={condition.severity}: expected 1 to 5")
    if config.task == "blur_type":
        raise UserError(
            f"{key}: no kind of blur that the model could name; leave it empty for task=blur_type"
        )
    if condition.blur.kinds.sharp != 1:
        raise UserError(f"{key}: takes the place of a blur; leave config.eval.{name}.blur sharp")
    if config.data.image_size < 32:
        raise UserError(f"{key}: needs images of at least 32 px; raise config.data.image_size")
    return condition.corruption, condition.severity


def eval_batches(config, source: loader.Source, **options):
    """The batches of `source` as every evaluation of `config` reads them: `loader.eval_batches`, for this process.

    Raises `distributed.Stopped` instead of the next batch when the process is told to stop.
    """
    batches = loader.eval_batches(
        source,
        **{
            "batch_size": config.eval_batch_size,
            "image_size": config.data.image_size,
            "resize": config.data.resize,
            "interpolation": config.data.interpolation,
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
            "threads": config.data.threads,
            "prefetch": config.data.prefetch,
            "on_corrupt": config.data.on_corrupt,
            **options,
        },
    )
    for batch in batches:
        if distributed.stopping():
            raise distributed.Stopped("told to stop during an evaluation; the same command evaluates again")
        yield batch


def weights_of(config, shapes) -> dict:
    """The variables in the file `config.init_from`, fitted to a state of `shapes`; touches no device."""
    like = {"params": shapes.params, "batch_stats": shapes.batch_stats}
    like = {k: v for k, v in like.items() if v}
    note = print if jax.process_index() == 0 else lambda line: None
    path = Path(config.init_from).expanduser()
    return weights.load(config.model.name, path, like=like, new_head=config.init_new_head, note=note)


def keep_compiled() -> None:
    """Keeps compiled programs between processes: a repeated command starts in seconds. JAX's own variable wins."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "bjax" / "xla"))


def _named(key: str, construct):
    """`construct()`, with its "field=value: …" ValueError told as "config.KEY.field=value: …"."""
    try:
        return construct()
    except ValueError as e:
        separator = "." if re.match(r"\w+(=|:)", str(e)) else ": "
        raise UserError(f"config.{key}{separator}{e}") from None
