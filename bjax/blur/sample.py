"""A random blur per image: which kind, with which parameters, and where, from a distribution that has a name."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float32, Int32, Key, UInt8

from bjax.blur import convolve, psf, varying
from bjax.blur.convolve import Images
from bjax.blur.varying import SigmaMap
from bjax.specs import KINDS, PARAMETERS, BlurSpec


class Params(NamedTuple):
    """What was drawn; 0 where the image's kind does not use it (never NaN)."""

    sigma: Float32[Array, " b"]
    length: Float32[Array, " b"]
    angle: Float32[Array, " b"]
    radius: Float32[Array, " b"]
    noise: Float32[Array, " b"]


class Drawn(NamedTuple):
    """Blurred images, and the truth about them.

    kind: an index into `KINDS`. truth: of every pixel how strong its blur is, in pixels: σ of a Gaussian, length of
    motion, radius of defocus, 0 where it is sharp; None where the spec blurs whole images, which `params` say all of.
    """

    images: Images
    kind: Int32[Array, " b"]
    params: Params
    truth: SigmaMap | None


SHARP = BlurSpec({"sharp": 1})
# Paper 1: GaussianBlur(19, (1, 2)); its blurred set, and the mixed set of sharp and blurred copies.
PAPER1_BLURRED = BlurSpec({"gaussian": 1})
PAPER1_MIX = BlurSpec({"sharp": 0.5, "gaussian": 0.5})
# Paper 2: four blur types and noise. It states no parameters: these ranges are ours.
PAPER2 = BlurSpec(dict.fromkeys(KINDS, 0.25), sigma=(1.0, 3.0), noise=(0.0, 0.02))
SPECS = {"sharp": SHARP, "paper1_blurred": PAPER1_BLURRED, "paper1_mix": PAPER1_MIX, "paper2": PAPER2}


def draw(key: Key[Array, " b"], images: Images, spec: BlurSpec) -> tuple[Images, Int32[Array, " b"], Params]:
    """Blur every image by its own draw from `spec`: `(images, kind, params)`.

    The blurred images have the shape and dtype of the given ones; kind holds indices into `KINDS`.

    key: typed keys (`jax.random.key`), one per image. An image's draw depends on its key alone: not on its batch, its
        place in it, or the device.
    images: float32 or bfloat16 in [0, 1].
    spec: static under jit.

    Raises ValueError for keys that are not one typed key per image and images that are not a float batch.
    """
    return draw_with_truth(key, images, spec)[:3]


def draw_with_truth(key: Key[Array, " b"], images: Images, spec: BlurSpec) -> Drawn:
    """`draw`, with the map of where each image is blurred, and how strongly."""
    batch = convolve.check_images(images)
    convolve.check_keys(key, batch)
    return _draw(key, images, spec)


def laid_out(images: UInt8[Array, "b h w c"], spec: BlurSpec) -> UInt8[Array, "b h w c"]:
    """The same images; on TPUs in memory as the products of a Gaussian blur read them, if `spec` draws any.

    To be called before they become float32, four times the bytes, and on each device, under `shard_map`: XLA cannot
    split a layout over devices.
    """
    by_products = "gaussian" in dict(spec.kinds) and spec.impl == "auto" and spec.where != "ramp"
    if not by_products or max(images.shape[1:3]) > convolve.LARGEST_PRODUCT:
        return images
    by_channel = functools.partial(with_layout_constraint, layouts=Layout((0, 3, 1, 2)))
    return lax.platform_dependent(images, tpu=by_channel, default=lambda images: images)


