"""Quality against cost, and the systems' densities and samples side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resflow_bench.analysis.words import number
from resflow_bench.lab import unpack
from resflow_bench.report import style
from resflow_bench.report.picture import Picture
from suites.density.figures import draw_sheet
from suites.marks import drawn_from

Painter = Callable[[Axes], object]
Shown = tuple[pd.Series, dict[str, np.ndarray]]
"""A cell and the arrays of its picture."""

MAX_DATASETS = 4
COLORS = "mako"
SMALL = 0.62
"""The width of a picture in the plane, in units of a panel's."""


@drawn_from("log_prob", "train_step_s", "dataset", "architecture", "step")
def quality(cells: pd.DataFrame, columns: int) -> Figure:
    """Held-out log-likelihood against seconds of training, a mark for each system."""
    names = list(dict.fromkeys(cells["dataset"]))[:MAX_DATASETS]
    figure, panels = style.make_panels(len(names), columns, height=1.25 * style.PANEL_HEIGHT)
    for ax, name in zip(panels, names, strict=True):
        here = cells[cells["dataset"] == name].copy()
        here["seconds"] = here["step"].astype(float) * here["train_step_s"]
        style.log_axis(ax, "x", [here["seconds"]])
        for architecture, some in here.sort_values("seconds").groupby("architecture"):
            color = style.ACCENT if architecture == "mlp" else style.BLUE
            ends = some["log_prob"] - some["log_prob_low"], some["log_prob_high"] - some["log_prob"]
            look: dict[str, Any] = {
                "fmt": "o-",
                "color": color,
                "lw": 1,
                "ms": 4,
                "label": _said(architecture),
            }
            ax.errorbar(some["seconds"], some["log_prob"], ends, **look)
            at = (some["seconds"].iloc[-1], some["log_prob"].iloc[-1])
            said = _said(architecture)
            ax.annotate(said, at, (5, 3), textcoords="offset points", color=color, size=8)
        ax.set(title=name, xlabel="seconds of training")
        ax.margins(x=0.3)
    style.label_outer(panels, columns, "held-out log-likelihood (nat)")
    return figure


@drawn_from("picture", "log_prob", "dataset", "architecture")
def densities(cells: pd.DataFrame, columns: int) -> Figure | None:
    """The density of each system in the plane, beside the true one."""
    panels = []
    for dataset, here in _by_dataset(cells, "reach"):
        _, first = here[0]
        top = float(first.get("true", first["learned"]).max())
        if "true" in first:
            panels.append((f"{dataset}, true", _density(first["true"], first["reach"], top)))
        panels += [
            (_title(cell), _density(arrays["learned"], arrays["reach"], top))
            for cell, arrays in here
        ]
    return _side_by_side(panels, columns)


@drawn_from("picture", "log_prob", "dataset", "architecture")
def samples(cells: pd.DataFrame, columns: int) -> Figure | None:
    """Samples of each system: points in the plane, and images beside those of the data."""
    panels = [
        (_title(cell), _points(arrays["samples"], arrays["reach"]))
        for _, here in _by_dataset(cells, "reach")
        for cell, arrays in here
    ]
    for dataset, here in _by_dataset(cells, "tiles"):
        _, first = here[0]
        panels.append((f"{dataset}, test", _sheet(first["data"], first["tiles"])))
        panels += [
            (_title(cell), _sheet(arrays["samples"], arrays["tiles"])) for cell, arrays in here
        ]
    return _side_by_side(panels, columns)


def _by_dataset(cells: pd.DataFrame, array: str) -> list[tuple[str, list[Shown]]]:
    """Each data set with the best training of each of its systems whose picture holds `array`."""
    best = cells.sort_values("log_prob", ascending=False, kind="stable")
    best = best.drop_duplicates(["dataset", "architecture"])
    shown = [(cell, unpack(cell["picture"])) for _, cell in best.iterrows()]
    shown = [(cell, arrays) for cell, arrays in shown if array in arrays]
    names = sorted({cell["dataset"] for cell, _ in shown})[:MAX_DATASETS]
    return [(name, [one for one in shown if one[0]["dataset"] == name]) for name in names]


def _title(cell: pd.Series) -> str:
    seconds = number(float(cell["step"]) * float(cell["train_step_s"]), 2)
    return f"{_said(cell['architecture'])}, {seconds} s"


def _side_by_side(panels: list[tuple[str, Painter]], columns: int) -> Figure | None:
    """Small panels under their titles; None if there is none."""
    if not panels:
        return None
    side = SMALL * style.PANEL
    figure, axes = style.make_panels(len(panels), 2 * columns, side, 1.15 * side)
    for ax, (title, draw) in zip(axes, panels, strict=True):
        draw(ax)
        ax.set(aspect="equal", xticks=[], yticks=[])
        ax.set_title(title, size=8)
        ax.grid(False)
    return figure


def _said(architecture: str) -> str:
    return "residual" if architecture == "mlp" else architecture


def _density(p: np.ndarray, reach: np.ndarray, top: float) -> Painter:
    extent = (-float(reach), float(reach)) * 2

    def draw(ax: Axes) -> None:
        look: dict[str, Any] = {"cmap": COLORS, "vmin": 0, "vmax": top, "label": "density"}
        ax.imshow(p, extent=extent, origin="lower", **look)

    return draw


def _points(x: np.ndarray, reach: np.ndarray) -> Painter:
    ends = (-float(reach), float(reach))

    def draw(ax: Axes) -> None:
        look: dict[str, Any] = {"color": style.ACCENT, "ms": 1.2, "mew": 0, "rasterized": True}
        ax.plot(*x.T, ".", **look, label="samples")
        ax.set(xlim=ends, ylim=ends)

    return draw


def _sheet(images: np.ndarray, tiles: np.ndarray) -> Painter:
    return lambda ax: draw_sheet(ax, images, tiles)


PICTURES = (
    Picture(
        "flows",
        quality,
        "Held-out log-likelihood of each system against the seconds of its training on one thread; "
        "bars are 99 % intervals, and residual flows are orange. All systems have about as many "
        "parameters; the lines join numbers of steps. Above and to the left is better.",
    ),
    Picture(
        "flows_densities",
        densities,
        "The density of each system, on the true one's scale of colours (light is high), and the "
        "seconds of its training. The closer to the first picture, the better. Of several "
        "trainings of a system the one of the highest likelihood is shown.",
    ),
    Picture(
        "flows_samples",
        samples,
        "Draws from the same systems, and the seconds of their training; of images, test examples "
        "first.",
    ),
)
