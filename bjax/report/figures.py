"""The report's figures, with matplotlib; any of them survives a photocopier."""

import dataclasses
import textwrap

import numpy as np

from bjax.errors import UserError

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
COLOURS = "Blues"  # light to dark: grey values keep the order


@dataclasses.dataclass(frozen=True)
class Line:
    """Points of one line, in order; low and high: their intervals, where there are any.

    kind: "line"; "band" (black, its interval grey behind the others: a reference); "point" (a single black one).
    """

    label: str
    x: list[float]
    y: list[float]
    low: list[float] | None = None
    high: list[float] | None = None
    kind: str = "line"


def lines(
    panels: dict[str, list[Line]],
    x_label: str,
    y_label: str,
    *,
    x_ticks=None,
    x_zero=False,
    share_x=True,
    top=None,
):
    """A panel for every title, a style for every label, one legend above. y in per cent.

    x_ticks: (positions, names), for an axis of names. x_zero: begin at 0. share_x: one scale for all panels.
    top: end of the y axis.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    width = 3.1 if columns > 1 else 5.2
    figure = _figure_class()(figsize=(1.2 + width * columns, 1.4 + 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=share_x and x_ticks is None, sharey=True, squeeze=False)
    labels = dict.fromkeys(line.label for ls in panels.values() for line in ls if line.kind == "line")
    style = {label: STYLES[i % len(STYLES)] for i, label in enumerate(labels)}
    for panel, (title, drawn) in zip(axes.flat, panels.items(), strict=False):
        for line in drawn:
            _draw(panel, line, style.get(line.label))
        panel.set_title(textwrap.fill(title, 30 if columns > 1 else 60), fontsize=10)
        panel.grid(color="0.92", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        if x_ticks:
            panel.set_xticks(x_ticks[0], x_ticks[1])
            panel.set_xlim(min(x_ticks[0]) - 0.5, max(x_ticks[0]) + 0.5)
    for panel in axes.flat[len(panels) :]:
        panel.set_visible(False)
    lowest = min(min(line.low or line.y) for ls in panels.values() for line in ls)
    axes.flat[0].set_ylim(bottom=max(0, 10 * (lowest // 10) - 5), top=top)
    if x_zero:
        # A little more than 0, for the markers there.
        axes.flat[0].set_xlim(left=-0.03 * max(max(line.x) for ls in panels.values() for line in ls))
    figure.supxlabel(x_label, fontsize=10)
    figure.supylabel(y_label, fontsize=10)
    handles = {}
    for panel in axes.flat:
        artists, names = panel.get_legend_handles_labels()
        handles |= dict(zip(names, artists, strict=True))
    longest = max(len(name) for name in handles)
    fit = max(1, min(5, int((1.2 + width * columns) / (0.55 + 0.085 * longest))))
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper center",
        ncols=min(fit, len(handles)),
        frameon=False,
        fontsize=9,
    )
    return figure


def _draw(panel, line: Line, style) -> None:
    if line.kind == "point":
        panel.plot(line.x, line.y, "h", color="black", markersize=9, label=line.label)
        panel.axhline(line.y[0], color="black", linewidth=0.6, linestyle=(0, (1, 3)))
        return
    if line.kind == "band":
        if line.low:
            panel.fill_between(
                line.x, line.low, line.high, color="0.87", linewidth=0, label=f"{line.label}, 95 %"
            )
        panel.plot(line.x, line.y, "-", color="black", linewidth=2.2, label=line.label)
        return
    marker, dash, colour = style
    panel.plot(
        line.x,
        line.y,
        marker=marker,
        linestyle=dash,
        color=colour,
        linewidth=1.4,
        markersize=6,
        markeredgecolor="white",
        markeredgewidth=0.7,
        label=line.label,
    )
    if line.low:
        panel.vlines(line.x, line.low, line.high, color=colour, linewidth=0.8, alpha=0.7)


def heat_maps(
    maps: dict[str, np.ndarray], rows: list[str], columns: list[str], row_key: str, column_key: str
):
    """A grid of numbers (per cent, NaN where there is none) for every title, on one scale of grey."""
    across = min(3, len(maps))
    down = -(-len(maps) // across)
    size = (1.3 + across * (0.9 + 0.62 * len(columns)), 0.7 + down * (0.95 + 0.42 * len(rows)))
    figure = _figure_class()(figsize=(max(4.0, size[0]), max(2.2, size[1])), layout="constrained")
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    numbers = np.concatenate([m.ravel() for m in maps.values()])
    scale = {"vmin": np.nanmin(numbers), "vmax": np.nanmax(numbers)}
    for panel, (title, values) in zip(axes.flat, maps.items(), strict=False):
        _cells(panel, values, [[f"{v:.1f}" if np.isfinite(v) else "" for v in row] for row in values], scale)
        panel.set_title(title, fontsize=10)
        panel.set_xticks(range(len(columns)), columns)
        panel.set_yticks(range(len(rows)), rows)
    for panel in axes.flat[len(maps) :]:
        panel.set_visible(False)
    figure.supxlabel(column_key, fontsize=10)
    figure.supylabel(row_key, fontsize=10)
    return figure


def confusion(matrices: dict[str, np.ndarray], classes: list[str]):
    """Counts (rows true, columns predicted) for every title; shaded by the share of the row."""
    across = min(3, len(matrices))
    down = -(-len(matrices) // across)
    figure = _figure_class()(figsize=(1.2 + 3.2 * across, 0.6 + 3.1 * down), layout="constrained")
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for panel, (title, counts) in zip(axes.flat, matrices.items(), strict=False):
        share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        text = [
            [f"{s:.0f} %\n{n:,.0f}" for s, n in zip(*row, strict=True)]
            for row in zip(share, counts, strict=True)
        ]
        _cells(panel, share, text, {"vmin": 0, "vmax": 100})
        panel.set_title(title, fontsize=10)
        panel.set_xticks(range(len(classes)), classes, rotation=30, ha="right", rotation_mode="anchor")
        panel.set_yticks(range(len(classes)), classes)
    for panel in axes.flat[len(matrices) :]:
        panel.set_visible(False)
    figure.supxlabel("predicted", fontsize=11)
    figure.supylabel("true", fontsize=11)
    return figure


def _cells(panel, values, text, scale) -> None:
    panel.imshow(np.ma.masked_invalid(values), cmap=COLOURS, aspect="auto", **scale)
    middle = scale["vmin"] + 0.6 * (scale["vmax"] - scale["vmin"])
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if value > middle else "black"
        panel.text(column, row, text[row][column], ha="center", va="center", fontsize=9, color=colour)
    panel.set_xticks(np.arange(values.shape[1] + 1) - 0.5, minor=True)
    panel.set_yticks(np.arange(values.shape[0] + 1) - 0.5, minor=True)
    panel.grid(which="minor", color="white", linewidth=1.5)
    panel.tick_params(which="both", length=0)
    panel.spines[:].set_visible(False)


def gallery(images, kept, scores, titles: list[str], threshold: float | None, measure: str):
    """Photographs with what a mask drops, above the scores that decide it, of which `measure` says what they are.

    images uint8[K, H, W, 3], kept bool[K, h, w], scores float32[K, h, w]. Dropped patches are darkened and crossed.
    """
    number = len(images)
    figure = _figure_class()(figsize=(1.0 + 1.75 * number, 4.35), layout="constrained")
    axes = figure.subplots(2, number, squeeze=False)
    shown = np.log10(np.maximum(scores, 0.1))
    scale = {"vmin": -1.0, "vmax": max(4.0, float(shown.max()))}
    for i in range(number):
        above, below = axes[0, i], axes[1, i]
        height, width = images[i].shape[:2]
        patch = height / kept.shape[1], width / kept.shape[2]
        dropped = np.kron(~kept[i], np.ones((round(patch[0]), round(patch[1])), bool))
        photograph = images[i].copy()
        photograph[dropped] = photograph[dropped] // 4
        above.imshow(photograph)
        rows, columns = np.nonzero(~kept[i])
        size = 2.6 * 14 / kept.shape[2]
        above.plot(
            (columns + 0.5) * patch[1] - 0.5,
            (rows + 0.5) * patch[0] - 0.5,
            "x",
            color="white",
            markersize=size,
            markeredgewidth=0.5,
        )
        above.set_title(titles[i], fontsize=8)
        drawn = below.imshow(shown[i], cmap="viridis", **scale)  # of overlay.py too
        if threshold:
            for ends in _edges(scores[i] >= threshold):
                below.plot(*ends, color="#c2571a", linewidth=1.4, solid_capstyle="projecting")
        for panel in (above, below):
            panel.set_xticks([])
            panel.set_yticks([])
    bar = figure.colorbar(drawn, ax=axes[1, :], location="right", fraction=0.03, pad=0.01)
    ticks = range(-1, int(scale["vmax"]) + 1)
    bar.set_ticks(list(ticks), labels=[f"$10^{{{t}}}$" for t in ticks], fontsize=8)
    bar.set_label(measure, fontsize=8)
    return figure


def _edges(inside) -> list[tuple[list[float], list[float]]]:
    """Where cells of bool[h, w] have a neighbour unlike them: (x, x), (y, y) of each side between two."""
    rows, columns = np.nonzero(inside[:, 1:] != inside[:, :-1])
    sides = [([c + 0.5, c + 0.5], [r - 0.5, r + 0.5]) for r, c in zip(rows, columns, strict=True)]
    rows, columns = np.nonzero(inside[1:] != inside[:-1])
    return sides + [([c - 0.5, c + 0.5], [r + 0.5, r + 0.5]) for r, c in zip(rows, columns, strict=True)]


def _figure_class():
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UserError(
            'bjax.report: draws with matplotlib, which is missing; pip install "bjax[report]"'
        ) from None
    return Figure
