"""Dead leaves: images with the statistics of photographs, generated on the device (Lee, Mumford, Huang 2001).

Discs fall on each other until they cover the image. With radii of density r^-3 the result looks alike at every scale,
as photographs do: edges where one thing hides another, and a power spectrum that falls with about the square of the
frequency. Such images are endless and as sharp as pixels allow, which few photographs are: data for tasks whose label
is made from the image, such as the type of a blur.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bjax.blur import convolve

# Radii, as shares of the image's side. The smallest is drawn per image: some are fine and some are coarse.
SMALLEST = (1 / 64, 1 / 8)
LARGEST = 1 / 2
LAYERS = 3  # how often the discs cover an image at least
TEXTURE = 0.1  # standard deviation of each of the noise fields inside a leaf
# Colours of photographs: any brightness, warm against cold less varied, green against magenta least; the standard
# deviations are near the medians of the colour photographs in scikit-image.
CHROMA = np.array([[1, 0, -1], [1, -2, 1]], np.float32) / np.sqrt([[2], [6]], dtype=np.float32)
CHROMA_STD = (0.12, 0.05)


def draw(key, size):
    """Draws one image per key.

    An image is the back-to-front painting of discs with antialiased edges, each of one colour and of a texture mixed
    from three fields of 1/f noise. Positions wrap around, so that no place is special and opposite borders fit. The
    number of discs does not depend on the size, and the cost is that number times the number of pixels.

    Args:
      key: `[B]` typed keys (`jax.random.key`), one per image; an image depends on its key alone.
      size: side of the images, pixels, at least 16 (the smallest leaf is then half a pixel wide).

    Returns:
      float32 `[B, size, size, 3]` in [0, 1].

    Raises:
      ValueError: keys that are not a batch of typed keys, a smaller size.
    """
    convolve.check_keys(key, key.size)
    if size < 16:
        raise ValueError(f"size={size}: must be at least 16")
    return _draw(key, size)


def replace(key, images, share):
    """Replaces each image by one of `draw` with probability `share`, decided by its key.

    Args:
      key: `[B]` typed keys, one per image.
      images: uint8 `[B, H, H, 3]`.
      share: in [0, 1], scalar or `[B]`.

    Returns:
      uint8 `[B, H, H, 3]`.

    Raises:
      ValueError: images that are not square, or too small for `draw`; a batch of shares of another length.
    """
    batch, height, width, _ = images.shape
    convolve.check_keys(key, batch)
    if height != width or height < 16:
        raise ValueError(f"images: {height} x {width} must be square, with a side of at least 16")

    share = convolve.per_image("share", share, batch)

    def leaves(key):
        return jnp.round(_paint(key, height) * 255).astype(jnp.uint8)

    def one(image, key, chosen):  # on a CPU only what is chosen is painted
        return lax.cond(chosen, lambda: leaves(key), lambda: image)

    def batched(images, key, chosen):
        return jnp.where(chosen[:, None, None, None], jax.vmap(leaves)(key), images)

    choice, key = jax.vmap(jax.random.split, out_axes=1)(key)
    chosen = jax.vmap(jax.random.uniform)(choice) < share
    return convolve.by_platform(one, batched, images, key, chosen)


@functools.partial(jax.jit, static_argnames="size")
def _draw(key, size):
    return convolve.by_platform(
        functools.partial(_paint, size=size), jax.vmap(functools.partial(_paint, size=size)), key
    )


def radii(key, number, smallest, largest):
    """`number` radii between `smallest` and `largest`, float32, of density proportional to r^-3."""
    u = jax.random.uniform(key, (number,))
    return (smallest**-2 - u * (smallest**-2 - largest**-2)) ** -0.5


def _paint(key, size):
    """One image, float32[size, size, 3]."""
    number = _number()
    k_smallest, k_radius, k_centre, k_grey, k_chroma, k_weights, k_noise = jax.random.split(key, 7)
    smallest = jnp.exp(
        jax.random.uniform(k_smallest, (), minval=np.log(SMALLEST[0]), maxval=np.log(SMALLEST[1]))
    )
    leaves = {
        "radius": size * radii(k_radius, number, smallest, LARGEST),
        "centre": jax.random.uniform(k_centre, (number, 2), maxval=size),
        "colour": jax.random.uniform(k_grey, (number, 1))
        + (jax.random.normal(k_chroma, (number, 2)) * jnp.array(CHROMA_STD)) @ CHROMA,
        "weights": TEXTURE * jax.random.normal(k_weights, (number, 3)),
    }
    noise = _noise(k_noise, size)
    place = jnp.arange(size) + 0.5

    def leaf(x):
        return x["colour"] + sum(x["weights"][i] * noise[i] for i in range(3))[..., None]

    def paint(image, x):
        apart = jnp.abs(place - x["centre"][:, None])
        dy, dx = jnp.minimum(apart, size - apart)  # the shorter way around
        distance = jnp.sqrt(dy[:, None] ** 2 + dx[None] ** 2)
        cover = jnp.clip(x["radius"] - distance + 0.5, 0, 1)[..., None]
        return image + cover * (leaf(x) - image), None

    ground = leaf(jax.tree.map(lambda x: x[0], leaves))
    image, _ = lax.scan(paint, ground, jax.tree.map(lambda x: x[1:], leaves))
    return jnp.clip(image, 0, 1)


def _number():
    """How many discs cover an image of side 1 `LAYERS` times where they are smallest: area / mean area of a disc."""
    low, high = SMALLEST[0], LARGEST
    mean_area = np.pi * 2 * np.log(high / low) / (low**-2 - high**-2)
    return int(np.ceil(LAYERS / mean_area))


def _noise(key, size):
    """Three fields of noise with a 1/f amplitude spectrum, mean 0, variance about 1, float32[3, size, size]."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    amplitude = 1 / frequency
    full = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    full[0, 0] = np.inf
    amplitude /= np.sqrt((full**-2).mean())
    white = jax.random.normal(key, (3, size, size))
    return jnp.fft.irfft2(jnp.fft.rfft2(white) * jnp.asarray(amplitude, jnp.float32), s=(size, size))
