"""AugMix (Hendrycks et al. 2020): chains of random operations on an image, mixed with one another and with the image.

Operations, levels and shares are those of github.com/google-research/augmix, which leaves the operations to Pillow.
Here whole batches are computed at once, by one program for all draws, with the values that Pillow gives. What changes
values is a table of 256 entries per channel, what moves pixels an affine map, and every image goes through a map and a
table, at least one of which changes nothing. Chains and their operations run one after the other: memory does not grow.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bjax.specs import AugMix

OPERATIONS = ("autocontrast", "equalize", "posterize", "rotate", "solarize")
OPERATIONS += ("shear_x", "shear_y", "translate_x", "translate_y")
NONE = len(OPERATIONS)  # leaves the image as it is
DEEPEST = 3  # operations of a chain whose number is drawn
BITS = 15  # of a fraction of half a pixel; twice as many where it is kept in two parts
ONE = 1 << BITS
LARGEST_ANGLE = 30  # degrees
LEVEL = np.arange(256)


def views(key: jax.Array, images: jax.Array, spec: AugMix, number: int) -> jax.Array:
    """What training sees of uint8 images [B, H, W, 3]: float32[B · number, H, W, 3] in [0, 1], an image's one by one.

    key: [B], the images' own; what is drawn depends on them alone. number: 1: a mix of each; more: first the image as
    it is, then mixes of it.
    """
    if number == 1:
        return mix(key, images, spec)
    streams = [jax.vmap(jax.random.fold_in, (0, None))(key, i) for i in range(1, number)]
    several = [images.astype(jnp.float32) / 255, *(mix(stream, images, spec) for stream in streams)]
    return jnp.stack(several, axis=1).reshape(-1, *images.shape[1:])


def mix(key: jax.Array, images: jax.Array, spec: AugMix) -> jax.Array:
    """AugMix of uint8 images [B, H, W, 3]: float32[B, H, W, 3] in [0, 1]. key: [B], the images' own."""
    drawn = draw(key, spec, *images.shape[1:3])

    def step(images, drawn):
        return operate(images, *drawn), None

    def chain(mixed, drawn):
        weight, *steps = drawn
        changed, _ = jax.lax.scan(step, images, steps)
        return mixed + weight[:, None, None, None] * changed.astype(jnp.float32), None

    # The loops run over chains and over their operations: [B, chains, …] -> [chains, …, B].
    chains = tuple(jnp.moveaxis(x, 0, -1) for x in drawn[1:])
    own = drawn.own[:, None, None, None] * images.astype(jnp.float32)
    mixed, _ = jax.lax.scan(chain, own, chains)
    return jnp.minimum(mixed / 255, 1)  # shares that are rounded may be more than one together


class Drawn(NamedTuple):
    """Of each image, float32[B]: its own share; of its chains, float32[B, chains]: theirs; they are 1 together.

    operations, amounts: int32[B, chains, depth], as `operate` takes them.
    """

    own: jax.Array
    weights: jax.Array
    operations: jax.Array
    amounts: jax.Array


def draw(key: jax.Array, spec: AugMix, height: int, width: int) -> Drawn:
    """What becomes of images of this size. key: [B], the images' own."""
    return jax.vmap(functools.partial(_draw, spec=spec, height=height, width=width))(key)


def _draw(key: jax.Array, *, spec: AugMix, height: int, width: int) -> Drawn:
    k_share, k_depth, k_operation, k_level, k_sign = jax.random.split(key, 5)
    # Gamma variates over their sum: of two a Beta variate, of more a Dirichlet one.
    logs = jax.random.loggamma(k_share, spec.alpha, (2 + spec.width,))
    own, mixed = jax.nn.softmax(logs[:2])
    shape = spec.width, spec.depth if spec.depth > 0 else DEEPEST
    operations = jax.random.randint(k_operation, shape, 0, len(OPERATIONS))
    if spec.depth <= 0:
        depth = jax.random.randint(k_depth, (spec.width, 1), 1, DEEPEST + 1)
        operations = jnp.where(jnp.arange(DEEPEST) < depth, operations, NONE)
    level = jax.random.uniform(k_level, shape, minval=0.1, maxval=float(spec.severity)) / 10
    sign = jnp.where(jax.random.bernoulli(k_sign, shape=shape), 1, -1)
    amounts = {
        "posterize": 4 - (level * 4).astype(int),
        "rotate": sign * (level * LARGEST_ANGLE).astype(int),
        "solarize": 256 - (level * 256).astype(int),
        "shear_x": sign * jnp.round(level * 0.3 * ONE).astype(int),
        "translate_x": sign * (level * (width / 3)).astype(int),
        "translate_y": sign * (level * (height / 3)).astype(int),
    }
    amounts["shear_y"] = amounts["shear_x"]
    amount = jnp.select([operations == OPERATIONS.index(name) for name in amounts], list(amounts.values()), 0)
    return Drawn(own, mixed * jax.nn.softmax(logs[2:]), operations, amount)


