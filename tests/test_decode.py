"""Decoding and cropping against Pillow, OpenCV and torchvision."""

import io
import sys
import types

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from bjax.data import decode


def photo(height=60, width=80, seed=0):
    """Smooth random colours: compressible, and no two places alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encode(image, format="JPEG", **options):
    data = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(data, format, **options)
    return data.getvalue()


def cv2_rgb(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)


@pytest.fixture(scope="module")
def torchvision():
    pytest.importorskip("torch", reason="torchvision is the oracle")
    # Its operator registration fails beside some builds of torch; transforms of PIL images do not need it.
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("_meta_registrations"))
    return pytest.importorskip("torchvision.transforms", reason="torchvision is the oracle")


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(60, 80), (1, 1), (17, 33)])
def test_jpeg_is_what_pillow_decodes(subsampling, progressive, mode, size):
    image = Image.fromarray(photo(*size)).convert(mode)
    data = encode(image, subsampling=subsampling, progressive=progressive)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode.decode(data), expected)


def test_jpeg_is_what_opencv_decodes():
    data = encode(photo(), quality=90)
    np.testing.assert_allclose(decode.decode(data), cv2_rgb(data), atol=1)


@pytest.mark.parametrize("format", ["PNG", "BMP", "WEBP", "TIFF", "PPM"])
def test_lossless_formats(format):
    options = {"lossless": True} if format == "WEBP" else {}
    np.testing.assert_array_equal(decode.decode(encode(photo(), format, **options)), photo())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_png_modes(mode):
    image = Image.fromarray(photo()).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode.decode(encode(image, "PNG")), expected)


def test_transparency_is_dropped():
    rgba = np.dstack([photo(), np.random.default_rng(0).integers(0, 256, (60, 80), dtype=np.uint8)])
    np.testing.assert_array_equal(decode.decode(encode(rgba, "PNG")), photo())
    palette = Image.fromarray(photo()).convert("P")
    data = encode(palette, "PNG", transparency=bytes(range(256)))  # which makes Pillow warn: here an error
    np.testing.assert_array_equal(decode.decode(data), np.asarray(palette.convert("RGB")))


def test_16_bit_png_keeps_the_high_byte():
    grey = np.random.default_rng(0).integers(0, 2**16, (20, 30), dtype=np.uint16)
    assert cv2.imdecode(cv2.imencode(".png", grey)[1], cv2.IMREAD_UNCHANGED).dtype == np.uint16
    decoded = decode.decode(cv2.imencode(".png", grey)[1].tobytes())
    np.testing.assert_array_equal(decoded, np.repeat((grey >> 8)[..., None], 3, -1))
    colour = np.random.default_rng(0).integers(0, 2**16, (20, 30, 3), dtype=np.uint16)
    decoded = decode.decode(cv2.imencode(".png", colour)[1].tobytes())
    np.testing.assert_array_equal(decoded, colour[..., ::-1] >> 8)


def test_cmyk_jpeg():
    data = encode(Image.fromarray(photo()).convert("CMYK"), quality=100, subsampling="4:4:4")
    decoded = decode.decode(data)
    np.testing.assert_allclose(decoded, photo().astype(int), atol=6)
    np.testing.assert_allclose(decoded, cv2_rgb(data), atol=2)


def test_exif_orientation_only_when_asked():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    data = encode(photo(), quality=100, subsampling="4:4:4", exif=exif)
    assert decode.decode(data).shape == (60, 80, 3)
    np.testing.assert_array_equal(decode.decode(data, exif_rotate=True), np.rot90(decode.decode(data), -1))


@pytest.mark.parametrize("data", [b"", b"not an image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", bytes(1000)])
def test_no_image(data):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        decode.decode(data)


@given(st.sampled_from(["JPEG", "progressive", "PNG", "CMYK"]), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_truncated_files_are_refused(kind, share):
    image = Image.fromarray(photo())
    if kind == "PNG":
        data = encode(image, "PNG")
    else:
        data = encode(image.convert("CMYK" if kind == "CMYK" else "RGB"), progressive=kind == "progressive")
    # Pillow needs all pixels, but not the checksums and markers after the last of them.
    end = len(data) - (30 if kind in ("PNG", "CMYK") else 0)
    data = data[: min(int(share * end), end - 1)]
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        decode.decode(data)


def test_jpeg_cut_off_and_filled_with_zeros_is_refused():
    data = encode(photo(), quality=95, subsampling="4:4:4")
    with pytest.raises(ValueError, match="truncated"):
        decode.decode(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


@given(st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM"]), st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_decode_or_raise_value_error(format, seed):
    rng = np.random.default_rng(seed)
    data = bytearray(encode(photo(20, 30), format))
    for place in rng.integers(0, len(data), rng.integers(1, 8)):
        data[place] = rng.integers(256)
    try:
        image = decode.decode(bytes(data))
    except ValueError:
        return
    except UserWarning:
        assume(False)  # Pillow's hint at a truncated block; not an error outside of these tests
    assert image.dtype == np.uint8
    assert image.shape[2:] == (3,)


def test_stray_bytes_are_tolerated_as_in_imagenet():
    data = encode(photo())
    np.testing.assert_array_equal(decode.decode(data[:-2] + b"stray" + data[-2:]), decode.decode(data))


def test_32_bit_pixels_are_refused():
    data = encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF")
    with pytest.raises(ValueError, match="32 bits"):
        decode.decode(data)


@given(
    height=st.integers(20, 400), width=st.integers(20, 400), size=st.integers(8, 100), more=st.integers(0, 40)
)
@settings(max_examples=40, deadline=None)
def test_center_crop_is_torchvisions(torchvision, height, width, size, more):
    image = photo(height, width)
    preset = torchvision.Compose([torchvision.Resize(size + more), torchvision.CenterCrop(size)])
    expected = np.asarray(preset(Image.fromarray(image)))
    np.testing.assert_array_equal(decode.center_crop(image, size, resize=size + more), expected)


def test_center_crop_of_the_published_evaluation(torchvision):
    for seed, shape in enumerate([(375, 500), (500, 333), (256, 256), (2000, 300)]):
        image = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
        preset = torchvision.Compose([torchvision.Resize(256), torchvision.CenterCrop(224)])
        expected = np.asarray(preset(Image.fromarray(image)))
        np.testing.assert_array_equal(decode.center_crop(image, 224, resize=256), expected)


@given(height=st.integers(1, 60), width=st.integers(1, 60), size=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_center_crop_of_unscaled_pixels(height, width, size):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    crop = decode.center_crop(image, size)
    assert crop.shape == (size, size, 3)
    down, right = max(size - height, 0), max(size - width, 0)
    edges = down // 2, down - down // 2, right // 2, right - right // 2
    image = cv2.copyMakeBorder(image, *edges, cv2.BORDER_REFLECT_101)
    top, left = round((image.shape[0] - size) / 2), round((image.shape[1] - size) / 2)
    np.testing.assert_array_equal(crop, image[top : top + size, left : left + size])


def test_center_crop_larger_than_the_resize():
    with pytest.raises(ValueError, match="resize=32 is smaller than the crop of 64"):
        decode.center_crop(photo(), 64, resize=32)


def test_random_resized_crop_draws_torchvisions_boxes(torchvision):
    import torch

    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    rng = np.random.default_rng(0)
    ours = np.array([decode._random_box(rng, 375, 500, scale, ratio) for _ in range(4000)])
    torch.manual_seed(0)
    image = Image.fromarray(photo(375, 500))
    crop = torchvision.RandomResizedCrop
    theirs = np.array([crop.get_params(image, list(scale), list(ratio)) for _ in range(4000)])
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    area = ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]
    assert stats.ks_2samp(*area).pvalue > 1e-3


@pytest.mark.parametrize("shape", [(20, 400), (400, 20), (1, 300), (37, 37)])
def test_random_resized_crop_falls_back_as_torchvision(torchvision, shape):
    # No ten draws of twice the area fit, so both take the largest central crop.
    ours = decode._random_box(np.random.default_rng(0), *shape, (2, 2), (3 / 4, 4 / 3))
    image = Image.fromarray(photo(*shape))
    assert ours == torchvision.RandomResizedCrop.get_params(image, [2.0, 2.0], [3 / 4, 4 / 3])


@given(seed=st.integers(0, 1000), height=st.integers(10, 200), width=st.integers(10, 200))
@settings(max_examples=30, deadline=None)
def test_random_resized_crop_pixels_are_torchvisions(torchvision, seed, height, width):
    image = photo(height, width, seed)
    box = decode._random_box(np.random.default_rng(seed), height, width, (0.08, 1), (3 / 4, 4 / 3))
    crop = decode.random_resized_crop(np.random.default_rng(seed), image, 64)
    expected = torchvision.functional.resized_crop(Image.fromarray(image), *map(int, box), [64, 64])
    np.testing.assert_array_equal(crop, np.asarray(expected))


def test_random_crop_takes_pixels_as_they_are():
    image = np.arange(20 * 30, dtype=np.uint16).astype(np.uint8).reshape(20, 30, 1).repeat(3, -1)
    image[..., 1] = np.arange(20)[:, None]
    image[..., 2] = np.arange(30)
    rng = np.random.default_rng(0)
    places = set()
    for _ in range(300):
        crop = decode.random_crop(rng, image, 16)
        top, left = int(crop[0, 0, 1]), int(crop[0, 0, 2])
        np.testing.assert_array_equal(crop, image[top : top + 16, left : left + 16])
        places.add((top, left))
    assert {top for top, _ in places} == set(range(5))
    assert {left for _, left in places} == set(range(15))


def test_random_crop_reflects_small_images():
    image = photo(10, 40)
    crop = decode.random_crop(np.random.default_rng(0), image, 16)
    assert crop.shape == (16, 16, 3)
    np.testing.assert_array_equal(crop[:3], crop[3:7][:0:-1])


def test_mirror():
    np.testing.assert_array_equal(decode.mirror(photo()), photo()[:, ::-1])
    np.testing.assert_array_equal(decode.mirror(photo()[3:20, 5:40]), photo()[3:20, 5:40][:, ::-1])


def test_detailed_crops_are_the_best_of_a_grid_with_pixels_as_they_are():
    rng = np.random.default_rng(0)
    image = np.full((70, 101, 3), 128, np.uint8)
    image[38:, 69:] = rng.integers(0, 256, (32, 32, 3))  # of 2 × 3 candidates of 32 px, the one in the corner
    image[:32, :32, 1] = rng.integers(120, 136, (32, 32))  # less of it
    crops = decode.detailed_crops(image, 32, 16)
    assert crops.shape == (6, 32, 32, 3)
    np.testing.assert_array_equal(crops[0], image[38:, 69:])
    np.testing.assert_array_equal(crops[1], image[:32, :32])
    np.testing.assert_array_equal(decode.detailed_crops(image, 32, 2), crops[:2])
    # Where as many crops as fit lie is known: from border to border, at even distances.
    places = [(y, x) for y in (0, 38) for x in (0, 34, 69)]
    rest = [image[y : y + 32, x : x + 32] for y, x in places[1:-1]]
    assert sorted(c.tobytes() for c in crops[2:]) == sorted(c.tobytes() for c in rest)


def test_a_single_crop_is_central_and_a_small_image_is_extended_by_reflection():
    image = np.random.default_rng(0).integers(0, 256, (50, 20, 3), np.uint8)
    (crop,) = decode.detailed_crops(image, 32, 16)
    np.testing.assert_array_equal(crop, decode.center_crop(image, 32))
    np.testing.assert_array_equal(crop[:, 6:26], image[9:41])
