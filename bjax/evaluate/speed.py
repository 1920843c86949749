"""How many images per second every condition classifies, measured on the machine that evaluates.

Timed is what a classifier in use would do: uint8 images on the device -> scores and mask -> normalise -> model. The
blur of a condition is not part of it: it stands for the camera's. All conditions run interleaved, A B C A B C, and
each gets the median of its rounds, so that a machine whose speed drifts is the same for all. An oracle, which knows
where the blur is, is no classifier that anybody could use: conditions with one are not timed.
"""

import dataclasses
import itertools
import statistics

import jax
import numpy as np

from bjax import tokens
from bjax.blur import sample
from bjax.evaluate import bucket
from bjax.experiment import Condition, Experiment, eval_batches
from bjax.runtime import sharding
from bjax.runtime.timing import timed
from bjax.step.eval_step import eval_step, look

BUCKET_BATCHES = 4  # of a stream: grouping needs more than one batch to show what it costs


def run(exp: Experiment, variables: dict) -> dict[str, dict]:
    """{"speed.json": its content}, of `config.speed_rounds` rounds; {} where that is 0.

    Per condition: images_per_second; tokens, the mean share over all blocks of the tokens that are computed, and flops,
    the share of the matrix products' operations, both where they are known beforehand (a ViT, no bucket).
    """
    if not exp.config.speed_rounds:
        return {}
    key, mesh = jax.random.key(0), exp.mesh
    splits = dict.fromkeys(condition.split for condition in exp.conditions.values())
    batches = {s: list(itertools.islice(eval_batches(exp, exp.splits[s]), BUCKET_BATCHES)) for s in splits}
    runs, run_of = {}, {}
    conditions = {name: c for name, c in exp.conditions.items() if not c.inputs.mask.needs_truth}
    for name, condition in conditions.items():
        inputs = dataclasses.replace(condition.inputs, blur=sample.SHARP, corruption=None)
        # Not the whole image's score: a fact for the results, no part of classifying.
        options = {"model": condition.model, "objective": exp.objective, "mesh": mesh, "more": ()}
        options["inputs"], bucketed = inputs, inputs.mask.mode == "bucket"
        # Conditions that differ in their blur alone cost the same, but in a bucket, where it decides what is kept.
        program = (condition.split, condition.model, condition.inputs if bucketed else inputs)
        run_of[name] = program
        if program in runs:
            continue
        if bucketed:
            stream = [_blurred(key, b, condition.inputs, mesh) for b in batches[condition.split]]
            runs[program] = _bucketed(key, variables, stream, options, exp.config)
        else:
            runs[program] = _whole(key, variables, sharding.put(batches[condition.split][0], mesh), options)
    images = {program: run() for program, run in runs.items()}  # compiles
    seconds = timed(runs, exp.config.speed_rounds)
    rates = {p: statistics.median(images[p] / s for s in times) for p, times in seconds.items()}
    measured = {
        name: {"images_per_second": rates[run_of[name]], **_shares(exp, condition)}
        for name, condition in conditions.items()
    }
    content = {
        "how": "uint8 on the device -> scores, mask, normalise, model; no blur; median of interleaved rounds",
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "batch_size": exp.config.eval_batch_size,
        "rounds": exp.config.speed_rounds,
        "conditions": measured,
    }
    return {"speed.json": content}


def _whole(key, variables, batch, options):
    def run():
        jax.block_until_ready(eval_step(key, variables, batch, **options))
        return len(batch["label"])

    return run


def _bucketed(key, variables, batches, options, config):
    patches = (config.data.image_size // options["inputs"].patch_size) ** 2

    def run():
        stream = bucket.stream(key, variables, batch_size=config.eval_batch_size, patches=patches, **options)
        for batch in batches:
            stream.add(batch)
        return len(stream.finish()["label"])

    return run


def _blurred(key, batch, inputs, mesh):
    """The host batch with its images blurred as `inputs` says, in 8 bits."""
    images = look(key, sharding.put(batch, mesh), inputs=inputs, mesh=mesh).blurred.images
    return {**batch, "image": np.uint8(np.round(255 * np.asarray(images)))}


def _shares(exp: Experiment, condition: Condition) -> dict[str, float]:
    model, mask = condition.model, condition.inputs.mask
    if not hasattr(model, "token_counts") or mask.mode == "bucket":
        return {}
    patches = (exp.config.data.image_size // model.patch_size) ** 2
    kept = tokens.budget(mask, patches) if mask.mode == "gather" else patches
    full = dataclasses.replace(model, evit_keep=1.0, tome_r=0, highpass_keep=1.0)
    return {
        "tokens": float(np.mean(model.token_counts(kept + 1)) / (patches + 1)),
        "flops": model.flops(kept + 1) / full.flops(patches + 1),
    }
