"""Looks of all figures: colours, markers, legends, and drawing as SVG."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.report.words import shorten_label

if TYPE_CHECKING:  # importing matplotlib takes half a second, so only commands that draw import it
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Dash = str | tuple[int, tuple[int, ...]]
PlotLook = tuple[str, str, Dash]  # colour, marker, dash

# Lines differ in marker, dash and lightness as well as in hue (Okabe and Ito's palette), so greyscale is enough.
LOOKS: list[PlotLook] = [
    ("#0072b2", "o", "-"),
    ("#d55e00", "s", "--"),
    ("#009e73", "^", "-."),
    ("#000000", "D", ":"),
    ("#cc79a7", "v", (0, (5, 1))),
    ("#56b4e9", "P", (0, (1, 1))),
    ("#e69f00", "X", (0, (3, 1, 1, 1))),
    ("#7f7f7f", "*", (0, (8, 2))),
]
PLOT_STYLE: dict[Any, object] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "manyminds",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
FIGURE_SIZE = (6.4, 4.2)  # inches
PAGE_WIDTH = 12.8  # inches
LEGEND_ROW = 0.17  # inches
ROWS_WITH_ROOM = 3  # of a legend, for which a figure of the usual size has room


def draw_svg(draw: Callable[[Figure], object], size: tuple[float, float] = FIGURE_SIZE) -> str:
    """Let `draw` draw on an empty matplotlib figure of `size` inches, and return its SVG element."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(PLOT_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        sink = io.StringIO()
        figure.savefig(sink, format="svg", metadata={"Date": None})
    svg = sink.getvalue()
    svg = svg[svg.index("<svg") :]
    if size[0] > FIGURE_SIZE[0]:  # 92 px per inch: letters are as large as in figures of the usual size
        svg = svg.replace("<svg", f'<svg class="wide" style="max-width: {92 * size[0]:.0f}px"', 1)
    return svg


def look_at_index(i: int) -> PlotLook:
    """Return the i-th colour, marker and dash; from the ninth on they are combined differently."""
    n = len(LOOKS)
    again = i // n
    return LOOKS[i % n][0], LOOKS[(i + again) % n][1], LOOKS[(i + 2 * again) % n][2]


def add_legend(figure: Figure, handles: list[Artist] | None = None) -> None:
    """Add a legend above the axes, in as many columns as fit; a legend of many rows makes the figure taller."""
    handles = [h for axes in figure.axes for h in axes.get_legend_handles_labels()[0]] if handles is None else handles
    if handles:
        labels = [shorten_label(str(h.get_label())) for h in handles]
        width = 0.6 + 0.078 * max(map(len, labels))  # inches of a handle and of its letters
        columns = min(max(int(figure.get_figwidth() / width), 1), 8)
        figure.legend(handles, labels, fontsize=9, ncols=columns, loc="outside upper center")
        rows = -(-len(handles) // columns)
        figure.set_figheight(figure.get_figheight() + LEGEND_ROW * max(0, rows - ROWS_WITH_ROOM))


def draw_grey_line(axes: Axes, x: np.ndarray, y: np.ndarray, dash: Dash = "-") -> None:
    """Draw the line of a privileged method, which is not ranked; `write_line_names` puts its name beside its end."""
    axes.plot(x, y, color="#999999", lw=1, ls=dash)


def write_line_names(axes: Axes, ends: list[tuple[float, float, str]]) -> None:
    """Write each name beside the end (x, y) of its line, without overlap.

    Neighbouring names that are equal before their first comma are written once, without the part after it.
    """
    low, high = axes.get_ylim()
    apart = 0.055 * (high - low)
    written: list[list[Any]] = []  # x, y, name, y of the last line that the name stands for
    for x, y, name in sorted(ends, key=lambda end: end[1]):
        if written and y - written[-1][3] < apart and written[-1][2].partition(",")[0] == name.partition(",")[0]:
            written[-1][2:] = name.partition(",")[0], y
        else:
            written.append([x, max(y, written[-1][1] + apart) if written else y, name, y])
    for x, y, name, _ in written:
        axes.annotate(
            name, (x, y), (5, 0), textcoords="offset points", color="#666666", fontsize=9, va="center",
            annotation_clip=False,
        )  # fmt: skip
