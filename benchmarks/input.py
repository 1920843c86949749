"""Host input: images a second from JPEG bytes to random-resized crops of 224 px, beside OpenCV and Pillow.

  python -m benchmarks.input [--against=opencv,pillow] [--threads=1,2] [--json=FILE]

The images are scikit-image's photographs at 500 x 375, JPEG of quality 90, much as ImageNet's are; scales
and ratios are torchvision's. The first rows time one thread's decoding and resizing, in images per second of
CPU time. Pillow is what torchvision's ImageFolder uses, and gives the same pixels as bjax; OpenCV resizes
without antialiasing. The last rows time the loader (records, shuffling, crop, flip, batches) by the clock,
in as many threads as --threads says.
"""

import argparse
import io
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import installed, save
from bjax.data import builder, decode, folder, loader, photos
from bjax.errors import Parser, as_command, new_file, positive, some_of
from bjax.specs import Data

SIZE = 224
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def encoded_photographs():
    """JPEG bytes by name."""
    encoded = {}
    for file in photos.TRAIN + photos.UNSEEN:
        photo = Image.fromarray(photos.load(photos.photographs() / file))
        data = io.BytesIO()
        photo.resize((500, 375), Image.Resampling.LANCZOS).save(data, "JPEG", quality=90)
        encoded[f"{Path(file).stem}.jpg"] = data.getvalue()
    return encoded


def bjax():
    return lambda data, rng: decode.random_resized_crop(rng, decode.decode(data), SIZE)


def pillow():
    def crop(data, rng):
        top, left, height, width = decode.random_box(rng, 375, 500, SCALE, RATIO)
        with Image.open(io.BytesIO(data)) as image:
            image = image.convert("RGB").crop((left, top, left + width, top + height))
            return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))

    return crop


def opencv():
    import cv2

    cv2.setNumThreads(1)

    def crop(data, rng):
        top, left, height, width = decode.random_box(rng, 375, 500, SCALE, RATIO)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        return cv2.resize(image[top : top + height, left : left + width], (SIZE, SIZE))

    return crop


PEERS = {"opencv": opencv, "pillow": pillow}
MODULES = {"opencv": "cv2", "pillow": "PIL"}  # that they need


def rates(crops, encoded, rounds=60):
    """Images per second of this thread's CPU time, by name. Rounds are interleaved: a busy machine's speed drifts."""
    times = {name: [] for name in crops}
    for _ in range(rounds):
        for name, crop in crops.items():
            rng, start = np.random.default_rng(0), time.thread_time()
            for data in encoded.values():
                crop(data, rng)
            times[name].append(time.thread_time() - start)
    return {name: len(encoded) / np.median(taken) for name, taken in times.items()}


def loader_rate(encoded, threads, steps=20, batch_size=64):
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "source" / "train" / "photographs"
        source.mkdir(parents=True)
        for copy in range(50):
            for name, data in encoded.items():
                (source / f"{copy}_{name}").write_bytes(data)
        builder.prepare(folder.Folder(name="benchmark", source=source.parent.parent, data_dir=place))
        split = loader.open_split("benchmark", "train", data_dir=place)
        data, all_steps = Data(image_size=SIZE, threads=threads, prefetch=threads), steps + 3 * threads
        batches = loader.train_batches(split, data, seed=0, batch_size=batch_size, steps=(0, all_steps))
        for _ in range(2 * threads):  # what was made ahead while the first was waited for
            next(batches)
        start = time.perf_counter()
        for _ in range(steps):
            next(batches)
        return steps * batch_size / (time.perf_counter() - start)


@as_command
def main(argv: list[str]) -> None:
    parser = Parser("python -m benchmarks.input", __doc__, formatter_class=argparse.RawTextHelpFormatter)
    peers = f"peers: {', '.join(PEERS)} (default: those that are installed)"
    parser.add_argument("--against", type=some_of(PEERS), help=peers)
    parser.add_argument("--threads", type=numbers, default=f"1,{os.cpu_count()}", help="of the loader")
    parser.add_argument("--json", type=new_file, help="file to write the numbers to")
    args = parser.parse_args(argv)

    peers = installed(args.against, MODULES)
    encoded = encoded_photographs()
    crops = {"bjax": bjax()} | {name: PEERS[name]() for name in peers}
    rows = rates(crops, encoded)
    for name, row in rows.items():
        print(f"{name:26}{row:8.0f} images/s", flush=True)
    for threads in args.threads:
        name = f"bjax loader, threads={threads}"
        rows[name] = loader_rate(encoded, threads)
        print(f"{name:26}{rows[name]:8.0f} images/s", flush=True)
    if args.json:
        save(args.json, {name: round(value, 1) for name, value in rows.items()})


def numbers(text: str) -> list[int]:
    return [positive(number) for number in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
