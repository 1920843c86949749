"""Blurring batches of images, every image with its own kernel.

Images are `[B, H, W, C]`, float32 or bfloat16, usually in [0, 1] (the blurs are linear and know no range);
the arithmetic is float32 and the result has the images' shape and dtype. Borders are reflected without
repeating the edge pixel (reflect-101: cv2's default, torchvision's "reflect", NumPy's "reflect"). An image
smaller than the kernel's radius is reflected as often as it takes, as cv2 and NumPy do. Blurs are
correlations with a point-symmetric kernel, so correlation and convolution agree.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Float32, Key, Real

from bjax.blur import psf

Images = Float[Array, "b h w c"]
Flat = Float[Array, "b h w*c"]
LARGEST_PRODUCT = 1024  # pixels of a side, of images that TPUs blur by matrix products
PerImage = float | Real[ArrayLike, " b"]  # a parameter: one for all images, or one an image


def gaussian(
    images: Images, sigma: PerImage, *, kernel_size: int = 19, quantize: bool = False, impl: str = "auto"
) -> Images:
    """Gaussian blur, as torchvision's `GaussianBlur(kernel_size, sigma)` and `cv2.GaussianBlur` on float images.

    sigma: standard deviation in pixels; 0 leaves the image as it is.
    kernel_size: side of the kernel, odd and static; a σ of which it does not hold 3σ to either side is refused (inside
        jit, where σ is unknown, it is cut off). `bjax.specs.gaussian_size` names a side that is large enough.
    quantize: reproduce the 8-bit path of torchvision: round the images to levels of 1/255, blur, round half to even to
        levels again. Rounding has no useful gradient.
    impl: "auto" for the fast path of the platform, "pix" for `dm_pix.gaussian_blur` on the reflect-padded image (slow;
        the reference).

    Returns the blurred images, of the same shape and dtype.

    Raises ValueError for images that are not a float batch, an even kernel_size, σ < 0, a σ too large for the kernel
    and a batch of σ of another length.

    >>> import numpy as np
    >>> point = np.zeros((2, 5, 5, 1), np.float32)
    >>> point[:, 2, 2] = 1
    >>> np.asarray(gaussian(point, np.array([0.5, 1.0]))[:, 2, 2, 0]).round(2)
    array([0.62, 0.16], dtype=float32)
    """
    batch = check_images(images)
    images = jnp.asarray(images)  # of NumPy's float64, float32: what JAX has
    if impl not in ("auto", "pix"):
        raise ValueError(f"impl={impl!r}: must be 'auto' or 'pix'")
    psf.check_kernel_size(kernel_size)
    psf.check("sigma", sigma, 0)
    psf.check_cut(sigma, kernel_size)
    sigma = per_image("sigma", sigma, batch)
    blurred = images.astype(jnp.float32)
    if quantize:
        blurred = jnp.round(blurred * 255)
    if impl == "pix":
        blurred = gaussian_pix(blurred, sigma, kernel_size)
    else:
        blurred = separable(blurred, psf.gaussian_taps(sigma, kernel_size))
    if quantize:
        blurred = jnp.round(blurred) / 255
    return blurred.astype(images.dtype)


def motion(images: Images, length: PerImage, angle: PerImage, *, kernel_size: int = 21) -> Images:
    """Motion blur along a line, see `psf.motion`.

    length: pixels, 1 (the identity) to `kernel_size`.
    angle: radians counter-clockwise from horizontal.
    kernel_size: side of the kernel, odd and static.

    Returns the blurred images, of the same shape and dtype.

    Raises ValueError for images that are not a float batch, an even kernel_size and a length outside the kernel.

    >>> import numpy as np
    >>> point = np.zeros((1, 3, 5, 1), np.float32)
    >>> point[0, 1, 2] = 1
    >>> np.asarray(motion(point, 3, 0)[0, 1, :, 0]).round(2)
    array([0.  , 0.33, 0.33, 0.33, 0.  ], dtype=float32)
    """
    batch = check_images(images)
    length, angle = per_image("length", length, batch), per_image("angle", angle, batch)
    return depthwise(images, psf.motion(length, angle, kernel_size))


def defocus(images: Images, radius: PerImage, *, kernel_size: int = 21) -> Images:
    """Defocus blur by a disk, see `psf.defocus`.

    radius: pixels, 0 (the identity) to `kernel_size / 2`.
    kernel_size: side of the kernel, odd and static.

    Returns the blurred images, of the same shape and dtype.

    Raises ValueError for images that are not a float batch, an even kernel_size and a radius outside the kernel.

    >>> import numpy as np
    >>> point = np.zeros((1, 3, 5, 1), np.float32)
    >>> point[0, 1, 2] = 1
    >>> np.asarray(defocus(point, 1)[0, 1, :, 0]).round(2)
    array([0.  , 0.15, 0.32, 0.15, 0.  ], dtype=float32)
    """
    batch = check_images(images)
    return depthwise(images, psf.defocus(per_image("radius", radius, batch), kernel_size))


@functools.partial(jax.jit, static_argnames="border")  # else every call outside jit would compile anew
def separable(images: Images, taps: Float32[Array, "b k"], *, border: str = "reflect") -> Images:
    """Correlate the rows and columns of each image with its taps, k odd.

    border: "reflect" (reflect-101) or "edge" (repeat the edge pixel).
    """
    check_images(images)
    channels = images.shape[3]

    def one(image, taps):
        # The barrier keeps the second pass out of the write into the batch, which runs on one core.
        return lax.optimization_barrier(batched(image[None], taps[None])[0])

    def batched(images, taps):
        return _separable(images.astype(jnp.float32), taps, channels, border)

    def on_tpus(flat, taps):
        return _flat(_products(flat.reshape(images.shape).astype(jnp.float32), taps, border))

    # Matrices of larger images would take more room than the images.
    tpu = on_tpus if max(images.shape[1:3]) <= LARGEST_PRODUCT else None
    blurred = by_platform(one, batched, _flat(images), taps, tpu=tpu)
    return blurred.reshape(images.shape).astype(images.dtype)


@jax.jit
def depthwise(images: Images, kernels: Float32[Array, "b k k"]) -> Images:
    """Correlate every channel of each image with its kernel, k odd."""
    check_images(images)
    channels, radius = images.shape[3], kernels.shape[1] // 2

    def pad(images):
        return _pad(_pad(images.astype(jnp.float32), 1, radius), 2, radius, channels)

    def one(image, kernel):
        return _sparse(channels, pad(image[None])[0], kernel)

    def batched(images, kernels):
        return _dense(pad(images), kernels, channels)

    def on_tpus(flat, kernels):
        return _flat(_grouped(pad(flat).reshape(len(flat), -1, images.shape[2] + 2 * radius, channels), kernels))

    tpu = on_tpus if isinstance(images.shape[0], int) else None  # the number of groups cannot be a symbol
    blurred = by_platform(one, batched, _flat(images), kernels, tpu=tpu)
    return blurred.reshape(images.shape).astype(images.dtype)


def by_platform(
    one: Callable[..., Array],
    batched: Callable[..., Array],
    *arguments,
    tpu: Callable[..., Array] | None = None,
) -> Array:
    """The one place where the platform decides: `one` image at a time on a CPU, else `batched`, or on TPUs `tpu`.

    On a CPU one image and its intermediates stay in a core's cache, which is worth 2 to 3 times. A GPU gets the whole
    batch, shifts and sums of many taps a kernel. A TPU's matrix units do what its vector units are slow at: by its
    compiler's estimate 256 images of 224 pixels take 4.5 million cycles instead of 19.9 (19 taps a side), and 46
    instead of 237 (21 × 21 taps). Neither was run on such a chip, nor were rivals (FFT, Pallas).
    """

    def one_at_a_time(*arguments):
        return lax.map(lambda argument: one(*argument), arguments)

    return lax.platform_dependent(*arguments, cpu=one_at_a_time, tpu=tpu or batched, default=batched)


def check_images(images: Images) -> int:
    """The batch size of float images `[B, H, W, C]`; ValueError for anything else."""
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images: {images.dtype}{list(images.shape)} must be a float batch [B, H, W, C]; "
            "scale uint8 images to [0, 1] first"
        )
    return images.shape[0]


def check_keys(key: Key[Array, " b"], batch: int) -> None:
    """ValueError unless `key` holds one typed key per image."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape != (batch,):
        raise ValueError(
            f"key: {key.dtype}{list(key.shape)} must be typed keys [{batch}], one per image, "
            f"such as jax.random.split(jax.random.key(0), {batch})"
        )


