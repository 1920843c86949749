"""Whether what differs between platforms is right: blurs, attention, pooling's gradient, models in bfloat16.

Each check gives an error and what is tolerated of it; references are float64 in NumPy, or float32 on the CPU.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import peers
from bjax import blur, models, tokens
from bjax.models.pooling import max_pool
from bjax.specs import MaskSpec

POOLS = {  # window, stride, padding, ceil
    "3/2 padded": (3, 2, 1, False),
    "3/2 rounded up": (3, 2, 0, True),
    "3/1 padded": (3, 1, 1, False),
    "2/2 rounded up": (2, 2, 0, True),
}
MASKS = {
    "all tokens": MaskSpec(),
    "half gathered": MaskSpec("gather", keep_rate=0.5),
    "three quarters gathered, a third of them masked": MaskSpec("gather", keep_rate=0.75, threshold=100.0),
    "half attended to": MaskSpec("attend", keep_rate=0.5),
}
GRADIENTS = 0.1  # tolerated in bfloat16, root mean square by that of what is right
ROUNDINGS = 3  # times as far as rounded weights and images alone
Check = Callable[[], tuple[float, float]]


def checks(names: dict[str, dict], size: int) -> dict[str, Check]:
    """{what is checked: a function that returns (error, tolerated)}. names: models, with options; size: of images."""
    found: dict[str, Check] = {f"blur {kind}": functools.partial(blurred, kind, size) for kind in KERNELS}
    for dtype in ("float32", "bfloat16"):
        for pool, how in POOLS.items():
            found[f"max-pooling's gradient, {pool}, {dtype}"] = functools.partial(pooled, *how, dtype)
    for mask, spec in MASKS.items():
        found[f"attention, {mask}"] = functools.partial(attended, spec, size)
    for name, options in names.items():
        found[f"{name} in bfloat16"] = functools.partial(in_bfloat16, name, options, size)
    return found


def apart(found, right) -> float:
    """The root mean square of a difference, by that of what is right."""
    found, right = np.asarray(found, np.float64), np.asarray(right, np.float64)
    return float(np.sqrt(((found - right) ** 2).mean() / (right**2).mean()))


# --- blur


def _gaussian(sigma: float, size: int) -> np.ndarray:
    taps = np.exp(-0.5 * ((np.arange(size) - size // 2) / sigma) ** 2)
    return np.outer(taps, taps)


def _motion(length: float, angle: float, size: int) -> np.ndarray:
    """1 less the distance to the segment of length - 1, see bjax.blur.psf."""
    x = np.arange(size) - size // 2
    y = -x[:, None]
    along = np.maximum(np.abs(x * np.cos(angle) + y * np.sin(angle)) - (length - 1) / 2, 0)
    weights = 1 - np.hypot(along, x * np.sin(angle) - y * np.cos(angle))
    return np.where(weights > 1e-6, weights, 0)


def _defocus(radius: float, size: int, fine: int = 2000) -> np.ndarray:
    """The area of each pixel that a disk covers: exact along the columns, sums of thin strips along the rows."""
    edges = np.arange(size + 1) - size / 2
    x = edges[0] + (np.arange(size * fine) + 0.5) / fine
    half = np.sqrt(np.maximum(radius**2 - x**2, 0))
    inside = np.clip(half, edges[:-1, None], edges[1:, None]) - np.clip(-half, edges[:-1, None], edges[1:, None])
    return inside.reshape(size, size, fine).mean(axis=2)


SIGMA, LENGTH, ANGLE, RADIUS = (np.linspace(*ends, 4) for ends in ((1, 3), (7, 17), (0, 3), (2, 6)))
KERNELS = {
    "gaussian": [_gaussian(sigma, 19) for sigma in SIGMA],
    "motion": [_motion(length, angle, 21) for length, angle in zip(LENGTH, ANGLE, strict=True)],
    "defocus": [_defocus(radius, 21) for radius in RADIUS],
}
BLURS = {
    "gaussian": lambda images: blur.gaussian(images, np.float32(SIGMA)),
    "motion": lambda images: blur.motion(images, np.float32(LENGTH), np.float32(ANGLE)),
    "defocus": lambda images: blur.defocus(images, np.float32(RADIUS)),
}


def blurred(kind: str, size: int) -> tuple[float, float]:
    """The largest difference from a sum over taps in float64."""
    images = np.random.default_rng(0).random((4, size, size, 3), np.float32)
    found = np.asarray(jax.jit(BLURS[kind])(images), np.float64)
    right = np.zeros(images.shape)
    for image, kernel, total in zip(np.float64(images), KERNELS[kind], right, strict=True):
        radius = len(kernel) // 2
        padded = np.pad(image, ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
        for i, j in np.argwhere(kernel):
            total += kernel[i, j] / kernel.sum() * padded[i : i + size, j : j + size]
    return float(np.abs(found - right).max()), 1e-5


# --- pooling


def pooled(window: int, stride: int, padding: int, ceil: bool, dtype: str) -> tuple[float, float]:
    """The largest difference of the gradient, with many ties, from that where the first maximum of a window takes all.

    Small whole numbers, so that sums are exact in every type.
    """
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (2, 13, 14, 8)).astype(np.float32)
    pool = functools.partial(max_pool, window=window, stride=stride, padding=padding, ceil=ceil)
    result = jax.eval_shape(pool, x)
    back = rng.integers(-4, 5, result.shape).astype(np.float32)
    gradient = jax.jit(lambda x, back: jax.vjp(pool, x)[1](back)[0])
    found = np.asarray(gradient(jnp.asarray(x, dtype), jnp.asarray(back, dtype)), np.float64)
    right = np.zeros(x.shape)
    for row, column in np.ndindex(result.shape[1:3]):
        top, left = row * stride - padding, column * stride - padding
        rows = slice(max(top, 0), top + window)
        columns = slice(max(left, 0), left + window)
        part = x[:, rows, columns]
        first = part.reshape(2, -1, 8).argmax(axis=1)
        at = np.unravel_index(first, part.shape[1:3])
        image, channel = np.indices(first.shape)
        right[image, rows.start + at[0], columns.start + at[1], channel] += back[:, row, column]
    return float(np.abs(found - right).max()), 0.0


# --- models


def _variables(model, images, seed: int = 0) -> dict:
    """Random ones, none of them zero, on the CPU."""
    variables = jax.jit(model.init)(jax.random.key(seed), images[:1])
    rng = np.random.default_rng(seed)

    def filled(path, x):
        kernel = path[-1].key in ("kernel", "class_token") and not np.any(x)
        return np.float32(rng.normal(0, 0.02, x.shape)) if kernel else np.asarray(x)

    return jax.tree_util.tree_map_with_path(filled, variables)


def attended(spec: MaskSpec, size: int) -> tuple[float, float]:
    """The gradient of a ViT of one block in bfloat16 beside that in float32 on the CPU."""
    images = np.float32(peers.photos(4, size)) / 255
    images[:, size // 2 :] = 0.5  # nothing to see there: a threshold leaves it out
    cpu = jax.devices("cpu")[0]
    keys = jax.random.split(jax.random.key(0), len(images))
    with jax.default_device(cpu):
        kept = tokens.select(keys, images, spec, 16)
        variables = _variables(models.build("vit", depth=1, num_classes=10), images)
        weights = np.random.default_rng(2).normal(size=(len(images), 10)).astype(np.float32)

    def gradient(dtype, device):
        model = models.build("vit", depth=1, num_classes=10, dtype=dtype)

        def total(variables, images, kept):
            logits = model.apply(variables, (images - 0.5) / 0.25, tokens=kept)
            return (weights * logits).sum()

        arguments = jax.device_put((variables, images, kept), device)
        return jax.tree.leaves(jax.device_get(jax.jit(jax.grad(total))(*arguments)))

    found, right = gradient(jnp.bfloat16, jax.devices()[0]), gradient(jnp.float32, cpu)
    return apart(*(np.concatenate([x.ravel() for x in leaves]) for leaves in (found, right))), GRADIENTS


def in_bfloat16(name: str, options: dict, size: int) -> tuple[float, float]:
    """Logits, with a batch's own statistics as in training, beside those in float32 at full precision.

    Random weights make functions of very different conditions: tolerated is a few times what float32 makes of weights
    and images that are rounded to bfloat16, and no more.
    """
    images = (np.float32(peers.photos(8, size)) / 255 - 0.45) / 0.25
    of_type = {t: models.build(name, num_classes=100, dtype=t, **options) for t in (jnp.float32, jnp.bfloat16)}
    variables = _variables(of_type[jnp.float32], images)

    @functools.partial(jax.jit, static_argnames="dtype")
    def logits(variables, images, dtype):
        rngs = {"dropout": jax.random.key(0)}
        outputs, _ = of_type[dtype].apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
        return outputs[0] if isinstance(outputs, tuple) else outputs

    with jax.default_matmul_precision("highest"):
        right = logits(variables, images, jnp.float32)
        rounded = jax.tree.map(lambda x: jnp.float32(jnp.bfloat16(x)), (variables, images))
        condition = apart(logits(*rounded, jnp.float32), right)
    return apart(logits(variables, images, jnp.bfloat16), right), ROUNDINGS * condition
