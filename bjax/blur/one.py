"""ImageNet-C's blurs for one image in NumPy: the call that users of the package `imagecorruptions` know."""

import jax
import numpy as np

from bjax.blur import imagenet_c


def corrupt(image: np.ndarray, name: str, severity: int, *, seed: int = 0) -> np.ndarray:
    """One image under one of ImageNet-C's blurs: `imagecorruptions.corrupt` for these five, by `imagenet_c.corrupt`.

    image: uint8[H, W, 3], RGB, of at least 32 px a side; the result is uint8[H, W, 3]. The severities are the
        benchmark's, made for 224 px: on larger images the same blur looks weaker. Every shape compiles once.
    name: gaussian_blur, defocus_blur, motion_blur, zoom_blur or glass_blur.
    severity: 1 to 5.
    seed: of the draws of motion (the angle) and glass (the swaps); the same seed draws the same, 0 to 2³² − 1.

    Raises ValueError, naming what is allowed, for any other image, name or severity.

    >>> import numpy as np
    >>> image = np.zeros((64, 96, 3), np.uint8)
    >>> image[:, 48:] = 255
    >>> corrupt(image, "gaussian_blur", 3)[0, 44:52, 0].tolist()
    [30, 51, 78, 110, 144, 176, 203, 224]
    """
    image = np.asarray(image)
    if image.ndim == 2:
        way = "np.stack([image] * 3, axis=-1) makes it RGB"
        raise ValueError(f"image: {image.dtype}{list(image.shape)} is grey; {way}")
    return np.asarray(imagenet_c.corrupt(jax.random.key(seed), image, name, severity))
