"""Image files to RGB pixels, and the crops of training and evaluation, on the host in uint8.

Files may come from anywhere, so nothing in them is trusted: only the formats of photographs are read, none of which
needs another program, and sizes are checked before memory is taken for pixels.
"""

import contextlib
import io
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from bjax.errors import UserError, shown

# Of all that Pillow knows. MPO, a camera's several JPEGs in one file, comes with JPEG. Among the others is EPS, which
# Pillow hands to Ghostscript, whatever the file is called.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # of the photographs in a folder
LARGEST_FILE = 2**30  # bytes: of the most pixels that are decoded, uncompressed and in 16 bits a channel
MOST_SCANS = 100  # of a JPEG, usually 1 or some 10; each goes over all pixels, and takes a few bytes
# What begins a segment of a JPEG, or ends its image: no byte of compressed data (ff 00), restart or filler.
MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
Range = tuple[float, float]  # low and high
# Bytes of the pieces in which Pillow takes memory for pixels: glibc gives those above 32 MiB back to the system, and
# keeps smaller ones for the thread that had them: gigabytes, of large photographs.
Image.core.set_block_size(2**26)


def find(paths: Iterable[Path]) -> list[Path]:
    """The files among `paths`, and the photographs in the folders among them, at any depth, sorted by path.

    Links to folders are not followed. Raises UserError for a path that does not exist, a folder that cannot be read and
    one without photographs.
    """
    photos = []
    for path in paths:
        try:
            if not stat.S_ISDIR(os.stat(path).st_mode):
                photos.append(path)
                continue
            # What is no regular file is kept: whoever reads it is told.
            inside = [Path(folder, file) for folder, _, files in os.walk(path, onerror=_fail) for file in files]
        except FileNotFoundError:
            raise UserError(f"{shown(path)}: no such file or folder") from None
        except OSError as error:
            raise UserError(f"{shown(error.filename)}: {error.strerror}") from None
        if not (inside := sorted(file for file in inside if file.suffix.lower() in SUFFIXES)):
            raise UserError(f"{shown(path)}: no {', '.join(SUFFIXES)} file in this folder")
        photos += inside
    return photos


def _fail(error: OSError) -> None:
    raise error


def read(path: str | os.PathLike) -> bytes:
    """The bytes of an image file.

    Raises ValueError of one line with the cause where there is none, it is a folder, a pipe or a device, or above
    `LARGEST_FILE`, and OSError where it cannot be read.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise ValueError("no such file") from None
    if stat.S_ISDIR(status.st_mode):
        raise ValueError("a folder; name a photograph in it")
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
        raise ValueError("not a regular file")
    if status.st_size > LARGEST_FILE:
        raise ValueError(f"{status.st_size:,} bytes: image files are read up to {LARGEST_FILE:,}")
    if not status.st_size:  # /proc has such files that never end
        return b""
    with open(path, "rb") as file:
        return file.read(LARGEST_FILE)


def memory(path: str | os.PathLike) -> int:
    """Bytes that reading and decoding an image file take, about, by what its header says; 0 where it is not read."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= LARGEST_FILE:
            return 0
        with open(path, "rb") as file, opened(file) as image:
            return status.st_size + image.width * image.height * (22 if image.format == "WEBP" else 14)
    except (OSError, ValueError):
        return 0


