"""Pictures that flows leave in their rows: densities, points in the plane, and sheets of images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from resflow_bench.lab import unpack
from resflow_bench.report.style import ACCENT, PAPER

Shown = tuple[pd.Series, dict[str, np.ndarray]]
"""A cell and the arrays of its picture."""

COLORS = "mako"
MAX_POINTS = 1000
DIGITS = 3  # of a point, relative to the reach of its panel, which is some hundred pixels wide


def best_pictures(cells: pd.DataFrame, of: list[str], array: str) -> list[Shown]:
    """The cell of the highest likelihood of each `of`, if its picture holds `array`."""
    best = cells.sort_values("log_prob", ascending=False, kind="stable").drop_duplicates(of)
    shown = [(cell, unpack(cell["picture"])) for _, cell in best.iterrows()]
    return [(cell, arrays) for cell, arrays in shown if array in arrays]


def highest(arrays: dict[str, np.ndarray]) -> float:
    """The largest density of a picture: of the true one, and of the learned if there is none."""
    return float(arrays.get("true", arrays["learned"]).max())


def draw_density(ax: Axes, p: np.ndarray, reach: np.ndarray, top: float) -> None:
    """Draw a density on a square about 0, its colours from 0 to `top`."""
    extent = (-float(reach), float(reach)) * 2
    look: dict[str, Any] = {"cmap": COLORS, "vmin": 0, "vmax": top, "label": "density"}
    ax.imshow(p, extent=extent, origin="lower", interpolation="none", **look)


def draw_cloud(ax: Axes, x: np.ndarray, reach: np.ndarray, label: str) -> None:
    """Draw the first of the points (n, 2), as pixels."""
    ends = (-float(reach), float(reach))
    places = np.round(x[:MAX_POINTS].astype(float), DIGITS - 1 - int(np.log10(ends[1])))
    look: dict[str, Any] = {"color": ACCENT, "ms": 1.6, "mew": 0, "rasterized": True}
    ax.plot(*places.T, ".", **look, label=label)
    ax.set(xlim=ends, ylim=ends, aspect="equal")


def draw_sheet(ax: Axes, sheet: np.ndarray, tiles: np.ndarray) -> None:
    """Draw a sheet of images, (C, H, W) in 0..255, with lines between its rows and columns."""
    pixels = np.moveaxis(sheet, 0, -1)
    grey = pixels.shape[-1] == 1
    look: dict[str, Any] = {"cmap": "gray" if grey else None, "interpolation": "none"}
    ax.imshow(pixels[..., 0] if grey else pixels, **look)
    for draw, length, count in zip((ax.axhline, ax.axvline), pixels.shape[:2], tiles, strict=True):
        for place in range(1, count):
            draw(place * length / count - 0.5, color=PAPER, lw=1.5, label="between images")
