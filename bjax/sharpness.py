"""Focus measures: how sharp each patch of an image is, on the 0..255 scale; and `sigma`, how blurred, in pixels.

Every measure takes float images in [0, 1], RGB, and a patch size p ≤ 1024 that divides their height and width, or a
pair (height, width) that does, and returns a score a patch, float32[B, H/p, W/p] of at least 0; higher is sharper (of
`sigma`, blurrier). Other images, patch sizes and scopes are a ValueError. Images become grey as
`cv2.cvtColor(..., COLOR_RGB2GRAY)` makes them: rounded to uint8 first (half to even), then BT.601 in fixed point. All
filters have cv2's default border (reflect-101).

`scope` says where that border is. "image": filter the whole image, then pool per patch; a patch sees one pixel of its
neighbours. "patch": filter each patch on its own. The two disagree on a few per cent of patches at a threshold.
"""

import functools
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32, Real

from bjax.errors import UserError, command
from bjax.specs import LARGEST_SIGMA, SIGMA_PATCH

LARGEST_PATCH = 1024  # px: 32 bits hold the sums of every measure and every image
ROUNDING = 2.4  # variance of the Laplacian of what 8 bits round off, of three channels and of their grey: 20/12 · 1.45
BLURRED = 0.95  # px: of `own_blur`, from which on a photograph counts as blurred already
SIGMAS = np.concatenate([np.arange(60) / 20, np.arange(3, LARGEST_SIGMA + 0.1, 1 / 4)])  # px: answers of `sigma`
AGAIN = (0.0, 0.5, 1.0, 1.5, 2.0)  # px: σ of the Gaussians by which it blurs again
OWN = 0.5  # px²: what pixels and the derivative's own filter blur already, as a variance
FLAT = 0.3  # mean squared gradient, grey levels² a px², below which rounding could have made what there is
PIXELS = (2, 4)  # axes of a patch's own pixels, see _per_patch
Images = Float[Array, "b h w 3"]  # RGB in [0, 1]
Grey = Int32[Array, "b h w"]  # 0..255
PatchSize = int | tuple[int, int]  # p, or (height, width)
Scores = Float32[Array, "b h/p w/p"]


def laplacian_variance(images: Images, patch_size: PatchSize, *, scope: str = "image") -> Scores:
    """Variance of the Laplacian (Pech-Pacheco et al. 2000): `cv2.Laplacian(grey, CV_64F).var()` of each patch.

    The response is cv2's bit for bit, the variance within 1e-6 of float64's. See the module for arguments and errors.

    >>> import numpy as np
    >>> images = np.zeros((1, 16, 32, 3), np.float32)
    >>> images[:, ::4, 16:] = 0.5  # stripes, next to which the left patch ends
    >>> laplacian_variance(images, 16).round().tolist()
    [[[252.0, 24732.0]]]
    """
    response = _per_patch(images, patch_size, scope, laplacian)
    # Integer sums are exact in whatever order a device adds. Shifted near zero mean,
    # var = E[d²] - E[d]² cancels by a factor of 2 at most.
    response = response - jnp.round(response.mean(PIXELS, keepdims=True)).astype(jnp.int32)
    mean = response.sum(PIXELS) / (response.shape[2] * response.shape[4])
    return _mean_of_integers(response * response) - mean * mean


def tenengrad(images: Images, patch_size: PatchSize, *, scope: str = "image") -> Scores:
    """Mean squared Sobel gradient, Gx² + Gy² (Tenenbaum 1970; Krotkov 1987), without a threshold on the gradient.

    The gradients are `cv2.Sobel(grey, CV_64F, ..., ksize=3)`, bit for bit.

    >>> import numpy as np
    >>> images = np.zeros((1, 16, 32, 3), np.float32)
    >>> images[:, ::4, 16:] = 0.5  # stripes, next to which the left patch ends
    >>> tenengrad(images, 16).round().tolist()
    [[[1920.0, 113024.0]]]
    """
    return _mean_of_integers(_per_patch(images, patch_size, scope, _squared_sobel))


def sum_modified_laplacian(images: Images, patch_size: PatchSize, *, scope: str = "image") -> Scores:
    """Sum over the patch of |2I - I(x-1) - I(x+1)| + |2I - I(y-1) - I(y+1)| (Nayar & Nakajima 1994).

    Step 1 and threshold 0 in their notation. A sum: it grows with the patch's area.

    >>> import numpy as np
    >>> images = np.zeros((1, 16, 32, 3), np.float32)
    >>> images[:, ::4, 16:] = 0.5  # stripes, next to which the left patch ends
    >>> sum_modified_laplacian(images, 16).round().tolist()
    [[[512.0, 31232.0]]]
    """
    return _per_patch(images, patch_size, scope, _modified_laplacian).sum(PIXELS).astype(jnp.float32)


