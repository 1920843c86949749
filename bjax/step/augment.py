"""Mixup and cutmix: batches of images and label probabilities, mixed with the batch shifted by one."""

import jax
import jax.numpy as jnp


def mixup(key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """λ·batch + (1−λ)·shifted batch, one λ ~ Beta(alpha, alpha) per call (Zhang et al. 2018, as big_vision draws it).

    images: float[B, H, W, 3], targets: float[B, C].
    """
    lam = jax.random.beta(key, alpha, alpha)
    lam = jnp.maximum(lam, 1 - lam)  # the larger share is the image's own
    return _blend(images, lam), _blend(targets, lam)


def cutmix(key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """A box of the shifted batch pasted into the batch, its area share 1−λ with λ ~ Beta(alpha, alpha) before clipping.

    Box and label shares as in Yun et al. 2019 and torchvision's CutMix: the box is cut at the border and the labels
    follow the area that is left.
    """
    height, width = images.shape[1:3]
    k_lam, k_y, k_x = jax.random.split(key, 3)
    half = 0.5 * jnp.sqrt(1 - jax.random.beta(k_lam, alpha, alpha))
    cy, cx = jax.random.randint(k_y, (), 0, height), jax.random.randint(k_x, (), 0, width)
    tall, wide = (half * height).astype(int), (half * width).astype(int)
    y0, y1 = jnp.clip(cy - tall, 0), jnp.minimum(cy + tall, height)
    x0, x1 = jnp.clip(cx - wide, 0), jnp.minimum(cx + wide, width)
    y, x = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    box = ((y >= y0) & (y < y1) & (x >= x0) & (x < x1))[None, :, :, None]
    lam = 1 - (y1 - y0) * (x1 - x0) / (height * width)
    return jnp.where(box, jnp.roll(images, 1, axis=0), images), _blend(targets, lam)


def _blend(batch: jax.Array, lam: jax.Array) -> jax.Array:
    """With the batch shifted by one."""
    return (lam * batch + (1 - lam) * jnp.roll(batch, 1, axis=0)).astype(batch.dtype)
