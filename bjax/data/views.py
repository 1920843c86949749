"""How a photograph is shown to a model that takes squares of one size: in which crops, at which scale, how much of it.

Each way is a function from a photograph, uint8[H, W, 3], to a `View`.
"""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from bjax.data import decode

STEP = 0.75  # between tiles in a row, in tiles, at most: neighbours overlap by a quarter, so nothing falls between them
PICTURE = 896  # longer side of what is drawn, pixels
LARGEST = 2**24  # pixels of a whole photograph that is scaled to be measured: strips would become huge


@dataclasses.dataclass(frozen=True)
class View:
    """What a model sees of a photograph."""

    crops: np.ndarray  # uint8[n, size, size, 3]
    boxes: np.ndarray  # float64[n, 4]: top, left, bottom, right of each crop, in shares of height and width; where the
    # photograph was extended by reflection, below 0 and above 1
    height: int  # of the photograph at the scale at which crops are cut, pixels
    width: int

    @property
    def seen(self) -> float:
        """Share of the photograph's area that lies in at least one crop."""
        boxes = np.clip(self.boxes, 0, 1)
        rows, columns = (np.unique(np.append(boxes[:, side], (0, 1))) for side in ([0, 2], [1, 3]))
        middles = (rows[1:] + rows[:-1]) / 2, (columns[1:] + columns[:-1]) / 2
        top, left, bottom, right = boxes.T[:, :, None]
        inside = ((top <= middles[0]) & (middles[0] < bottom))[:, :, None]
        inside = (inside & ((left <= middles[1]) & (middles[1] < right))[:, None]).any(0)
        # Rounded: the parts of a whole do not add up to 1 to the last bit.
        return round(float((inside * np.outer(np.diff(rows), np.diff(columns))).sum()), 12)


def evaluated(photo: np.ndarray, size: int, resize: int, interpolation: str = "bilinear") -> View:
    """One crop, as evaluation sees an image of a run with a scale: `decode.center_crop`."""
    height, width = photo.shape[:2]
    long = int(resize * max(height, width) / min(height, width))
    height, width = (resize, long) if height <= width else (long, resize)
    crop = decode.center_crop(photo, size, resize=resize, interpolation=interpolation)
    place = [round((side - size) / 2) for side in (height, width)]
    return View(crop[None], _boxes([place], size, height, width), height, width)


def tiled(photo: np.ndarray, size: int, most: int, interpolation: str = "bilinear") -> View:
    """The whole photograph in at most `most` overlapping tiles, for a model that knows no scale.

    Pixels stay as they are where tiles at `STEP` cover them; a photograph that is too large for so many is scaled down
    until they do, and one of `size` × `size` is its own, single tile. One smaller than that is extended by reflection.
    A strip so long that its shorter side would become smaller than a tile is seen in `most` places, evenly spread.
    """
    height, width = photo.shape[:2]
    reach = [size * (1 + STEP * i) for i in range(most)]  # of 1, 2, … tiles in a row
    grids = [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]
    scale = max(min(1, reach[rows - 1] / height, reach[columns - 1] / width) for rows, columns in grids)
    scale = min(1, max(scale, size / min(height, width)))
    if scale < 1:
        height, width = (max(size, int(side * scale + 1e-6)) for side in (height, width))
        photo = decode.resized(photo, height, width, decode.FILTERS[interpolation])
    rows, columns = (min(most, 1 + math.ceil((max(side, size) - size) / (STEP * size))) for side in (height, width))
    places = [(top, left) for top in _evenly(height, size, rows) for left in _evenly(width, size, columns)]
    return _cut(photo, size, places)


def detailed(photo: np.ndarray, size: int, most: int) -> View:
    """Up to `most` crops, pixels as they are, those with the most detail first.

    Candidates tile the image: as many rows and columns of crops as fit, spread evenly from border to border. Their
    detail is the sum of absolute grey-level differences between neighbours, by which the demo's photographs are cut
    too: smooth crops (sky, walls) do not show how an image is blurred. Unlike the variance of the Laplacian, the sum
    is not ruled by a few edges or by noise. Of a photograph that is sharp in parts, those parts come first. One smaller
    than `size` is extended by reflection, as in training.
    """
    rows, columns = (_evenly(side, size, max(1, side // size)) for side in photo.shape[:2])
    places = [(top, left) for top in rows for left in columns]
    best = np.argsort([-_detail(decode.cut(photo, *place, size)) for place in places], kind="stable")[:most]
    return _cut(photo, size, [places[i] for i in best])


def with_side(photo: np.ndarray, side: int) -> np.ndarray | None:
    """The whole photograph with its shorter side at `side` pixels, bilinear; None above `LARGEST`."""
    height, width = photo.shape[:2]
    long = int(side * max(height, width) / min(height, width))
    height, width = (side, long) if height <= width else (long, side)
    return decode.resized(photo, height, width) if height * width <= LARGEST else None


def picture(photo: np.ndarray) -> np.ndarray:
    """The photograph for people to look at: its longer side at most `PICTURE` pixels."""
    scale = min(1, PICTURE / max(photo.shape[:2]))
    return decode.resized(photo, *(max(1, round(side * scale)) for side in photo.shape[:2]))


def _cut(photo: np.ndarray, size: int, places: list[tuple[int, int]]) -> View:
    """Crops at places (top, left) of where the photograph, if it is smaller than a crop, is extended to."""
    height, width = photo.shape[:2]
    crops = np.stack([decode.cut(photo, *place, size) for place in places])
    before = [max(size - side, 0) // 2 for side in (height, width)]  # as decode.cut extends it
    return View(crops, _boxes(np.subtract(places, before), size, height, width), height, width)


def _boxes(places, size: int, height: int, width: int) -> np.ndarray:
    places = np.asarray(places, float)
    return np.concatenate([places, places + size], axis=1) / (height, width, height, width)


def _evenly(side: int, size: int, number: int) -> Iterable[int]:
    """Where `number` crops start, from border to border at even distances; a single one is central."""
    side = max(side, size)
    return np.linspace(0, side - size, number).round().astype(int) if number > 1 else [(side - size) // 2]


def _detail(image: np.ndarray) -> int:
    grey = image.sum(axis=-1, dtype=np.int32)
    return sum(int(np.abs(np.diff(grey, axis=axis)).sum()) for axis in (0, 1))
