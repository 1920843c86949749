"""Adapting to a stream of images at test time, as pure functions: (state, batch) -> (state, answers).

A batch is what `eval_step.prepare` makes of it, answers are those of `eval_step.assess`, given before the images are
learned from. A state is a value: a stream may begin again, and a step be tried, without harm to it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from bjax.step.eval_step import answers_of, assess, competing
from bjax.step.inputs import Batch, apply
from bjax.step.losses import Objective

MOMENTUM = 0.9  # of TENT's gradient descent, as published
PUBLISHED_BATCH = 64  # images, that TENT's published learning rate is of


def unchanged(variables: dict, prepared: tuple, **options) -> tuple[dict, Batch]:
    """Learns nothing: the state is the variables. options: of `assess`.

    BatchNorm's statistics are those of the variables, or, of a model with a `norm_prior`, the batch's own.
    """
    return variables, assess(variables, prepared, **options)


class Tent(NamedTuple):
    """affine: {path: array}, scales and biases of the norms, which learn; velocity: their mean gradients; rest: the
    variables that stay."""

    affine: dict
    velocity: dict
    rest: dict


def tent_start(variables: dict) -> Tent:
    """The state of `tent` before the first batch. Raises ValueError for variables without norms."""
    params = flatten_dict(variables["params"])
    norms = {path[:-1] for path in params if path[-1] == "scale"}  # kernels are of all other layers
    if not norms:
        raise ValueError("TENT learns scales and biases of norm layers, and these variables have none")
    affine = {path: x for path, x in params.items() if path[:-1] in norms}
    rest = {**variables, "params": {path: x for path, x in params.items() if path not in affine}}
    return Tent(affine, jax.tree.map(jnp.zeros_like, affine), rest)


def tent(state: Tent, prepared: tuple, *, model, objective: Objective, mesh: Mesh, lr: float) -> tuple[Tent, Batch]:
    """TENT (Wang et al. 2021, arXiv:2006.10726), online: answers, then one step down their mean entropy.

    Gradient descent with momentum over the scales and biases of all norms; for BatchNorm `model` is to have
    norm_prior=0.0, statistics of the batch, which the gradient goes through. lr: the paper's is 0.00025 for batches of
    64 images of ImageNet.
    """
    fixed = {"model": model, "objective": objective, "mesh": mesh}
    affine, velocity, answers = _step(*state, prepared, jnp.float32(lr), **fixed)
    return Tent(affine, velocity, state.rest), answers


@functools.partial(jax.jit, static_argnames=("model", "objective", "mesh"))
def _step(affine, velocity, rest, prepared, lr, *, model, objective, mesh):
    """What stays is no output: to copy it would take longer than the step."""
    images, kept, _, _ = prepared

    def mean_entropy(affine):
        variables = {**rest, "params": unflatten_dict({**rest["params"], **affine})}
        outputs = apply(model, variables, images, kept, train=False)
        return entropy(competing(outputs, objective)).mean(), outputs

    gradients, outputs = jax.grad(mean_entropy, has_aux=True)(affine)
    velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradients)
    affine = jax.tree.map(lambda x, v: x - lr * v, affine, velocity)
    return affine, velocity, answers_of(outputs, prepared, objective, mesh)


def entropy(logits: jax.Array) -> jax.Array:
    """Of the probabilities that logits [B, classes] stand for, float32[B], in nats."""
    shares = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -(jnp.exp(shares) * shares).sum(axis=1)
