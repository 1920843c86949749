"""A distribution of blurs as it can be asked for, and what a kernel must hold; `bjax.specs` hands all of it on."""

import dataclasses
import math

import numpy as np

from bjax.errors import nearest
from bjax.options import one_of, plain, wrong

KINDS = ("sharp", "gaussian", "motion", "defocus")  # of blur, in the order of blur_type's labels
# What a model estimates of a blur (loss.parameters), and the kind that has it.
PARAMETERS = {"sigma": "gaussian", "length": "motion", "angle": "motion", "radius": "defocus"}
IMPLEMENTATIONS = ("auto", "pix")  # of the Gaussian
WHERE = ("whole", "regions", "ramp", "centre", "surround")  # of an image is blurred
# Beyond this no photograph needs to go, and a mistyped digit would take hours and all memory to be noticed.
LARGEST_KERNEL = 1_025  # pixels


def _kinds(kinds) -> tuple[tuple[str, float], ...]:
    pairs = list(kinds.items() if hasattr(kinds, "items") else kinds)
    given = dict(pairs)
    if len(given) != len(pairs):
        raise ValueError(f"kinds={kinds!r}: a kind is named twice")
    for name, probability in given.items():
        if name not in KINDS:
            known = ", ".join(KINDS) + nearest(name, KINDS, cutoff=0.5)
            raise ValueError(f"kinds: unknown kind {name!r}, the kinds are {known}")
        if not 0 <= probability <= 1:
            raise ValueError(f"kinds: {name}={probability} is no probability, must be in [0, 1]")
    total = sum(given.values())
    if abs(total - 1) > 1e-3:
        raise ValueError(f"kinds: the probabilities sum to {total:g}, must be 1")
    return tuple((name, float(given[name]) / total) for name in KINDS if given.get(name, 0) > 0)


def _range(name: str, value, low: float, high: float) -> tuple[float, float]:
    try:
        first, last = (value, value) if np.ndim(value) == 0 else value
        first, last = float(first), float(last)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={value!r}: must be a number or a range (low, high)") from None
    if not (low <= first <= last <= high) or math.inf in (-first, last):
        raise ValueError(f"{name}={value!r}: must be low ≤ high within [{low:g}, {high:g}]")
    return first, last


def check_kernel_size(size, name: str = "kernel_size") -> None:
    """Raises ValueError unless `size` is a positive odd integer, up to `LARGEST_KERNEL`."""
    if not isinstance(size, int | np.integer) or size < 1 or size % 2 == 0:
        raise ValueError(f"{name}={size!r}: must be a positive odd integer, so that the kernel has a centre")
    if size > LARGEST_KERNEL:
        raise ValueError(f"{name}={size}: kernels have up to {LARGEST_KERNEL:,} pixels a side")


def gaussian_size(sigma: float) -> int:
    """Side of a kernel that holds the Gaussian of standard deviation `sigma`: 4σ to either side of its centre.

    Raises ValueError for a `sigma` that is negative, not finite, or needs more than `LARGEST_KERNEL` pixels a side.
    """
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma={sigma:g}: must be at least 0")
    if sigma > (largest := LARGEST_KERNEL // 8):
        raise ValueError(
            f"sigma={sigma:g}: must be at most {largest}, whose kernel has {LARGEST_KERNEL:,} pixels a side"
        )
    return 2 * math.ceil(4 * sigma) + 1


def check_cut(sigma: float, kernel_size: int) -> None:
    """Raises ValueError where `kernel_size` taps end within 3σ of their centre: they would have another deviation."""
    radius = kernel_size // 2
    if radius >= 3 * sigma:
        return
    x = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (x / sigma) ** 2)
    deviation = np.sqrt((weights * x**2).sum() / weights.sum())
    raise ValueError(
        f"sigma={sigma:g}: kernel_size={kernel_size} would cut the Gaussian off at {radius / sigma:.2g}σ, to a "
        f"standard deviation of {deviation:.2f}; use kernel_size={gaussian_size(sigma)}, or a sigma of at "
        f"most {math.floor(100 * radius / 3) / 100:g}"
    )