def high_frequency_energy(images: Images, patch_size: PatchSize, *, scope: str = "image") -> Scores:
    """Mean square of what a Gaussian of σ = 1 (7 × 7) removes: energy in a high-pass band.

    That focus measures are energies of a filtered image, differing in the filter, is Subbarao & Tyan 1998.
    The Gaussian is `cv2.GaussianBlur(grey, (7, 7), 1)` on float32.

    >>> import numpy as np
    >>> images = np.zeros((1, 16, 32, 3), np.float32)
    >>> images[:, ::4, 16:] = 0.5  # stripes, next to which the left patch ends
    >>> high_frequency_energy(images, 16).round().tolist()
    [[[7.0, 1981.0]]]
    """
    residual = _per_patch(images, patch_size, scope, _high_pass)
    return (residual * residual).mean(PIXELS)


@functools.partial(jax.jit, static_argnames=("patch_size", "scope"))
def sigma(images: Images, patch_size: PatchSize, *, scope: str = "image") -> Scores:
    """σ in pixels of the Gaussian that each patch seems blurred with, 0 to 8; NaN: flat, it cannot be told.

    By blurring again (Hu and de Haan 2006; of edges, by the ratio of gradients, Zhuo and Sim 2011): what is sharp loses
    much by it, what is blurred little, whatever its contrast. Over textures, whose energy is spread over frequencies by
    a power law, and along edges the mean squared gradient falls with a power of all the blur there is, as
    (σ² + s² + ½)⁻ᵖ with s of the blur that is added: p is 1 where amplitudes go with 1 / frequency, ½ at a lone step.
    For every σ that can be answered the best p is known in closed form (least squares over s of 0, ½, 1, 1½ and 2 px,
    drawn towards 1); the σ that leaves least is taken. On photographs the median error is 0.4 px, 90 % lie within 1.1;
    strong blur is told too weak (6 px as about 4.8), as 8 bits keep little of it, and so is that of noise (3 as 1.8)
    and of a patch that is sharp in part. Of textured patches 97 % are put on the right side of 1.5 px; by a Laplacian
    variance of 100 it is 90 %, by the one that suits just these patches best 99 % (tests/test_sigma.py).

    patch_size: at least 16 px a side. scope: see the module. Raises ValueError as every measure does.

    >>> import numpy as np
    >>> noise = np.random.default_rng(0).normal(0.5, 0.2, (1, 16, 32, 3)).clip(0, 1).astype(np.float32)
    >>> noise[:, :, 16:] = 0.5  # nothing to tell by
    >>> sigma(noise, 16, scope="patch").tolist()
    [[[0.0, nan]]]
    """
    gradients = [functools.partial(_squared_gradient, again) for again in AGAIN]
    energies = [_per_patch(images, patch_size, scope, gradient, SIGMA_PATCH).mean(PIXELS) for gradient in gradients]
    # Levels: 0.1 keeps the logarithm of next to nothing from deciding.
    seen = jnp.log(jnp.stack(energies, axis=-1) + 0.1)
    seen = (seen - seen.mean(axis=-1, keepdims=True))[..., None, :]
    total = np.log(SIGMAS[:, None] ** 2 + np.square(AGAIN) + OWN)
    total = jnp.asarray(total - total.mean(axis=1, keepdims=True), jnp.float32)
    usual, ridge = 1.0, 0.1
    power = (ridge * usual - (seen * total).sum(axis=-1)) / (jnp.square(total).sum(axis=-1) + ridge)
    power = jnp.clip(power, 0.3, 2.0)
    left = jnp.square(seen + power[..., None] * total).sum(axis=-1) + ridge * jnp.square(power - usual)
    found = jnp.asarray(SIGMAS, jnp.float32)[left.argmin(axis=-1)]
    return jnp.where(energies[0] < FLAT, jnp.nan, found)


MEASURES = {
    "laplacian": laplacian_variance,
    "tenengrad": tenengrad,
    "modified_laplacian": sum_modified_laplacian,
    "high_frequency": high_frequency_energy,
    "sigma": sigma,
}