def per_image(name: str, value: PerImage, batch: int) -> Float32[Array, " b"]:
    """A parameter, one for all images or one an image, as one an image; ValueError for a batch of another length."""
    shape = np.shape(value)
    if shape not in ((), (batch,)):
        raise ValueError(f"{name}: shape {list(shape)} must be [] or [{batch}], one value per image")
    return jnp.broadcast_to(jnp.asarray(value, jnp.float32), (batch,))


def _flat(images: Images) -> Flat:
    """Pixels and channels in one axis: a tap shifts by whole pixels, and the inner loop is long enough for SIMD."""
    return images.reshape(*images.shape[:2], -1)


def _pad(images: Flat, axis: int, radius: int, step: int = 1, border: str = "reflect") -> Float32[Array, "b _ _"]:
    """Padded along one axis, whose pixels are `step` numbers apart.

    Only the border is gathered; the image itself is copied whole. The barriers, here and between passes,
    keep XLA from fusing a pass into the next, which would recompute it for every tap.
    """
    size = images.shape[axis]
    pixels = np.pad(np.arange(size // step), radius, mode=border)
    numbers = (pixels[:, None] * step + np.arange(step)).ravel()
    before, after = (
        jnp.take(images, part, axis, mode="clip")
        for part in (numbers[: radius * step], numbers[radius * step + size :])
    )
    return lax.optimization_barrier(jnp.concatenate([before, images, after], axis))


def _separable(images: Flat, taps: Float32[Array, "b k"], channels: int, border: str) -> Flat:
    """By shift and add."""
    size = taps.shape[1]
    height, width = images.shape[1:]
    taps = taps[:, :, None, None]
    padded = _pad(images, 1, size // 2, border=border)
    rows = lax.optimization_barrier(sum(taps[:, i] * padded[:, i : i + height] for i in range(size)))
    padded = _pad(rows, 2, size // 2, channels, border)
    return sum(taps[:, i] * padded[:, :, i * channels : i * channels + width] for i in range(size))


def _products(images: Float32[Array, "b h w c"], taps: Float32[Array, "b k"], border: str) -> Images:
    """By a matrix product along each axis. Precision: else a TPU would multiply in bfloat16.

    A pixel that is not finite spoils its rows and columns, not only what its taps reach.
    """
    _, height, width, _ = images.shape
    rows = jnp.einsum("bpq,bqwc->bpwc", _band(taps, height, border), images, precision="highest")
    return jnp.einsum("bpq,bhqc->bhpc", _band(taps, width, border), rows, precision="highest")


def _band(taps: Float32[Array, "b k"], size: int, border: str) -> Float32[Array, "b n n"]:
    """The matrices that correlate `size` pixels with each image's taps, the border included."""
    pixels = np.pad(np.arange(size), taps.shape[1] // 2, mode=border)
    taken = np.lib.stride_tricks.sliding_window_view(pixels, size)  # [k, size]: by each tap for each pixel
    return jnp.einsum("bk,kpq->bpq", taps, jax.nn.one_hot(taken, size), precision="highest")


def _grouped(padded: Float32[Array, "b h+2*r w+2*r c"], kernels: Float32[Array, "b k k"]) -> Images:
    """By one convolution, in which images are the features and channels the batch."""
    return lax.conv_general_dilated(
        padded,
        kernels[..., None],
        (1, 1),
        "VALID",
        dimension_numbers=("CHWN", "OHWI", "CHWN"),
        feature_group_count=len(padded),
        precision="highest",
    )


def _dense(padded: Float32[Array, "b h+2*r (w+2*r)*c"], kernels: Float32[Array, "b k k"], channels: int) -> Flat:
    """By shift and add, row by row."""
    size = kernels.shape[1]
    height, width = padded.shape[1] - size + 1, padded.shape[2] - (size - 1) * channels
    kernels = kernels[..., None, None]

    def row(i):
        rows = lax.dynamic_slice_in_dim(padded, i, height, axis=1)
        taps = lax.dynamic_index_in_dim(kernels, i, axis=1, keepdims=False)
        return sum(taps[:, j] * rows[:, :, j * channels : j * channels + width] for j in range(size))

    # Four rows a kernel: with 21 × 21 taps 256 images of 224 pixels move 3.5 GB on an H200, one by one 10.5.
    return lax.scan(lambda total, i: (total + row(i), None), row(0), jnp.arange(1, size), unroll=4)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sparse(
    channels: int, padded: Float32[Array, " h+2*r (w+2*r)*c"], kernel: Float32[Array, "k k"]
) -> Float32[Array, "h w*c"]:
    """`_dense` for one image, skipping taps that are 0: a line or a disk fills a small part of its square.

    The taps are taken in groups, one fused pass over the image each; the loop runs over as many groups as the kernel
    needs. A group is summed before it is added: a hundred taps one by one would round a hundred times, to 1e-6.
    """
    group = 8
    size = kernel.shape[0]
    height, width = padded.shape[0] - size + 1, padded.shape[1] - (size - 1) * channels
    taps = kernel.reshape(-1)
    order = jnp.argsort(taps == 0, stable=True)  # used taps first
    order = jnp.pad(order, (0, -(size * size - 1) % group))
    used = (taps != 0).sum()
    weights = jnp.where(jnp.arange(order.size) < used, taps[order], 0)

    def tap(i):
        row, column = jnp.divmod(order[i], size)
        return weights[i] * lax.dynamic_slice(padded, (row, column * channels), (height, width))

    def add_group(g, total):
        return total + sum(tap(1 + g * group + i) for i in range(group))

    # The first tap starts the sum, so that the loop's total has the type of a tap, under shard_map too.
    return lax.fori_loop(0, (used - 1 + group - 1) // group, add_group, tap(0))


@_sparse.defjvp
def _sparse_jvp(channels: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    # Bilinear; the loop of dynamic length has no transpose, the dense form has. A tap of 0 can have a
    # gradient too.
    (padded, kernel), (d_padded, d_kernel) = primals, tangents

    def dense(padded, kernel):
        return _dense(padded[None], kernel[None], channels)[0]

    return _sparse(channels, padded, kernel), dense(d_padded, kernel) + dense(padded, d_kernel)


def gaussian_pix(images: Images, sigma: Float32[Array, " b"], kernel_size: int) -> Images:
    """`dm_pix.gaussian_blur` of each image, whose border is reflected first: its own, of zeros, darkens."""
    import dm_pix  # only where it is asked for: not every machine that blurs has it

    radius = kernel_size // 2
    padded = jnp.pad(images, ((0, 0), (radius, radius), (radius, radius), (0, 0)), mode="reflect")
    sigma = jnp.maximum(sigma, 0.05)  # dm-pix divides by σ; see psf.gaussian_taps
    blur = functools.partial(dm_pix.gaussian_blur, kernel_size=kernel_size, padding="VALID")
    return jax.vmap(blur)(padded, sigma).astype(images.dtype)
