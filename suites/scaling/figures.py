"""Seconds of a log-prob against its terms, probes and examples, beside a straight line."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resflow_bench.analysis.tables import axes, label, varying
from resflow_bench.analysis.words import number
from resflow_bench.report import style
from resflow_bench.report.picture import Picture
from suites.marks import drawn_from, entry
from suites.scaling.claims import GROWING

COLORS = (style.ACCENT, style.BLUE, style.GREEN, style.ORANGE, style.PINK, style.BROWN)
STYLES = tuple(zip(COLORS, "osD^vP", strict=True))
SYMBOLS = {"n_terms": "N", "n_probes": "m", "batch_size": "B"}
ENDS = ("low", "high")
RUNG = re.compile(r"wall_s_(\d+)")
ROOM = 0.16
"""The room for an exponent right of the marks, as a share of the axis that they take."""


@drawn_from("grows", "exponent", "overhead_s", "marginal_s", "dim", "width")
def ladders(cells: pd.DataFrame, columns: int) -> Figure:
    """Seconds of a log-prob against terms, probes and examples, with and without a constant."""
    cells = _named(cells)
    styles = dict(zip(dict.fromkeys(cells["name"]), STYLES, strict=False))
    growing = [grows for grows in GROWING if (cells["grows"] == grows).any()]
    places = list(product(dict.fromkeys(cells["device"]), growing))
    columns = min(columns, cells["grows"].nunique())
    figure, panels = style.make_panels(len(places), columns)
    for ax, (device, grows) in zip(panels, places, strict=True):
        here = cells[(cells["device"] == device) & (cells["grows"] == grows)]
        ladders = [(_rungs(cell), cell) for _, cell in here.iterrows() if cell["name"] in styles]
        if ladders:
            rungs = pd.concat([rungs for rungs, _ in ladders])
            style.log_axis(ax, "y", [rungs[column] for column in ("wall_s", *ENDS)])
            style.count_axis(ax, rungs["size"])
            low, high = rungs["size"].min(), rungs["size"].max()
            ax.set_xlim(right=high * (high / low) ** ROOM)
        for rungs, cell in ladders:
            _draw(ax, rungs, cell, *styles[cell["name"]])
        ax.set(title=f"{GROWING[grows]}, {device}", xlabel=f"{GROWING[grows]} {SYMBOLS[grows]}")
    style.label_outer(panels, columns, "seconds of a log-prob")
    handles = [entry(name, color, marker=m, lw=1.4, ms=5.5) for name, (color, m) in styles.items()]
    without = entry("without the constant", style.MUTED, ls=style.DASHES, lw=1.1)
    style.add_legend(figure, [*handles, without])
    return figure


def _named(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells with a `name`: d × h, and the other axes in which the ladders of a panel differ."""
    others = [name for name in axes(cells) if name not in ("dim", "width", "device", "grows")]
    alike = [some for _, some in cells.groupby(["device", "grows", "dim", "width"], sort=False)]
    differing = [name for name in others if any(varying(some, [name]) for some in alike)]
    names = [
        ", ".join(filter(None, [f"{cell['dim']} × {cell['width']}", label(cell, differing)]))
        for _, cell in cells.iterrows()
    ]
    return cells.assign(name=names)


def _rungs(cell: pd.Series) -> pd.DataFrame:
    """size, wall_s and the ends of its interval, a line for each rung that was timed."""
    rungs = [
        (int(rung[1]) * cell[cell["grows"]], cell[name], cell[f"{name}_low"], cell[f"{name}_high"])
        for name in cell.index
        if (rung := RUNG.fullmatch(name)) and not pd.isna(cell[name])
    ]
    return pd.DataFrame(rungs, columns=["size", "wall_s", *ENDS]).astype(float)


def _draw(ax: Axes, rungs: pd.DataFrame, cell: pd.Series, color: str, marker: str) -> None:
    """The marks, a + b n through them, b n alone, and the exponent at the last."""
    name = cell["name"]
    ax.vlines(rungs["size"], rungs["low"], rungs["high"], color=color, lw=1.8, label=name)
    look: dict[str, Any] = {
        "color": color,
        "ms": 5.5,
        "mec": style.PAPER,
        "mew": 0.4,
        "label": name,
    }
    ax.plot(rungs["size"], rungs["wall_s"], marker, **look)
    size = np.geomspace(rungs["size"].min(), rungs["size"].max(), 50)
    slope, look = cell["marginal_s"] * size, {"color": color, "lw": 1.1, "ls": style.DASHES}
    ax.plot(size, cell["overhead_s"] + slope, color=color, lw=1.4, label=f"{name}, fit")
    ax.plot(size, slope, **look, label=f"{name}, without the constant")
    end = rungs.loc[rungs["size"].idxmax()]
    text, at = number(cell["exponent"], 2), (end["size"], end["wall_s"])
    ax.annotate(text, at, (6, 0), textcoords="offset points", va="center", color=color, size=8)


PICTURES = (
    Picture(
        "scaling",
        ladders,
        "Seconds of a log-prob with a fixed number of terms, for two untrained blocks W-φ-W named "
        "by their d × h. Each ladder doubles one size from mark to mark, and its marks are timed "
        "in turn. Bars are 99 % intervals of the median. The line is a constant plus a slope, "
        "fitted in relative error; the dashed line is the slope alone, which on these axes rises "
        "with slope 1. The number right of the last mark is the exponent of a power law through "
        "the marks: 1 where the cost is proportional to the size, and less where a share of the "
        "call does not depend on it; there the two lines part. Measured on {hardware}.",
    ),
)
