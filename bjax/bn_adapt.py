"""BatchNorm statistics re-estimated on blurred images, without labels and without training.

Statistics learned on sharp images are wrong for blurred ones. Taking those of blurred images instead is a strong and
free baseline (AdaBN, Li et al. 2016; Schneider et al. 2020): the weights stay, and so do the labels, unseen.
"""

import functools

import jax
import jax.numpy as jnp

from bjax import experiment, sharding
from bjax.data import loader
from bjax.errors import UserError
from bjax.models.norm import MOMENTUM
from bjax.step import Inputs, batch_statistics


def statistics(
    config, exp: experiment.Experiment, mesh, source: loader.Source, variables: dict, inputs: Inputs
):
    """The `batch_stats` of training images that went through `inputs`, a plain mean over batches.

    The images are the first `config.bn_adapt_batches` whole evaluation batches of the training split, cropped as in
    evaluation. Raises UserError for a model without BatchNorm and for a split smaller than one batch.
    """
    if not variables.get("batch_stats"):
        raise UserError(
            f"--mode=bn_adapt: {config.model.name} has no BatchNorm; evaluate it with --mode=eval"
        )
    whole_batches = source.num_examples // config.eval_batch_size
    if not whole_batches:
        raise UserError(
            f"config.eval_batch_size={config.eval_batch_size}: more than the {source.num_examples} images of "
            f"{source.name} {source.split}, which statistics are taken from"
        )
    step = jax.jit(
        functools.partial(batch_statistics, model=exp.model, inputs=inputs, mesh=mesh, momentum=MOMENTUM)
    )
    batches = loader.eval_batches(
        source,
        batch_size=config.eval_batch_size,
        image_size=config.data.image_size,
        resize=config.data.resize,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=config.data.threads,
        on_corrupt="raise",  # a blank image would enter the statistics
    )
    number = min(config.bn_adapt_batches, whole_batches)
    total = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    for _, batch in zip(range(number), batches, strict=False):
        found = step(jax.random.key(0), variables, sharding.put(batch, mesh))
        total = jax.tree.map(lambda t, x: t + x / number, total, found)
    return total
