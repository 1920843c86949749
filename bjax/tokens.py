"""Which patches of an image a model gets to see: images -> scores -> kept tokens.

A mask is data beside the image, never a property of the weights: `select` scores the un-normalised image and returns
`Tokens`; a ViT takes them as `model(images, tokens=tokens)`, and `erase` writes the same choice into the pixels for
every other model. Paper 1 calls leaving out both "zeroed" and "excluded": zero_pixels is the first; attend, gather and
bucket are the second.
"""

import jax
import jax.numpy as jnp
from flax import struct

from bjax import sharpness
from bjax.specs import CONTROLS, MEASURES, STRATIFIED, MaskSpec

SELECTORS = (*MEASURES, STRATIFIED, *CONTROLS)


@struct.dataclass
class Tokens:
    """The patches kept of each image, in row-major order of the patch grid.

    keep: bool[B, N]. indices: int32[B, K] in rising order where mode is gather, else None; it may hold positions whose
    `keep` is False (fewer than K passed the threshold). full: every one of the K positions is kept.
    """

    keep: jax.Array
    indices: jax.Array | None
    mode: str = struct.field(pytree_node=False)
    full: bool = struct.field(pytree_node=False, default=False)


def budget(spec: MaskSpec, patches: int) -> int:
    """The largest number of patches that `spec` keeps of `patches`, at least 1.

    >>> budget(MaskSpec(mode="gather", keep_rate=0.5), 9)
    4
    """
    return patches if spec.keep_rate is None else max(1, round(spec.keep_rate * patches))


def select(
    key: jax.Array | None, images: jax.Array, spec: MaskSpec, patch_size: int, *, truth: jax.Array | None = None
) -> Tokens | None:
    """Chooses the patches to keep of each image; None where the mode is none.

    key: one key per image, [B], which decides between patches that are preferred alike (so selector=random is what it
    alone decides). None: they come in one and the same random order in every image; not with selector=random.
    images: float[B, H, W, 3] in [0, 1], before normalisation: scores are on the 0..255 scale. patch_size: at most 1024,
    divides H and W. truth: float[B, H/p, W/p], how blurred each patch is, in pixels; selector=oracle needs it, and
    others do not look at it.

    Returns `Tokens` of the N = H/p · W/p patches, of which at most `budget(spec, N)` are kept.

    Raises ValueError as the measure that scores the patches (`bjax.sharpness`), for a selector without what it needs,
    and for a truth of another shape.

    >>> import numpy as np
    >>> images = np.zeros((1, 16, 32, 3), np.float32)
    >>> images[:, ::2, 16:] = 1  # stripes on the right
    >>> kept = select(jax.random.split(jax.random.key(0), 1), images, MaskSpec(mode="gather", keep_rate=0.5), 16)
    >>> kept.keep.tolist(), kept.indices.tolist()
    ([[False, True]], [[1]])
    """
    if spec.mode == "none":
        return None
    rows, columns = images.shape[1] // patch_size, images.shape[2] // patch_size
    batch, patches = images.shape[0], rows * columns
    if spec.selector == "oracle" and (truth is None or truth.shape != (batch, rows, columns)):
        given = "none" if truth is None else f"shape {list(truth.shape)}"
        raise ValueError(f"truth: {given}, selector=oracle needs [{batch}, {rows}, {columns}], how blurred patches are")
    if spec.selector == "random" and key is None:
        raise ValueError("key: None, selector=random needs one per image")
    allowed = budget(spec, patches)
    if allowed == patches and spec.threshold is None:  # nothing to choose, so nothing to score
        everything = jnp.broadcast_to(jnp.arange(patches, dtype=jnp.int32), (batch, patches))
        indices = everything if spec.mode == "gather" else None
        return Tokens(everything >= 0, indices, mode=spec.mode, full=True)

    # Preferred patches rank high: flipping the sign turns "drop above" into "drop below".
    sign = 1.0 if spec.drop == "below" else -1.0
    count = jnp.full(batch, allowed)
    if spec.threshold is not None or spec.selector not in ("random", "centre", "oracle"):
        scores = sharpness.MEASURES[spec.measure](images, patch_size, scope=spec.scope)
        blurs = spec.measure == "sigma"  # of which less is sharper, and where NaN is a patch that cannot be told
        direction = -sign if blurs else sign
        preference = jax.lax.stop_gradient(direction * scores.reshape(batch, patches))
        limit = None if spec.threshold is None else direction * spec.threshold
        if blurs:
            preference = jnp.where(jnp.isnan(preference), -jnp.inf if limit is None else limit, preference)
        if limit is not None:
            passes = preference >= limit
            count = jnp.minimum(count, passes.sum(axis=1))
    if spec.selector == "random":
        preference = jnp.zeros((batch, patches))
    elif spec.selector == "inverse":
        preference = -preference
    elif spec.selector == "centre":
        y = jnp.arange(rows) - (rows - 1) / 2
        x = jnp.arange(columns) - (columns - 1) / 2
        preference = jnp.broadcast_to(-(y[:, None] ** 2 + x[None, :] ** 2).ravel(), (batch, patches))
    elif spec.selector == "oracle":
        preference = -sign * truth.reshape(batch, patches).astype(jnp.float32)

    keys = jnp.broadcast_to(jax.random.key(0), (batch,)) if key is None else key
    # By chance, not by place: else of flat patches, or of those outside a blurred region, the first of the grid would
    # be seen, and the last never.
    chance = jax.vmap(lambda k: jax.random.uniform(k, (patches,)))(keys)
    order = jnp.lexsort((-chance, -preference), axis=1)
    rank = jnp.argsort(order, axis=1)  # the inverse permutation
    if spec.selector == STRATIFIED:
        in_cell = _rank_in_cell(rank.reshape(batch, rows, columns)).reshape(batch, patches)
        if spec.threshold is not None:
            in_cell = jnp.where(passes, in_cell, 4)  # after all that pass
        order = jnp.argsort(in_cell * patches + rank, axis=1)
        rank = jnp.argsort(order, axis=1)
    indices = jnp.sort(order[:, :allowed], axis=1).astype(jnp.int32) if spec.mode == "gather" else None
    return Tokens(rank < count[:, None], indices, mode=spec.mode, full=spec.threshold is None)


