"""Quality against cost, and the systems' densities and samples side by side."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resflow_bench.analysis.words import number
from resflow_bench.lab import unpack
from resflow_bench.report import style
from resflow_bench.report.picture import Picture
from suites.marks import drawn_from

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
            ax.errorbar(some["seconds"], some["log_prob"], ends, fmt="o-", color=color, lw=1, ms=4)
            at = (some["seconds"].iloc[-1], some["log_prob"].iloc[-1])
            said = _said(architecture)
            ax.annotate(said, at, (5, 3), textcoords="offset points", color=color, size=8)
        ax.set(title=name, xlabel="seconds of training")
        ax.margins(x=0.3)
    style.label_outer(panels, columns, "held-out log-likelihood, nat")
    return figure


@drawn_from("picture", "log_prob", "dataset", "architecture")
def densities(cells: pd.DataFrame, columns: int) -> Figure | None:
    """The density of each system in the plane, beside the true one."""
    return _side_by_side(cells, columns, "learned", _density)


@drawn_from("picture", "log_prob", "dataset", "architecture")
def samples(cells: pd.DataFrame, columns: int) -> Figure | None:
    """Samples of each system in the plane."""
    return _side_by_side(cells, columns, "samples", _points)


def _side_by_side(
    cells: pd.DataFrame,
    columns: int,
    shown: str,
    draw: Callable[[Axes, np.ndarray, float, float], None],
) -> Figure | None:
    """A panel for each system on each data set in the plane, the true density first."""
    best = cells.sort_values("log_prob", ascending=False, kind="stable")
    best = best.drop_duplicates(["dataset", "architecture"])
    pairs = [(cell, unpack(cell["picture"])) for _, cell in best.iterrows()]
    pairs = [(cell, arrays) for cell, arrays in pairs if "reach" in arrays]
    panels = []
    for dataset in sorted({cell["dataset"] for cell, _ in pairs})[:MAX_DATASETS]:
        here = [(cell, arrays) for cell, arrays in pairs if cell["dataset"] == dataset]
        reach, true = float(here[0][1]["reach"]), here[0][1].get("true")
        top = float(here[0][1]["learned"].max() if true is None else true.max())
        if shown == "learned" and true is not None:
            panels.append((f"{dataset}, true", true, reach, top))
        for cell, arrays in here:
            seconds = number(float(cell["step"]) * float(cell["train_step_s"]), 2)
            title = f"{_said(cell['architecture'])}, {seconds} s"
            panels.append((title, arrays[shown], reach, top))
    if not panels:
        return None
    side = SMALL * style.PANEL
    figure, axes = style.make_panels(len(panels), 2 * columns, side, 1.15 * side)
    for ax, (title, array, reach, top) in zip(axes, panels, strict=True):
        draw(ax, array, reach, top)
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
        ax.set_title(title, size=8)
        ax.grid(False)
    return figure


def _said(architecture: str) -> str:
    return "residual" if architecture == "mlp" else architecture


def _density(ax: Axes, p: np.ndarray, reach: float, top: float) -> None:
    extent = (-reach, reach, -reach, reach)
    ax.imshow(p, extent=extent, origin="lower", cmap=COLORS, vmin=0, vmax=top)


def _points(ax: Axes, x: np.ndarray, reach: float, top: float) -> None:  # noqa: ARG001
    ax.plot(*x.T, ".", color=style.ACCENT, ms=1.2, mew=0, rasterized=True)


PICTURES = (
    Picture(
        "flows",
        quality,
        "Held-out log-likelihood against the seconds of its training on one thread, with intervals "
        "at 99 %. All systems have about as many parameters; the lines join numbers of steps. "
        "Above and to the left is better.",
    ),
    Picture(
        "flows_densities",
        densities,
        "The density of each system, on the true one's scale of colours, and the seconds of its "
        "training. Of several trainings of a system the one of the highest likelihood is "
        "shown.",
    ),
    Picture("flows_samples", samples, "Draws from the same systems."),
)
