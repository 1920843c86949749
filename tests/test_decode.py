"""Decoding and cropping against Pillow, OpenCV and torchvision; files that are damaged or made to do harm."""

import contextlib
import io
import os
import pickle
import struct
import subprocess
import sys
import types
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, PngImagePlugin
from scipy import stats

from bjax.data import decode, views


def photo(height=60, width=80, seed=0):
    """Smooth random colours: compressible, and no two places alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encode(image, format="JPEG", **options):
    data = io.BytesIO()
    image = image.copy() if isinstance(image, Image.Image) else Image.fromarray(image)  # saving leaves traces
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


def small_files():
    """One of every kind that is read, with what hangs on them: EXIF, text, several frames."""
    image = Image.fromarray(photo(12, 17))
    grey = np.asarray(image.convert("L"))
    exif, text = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112], exif[0x010F] = 6, "maker"
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    text.add_text("key", "value" * 40, zip=True)
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')

    def animated():
        return {"save_all": True, "append_images": [Image.fromarray(photo(12, 17, seed)) for seed in (1, 2)]}

    files = [
        encode(image, exif=exif),
        encode(image, progressive=True),
        encode(image.convert("CMYK")),
        encode(image, "MPO", exif=exif, **animated()),
        encode(image, "PNG", exif=exif, pnginfo=text),
        encode(image, "PNG", **animated()),
        encode(grey.astype(np.uint16) * 257, "PNG"),
        encode(image.convert("P"), "PNG", transparency=0),
        encode(image, "WEBP", exif=exif),
        encode(image.convert("RGBA"), "WEBP", lossless=True, **animated()),
        encode(image.convert("P"), "GIF", interlace=1, comment=b"comment", **animated()),
        encode(image, "BMP"),
        encode(image.convert("1"), "BMP"),
        encode(image, "PPM"),
        b"P3\n# plain\n2 2\n255\n" + b"1 2 3 " * 4,
        encode(image, "TIFF", exif=exif, **animated()),
        encode(image.convert("1"), "TIFF", compression="group4"),
    ]
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma"):
        files.append(encode(image, "TIFF", compression=compression))
    return files


SMALL = small_files()


@pytest.mark.parametrize("exif_rotate", [False, True])
def test_every_kind_of_file_is_read(exif_rotate):
    for data in SMALL:
        assert decode.decode(data, exif_rotate=exif_rotate).dtype == np.uint8


@st.composite
def damaged(draw):
    data = bytearray(draw(st.sampled_from(SMALL)))
    for _ in range(draw(st.integers(1, 4))):
        # As often in the header as anywhere: there is what says how the rest is to be read.
        place = draw(st.integers(0, len(data) - 1) | st.integers(0, min(len(data), 200) - 1))
        match draw(st.sampled_from(["flip", "byte", "number", "cut", "remove", "repeat"])):
            case "flip":
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "byte":
                data[place] = draw(st.integers(0, 255))
            case "number":
                number = draw(st.sampled_from([0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]))
                number = struct.pack(draw(st.sampled_from("<>")) + "I", number)
                data[place : place + 4] = number[: draw(st.sampled_from([2, 4]))]
            case "cut":
                del data[max(place, 1) :]
            case "remove":
                del data[place : min(place + draw(st.integers(1, 8)), len(data) - 1)]
            case "repeat":
                data[place:place] = data[place : place + draw(st.integers(1, 40))]
    return bytes(data)


@pytest.mark.filterwarnings("ignore:::PIL")
@given(damaged(), st.booleans())
@settings(max_examples=500, deadline=None)
def test_a_damaged_file_is_an_image_or_the_documented_error(data, exif_rotate):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)  # larger ones would only take longer
        try:
            image = decode.decode(data, exif_rotate=exif_rotate)
        except ValueError as error:
            cause = str(error)
            assert cause and "\n" not in cause
            return
    assert image.dtype == np.uint8
    assert image.ndim == 3 and image.shape[2] == 3 and image.size


def test_whatever_pillow_raises_is_one_line_but_want_of_memory(monkeypatch):
    data = encode(Image.fromarray(photo()).convert("L"), "PNG")

    def raises(error):
        def convert(*args, **kwargs):
            raise error

        monkeypatch.setattr(Image.Image, "convert", convert)

    # Fuzzing found these once in some 200,000 files, in places that change with Pillow's release.
    raises(OverflowError("Python int too large\nto convert"))
    with pytest.raises(ValueError, match=r"^Python int too large to convert$"):
        decode.decode(data)
    raises(AttributeError())
    with pytest.raises(ValueError, match=r"^AttributeError$"):
        decode.decode(data)
    raises(MemoryError())
    with pytest.raises(MemoryError):  # which says nothing of the file: a run must not skip it as damaged
        decode.decode(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF"])
@pytest.mark.parametrize("exif_rotate", [False, True])
def test_the_bound_on_pixels_is_pillows(monkeypatch, format, exif_rotate):
    data = encode(photo(60, 80), format)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60 * 80 / 2)
    with pytest.warns(Image.DecompressionBombWarning) if exif_rotate or format != "JPEG" else contextlib.nullcontext():
        assert decode.decode(data, exif_rotate=exif_rotate).shape == (60, 80, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60 * 80 / 2 - 1)
    with pytest.raises(ValueError, match="4800 pixels"):
        decode.decode(data, exif_rotate=exif_rotate)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode.decode(data, exif_rotate=exif_rotate).shape == (60, 80, 3)


@pytest.fixture(scope="module")
def bombs():
    """Small files that ask for gigabytes: {name: bytes}."""
    image = Image.fromarray(photo(12, 17))

    def jpeg(image, marker, **options):
        data = bytearray(encode(image, **options))
        place = data.index(marker)
        data[place + 5 : place + 9] = struct.pack(">HH", 65500, 65500)
        return bytes(data)

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    png = encode(image, "PNG")
    header, rest = png[:8], png[33:]
    size = chunk(b"IHDR", struct.pack(">IIBBBBB", 65500, 65500, 8, 2, 0, 0, 0))
    zeros = zlib.compress(bytes(100_000_000), 9)
    gif = bytearray(encode(image.convert("P"), "GIF"))
    gif[6:10] = struct.pack("<HH", 65500, 65500)
    webp = bytearray(encode(image.convert("RGBA"), "WEBP", save_all=True, append_images=[image]))
    webp[24:30] = b"\xff\xff\0" * 2
    bmp = bytearray(encode(image, "BMP"))
    bmp[18:26] = struct.pack("<II", 65500, 65500)
    tiff = bytearray(encode(image, "TIFF", compression="tiff_lzw"))
    for tag in (256, 257):
        place = tiff.index(struct.pack("<HHI", tag, 3, 1))
        tiff[place + 8 : place + 10] = struct.pack("<H", 65500)
    # A delta of 255 rows, each of 80 M pixels
    delta = b"\0\2\xff\xff" * 4
    rle = struct.pack("<IiiHHIIiiII", 40, 80_000_000, 1, 1, 8, 1, len(delta), 0, 0, 256, 0) + bytes(1024) + delta
    return {
        "jpeg": jpeg(image, b"\xff\xc0"),
        "progressive jpeg": jpeg(image, b"\xff\xc2", progressive=True),
        "cmyk jpeg": jpeg(image.convert("CMYK"), b"\xff\xc0"),
        "png": header + size + rest,
        "png text": png[:33] + chunk(b"zTXt", b"key\0\0" + zeros) + rest,
        "png profile": png[:33] + chunk(b"iCCP", b"key\0\0" + zeros) + rest,
        "gif": bytes(gif),
        "webp": bytes(webp),
        "bmp": bytes(bmp),
        "bmp rle": b"BM" + struct.pack("<IHHI", 14 + len(rle), 0, 0, 14 + 40 + 1024) + rle,
        "ppm": b"P6 65500 65500 255\n" + bytes(100),
        "tiff": bytes(tiff),
        "tiff tile": tiff_of_one_tile(32768, 65520),
    }


def tiff_of_one_tile(width, height):
    """A grey TIFF of 30 × 20 px in LZW, whose one tile is said to be of that size."""
    fields = [(256, 30), (257, 20), (258, 8), (259, 5), (262, 1), (277, 1)]
    fields += [(322, width), (323, height), (324, 134), (325, 60)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4) + b"\x80\0\x3f" * 20


@pytest.fixture(scope="module")
def with_little_memory():
    """Runs Python code that has 64 MiB to itself; `files` are there as a dict of bytes."""

    def run(code, files):
        start = (
            "import pickle, resource, sys, warnings\n"
            "import numpy as np\n"
            "from bjax.data import decode, views\n"
            "warnings.simplefilter('ignore')\n"
            "small, files = pickle.load(sys.stdin.buffer)\n"
            "for data in small: decode.decode(data)\n"  # what readers load once is not counted
            "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
            "resource.setrlimit(resource.RLIMIT_AS, (size + 2**26, -1))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", start + code], input=pickle.dumps((SMALL, files)), capture_output=True
        )
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        return done.stdout.decode()

    return run


def test_small_files_that_ask_for_gigabytes_are_refused(with_little_memory, bombs):
    assert len(bombs["jpeg"]) < 1000
    said = with_little_memory(
        "for name, data in files.items():\n"
        "    for exif_rotate in (False, True):\n"
        "        try: print(name, decode.decode(data, exif_rotate=exif_rotate).shape)\n"
        "        except ValueError as error: print(f'{name}: refused: {error}')\n",
        bombs,
    ).splitlines()
    assert len(said) == 2 * len(bombs)
    assert all(": refused: " in line for line in said), said
    assert sum("pixels" in line for line in said) >= 2 * 9, said


def test_crops_of_an_image_of_one_row_take_no_gigabytes(with_little_memory):
    said = with_little_memory(
        "for shape in ((1, 120_000, 3), (120_000, 1, 3)):\n"
        "    image = np.zeros(shape, np.uint8)\n"
        "    print(decode.center_crop(image, 224, resize=256).shape, decode.center_crop(image, 224).shape)\n"
        "    print(decode.random_crop(np.random.default_rng(0), image, 224).shape)\n"
        "    print(views.detailed(image, 224, 2).crops.shape)\n",
        {},
    )
    assert said.count("(224, 224, 3)") == 6
    assert said.count("(2, 224, 224, 3)") == 2


def test_the_middle_of_a_long_image_is_that_of_the_whole(monkeypatch):
    for shape in ((7, 1234), (1234, 7), (3, 900)):
        image = photo(*shape)
        whole = [decode.center_crop(image, 24, resize=29, interpolation=i) for i in decode.FILTERS]
        with monkeypatch.context() as patch:
            patch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
            parts = [decode.center_crop(image, 24, resize=29, interpolation=i) for i in decode.FILTERS]
        np.testing.assert_allclose(np.int32(parts), np.int32(whole), atol=1)


def test_a_jpeg_of_many_scans_is_refused_and_what_is_appended_is_none():
    data = encode(photo(), progressive=True)
    *start, last = data.split(b"\xff\xda")
    scan = b"\xff\xda" + last.removesuffix(b"\xff\xd9")
    for exif_rotate in (False, True):
        with pytest.raises(ValueError, match=r"^JPEG of \d+ scans: up to 100"):
            decode.decode(data[:-2] + scan * 100 + data[-2:], exif_rotate=exif_rotate)
        film = data + b"\xff\xda\0\0" * 1000
        np.testing.assert_array_equal(decode.decode(film, exif_rotate=exif_rotate), decode.decode(data))
    assert decode.scans_of(data) == len(start) == 10
    sequential = encode(photo())
    assert decode.scans_of(sequential) == decode.scans_of(sequential[:-2] + scan * 200 + data[-2:]) == 1


def test_a_run_length_encoded_bmp_is_refused(bombs):
    with pytest.raises(ValueError, match="run-length encoded BMP"):
        decode.decode(bombs["bmp rle"])


def test_postscript_is_not_run(tmp_path, monkeypatch):
    path = tmp_path / "bin" / "gs"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n[ $1 = --version ] || touch {tmp_path}/called\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # to be looked for
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    for exif_rotate in (False, True):
        with contextlib.suppress(ValueError):
            decode.decode(data, exif_rotate=exif_rotate)
    assert not (tmp_path / "called").exists()
    with pytest.raises(ValueError, match=r"^no image format that is read"):
        decode.decode(data)
    with Image.open(io.BytesIO(data)) as image, contextlib.suppress(OSError):
        image.load()
    assert (tmp_path / "called").exists()  # by Pillow itself: the trap works


@pytest.mark.parametrize("format", ["DDS", "PCX", "SGI", "TGA"])
def test_formats_that_no_photograph_has_are_not_tried(format):
    with pytest.raises(ValueError, match=r"^no image format that is read \(JPEG, PNG, "):
        decode.decode(encode(photo(), format))


def test_only_regular_files_are_read(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"bytes")
    assert decode.read(tmp_path / "photo.jpg") == decode.read(str(tmp_path / "photo.jpg")) == b"bytes"
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to("nowhere")
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(decode.LARGEST_FILE + 1)
    for name, cause in (
        ("pipe.jpg", "not a regular file"),
        (".", "a folder; name a photograph in it"),
        ("link.jpg", "no such file"),
        ("large.jpg", "1,073,741,825 bytes: image files are read up to 1,073,741,824"),
    ):
        with pytest.raises(ValueError, match=f"^{cause}$"):
            decode.read(tmp_path / name)
    assert [path.name for path in decode.find([tmp_path])] == [
        "large.jpg",
        "link.jpg",
        "photo.jpg",
        "pipe.jpg",
    ]


def test_stray_bytes_are_tolerated_as_in_imagenet():
    data = encode(photo())
    np.testing.assert_array_equal(decode.decode(data[:-2] + b"stray" + data[-2:]), decode.decode(data))


def test_32_bit_pixels_are_refused():
    data = encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF")
    with pytest.raises(ValueError, match="32 bits"):
        decode.decode(data)


@given(height=st.integers(20, 400), width=st.integers(20, 400), size=st.integers(8, 100), more=st.integers(0, 40))
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
    ours = np.array([decode.random_box(rng, 375, 500, scale, ratio) for _ in range(4000)])
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
    ours = decode.random_box(np.random.default_rng(0), *shape, (2, 2), (3 / 4, 4 / 3))
    image = Image.fromarray(photo(*shape))
    assert ours == torchvision.RandomResizedCrop.get_params(image, [2.0, 2.0], [3 / 4, 4 / 3])


@given(seed=st.integers(0, 1000), height=st.integers(10, 200), width=st.integers(10, 200))
@settings(max_examples=30, deadline=None)
def test_random_resized_crop_pixels_are_torchvisions(torchvision, seed, height, width):
    image = photo(height, width, seed)
    box = decode.random_box(np.random.default_rng(seed), height, width, (0.08, 1), (3 / 4, 4 / 3))
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
    crops = views.detailed(image, 32, 16).crops
    assert crops.shape == (6, 32, 32, 3)
    np.testing.assert_array_equal(crops[0], image[38:, 69:])
    np.testing.assert_array_equal(crops[1], image[:32, :32])
    np.testing.assert_array_equal(views.detailed(image, 32, 2).crops, crops[:2])
    # Where as many crops as fit lie is known: from border to border, at even distances.
    places = [(y, x) for y in (0, 38) for x in (0, 34, 69)]
    rest = [image[y : y + 32, x : x + 32] for y, x in places[1:-1]]
    assert sorted(c.tobytes() for c in crops[2:]) == sorted(c.tobytes() for c in rest)


def test_a_single_crop_is_central_and_a_small_image_is_extended_by_reflection():
    image = np.random.default_rng(0).integers(0, 256, (50, 20, 3), np.uint8)
    (crop,) = views.detailed(image, 32, 16).crops
    np.testing.assert_array_equal(crop, decode.center_crop(image, 32))
    np.testing.assert_array_equal(crop[:, 6:26], image[9:41])
