"""Losses per image; the step weighs and averages them."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

# What one unit of the outputs for the blur's parameters stands for, about the middle of the usual range: pixels.
SIGMA, LENGTH, RADIUS = 2.0, 10.0, 4.0
OUT = -1e30  # a logit of no chance: -inf would make a cross-entropy of 0 · inf
PARAMETERS = 5  # outputs: sigma, length, cos and sin of twice the angle (a line has no direction), radius


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is predicted and how it is trained; see `bjax.specs` for the fields."""

    task: str
    num_classes: int
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    aux: float = 0.3
    # Weight of estimating the blur's parameters, for which the model then has outputs.
    parameters: float = 0.0
    # Weight of `jensen_shannon` between the views of an image (`inputs.Inputs.views`).
    jsd: float = 0.0
    accumulate: int = 1
    ema: float = 0.0
    # Leave weights, statistics and optimiser as they are where the loss or the gradient is not finite.
    skip_nonfinite: bool = False
    # Of evaluation: the only classes whose logits compete; empty: all.
    present: tuple[int, ...] = ()


def targets(labels: jax.Array, num_classes: int, smoothing: float = 0.0) -> jax.Array:
    """int[B] labels -> float32[B, num_classes] probabilities, with `smoothing` of the mass spread over all classes."""
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes, dtype=jnp.float32), smoothing)


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy float32[B] of logits [B, C] against probabilities [B, C], in float32 whatever the logits are."""
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)


def jensen_shannon(logits: jax.Array) -> jax.Array:
    """Jensen–Shannon divergence float32[B], in nats, between the views of each image, logits [B, views, C].

    As in AugMix, probabilities of the mixture count as at least 1e-7.
    """
    log = jax.nn.log_softmax(logits.astype(jnp.float32))
    probabilities = jnp.exp(log)
    mixture = jnp.log(jnp.maximum(probabilities.mean(axis=1, keepdims=True), 1e-7))
    return (probabilities * (log - mixture)).sum(axis=2).mean(axis=1)


def among(logits: jax.Array, classes: tuple[int, ...]) -> jax.Array:
    """Logits [B, C] of which those that are not of `classes` cannot win: finite, of probability 0."""
    competes = jnp.zeros(logits.shape[1], bool).at[jnp.array(classes)].set(True)
    return jnp.where(competes, logits.astype(jnp.float32), OUT)


def blur_parameters(estimates: jax.Array, kind: jax.Array, drawn) -> jax.Array:
    """Huber loss float32[B] of estimates [B, 5] of the parameters `drawn` (`blur.sample.Params`, pixels and radians).

    Only those of the image's own `kind` count, an index into `blur.sample.KINDS`; a sharp image has a loss of 0.
    """
    angle = 2 * drawn.angle
    sigma, length, radius = drawn.sigma / SIGMA, drawn.length / LENGTH, drawn.radius / RADIUS
    truth = jnp.stack([sigma, length, jnp.cos(angle), jnp.sin(angle), radius], axis=1)
    gaussian, motion, defocus = (kind == i for i in (1, 2, 3))
    of_kind = jnp.stack([gaussian, motion, motion, motion, defocus], axis=1)
    return (of_kind * optax.huber_loss(estimates.astype(jnp.float32), truth)).sum(axis=1)


def decode_parameters(estimates: jax.Array) -> jax.Array:
    """Outputs [B, 5] -> float32[B, 4]: sigma, length (pixels), angle (radians in [0, π)), radius (pixels)."""
    sigma, length, cosine, sine, radius = estimates.astype(jnp.float32).T
    angle = jnp.arctan2(sine, cosine) / 2 % jnp.pi
    return jnp.stack([SIGMA * sigma, LENGTH * length, angle, RADIUS * radius], axis=1)


def hits(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """float32[B]: 1 where the label is among the k largest logits; ties go to the lower class, as in `lax.top_k`.

    0 where any logit of the row is not finite: what such a model says is no answer.
    """
    logit = jnp.take_along_axis(logits, labels[:, None], axis=1)
    before = (logits > logit) | ((logits == logit) & (jnp.arange(logits.shape[1]) < labels[:, None]))
    # A NaN compares false with everything: it would stand before no label.
    return ((before.sum(axis=1) < k) & jnp.isfinite(logits).all(axis=1)).astype(jnp.float32)
