"""The style that all figures share: colours, panels, logarithmic axes, marks, legends.

An open triangle pointing down means "here or below", which is also how a logarithmic axis shows
zero, on its lower edge. The neutral colours INK, MUTED, LINE and PAPER stand for those of the page,
which puts its own in their place to follow its theme.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from numpy.typing import ArrayLike

Draw = Callable[[pd.DataFrame, int], Figure | None]

NEUTRAL = {"ink": "#1f2328", "muted": "#6a737d", "line": "#d7dbe0", "paper": "#fefefe"}
INK, MUTED, LINE, PAPER = NEUTRAL.values()
BLUE, ORANGE, GREEN, ACCENT, PINK, BROWN, _, GREY, _, SKY = sns.color_palette("colorblind").as_hex()
PANEL, PANEL_HEIGHT, ROW = 3.5, 2.7, 0.26  # inches; at 96 pixels each, text of 9 pt is 12 pixels
DASHES = (0, (4, 2))
MAX_PANELS, MAX_ROWS = 6, 24
MAX_MARKS = 600  # of a figure; more would fill the page with marks that hide each other
THEME = {
    **sns.axes_style("ticks"),
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    **dict.fromkeys(("font.size", "axes.labelsize"), 9),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), 8),
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), INK),
    **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), MUTED),
    "axes.linewidth": 0.7,
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    **dict.fromkeys(("axes.facecolor", "figure.facecolor"), "none"),
    "svg.fonttype": "none",  # text stays text: searchable, read aloud, in the page's colour
}


def themed(draw: Draw) -> Draw:
    """`draw` on the finished cells, in the report's style."""

    @functools.wraps(draw)
    def drawn(cells: pd.DataFrame, columns: int = 3) -> Figure | None:
        cells = cells[cells["status"] == "ok"]
        with mpl.rc_context(THEME):
            return None if cells.empty else draw(cells, columns)

    return drawn


def make_panels(
    count: int, columns: int, width: float = 0.0, height: float = PANEL_HEIGHT
) -> tuple[Figure, list[Axes]]:
    """`count` panels, at most `columns` in a row; each is wider where they are fewer."""
    across = min(columns, count)
    width = width or PANEL * min(1.5, columns / across)
    down = math.ceil(count / across)
    figure = Figure((width * across, height * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for ax in grid[count:]:
        ax.remove()
    return figure, list(grid[:count])


def draw_edge_marks(ax: Axes, x: ArrayLike, y: ArrayLike, color: str, series: str) -> None:
    """Draw open triangles, not clipped where they lie on the frame."""
    label = f"{series}, at most"
    (marks,) = ax.plot(x, y, "v", color=color, mfc="none", ms=5.5, clip_on=False, label=label)
    marks.set_in_layout(False)


def largest(*values: ArrayLike, least: float) -> float:
    """The largest finite number among them, or `least` if none is above it."""
    flat = np.concatenate([np.ravel(np.asarray(v, float)) for v in values])
    return float(flat[np.isfinite(flat)].max(initial=least))


def log_axis(
    ax: Axes, xy: str, values: Iterable[pd.Series], decades: float = math.inf, n_ticks: int = 7
) -> float:
    """Make axis `xy` logarithmic and return its lower edge, where zero is drawn.

    `decades` is the largest length of the axis, `n_ticks` the largest number of its ticks.
    """
    flat = np.concatenate([np.asarray(v, float) for v in values])
    flat = flat[np.isfinite(flat) & (flat > 0)]
    top = flat.max() if len(flat) else 1.0
    low = max(flat.min(), top * 10.0**-decades) if len(flat) else 0.1
    floor = 10.0 ** math.floor(math.log10(low) - 0.15)
    ax.set(**{f"{xy}scale": "log", f"{xy}lim": (0.8 * floor, 10 ** (math.log10(top) + 0.2))})
    axis = ax.xaxis if xy == "x" else ax.yaxis
    axis.set_major_locator(LogLocator(numticks=n_ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: power(v)))
    return floor


def power(value: float) -> str:
    """A power of ten, as ``0.01``, ``1,000`` or ``10⁴``; 0 as such."""
    if value == 0:
        return "0"
    exponent = round(math.log10(value))
    if -2 <= exponent <= 3:
        return f"{10.0**exponent:,g}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def count_axis(ax: Axes, counts: pd.Series) -> None:
    """Make the x axis logarithmic, with ticks at the counts themselves.

    A mark beside its count, where several would hide each other, is read as that count.
    """
    known = np.unique(np.asarray(counts, float))
    ax.fmt_xdata = lambda x: f"{known[np.abs(known / x - 1).argmin()]:g}"
    ax.set_xscale("log")
    low, high = float(counts.min()), float(counts.max())
    ax.set_xlim(low / 1.25, high * 1.25)
    ax.xaxis.set_major_locator(FixedLocator(spread(sorted(counts.astype(float).unique()), 8)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def label_outer(panels: Sequence[Axes], columns: int, ylabel: str) -> None:
    """Put the y label on the panels of the first column alone."""
    for ax in panels[:: min(columns, len(panels))]:
        ax.set_ylabel(ylabel)


def spread(values: list[float], count: int) -> list[float]:
    """At most `count` of the values, evenly spread, with the first and the last."""
    if len(values) <= count:
        return values
    return [values[round(i)] for i in np.linspace(0, len(values) - 1, count)]


def below_handle(text: str) -> Artist:
    """The legend's entry for the open triangle."""
    return Line2D([], [], color=MUTED, marker="v", mfc="none", ls="", ms=5, label=text)


def thin(figure: Figure) -> int:
    """Draw one in n of the marks, with its interval, where there are over `MAX_MARKS`; return n."""
    drawn = [artist for ax in figure.axes for artist in (*ax.lines, *ax.collections)]
    drawn = [artist for artist in drawn if not artist.get_rasterized()]
    lines = [a for a in drawn if isinstance(a, Line2D) and a.get_marker() not in ("None", "")]
    n = math.ceil(sum(len(np.asarray(line.get_xdata())) for line in lines) / MAX_MARKS)
    if n > 1:
        for line in lines:
            line.set_markevery(n)
        for artist in drawn:
            if isinstance(artist, LineCollection):
                artist.set_segments(artist.get_segments()[::n])
            elif isinstance(artist, PathCollection):
                artist.set_facecolor([*artist.get_facecolor()][::n])
                artist.set_offsets(np.asarray(artist.get_offsets())[::n])
    return n


def add_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Put a legend above the panels, and make the figure taller by its height."""
    if (n := thin(figure)) > 1:
        handles = [*handles, Line2D([], [], ls="", label=f"1 mark in {n} drawn")]
    width, height = figure.get_size_inches()
    across = min(len(handles), round(width / 1.75))
    figure.set_size_inches(width, height + 0.19 * math.ceil(len(handles) / across) + 0.1)
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=across,
        columnspacing=1.4,
        handletextpad=0.5,
        borderpad=0.1,
    )
