"""What photographs that are damaged, or made to do harm, do to bjax.predict and bjax.thresholds, counted.

    python -m tests.faults.photos --number=300 --seed=0 --large=8

One process reads a corpus: named cases, `number` more that are good files with bits, zeros or an end of their own, and
`large` of the most pixels that are read. Each must be answered or named in one line on stderr, in bounded memory and
time, and nothing may be run. Outcomes in capitals are failures. The exit code is 0, or 1 where there is one.
"""

import argparse
import collections
import io
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
MEMORY = 5  # GiB that a command may take: JAX, and the largest photograph at 22 bytes a pixel
SECONDS = 300
# Runs a command; the last line of stderr is the most memory that it took, in KiB.
MEASURED = (
    "import resource, subprocess, sys\n"
    "code = subprocess.call(sys.argv[1:])\n"
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)\n"
    "sys.exit(code)"
)
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
SEEN, NAMED = "answered", "named in one line"


def photographs(
    number: int, seed: int, *, run: Path, large: int = 0, commands: tuple[str, ...] = ("predict", "thresholds")
) -> collections.Counter:
    """How often each outcome was met; `run`: a finished run that predicts."""
    counts = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        bait = folder / "bin" / "gs"
        bait.parent.mkdir()
        bait.write_text(f"#!/bin/sh\n[ $1 = --version ] || touch {folder}/ran\n")
        bait.chmod(0o755)
        photos = folder / "photos"
        outside = write_corpus(photos, number, seed, large)
        paths = {os.fsencode(path) for path in photos.rglob("*") if path.suffix and not path.is_dir()}
        paths |= {os.fsencode(path) for path in outside}
        named = [folder / "photos", *outside]
        flags = {"predict": [f"--workdir={run}", "--json"], "thresholds": ["--size=32"]}
        for command in commands:
            answered = _json if command == "predict" else None
            start = [f"bjax.{command}", *map(os.fsencode, named), *flags[command]]
            for outcome, times in _outcomes(start, paths, bait.parent, answered).items():
                counts[f"{command}: {outcome}"] += times
        if (folder / "ran").exists():
            counts["both: POSTSCRIPT was run"] += 1
    return counts


def failures(counts: collections.Counter) -> list[str]:
    """The outcomes, "COMMAND: WHAT …", that should not be."""
    return [outcome for outcome in counts if outcome.partition(": ")[2].split()[0].isupper()]


def _outcomes(command: list, paths: set[bytes], gs: Path, answered) -> collections.Counter:
    counts = collections.Counter()
    environment = os.environ | {"PATH": f"{gs}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"PYTHONIOENCODING": "utf-8:strict", "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        [sys.executable, "-c", MEASURED, sys.executable, "-m", *command],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return collections.Counter(["HANGS"])
    err, _, taken = err.rstrip().rpartition(b"\n")
    if b"Traceback" in err:
        counts[f"TRACEBACK {err.decode(errors='replace').splitlines()[-1][:200]}"] += 1
    gib = int(taken) / 2**20
    counts[f"{'MEMORY of' if gib > MEMORY else 'in at most'} {gib:.1f} GiB"] += 1
    if process.returncode != 1:
        counts[f"CODE {process.returncode} where some failed"] += 1
    lines = collections.Counter(line for line in err.split(b"\n") if line)
    rows = set(answered(out)) if answered else set()
    for path in sorted(paths):
        line = [x for x in lines if x.startswith(b"bjax: " + _shown(path) + b": ")]
        if path in rows or (not answered and not line):
            counts[SEEN if not line else "BOTH"] += 1
        else:
            counts[NAMED if len(line) == 1 else f"NOT TOLD: {path[-60:]!r}"] += 1
        for x in line:
            lines[x] -= 1
    if "TRACEBACK" not in " ".join(counts):
        for line in +lines:
            ours = line.startswith(b"bjax: ")
            counts[f"UNASKED: {line[:160].decode(errors='replace')}" if ours else "remark of Pillow or libtiff"] += 1
    return counts


def _json(out: bytes) -> list[bytes]:
    return [os.fsencode(json.loads(line)["photo"]) for line in out.splitlines()]


def _shown(path: bytes) -> bytes:
    """A path as a line tells it."""
    text = os.fsdecode(path)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text).encode()


