"""Blurring batches of images, every image with its own kernel.

Images are `[B, H, W, C]`, float32 or bfloat16, usually in [0, 1] (the blurs are linear and know no range);
the arithmetic is float32 and the result has the images' shape and dtype. Borders are reflected without
repeating the edge pixel (reflect-101: cv2's default, torchvision's "reflect", NumPy's "reflect"). An image
smaller than the kernel's radius is reflected as often as it takes, as cv2 and NumPy do. Blurs are
correlations with a point-symmetric kernel, so correlation and convolution agree.
"""

import dm_pix
import jax
import jax.numpy as jnp
from jax import lax

from bjax.blur import psf


def gaussian(images, sigma, *, kernel_size=19, quantize=False, impl="auto"):
    """Gaussian blur, as torchvision's `GaussianBlur(kernel_size, sigma)` and `cv2.GaussianBlur` on float
    images.

    Args:
      images: float `[B, H, W, C]`.
      sigma: standard deviation in pixels, scalar or `[B]`; 0 leaves the image as it is.
      kernel_size: side of the kernel, odd and static. The Gaussian is cut off there, whatever σ is.
      quantize: reproduce the 8-bit path of torchvision: round the images to levels of 1/255, blur, round
        half to even to levels again. Rounding has no useful gradient.
      impl: "auto" for the fast path of the platform, "pix" for `dm_pix.gaussian_blur` on the reflect-padded
        image (slow; the reference).

    Raises:
      ValueError: images that are not a float batch, an even kernel_size, σ < 0, a batch of σ of another
        length.
    """
    batch = check_images(images)
    if impl not in ("auto", "pix"):
        raise ValueError(f"impl={impl!r}: must be 'auto' or 'pix'")
    psf.check_kernel_size(kernel_size)
    psf.check("sigma", sigma, 0)
    sigma = per_image("sigma", sigma, batch)
    blurred = images.astype(jnp.float32)
    if quantize:
        blurred = jnp.round(blurred * 255)
    if impl == "pix":
        blurred = _gaussian_pix(blurred, sigma, kernel_size)
    else:
        blurred = separable(blurred, psf.gaussian_taps(sigma, kernel_size))
    if quantize:
        blurred = jnp.round(blurred) / 255
    return blurred.astype(images.dtype)


def motion(images, length, angle, *, kernel_size=21):
    """Motion blur along a line, see `psf.motion`.

    Args:
      images: float `[B, H, W, C]`.
      length: pixels, scalar or `[B]`, 1 (the identity) to `kernel_size`.
      angle: radians counter-clockwise from horizontal, scalar or `[B]`.
      kernel_size: side of the kernel, odd and static.

    Raises:
      ValueError: images that are not a float batch, an even kernel_size, a length outside the kernel.
    """
    batch = check_images(images)
    length, angle = per_image("length", length, batch), per_image("angle", angle, batch)
    return depthwise(images, psf.motion(length, angle, kernel_size))


def defocus(images, radius, *, kernel_size=21):
    """Defocus blur by a disk, see `psf.defocus`.

    Args:
      images: float `[B, H, W, C]`.
      radius: pixels, scalar or `[B]`, 0 (the identity) to `kernel_size / 2`.
      kernel_size: side of the kernel, odd and static.

    Raises:
      ValueError: images that are not a float batch, an even kernel_size, a radius outside the kernel.
    """
    batch = check_images(images)
    return depthwise(images, psf.defocus(per_image("radius", radius, batch), kernel_size))


def separable(images, taps):
    """Correlate the rows and columns of each image with its taps: `[B, H, W, C]`, `f32[B, k]` -> `[B, H, W,
    C]`."""
    return _per_platform(_separable, images, taps)


def depthwise(images, kernels):
    """Correlate each channel of each image with its kernel: `[B, H, W, C]`, `f32[B, k, k]` -> `[B, H, W,
    C]`."""
    return _per_platform(_depthwise, images, kernels)


def check_images(images):
    """The batch size of float images `[B, H, W, C]`; ValueError for anything else."""
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images: {images.dtype}{list(images.shape)} must be a float batch [B, H, W, C]; "
            "scale uint8 images to [0, 1] first"
        )
    return images.shape[0]


def per_image(name, value, batch):
    """A scalar or `[B]` parameter as `f32[B]`."""
    shape = jnp.shape(value)
    if shape not in ((), (batch,)):
        raise ValueError(f"{name}: shape {list(shape)} must be [] or [{batch}], one value per image")
    return jnp.broadcast_to(jnp.asarray(value, jnp.float32), (batch,))


def _per_platform(blur, images, kernels):
    """The one place where the platform decides. `blur` takes a batch; on a CPU it gets one image at a time.

    One image and its intermediate stay in a core's cache, which is worth 2 to 3 times there. On GPU and TPU
    the whole batch goes through one fused kernel per pass; that choice is not measured yet (candidates: a
    banded Toeplitz matmul, FFT, Pallas).
    """

    def one_at_a_time(images, kernels):
        return lax.map(lambda pair: blur(pair[0][None], pair[1][None])[0], (images, kernels))

    return lax.platform_dependent(images, kernels, cpu=one_at_a_time, default=blur)


def _separable(images, taps):
    height, width, channels = images.shape[1:]
    size = taps.shape[1]
    # Rows as one axis of W·C numbers: the taps then shift by whole pixels, and the inner loop is long
    # enough for SIMD. The barriers keep XLA from fusing the two passes into one that recomputes the first
    # for every tap of the second.
    padded = lax.optimization_barrier(_reflect(images, size // 2))
    taps = taps[:, :, None, None]
    rows = sum(taps[:, i] * padded[:, i : i + height] for i in range(size))
    rows = lax.optimization_barrier(rows)
    shifted = (rows[:, :, i * channels : (i + width) * channels] for i in range(size))
    blurred = sum(taps[:, i] * row for i, row in enumerate(shifted))
    return blurred.reshape(images.shape).astype(images.dtype)


def _depthwise(images, kernels):
    height, width, channels = images.shape[1:]
    size = kernels.shape[1]
    padded = lax.optimization_barrier(_reflect(images, size // 2))
    kernels = kernels[..., None, None]

    def row(i):
        rows = lax.dynamic_slice_in_dim(padded, i, height, axis=1)
        taps = lax.dynamic_index_in_dim(kernels, i, axis=1, keepdims=False)
        return sum(taps[:, j] * rows[:, :, j * channels : (j + width) * channels] for j in range(size))

    blurred = lax.scan(lambda total, i: (total + row(i), None), row(0), jnp.arange(1, size))[0]
    return blurred.reshape(images.shape).astype(images.dtype)


def _reflect(images, radius):
    """Reflect-101 padding in float32, rows flattened: `[B, H, W, C]` -> `f32[B, H + 2r, (W + 2r)·C]`."""
    padded = jnp.pad(
        images.astype(jnp.float32), ((0, 0), (radius, radius), (radius, radius), (0, 0)), mode="reflect"
    )
    return padded.reshape(*padded.shape[:2], -1)


def _gaussian_pix(images, sigma, kernel_size):
    radius = kernel_size // 2
    padded = jnp.pad(images, ((0, 0), (radius, radius), (radius, radius), (0, 0)), mode="reflect")
    sigma = jnp.maximum(sigma, 0.05)  # dm-pix divides by σ; see psf.gaussian_taps
    return jax.vmap(lambda image, s: dm_pix.gaussian_blur(image, s, kernel_size, padding="VALID"))(
        padded, sigma
    )
