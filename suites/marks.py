"""The marks of the models in a figure: colour, shape, legend, and a line for each cell.

The trained flow is the heavy vermilion one; the other models are Okabe-Ito colours, each with a
shape of its own, so that models are never told apart by colour alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resflow_bench.analysis.tables import label
from resflow_bench.report.style import (
    ACCENT,
    BLUE,
    BROWN,
    GREEN,
    GREY,
    ORANGE,
    PANEL,
    PAPER,
    PINK,
    ROW,
    SKY,
    draw_edge_marks,
    make_panels,
)
from suites.models import MAIN

MODELS = {
    MAIN: (ACCENT, "o"),
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
FLOWS = {MAIN, "shallow", "patches", "conv", "multiscale", "init", "steep"}


def mark(model: str) -> tuple[str, str]:
    """Colour and marker of a model; grey and round for one that is not in `MODELS`."""
    return MODELS.get(model, (GREY, "o"))


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
    if suffix:
        labels = [f"{t}, {v} {suffix}" for t, v in zip(labels, cells[suffix], strict=True)]
    figure, (ax,) = make_panels(1, 1, width=columns * PANEL, height=0.75 + ROW * len(cells))
    ax.set_yticks(range(len(cells)), labels)
    for text, model in zip(ax.get_yticklabels(), cells["model"], strict=True):
        text.set_fontweight("bold" if model == MAIN else "normal")
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
    """Draw the model's marks at `at` with intervals `ends`, and open triangles where `below`."""
    color, marker = mark(model)
    heavy = model == MAIN
    x, y = (np.asarray(values, float) for values in at)
    shown = np.ones(len(x), bool) if shown is None else shown
    below = np.zeros(len(x), bool) if below is None else below
    filled = shown & ~below
    if ends is not None:
        low, high = (np.asarray(values, float)[filled] for values in ends)
        ax.vlines(x[filled], low, high, color=color, lw=1.8 if heavy else 1.1)
    size = (6.0 if heavy else 5.0) + 2.5 * hollow  # a ring that shows what lies within it
    face = "none" if hollow else color
    edge: dict[str, Any] = {"mec": color, "mew": 1.1} if hollow else {"mec": PAPER, "mew": 0.4}
    ax.plot(x[filled], y[filled], marker, color=color, ms=size, mfc=face, ls="", **edge)
    draw_edge_marks(ax, x[shown & below], y[shown & below], color)


def model_handles(names: list[str]) -> list[Artist]:
    """The models' entries in a legend, the main one first."""
    return [
        Line2D([], [], color=color, marker=marker, ls="", ms=6, label=name)
        for name, (color, marker) in ((n, mark(n)) for n in reversed(names))
    ]
