"""Focus measures: how sharp each patch of an image is, on the 0..255 scale.

Every measure takes float images `[B, H, W, 3]` in [0, 1], RGB, and a patch size p that divides H and W, and
returns `f32[B, H/p, W/p]`; higher is sharper. Images become grey as `cv2.cvtColor(..., COLOR_RGB2GRAY)`
makes them: rounded to uint8 first (half to even), then BT.601 in fixed point. All filters have cv2's
default border (reflect-101).

`scope` says where that border is. "image": filter the whole image, then pool per patch; a patch sees one
pixel of its neighbours. "patch": filter each patch on its own. The two disagree on a few per cent of
patches at a threshold.
"""

import jax.numpy as jnp


def laplacian_variance(images, patch_size, *, scope="image"):
    """Variance of the Laplacian (Pech-Pacheco et al. 2000): `cv2.Laplacian(grey, CV_64F).var()` per patch."""
    response = _per_patch(images, patch_size, scope, _laplacian)
    return _variance(response)


def grey_levels(images):
    """BT.601 grey as cv2 computes it on uint8 RGB: float `[B, H, W, 3]` in [0, 1] -> `int32[B, H, W]` in
    0..255."""
    levels = jnp.clip(jnp.round(images.astype(jnp.float32) * 255), 0, 255).astype(jnp.int32)
    red, green, blue = levels[..., 0], levels[..., 1], levels[..., 2]
    return (9798 * red + 19235 * green + 3735 * blue + (1 << 14)) >> 15


def _laplacian(grey):
    """[0 1 0; 1 -4 1; 0 1 0], exact in integers: `int32[N, H, W]` -> the same."""
    p = jnp.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    return p[:, :-2, 1:-1] + p[:, 2:, 1:-1] + p[:, 1:-1, :-2] + p[:, 1:-1, 2:] - 4 * grey


def _per_patch(images, patch_size, scope, response):
    """`response` of the grey image, split into patches: `[B, H/p, W/p, p·p]`."""
    if images.ndim != 4 or images.shape[-1] != 3 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images: {images.dtype}{list(images.shape)} must be float [B, H, W, 3] in [0, 1]")
    batch, height, width = images.shape[:3]
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise ValueError(
            f"patch_size={patch_size}: must divide the image's height {height} and width {width}"
        )
    if scope not in ("image", "patch"):
        raise ValueError(f"scope={scope!r}: must be 'image' or 'patch'")
    grey = grey_levels(images)
    if scope == "image":
        grey = response(grey)
    patches = grey.reshape(batch, height // patch_size, patch_size, width // patch_size, patch_size)
    patches = patches.transpose(0, 1, 3, 2, 4)
    if scope == "patch":
        patches = response(patches.reshape(-1, patch_size, patch_size)).reshape(patches.shape)
    return patches.reshape(*patches.shape[:3], patch_size * patch_size)


def _variance(values):
    """Population variance of integers along the last axis, exact up to the last float32 rounding."""
    values = values - jnp.round(values.mean(-1, keepdims=True)).astype(jnp.int32)
    mean = values.sum(-1) / values.shape[-1]
    return _mean_of_integers(values * values) - mean * mean


def _mean_of_integers(values):
    """Mean of non-negative int32 values along the last axis: summed exactly in two halves, as float32 sums
    are not."""
    high, low = (values >> 10).sum(-1), (values & 1023).sum(-1)
    return (high * 1024.0 + low) / values.shape[-1]
