"""The embedded default: crops of the photographs that ship inside scikit-image's wheel, so that nothing is
downloaded.

Four splits of square crops, 144 px, JPEG. `train` and `test` are crops of the same 14 photographs, from
two parts of each that are 32 px apart; the label is the photograph. The other two have no label (-1), for
tasks whose label is not the photograph, such as the type of a blur: `detailed` holds crops from all over
those ten of the 14 that are sharp themselves, `unseen` crops of four further photographs.

Where crops are cut is a fixed rule. Candidates lie on a grid; of these the half with the most content (the
sum of absolute grey-level differences between neighbours: skies and walls have little) is kept, and the
crops are taken at even distances along what is left.
"""

import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from bjax.data.builder import dataset_info
from bjax.errors import UserError

TRAIN = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "hubble_deep_field.jpg",
    "moon.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
    "text.png",
)
SMOOTH = ("cell.png", "clock_motion.png", "moon.png", "retina.jpg")  # blurred, or with little to blur
UNSEEN = ("chelsea.png", "gravel.png", "ihc.png", "motorcycle_left.png")

CROP = 144
GAP = 32
STRIDE = 4
CROPS = {"train": 48, "test": 16, "detailed": 96, "unseen": 48}  # of each photograph
FILES = {
    "train": TRAIN,
    "test": TRAIN,
    "detailed": tuple(file for file in TRAIN if file not in SMOOTH),
    "unseen": UNSEEN,
}
JPEG = {"quality": 95, "subsampling": "4:4:4", "optimize": False}


class Photos(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Crops of scikit-image's photographs; the label is the photograph."""

    name = "photos"
    VERSION = tfds.core.Version("1.1.0")

    def __init__(self, **kwargs):
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        classes = [Path(file).stem for file in TRAIN]
        image = tfds.features.Image(shape=(CROP, CROP, 3), encoding_format="jpeg")
        homepage = "https://scikit-image.org/docs/stable/api/skimage.data.html"
        return dataset_info(self, classes, image=image, description=__doc__, homepage=homepage)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager
        folder = photographs()
        return {split: self._generate_examples(folder, split) for split in CROPS}

    def _generate_examples(self, folder: Path, split: str) -> Iterator[tuple[str, dict]]:
        for file in FILES[split]:
            photo = load(folder / file)
            name = Path(file).stem
            for top, left in positions(photo, split):
                crop = Image.fromarray(photo[top : top + CROP, left : left + CROP])
                data = io.BytesIO()
                crop.save(data, "JPEG", **JPEG)
                file_name = f"{name}_{split}_y{top:04d}_x{left:04d}.jpg"
                label = name if split in ("train", "test") else -1
                yield file_name, {"image": data.getvalue(), "label": label, "file_name": file_name}


def photographs() -> Path:
    """The folder of scikit-image's photographs; UserError where scikit-image is not installed or this version's wheel
    lacks one of them."""
    spec = importlib.util.find_spec("skimage")
    if spec is None:
        why = "scikit-image, which holds the photographs, is missing"
        raise UserError(f'photos: {why}; pip install "bjax[demo]"')
    folder = Path(spec.origin).parent / "data"
    if lacking := [file for file in TRAIN + UNSEEN if not (folder / file).is_file()]:
        way = 'install a scikit-image that has them: pip install -U "bjax[demo]"'
        raise UserError(f"photos: {folder} lacks {', '.join(lacking)}; {way}")
    return folder


def load(path: Path) -> np.ndarray:
    """uint8[H, W, 3] of one photograph; those over 1024 px (the retina) are halved, being smooth at full size."""
    with Image.open(path) as image:
        image = image.convert("RGB")
        return np.asarray(image.reduce(2) if max(image.size) > 1024 else image)


def region(height: int, width: int, split: str) -> tuple[int, int, int, int]:
    """The part of a photograph that a split may cut from: (top, left, bottom, right).

    Along the longer side the last third, and at least a crop and 16 px, belongs to `test`, what lies before
    the gap to `train`. `detailed` and `unseen` have whole photographs.
    """
    if split in ("detailed", "unseen"):
        return 0, 0, height, width
    long = max(height, width)
    border = long - max(long // 3, CROP + 16)
    start, stop = (border, long) if split == "test" else (0, border - GAP)
    return (0, start, height, stop) if width >= height else (start, 0, stop, width)


def positions(photo: np.ndarray, split: str) -> list[tuple[int, int]]:
    """Where the crops of one photograph start: (top, left), by the rule in the module's docstring."""
    top, left, bottom, right = region(*photo.shape[:2], split)
    grey = photo.astype(np.int64).sum(-1)
    detail = np.zeros_like(grey)
    detail[:-1] += abs(np.diff(grey, axis=0))
    detail[:, :-1] += abs(np.diff(grey, axis=1))
    total = np.pad(detail.cumsum(0).cumsum(1), ((1, 0), (1, 0)))

    y, x = np.mgrid[top : bottom - CROP + 1 : STRIDE, left : right - CROP + 1 : STRIDE].reshape(2, -1)
    content = total[y + CROP, x + CROP] - total[y, x + CROP] - total[y + CROP, x] + total[y, x]
    kept = np.stack([y, x], axis=1)[content >= np.median(content)].tolist()
    return [tuple(kept[i * len(kept) // CROPS[split]]) for i in range(CROPS[split])]
