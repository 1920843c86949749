"""ImageNet-C's blurs (Hendrycks & Dietterich 2019) at severities 1 to 5, with the benchmark's own semantics.

They are not the blurs of `bjax.blur`: ImageNet-C's Gaussian repeats the edge pixel and is cut at 4 σ, its defocus
kernel gains up to 1.3 % brightness, its motion blur is one-sided, its glass blur duplicates pixels. Robustness numbers
can be compared with published ones only under the same semantics, so these are reproduced, faults included.

Three programs carry the name and differ:

- the original `make_imagenet_c.py`, reproduced here: uint8 by truncation, motion blur by ImageMagick
  (one-sided Gaussian, angle uniform in ±45°), 224 × 224 px only.
- the `imagecorruptions` package, for any size: writes ImageMagick's motion blur out in NumPy, which agrees
  with ImageMagick; its zoom keeps the top left of each enlarged image where the original keeps the centre.
- TFDS `imagenet2012_corrupted`: rounds to uint8 instead of truncating; it draws the angle of motion blur from
  (-45, -45), which is always -45°.

The published files went through JPEG at quality 85 on top of this, at 224 px after a centre crop: corrupt
the cropped image, and do not resize or crop it (or the published files) again.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Float32, Int32, Key, UInt8

from bjax.blur import convolve, psf
from bjax.specs import CORRUPTIONS

Image = UInt8[Array, "h w 3"]
NAMES = CORRUPTIONS

_GAUSSIAN = (1, 2, 3, 4, 6)  # σ
_DEFOCUS = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))  # radius, σ of the anti-aliasing
_MOTION = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))  # radius, σ
_ZOOM = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))  # stop and step of the factors
_GLASS = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))  # σ, reach of the swaps, rounds

# AlexNet's mean top-1 error over the five severities: the unit of the corruption error (Hendrycks &
# Dietterich 2019).
ALEXNET_ERRORS = {
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
}


def corrupt(key: Key[Array, ""], image: Image, name: str, severity: int) -> Image:
    """One blur of ImageNet-C, within one level of the original program.

    key: a typed key; motion (the angle) and glass (the swaps) draw from it, the others ignore it. The random numbers
        are not NumPy's, so a draw has the benchmark's distribution, not its bits.
    image: RGB, 224 px in the benchmark; any size of at least 32 px here. Batches: `jax.vmap`.
    name: one of `NAMES`, static. gaussian_blur belongs to the benchmark's extra set.
    severity: 1 to 5, static.

    Returns uint8[H, W, 3].

    Raises ValueError for an unknown name or severity, an image that is not uint8 [H, W, 3] or is smaller than 32 px.
    """
    if name not in NAMES:
        raise ValueError(f"name={name!r}: must be one of {', '.join(NAMES)}")
    if severity not in (1, 2, 3, 4, 5):
        raise ValueError(f"severity={severity!r}: must be 1, 2, 3, 4 or 5")
    if image.dtype != jnp.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 32:
        raise ValueError(f"image: {image.dtype}{list(image.shape)} must be uint8 [H, W, 3] of at least 32 px")
    return _corrupt(key, jnp.asarray(image), name, int(severity))


def mean_corruption_error(errors: Mapping[str, Sequence[float]]) -> float:
    """Blur-only mean corruption error: the mean over the benchmark's four blurs of error / AlexNet's error.

    1.0 is as bad as AlexNet. Multiply by 100 for the form papers print. It is not the 15-corruption mCE.

    errors: `{name: [e1, …, e5]}` for defocus_blur, glass_blur, motion_blur and zoom_blur, top-1 errors in [0, 1] (not
        per cent) at severities 1 to 5.

    Raises ValueError for other names, another number of severities and an error outside [0, 1].

    >>> round(mean_corruption_error({name: [error / 2] * 5 for name, error in ALEXNET_ERRORS.items()}), 6)
    0.5
    """
    if set(errors) != set(ALEXNET_ERRORS):
        raise ValueError(f"errors: has {sorted(errors)}, must have exactly {sorted(ALEXNET_ERRORS)}")
    for name, values in errors.items():
        if np.shape(values) != (5,) or not all(0 <= value <= 1 for value in values):
            raise ValueError(f"errors: {name}={values} must be 5 errors in [0, 1], one per severity")
    return float(np.mean([np.mean(errors[name]) / ALEXNET_ERRORS[name] for name in ALEXNET_ERRORS]))


@functools.partial(jax.jit, static_argnames=("name", "severity"))
def _corrupt(key: Key[Array, ""], image: Image, name: str, severity: int) -> Image:
    blurs = {
        "gaussian_blur": lambda: _gaussian(image, _GAUSSIAN[severity - 1]),
        "defocus_blur": lambda: _defocus(image, *_DEFOCUS[severity - 1]),
        "motion_blur": lambda: _motion(key, image, *_MOTION[severity - 1]),
        "zoom_blur": lambda: _zoom(image, *_ZOOM[severity - 1]),
        "glass_blur": lambda: _glass(key, image, *_GLASS[severity - 1]),
    }
    return blurs[name]()


def _gaussian(image: Image, sigma: float) -> Image:
    """`skimage.filters.gaussian` with its defaults: border "nearest", radius int(4 σ + 0.5)."""
    taps = psf.gaussian_taps(jnp.full(1, sigma), 2 * int(4 * sigma + 0.5) + 1)
    return _truncate(convolve.separable(image[None].astype(jnp.float32), taps, border="edge")[0])


def _defocus(image: Image, radius: int, alias_blur: float) -> Image:
    kernel = jnp.asarray(defocus_kernel(radius, alias_blur))
    blurred = convolve.depthwise(image[None].astype(jnp.float32), kernel[None])[0]
    # The original's float32 kernels of severities 1 to 3 sum to just under 1: flat areas lose a level to
    # truncation.
    return _truncate(blurred - 2e-4)


def defocus_kernel(radius: int, alias_blur: float) -> Float32[np.ndarray, "k k"]:
    """A hard disk smoothed by a small Gaussian.

    The smoothing reflects at the border of the grid, which the disks of severities 4 and 5 touch, and is not
    normalised afterwards: they sum to 1.0130 and 1.0108, and brighten the image by as much.
    """
    grid = np.arange(-max(radius, 8), max(radius, 8) + 1)
    disk = (grid**2 + grid[:, None] ** 2 <= radius**2).astype(np.float64)
    reach = 1 if radius <= 8 else 2
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / alias_blur) ** 2)
    taps /= taps.sum()

    def smooth(rows):
        return np.convolve(np.pad(rows, reach, mode="reflect"), taps, mode="valid")

    kernel = np.apply_along_axis(smooth, 0, np.apply_along_axis(smooth, 1, disk / disk.sum()))
    return kernel.astype(np.float32)


def _motion(key: Key[Array, ""], image: Image, radius: int, sigma: float) -> Image:
    return motion_at_angle(image, radius, sigma, jax.random.uniform(key, (), minval=-45, maxval=45))


def motion_at_angle(image: Image, radius: int, sigma: float, angle: Float[ArrayLike, ""]) -> Image:
    """ImageMagick's `-motion-blur {radius}x{sigma}+{angle}`, angle in degrees.

    A half Gaussian of 2·radius + 1 taps along a ray from the pixel, each at the nearest whole pixel; the
    edge pixel is repeated; the fraction of a level is cut off, as version 6.9 does when it writes 8 bits.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    angle = jnp.deg2rad(angle)
    rows = jnp.ceil(steps * jnp.sin(angle) - 0.5).astype(jnp.int32)
    columns = jnp.ceil(steps * jnp.cos(angle) - 0.5).astype(jnp.int32)
    reach = 2 * radius
    padded = jnp.pad(image.astype(jnp.float32), ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    blurred = sum(
        float(weights[i]) * lax.dynamic_slice(padded, (reach + rows[i], reach + columns[i], 0), image.shape)
        for i in steps
    )
    return _truncate(blurred)


def _zoom(image: Image, stop: float, step: float) -> Image:
    """The mean of the image with itself enlarged by 1, 1 + step, … and cut back to its size."""
    image = image.astype(jnp.float32)
    factors = np.arange(1, stop, step)  # 12, 16, 11, 13, 11 of them: rounding lets `stop` in at times
    total = image + sum(_enlarge(_enlarge(image, factor, 0), factor, 1) for factor in factors)
    return _truncate(total / (len(factors) + 1))


def _enlarge(image: Float32[Array, "h w c"], factor: float, axis: int) -> Float32[Array, "h w c"]:
    """`scipy.ndimage.zoom(order=1)` of the centre along one axis, cut to the image's size."""
    size = image.shape[axis]
    source = int(np.ceil(size / factor))
    target = round(source * factor)
    position = (np.arange(size) + (target - size) // 2) * ((source - 1) / (target - 1))
    low = np.minimum(position.astype(int), source - 2)
    weight = (position - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    low = low + (size - source) // 2
    return jnp.take(image, low, axis) * (1 - weight) + jnp.take(image, low + 1, axis) * weight


def _glass(key: Key[Array, ""], image: Image, sigma: float, reach: int, rounds: int) -> Image:
    height, width = image.shape[:2]
    offsets = jax.random.randint(key, (rounds, height, width, 2), -reach, reach)
    image = _gaussian(image, sigma)
    for round_offsets in offsets:
        image = shuffle(image, round_offsets, reach)
    return _gaussian(image, sigma)


def shuffle(image: UInt8[Array, "h w c"], offsets: Int32[Array, "h w 2"], reach: int) -> UInt8[Array, "h w c"]:
    """One round of the glass blur's pixel "swaps", by offsets (dy, dx).

    The original walks from the bottom right, over rows and columns in [reach + 1, size - reach], and swaps
    NumPy views: both pixels end up with the neighbour's value. So the walk only copies, each pixel once,
    from a neighbour that may have been overwritten before. Following those chains by pointer doubling takes
    log2(pixels) parallel steps instead of one sequential step per pixel.
    """
    height, width, channels = image.shape
    row, column = np.mgrid[:height, :width]
    here = row * width + column
    inside = (row > reach) & (row <= height - reach) & (column > reach) & (column <= width - reach)
    neighbour = (row + offsets[..., 0]) * width + column + offsets[..., 1]
    neighbour = jnp.where(inside, neighbour, here).reshape(-1)
    inside, here = inside.reshape(-1), here.reshape(-1)
    # A neighbour later in raster order has been overwritten already: go on from there. An earlier one is
    # the source.
    follow = (neighbour > here) & jnp.asarray(inside)[neighbour]
    step, source = jnp.where(follow, neighbour, here), neighbour
    for _ in range(int(np.ceil(np.log2(height * width)))):
        step = step[step]
    return image.reshape(-1, channels)[source[step]].reshape(image.shape)


def _truncate(values: Float32[Array, "h w c"]) -> Image:
    """To uint8 as the original does, by cutting the fraction off.

    A level that float32 misses by a rounding error counts as reached; float64, there, misses by far less.
    """
    return jnp.clip(values + 1e-4, 0, 255).astype(jnp.uint8)
