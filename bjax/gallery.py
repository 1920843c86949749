"""A few images as each condition shows them to the model: pixels, patches kept, scores, the answer; for a report.

The images are spread evenly over a condition's split and blurred exactly as in its evaluation, by the same programs.
"""

import dataclasses
import os
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from bjax import experiment, sharding, sharpness, step
from bjax.data import loader
from bjax.tokens import MaskSpec

CONDITIONS = 8  # at most: a grid of masks has a hundred


def collect(
    key: jax.Array, config, exp: experiment.Experiment, mesh, variables: dict
) -> dict[str, np.ndarray]:
    """What gallery.npz holds: `config.gallery` images of each of the first conditions.

    key: of the evaluation, which decides the blur. Returns conditions, the names; and of every condition NAME, for its
    K images in the order of the split: NAME/image uint8[K, H, W, 3], blurred, before anything is left out; NAME/kept
    bool[K, h, w]; NAME/score float32[K, h, w], of each patch by the focus measure of the mask, on the 0..255 scale (of
    the whole image where patches do not tile it); NAME/measure, the name of that measure; NAME/label and
    NAME/prediction int32[K]; NAME/confidence float32[K], the largest probability. Conditions that adapt BatchNorm are
    not among them: their weights are others.
    """
    conditions = {k: c for k, c in exp.conditions.items() if not c.bn_adapt}
    names = list(conditions)[:CONDITIONS]
    found = {"conditions": np.array(names)}
    for name in names:
        parts = [
            _look(key, batch, conditions[name], exp, mesh, variables)
            for batch in _batches(config, conditions[name])
        ]
        found |= {f"{name}/{k}": np.concatenate([part[k] for part in parts]) for k in parts[0]}
        found[f"{name}/measure"] = np.array(conditions[name].inputs.mask.measure)
    return found


def write(path: Path, content: dict[str, np.ndarray]) -> None:
    """Writes gallery.npz whole or not at all."""
    temporary = path.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, **content)
    os.replace(temporary, path)


def _batches(config, condition: experiment.Condition):
    """The chosen images in batches of the evaluation's size: its compiled programs serve again."""
    source = loader.open_split(config.data.name, condition.split, data_dir=config.data.data_dir or None)
    number = min(config.gallery, source.num_examples)
    chosen = np.linspace(0, source.num_examples - 1, number).round().astype(int)
    source = dataclasses.replace(source, records=[source.records[int(i)] for i in chosen])
    return experiment.eval_batches(config, source)


def _look(key, batch, condition: experiment.Condition, exp: experiment.Experiment, mesh, variables) -> dict:
    inputs = condition.inputs
    if inputs.mask.mode == "bucket":  # keeps the same patches, and needs a stream of images
        inputs = dataclasses.replace(inputs, mask=dataclasses.replace(inputs.mask, mode="attend"))
    placed = sharding.put(batch, mesh)
    same = {"objective": exp.objective, "mesh": mesh}
    plain = dataclasses.replace(inputs, mask=MaskSpec(), mean=(0.0,) * 3, std=(1.0,) * 3)
    images, *_ = step.prepare(key, placed, inputs=plain, **same)
    _, kept, *_ = step.prepare(key, placed, inputs=inputs, **same)
    answers = jax.device_get(
        step.eval_step(key, variables, placed, model=condition.model, inputs=inputs, **same)
    )
    images = multihost_utils.process_allgather(images, tiled=True)
    patch, height, width = inputs.patch_size, *images.shape[1:3]
    grid = (height // patch, width // patch) if height % patch == width % patch == 0 else (1, 1)
    if kept is None:
        keep = np.ones((len(images), *grid), bool)
    else:
        keep = multihost_utils.process_allgather(kept.keep, tiled=True).reshape(len(images), *grid)
    side = patch if grid != (1, 1) else (height, width)
    found = {
        "image": np.uint8(np.round(255 * np.clip(images, 0, 1))),
        "kept": keep,
        "score": np.asarray(
            sharpness.MEASURES[inputs.mask.measure](images, side, scope=inputs.mask.scope), np.float32
        ),
        **{k: answers[k] for k in ("label", "prediction", "confidence")},
    }
    return {k: v[answers["mask"]] for k, v in found.items()}
