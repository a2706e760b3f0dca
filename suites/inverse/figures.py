"""The inverse's error and steps against what the residual certifies and Banach's theorem."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from resflow_bench.analysis.words import measured
from resflow_bench.report import style
from resflow_bench.report.picture import Picture
from suites.inverse.claims import COUNTABLE
from suites.marks import MODELS, draw_points, drawn_from, entry, model_handles, models_in

LINES: dict[str, tuple[Any, Any]] = {
    "float64": (style.DASHES, "-"),
    "float32": ((0, (4, 2, 1, 2)), ":"),
}
"""dtype to the line styles of Banach's rate and of the certificate."""

BANACH = "inverse_error_banach"


@drawn_from("inverse_error", "inverse_error_bound")
def against_bounds(cells: pd.DataFrame, columns: int) -> Figure | None:
    """The inverse's error against its certificate, and its steps against Banach's count."""
    cells = cells[np.isfinite(cells["inverse_error_bound"])]
    if cells.empty:
        return None
    pairs = [(cells, "inverse_error_bound", "inverse_error", "certificate", "error", "‖x̂ − x‖")]
    counted = measured(cells, "n_steps", "n_steps_bound")
    if len(counted := counted.query(COUNTABLE)):
        pairs.append((counted, "n_steps_bound", "n_steps", "Banach's count", "steps", "steps"))
    figure, panels = style.make_panels(len(pairs), columns, height=3.2)
    for ax, (some, bound, metric, against, word, title) in zip(panels, pairs, strict=True):
        edges = [style.log_axis(ax, xy, [some[m]]) for xy, m in (("x", bound), ("y", metric))]
        x, y = some[bound].clip(lower=edges[0]), some[metric].clip(lower=edges[1])
        ends = np.array([min(edges) / 2, max(x.max(), y.max()) * 2])
        ax.plot(ends, ends, color=style.INK, lw=1.1, label=f"{word} = {against}")
        look: dict[str, Any] = {
            "color": style.ACCENT,
            "alpha": 0.13,
            "lw": 0,
            "label": "statement violated",
        }
        ax.fill_between(ends, ends, ends[1] * 1e3, **look)
        ax.set(xlim=(edges[0] / 1.5, x.max() * 2), ylim=(edges[1] / 1.5, ends[1]))
        at: dict[str, Any] = {"transform": ax.transAxes, "va": "top"}
        ax.text(0.03, 0.95, "statement violated", color=style.ACCENT, **at)
        below = (some[metric] <= edges[1]).to_numpy()
        for name, dtype in product(models_in(some), LINES):
            mine = ((some["model"] == name) & (some["dtype"] == dtype)).to_numpy()
            shown: dict[str, Any] = {"shown": mine, "below": below, "hollow": dtype == "float32"}
            draw_points(ax, name, (x, y), **shown, series=f"{name}, {dtype}")
        ax.set(xlabel=against, ylabel=word, title=title)
    style.add_legend(figure, [*model_handles(models_in(cells)), *_dtype_handles(cells)])
    return figure


