"""Blur that varies over the image, with its ground truth: the per-pixel map of σ that was applied.

A σ map is `f32[B, H, W]` in pixels; 0 is sharp. Each output pixel is the mean of its surroundings under the
Gaussian of its own σ (a gather: sharp pixels next to a blurred region stay sharp, and nothing is normalised
afterwards). Images keep their shape and dtype.

Where a blur is the same wherever it is, the image is blurred once, as a whole, and `rectangles` or `middle` says which
pixels take it: the same numbers, at 2 · kernel_size passes in place of kernel_size².
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float32, Key

from bjax.blur import convolve, psf
from bjax.blur.convolve import Images, PerImage

SigmaMap = Float32[Array, "b h w"]  # pixels
# Mean side of so many rectangles, as a fraction of the image's, that cover half of it together; sides are within ±.2.
SIDES = {1: 0.707, 2: 0.585, 3: 0.51}


def gaussian(images: Images, sigma_map: SigmaMap, *, kernel_size: int = 19) -> Images:
    """Gaussian blur with a σ per pixel; a constant map equals `bjax.blur.gaussian`.

    sigma_map: pixels, ≥ 0.
    kernel_size: side of the kernel, odd and static. Costs kernel_size² passes, not 2·kernel_size.

    Returns the blurred images, of the same shape and dtype.

    Raises ValueError for images that are not a float batch, a map of another size, an even kernel_size, σ < 0
    and a σ of which the kernel does not hold 3σ to either side.
    """
    convolve.check_images(images)
    if sigma_map.shape != images.shape[:3]:
        shapes = f"{list(sigma_map.shape)} must be the images' {list(images.shape[:3])}"
        raise ValueError(f"sigma_map: shape {shapes}")
    psf.check_kernel_size(kernel_size)
    psf.check("sigma_map", sigma_map, 0)
    psf.check_cut(sigma_map, kernel_size)
    return _gaussian(images, jnp.asarray(sigma_map, jnp.float32), kernel_size=kernel_size)


@functools.partial(jax.jit, static_argnames="kernel_size")
def _gaussian(images: Images, sigma_map: SigmaMap, kernel_size: int) -> Images:
    height, width = images.shape[1:3]

    def batched(images, sigma_map):
        radius = kernel_size // 2
        widths = ((0, 0), (radius, radius), (radius, radius), (0, 0))
        padded = lax.optimization_barrier(jnp.pad(images.astype(jnp.float32), widths, mode="reflect"))
        taps = jnp.moveaxis(psf.gaussian_taps(sigma_map, kernel_size), -1, 0)[..., None]  # [k, B, H, W, 1]

        def row(i):
            rows = lax.dynamic_slice_in_dim(padded, i, height, axis=1)
            return taps[i] * sum(taps[j] * rows[:, :, j : j + width] for j in range(kernel_size))

        return lax.scan(lambda total, i: (total + row(i), None), row(0), jnp.arange(1, kernel_size))[0]

    def one(image, sigma_map):
        return batched(image[None], sigma_map[None])[0]

    return convolve.by_platform(one, batched, images, sigma_map).astype(images.dtype)


def regions(
    key: Key[Array, " b"],
    images: Images,
    sigma: PerImage,
    *,
    count: int = 3,
    size: tuple[float, float] = (0.2, 0.5),
    kernel_size: int = 19,
) -> tuple[Images, SigmaMap]:
    """Gaussian blur inside random rectangles, sharp outside.

    key: typed keys, one per image.
    sigma: σ inside the rectangles, pixels.
    count: rectangles per image; they may overlap.
    size: range of their sides, as fractions of the image's, in [0, 1].
    kernel_size: side of the kernel, odd and static.

    Returns the images, of the same shape and dtype, and the σ of every pixel, float32[B, H, W].

    Raises ValueError as `bjax.blur.gaussian`, and for wrong keys, count < 1 and a size that is no range within [0, 1].
    """
    batch = convolve.check_images(images)
    convolve.check_keys(key, batch)
    if count < 1:
        raise ValueError(f"count={count}: must be at least 1")
    if not 0 <= size[0] <= size[1] <= 1:
        raise ValueError(f"size={size}: must be low ≤ high within [0, 1]")

    def inside(key):
        sides, places = jax.random.uniform(key, (2, count, 2))
        return _covered(size[0] + (size[1] - size[0]) * sides, places, *images.shape[1:3]).any(0)

    mask = jax.vmap(inside)(key)
    blurred = convolve.gaussian(images, sigma, kernel_size=kernel_size)
    sigma_map = mask * convolve.per_image("sigma", sigma, batch)[:, None, None]
    return jnp.where(mask[..., None], blurred, images), sigma_map


def rectangles(key: Key[Array, " b"], height: int, width: int) -> Bool[Array, "b h w"]:
    """Whether each pixel lies in one of the image's rectangles: half of the image on average.

    key: typed keys, one per image. One, two or three rectangles, each number as often, their sides within ±.2 of
    `SIDES`, as fractions of the image's. They may overlap, and lie within the image: its middle is covered more often
    than its border.
    """

    def inside(key):
        count_key, key = jax.random.split(key)
        number = jax.random.randint(count_key, (), 0, len(SIDES))
        sides, places = jax.random.uniform(key, (2, len(SIDES), 2))
        sides = jnp.array(list(SIDES.values()))[number] + 0.4 * (sides - 0.5)
        drawn = jnp.arange(len(SIDES)) <= number
        return (_covered(sides, places, height, width) & drawn[:, None, None]).any(0)

    return jax.vmap(inside)(key)


def middle(key: Key[Array, " b"], height: int, width: int) -> Bool[Array, "b h w"]:
    """Whether each pixel lies in a rectangle or, as often, an ellipse in the middle: half of the image on average.

    key: typed keys, one per image. A rectangle's sides are .55 to .85 of the image's; the axes of the ellipse of the
    same area are √(4/π) times as long.
    """

    def inside(key):
        shape_key, key = jax.random.split(key)
        y, x = jax.random.uniform(key, (2,), minval=0.55, maxval=0.85) / 2
        rows, columns = _places(height)[:, None] - 0.5, _places(width) - 0.5
        rectangle = (jnp.abs(rows) < y) & (jnp.abs(columns) < x)
        ellipse = (rows / y) ** 2 + (columns / x) ** 2 < 4 / jnp.pi
        return jnp.where(jax.random.bernoulli(shape_key), ellipse, rectangle)

    return jax.vmap(inside)(key)


def ramp(
    key: Key[Array, " b"], images: Images, near: PerImage, far: PerImage, *, kernel_size: int = 19
) -> tuple[Images, SigmaMap]:
    """Gaussian blur that grows linearly across the image in a random direction, as on a plane tilted in depth.

    key: typed keys, one per image.
    near: σ at one end of the image, pixels.
    far: σ at the other end, likewise.
    kernel_size: side of the kernel, odd and static.

    Returns the images, of the same shape and dtype, and the σ of every pixel, float32[B, H, W], from near to far.

    Raises ValueError as `gaussian`, and for wrong keys.
    """
    batch = convolve.check_images(images)
    convolve.check_keys(key, batch)
    psf.check("near", near, 0)
    psf.check("far", far, 0)
    near, far = (convolve.per_image(n, v, batch)[:, None, None] for n, v in (("near", near), ("far", far)))
    height, width = images.shape[1:3]
    angle = jax.vmap(lambda k: jax.random.uniform(k, maxval=2 * jnp.pi))(key)
    row = (jnp.arange(height, dtype=jnp.float32) / max(height - 1, 1) - 0.5)[:, None]
    column = jnp.arange(width, dtype=jnp.float32) / max(width - 1, 1) - 0.5
    cos, sin = jnp.cos(angle)[:, None, None], jnp.sin(angle)[:, None, None]
    # 0 and 1 at two opposite corners
    depth = (column * cos - row * sin) / (jnp.abs(cos) + jnp.abs(sin)) + 0.5
    sigma_map = near + (far - near) * jnp.clip(depth, 0, 1)
    return gaussian(images, sigma_map, kernel_size=kernel_size), sigma_map


def per_patch(strength_map: SigmaMap, patch_size: int) -> Float32[Array, "b _ _"]:
    """The mean of a map (σ, or another strength in pixels) over each patch, float32[B, H/p, W/p]; p divides H and W."""
    batch, height, width = strength_map.shape
    patches = strength_map.reshape(batch, height // patch_size, patch_size, width // patch_size, patch_size)
    return patches.mean(axis=(2, 4))


def blurred_patches(strength_map: SigmaMap, patch_size: int) -> Bool[Array, "b _ _"]:
    """Which patches are blurred, bool[B, H/p, W/p]: those of which more than half of the pixels are.

    A pixel is where it has at least half of its image's strongest blur: all that are blurred at all, where all of these
    are alike, and the blurrier half of a ramp.
    """
    strongest = strength_map.max(axis=(1, 2), keepdims=True)
    blurred = (strength_map > 0) & (strength_map >= strongest / 2)
    return per_patch(blurred.astype(jnp.float32), patch_size) > 0.5


def _places(size: int) -> Float32[Array, " n"]:
    """The centres of pixels along a side of 1."""
    return (jnp.arange(size) + 0.5) / size


def _covered(sides: Float32[Array, "n 2"], places: Float32[Array, "n 2"], height: int, width: int):
    """bool[n, H, W]: the pixels of rectangles within the image, a side of which is 1; places: 0 to 1 of their room."""
    rows, columns = _places(height), _places(width)
    starts = places * (1 - sides)
    (top, left), (bottom, right) = starts.T[..., None], (starts + sides).T[..., None]
    in_rows, in_columns = (top <= rows) & (rows < bottom), (left <= columns) & (columns < right)
    return in_rows[:, :, None] & in_columns[:, None, :]
