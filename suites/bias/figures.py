"""The bias of a truncated series against theory and its bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from resflow_bench.report import style
from resflow_bench.report.picture import Picture
from suites.marks import FLOWS, draw_points, drawn_from, entry, mark, model_handles, models_in
from suites.models import MAIN

DECADES = 7
"""The length of a bias's axis; smaller biases are of no interest."""


@drawn_from("bias_paired", "bias_expected", "bias_bound", "n_terms", "dim", "lipschitz")
def by_terms(cells: pd.DataFrame, columns: int) -> Figure | None:
    """|bias| / d against the number of terms, a panel for each Lipschitz constant."""
    constants = style.spread(sorted(cells["lipschitz"].unique()), style.MAX_PANELS)
    figure, panels = style.make_panels(len(constants), columns)
    names = models_in(cells)
    for ax, constant in zip(panels, constants, strict=True):
        here = cells[cells["lipschitz"] == constant]
        dim = here["dim"].astype(float)
        bounds = (here["bias_bound"] / dim).groupby([here["model"], here["n_terms"]]).max()
        expected = here["bias_expected"].abs() / dim
        low, high = here["bias_paired_low"] / dim, here["bias_paired_high"] / dim
        unresolved = (low <= 0) & (high >= 0)
        size = np.where(unresolved, np.maximum(-low, high), here["bias_paired"].abs() / dim)
        size = pd.Series(size, here.index)
        floor = style.log_axis(ax, "y", [expected, bounds, size], DECADES)
        ends = np.maximum(np.sort(np.abs([low, high]), axis=0), floor)
        below = (unresolved | (size <= floor)).to_numpy()
        for curve, owners in _shared(bounds).items():
            color = mark(max(owners))[0] if owners <= FLOWS else style.INK
            terms, heights = zip(*curve, strict=True)
            whose = f"{max(owners)}, bound" if owners <= FLOWS else "bound from K alone"
            ax.plot(terms, heights, color=color, lw=1.1, ls=style.DASHES, label=whose)
        for place, name in enumerate(names):
            mine = here["model"] == name
            curve = expected[mine].groupby(here["n_terms"]).first().sort_index()
            width, alpha = (2.4, 1.0) if name == MAIN else (1.1, 0.75)
            terms, heights = curve.index.astype(float), curve.where(curve > 0)
            look: dict[str, Any] = {"color": mark(name)[0], "lw": width, "alpha": alpha}
            ax.plot(terms, heights, **look, label=f"{name}, theory")
            dodge = 1 + 0.09 * (place - (len(names) - 1) / 2) / max(len(names), 4)
            at = here["n_terms"].astype(float) * dodge, size.clip(lower=floor)
            draw_points(ax, name, at, ends, shown=mine.to_numpy(), below=below)
        style.count_axis(ax, here["n_terms"])
        ax.set(title=f"K = {constant:g}", xlabel="terms N")
    style.label_outer(panels, columns, "|bias| / d  (nat)")
    handles = [
        *model_handles(names),
        entry("bound from K alone", style.INK, lw=1.1, ls=style.DASHES),
        entry("theory, no sampling", style.MUTED, lw=1.5),
        style.below_handle("zero in interval: at most"),
    ]
    style.add_legend(figure, handles)
    return figure


def _shared(curves: pd.Series) -> dict[tuple[tuple[float, float], ...], set[str]]:
    """The distinct curves, each with the models (the first level of the index) that have it."""
    owners: dict[tuple[tuple[float, float], ...], set[str]] = {}
    for name in curves.index.unique(0):
        owners.setdefault(tuple(curves[name].items()), set()).add(name)
    return owners


PICTURES = (
    Picture(
        "bias",
        by_terms,
        "Bias of the log-determinant, per dimension, when its series is cut after N terms; a panel "
        "for each promised Lipschitz constant K. Marks are measured, with 99 % intervals: the mean "
        "difference from the whole series, with the same random vectors. In theory each mark lies "
        "on the line of its colour, which is computed from the Jacobian without sampling, and "
        "below the dashed bound, which depends only on K and, for a flow (in its colour), on the "
        "number of blocks. The distance "
        "of the trained flow from its bound shows what its smaller realised constant saves. An "
        "open triangle is the upper end of an interval that contains zero: the bias is there or "
        "below. A triangular map has no bias at any N, hence no line. Roulettes, which should "
        "have no bias either, are in the table.",
    ),
)