def decode(data: bytes, *, exif_rotate: bool = False) -> np.ndarray:
    """Decodes one image file to RGB, uint8[H, W, 3].

    JPEG goes through libjpeg-turbo with the exact (not the fast) inverse DCT and chroma upsampling; CMYK
    JPEG and the other `FORMATS` through Pillow. Grey is repeated over the channels, 16 bits keep their
    high byte, transparency is dropped, of an animation the first frame is taken: all as torchvision's
    `default_loader` followed by `convert("RGB")`, except for 16-bit grey, which Pillow would clip.

    Pixels are bounded as Pillow bounds them: width × height up to 2 × `PIL.Image.MAX_IMAGE_PIXELS`,
    178,956,970 unless that is set; above half of that Pillow warns.

    data: the bytes of the file.
    exif_rotate: turn the image upright as its EXIF orientation says. Data sets are read without (their labels and
        published numbers were made without); photographs from a camera want it.

    Raises ValueError of one line with the cause, for bytes that are empty, truncated, damaged or no image, and for
    images above the bound.
    """
    if not data:
        raise ValueError("empty file")
    if data.startswith(b"\xff\xd8\xff"):
        if (scans := scans_of(data)) > MOST_SCANS:
            raise ValueError(f"JPEG of {scans} scans: up to {MOST_SCANS} are decoded")
        if not exif_rotate:
            try:
                height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
                if colorspace not in ("CMYK", "YCCK") and is_within_bound(height, width):
                    return simplejpeg.decode_jpeg(data)
            except ValueError as error:
                # libjpeg's warnings are errors here, and some are harmless: there are images in ImageNet with
                # stray bytes between their segments. As in torchvision, Pillow judges those; but it lets pass
                # what TensorFlow refuses, files that end early.
                if "Premature end" in str(error):
                    raise ValueError(f"truncated: {error}") from None
    with opened(data) as image:
        return to_rgb(image, exif_rotate=exif_rotate)


@contextlib.contextmanager
def opened(file: bytes | BinaryIO) -> Iterator[Image.Image]:
    """An image file, or its bytes, as a Pillow image whose pixels are not decoded yet; errors are those of `decode`."""
    file = io.BytesIO(file) if isinstance(file, bytes) else file
    with _one_error(), Image.open(file, formats=FORMATS) as image:
        # Pillow unpacks these in Python: a thousand bytes can keep it busy for half a minute.
        if any(codec == "bmp_rle" for codec, *_ in image.tile):
            raise ValueError("run-length encoded BMP, which no photograph is")
        if image.format == "TIFF":  # whose tiles can be larger than the image, and are unpacked whole
            tile = [image.tag_v2.get(tag, 1) for tag in (322, 323)]
            if not all(isinstance(side, int) for side in tile) or not is_within_bound(*tile):
                raise ValueError(f"TIFF with tiles of {' × '.join(map(str, tile))} pixels")
        yield image


def to_rgb(image: Image.Image, *, exif_rotate: bool = False) -> np.ndarray:
    """uint8[H, W, 3] of a Pillow image, with the rules and errors of `decode`; 32 bits a pixel are refused."""
    with _one_error():
        if exif_rotate:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            grey = (np.asarray(image) >> 8).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=-1)
        if image.mode in ("I", "F"):
            raise ValueError(f"cannot show Pillow mode {image.mode} (32 bits a pixel) as RGB")
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
    """Whatever Pillow raises on a damaged file, as a ValueError of one line."""
    try:
        yield
    except UnidentifiedImageError:
        raise ValueError(f"no image format that is read ({', '.join(FORMATS)})") from None
    except MemoryError:  # sizes were checked: the machine's want, not the file's
        raise
    # A list would be guesswork. Besides OSError, SyntaxError and EOFError: IndexError, TypeError, struct.error,
    # OverflowError, AttributeError, …, mostly out of EXIF and TIFF tags.
    except Exception as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def scans_of(data: bytes) -> int:
    """How many scans of a JPEG are decoded; what comes after its image, such as a film, is none."""
    place, scans, components = 2, 0, None
    while marker := MARKER.search(data, place):
        place = marker.end()
        code = data[place - 1]
        if code == 0xD9:
            break
        if code in (0xC0, 0xC1):
            components = data[place + 7 : place + 8]
        if code == 0xDA:
            scans += 1
            if data[place + 2 : place + 3] == components:
                break  # a sequential JPEG in one scan, as most are: decoders read no other
        place += int.from_bytes(data[place : place + 2]) if code != 0xD8 else 0
    return scans


def is_within_bound(height: int, width: int) -> bool:
    """Pillow's rule, for who does not go through Pillow."""
    return Image.MAX_IMAGE_PIXELS is None or height * width <= 2 * Image.MAX_IMAGE_PIXELS


