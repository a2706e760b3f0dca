"""The bias of the gradient through samples against the number of terms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from resflow_bench.report import style
from resflow_bench.report.picture import Picture
from suites.marks import draw_points, drawn_from, entry, mark, model_handles, models_in

DECADES = 5
"""The length of the axis; smaller biases are of no interest."""


@drawn_from("gradient_bias", "gradient_bias_expected", "n_terms", "lipschitz")
def by_terms(cells: pd.DataFrame, columns: int) -> Figure | None:
    """|bias| of the gradient against the number of terms, samples to rounding."""
    cells = cells[cells["tolerance"] == cells["tolerance"].min()]
    cells = cells[cells["n_probes"] == cells["n_probes"].min()]
    constants = style.spread(sorted(cells["lipschitz"].unique()), style.MAX_PANELS)
    figure, panels = style.make_panels(len(constants), columns)
    names = models_in(cells)
    for ax, constant in zip(panels, constants, strict=True):
        here = cells[cells["lipschitz"] == constant]
        low, high = here["gradient_bias_low"], here["gradient_bias_high"]
        unresolved = (low <= 0) & (high >= 0)
        at_most = np.where(unresolved, np.maximum(-low, high), here["gradient_bias"].abs())
        size = pd.Series(at_most, here.index)
        expected = here["gradient_bias_expected"].abs()
        floor = style.log_axis(ax, "y", [expected, size], DECADES)
        ends = np.maximum(np.sort(np.abs([low, high]), axis=0), floor)
        below = (unresolved | (size <= floor)).to_numpy()
        at = here["n_terms"].astype(float), size.clip(lower=floor)
        for name in names:
            mine = here["model"] == name
            curve = expected[mine].groupby(here["n_terms"]).first().sort_index()
            look: dict[str, Any] = {"color": mark(name)[0], "lw": 1.5, "label": f"{name}, theory"}
            ax.plot(curve.index.astype(float), curve, **look)
            draw_points(ax, name, at, ends, shown=mine.to_numpy(), below=below)
        style.count_axis(ax, here["n_terms"])
        ax.set(title=f"K = {constant:g}", xlabel="terms N")
    style.label_outer(panels, columns, "|bias| / |gradient|")
    handles = [
        *model_handles(names),
        entry("theory, no sampling", style.MUTED, lw=1.5),
        style.below_handle("zero in interval: at most"),
    ]
    style.add_legend(figure, handles)
    return figure


PICTURES = (
    Picture(
        "path-gradient",
        by_terms,
        "Bias of the gradient of a reverse Kullback–Leibler divergence through samples, relative "
        "to the gradient's length, when the series of the log-determinant is cut after N terms. "
        "Marks are measured, with 99 % intervals, and should lie on the line of their colour, "
        "which is computed without sampling. An open triangle is the upper end of an interval that "
        "contains zero, so the bias is there or below.",
    ),
)