def _rank_in_cell(rank: jax.Array) -> jax.Array:
    """Ranks int[B, rows, columns], all different -> 0 to 3, each patch's place among the patches of its 2×2 cell.

    Cells at the end of an odd side have two patches, or one.
    """
    batch, rows, columns = rank.shape
    largest = jnp.iinfo(rank.dtype).max
    even = jnp.pad(rank, ((0, 0), (0, rows % 2), (0, columns % 2)), constant_values=largest)
    height, width = even.shape[1] // 2, even.shape[2] // 2
    cells = even.reshape(batch, height, 2, width, 2).swapaxes(2, 3).reshape(batch, height, width, 4)
    places = (cells[..., :, None] > cells[..., None, :]).sum(axis=-1)
    places = places.reshape(batch, height, width, 2, 2).swapaxes(2, 3)
    return places.reshape(even.shape)[:, :rows, :columns]


def overlap(keep: jax.Array, right: jax.Array) -> dict[str, jax.Array]:
    """How well a choice of patches agrees with the right one, both bool[B, N]: float32[B] precision, recall and iou.

    precision: the share of the kept that are right; recall: the share of the right that are kept; iou: of the patches
    that are either, the share that are both (intersection over union, the Jaccard index). NaN where there are none to
    take a share of.

    >>> found = overlap(jnp.array([[True, True, False, False]]), jnp.array([[True, False, True, True]]))
    >>> {name: round(float(share[0]), 2) for name, share in found.items()}
    {'precision': 0.5, 'recall': 0.33, 'iou': 0.25}
    """
    both, kept, needed = ((x.sum(axis=1)).astype(jnp.float32) for x in (keep & right, keep, right))
    shares = {"precision": kept, "recall": needed, "iou": kept + needed - both}
    return {name: jnp.where(of > 0, both / jnp.maximum(of, 1), jnp.nan) for name, of in shares.items()}


def erase(images: jax.Array, tokens: Tokens, patch_size: int, fill: float | jax.Array) -> jax.Array:
    """Paints the dropped patches of `images` (float[B, H, W, 3]) with `fill`, a number or one per channel.

    tokens: of these images and this patch_size (`select`). Returns images of the same shape and dtype.

    >>> keep = jnp.array([[True, False]])
    >>> erase(jnp.ones((1, 2, 4, 3)), Tokens(keep, None, mode="zero_pixels"), 2, 0.5)[0, 0, :, 0].tolist()
    [1.0, 1.0, 0.5, 0.5]
    """
    images = jnp.asarray(images)  # of NumPy's float64, float32: what JAX has
    batch, height, width, _ = images.shape
    keep = tokens.keep.reshape(batch, height // patch_size, width // patch_size)
    keep = jnp.repeat(jnp.repeat(keep, patch_size, axis=1), patch_size, axis=2)
    return jnp.where(keep[..., None], images, jnp.asarray(fill, images.dtype))
