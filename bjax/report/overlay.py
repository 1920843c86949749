"""What a model saw of a photograph, as a picture: its crops, the patches that a mask leaves out, the scores of all."""

import math
import unicodedata

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.Image import Resampling

SIDE = 448  # of each of the panels, pixels
MARGIN, GAP, HEAD, FOOT, BAR = 24, 24, 92, 20, 16
# viridis, by its anchors: lightness rises all the way, so that the map can be read in grey and by the colour-blind.
COLOURS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], float)
GREY, RED = "#444444", "#d62728"
DROPPED = 0.25  # brightness that is left of a dropped patch


def draw(
    crops: np.ndarray,
    scores: np.ndarray,
    keep: np.ndarray,
    *,
    patch_size: int,
    title: str,
    caption: str = "",
    threshold: float | None = None,
) -> Image.Image:
    """Two panels: the crops with dropped patches darkened, and the score of every patch on a logarithmic scale.

    crops: uint8[n, S, S, 3]. scores: float32[n, rows, columns], keep: bool of that shape. Several crops are tiled, in
    their order. threshold: of the mask, marked on the scale. The scale runs from 1 to 10,000, beyond that where scores
    do: one photograph can be compared with another.
    """
    columns = math.ceil(math.sqrt(len(crops)))
    side = SIDE // columns
    panel = (columns * side, math.ceil(len(crops) / columns) * side)
    decades = max(4, math.ceil(math.log10(max(float(scores.max(initial=1)), 1))))
    share = np.log10(np.clip(scores, 1, None)) / decades
    colours = _enlarged(_colours(share), patch_size, crops.shape[1], 255)
    brightness = _enlarged(np.where(keep, 1.0, DROPPED)[..., None], patch_size, crops.shape[1], 1)

    left, top = MARGIN, MARGIN + HEAD
    right = left + panel[0] + GAP
    bar = right + panel[0] + 2 * GAP
    size = (bar + BAR + 64 + MARGIN, max(top + panel[1] + FOOT + MARGIN, top + 160))
    picture = Image.new("RGB", size, "white")
    places = [(i % columns * side, top + i // columns * side) for i in range(len(crops))]
    # A hair's breadth between crops: none of them is its neighbour's continuation.
    inner = side - (2 if columns > 1 else 0)
    panels = (crops * brightness, left, Resampling.LANCZOS), (colours, right, Resampling.NEAREST)
    for images, panel_left, resample in panels:
        for (x, y), tile in zip(places, np.uint8(np.round(images)), strict=True):
            picture.paste(Image.fromarray(tile).resize((inner, inner), resample), (panel_left + x, y))

    pen = ImageDraw.Draw(picture)
    scale = side / crops.shape[1]
    for i, row, column in np.argwhere(~keep):  # darkness alone would not show in what is dark already
        x, y = places[i]
        edges = (left + x + column * patch_size * scale, y + (row + 1) * patch_size * scale)
        pen.line((edges, (edges[0] + patch_size * scale, edges[1] - patch_size * scale)), "#808080")
    width = size[0] - 2 * MARGIN
    _text(pen, (MARGIN, MARGIN - 4), title, 26, width)
    _text(pen, (MARGIN, MARGIN + 32), caption, 16, width, GREY)
    dropped = keep.size - keep.sum()
    seen = "what the model sees" + (f", {dropped} of {keep.size} patches left out" if dropped else "")
    _text(pen, (left, top - 24), seen, 15, panel[0], GREY)
    _text(pen, (right, top - 24), "score of each patch", 15, panel[0], GREY)
    _scale(picture, pen, (bar, top, BAR, panel[1]), decades, threshold)
    return picture


def _enlarged(grid: np.ndarray, patch_size: int, side: int, rest: float) -> np.ndarray:
    """Values of patches [n, rows, columns, channels] -> of pixels; those right and below of all patches get `rest`."""
    covered = grid.repeat(patch_size, axis=1).repeat(patch_size, axis=2)
    missing = [(0, 0), *((0, side - covered.shape[axis]) for axis in (1, 2)), (0, 0)]
    return np.pad(covered, missing, constant_values=rest)


def _scale(picture, pen, box, decades, threshold) -> None:
    left, top, width, height = box
    colours = _colours(np.linspace(1, 0, height)[:, None])
    picture.paste(Image.fromarray(np.uint8(np.round(colours))).resize((width, height)), (left, top))

    def y(score):
        return top + (1 - math.log10(score) / decades) * (height - 1)

    for score in (10**k for k in range(decades + 1)):
        name = "0 to 1" if score == 1 else f"{score:,}"
        pen.line((left + width, y(score), left + width + 4, y(score)), GREY)
        pen.text((left + width + 8, y(score)), name, GREY, ImageFont.load_default(14), anchor="lm")
    if threshold is not None and 1 <= threshold <= 10**decades:
        pen.line((left - 6, y(threshold), left + width + 6, y(threshold)), RED, 2)
        pen.text((left - 9, y(threshold)), f"{threshold:g}", RED, ImageFont.load_default(14), anchor="rm")


def _colours(share: np.ndarray) -> np.ndarray:
    """Colours of values in [0, 1], on a last axis of their own."""
    anchors = np.linspace(0, 1, len(COLOURS))
    return np.stack([np.interp(share, anchors, channel) for channel in COLOURS.T], axis=-1)


def _text(pen, place, text, size, width, colour="black") -> None:
    """`text`, shortened in its middle where it is wider than `width`; Pillow's own font has no more than ASCII."""
    letters = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    text = shown = "".join(letters).encode("ascii", "replace").decode()
    font, half = ImageFont.load_default(size), len(text) // 2
    while pen.textlength(shown, font) > width and half > 1:
        half -= 1
        shown = f"{text[:half]}...{text[-half:]}"
    pen.text(place, shown, colour, font)
