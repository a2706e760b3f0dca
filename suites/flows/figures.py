"""Quality against cost, and the systems' densities and samples side by side."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
            said = "residual" if architecture == "mlp" else architecture
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
    """A panel for each system, of the data set that most of them were trained on."""
    best = cells.sort_values("log_prob", ascending=False, kind="stable")
    best = best.drop_duplicates(["dataset", "architecture"])
    pairs = [(cell, unpack(cell["picture"])) for _, cell in best.iterrows()]
    pairs = [(cell, arrays) for cell, arrays in pairs if "reach" in arrays]
    if not pairs:
        return None
    dataset = pd.Series([cell["dataset"] for cell, _ in pairs]).value_counts().index[0]
    pairs = [(cell, arrays) for cell, arrays in pairs if cell["dataset"] == dataset]
    reach = float(pairs[0][1]["reach"])
    true = pairs[0][1].get("true")
    panels: list[tuple[str, np.ndarray]] = []
    if shown == "learned" and true is not None:
        panels.append(("true", true))
    for cell, arrays in pairs:
        seconds = float(cell["step"]) * float(cell["train_step_s"])
        panels.append((f"{cell['architecture']}, {seconds:.3g} s", arrays[shown]))
    top = max(float(true.max()) if true is not None else 0.0, *(a.max() for _, a in panels))
    side = SMALL * style.PANEL
    figure, axes = style.make_panels(len(panels), 2 * columns, side, 1.15 * side)
    for ax, (title, array) in zip(axes, panels, strict=True):
        draw(ax, array, reach, top)
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
        ax.set_title(title, size=8)
        ax.grid(False)
    return figure


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
        "The density of each system, on one scale of colours with the true one, and the seconds "
        "of its training. Of several trainings of a system the one of the highest likelihood is "
        "shown.",
    ),
    Picture("flows_samples", samples, "Draws from the same systems."),
)