def threshold(scores: Real[Array | np.ndarray, "..."], *, keep_rate: float | None = None) -> float:
    """The score that separates patches to keep (score ≥ threshold, the sharp ones) from the others.

    With a keep rate exactly ceil(keep_rate · n) patches reach it, more where scores are tied.

    scores: from any measure; one representative set of images.
    keep_rate: share of these patches to keep, in (0, 1]: a quantile. None: Otsu's threshold (Otsu 1979), which splits
        the scores into the two most compact groups. Scores spread over decades, so it works on log(1 + score), in 256
        bins as `skimage.filters.threshold_otsu`.

    Raises ValueError for no scores, scores that are not finite, a keep rate outside (0, 1] and Otsu on equal scores.

    >>> threshold([1, 2, 30, 40], keep_rate=0.5)
    30.0
    """
    scores = np.sort(np.asarray(scores, np.float64), axis=None)
    if not scores.size or not np.isfinite(scores).all():
        raise ValueError(f"scores: {scores.size} values must be at least one, all finite")
    if keep_rate is not None:
        if not 0 < keep_rate <= 1:
            raise ValueError(f"keep_rate={keep_rate}: must be in (0, 1]")
        return float(scores[-int(np.ceil(keep_rate * scores.size - 1e-9))])
    if scores[0] == scores[-1]:
        why = "Otsu's threshold needs two groups"
        raise ValueError(f"scores: all equal {scores[0]:g}, {why}; give a keep_rate")
    counts, edges = np.histogram(np.log1p(scores), bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts)[:-1], np.cumsum(counts[::-1])[::-1][1:]
    mean_below = np.cumsum(counts * centres)[:-1] / below
    mean_above = np.cumsum((counts * centres)[::-1])[::-1][1:] / above
    return float(np.expm1(centres[np.argmax(below * above * (mean_below - mean_above) ** 2)]))


def whole(photo: np.ndarray) -> float:
    """The variance of the Laplacian over all of one photograph, uint8[H, W, 3] of any size, in NumPy.

    `laplacian_variance` with one patch, in float64; photographs of one scale can be compared.

    >>> stripes = np.zeros((16, 16, 3), np.uint8)
    >>> stripes[::4] = 128
    >>> whole(stripes), whole(stripes // 2)
    (23488.0, 5872.0)
    """
    return float(_laplacian(_grey(photo)).var())


def own_blur(photo: np.ndarray) -> float:
    """σ in pixels of the Gaussian by which a photograph, uint8[H, W, 3], seems blurred already; inf without detail.

    By blurring it again (Hu and de Haan 2006): σ = 1 takes much from what is sharp, and little from what is blurred.
    Amplitudes in photographs go with about 1 / frequency; blurred by σ, the variance of their Laplacian goes with σ⁻⁴,
    and its ratio after and before is (σ² / (σ² + 1))². A sharp photograph gets some 0.5 to 0.9, by its lens and its
    pixels, one blurred with σ of at least 1 more than 1; from σ = 2 on, 8 bits leave too little to tell how much more.

    >>> noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    >>> own_blur(noise) < BLURRED, own_blur(np.zeros_like(noise))
    (True, inf)
    """
    grey = _grey(photo)
    taps = np.exp(-0.5 * np.arange(-4, 5) ** 2)
    again = _smooth(_smooth(grey, taps / taps.sum(), 0), taps / taps.sum(), 1)
    before = _laplacian(grey).var() - ROUNDING
    if before < ROUNDING:  # no more than rounding makes of a flat image
        return float("inf")
    ratio = min(0.999, float(np.sqrt(_laplacian(again).var() / before)))
    return float(np.sqrt(ratio / (1 - ratio)))


def grey_levels(images: Images) -> Int32[Array, "b h w"]:
    """BT.601 grey as cv2 computes it on uint8 RGB, of images in [0, 1]."""
    levels = jnp.clip(jnp.round(images.astype(jnp.float32) * 255), 0, 255).astype(jnp.int32)
    red, green, blue = levels[..., 0], levels[..., 1], levels[..., 2]
    return (9798 * red + 19235 * green + 3735 * blue + (1 << 14)) >> 15


def laplacian(grey: Grey) -> Int32[Array, "b h w"]:
    """[0 1 0; 1 -4 1; 0 1 0], exact in integers."""
    p = jnp.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    return p[:, :-2, 1:-1] + p[:, 2:, 1:-1] + p[:, 1:-1, :-2] + p[:, 1:-1, 2:] - 4 * grey


def _grey(photo: np.ndarray) -> np.ndarray:
    """`grey_levels` of uint8[H, W, 3] in NumPy."""
    weighted = (weight * photo[..., i].astype(np.int32) for i, weight in enumerate((9798, 19235, 3735)))
    return (sum(weighted) + (1 << 14)) >> 15


