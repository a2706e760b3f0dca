"""What every figure shares: colours, the marks of a model, panels, logarithmic axes, legends.

Conventions, the same everywhere: the trained flow is the heavy vermilion one; the other models are
Okabe-Ito colours, each with its own shape, so that colour is never alone; an open triangle pointing
down says "here or below", which is also how a logarithmic axis shows zero, on its lower edge. The
neutral colours INK, MUTED, LINE and PAPER stand for those of the page, which puts its own in their
place to follow its theme.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from resflow_bench.analysis.tables import label

Draw = Callable[[pd.DataFrame, int], Figure | None]

INK, MUTED, LINE, PAPER = "#1f2328", "#6a737d", "#d7dbe0", "#fefefe"
BLUE, ORANGE, GREEN, ACCENT, PINK, BROWN, _, GREY, _, SKY = sns.color_palette("colorblind").as_hex()
MODELS = {
    "trained": (ACCENT, "o"),
    "shallow": ("#00688b", "v"),
    "patches": ("#a0522d", "*"),
    "conv": ("#8a5a00", "p"),
    "multiscale": ("#5b2a86", "d"),
    "init": (ORANGE, "h"),
    "steep": ("#c71585", "<"),
    "minus-identity": (BLUE, "s"),
    "plus-identity": (SKY, "^"),
    "orthogonal": (GREEN, "D"),
    "symmetric": (PINK, "P"),
    "gaussian": (BROWN, "X"),
    "triangular": (GREY, ">"),
}
FLOWS = {"trained", "shallow", "patches", "conv", "multiscale", "init", "steep"}
PANEL, PANEL_HEIGHT, ROW = 3.5, 2.7, 0.26  # inches; at 96 pixels each, text of 9 pt is 12 pixels
DASHES = (0, (4, 2))
MAX_PANELS, MAX_ROWS = 6, 24
THEME = {
    **sns.axes_style("ticks"),
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "svg.fonttype": "none",  # text stays text: searchable, read aloud, in the page's colour
}


def themed(draw: Draw) -> Draw:
    """`draw` on the cells that were measured, in the report's style."""

    @functools.wraps(draw)
    def drawn(cells: pd.DataFrame, columns: int = 3) -> Figure | None:
        with mpl.rc_context(THEME):
            return draw(cells[cells["status"] == "ok"], columns)

    return drawn


