"""What a model saw of a photograph, as a picture: the whole of it, the patches that a mask leaves out, the scores."""

import dataclasses
import math
import unicodedata

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.Image import Resampling

from bjax.specs import LARGEST_SIGMA, MaskSpec

SIDE = 480  # longer side of each of the panels, pixels
MARGIN, GAP, HEAD, FOOT, BAR = 24, 24, 92, 20, 16
# viridis, by its anchors: lightness rises all the way, so that the map can be read in grey and by the colour-blind.
COLOURS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], float)
GREY, RED, PALE = "#444444", "#d62728", 238
UNTOLD = (247, 204, 196)  # of patches that have no score: pale, and of no other's hue
DROPPED = 0.25  # brightness that is left of a dropped patch
UNSEEN = 0.75  # how far what the model does not see is bleached
NO_MASK = MaskSpec()
HATCH = 9  # pixels between the strokes over what is left out


def draw(
    picture: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    keep: np.ndarray,
    *,
    patch: float,
    title: str,
    caption: str = "",
    mask: MaskSpec = NO_MASK,
) -> Image.Image:
    """Two panels: the photograph with what is left out darkened, and the score of every patch, see `Scale`.

    picture: uint8[h, w, 3]: the whole photograph. boxes: float[n, 4], top, left, bottom and right of the n crops that
    the model saw, in shares of its height and width. scores: float32[n, rows, columns], keep: bool of that shape.
    patch: side of a patch, in sides of a crop: rows and columns need not fill it. What no crop shows is bleached; where
    crops overlap, scores are averaged (their places on the scale), and a place is left out where most of them leave it
    out. mask: its measure says what the scores are; its threshold is marked on the scale.
    """
    ratio = SIDE / max(picture.shape[:2])
    width, height = (max(1, round(side * ratio)) for side in picture.shape[1::-1])
    photo = np.asarray(Image.fromarray(picture).resize((width, height), Resampling.LANCZOS), float)
    scale = scale_of(mask.measure, scores)
    share, kept, scored, seen = _over_the_photograph(boxes, scale.shares(scores), keep, patch, height, width)
    left_out = scored & (kept < 0.5)
    photo = shade(photo, left_out)
    photo = np.where(seen[..., None], photo, photo + UNSEEN * (255 - photo))
    heat = np.where(scored[..., None], colours(share), PALE)

    left, top = MARGIN, MARGIN + HEAD
    right = left + width + GAP
    bar = right + width + 2 * GAP
    size = (max(bar + BAR + 64, 560) + MARGIN, max(top + height + FOOT + MARGIN, top + 160))
    page = Image.new("RGB", size, "white")
    for pixels, place in ((photo, left), (heat, right)):
        page.paste(Image.fromarray(np.uint8(np.round(pixels))), (place, top))
    pen = ImageDraw.Draw(page)
    room = size[0] - 2 * MARGIN
    _text(pen, (MARGIN, MARGIN - 4), title, 26, room)
    _text(pen, (MARGIN, MARGIN + 32), caption, 16, room, GREY)
    dropped = keep.size - int(keep.sum())
    if dropped:
        said = f"{dropped} of {keep.size} patches left out"
    else:
        said = "what the model sees" + ("" if seen.all() else "; bleached: what it does not")
    _text(pen, (left, top - 24), said, 15, width, GREY)
    score = "sigma of each patch, px" if scale.pixels else "score of each patch"
    _text(pen, (right, top - 24), score, 15, width, GREY)
    _scale(page, pen, (bar, top, BAR, max(height, 120)), scale, mask.threshold)
    return page


