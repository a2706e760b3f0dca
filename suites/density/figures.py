"""Learned densities beside the true ones, and samples beside the data."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resflow_bench.analysis.words import number
from resflow_bench.report.picture import Picture
from resflow_bench.report.style import PANEL
from suites.marks import drawn_from
from suites.pictures import Shown, best_pictures, draw_cloud, draw_density, draw_sheet, highest

MAX_PICTURES = 8
PLANE = ("true", "learned", "samples")


@drawn_from("picture", "log_prob", "dataset")
def planes(cells: pd.DataFrame, columns: int) -> Figure | None:
    """The true density, the learned one, and samples, a row for each data set in the plane."""
    rows = _pictures(cells, "learned")
    if not rows:
        return None
    figure, panels = _rows([cell for cell, _ in rows], PLANE, columns, height=1.0)
    for row, (_, arrays) in zip(panels, rows, strict=True):
        for ax, name in zip(row, PLANE, strict=True):
            if name in arrays and name != "samples":
                draw_density(ax, arrays[name], arrays["reach"], highest(arrays))
            else:
                which = "samples" if name == "samples" else "data"
                draw_cloud(ax, arrays[which], arrays["reach"], which)
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


def _pictures(cells: pd.DataFrame, array: str) -> list[Shown]:
    """The best picture of each data set that holds `array`, by name."""
    shown = best_pictures(cells, ["dataset"], array)
    return sorted(shown, key=lambda one: str(one[0]["dataset"]))[:MAX_PICTURES]


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
        "Densities in the plane, the true and the learned one on the scale of colours of the true "
        "one (light is high), and draws from the flow. The more alike the three look, the better "
        "the flow has learnt; few steps of training leave it smeared. Of several trainings on a "
        "data set that of the highest likelihood is shown. What is left to learn is the divergence "
        "from the true density, the mean of ln p(true) − ln p over held-out points.",
    ),
    Picture(
        "density_samples",
        images,
        "Test images, with the noise of their dequantisation, beside draws from the flow. For each "
        "data set the cell of the highest likelihood is shown. Its bits per dimension bound those "
        "of a model of the discrete pixel counts from above.",
    ),
)