@drawn_from("inverse_error", "inverse_error_bound", "tolerance")
def convergence(cells: pd.DataFrame, columns: int) -> Figure | None:
    """Error of the inverse after a number of steps, its certificate and Banach's rate."""
    cells = cells[cells["tolerance"] == 0].replace({"inverse_error_bound": np.inf}, np.nan)
    if cells.empty:
        return None
    if BANACH not in cells:  # of flows without a promise alone
        cells = cells.assign(**{BANACH: np.nan})
    several = cells.groupby(["model", "lipschitz"])["max_steps"].transform("nunique") > 1
    cells = cells[several] if several.any() else cells  # one number of steps makes no curve
    pairs = cells[["model", "lipschitz"]].drop_duplicates()
    rank = pairs.groupby("model")["lipschitz"].rank(ascending=False)
    order = pairs["model"].map({name: i for i, name in enumerate(MODELS)}).fillna(len(MODELS))
    pairs = pairs.assign(rank=rank, order=order).sort_values(["rank", "order"])
    pairs = pairs.head(style.MAX_PANELS)
    figure, panels = style.make_panels(len(pairs), columns)
    cells = cells.merge(pairs[["model", "lipschitz"]]).sort_values("max_steps")
    known, rates = cells[["inverse_error", "inverse_error_bound"]], cells[BANACH]
    scale = [known.stack(), rates[rates > known.max(axis=1)]]
    for ax, (_, pair) in zip(panels, pairs.iterrows(), strict=True):
        here = cells[(cells["model"] == pair["model"]) & (cells["lipschitz"] == pair["lipschitz"])]
        floor = style.log_axis(ax, "y", scale)  # of all panels
        for dtype, some in reversed(list(here.groupby("dtype"))):
            steps, error = some["max_steps"].astype(float), some["inverse_error"]
            rate, certificate = LINES[dtype]
            for word, column, look in (
                ("Banach's rate", BANACH, {"color": style.INK, "lw": 1.1, "ls": rate}),
                (
                    "certificate",
                    "inverse_error_bound",
                    {"color": style.BLUE, "lw": 1.2, "ls": certificate},
                ),
            ):
                ax.plot(steps, some[column], **look, label=f"{word}, {dtype}")
            at, below = (steps, error.clip(lower=floor)), (error <= floor).to_numpy()
            shown: dict[str, Any] = {
                "below": below,
                "hollow": dtype == "float32",
                "series": f"error, {dtype}",
            }
            draw_points(ax, pair["model"], at, **shown)
        style.count_axis(ax, here["max_steps"])
        ax.set(title=f"{pair['model']}, K = {pair['lipschitz']:g}", xlabel="steps")
    style.label_outer(panels, columns, "‖x̂ − x‖")
    handles = [
        entry(f"{word}, {dtype}", color, lw=1.2, ls=lines[i])
        for i, word, color in ((0, "Banach's rate", style.INK), (1, "certificate", style.BLUE))
        for dtype, lines in LINES.items()
        if (cells["dtype"] == dtype).any()
    ]
    style.add_legend(figure, [*handles, *_dtype_handles(cells)])
    return figure


def _dtype_handles(cells: pd.DataFrame) -> list[Artist]:
    return [
        entry(f"error, {dtype}", style.MUTED, marker="o", mfc=face, ls="", ms=size)
        for dtype, face, size in (("float64", style.MUTED, 5), ("float32", "none", 7.5))
        if (cells["dtype"] == dtype).any()
    ]


PICTURES = (
    Picture(
        "convergence",
        convergence,
        "The error of the inverse, the largest over the points, against the number of fixed-point "
        "steps in each block; filled marks are computed in float64, rings in float32. In theory "
        "each mark lies under two lines of its dtype: the certificate (blue), which is measured "
        "during the solve and levels off at rounding, and Banach's rate (dashed), which is known "
        "before the first step. For a flow the bounds multiply 1 / (1 − K) over its blocks, hence "
        "the gap. A triangle at the lower edge is an error there or below. Each model is shown at "
        "the largest K at which it was solved with several limits on the steps; one that is "
        "missing, such as the trained flow if it has no panel, was not, and is in the next figure. "
        "All panels have the same scale.",
    ),
    Picture(
        "inverse",
        against_bounds,
        "A mark is one inversion to a tolerance or, near K = 1, to an error. Left: its true error "
        "against its certificate, which adds its distance from an inverse in float64 to the "
        "largest error that the residuals of the latter allow, ‖r‖ / m per block with m ≥ 1 − K. "
        "Right: the steps taken over all blocks against the number that suffices by Banach's "
        "theorem, where the tolerance is at least ten times the rounding floor u / (1 − K), of "
        "which the theorem knows nothing. "
        "Each mark belongs on or under the diagonal, outside the shaded region; the distance from "
        "the diagonal shows how cautious the theory is. Rings are float32.",
    ),
)
