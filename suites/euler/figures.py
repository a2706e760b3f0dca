"""The error of a density in T steps, and the norm of a step, against T."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from resflow_bench.report import style
from resflow_bench.report.picture import Picture
from suites.marks import drawn_from, entry

METHODS = {"euler": (style.ACCENT, "o", 1), "midpoint": (style.BLUE, "s", 2)}


@drawn_from("log_prob_rms", "step_norm", "n_solver_steps", "method", "dataset", "architecture")
def convergence(cells: pd.DataFrame, columns: int) -> Figure:
    """The error of log p, and the largest norm of a step, against the number of steps."""
    if "step_norm_certified" in cells and cells["step_norm_certified"].isna().any():
        cells = cells[cells["step_norm_certified"].isna()]
    name = cells.groupby(["dataset", "architecture"]).size().idxmax()
    cells = cells[(cells["dataset"] == name[0]) & (cells["architecture"] == name[1])]
    figure, (errors, norms) = style.make_panels(2, columns)
    for method, (color, marker, order) in METHODS.items():
        here = cells[cells["method"] == method].sort_values("n_solver_steps")
        if here.empty:
            continue
        steps = here["n_solver_steps"].astype(float)
        look: dict[str, Any] = {
            "color": color,
            "marker": marker,
            "lw": 1.6,
            "ms": 5,
            "label": method,
        }
        errors.plot(steps, here["log_prob_rms"], **look)
        slope = here["log_prob_rms"].iloc[-1] * (steps.iloc[-1] / steps) ** order
        errors.plot(steps, slope, color=color, lw=1, ls=style.DASHES, label=f"order {order}")
        norms.plot(steps, here["step_norm"], **look)
    norms.axhline(1.0, color=style.INK, lw=1, ls=style.DASHES, label="norm 1")
    for ax, column, label, title in (
        (errors, "log_prob_rms", "error of log p (nat)", "error"),
        (norms, "step_norm", "largest norm of a step", "norm"),
    ):
        style.log_axis(ax, "y", [cells[column]])
        style.count_axis(ax, cells["n_solver_steps"])
        ax.set(xlabel="steps T", ylabel=label, title=f"{title}: {name[1]}, {name[0]}")
    handles = [entry(m, color, marker=k, lw=1.6, ms=5) for m, (color, k, _) in METHODS.items()]
    dashed = entry("slopes 1 and 2; norm 1", style.INK, lw=1, ls=style.DASHES)
    style.add_legend(figure, [*handles, dashed])
    return figure


PICTURES = (
    Picture(
        "euler",
        convergence,
        "A continuous flow in T steps, as a residual flow x + g(x) with g = −h u, h = 1/T. Left: "
        "the root mean square of log p by the steps less that of the differential equation, with "
        "the slopes of orders 1 and 2, which the lines should approach as T grows. Right: the "
        "largest norm of ∂g/∂x along the paths. Below 1 every step is a contraction: its inverse "
        "is a fixed point, and the series of its log-determinant converges.",
    ),
)
