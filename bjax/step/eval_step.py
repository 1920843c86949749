"""The pure functions that evaluate: variables and a batch of uint8 images in, answers per image out."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bjax import sharpness, tokens
from bjax.blur import varying
from bjax.step import losses
from bjax.step.inputs import Batch, Inputs, Seen, apply, image_keys, per_image, see
from bjax.step.losses import Objective


@functools.partial(jax.jit, static_argnames=("inputs", "mesh"))
def look(key: jax.Array, batch: Batch, *, inputs: Inputs, mesh: Mesh) -> Seen:
    """What evaluation lets the model see of a batch: `see`, compiled."""
    return see(image_keys(key, batch["id"]), batch["image"], inputs, mesh)


@functools.partial(jax.jit, static_argnames=("inputs", "objective", "mesh", "score"))
def prepare(
    key: jax.Array, batch: Batch, *, inputs: Inputs, objective: Objective, mesh: Mesh, score: bool = True
) -> tuple[jax.Array, tokens.Tokens | None, jax.Array, Batch]:
    """A batch as evaluation sees it, and the truth about it.

    Returns normalised images float32[B, H, W, 3], the tokens kept, labels int32[B], and facts: bool[B] mask, as given;
    float32[B] each the parameters of the blur drawn (0 where its kind has none), precision, recall and iou of the
    patches kept against those that are not blurred (`varying.blurred_patches`; NaN without a mask, and where whole
    images are blurred) and, unless not `score` or over 1024 px, sharpness, the variance of the whole blurred image's
    Laplacian. The draw of an image's blur depends on key and id alone, so every condition and every run blurs it alike.
    """
    images, kept, (blurred, kind, drawn, truth) = see(image_keys(key, batch["id"]), batch["image"], inputs, mesh)
    labels = kind if objective.task == "blur_type" else batch["label"]
    facts = {name: getattr(drawn, name) for name in ("sigma", "length", "angle", "radius")}
    facts["mask"] = batch["mask"]
    # Always there: conditions with them and without share the compiled model.
    facts |= dict.fromkeys(("precision", "recall", "iou"), jnp.full(labels.shape, jnp.nan))
    if kept is not None and truth is not None:

        def found(keep, truth):
            blurred = varying.blurred_patches(truth, inputs.patch_size)
            return tokens.overlap(keep, ~blurred.reshape(keep.shape))

        facts |= per_image(found, mesh)(kept.keep, truth)
    if score and max(blurred.shape[1:3]) <= sharpness.LARGEST_PATCH:
        whole = functools.partial(sharpness.laplacian_variance, patch_size=blurred.shape[1:3])
        facts["sharpness"] = per_image(whole, mesh)(blurred)[:, 0, 0]
    return images, kept, labels, facts


@functools.partial(jax.jit, static_argnames=("model", "objective", "mesh"))
def assess(variables: dict, prepared: tuple, *, model, objective: Objective, mesh: Mesh) -> Batch:
    """The model's answers to what `prepare` returns, one row per image, whole on every process.

    float32[B, classes] logits; int32[B] label and prediction; float32[B] top1, top5, loss, confidence (the largest
    probability), kept (a share), and the facts, of which the mask says which rows count; estimates float32[B, 4] of the
    blur's sigma, length, angle and radius, where the model estimates them.
    """
    images, kept, _, _ = prepared
    return answers_of(apply(model, variables, images, kept, train=False), prepared, objective, mesh)


def answers_of(outputs: jax.Array, prepared: tuple, objective: Objective, mesh: Mesh) -> Batch:
    """What `assess` returns, of the model's outputs float32[B, …] for the images of `prepared`."""
    _, kept, labels, facts = prepared
    logits = competing(outputs, objective)
    answers = {
        "logits": logits.astype(jnp.float32),
        "label": labels,
        "prediction": logits.argmax(axis=1).astype(jnp.int32),
        "confidence": jax.nn.softmax(logits.astype(jnp.float32)).max(axis=1),
        "top1": losses.hits(logits, labels, 1),
        "top5": losses.hits(logits, labels, 5),
        "loss": losses.cross_entropy(logits, losses.targets(labels, objective.num_classes)),
        "kept": jnp.ones(len(labels)) if kept is None else kept.keep.mean(axis=1),
        **facts,
    }
    if objective.parameters:
        answers["estimates"] = losses.decode_parameters(outputs[:, objective.num_classes :])
    return jax.lax.with_sharding_constraint(answers, NamedSharding(mesh, P()))


def competing(outputs: jax.Array, objective: Objective) -> jax.Array:
    """The logits [B, classes] of a model's outputs; those of classes that are not among the present cannot win."""
    logits = outputs[:, : objective.num_classes]
    return losses.among(logits, objective.present) if objective.present else logits


def eval_step(
    key: jax.Array,
    variables: dict,
    batch: Batch,
    *,
    model,
    inputs: Inputs,
    objective: Objective,
    mesh: Mesh,
    more: tuple[str, ...] = ("sharpness",),
) -> Batch:
    """`prepare`, then `assess`: the answers to a batch, one row per image; sharpness and logits where `more` has them.

    Compiled in these two parts: conditions that differ in blur or selector share the second, by far the larger, so that
    a grid of them compiles the model once per number of tokens.
    """
    prepared = prepare(key, batch, inputs=inputs, objective=objective, mesh=mesh, score="sharpness" in more)
    answers = assess(variables, prepared, model=model, objective=objective, mesh=mesh)
    return {name: rows for name, rows in answers.items() if name != "logits" or name in more}


def batch_statistics(
    key: jax.Array, variables: dict, batch: Batch, *, model, inputs: Inputs, mesh: Mesh, momentum: float
) -> dict:
    """The mean and variance that each BatchNorm sees in this batch, as a tree like `variables["batch_stats"]`.

    As in training, each layer is fed by layers that normalise with the batch's own statistics. momentum: the model's.
    """
    images, kept, _ = see(image_keys(key, batch["id"]), batch["image"], inputs, mesh)
    # From zero, one step of the running average is the batch's share of it.
    start = {**variables, "batch_stats": jax.tree.map(jnp.zeros_like, variables["batch_stats"])}
    _, changed = apply(model, start, images, kept, train=True, mutable=["batch_stats"], rngs={"dropout": key})
    return jax.tree.map(lambda x: x / (1 - momentum), changed["batch_stats"])
