"""BatchNorm statistics re-estimated on blurred images, without labels and without training.

Statistics learned on sharp images are wrong for blurred ones. Taking those of blurred images instead is a strong and
free baseline (AdaBN, Li et al. 2016; Schneider et al. 2020): the weights stay, and so do the labels, unseen.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bjax.data.loader import Source
from bjax.errors import UserError
from bjax.experiment import Experiment, eval_batches
from bjax.models.layers import MOMENTUM
from bjax.runtime import sharding
from bjax.step.eval_step import batch_statistics
from bjax.step.inputs import Inputs


def check(exp: Experiment, batch_stats) -> None:
    """Raises UserError where a condition adapts a model without BatchNorm, or from less than one batch of images."""
    name = next((name for name, condition in exp.conditions.items() if condition.bn_adapt), None)
    if name is None:
        return
    if not batch_stats:
        raise UserError(
            f"config.eval.{name}.bn_adapt=true: {exp.config.model.name} has no BatchNorm; set it to false, or evaluate "
            "with --mode=eval"
        )
    others = ",".join(name for name, condition in exp.conditions.items() if not condition.bn_adapt)
    check_sizes(exp, f"--config.eval_only={others}" if others else "")


def check_sizes(exp: Experiment, without: str) -> None:
    """Raises UserError where training images give no batch to take statistics from. without: flags that need none."""
    number, size, group = exp.source.num_examples, exp.config.eval_batch_size, exp.config.norm.group
    if group and size % group:
        raise UserError(
            f"config.eval_batch_size={size}: bn_adapt takes statistics as in training, of groups; use a multiple of "
            f"config.norm.group={group}"
        )
    if number < size:
        way = f"; or leave it out: {without}" if without else ""
        raise UserError(
            f"config.eval_batch_size={size}: more than the {number} images of {exp.source.name} {exp.source.split}, "
            f"which bn_adapt takes statistics from; use at most {number}{way}"
        )


def statistics(exp: Experiment, variables: dict, inputs: Inputs) -> dict:
    """The `batch_stats` of training images that went through `inputs`, a plain mean over batches.

    The images are the first `config.bn_adapt_batches` whole evaluation batches of the training split, cropped as in
    evaluation; each batch is taken in the groups of training (`config.norm.group`). In the place of an image that
    on_corrupt=skip leaves out, another one of its batch counts twice.
    Raises UserError where a batch has no image that could be decoded.
    """
    options = {"model": exp.model, "inputs": inputs, "mesh": exp.mesh, "momentum": MOMENTUM}
    step = jax.jit(functools.partial(batch_statistics, **options))
    batches = eval_batches(exp, exp.source)
    number = batches_of(exp)
    total = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    for _, batch in zip(range(number), batches, strict=False):
        batch_stats = step(jax.random.key(0), variables, sharding.put(_whole(batch, exp.source), exp.mesh))
        total = jax.tree.map(lambda t, x: t + x / number, total, batch_stats)
    return total


def batches_of(exp: Experiment) -> int:
    """How many batches `statistics` takes."""
    return min(exp.config.bn_adapt_batches, exp.source.num_examples // exp.config.eval_batch_size)


def _whole(batch: dict[str, np.ndarray], source: Source) -> dict[str, np.ndarray]:
    """The batch with its blank rows replaced: they would enter the statistics."""
    good = np.flatnonzero(batch["mask"])
    if not len(good):
        raise UserError(
            f"{source.name} {source.split}: none of the {len(batch['mask'])} images of a batch that bn_adapt takes "
            "statistics from could be decoded; prepare the data set again"
        )
    rows = np.where(batch["mask"], np.arange(len(batch["mask"])), np.resize(good, len(batch["mask"])))
    return {name: values[rows] for name, values in batch.items()}
