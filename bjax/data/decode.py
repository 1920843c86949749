"""Image file bytes to RGB pixels, and the crops of training and evaluation, on the host in uint8."""

import io
import math
import struct

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError


def decode(data, *, exif_rotate=False):
    """Decodes one image file to RGB.

    JPEG goes through libjpeg-turbo with the exact (not the fast) inverse DCT and chroma upsampling; CMYK
    JPEG and every other format through Pillow. Grey is repeated over the channels, 16-bit grey keeps its
    high byte, transparency is dropped, of an animation the first frame is taken: all as torchvision's
    `default_loader` followed by `convert("RGB")`, except for 16-bit grey, which Pillow would clip.

    Args:
      data: the bytes of the file.
      exif_rotate: turn the image upright as its EXIF orientation says. Data sets are read without (their
        labels and published numbers were made without); photographs from a camera want it.

    Returns:
      uint8[H, W, 3].

    Raises:
      ValueError: one line with the cause, for bytes that are empty, truncated, damaged or no image.
    """
    if not data:
        raise ValueError("empty file")
    if not exif_rotate and data.startswith(b"\xff\xd8\xff"):
        try:
            _, _, colorspace, _ = simplejpeg.decode_jpeg_header(data)
            if colorspace not in ("CMYK", "YCCK"):
                return simplejpeg.decode_jpeg(data)
        except ValueError as error:
            # libjpeg's warnings are errors here, and some are harmless: there are images in ImageNet with
            # stray bytes between their segments. As in torchvision, Pillow judges those; but it lets pass
            # what TensorFlow refuses, files that end early.
            if "Premature end" in str(error):
                raise ValueError(f"truncated: {error}") from None
    try:
        with Image.open(io.BytesIO(data)) as image:
            return to_rgb(image, exif_rotate=exif_rotate)
    except UnidentifiedImageError:
        raise ValueError("no image format that Pillow knows") from None
    # What Pillow's readers raise on damaged files; SyntaxError is a broken PNG chunk.
    except (
        OSError,
        SyntaxError,
        EOFError,
        IndexError,
        TypeError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:
        raise ValueError(str(error) or type(error).__name__) from None


def to_rgb(image, *, exif_rotate=False):
    """uint8[H, W, 3] of a Pillow image, with the rules of `decode`; raises ValueError for 32 bits a pixel."""
    if exif_rotate:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.mode in ("I", "F"):
        raise ValueError(f"cannot show Pillow mode {image.mode} (32 bits a pixel) as RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def random_resized_crop(rng, image, size, *, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
    """A crop of random area and aspect ratio, resized to a square: torchvision's `RandomResizedCrop` on PIL
    images.

    Ten draws of an area uniform in `scale` and an aspect ratio log-uniform in `ratio`; if none fits, the
    largest central crop whose ratio is within `ratio`. Bilinear with antialiasing, so that training sees
    the resampling of evaluation.

    Args:
      rng: numpy Generator.
      image: uint8[H, W, 3].
      size: side of the result, pixels.
      scale: range of the crop's share of the image's area.
      ratio: range of the crop's width over its height.

    Returns:
      uint8[size, size, 3].
    """
    top, left, height, width = _random_box(rng, *image.shape[:2], scale, ratio)
    return _resize(image[top : top + height, left : left + width], size, size)


def random_crop(rng, image, size):
    """A crop at a uniformly random place, pixels as they are: uint8[H, W, 3] -> uint8[size, size, 3].

    Resizing changes how sharp an image is; where the blur itself is the label, pixels must stay. Images
    smaller than `size` are extended by reflection, since a black border would be an edge that no photograph
    has.
    """
    image = _reflect_to(image, size)
    top = rng.integers(image.shape[0] - size + 1)
    left = rng.integers(image.shape[1] - size + 1)
    return image[top : top + size, left : left + size]


def center_crop(image, size, *, resize=None, interpolation="bilinear"):
    """The central square after resizing the shorter side: torchvision's `ImageClassification` preset on PIL
    images.

    The longer side becomes int(resize * long / short); the crop starts at round((H - size) / 2).
    Antialiased.

    Args:
      image: uint8[H, W, 3].
      size: side of the crop, pixels.
      resize: length of the shorter side before the crop, pixels; None crops the pixels as they are, after
        extending an image smaller than `size` by reflection.
      interpolation: of the resizing: "bilinear", or "bicubic" as timm's and vision_transformer's weights have it.

    Returns:
      uint8[size, size, 3].

    Raises:
      ValueError: resize is smaller than size.
    """
    if resize:
        if resize < size:
            raise ValueError(f"resize={resize} is smaller than the crop of {size}")
        height, width = image.shape[:2]
        short, long = sorted((height, width))
        long = int(resize * long / short)
        height, width = (resize, long) if height <= width else (long, resize)
        image = _resize(image, height, width, FILTERS[interpolation])
    else:
        image = _reflect_to(image, size)
    top = round((image.shape[0] - size) / 2)
    left = round((image.shape[1] - size) / 2)
    return image[top : top + size, left : left + size]


def detailed_crops(image, size, number):
    """Up to `number` crops of an image, pixels as they are, those with the most detail first.

    Candidates tile the image: as many rows and columns of crops as fit, spread evenly from border to border. Their
    detail is the sum of absolute grey-level differences between neighbours, by which the demo's photographs are cut
    too: smooth crops (sky, walls) do not show how an image is blurred. Unlike the variance of the Laplacian, the sum
    is not ruled by a few edges or by noise. Of a photograph that is sharp in parts, those parts come first.

    Args:
      image: uint8[H, W, 3]; one smaller than `size` is extended by reflection, as in training.
      size: side of the crops, pixels.
      number: how many at most.

    Returns:
      uint8[n, size, size, 3], 1 ≤ n ≤ number.
    """
    image = _reflect_to(image, size)
    rows, columns = (_spread(side, size) for side in image.shape[:2])
    crops = [image[top : top + size, left : left + size] for top in rows for left in columns]
    best = np.argsort([-_detail(crop) for crop in crops], kind="stable")[:number]
    return np.stack([crops[i] for i in best])


def _spread(side, size):
    """Where as many crops as fit into `side` start, at even distances; a single one is central."""
    number = side // size
    return np.linspace(0, side - size, number).round().astype(int) if number > 1 else [(side - size) // 2]


def _detail(image):
    grey = image.sum(axis=-1, dtype=np.int32)
    return sum(int(np.abs(np.diff(grey, axis=axis)).sum()) for axis in (0, 1))


def mirror(image):
    """uint8[H, W, 3] flipped left to right; by Pillow, since copying from NumPy's reversed view is slower."""
    return np.asarray(Image.fromarray(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT))


def _random_box(rng, height, width, scale, ratio):
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(height - h + 1), rng.integers(width - w + 1), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def _resize(image, height, width, resample=Image.Resampling.BILINEAR):
    if image.shape[:2] == (height, width):
        return image
    image = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(image.resize((width, height), resample))


def _reflect_to(image, size):
    missing = [max(size - side, 0) for side in image.shape[:2]]
    if not any(missing):
        return image
    return np.pad(image, [(m // 2, m - m // 2) for m in missing] + [(0, 0)], mode="reflect")
