"""Point spread functions: the kernels behind every blur, centred, non-negative, summing to 1.

All functions take a scalar parameter or a batch of them and put the kernel's axes last, so `[B]` parameters
give a `[B, k, k]` stack. They are differentiable in the parameters and jit-able (`kernel_size` is static).

Parameters are in pixels, angles in radians, counter-clockwise as seen on the screen (0 is horizontal).
Outside jit a parameter that is negative, not finite or too large for its kernel is a ValueError. Inside jit
its value is unknown: what lies outside the kernel is cut off and the rest is normalised. A Gaussian has no
end: its kernel must reach 3σ to either side (`bjax.specs.gaussian_size` names a side that holds 4σ).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float32, Real

from bjax import specs
from bjax.specs import check_kernel_size

Parameter = Real[ArrayLike, "*b"]  # a number, or a batch of any shape of them


def check(name: str, value: Parameter, low: float, high: float = np.inf, hint: str = "") -> None:
    """Raise ValueError unless `value` is finite and in [low, high]; traced values pass, they are not known yet."""
    if isinstance(value, jax.core.Tracer):
        return
    value = np.asarray(value, np.float64)
    fits = np.isfinite(value) & (value >= low) & (value <= high)
    if not fits.all():
        allowed = f"in [{low:g}, {high:g}]" if np.isfinite(high) else f"at least {low:g}"
        allowed = allowed if np.isfinite(low) else "finite"
        raise ValueError(f"{name}={value[~fits].flat[0]:g}: must be {allowed}{hint}")


def check_cut(sigma: Parameter, kernel_size: int) -> None:
    """`specs.check_cut` of the largest of `sigma`; traced values pass, they are not known yet."""
    if not isinstance(sigma, jax.core.Tracer) and np.size(sigma):
        specs.check_cut(float(np.max(sigma)), kernel_size)


def gaussian_taps(sigma: Parameter, kernel_size: int = 19) -> Float32[Array, "*b k"]:
    """The 1-D Gaussian at x = -r..r, normalised over its taps.

    torchvision's `GaussianBlur` and `cv2.getGaussianKernel` (for σ > 0) have the same taps. σ = 0 is the identity.
    """
    check_kernel_size(kernel_size)
    check("sigma", sigma, 0)
    check_cut(sigma, kernel_size)
    x = jnp.arange(kernel_size, dtype=jnp.float32) - kernel_size // 2
    # Below 0.05 every tap but the centre underflows to 0 in float32: the clamp changes no value and
    # prevents 0/0.
    sigma = jnp.maximum(jnp.asarray(sigma, jnp.float32), 0.05)[..., None]
    weights = jnp.exp(-0.5 * (x / sigma) ** 2)
    return weights / weights.sum(-1, keepdims=True)


def gaussian(sigma: Parameter, kernel_size: int = 19) -> Float32[Array, "*b k k"]:
    """The isotropic Gaussian of standard deviation `sigma` ≥ 0, outer product of `gaussian_taps`."""
    taps = gaussian_taps(sigma, kernel_size)
    return taps[..., :, None] * taps[..., None, :]


def motion(length: Parameter, angle: Parameter, kernel_size: int = 21) -> Float32[Array, "*b k k"]:
    """Uniform motion along a straight line of `length` ≥ 1 pixels at `angle` radians.

    The line of zero width in the textbook PSF has no values on a pixel grid. Here each pixel weighs max(0, 1 - d), with
    d its distance to the centred segment of length L - 1: a line one pixel wide with soft edges. L = 1 is the identity
    at every angle; at θ = 0 an odd L is the uniform row of L taps, an even L has half-weight ends (a uniform row of
    even length has no centre pixel). `length` and `angle` broadcast; `length` ≤ `kernel_size` always fits.
    """
    check_kernel_size(kernel_size)
    check("length", length, 1, kernel_size, " (kernel_size): pass a larger odd kernel_size")
    check("angle", angle, -np.inf)
    length, angle = jnp.broadcast_arrays(jnp.asarray(length, jnp.float32), jnp.asarray(angle, jnp.float32))
    length, cos, sin = (value[..., None, None] for value in (length, jnp.cos(angle), jnp.sin(angle)))
    x = jnp.arange(kernel_size, dtype=jnp.float32) - kernel_size // 2
    y = -x[:, None]  # rows count downwards, angles turn upwards
    half = jnp.maximum(length - 1, 0) / 2
    along = jnp.maximum(jnp.abs(x * cos + y * sin) - half, 0)
    weights = 1 - _hypot(along, x * sin - y * cos)
    weights = jnp.where(weights > 1e-6, weights, 0)  # pixels at distance 1 but for rounding
    return weights / weights.sum((-2, -1), keepdims=True)


def defocus(radius: Parameter, kernel_size: int = 21) -> Float32[Array, "*b k k"]:
    """The disk of `radius` ≥ 0 pixels, each pixel weighing the exact area the disk covers of it.

    R ≤ 1/2 lies inside one pixel and is the identity. `radius` ≤ `kernel_size / 2` always fits.
    """
    check_kernel_size(kernel_size)
    check("radius", radius, 0, kernel_size / 2, " (half of kernel_size): pass a larger odd kernel_size")
    radius = jnp.maximum(jnp.asarray(radius, jnp.float32), 0.5)[..., None, None]
    edges = jnp.arange(kernel_size + 1, dtype=jnp.float32) - kernel_size / 2
    corner = _area_from_centre(radius, edges, edges[:, None])
    weights = jnp.maximum(jnp.diff(jnp.diff(corner, axis=-1), axis=-2), 0)
    return weights / weights.sum((-2, -1), keepdims=True)


def _hypot(x: Array, y: Array) -> Array:
    """sqrt(x² + y²) with gradient 0, not NaN, at the origin."""
    square = x * x + y * y
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _area_from_centre(radius: Array, x: Array, y: Array) -> Array:
    """Area of the disk inside the rectangle from its centre to the corner (x, y), negative where x·y is."""
    a, b = jnp.minimum(jnp.abs(x), radius), jnp.minimum(jnp.abs(y), radius)
    chord = jnp.minimum(_leg(radius, b), a)  # the disk reaches height b up to here
    curved = _area_under_arc(radius, a) - _area_under_arc(radius, chord)
    return jnp.sign(x) * jnp.sign(y) * (b * chord + curved)


def _leg(radius: Array, a: Array) -> Array:
    """√(R² − a²), as a product that is exactly 0 at a = R, with gradient 0 there."""
    square = (radius - a) * (radius + a)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


@jax.custom_jvp
def _area_under_arc(radius: Array, a: Array) -> Array:
    """∫₀ᵃ √(R² − u²) du for 0 ≤ a ≤ R."""
    leg = _leg(radius, a)
    # Not arcsin(a / R), which is ill-conditioned at a = R.
    return 0.5 * (a * leg + radius * radius * jnp.arctan2(a, leg))


@_area_under_arc.defjvp
def _area_under_arc_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    # The rule of Leibniz; differentiating the formula instead subtracts two infinities at a = R.
    (radius, a), (d_radius, d_a) = primals, tangents
    leg = _leg(radius, a)
    return _area_under_arc(radius, a), leg * d_a + radius * jnp.arctan2(a, leg) * d_radius
