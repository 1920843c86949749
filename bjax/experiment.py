"""One config -> everything that a run is made of, handed on as one object to training, evaluation and prediction.

Constructors find what `config.validate` cannot know (unknown selectors, model options, sizes); their one-line
ValueErrors become UserErrors here that begin with the config key.
"""

import dataclasses
import functools
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bjax import models, published, weights
from bjax.blur.sample import KINDS, BlurSpec
from bjax.config import check_devices
from bjax.data import known, loader
from bjax.data.loader import Source
from bjax.errors import UserError, nearest
from bjax.models.vit import TOKEN_OPTIONS
from bjax.runtime import checkpoint, distributed, memory, sharding
from bjax.specs import CORRUPTIONS, AugMix, Data
from bjax.step import losses, optim, state
from bjax.step.inputs import Inputs
from bjax.step.losses import Objective
from bjax.step.state import State
from bjax.tokens import MaskSpec

# Of every evaluation, so that runs and conditions blur an image alike: differences between them are then paired.
SEED = 0
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
    config: ConfigDict  # of the sizes and numbers that are read where they are used
    source: Source | None = None  # the training split
    splits: dict[str, Source] = dataclasses.field(default_factory=dict)  # of conditions and mask_quality
    mesh: Mesh | None = None

    @property
    def data(self) -> Data:
        return Data(**self.config.data)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the model's classes, in their order."""
        return KINDS if self.config.task == "blur_type" else self.source.class_names


def build(config, num_classes: int | None = None) -> Experiment:
    """The experiment of `config`, as `bjax.config.load` returns it, with its splits open and the mesh of its devices.

    num_classes: of the dataset (task=blur_type has its own four). Where it is given, no dataset is opened and no device
    touched: the experiment has neither source, splits nor mesh. Raises UserError for whatever the user can mend.
    """
    if num_classes is not None:
        return _described(config, len(KINDS) if config.task == "blur_type" else num_classes)
    source = _open_split(config, config.data.train, "data.train")
    exp = build(config, source.num_classes)
    if source.labels:
        exp = _among_known(exp, source)
    splits = _open_splits(exp)
    check_devices(config, jax.device_count())
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    return dataclasses.replace(exp, source=source, splits=splits, mesh=mesh)


def _among_known(exp: Experiment, source: Source) -> Experiment:
    """Where the dataset's classes are some of those that the model keeps logits for; tells people."""
    only, name = exp.config.data.only_known_classes, exp.config.init_from
    if jax.process_index() == 0:
        compete = "their logits alone" if only else f"all {source.num_classes:,} logits"
        flag = f"config.data.only_known_classes={str(only).lower()}"
        print(f"{source.name} has {len(source.labels):,} of the classes of {name}: {compete} compete ({flag})")
    present = tuple(sorted(source.labels)) if only else ()
    return dataclasses.replace(exp, objective=dataclasses.replace(exp.objective, present=present))


def _known_classes(config) -> tuple[str, ...] | None:
    """The classes that the run's logits are of where it keeps the head of weights by name; None: the dataset's."""
    keeps = config.task == "object" and not config.init_new_head and published.find(config.init_from)
    if config.data.only_known_classes and not keeps:
        way = (
            "name weights that know ImageNet's, such as --config.init_from=torchvision:resnet50, without init_new_head"
        )
        raise UserError(f"config.data.only_known_classes=true: a head of the dataset's classes knows no others; {way}")
    return known.imagenet() if keeps else None


def _described(config, num_classes: int) -> Experiment:
    """What a config alone decides of an experiment."""
    name = config.model.name
    if name not in models.MODELS:
        hint = nearest(name, models.MODELS)
        raise UserError(f"config.model.name={name}: expected one of {', '.join(models.MODELS)}{hint}")
    published.named(config)
    model = _model(config, num_classes, "model")
    size, smallest = config.data.image_size, getattr(model, "smallest", 1)
    if size < smallest:
        raise UserError(f"config.data.image_size={size}: {name} needs at least {smallest} pixels a side")
    train = _inputs(config, "", config, model)
    if config.augmix.width:
        train = dataclasses.replace(train, augmix=AugMix(**config.augmix), views=3 if config.loss.jsd else 1)
    if train.mask.mode == "bucket":
        raise UserError(
            "config.mask.mode=bucket: for evaluation only, its batches follow what the images keep; "
            "train with gather and a keep_rate, or with attend"
        )
    how = {"accumulate": config.optim.accumulate, "ema": config.optim.ema}
    how["skip_nonfinite"] = config.nonfinite == "skip"
    objective = Objective(config.task, num_classes, **how, **config.loss)
    if objective.task == "object" and objective.parameters:
        raise UserError(
            f"config.loss.parameters={objective.parameters:g}: the blur's parameters are learned with "
            "task=blur_type; set it to 0"
        )
    if objective.task == "blur_type" and (objective.mixup or objective.cutmix):
        way = "set config.loss.mixup and config.loss.cutmix to 0"
        raise UserError(f"config.task=blur_type: mixing images hides their blur; {way}")
    conditions = {name: _condition(config, num_classes, name) for name in _wanted(config)}
    return Experiment(model, objective, train, conditions, _quality(config, model), config)


