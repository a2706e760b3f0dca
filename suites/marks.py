"""The marks of the models in a figure, its legend, and the cells that it is drawn from.

The trained flow is the heavy vermilion one; the other models are Okabe-Ito colours, each with a
shape of its own, so that models are never told apart by colour alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resflow_bench.analysis.tables import label
from resflow_bench.analysis.words import measured
from resflow_bench.report import style
from suites.models import MAIN

MODELS = {
    MAIN: (style.ACCENT, "o"),
    "shallow": ("#00688b", "v"),
    "patches": ("#a0522d", "*"),
    "patches-wide": ("#b8860b", "X"),
    "checkerboard": ("#556b2f", ">"),
    "eight-gaussians": ("#2f4f4f", "X"),
    "mlp-orthogonal": ("#4b6a9b", "s"),
    "mlp-aol": ("#7a4a6e", "^"),
    "mlp-sll": ("#6b7a2f", "P"),
    "conv": ("#8a5a00", "p"),
    "multiscale": ("#5b2a86", "d"),
    "init": (style.ORANGE, "h"),
    "steep": ("#c71585", "<"),
    "monotone-steep": ("#7b3294", "D"),
    "implicit-steep": ("#006d5b", "s"),
    "minus-identity": (style.BLUE, "s"),
    "plus-identity": (style.SKY, "^"),
    "orthogonal": (style.GREEN, "D"),
    "symmetric": (style.PINK, "P"),
    "gaussian": (style.BROWN, "X"),
    "triangular": (style.GREY, ">"),
}
OTHERS = [(color, shape) for shape in "os^DvP" for color in (style.BLUE, style.GREEN, style.BROWN)]
FLOWS = {
    *(MAIN, "shallow", "patches", "patches-wide", "conv", "multiscale"),
    *("checkerboard", "eight-gaussians"),
    *("mlp-orthogonal", "mlp-aol", "mlp-sll"),
    *("init", "steep", "monotone-steep", "implicit-steep"),
}


def drawn_from(*names: str) -> Callable[[style.Draw], style.Draw]:
    """A decorator: draw the finished cells that have these columns, in the report's style.

    The figure is None where there are none.
    """

    def decorate(draw: style.Draw) -> style.Draw:
        @style.themed
        @functools.wraps(draw)
        def drawn(cells: pd.DataFrame, columns: int) -> Figure | None:
            cells = measured(cells, *names)
            return None if cells.empty else draw(cells, columns)

        return drawn

    return decorate


def mark(model: str) -> tuple[str, str]:
    """Colour and marker of a model; of one not in `MODELS`, always the same for its name."""
    return MODELS.get(model, OTHERS[crc32(model.encode()) % len(OTHERS)])


def models_in(cells: pd.DataFrame) -> list[str]:
    """The models measured, the main one last so that it is drawn on top."""
    found = set(cells["model"])
    known = [name for name in reversed(MODELS) if name in found - {MAIN}]
    return [*known, *sorted(found - set(MODELS)), *found & {MAIN}]


def make_rows(
    cells: pd.DataFrame, names: list[str], columns: int, suffix: str = ""
) -> tuple[Figure, Axes]:
    """One wide panel with a named line for each cell; the main model's names are bold."""
    labels = [label(cell, names) for _, cell in cells.iterrows()]
    row = style.ROW
    if suffix:
        between, row = (",\n", 1.3 * row) if columns == 1 else (", ", row)
        labels = [f"{t}{between}{v} {suffix}" for t, v in zip(labels, cells[suffix], strict=True)]
    height = 0.75 + row * len(cells)
    figure, (ax,) = style.make_panels(1, 1, width=columns * style.PANEL, height=height)
    mine = [text for text, model in zip(labels, cells["model"], strict=True) if model == MAIN]
    name_rows(ax, labels, mine)
    return figure, ax


def name_rows(ax: Axes, names: Sequence[str], bold: Sequence[str] = ()) -> None:
    """Write a name beside each row of a panel, without ticks or lines across."""
    ax.fmt_ydata = lambda y: " ".join(names[min(max(round(y), 0), len(names) - 1)].split())
    ax.set_yticks(range(len(names)), names)
    for text in ax.get_yticklabels():
        text.set_fontweight("bold" if text.get_text() in bold else "normal")
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")


def draw_points(
    ax: Axes,
    model: str,
    at: tuple[pd.Series, pd.Series],
    ends: np.ndarray | tuple[Any, Any] | None = None,
    *,
    shown: np.ndarray | None = None,
    below: np.ndarray | None = None,
    hollow: bool = False,
    series: str = "",
) -> None:
    """Draw the model's marks at `at` with intervals `ends`, and open triangles where `below`.

    `series` names them in tooltips and in the figure's CSV; the model does where it is empty.
    """
    color, marker = mark(model)
    heavy, series = model == MAIN, series or model
    x, y = (np.asarray(values, float) for values in at)
    shown = np.ones(len(x), bool) if shown is None else shown
    below = np.zeros(len(x), bool) if below is None else below
    filled = shown & ~below
    if ends is not None:
        low, high = (np.asarray(values, float)[filled] for values in ends)
        ax.vlines(x[filled], low, high, color=color, lw=1.8 if heavy else 1.1, label=series)
    size = (6.0 if heavy else 5.0) + 2.5 * hollow  # a ring that shows what lies within it
    face = "none" if hollow else color
    mec, mew = (color, 1.1) if hollow else (style.PAPER, 0.4)
    look: dict[str, Any] = {
        "color": color,
        "ms": size,
        "mfc": face,
        "mec": mec,
        "mew": mew,
        "label": series,
    }
    ax.plot(x[filled], y[filled], marker, **look)
    style.draw_edge_marks(ax, x[shown & below], y[shown & below], color, series)


def entry(text: str, color: str, **given: Any) -> Artist:
    """An entry of a legend, a line or a mark; `given` are properties of a `Line2D`."""
    return Line2D([], [], color=color, label=text, **given)


def model_handles(names: list[str]) -> list[Artist]:
    """The models' entries in a legend, the main one first."""
    marks = {name: mark(name) for name in reversed(names)}
    return [entry(name, color, marker=m, ls="", ms=6) for name, (color, m) in marks.items()]