def write_corpus(folder: Path, number: int, seed: int, large: int) -> list[Path]:
    """Writes all photographs below `folder`; those that a search there does not meet are returned, to be named."""
    folder.mkdir()
    good = _good()
    files = good | _harmful(good)
    rng = random.Random(seed)
    for i in range(number):
        name = rng.choice(sorted(good))
        files[f"mutant {i}{Path(name).suffix}"] = _mutant(good[name], rng)
    if large:
        first = io.BytesIO()
        Image.new("RGB", (13377, 13377), "teal").save(first, "PNG", compress_level=1)
        files |= {f"large {i}.png": first.getvalue() for i in range(large)}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / os.fsdecode(b"not utf-8 \xff\xfe.png")).write_bytes(good["good.png"])
    (folder / os.fsdecode(b"not utf-8 \xff\xfe.jpg")).write_bytes(b"no image")
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket.jpg"))
    (folder / "folder.jpg").mkdir()
    (folder / "deep" / "deeper").mkdir(parents=True)
    shutil.copy(folder / "good.jpg", folder / "deep" / "deeper")
    for name, target in {
        "nowhere.jpg": "nothing", "itself.jpg": "itself.jpg", "zero.jpg": "/dev/zero", "tty.jpg": "/dev/tty",
        "deep/back": "..", "memory.jpg": "/proc/self/mem", "linked.jpg": "good.jpg",
    }.items():  # fmt: skip
        (folder / name).symlink_to(target)
    with (folder / "sparse.jpg").open("wb") as file:
        file.truncate(2**40)
    return [path for path in sorted(folder.iterdir()) if path.suffix in (".gif", ".tif", ".bmp", ".ppm")]


def _encoded(image: Image.Image, format: str, **options) -> bytes:
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


def _good() -> dict[str, bytes]:
    coarse = np.random.default_rng(0).integers(0, 256, (5, 6, 4), np.uint8)
    rgba = Image.fromarray(coarse).resize((80, 60), Image.Resampling.BICUBIC)
    rgb, exif = rgba.convert("RGB"), Image.Exif()
    exif[0x0112] = 6
    return {
        "good.jpg": _encoded(rgb, "JPEG"),
        "good.png": _encoded(rgb, "PNG"),
        "good.webp": _encoded(rgb, "WEBP"),
        "good.gif": _encoded(rgb.convert("P"), "GIF"),
        "good.tif": _encoded(rgb, "TIFF", compression="tiff_lzw"),
        "good.bmp": _encoded(rgb, "BMP"),
        "good.ppm": _encoded(rgb, "PPM"),
        "progressive.jpg": _encoded(rgb, "JPEG", progressive=True),
        "cmyk.jpg": _encoded(rgb.convert("CMYK"), "JPEG"),
        "grey.jpg": _encoded(rgb.convert("L"), "JPEG"),
        "rotated.jpg": _encoded(rgb, "JPEG", exif=exif),
        "profile.jpg": _encoded(rgb, "JPEG", icc_profile=random.Random(0).randbytes(999)),
        "palette.png": _encoded(rgb.convert("P"), "PNG", transparency=bytes(range(256))),
        "alpha.png": _encoded(rgba, "PNG"),
        "bits.png": _encoded(rgb.convert("1"), "PNG"),
        "16 bits.png": _encoded(Image.fromarray(np.arange(4800, dtype=np.uint16).reshape(60, 80)), "PNG"),
        "moving.png": _encoded(rgb, "PNG", save_all=True, append_images=[rgba.convert("RGB")]),
        "moving.webp": _encoded(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)]),
        "moving.gif": _encoded(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90)]),
        "one pixel.png": _encoded(rgb.crop((0, 0, 1, 1)), "PNG"),
        "long and thin.png": _encoded(Image.new("RGB", (65000, 1)), "PNG"),
        "new\nline.jpg": _encoded(rgb, "JPEG"),
        "\x1b[2Jclear.png": _encoded(rgb, "PNG"),
        f"{'long' * 62}.png": _encoded(rgb, "PNG"),
    }


