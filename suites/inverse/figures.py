"""The inverse's error and steps against what the residual certifies and Banach's theorem."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resflow_bench.analysis.words import measured
from resflow_bench.report.picture import Picture
from resflow_bench.report.style import (
    ACCENT,
    BLUE,
    DASHES,
    INK,
    MAX_PANELS,
    MUTED,
    add_legend,
    count_axis,
    label_outer,
    log_axis,
    make_panels,
    themed,
)
from suites.marks import MODELS, draw_points, model_handles, models_in

STYLES: dict[str, tuple[Any, Any]] = {"float64": (DASHES, "-"), "float32": ((0, (4, 2, 1, 2)), ":")}
"""dtype to the line styles of Banach's rate and of the certificate."""


@themed
def against_bounds(cells: pd.DataFrame, columns: int = 3) -> Figure | None:
    """The inverse's error against its certificate, and its steps against Banach's count."""
    cells = measured(cells, "inverse_error", "inverse_error_bound")
    if cells.empty:
        return None
    pairs = [("inverse_error_bound", "inverse_error", "certificate", "error", "‖x̂ − x‖")]
    if {"n_steps", "n_steps_bound"} <= set(cells):
        pairs.append(("n_steps_bound", "n_steps", "Banach's count", "steps", "steps"))
    figure, panels = make_panels(len(pairs), columns, height=3.2)
    for ax, (bound, metric, against, word, title) in zip(panels, pairs, strict=True):
        some = cells.dropna(subset=[bound, metric])
        some = some[np.isfinite(some[bound])]
        edges = [log_axis(ax, xy, [some[m]]) for xy, m in (("x", bound), ("y", metric))]
        x, y = some[bound].clip(lower=edges[0]), some[metric].clip(lower=edges[1])
        ends = np.array([min(edges) / 2, max(x.max(), y.max()) * 2])
        ax.plot(ends, ends, color=INK, lw=1.1)
        ax.fill_between(ends, ends, ends[1] * 1e3, color=ACCENT, alpha=0.13, lw=0)
        ax.set(xlim=(edges[0] / 1.5, x.max() * 2), ylim=(edges[1] / 1.5, ends[1]))
        ax.text(0.03, 0.95, "statement violated", transform=ax.transAxes, color=ACCENT, va="top")
        for name in models_in(some):
            for dtype in ("float64", "float32"):
                mine = ((some["model"] == name) & (some["dtype"] == dtype)).to_numpy()
                below = (some[metric] <= edges[1]).to_numpy()
                hollow = dtype == "float32"
                draw_points(ax, name, (x, y), None, shown=mine, below=below, hollow=hollow)
        ax.set(xlabel=against, ylabel=word, title=title)
    handles = model_handles(models_in(cells))
    add_legend(figure, [*handles, *_dtype_handles(cells)])
    return figure


@themed
def convergence(cells: pd.DataFrame, columns: int = 3) -> Figure | None:
    """Error of the inverse after a number of steps, its certificate and Banach's rate."""
    cells = measured(cells, "inverse_error", "inverse_error_bound", "inverse_error_banach")
    if cells.empty:
        return None
    pairs = cells[["model", "lipschitz"]].drop_duplicates()
    rank = pairs.groupby("model")["lipschitz"].rank(ascending=False)
    order = pairs["model"].map({name: i for i, name in enumerate(MODELS)}).fillna(len(MODELS))
    pairs = pairs.assign(rank=rank, order=order).sort_values(["rank", "order"]).head(MAX_PANELS)
    figure, panels = make_panels(len(pairs), columns)
    for ax, (_, pair) in zip(panels, pairs.iterrows(), strict=True):
        here = cells[(cells["model"] == pair["model"]) & (cells["lipschitz"] == pair["lipschitz"])]
        here = here.sort_values("max_steps")
        known, rates = here[["inverse_error", "inverse_error_bound"]], here["inverse_error_banach"]
        floor = log_axis(ax, "y", [known.stack(), rates[rates > known.max(axis=1)]])
        for dtype, some in reversed(list(here.groupby("dtype"))):
            steps, error = some["max_steps"].astype(float), some["inverse_error"]
            hollow = dtype == "float32"
            rate, certificate = STYLES[dtype]
            ax.plot(steps, some["inverse_error_banach"], color=INK, lw=1.1, ls=rate)
            ax.plot(steps, some["inverse_error_bound"], color=BLUE, lw=1.2, ls=certificate)
            draw_points(
                ax,
                pair["model"],
                (steps, error.clip(lower=floor)),
                None,
                below=(error <= floor).to_numpy(),
                hollow=hollow,
            )
        count_axis(ax, here["max_steps"])
        ax.set(title=f"{pair['model']}, K = {pair['lipschitz']:g}", xlabel="steps")
    label_outer(panels, columns, "‖x̂ − x‖")
    handles = [
        Line2D([], [], color=color, lw=1.2, ls=styles[i], label=f"{word}, {dtype}")
        for i, (word, color) in enumerate((("Banach's rate", INK), ("certificate", BLUE)))
        for dtype, styles in STYLES.items()
        if (cells["dtype"] == dtype).any()
    ]
    add_legend(figure, [*handles, *_dtype_handles(cells)])
    return figure


def _dtype_handles(cells: pd.DataFrame) -> list[Artist]:
    return [
        Line2D([], [], color=MUTED, marker="o", mfc=face, ls="", ms=size, label=f"error, {dtype}")
        for dtype, face, size in (("float64", MUTED, 5), ("float32", "none", 7.5))
        if (cells["dtype"] == dtype).any()
    ]


PICTURES = (
    Picture(
        "convergence",
        convergence,
        "The largest error over the points after a fixed number of steps in each block. It must "
        "stay under its certificate, which is measured during the solve and levels off at the "
        "rounding floor of its dtype, and under Banach's rate, which is known before the first "
        "step. For a flow both multiply 1 / (1 − K) over the blocks, hence the gap.",
    ),
    Picture(
        "inverse",
        against_bounds,
        "Left: the true error of the inverse against its certificate, which adds its distance "
        "from an inverse in float64 to the largest error that the residuals of the latter allow, "
        "‖r‖ / m per block with m ≥ 1 − K. Right: the steps taken over all blocks against the "
        "number that Banach's theorem requires beforehand. Each mark belongs on or under the "
        "diagonal; the distance from it shows how cautious the theory is.",
    ),
)
