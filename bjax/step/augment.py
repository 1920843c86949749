"""Mixup and cutmix: batches of images and label probabilities, mixed with the batch shifted by one."""

import jax
import jax.numpy as jnp


def mixup(key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """λ·batch + (1−λ)·shifted batch, one λ ~ Beta(alpha, alpha) per call (Zhang et al. 2018, as big_vision draws it).

    images: float[B, H, W, 3], targets: float[B, C].
    """
    lam = jax.random.beta(key, alpha, alpha)
    lam = jnp.maximum(lam, 1 - lam)  # the larger share is the image's own
    return _blend(images, jnp.roll(images, 1, axis=0), lam), _blend(
        targets, jnp.roll(targets, 1, axis=0), lam
    )


def cutmix(
    key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """A box of the shifted batch pasted into the batch, its area share 1−λ with λ ~ Beta(alpha, alpha) before clipping.

    Box and label shares as in Yun et al. 2019 and torchvision's CutMix: the box is cut at the border and the labels
    follow the area that is left.
    """
    height, width = images.shape[1:3]
    k_lam, k_y, k_x = jax.random.split(key, 3)
    half = 0.5 * jnp.sqrt(1 - jax.random.beta(k_lam, alpha, alpha))
    cy, cx = jax.random.randint(k_y, (), 0, height), jax.random.randint(k_x, (), 0, width)
    y0, y1 = (
        jnp.clip(cy - (half * height).astype(int), 0),
        jnp.minimum(cy + (half * height).astype(int), height),
    )
    x0, x1 = jnp.clip(cx - (half * width).astype(int), 0), jnp.minimum(cx + (half * width).astype(int), width)
    y, x = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    box = ((y >= y0) & (y < y1) & (x >= x0) & (x < x1))[None, :, :, None]
    lam = 1 - (y1 - y0) * (x1 - x0) / (height * width)
    return jnp.where(box, jnp.roll(images, 1, axis=0), images), _blend(
        targets, jnp.roll(targets, 1, axis=0), lam
    )


def _blend(a: jax.Array, b: jax.Array, lam: jax.Array) -> jax.Array:
    return (lam * a + (1 - lam) * b).astype(a.dtype)