def operate(images: jax.Array, operation: jax.Array, amount: jax.Array) -> jax.Array:
    """One operation on each image: uint8[B, H, W, 3] -> the same shape and dtype, the values that Pillow gives.

    operation: int32[B], places in `OPERATIONS`, or NONE. amount: int32[B]: of posterize the bits that stay (1 to 8), of
    rotate degrees (counter-clockwise, -30 to 30), of solarize the first level that is inverted, of shear in 2⁻¹⁵ pixels
    a pixel (less than 0.5 px), of translate in pixels; other operations have none.

    Table, shear and translation are Pillow's exactly. A rotation differs where float32 rounds to the next level, by one
    level at about one value of noise in a hundred thousand, and where float64 itself falls short of a whole number.
    """
    tables = _tables(_counts(images), operation, amount).reshape(-1)
    # Stored: XLA would otherwise compute the table anew for every value that is looked up, six times as long on a CPU.
    everywhere = {"unique_indices": True, "indices_are_sorted": True, "mode": "promise_in_bounds"}
    tables = jnp.zeros_like(tables).at[jnp.arange(tables.size)].set(tables, **everywhere)
    moved = _affine(images, operation, amount)
    channel = 3 * jnp.arange(len(images))[:, None, None, None] + jnp.arange(3)
    return tables.at[256 * channel + moved].get(mode="promise_in_bounds")


# --- values


def _counts(images: jax.Array) -> jax.Array:
    """How many pixels of each channel have each level, int32[B, 3, 256]."""
    channel = 3 * jnp.arange(len(images))[:, None, None, None] + jnp.arange(3)
    counts = jnp.zeros(len(images) * 3 * 256, jnp.int32)
    return counts.at[256 * channel + images].add(1, mode="promise_in_bounds").reshape(-1, 3, 256)


def _tables(counts: jax.Array, operation: jax.Array, amount: jax.Array) -> jax.Array:
    """What becomes of each level, uint8[B, 3, 256], of images with `counts` (int32[B, 3, 256]) pixels of each."""
    operation, amount = operation[:, None, None], amount[:, None, None]
    tables = {
        "autocontrast": _autocontrast(counts),
        "equalize": _equalize(counts),
        "posterize": LEVEL & (-1 << jnp.clip(8 - amount, 0, 8)),
        "solarize": jnp.where(amount > LEVEL, LEVEL, 255 - LEVEL),
    }
    chosen = jnp.broadcast_to(LEVEL, counts.shape)
    for name, table in tables.items():
        chosen = jnp.where(operation == OPERATIONS.index(name), table, chosen)
    return chosen.astype(jnp.uint8)


def _autocontrast(counts: jax.Array) -> jax.Array:
    """The levels that there are, spread over all: Pillow's `int(level * scale - lowest * scale)` in float64.

    scale is 255 / (highest - lowest). Where the exact value is whole, rounding decides between it and the level below:
    of 18 % of the pairs of lowest and highest some level falls short. `_rounding` says by how much products are off;
    their difference is rounded, too, which makes up for at most half of float64's spacing below the whole number.
    """
    lowest, highest = _ends(counts)
    span = jnp.maximum(highest - lowest, 1)
    above = jnp.clip(LEVEL - lowest, 0, span)
    value, rest = 255 * above // span, 255 * above % span
    off, power = _rounding()
    off = jnp.asarray(off)[span[..., 0]]
    short = jnp.take_along_axis(off, lowest, axis=-1) - off
    value -= (rest == 0) & (4 * short > jnp.asarray(power)[value])
    return jnp.where(highest > lowest, value, LEVEL)