@functools.partial(jax.jit, static_argnames="spec")
def _draw(key: Key[Array, " b"], images: Images, spec: BlurSpec) -> Drawn:
    kind, params, noise_key = jax.vmap(lambda k: draw_one(k, spec))(key)
    # Beside the two that `draw_one` splits a key into: whole images are drawn as if there were no third.
    where_key = jax.vmap(lambda k: jax.random.fold_in(k, 2))(key)
    if spec.where == "ramp":
        blurred, truth = varying.ramp(where_key, images, 0.0, params.sigma, kernel_size=spec.kernel_size)
    else:
        one, batched = functools.partial(_apply_one, spec), functools.partial(_apply_batched, spec)
        blurred, truth = convolve.by_platform(one, batched, images, kind, params), None
        if spec.where != "whole":
            shape = varying.rectangles if spec.where == "regions" else varying.middle
            inside = shape(where_key, *images.shape[1:3]) ^ (spec.where == "surround")
            blurred = jnp.where(inside[..., None], blurred, images)
            strength = params.sigma + params.length + params.radius  # of which a kind has one
            truth = inside * strength[:, None, None]
    if spec.noise[1] > 0:
        noise = jax.vmap(lambda k: jax.random.normal(k, images.shape[1:]))(noise_key)
        blurred = blurred.astype(jnp.float32) + params.noise[:, None, None, None] * noise
        blurred = jnp.clip(blurred, 0, 1).astype(images.dtype)
    return Drawn(blurred, kind, params, truth)


def draw_one(key: Key[Array, ""], spec: BlurSpec) -> tuple[Int32[Array, ""], Params, Key[Array, ""]]:
    """The kind and parameters of one image, scalars, and the key of its noise."""
    draw_key, noise_key = jax.random.split(key)
    kind_u, *param_u = jax.random.uniform(draw_key, (1 + len(Params._fields),))
    names, probabilities = zip(*spec.kinds, strict=True)
    choice = (kind_u >= np.cumsum(probabilities)[:-1].astype(np.float32)).sum()
    kind = jnp.array([KINDS.index(name) for name in names], jnp.int32)[choice]
    params = {}
    for name, u in zip(Params._fields, param_u, strict=True):
        low, high = getattr(spec, name)
        used = kind == KINDS.index(PARAMETERS[name]) if name in PARAMETERS else True
        params[name] = jnp.where(used, jnp.float32(low) + jnp.float32(high - low) * u, 0)
    return kind, Params(**params), noise_key


def _apply_one(spec: BlurSpec, image: Array, kind: Int32[Array, ""], params: Params) -> Array:
    """One image `[H, W, C]`: only the drawn blur is computed."""
    blurs = {
        "sharp": lambda image, p: image,
        "gaussian": lambda image, p: _gaussian(spec, image, p.sigma),
        "motion": lambda image, p: convolve.depthwise(image, psf.motion(p.length, p.angle, spec.psf_size)),
        "defocus": lambda image, p: convolve.depthwise(image, psf.defocus(p.radius, spec.psf_size)),
    }
    names = [name for name, _ in spec.kinds]
    branch = sum((kind > KINDS.index(name)).astype(jnp.int32) for name in names)  # the kinds before this one
    image, params = jax.tree.map(lambda x: x[None], (image, params))
    return lax.switch(branch, [blurs[name] for name in names], image, params)[0]


def _apply_batched(spec: BlurSpec, images: Images, kind: Int32[Array, " b"], params: Params) -> Images:
    """A Gaussian pass, then a motion-or-defocus pass, each the exact identity for images of another kind."""
    names = [name for name, _ in spec.kinds]
    if "gaussian" in names:
        images = _gaussian(spec, images, params.sigma)
    if "motion" in names or "defocus" in names:
        line = psf.motion(params.length, params.angle, spec.psf_size)
        disk = psf.defocus(params.radius, spec.psf_size)
        is_motion = (kind == KINDS.index("motion"))[:, None, None]
        images = convolve.depthwise(images, jnp.where(is_motion, line, disk))
    return images


def _gaussian(spec: BlurSpec, images: Images, sigma: Float32[Array, " b"]) -> Images:
    """σ as it comes, unlike `convolve.gaussian`: the spec has checked it."""
    if spec.impl == "pix":
        return convolve.gaussian_pix(images, sigma, spec.kernel_size)
    return convolve.separable(images, psf.gaussian_taps(sigma, spec.kernel_size))