def _model(config, num_classes: int, key: str, more=()) -> nn.Module:
    """The model with the options of a condition, `more`, beside its own; key: of the config, for messages."""
    outputs = num_classes + (losses.PARAMETERS if config.loss.parameters else 0)
    options = {"num_classes": outputs, "dtype": jnp.dtype(config.dtype), **config.model.options, **dict(more)}
    build = functools.partial(models.build, config.model.name, **options)
    model, group = _named(f"{key}.options", build), config.norm.group
    return _named(f"norm.group={group}", lambda: build(norm_group=group)) if group else model


def _inputs(config, key: str, node: ConfigDict, model, corruption=None) -> Inputs:
    """Of the blur and the mask of `node`; key: of the config that it stands under, with a dot at its end."""
    blur = _named(f"{key}blur", lambda: BlurSpec(**node.blur.to_dict()))
    mask = _named(f"{key}mask", lambda: MaskSpec(**node.mask))
    mode = f"config.{key}mask.mode={mask.mode}"
    if not hasattr(model, "patch_size") and mask.mode not in ("none", "zero_pixels"):
        raise UserError(f"{mode}: {config.model.name} has no tokens; use zero_pixels")
    some_masked = mask.mode in ("attend", "bucket") or (mask.mode == "gather" and mask.threshold is not None)
    if getattr(model, "reduces", False) and some_masked:
        raise UserError(
            f"{mode}: evit_keep, tome_r and highpass_keep need tokens that all count; with them use zero_pixels, "
            "zero_tokens, or gather at a keep_rate alone"
        )
    patch = _patch_size(config, mask, model)
    normalize = config.normalize.mean, config.normalize.std
    return Inputs(blur, mask, patch, *normalize, corruption, quantize=config.task == "blur_type")


def _patch_size(config, mask: MaskSpec, model) -> int:
    """The side of the patches that a mask leaves out. Raises UserError where they do not tile the images."""
    size, patch = config.data.image_size, getattr(model, "patch_size", CNN_PATCH)
    if size % patch and (hasattr(model, "patch_size") or mask.mode != "none"):
        fits = size // patch * patch
        raise UserError(
            f"config.data.image_size={size}: not divisible by the patch size {patch}; "
            f"use {fits or patch} or {fits + patch}"
        )
    return patch


def _wanted(config) -> list[str]:
    """The names of the conditions to evaluate, in the config's order."""
    wanted = [name.strip() for name in config.eval_only.split(",") if name.strip()] or list(config.eval)
    for name in wanted:
        if name not in config.eval:
            known = ", ".join(config.eval)
            raise UserError(f"config.eval_only={config.eval_only}: no condition {name}; there are {known}")
    return [name for name in config.eval if name in wanted]


def _condition(config, num_classes: int, name: str) -> Condition:
    c = config.eval[name]
    other = sorted(set(c.options) - set(TOKEN_OPTIONS))
    if other:
        raise UserError(
            f"config.eval.{name}.options.{other[0]}: the weights are the run's; a condition may change only "
            f"{', '.join(TOKEN_OPTIONS)} of the ViT"
        )
    model = _model(config, num_classes, f"eval.{name}", c.options)
    inputs = _inputs(config, f"eval.{name}.", c, model, _corruption(config, name, c))
    return Condition(c.split, inputs, model, c.bn_adapt)


def _quality(config, model) -> dict[str, MaskSpec]:
    masks = {}
    for name, mask in config.mask_quality.masks.items():
        masks[name] = _named(f"mask_quality.masks.{name}", functools.partial(MaskSpec, **mask))
        _patch_size(config, masks[name], model)
    sigmas = config.mask_quality.sigma
    if masks and not (sigmas and all(0 < sigma < math.inf for sigma in sigmas)):
        given, expected = ",".join(f"{s:g}" for s in sigmas), "standard deviations in pixels, more than 0"
        raise UserError(f"config.mask_quality.sigma={given}: expected {expected}, such as 1,2,4")
    return masks


def _corruption(config, name: str, condition) -> tuple[str, int] | None:
    """ImageNet-C's blur of a condition, which stands in the place of a drawn one."""
    if not condition.corruption:
        return None
    key = f"config.eval.{name}.corruption={condition.corruption}"
    if condition.corruption not in CORRUPTIONS:
        hint = nearest(condition.corruption, CORRUPTIONS)
        raise UserError(f"{key}: expected one of {', '.join(CORRUPTIONS)}{hint}")
    if condition.severity not in range(1, 6):
        raise UserError(f"config.eval.{name}.severity={condition.severity}: expected 1 to 5")
    if config.task == "blur_type":
        why = "no kind of blur that the model could name"
        raise UserError(f"{key}: {why}; leave it empty for task=blur_type")
    if condition.blur.kinds.sharp != 1:
        raise UserError(f"{key}: takes the place of a blur; leave config.eval.{name}.blur sharp")
    if config.data.image_size < 32:
        raise UserError(f"{key}: needs images of at least 32 px; raise config.data.image_size")
    return condition.corruption, condition.severity