def _laplacian(grey: np.ndarray) -> np.ndarray:
    """`laplacian` in NumPy."""
    p = np.pad(grey, 1, mode="reflect")
    return p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] - 4 * grey


def _smooth(grey: np.ndarray, taps: np.ndarray, axis: int) -> np.ndarray:
    radius = len(taps) // 2
    p = np.pad(grey, [(radius, radius) if i == axis else (0, 0) for i in range(2)], mode="reflect")
    return sum(tap * np.take(p, range(i, i + grey.shape[axis]), axis) for i, tap in enumerate(taps))


def _squared_sobel(grey: Grey) -> Int32[Array, "b h w"]:
    p = jnp.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    down = p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]
    across = p[:, :, :-2] + 2 * p[:, :, 1:-1] + p[:, :, 2:]
    return (down[:, :, 2:] - down[:, :, :-2]) ** 2 + (across[:, 2:] - across[:, :-2]) ** 2


def _modified_laplacian(grey: Grey) -> Int32[Array, "b h w"]:
    p = jnp.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    across = jnp.abs(2 * grey - p[:, 1:-1, :-2] - p[:, 1:-1, 2:])
    return across + jnp.abs(2 * grey - p[:, :-2, 1:-1] - p[:, 2:, 1:-1])


def _high_pass(grey: Grey) -> Float32[Array, "b h w"]:
    return grey - _gaussian(grey.astype(jnp.float32), 1.0, 3)


def _squared_gradient(again: float, grey: Grey) -> Float32[Array, "b h w"]:
    """Of central differences, after a Gaussian of σ `again`."""
    blurred = grey.astype(jnp.float32)
    if again:
        blurred = _gaussian(blurred, again, round(4 * again))
    p = jnp.pad(blurred, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    down, across = p[:, 2:, 1:-1] - p[:, :-2, 1:-1], p[:, 1:-1, 2:] - p[:, 1:-1, :-2]
    return (down * down + across * across) / 4


def _gaussian(grey: Float32[Array, "b h w"], sigma: float, radius: int) -> Float32[Array, "b h w"]:
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).tolist()
    height, width = grey.shape[1:]
    p = jnp.pad(grey, ((0, 0), (radius, radius), (radius, radius)), mode="reflect")
    rows = sum(tap * p[:, i : i + height] for i, tap in enumerate(taps))
    return sum(tap * rows[:, :, i : i + width] for i, tap in enumerate(taps))


def _per_patch(
    images: Images, patch_size: PatchSize, scope: str, response: Callable[[Grey], Array], smallest: int = 1
) -> Real[Array, "b h/p p w/p p"]:
    """`response` of the grey image, split into patches, where `PIXELS` are those of a patch.

    Reduced in this order, that of memory: on a CPU several times as fast as over patches that are contiguous.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images: {images.dtype}{list(images.shape)} must be float [B, H, W, 3] in [0, 1]")
    batch, height, width = images.shape[:3]
    rows, columns = (patch_size, patch_size) if np.ndim(patch_size) == 0 else patch_size
    given = f"patch_size={patch_size}"
    if min(rows, columns) < 1 or height % rows or width % columns:
        raise ValueError(f"{given}: must divide the image's height {height} and width {width}")
    if min(rows, columns) < smallest:
        raise ValueError(f"{given}: this measure needs patches of at least {smallest} px a side")
    if max(rows, columns) > LARGEST_PATCH:
        raise ValueError(f"{given}: must be at most {LARGEST_PATCH}; scale larger images down")
    if scope not in ("image", "patch"):
        raise ValueError(f"scope={scope!r}: must be 'image' or 'patch'")
    grey = grey_levels(images)
    if scope == "image":
        grey = response(grey)
    patches = grey.reshape(batch, height // rows, rows, width // columns, columns)
    if scope == "patch":
        apart = patches.swapaxes(2, 3)
        patches = response(apart.reshape(-1, rows, columns)).reshape(apart.shape).swapaxes(2, 3)
    return patches


def _mean_of_integers(values: Int32[Array, "b h/p p w/p p"]) -> Scores:
    """Mean of non-negative values over each patch: summed exactly in two halves, as float32 sums are not."""
    high, low = (values >> 10).sum(PIXELS), (values & 1023).sum(PIXELS)
    return (high * 1024.0 + low) / (values.shape[2] * values.shape[4])


def _moved(argv: list[str]) -> None:
    raise UserError("python -m bjax.sharpness is python -m bjax.thresholds now; the arguments are the same")


if __name__ == "__main__":
    sys.exit(command(_moved))
