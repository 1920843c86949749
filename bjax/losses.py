"""Losses per image; the step weighs and averages them."""

import jax
import jax.numpy as jnp
import optax


def targets(labels: jax.Array, num_classes: int, smoothing: float = 0.0) -> jax.Array:
    """int[B] labels -> float32[B, num_classes] probabilities, with `smoothing` of the mass spread over all classes."""
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes, dtype=jnp.float32), smoothing)


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy float32[B] of logits [B, C] against probabilities [B, C], in float32 whatever the logits are."""
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)
