"""The report's figures, with matplotlib; any of them survives a photocopier."""

import dataclasses
import textwrap

import numpy as np

from bjax.errors import UserError
from bjax.report import overlay
from bjax.report.words import MEASURES

# Marker, line, grey level: any two differ in two of them, so that a photocopy tells them apart.
STYLES = (
    ("o", "-", "#0b3c6f"),
    ("s", "--", "#c2571a"),
    ("^", "-.", "#1b7f5c"),
    ("v", ":", "#b8860b"),
    ("D", "--", "#7d3c98"),
    ("P", "-", "#5a5a5a"),
    ("X", "-.", "#8c1c2c"),
    ("*", ":", "#2a9fd6"),
)
SHOWN = 288  # pixels: side of a photograph of the gallery
COLOURS = "Blues"  # light to dark: grey values keep the order


@dataclasses.dataclass(frozen=True)
class Line:
    """Points of one line, in order; low and high: their intervals, where there are any.

    kind: "line"; "marks" (no line between the points); "band" (black, its interval grey behind the others: a
    reference); "point" (a single black one).
    """

    label: str
    x: list[float]
    y: list[float]
    low: list[float] | None = None
    high: list[float] | None = None
    kind: str = "line"


@dataclasses.dataclass(frozen=True)
class Dot:
    """A value in per cent with its interval, or, of two seeds, both values; a control's is hollow."""

    label: str
    value: float
    ends: tuple[float, float] | None = None
    seeds: tuple[float, ...] = ()
    control: bool = False


Panels = dict[str, list[Line]]  # by title


