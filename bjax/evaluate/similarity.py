"""How much of the images' structure a condition's blur leaves: SSIM between each image as it was and as it was blurred.

One axis for blurs whose parameters cannot be compared: a σ, a length, a radius, a severity. SSIM is that of Wang et al.
2004, `dm_pix.ssim`: a Gaussian window of 11 pixels, σ = 1.5, its whole windows alone, the mean over the channels; 1 is
the image as it was. No model is needed. On images of other sizes the same blur has another similarity.
"""

import collections
import functools

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bjax.evaluate.gallery import spread
from bjax.experiment import SEED, Experiment
from bjax.runtime import sharding
from bjax.specs import SIMILARITY_WINDOW
from bjax.step.eval_step import prepare
from bjax.step.inputs import Batch, per_image


def run(exp: Experiment, variables: dict) -> dict[str, dict]:
    """{"similarity.json": {condition: {mean, std, n}}} of the conditions without a mask; {} where not asked for.

    The mean over `config.similarity_images` images spread over the condition's split, or over all where it has fewer,
    blurred as in its evaluation; std, of the n images, with n in its denominator.
    """
    del variables  # of a model, which this needs none of
    if not exp.config.similarity_images:
        return {}
    unmasked = {name: c for name, c in exp.conditions.items() if c.inputs.mask.mode == "none"}
    values, by_split = collections.defaultdict(list), collections.defaultdict(dict)
    for condition in unmasked.values():
        by_split[condition.split][condition.inputs] = None  # conditions that differ in their model alone share one
    for split, asked in by_split.items():
        for batch in spread(exp, split, exp.config.similarity_images):
            placed = sharding.put(batch, exp.mesh)
            for inputs in asked:
                # The evaluation's own program: another would take a second or more to compile, for every condition.
                options = {"inputs": inputs, "objective": exp.objective, "mesh": exp.mesh, "score": True}
                normalised, *_ = prepare(jax.random.key(SEED), placed, **options)
                scale = np.array((inputs.mean, inputs.std), np.float32)
                each, counted = jax.device_get(similarity(placed, normalised, scale, mesh=exp.mesh))
                values[split, inputs].append(each[counted])
    results = {}
    for name, condition in unmasked.items():
        each = np.concatenate(values[condition.split, condition.inputs]).astype(np.float64)
        results[name] = {"mean": float(each.mean()), "std": float(each.std()), "n": len(each)}
    return {"similarity.json": results}


@functools.partial(jax.jit, static_argnames="mesh")
def similarity(batch: Batch, normalised: jax.Array, scale: jax.Array, *, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """The SSIM of each image of the batch with its blurred one, float32[B], and which count, bool[B]; on all devices.

    normalised: blurred images, less the mean and over the deviation that scale has, float32[2, 3], on the 0..1 scale;
    float32[B, H, W, 3], at least `SIMILARITY_WINDOW` pixels a side.
    """

    def local(images, normalised):
        # One at a time: 14 to 29 times as fast on CPUs, and no dozen arrays as large as the batch in the memory.
        pairs = images.astype(jnp.float32) / 255, normalised * scale[1] + scale[0]
        return jax.lax.map(lambda pair: dm_pix.ssim(*pair, max_val=1.0, filter_size=SIMILARITY_WINDOW), pairs)

    values = per_image(local, mesh)(batch["image"], normalised)
    return jax.lax.with_sharding_constraint((values, batch["mask"]), NamedSharding(mesh, PartitionSpec()))