def _open_split(config, split: str, key: str) -> Source:
    """key: of the config that names the split. Raises UserError where it does not exist or lacks the task's labels."""
    source = loader.open_split(config.data.name, split, data_dir=config.data.data_dir)
    classes = _known_classes(config)
    if classes and source.class_names != classes:
        source = known.among(source, classes)
    return loader.with_labels(source, f"config.{key}={split}") if config.task == "object" else source


def _open_splits(exp: Experiment) -> dict[str, Source]:
    """The splits that the conditions and mask_quality name.

    Raises UserError as `_open_split` does, and for a condition that several processes cannot evaluate.
    """
    config, splits = exp.config, {}
    for name, condition in exp.conditions.items():
        if condition.split not in splits:
            splits[condition.split] = _open_split(config, condition.split, f"eval.{name}.split")
        if condition.inputs.mask.mode == "bucket" and jax.process_count() > 1:
            why = "evaluates in one process; use attend, or gather with a keep_rate"
            raise UserError(f"config.eval.{name}.mask.mode=bucket: {why}")
    split = config.mask_quality.split
    if exp.quality and split not in splits:
        splits[split] = loader.open_split(config.data.name, split, data_dir=config.data.data_dir)
    return splits


def train_batches(exp: Experiment, start_step: int, num_steps: int) -> Iterator[dict[str, np.ndarray]]:
    """The batches of the training split from `start_step` on, as far as this process holds them."""
    return loader.train_batches(
        exp.source,
        exp.data,
        seed=exp.config.seed,
        batch_size=exp.config.batch_size,
        steps=(start_step, num_steps),
        process=(jax.process_index(), jax.process_count()),
    )


def eval_batches(exp: Experiment, source: Source) -> Iterator[dict[str, np.ndarray]]:
    """The batches of `source` as every evaluation reads them, as far as this process holds them.

    Raises `distributed.Stopped` instead of the next batch when the process is told to stop.
    """
    size, process = exp.config.eval_batch_size, (jax.process_index(), jax.process_count())
    for batch in loader.eval_batches(source, exp.data, batch_size=size, process=process):
        if distributed.stopping():
            raise distributed.Stopped("told to stop during an evaluation; the same command evaluates again")
        yield batch


def state_of(exp: Experiment, steps: int) -> tuple[optax.GradientTransformation, Callable, State, State]:
    """What decides a run's state: its optimiser, `init(key)`, and the state's shapes and shardings."""
    config = exp.config
    tx = optim.build(config.optim, steps)
    size, ema = config.data.image_size, config.optim.ema > 0
    init = functools.partial(state.init, model=exp.model, tx=tx, image_size=size, ema=ema)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return tx, init, shapes, sharding.plan(shapes, exp.mesh, config.mesh.rules)


def variables_of(exp: Experiment, workdir: Path) -> tuple[str, dict]:
    """The variables of the newest checkpoint in `workdir`, or, where there is none, of the file `config.init_from`.

    The first value says which, for people. Raises UserError where they do not fit the config, and where a training that
    began with the file has no checkpoint yet: its weights are others.
    """
    _, _, shapes, plan = state_of(exp, 1)
    if checkpoint.exists(workdir / "checkpoints"):
        memory.check_state(exp.config, exp.mesh, shapes, memory.RESTORED)
        with checkpoint.manager(workdir / "checkpoints", read_only=True) as manager:
            restored = checkpoint.restore(manager, shapes, plan)
        return f"{workdir}, step {int(restored.step)}", restored.variables
    if (workdir / "metrics.jsonl").exists():
        raise UserError(
            f"--workdir={workdir}: holds a training without a checkpoint yet; go on with it, or name an empty "
            f"--workdir to evaluate {exp.config.init_from}"
        )
    memory.check_state(exp.config, exp.mesh, shapes, memory.WEIGHTS)
    variables = weights_of(exp.config, shapes)
    return exp.config.init_from, jax.device_put(variables, {k: getattr(plan, k) for k in variables})


def weights_of(config, shapes: State) -> dict:
    """The variables of the file or the name `config.init_from`, fitted to a state of `shapes`; touches no device."""
    like = {"params": shapes.params, "batch_stats": shapes.batch_stats}
    like = {k: v for k, v in like.items() if v}
    note = functools.partial(print, file=sys.stderr) if jax.process_index() == 0 else lambda line: None
    if (given := published.named(config)) and (line := published.advice(given, config)):
        note(line)
    return weights.load(config.model.name, config.init_from, like=like, new_head=config.init_new_head, note=note)


def _named(key: str, construct):
    """`construct()`, with its "field=value: …" ValueError told as "config.KEY.field=value: …"."""
    try:
        return construct()
    except ValueError as e:
        separator = "." if re.match(r"\w+(=|:)", str(e)) else ": "
        raise UserError(f"config.{key}{separator}{e}") from None