def shade(photo: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """`photo` [..., h, w, 3], 0 to 255, with what is left out, bool[..., h, w], dark and hatched; float."""
    height, width = left_out.shape[-2:]
    hatched = left_out & ((np.arange(height)[:, None] + np.arange(width)) % HATCH == 0)
    shaded = np.where(left_out[..., None], photo * DROPPED, photo)
    return np.where(hatched[..., None], 128, shaded)  # darkness alone would not show in what is dark already


@dataclasses.dataclass(frozen=True)
class Scale:
    """From scores to the colours between which they lie: what is sharp has the same colour on every scale.

    Logarithmic from 1 on; or of `sharpness.sigma`, linear in pixels, 0 the sharpest, and NaN where there is no score.
    """

    end: float  # decades, or pixels
    pixels: bool = False

    def shares(self, scores):
        """How far scores are from the least sharp end (0) to the other (1)."""
        return 1 - scores / self.end if self.pixels else np.log10(np.maximum(scores, 1)) / self.end

    @property
    def ticks(self) -> dict[float, str]:
        """{score: what stands there}; the lowest colour is that of all below it."""
        if self.pixels:
            return {float(sigma): f"{sigma:g} px" for sigma in np.linspace(0, self.end, 5)}
        return {10**k: f"{10**k:,}" if k else "0 to 1" for k in range(self.end + 1)}


def scale_of(measure: str, scores: np.ndarray) -> Scale:
    """Of one measure the same for most photographs, which can be compared: to 10,000, or beyond where scores are."""
    if measure == "sigma":
        return Scale(LARGEST_SIGMA, pixels=True)
    return Scale(max(4, math.ceil(math.log10(max(float(scores.max(initial=1)), 1)))))


def mosaic(crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Crops uint8[n, S, S, 3] side by side, in their order, as a picture and its boxes for `draw`."""
    number, side = crops.shape[:2]
    columns = math.ceil(math.sqrt(number))
    rows = math.ceil(number / columns)
    picture = np.full((rows * side, columns * side, 3), 255, np.uint8)
    places = [(i // columns, i % columns) for i in range(number)]
    for (row, column), crop in zip(places, crops, strict=True):
        # A hair's breadth between crops: none of them is its neighbour's continuation.
        edge = slice(0, side - 1 if number > 1 else side)
        picture[row * side :, column * side :][edge, edge] = crop[edge, edge]
    boxes = np.array([(row, column, row + 1, column + 1) for row, column in places], float)
    return picture, boxes / (rows, columns, rows, columns)


def with_places(page: Image.Image, picture: np.ndarray, boxes: np.ndarray) -> Image.Image:
    """A page of `draw` about a `mosaic`, and below it the whole photograph with the places of the crops framed."""
    scale = SIDE / max(picture.shape[:2])
    width, height = (max(1, round(side * scale)) for side in picture.shape[1::-1])
    larger = Image.new("RGB", (page.width, page.height + height + FOOT + MARGIN), "white")
    larger.paste(page, (0, 0))
    top = page.height
    larger.paste(Image.fromarray(picture).resize((width, height), Resampling.LANCZOS), (MARGIN, top))
    pen = ImageDraw.Draw(larger)
    _text(pen, (MARGIN, top - 24), "where these crops lie", 15, page.width - 2 * MARGIN, GREY)
    for y0, x0, y1, x1 in np.clip(boxes, 0, 1) * (height, width, height, width):
        pen.rectangle((MARGIN + x0 - 1, top + y0 - 1, MARGIN + x1 + 1, top + y1 + 1), outline=RED, width=2)
    return larger


def _over_the_photograph(boxes, shares, keep, patch, height, width):
    """Of each pixel of the panel: the mean place of its scores on the scale (NaN: no score), the share of patches that
    are kept, whether it lies in a patch, and whether in a crop."""
    total, told, kept, number = np.zeros((4, height, width))
    seen = np.zeros((height, width), bool)
    rows, columns = shares.shape[1:]
    y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    for (top, left, bottom, right), share, keeps in zip(boxes, shares, keep, strict=True):
        row = np.floor((y - top) / (bottom - top) / patch + 1e-9).astype(int)
        column = np.floor((x - left) / (right - left) / patch + 1e-9).astype(int)
        seen |= np.outer((y >= top) & (y < bottom), (x >= left) & (x < right))
        inside = np.outer((row >= 0) & (row < rows), (column >= 0) & (column < columns))
        place = np.ix_(np.clip(row, 0, rows - 1), np.clip(column, 0, columns - 1))
        scored = inside & ~np.isnan(share[place])
        total += np.where(scored, share[place], 0)
        told += scored
        kept += inside & keeps[place]
        number += inside
    mean = np.where(told, total / np.maximum(told, 1), np.nan)
    return mean, kept / np.maximum(number, 1e-9), number >= 1, seen


def _scale(page, pen, box, scale, threshold) -> None:
    left, top, width, height = box
    font = ImageFont.load_default(14)
    if scale.pixels:
        height -= 2 * BAR
        below = top + height + BAR
        pen.rectangle((left, below, left + width - 1, below + BAR - 1), UNTOLD, GREY)
        pen.text((left + width + 8, below + BAR / 2), "unknown", GREY, font, anchor="lm")
    strip = colours(np.linspace(1, 0, height)[:, None])
    page.paste(Image.fromarray(np.uint8(np.round(strip))).resize((width, height)), (left, top))

    def y(score):
        return top + (1 - float(scale.shares(score))) * (height - 1)

    for score, name in scale.ticks.items():
        pen.line((left + width, y(score), left + width + 4, y(score)), GREY)
        pen.text((left + width + 8, y(score)), name, GREY, font, anchor="lm")
    if threshold is not None and min(scale.ticks) <= threshold <= max(scale.ticks):
        pen.line((left - 6, y(threshold), left + width + 6, y(threshold)), RED, 2)
        pen.text((left - 9, y(threshold)), f"{threshold:g}", RED, font, anchor="rm")


def colours(share: np.ndarray) -> np.ndarray:
    """Colours of values in [0, 1], on a last axis of their own; of NaN, UNTOLD."""
    anchors = np.linspace(0, 1, len(COLOURS))
    told = np.stack([np.interp(share, anchors, channel) for channel in COLOURS.T], axis=-1)
    return np.where(np.isnan(share)[..., None], UNTOLD, told)


def _text(pen, place, text, size, width, colour="black") -> None:
    """`text`, shortened in its middle where it is wider than `width`; Pillow's own font has no more than ASCII."""
    letters = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    text = shown = "".join(letters).encode("ascii", "replace").decode()
    font, half = ImageFont.load_default(size), len(text) // 2
    while pen.textlength(shown, font) > width and half > 1:
        half -= 1
        shown = f"{text[:half]}...{text[-half:]}"
    pen.text(place, shown, colour, font)