def random_resized_crop(
    rng: np.random.Generator,
    image: np.ndarray,
    size: int,
    *,
    scale: Range = (0.08, 1.0),
    ratio: Range = (3 / 4, 4 / 3),
) -> np.ndarray:
    """A crop of random area and aspect ratio, resized to a square: torchvision's `RandomResizedCrop` on PIL images.

    Ten draws of an area uniform in `scale` and an aspect ratio log-uniform in `ratio`; if none fits, the
    largest central crop whose ratio is within `ratio`. Bilinear with antialiasing, so that training sees
    the resampling of evaluation.

    image: uint8[H, W, 3]; the crop is uint8[size, size, 3].
    size: side of the result, pixels.
    scale: range of the crop's share of the image's area.
    ratio: range of the crop's width over its height.
    """
    top, left, height, width = random_box(rng, *image.shape[:2], scale, ratio)
    return resized(image[top : top + height, left : left + width], size, size)


def random_crop(rng: np.random.Generator, image: np.ndarray, size: int) -> np.ndarray:
    """A crop at a uniformly random place, pixels as they are: uint8[H, W, 3] -> uint8[size, size, 3].

    Resizing changes how sharp an image is; where the blur itself is the label, pixels must stay. Images smaller than
    `size` are extended by reflection, since a black border would be an edge that no photograph has.
    """
    top, left = (rng.integers(max(side - size, 0) + 1) for side in image.shape[:2])
    return cut(image, top, left, size)


def center_crop(
    image: np.ndarray, size: int, *, resize: int | None = None, interpolation: str = "bilinear"
) -> np.ndarray:
    """The central square after resizing the shorter side: torchvision's `ImageClassification` preset on PIL images.

    The longer side becomes int(resize * long / short); the crop starts at round((H - size) / 2). Antialiased.

    image: uint8[H, W, 3]; the crop is uint8[size, size, 3].
    size: side of the crop, pixels.
    resize: length of the shorter side before the crop, pixels; None crops the pixels as they are, after extending an
        image smaller than `size` by reflection.
    interpolation: of the resizing: "bilinear", or "bicubic" as timm's and vision_transformer's weights have it.

    Raises ValueError where resize is smaller than size.
    """
    if resize:
        if resize < size:
            raise ValueError(f"resize={resize} is smaller than the crop of {size}")
        height, width = image.shape[:2]
        short, long = sorted((height, width))
        long = int(resize * long / short)
        height, width = (resize, long) if height <= width else (long, resize)
        if not is_within_bound(height, width):
            # So long and thin that its resized whole would not fit into memory: resized where the crop is.
            return _resize_center(image, height, width, size, FILTERS[interpolation])
        image = resized(image, height, width, FILTERS[interpolation])
    top, left = (round(max(side - size, 0) / 2) for side in image.shape[:2])
    return cut(image, top, left, size)


def mirror(image: np.ndarray) -> np.ndarray:
    """uint8[H, W, 3] flipped left to right; by Pillow, since copying from NumPy's reversed view is slower."""
    return np.asarray(Image.fromarray(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT))


def random_box(
    rng: np.random.Generator, height: int, width: int, scale: Range, ratio: Range
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop."""
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


def resized(
    image: np.ndarray, height: int, width: int, resample: Image.Resampling = Image.Resampling.BILINEAR
) -> np.ndarray:
    """uint8[H, W, 3] -> uint8[height, width, 3], antialiased."""
    if image.shape[:2] == (height, width):
        return image
    image = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(image.resize((width, height), resample))


def _resize_center(image: np.ndarray, height: int, width: int, size: int, resample: Image.Resampling) -> np.ndarray:
    """The central square of what `resized` makes, to within rounding."""
    box = []
    for side, target in zip(image.shape[1::-1], (width, height), strict=True):
        start = round((target - size) / 2)
        box.append((start * side / target, (start + size) * side / target))
    (left, right), (top, bottom) = box
    image = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(image.resize((size, size), resample, (left, top, right, bottom)))


def cut(image: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    """The square from there, extended by reflection where the image is smaller; after cutting, which bounds it."""
    image = image[top : top + size, left : left + size].copy()  # a view would keep the whole image in memory
    missing = [size - side for side in image.shape[:2]]
    if not any(missing):
        return image
    return np.pad(image, [(m // 2, m - m // 2) for m in missing] + [(0, 0)], mode="reflect")