@functools.cache
def _rounding() -> tuple[np.ndarray, np.ndarray]:
    """How far float64 is off `level * (255 / span)`, int32[span, level], and the least power of two not below a level.

    In 2⁻⁵², beyond what the lowest level is off by whose exact product differs by a whole number: so it is whole, and
    right for the difference of two such levels.
    """
    off, level = np.zeros((256, 256), np.int32), np.arange(256)
    for span in range(1, 256):
        product = level * (255.0 / span)
        period = span // np.gcd(span, 255)  # in levels, after which the exact products differ by a whole number
        whole = level // period * (255 * period // span)
        off[span] = (product - whole - product[level % period]) * 2.0**52
    return off, np.array([0, *(1 << (n - 1).bit_length() for n in range(1, 256))], np.int32)


def _equalize(counts: jax.Array) -> jax.Array:
    """As many pixels at each level as at any other, as far as levels are not split; as in Pillow, in whole numbers."""
    step = (counts.sum(axis=-1, keepdims=True) - jnp.take_along_axis(counts, _ends(counts)[1], axis=-1)) // 255
    below = jnp.cumsum(counts, axis=-1) - counts
    table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, table, LEVEL)


def _ends(counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The lowest and the highest level that there is, int32[B, 3, 1]."""
    there = counts > 0
    lowest = jnp.argmax(there, axis=-1, keepdims=True)
    return lowest, 255 - jnp.argmax(there[..., ::-1], axis=-1, keepdims=True)


# --- places


def _affine(images: jax.Array, operation: jax.Array, amount: jax.Array) -> jax.Array:
    """Images moved as the operation says, bilinear and black outside; the same where it moves nothing.

    Places are counted in half pixels, of which the centres of pixels are the odd ones, in whole numbers of two parts:
    what lies on an edge or beyond it is then decided as Pillow's float64 does it, and alike on every device.
    """
    batch, height, width, _ = images.shape

    def amount_of(name):
        return jnp.where(operation == OPERATIONS.index(name), amount, 0)[:, None, None]

    degrees = amount_of("rotate")
    cosine, cosine_low, sine, sine_low = (jnp.asarray(part)[degrees + LARGEST_ANGLE] for part in _turns())
    centre_x, centre_y = (jnp.where(degrees == 0, 0, side) for side in (width, height))  # shears start at the corner
    x = 2 * jnp.arange(width) + 1 - centre_x
    y = 2 * jnp.arange(height)[:, None] + 1 - centre_y
    place = cosine * x + (amount_of("shear_x") - sine) * y, cosine_low * x - sine_low * y
    column, right, inside_x = _pixel(*place, centre_x + 2 * amount_of("translate_x"), width)
    place = (amount_of("shear_y") + sine) * x + cosine * y, sine_low * x + cosine_low * y
    row, below, inside_y = _pixel(*place, centre_y + 2 * amount_of("translate_y"), height)

    first = jnp.arange(batch)[:, None, None] * (height * width)

    def at(row, column):
        place = first + jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
        # Value by value: of whole pixels or of pixels in one number a gather takes three to ten times as long on a CPU.
        place = 3 * place[..., None] + jnp.arange(3)
        return images.reshape(-1).at[place].get(mode="promise_in_bounds").astype(jnp.float32)

    def between(start, end, share):
        return start + (end - start) * share[..., None]

    rows = (between(at(r, column), at(r, column + 1), right) for r in (row, row + 1))
    found = between(*rows, below)  # cut, not rounded, as in Pillow
    return jnp.where((inside_x & inside_y)[..., None], found, 0).astype(jnp.uint8)


def _pixel(place: jax.Array, low: jax.Array, start: jax.Array, side: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of places from `start` on: the pixel before, the next one's share (float32), and whether they are in the image.

    place, low: half pixels in 2⁻¹⁵ and what is left of them in 2⁻³⁰. start: half pixels. side: of the image, pixels.
    """
    place, low = place + (start << BITS) + (low >> BITS), low & (ONE - 1)
    inside = (place >= 0) & (place < 2 * side * ONE)
    place -= ONE  # from the edge of a pixel to its centre
    share = (place & (2 * ONE - 1)).astype(jnp.float32) / (2 * ONE) + low.astype(jnp.float32) / (2.0 * ONE * ONE)
    return place >> BITS + 1, share, inside


@functools.cache
def _turns() -> list[np.ndarray]:
    """Cosine and sine of -30 to 30 degrees, int32[61] in two parts each: of 2⁻¹⁵, and what is left in 2⁻³⁰."""
    parts = []
    for function in (np.cos, np.sin):
        value = function(np.radians(np.arange(-LARGEST_ANGLE, LARGEST_ANGLE + 1))) * ONE
        parts += [np.floor(value).astype(np.int32), np.floor((value - np.floor(value)) * ONE).astype(np.int32)]
    return parts
