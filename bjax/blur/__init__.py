"""Blurs with named, tested semantics, one parameter per image, inside jit, on any device."""

from bjax.blur import imagenet_c, psf, sample, varying
from bjax.blur.convolve import defocus, gaussian, motion
from bjax.blur.one import corrupt

__all__ = ["corrupt", "defocus", "gaussian", "imagenet_c", "motion", "psf", "sample", "varying"]
