"""Learned densities beside the true ones, and samples beside the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resflow_bench.analysis.words import number
from resflow_bench.lab import unpack
from resflow_bench.report.picture import Picture
from resflow_bench.report.style import ACCENT, PANEL, PAPER
from suites.marks import drawn_from

MAX_PICTURES = 8
PLANE = ("true", "learned", "samples")
COLORS = "mako"


@drawn_from("picture", "log_prob", "dataset")
def planes(cells: pd.DataFrame, columns: int) -> Figure | None:
    """The true density, the learned one, and samples, a row for each data set in the plane."""
    rows = _pictures(cells, "learned")
    if not rows:
        return None
    figure, panels = _rows([cell for cell, _ in rows], PLANE, columns, height=1.0)
    for row, (_, arrays) in zip(panels, rows, strict=True):
        reach = float(arrays["reach"])
        extent = (-reach, reach, -reach, reach)
        top = max(arrays[name].max() for name in ("true", "learned") if name in arrays)
        for ax, name in zip(row, PLANE, strict=True):
            if name in arrays and name != "samples":
                p = arrays[name]
                look: dict[str, Any] = {"cmap": COLORS, "vmin": 0, "vmax": top, "label": "density"}
                ax.imshow(p, extent=extent, origin="lower", **look)
            else:
                which = "samples" if name == "samples" else "data"
                look = {"color": ACCENT, "ms": 1.2, "mew": 0, "rasterized": True}
                ax.plot(*arrays[which].T, ".", **look, label=which)
            ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    return figure


@drawn_from("picture", "log_prob", "dataset")
def images(cells: pd.DataFrame, columns: int) -> Figure | None:
    """Test images beside samples, a row for each set of images."""
    rows = [(cell, arrays) for cell, arrays in _pictures(cells, "samples") if "reach" not in arrays]
    if not rows:
        return None
    heads = ("test images", "samples")
    figure, panels = _rows([cell for cell, _ in rows], heads, columns, height=0.7)
    for row, (_, arrays) in zip(panels, rows, strict=True):
        for ax, name in zip(row, ("data", "samples"), strict=True):
            draw_sheet(ax, arrays[name], arrays["tiles"])
    return figure


def draw_sheet(ax: Axes, sheet: np.ndarray, tiles: np.ndarray) -> None:
    """Draw a sheet of images, (C, H, W) in 0..255, with lines between its rows and columns."""
    pixels = np.moveaxis(sheet, 0, -1)
    grey = pixels.shape[-1] == 1
    ax.imshow(pixels[..., 0] if grey else pixels, cmap="gray" if grey else None)
    for draw, length, count in zip((ax.axhline, ax.axvline), pixels.shape[:2], tiles, strict=True):
        for place in range(1, count):
            draw(place * length / count - 0.5, color=PAPER, lw=1.5, label="between images")


def _pictures(cells: pd.DataFrame, array: str) -> list[tuple[pd.Series, dict[str, np.ndarray]]]:
    """The cell of the highest likelihood of each data set, if its picture holds `array`."""
    best = cells.sort_values("log_prob", ascending=False, kind="stable").drop_duplicates("dataset")
    pairs = [(cell, unpack(cell["picture"])) for _, cell in best.sort_values("dataset").iterrows()]
    return [(cell, arrays) for cell, arrays in pairs if array in arrays][:MAX_PICTURES]


def _rows(
    cells: list[pd.Series], heads: tuple[str, ...], columns: int, height: float
) -> tuple[Figure, list[list[Axes]]]:
    """A row of panels without ticks for each cell, under its name and its likelihood.

    `height` is a row's, in units of a panel's width.
    """
    width = PANEL * min(columns, 2.2)
    size = (width, len(cells) * (height * width / len(heads) + 0.6))
    figure = Figure(size, layout="constrained")
    parts = figure.subfigures(len(cells), 1, squeeze=False).ravel()
    between = "\n" if columns == 1 else "; "
    rows = []
    for part, cell in zip(parts, cells, strict=True):
        part.suptitle(between.join(_name(cell)), x=0.01, ha="left", size=8.5)
        panels = part.subplots(1, len(heads), squeeze=False)[0]
        for ax, head in zip(panels, heads, strict=True):
            ax.set(xticks=[], yticks=[], title=head)
            ax.grid(False)
        rows.append(list(panels))
    return figure, rows


def _name(cell: pd.Series) -> tuple[str, str]:
    flow = f"{cell['dataset']}: {cell['architecture']}, K = {cell['lipschitz']:g}"
    if pd.isna(divergence := cell.get("divergence", np.nan)):
        learnt = f"{number(cell['bits_per_dim'])} bit/dim"
    else:
        learnt = f"{number(divergence)} nat to learn"
    return f"{flow}, {cell['step']} steps", learnt


PICTURES = (
    Picture(
        "density",
        planes,
        "Densities in the plane, the true and the learned one on the same scale of colours (light "
        "is high), and draws from the flow. The more alike the three look, the better the flow has "
        "learnt; few steps of training leave it smeared. Of several trainings on a data set that "
        "of the highest likelihood is shown. What is left to learn is the divergence from the true "
        "density, the mean of ln p(true) − ln p over held-out points.",
    ),
    Picture(
        "density_samples",
        images,
        "Test images, with the noise of their dequantisation, beside draws from the flow. For each "
        "data set the cell of the highest likelihood is shown. Its bits per dimension bound those "
        "of a model of the discrete pixel counts from above.",
    ),
)