def lines(
    panels: Panels, x_label: str, y_label: str, *, x_ticks=None, x_scale="", share_x=True, top=None, signed=False
):
    """A panel for every title, a style for every label, one legend above. y in per cent.

    x_ticks: (positions, names), for an axis of names. x_scale: zero, begin there; down, from the largest to the
    smallest. share_x: one scale for all panels. top: end of the y axis. signed: values lie on both sides of 0, where
    there is a line.
    """
    width = 3.1 if len(panels) > 1 else 5.2
    share_x = share_x and x_ticks is None
    figure, axes = _figure(panels, (1.2, width), (1.4, 2.9), (x_label, y_label), share_x=share_x)
    drawn = [line for of_panel in panels.values() for line in of_panel]
    labels = dict.fromkeys(line.label for line in drawn if line.kind in ("line", "marks"))
    style = {label: STYLES[i % len(STYLES)] for i, label in enumerate(labels)}
    for panel, (title, of_panel) in zip(axes.flat, panels.items(), strict=False):
        for line in of_panel:
            _draw(panel, line, style.get(line.label))
        panel.set_title(textwrap.fill(title, 30 if len(panels) > 1 else 60), fontsize=10)
        panel.grid(color="0.92", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        if x_ticks:
            slanted = {"rotation": 35, "ha": "right", "fontsize": 9} if max(map(len, x_ticks[1])) > 8 else {}
            panel.set_xticks(*x_ticks, **slanted)
            panel.set_xlim(min(x_ticks[0]) - 0.5, max(x_ticks[0]) + 0.5)
        if signed:
            panel.axhline(0, color="black", linewidth=1.2)
    if not signed:
        lowest = min(min(line.low or line.y) for line in drawn)
        axes.flat[0].set_ylim(bottom=max(0, 10 * (lowest // 10) - 5), top=top)
    if x_scale == "zero":
        # A little more than 0, for the markers there.
        axes.flat[0].set_xlim(left=-0.03 * max(max(line.x) for line in drawn))
    if x_scale == "down":
        axes.flat[0].invert_xaxis()
    handles = {}
    for panel in axes.flat:
        artists, names = panel.get_legend_handles_labels()
        handles |= dict(zip(names, artists, strict=True))
    fit = max(1, min(5, int(figure.get_figwidth() / (0.55 + 0.085 * max(map(len, handles)))), len(handles)))
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=fit, frameon=False, fontsize=9)
    return figure


def _draw(panel, line: Line, style) -> None:
    if line.kind == "point":
        panel.plot(line.x, line.y, "h", color="black", markersize=9, label=line.label)
        panel.axhline(line.y[0], color="black", linewidth=0.6, linestyle=(0, (1, 3)))
    elif line.kind == "band":
        if line.low:
            label = f"{line.label}, 95 %"
            panel.fill_between(line.x, line.low, line.high, color="0.87", linewidth=0, label=label)
        panel.plot(line.x, line.y, "-", color="black", linewidth=2.2, label=line.label)
    else:
        marker, dash, colour = style
        dash = dash if line.kind == "line" else ""
        edge = {"linewidth": 1.4, "markersize": 6, "markeredgecolor": "white", "markeredgewidth": 0.7}
        panel.plot(line.x, line.y, marker=marker, linestyle=dash, color=colour, label=line.label, **edge)
        if line.low:
            panel.vlines(line.x, line.low, line.high, color=colour, linewidth=0.8, alpha=0.7)


def dots(items: list[Dot], x_label: str, *, most: float | None = 100.0):
    """A line of its own for every value, from above. most: that a value can be; None: anything."""
    labels = [textwrap.fill(item.label, 34) for item in items]
    lines = sum(1 + label.count("\n") for label in labels)
    figure, axes = _subplots((5.6, 0.75 + 0.2 * lines + 0.14 * len(items)), 1, 1)
    panel, colour = axes[0, 0], STYLES[0][2]
    for y, item in enumerate(items):
        low, high = item.ends or (min(item.seeds, default=item.value), max(item.seeds, default=item.value))
        panel.hlines(
            y, low, high, color=colour, linewidth=1.6 if item.ends else 0.6, linestyle="-" if item.ends else ":"
        )
        for value in item.seeds or (item.value,):
            panel.plot(value, y, "o", color="white" if item.control else colour, markeredgecolor=colour, markersize=7)
    panel.set_yticks(range(len(items)), labels, fontsize=9)
    panel.set_ylim(len(items) - 0.5, -0.5)
    low, high = panel.get_xlim()
    panel.set_xlim(max(low, -2), high if most is None else min(high, most + 2))
    panel.set_xlabel(x_label, fontsize=10)
    panel.grid(axis="x", color="0.92", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right", "left"]].set_visible(False)
    return figure


def heat_maps(maps: dict[str, np.ndarray], rows: list[str], columns: list[str], row_key: str, column_key: str):
    """A grid of numbers (per cent, NaN where there is none) for every title, on one scale of grey."""
    size = (1.3, 0.9 + 0.62 * len(columns)), (0.7, 0.95 + 0.42 * len(rows))
    figure, axes = _figure(maps, *size, (column_key, row_key), least=(4.0, 2.2))
    numbers = np.concatenate([m.ravel() for m in maps.values()])
    scale = np.nanmin(numbers), np.nanmax(numbers)
    for panel, (title, values) in zip(axes.flat, maps.items(), strict=False):
        text = [[f"{v:.1f}" if np.isfinite(v) else "" for v in row] for row in values]
        _cells(panel, title, values, text, *scale)
        panel.set_xticks(range(len(columns)), columns)
        panel.set_yticks(range(len(rows)), rows)
    return figure


def confusion(matrices: dict[str, np.ndarray], classes: list[str]):
    """Counts (rows true, columns predicted) for every title; shaded by the share of the row."""
    figure, axes = _figure(matrices, (1.2, 3.2), (0.6, 3.1), ("predicted", "true"), fontsize=11)
    for panel, (title, counts) in zip(axes.flat, matrices.items(), strict=False):
        shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        text = np.vectorize(lambda share, n: f"{share:.0f} %\n{n:,.0f}", otypes=[object])(shares, counts)
        _cells(panel, title, shares, text, 0, 100)
        panel.set_xticks(range(len(classes)), classes, rotation=30, ha="right", rotation_mode="anchor")
        panel.set_yticks(range(len(classes)), classes)
    return figure


def _cells(panel, title: str, values, text, low: float, high: float) -> None:
    panel.set_title(title, fontsize=10)
    panel.imshow(np.ma.masked_invalid(values), cmap=COLOURS, aspect="auto", vmin=low, vmax=high)
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if value > low + 0.6 * (high - low) else "black"
        panel.text(column, row, text[row][column], ha="center", va="center", fontsize=9, color=colour)
    panel.set_xticks(np.arange(values.shape[1] + 1) - 0.5, minor=True)
    panel.set_yticks(np.arange(values.shape[0] + 1) - 0.5, minor=True)
    panel.grid(which="minor", color="white", linewidth=1.5)
    panel.tick_params(which="both", length=0)
    panel.spines[:].set_visible(False)


def gallery(images, kept, scores, titles: list[str], threshold: float | None, measure: str):
    """Photographs with what a mask drops, above the scores that decide it, those of `measure`.

    images uint8[K, H, W, 3], kept bool[K, h, w], scores float32[K, h, w]. The look is that of `overlay.draw`.
    """
    number = len(images)
    figure, axes = _subplots((1.0 + 1.75 * number, 4.35), 2, number)
    # As many pixels as are shown: hatching on the photograph's own would be as coarse as they are.
    larger = np.ones((max(1, round(SHOWN / images.shape[1])),) * 2, bool)
    patch = np.ones(np.array(images.shape[1:3]) // kept.shape[1:], bool)
    scale = overlay.scale_of(measure, scores)
    for i, (above, below) in enumerate(axes.T):
        dropped = np.kron(np.kron(~kept[i], patch), larger)
        photo = overlay.shade(np.kron(images[i], larger[..., None].astype(np.uint8)), dropped)
        above.imshow(np.uint8(np.round(photo)))
        above.set_title(titles[i], fontsize=8)
        below.imshow(np.uint8(np.round(overlay.colours(scale.shares(scores[i])))))
        for panel in (above, below):
            panel.set(xticks=[], yticks=[])
    bar = figure.colorbar(_colours(), ax=axes[1, :], location="right", fraction=0.03, pad=0.01)
    bar.set_ticks([scale.shares(score) for score in scale.ticks], labels=scale.ticks.values(), fontsize=8)
    bar.set_label(MEASURES.get(measure, measure), fontsize=8)
    if threshold is not None and min(scale.ticks) <= threshold <= max(scale.ticks):
        place = scale.shares(threshold)
        bar.ax.axhline(place, color=overlay.RED, linewidth=2)
        options = {"color": overlay.RED, "fontsize": 8, "ha": "right", "va": "center"}
        bar.ax.text(-0.3, place, f"{threshold:g}", transform=bar.ax.get_yaxis_transform(), **options)
    if np.isnan(scores).any():
        from matplotlib.patches import Patch

        untold = Patch(facecolor=np.array(overlay.UNTOLD) / 255, edgecolor=overlay.GREY, label="unknown: no texture")
        figure.legend(handles=[untold], loc="outside lower right", fontsize=8, frameon=False)
    return figure


def _colours():
    """What a bar of `overlay`'s colours is drawn from."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    return ScalarMappable(Normalize(0, 1), LinearSegmentedColormap.from_list("scores", overlay.COLOURS / 255))


def _figure(titles, width: tuple, height: tuple, labels: tuple, *, fontsize=10, least=(0.0, 0.0), share_x=True):
    """A figure with a panel for every title, at most three beside each other, and its grid of axes.

    width, height: in inches, around the panels and of each. labels: below and beside all. least: size of the figure.
    """
    columns = min(3, len(titles))
    rows = -(-len(titles) // columns)
    size = max(least[0], width[0] + columns * width[1]), max(least[1], height[0] + rows * height[1])
    figure, axes = _subplots(size, rows, columns, sharex=share_x, sharey=True)
    for panel in axes.flat[len(titles) :]:
        panel.set_visible(False)
    figure.supxlabel(labels[0], fontsize=fontsize)
    figure.supylabel(labels[1], fontsize=fontsize)
    return figure, axes


def _subplots(size: tuple, rows: int, columns: int, **share):
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        way_out = 'pip install "bjax[report]"'
        raise UserError(f"bjax.report: draws with matplotlib, which is missing; {way_out}") from None
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **share)
