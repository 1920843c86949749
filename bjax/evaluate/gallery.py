"""A few images as each condition shows them to the model: pixels, patches kept, scores, the answer; for a report.

The images are spread evenly over a condition's split and blurred exactly as in its evaluation, by the same programs.
"""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from bjax import sharpness
from bjax.experiment import SEED, Condition, Experiment, eval_batches
from bjax.runtime import sharding
from bjax.step.eval_step import eval_step, look

CONDITIONS = 8  # at most: a grid of masks has a hundred


def run(exp: Experiment, variables: dict) -> dict[str, dict[str, np.ndarray]]:
    """{"gallery.npz": its content}: `config.gallery` images of each of the first conditions; {} where that is 0.

    The content is conditions, the names; and of every condition NAME, for its
    K images in the order of the split: NAME/image uint8[K, H, W, 3], blurred, before anything is left out; NAME/kept
    bool[K, h, w]; NAME/score float32[K, h, w], of each patch (of the whole image where patches do not tile it) by the
    focus measure of the mask, on the 0..255 scale, or of sigma in pixels, NaN where it cannot tell; NAME/measure, the
    name of that measure; NAME/label and NAME/prediction int32[K]; NAME/confidence float32[K], the largest probability.
    Conditions that adapt BatchNorm are not among them: their weights are others.
    """
    if not exp.config.gallery:
        return {}
    key = jax.random.key(SEED)
    conditions = {k: c for k, c in exp.conditions.items() if not c.bn_adapt}
    names = list(conditions)[:CONDITIONS]
    content = {"conditions": np.array(names)}
    for name in names:
        batches = spread(exp, conditions[name].split, exp.config.gallery)
        parts = [_look(key, batch, conditions[name], exp, variables) for batch in batches]
        content |= {f"{name}/{k}": np.concatenate([part[k] for part in parts]) for k in parts[0]}
        content[f"{name}/measure"] = np.array(conditions[name].inputs.mask.measure)
    return {"gallery.npz": content}


def spread(exp: Experiment, split: str, number: int) -> Iterator[dict[str, np.ndarray]]:
    """So many images, or all, spread over a split, in batches of the evaluation's size: its programs serve again."""
    source = exp.splits[split]
    number = min(number, source.num_examples)
    chosen = np.linspace(0, source.num_examples - 1, number).round().astype(int)
    source = dataclasses.replace(source, records=[source.records[int(i)] for i in chosen])
    return eval_batches(exp, source)


def _look(key, batch, condition: Condition, exp: Experiment, variables: dict) -> dict:
    inputs = condition.inputs
    if inputs.mask.mode == "bucket":  # keeps the same patches, and needs a stream of images
        inputs = dataclasses.replace(inputs, mask=dataclasses.replace(inputs.mask, mode="attend"))
    placed = sharding.put(batch, exp.mesh)
    seen = look(key, placed, inputs=inputs, mesh=exp.mesh)
    options = {"model": condition.model, "inputs": inputs, "objective": exp.objective, "mesh": exp.mesh}
    answers = jax.device_get(eval_step(key, variables, placed, **options))
    images = multihost_utils.process_allgather(seen.blurred.images, tiled=True)
    patch, size = inputs.patch_size, images.shape[1:3]
    tiled = not any(side % patch for side in size)
    keep = np.ones((len(images), *(side // patch if tiled else 1 for side in size)), bool)
    if seen.kept is not None:
        keep = multihost_utils.process_allgather(seen.kept.keep, tiled=True).reshape(keep.shape)
    measure = sharpness.MEASURES[inputs.mask.measure]
    shown = {
        "image": np.uint8(np.round(255 * np.clip(images, 0, 1))),
        "kept": keep,
        "score": np.asarray(measure(images, patch if tiled else size, scope=inputs.mask.scope), np.float32),
        **{k: answers[k] for k in ("label", "prediction", "confidence")},
    }
    return {k: v[answers["mask"]] for k, v in shown.items()}
