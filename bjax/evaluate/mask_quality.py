"""Whether masks drop what is blurred: images with blurred regions, and the patches dropped beside the true map.

Random rectangles of each image are blurred (`bjax.blur.varying.regions`); they lie within it, so its middle is blurred
more often than its border, and a choice by place alone is no neutral one. A patch is blurred where more than half of
its pixels are. Needs no model. (What a condition with blurred parts keeps is told beside its accuracy, image by image,
see `bjax.evaluate.summary`.)
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bjax import tokens
from bjax.blur import varying
from bjax.experiment import Experiment, eval_batches
from bjax.runtime import sharding
from bjax.specs import gaussian_size
from bjax.step.inputs import Batch, image_keys, per_image


def run(exp: Experiment, variables: dict) -> dict[str, dict]:
    """{"mask_quality.json": {σ: {mask: {precision, recall, dropped, blurred, patches}}}}; {} without masks to measure.

    Of all patches of the split: precision, the share of the dropped that are blurred (None where none is dropped);
    recall, the share of the blurred that are dropped; dropped and blurred, their shares. A choice that knows nothing of
    blur has the precision `blurred` and the recall `dropped`.
    """
    del variables  # of a model, which this needs none of
    if not exp.quality:
        return {}
    options = {"masks": tuple(exp.quality.values()), "patch_size": exp.train.patch_size, "mesh": exp.mesh}
    sigmas = exp.config.mask_quality.sigma
    options["kernel_size"] = gaussian_size(max(sigmas))
    counts_of = {sigma: [] for sigma in sigmas}
    for batch in eval_batches(exp, exp.splits[exp.config.mask_quality.split]):
        placed = sharding.put(batch, exp.mesh)
        for sigma, counts in counts_of.items():
            counts.append(count(jax.random.key(0), placed, jnp.float32(sigma), **options))
    results = {}
    for sigma, counts in counts_of.items():
        total = np.sum(jax.device_get(counts), axis=0, dtype=np.float64).tolist()
        results[f"{sigma:g}"] = {name: rates(*row) for name, row in zip(exp.quality, total, strict=True)}
    return {"mask_quality.json": results}


@functools.partial(jax.jit, static_argnames=("masks", "patch_size", "mesh", "kernel_size"))
def count(key: jax.Array, batch: Batch, sigma: jax.Array, *, masks: tuple, patch_size: int, mesh, kernel_size: int):
    """float32[masks, 4]: patches dropped and blurred, dropped, blurred, all, over the images that count."""

    def local(keys, images, sigma):
        region_keys, mask_keys = (jax.vmap(jax.random.fold_in, (0, None))(keys, i) for i in (0, 1))
        images = images.astype(jnp.float32) / 255
        images, sigma_map = varying.regions(region_keys, images, sigma, kernel_size=kernel_size)
        blurred = varying.blurred_patches(sigma_map, patch_size).reshape(len(images), -1)
        truth = varying.per_patch(sigma_map, patch_size)
        keep = [tokens.select(mask_keys, images, mask, patch_size, truth=truth).keep for mask in masks]
        return blurred, jnp.stack(keep, axis=1)

    sigmas = jnp.broadcast_to(sigma, batch["id"].shape)
    blurred, keep = per_image(local, mesh)(image_keys(key, batch["id"]), batch["image"], sigmas)
    counted = jnp.broadcast_to(batch["mask"][:, None, None], keep.shape)
    blurred, dropped = blurred[:, None] & counted, ~keep & counted
    every = jnp.stack([dropped & blurred, dropped, blurred, counted])
    return every.astype(jnp.float32).sum(axis=(1, 3)).T


def rates(both: float, dropped: float, blurred: float, patches: float) -> dict[str, float | int | None]:
    return {
        "precision": both / dropped if dropped else None,
        "recall": both / blurred if blurred else None,
        "dropped": dropped / patches,
        "blurred": blurred / patches,
        "patches": round(patches),
    }
