"""Quality against cost, and the systems' densities and samples side by side."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resflow_bench.analysis.words import number
from resflow_bench.report import style
from resflow_bench.report.picture import Picture
from suites.marks import drawn_from
from suites.pictures import Shown, best_pictures, draw_cloud, draw_density, draw_sheet, highest

Painter = Callable[[Axes], object]

MAX_DATASETS = 4
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
    panels: list[tuple[str, Painter]] = []
    for dataset, here in _by_dataset(cells, "reach"):
        _, first = here[0]
        shown = [(f"{dataset}, true", first["true"], first["reach"])] if "true" in first else []
        shown += [(_title(cell), arrays["learned"], arrays["reach"]) for cell, arrays in here]
        top = highest(first)
        panels += [(title, partial(draw_density, p=p, reach=r, top=top)) for title, p, r in shown]
    return _side_by_side(panels, columns)


@drawn_from("picture", "log_prob", "dataset", "architecture")
def samples(cells: pd.DataFrame, columns: int) -> Figure | None:
    """Samples of each system: points in the plane, and images beside those of the data."""
    panels: list[tuple[str, Painter]] = [
        (
            _title(cell),
            partial(draw_cloud, x=arrays["samples"], reach=arrays["reach"], label="samples"),
        )
        for _, here in _by_dataset(cells, "reach")
        for cell, arrays in here
    ]
    for dataset, here in _by_dataset(cells, "tiles"):
        _, first = here[0]
        shown = [(f"{dataset}, test", first["data"], first["tiles"])]
        shown += [(_title(cell), arrays["samples"], arrays["tiles"]) for cell, arrays in here]
        panels += [(title, partial(draw_sheet, sheet=x, tiles=t)) for title, x, t in shown]
    return _side_by_side(panels, columns)


def _by_dataset(cells: pd.DataFrame, array: str) -> list[tuple[str, list[Shown]]]:
    """Each data set with the best training of each of its systems whose picture holds `array`."""
    shown = best_pictures(cells, ["dataset", "architecture"], array)
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


PICTURES = (
    Picture(
        "flows",
        quality,
        "Held-out log-likelihood of each system against the seconds of its training on one thread; "
        "bars are 99 % intervals, and residual flows are orange (“residual” is the architecture "
        "mlp). All systems have about as many parameters; the lines join numbers of steps. Above "
        "and to the left is better. Measured on {hardware}.",
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