def _harmful(good: dict[str, bytes]) -> dict[str, bytes]:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    png, jpeg, zeros = good["good.png"], good["good.jpg"], zlib.compress(bytes(100_000_000), 9)
    huge = bytearray(jpeg)
    place = huge.index(b"\xff\xc0")
    huge[place + 5 : place + 9] = struct.pack(">HH", 65500, 65500)
    wide = bytearray(good["moving.webp"])
    wide[24:30] = b"\xff\xff\0" * 2
    scan = b"\xff\xda" + good["progressive.jpg"].split(b"\xff\xda")[-1].removesuffix(b"\xff\xd9")
    size = chunk(b"IHDR", struct.pack(">IIBBBBB", 65500, 65500, 8, 2, 0, 0, 0))
    return {
        **{f"half.{x}": good[f"good.{x}"][: len(good[f"good.{x}"]) // 2] for x in ("jpg", "png", "webp", "gif", "tif")},
        "empty.jpg": b"",
        "em\npty.jpg": b"",
        "\x1b[2Jempty.png": b"",
        "zeros.jpg": bytes(5000),
        "noise.jpg": random.Random(0).randbytes(5000),
        "page.jpg": b"<html><body>404 not found</body></html>",
        "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "paper.jpg": b"%PDF-1.4\n1 0 obj\n<< /OpenAction << /S /JavaScript >> >>\n",
        "script.jpg": POSTSCRIPT,
        "binary script.jpg": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(POSTSCRIPT)) + bytes(20) + POSTSCRIPT,
        "shell.jpg": b"#!/bin/sh\ntouch ran\n",
        "huge.png": png[:8] + size + png[33:],
        "huge.jpg": bytes(huge),
        "huge.webp": bytes(wide),
        "huge.ppm": b"P6 65500 65500 255\n" + bytes(100),
        "text bomb.png": png[:33] + chunk(b"zTXt", b"key\0\0" + zeros) + png[33:],
        "profile bomb.png": png[:33] + chunk(b"iCCP", b"key\0\0" + zeros) + png[33:],
        "scans.jpg": good["progressive.jpg"][:-2] + scan * 2000 + b"\xff\xd9",
        "rotated wrong.jpg": good["rotated.jpg"].replace(b"Exif\0\0", b"Exif\0\0\xff\xff\xff\xff", 1),
        "rotated ninefold.jpg": good["rotated.jpg"].replace(b"\x01\x12\x00\x03", b"\x01\x12\x00\x09", 1),
        "film.jpg": jpeg + random.Random(1).randbytes(100_000),
    }


def _mutant(data: bytes, rng: random.Random) -> bytes:
    data, kind = bytearray(data), rng.choice(("bits", "bits of the header", "cut", "zeros", "doubled"))
    reach = min(len(data), 200 if kind == "bits of the header" else len(data))
    if kind.startswith("bits"):
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[rng.randrange(len(data)) :]
    elif kind == "zeros":
        place = rng.randrange(len(data))
        data[place : place + 64] = bytes(len(data[place : place + 64]))
    else:
        place = rng.randrange(len(data))
        data[place:place] = data[place // 2 : place]
    return bytes(data)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.photos", description=__doc__.splitlines()[0])
    parser.add_argument("--number", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--large", type=int, default=8)
    parser.add_argument("--run", type=Path, help="a finished run; by default one of seconds is made")
    args = parser.parse_args(argv)
    from tests.faults.data import OPTIONS

    with tempfile.TemporaryDirectory() as folder:
        run = args.run or Path(folder) / "run"
        if not args.run:
            options = [f"--config.{k}={v}" for k, v in OPTIONS.items()]
            command = ["bjax.main", f"--config={ROOT}/configs/vit_mask.py:demo", f"--workdir={run}", *options]
            subprocess.run([sys.executable, "-m", *command], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        counts = photographs(args.number, args.seed, run=run, large=args.large)
    for outcome, times in sorted(counts.items()):
        print(f"{times:5} {outcome}")
    return int(bool(failures(counts)))


if __name__ == "__main__":
    sys.exit(main())
