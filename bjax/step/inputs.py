"""What the model sees: uint8 images -> AugMix, in training -> blur -> scores and mask -> normalise.

All of it happens on the devices, so the host only decodes and crops. Work per image runs under `shard_map`: each device
blurs its own rows, and every random draw comes from the image's own key, so the number of devices changes nothing.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bjax import tokens
from bjax.blur import imagenet_c, sample, varying
from bjax.runtime.sharding import BATCH
from bjax.specs import AugMix
from bjax.step import augmix
from bjax.tokens import MaskSpec, Tokens

Batch = dict[str, jax.Array]  # arrays over images


@dataclasses.dataclass(frozen=True)
class Inputs:
    """How uint8 images become what the model sees: blur -> leave out patches -> normalise (0..1 scale).

    quantize: round the blurred images to the 256 levels of a file, half to even. For task=blur_type: an image that was
    not blurred lies on the levels and one that was does not, which would tell them apart without looking at the blur,
    and photographs in files, whose blur is to be named, all lie on them. Elsewhere the blur is not the label, and the
    images stay as they were blurred.
    """

    blur: sample.BlurSpec | None  # None: images as they are
    mask: MaskSpec
    patch_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    corruption: tuple[str, int] | None = None  # ImageNet-C's name and severity, instead of `blur`
    quantize: bool = False
    augmix: AugMix | None = None  # of training alone, before the blur
    # Of each image: with augmix 3, as it is and two mixes, which are blurred alike and lose the same patches.
    views: int = 1


class Blurred(NamedTuple):
    """images: float32[B, H, W, 3] in [0, 1]; kind: int32[B], an index into `sample.KINDS`; drawn: its parameters.

    Of several views images: float32[B, views, H, W, 3].
    truth: float32[B, H, W], of every pixel how strong its blur is, in pixels (`sample.Drawn`); None where that is the
    same all over the image.
    """

    images: jax.Array
    kind: jax.Array
    drawn: sample.Params
    truth: jax.Array | None


class Seen(NamedTuple):
    """images: normalised, of the shape before; kept: the tokens kept, None without a mask; blurred: before that."""

    images: jax.Array
    kept: Tokens | None
    blurred: Blurred


def see(keys: jax.Array, images: jax.Array, inputs: Inputs, mesh: Mesh | None = None) -> Seen:
    """What a model sees of uint8 images [B, H, W, 3], in one program.

    keys: [B], the images' own (`image_keys`). mesh: of the devices that the batch is split over; None: one device.
    """
    blurred = blur(keys, images, inputs, mesh)
    return Seen(*mask(keys, blurred.images, inputs, mesh, truth=blurred.truth), blurred)


def image_keys(key: jax.Array, ids: jax.Array) -> jax.Array:
    """A key for every image, of its id (uint32[B]) alone: its draws depend on no batch, place or device."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, ids)


def blur(keys: jax.Array, images: jax.Array, inputs: Inputs, mesh: Mesh | None = None) -> Blurred:
    """uint8 images -> blurred ones; the kind is 0 under a corruption and where nothing is drawn."""

    def local(keys, images):
        if inputs.corruption is not None:
            # One at a time: a vmapped kernel is a grouped convolution, slow on every platform.
            corrupt = lambda item: imagenet_c.corrupt(*item, *inputs.corruption)  # noqa: E731
            images = jax.lax.map(corrupt, (_stream(keys, 0), images))
        if inputs.augmix is None:
            if inputs.blur is not None:
                images = sample.laid_out(images, inputs.blur)
            images = images.astype(jnp.float32) / 255
        else:
            images = augmix.views(_stream(keys, 2), images, inputs.augmix, inputs.views)
            keys = jnp.repeat(keys, inputs.views)
        if inputs.corruption is not None or inputs.blur is None:
            nothing = jnp.zeros(images.shape[0])  # which may be a symbol: `len` would not do
            drawn = nothing.astype(jnp.int32), sample.Params(*[nothing] * 5), None
        else:
            images, *drawn = sample.draw_with_truth(_stream(keys, 0), images, inputs.blur)
            images = jnp.round(images * 255) / 255 if inputs.quantize else images
        if inputs.views > 1:  # whose draws are the same
            images = images.reshape(-1, inputs.views, *images.shape[1:])
            drawn = jax.tree.map(lambda x: x[:: inputs.views], drawn)
        return Blurred(images, *drawn)

    return per_image(local, mesh)(keys, images)


def mask(
    keys: jax.Array,
    images: jax.Array,
    inputs: Inputs,
    mesh: Mesh | None = None,
    *,
    truth: jax.Array | None = None,
) -> tuple[jax.Array, Tokens | None]:
    """Images float32[B, H, W, 3] in [0, 1] -> normalised images, and the tokens kept (None without a mask).

    Of several views, float32[B, views, H, W, 3], the first one decides which. truth: of `Blurred`.
    """

    def local(keys, images, truth):
        patches = None
        if inputs.mask.selector == "oracle" and truth is not None:
            patches = varying.per_patch(truth, inputs.patch_size)
        first = images if inputs.views == 1 else images[:, 0]
        kept = tokens.select(_stream(keys, 1), first, inputs.mask, inputs.patch_size, truth=patches)
        mean, std = jnp.asarray(inputs.mean), jnp.asarray(inputs.std)
        if inputs.mask.mode == "zero_pixels":
            fill = mean if inputs.mask.fill == "mean" else 0.0
            erase = lambda images: tokens.erase(images, kept, inputs.patch_size, fill)  # noqa: E731
            images = erase(images) if inputs.views == 1 else jax.vmap(erase, 1, 1)(images)
        return (images - mean) / std, kept

    return per_image(local, mesh)(keys, images, truth)


def apply(model, variables: dict, images: jax.Array, kept: Tokens | None, **options):
    """`model.apply` on what `see` returns; options: its own, such as train and mutable."""
    variables = {k: v for k, v in variables.items() if v}
    if kept is not None and kept.mode != "zero_pixels":
        options["tokens"] = kept
    return model.apply(variables, images, **options)


def per_image(function: Callable, mesh: Mesh | None) -> Callable:
    """`function` of arrays over images, on each device for the images that it holds."""
    return function if mesh is None else jax.shard_map(function, mesh=mesh, in_specs=BATCH, out_specs=BATCH)


def _stream(keys, number: int):
    """Per-image keys for one purpose, so that blur and mask never share random numbers."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)