@dataclasses.dataclass(frozen=True)
class BlurSpec:
    """A distribution of blurs: draw a kind, then its parameters, uniformly in their ranges.

    A range is (low, high) or a single number. Frozen and hashable, so it can be a static argument of a jitted function.

    kinds: mapping of kind (see `KINDS`) to probability, which sum to 1. Kept as a tuple of pairs in their order.
    sigma: Gaussian standard deviation, pixels, ≥ 0.
    kernel_size: side of the Gaussian kernel, odd; it must reach 3σ of the largest σ.
    psf_size: side of the motion and defocus kernels, odd.
    length: motion length, pixels, 1 to `psf_size`. angle: its direction, radians, counter-clockwise from horizontal.
    radius: defocus radius, pixels, 0 to `psf_size / 2`.
    noise: standard deviation of the additive Gaussian noise on the 0..1 scale. It is added last and to every kind,
      sharp too, so that noise tells nothing about the kind; the sum is clipped to [0, 1].
    where: of the image is blurred, each draw of an image's own: whole; regions, one to three rectangles; centre, a
      rectangle or an ellipse in the middle, the object, say; surround, all but these, the background; ramp, σ growing
      from 0 at one corner to the drawn one at the opposite, in a random direction (Gaussian only, and kernel_size²
      passes). Regions, centre and surround cover half of the image on average (`bjax.blur.varying`).
    impl: of the Gaussian: auto, the platform's fast path; pix, `dm_pix.gaussian_blur` on images padded by reflection:
      the same blur to 2e-6, many times slower, the reference. dm-pix has no motion, defocus or σ that varies.

    Raises ValueError naming the field and what is allowed.
    """

    kinds: tuple[tuple[str, float], ...] = plain({**dict.fromkeys(sorted(KINDS), 0.0), "sharp": 1.0})
    sigma: tuple[float, float] = plain((1.0, 2.0))
    kernel_size: int = plain(19)
    psf_size: int = plain(21, added=True)
    length: tuple[float, float] = plain((7.0, 17.0))
    angle: tuple[float, float] = plain((0.0, math.pi))
    radius: tuple[float, float] = plain((2.0, 6.0))
    noise: tuple[float, float] = plain((0.0, 0.0))
    where: str = one_of(*WHERE, added=True)
    impl: str = one_of(*IMPLEMENTATIONS, added=True)

    def __post_init__(self):
        for name in ("kernel_size", "psf_size"):
            check_kernel_size(getattr(self, name), name)
        object.__setattr__(self, "kinds", _kinds(self.kinds))
        limits = {
            "sigma": (0, math.inf),
            "length": (1, self.psf_size),
            "angle": (-math.inf, math.inf),
            "radius": (0, self.psf_size / 2),
            "noise": (0, 1),
        }
        for name, (low, high) in limits.items():
            object.__setattr__(self, name, _range(name, getattr(self, name), low, high))
        if "gaussian" in dict(self.kinds):
            check_cut(self.sigma[1], self.kernel_size)
        for name, choices in {"where": WHERE, "impl": IMPLEMENTATIONS}.items():
            if expected := wrong(getattr(self, name), {"choices": choices}):
                raise ValueError(f"{name}={getattr(self, name)}: {expected}")
        others = " and ".join(name for name, _ in self.kinds if name in ("motion", "defocus"))
        if self.where == "ramp" and others:
            raise ValueError(f"where=ramp: {others} cannot grow over an image, only gaussian can; use regions")
        if self.impl == "pix" and (others or self.where == "ramp"):
            lacks = others or "blur that grows over an image (where=ramp)"
            raise ValueError(f"impl=pix: dm-pix has no {lacks}, only gaussian; use impl=auto")