def cells_with(cells: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The cells that have all of these columns; none where one is missing."""
    if not set(columns) <= set(cells):
        return cells.head(0)
    return cells.dropna(subset=list(columns))


def models_in(cells: pd.DataFrame) -> list[str]:
    """Those measured, the trained flow last so that it is drawn on top."""
    found = set(cells["model"])
    others = sorted(found - set(MODELS))
    return [name for name in reversed(MODELS) if name in found and name != "trained"] + [
        *others,
        *(["trained"] if "trained" in found else []),
    ]


def make_panels(
    count: int, columns: int, width: float = 0.0, height: float = PANEL_HEIGHT
) -> tuple[Figure, list[Axes]]:
    """`count` panels, at most `columns` in a row; where they are fewer, each is wider."""
    across = min(columns, count)
    width = width or PANEL * min(1.5, columns / across)
    down = math.ceil(count / across)
    figure = Figure((width * across, height * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for ax in grid[count:]:
        ax.remove()
    return figure, list(grid[:count])


def make_rows(
    cells: pd.DataFrame, names: list[str], columns: int, suffix: str = ""
) -> tuple[Figure, Axes]:
    """One wide panel with a named line for each cell; the trained flow's names stand out."""
    labels = [label(cell, names) for _, cell in cells.iterrows()]
    if suffix:
        labels = [f"{t}, {v} {suffix}" for t, v in zip(labels, cells[suffix], strict=True)]
    figure, (ax,) = make_panels(1, 1, width=columns * PANEL, height=0.75 + ROW * len(cells))
    ax.set_yticks(range(len(cells)), labels)
    for text, model in zip(ax.get_yticklabels(), cells["model"], strict=True):
        text.set_fontweight("bold" if model == "trained" else "normal")
    ax.set_ylim(-0.6, len(cells) - 0.4)
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")
    return figure, ax


def draw_points(
    ax: Axes,
    model: str,
    at: tuple[pd.Series, pd.Series],
    ends: np.ndarray | tuple[Any, Any] | None,
    *,
    shown: np.ndarray | None = None,
    below: np.ndarray | None = None,
    hollow: bool = False,
) -> None:
    """The model's marks at `at` with intervals `ends`; where `below`, an open triangle instead."""
    color, marker = MODELS.get(model, (GREY, "o"))
    heavy = model == "trained"
    x, y = (np.asarray(values, float) for values in at)
    shown = np.ones(len(x), bool) if shown is None else shown
    below = np.zeros(len(x), bool) if below is None else below
    told = shown & ~below
    if ends is not None:
        low, high = (np.asarray(values, float)[told] for values in ends)
        ax.vlines(x[told], low, high, color=color, lw=1.8 if heavy else 1.1)
    size = (6.0 if heavy else 5.0) + 2.5 * hollow  # a ring that shows what lies within it
    face = "none" if hollow else color
    edge = {"mec": color, "mew": 1.1} if hollow else {"mec": PAPER, "mew": 0.4}
    ax.plot(x[told], y[told], marker, color=color, ms=size, mfc=face, ls="", **edge)
    draw_edge_marks(ax, x[shown & below], y[shown & below], color)


def draw_edge_marks(ax: Axes, x: np.ndarray, y: np.ndarray, color: str) -> None:
    """Open triangles; whole, even where they stand on the frame."""
    (marks,) = ax.plot(x, y, "v", mfc="none", mec=color, ms=5.5, clip_on=False)
    marks.set_in_layout(False)


def log_axis(ax: Axes, xy: str, values: Iterable[pd.Series], decades: float = math.inf) -> float:
    """Makes axis `xy` logarithmic; its lower edge, where zero is drawn, comes back."""
    flat = np.concatenate([np.asarray(v, float) for v in values])
    flat = flat[np.isfinite(flat) & (flat > 0)]
    top = flat.max() if len(flat) else 1.0
    low = max(flat.min(), top * 10.0**-decades) if len(flat) else 0.1
    floor = 10.0 ** math.floor(math.log10(low) - 0.15)
    ax.set(**{f"{xy}scale": "log"})
    ax.set(**{f"{xy}lim": (0.8 * floor, 10 ** (math.log10(top) + 0.2))})
    axis = ax.xaxis if xy == "x" else ax.yaxis
    axis.set_major_locator(LogLocator(numticks=7))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: _power(v)))
    return floor


def _power(value: float) -> str:
    exponent = round(math.log10(value))
    if -2 <= exponent <= 3:
        return f"{10.0**exponent:,g}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def count_axis(ax: Axes, counts: pd.Series) -> None:
    """Makes the x axis logarithmic, with ticks at the counts themselves."""
    ax.set_xscale("log")
    low, high = float(counts.min()), float(counts.max())
    ax.set_xlim(low / 1.25, high * 1.25)
    ax.xaxis.set_major_locator(FixedLocator(spread(sorted(counts.astype(float).unique()), 8)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def label_outer(panels: Sequence[Axes], columns: int, ylabel: str) -> None:
    """The y label on the panels of the first column alone."""
    for ax in panels[:: min(columns, len(panels))]:
        ax.set_ylabel(ylabel)


def spread(values: list[float], count: int) -> list[float]:
    """At most `count` of them, evenly spread, the first and the last among them."""
    if len(values) <= count:
        return values
    return [values[round(i)] for i in np.linspace(0, len(values) - 1, count)]


def model_handles(names: list[str]) -> list[Artist]:
    """The models' entries in a legend, the trained flow first."""
    return [
        Line2D([], [], color=color, marker=marker, ls="", ms=6, label=name)
        for name, (color, marker) in ((n, MODELS.get(n, (GREY, "o"))) for n in reversed(names))
    ]


def below_handle(text: str) -> Artist:
    """The entry of the open triangle in a legend."""
    return Line2D([], [], color=MUTED, marker="v", mfc="none", ls="", ms=5, label=text)


def add_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Above the panels, and the figure grows by what it takes."""
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
