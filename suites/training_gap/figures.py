"""The likelihood that a training's objective claims, and the exact one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resflow_bench.analysis.words import measured
from resflow_bench.report.picture import Picture
from resflow_bench.report.style import (
    ACCENT,
    DASHES,
    INK,
    MAX_PANELS,
    MUTED,
    PAPER,
    add_legend,
    below_handle,
    count_axis,
    draw_edge_marks,
    label_outer,
    log_axis,
    make_panels,
    themed,
)

FLOW = ["dataset", "architecture", "lipschitz"]
MARKERS = "osD^vPX"
DECADES = 6
"""The length of a gap's axis; smaller gaps are of no interest."""


@themed
def over_steps(cells: pd.DataFrame, columns: int = 3) -> Figure | None:
    """Log-likelihood against steps: each objective's own estimate, and the exact value."""
    cells = _objectives(measured(cells, "log_prob_objective", "log_prob_exact", "step"))
    if cells.empty:
        return None
    flows = _flows(cells)
    figure, panels = make_panels(len(flows), columns)
    styles = _styles(cells)
    for ax, (title, here) in zip(panels, flows, strict=True):
        for name, (color, marker) in styles.items():
            mine = here[here["objective"] == name].sort_values("step")
            steps = mine["step"].astype(float)
            claimed, true = mine["log_prob_objective"], mine["log_prob_exact"]
            ax.fill_between(steps, true, claimed, color=color, alpha=0.12, lw=0)
            ax.plot(steps, claimed, color=color, ls=DASHES, lw=1.3)
            ax.plot(steps, true, color=color, lw=1.8)
            _marks(ax, mine, "log_prob_objective", color, marker, PAPER)
            _marks(ax, mine, "log_prob_unbiased", color, marker, color)
        count_axis(ax, here["step"])
        ax.set(title=title, xlabel="optimiser steps")
    label_outer(panels, columns, "held-out log-likelihood (bit/dim)")
    add_legend(
        figure,
        [
            *_handles(styles),
            Line2D([], [], color=MUTED, ls=DASHES, marker="o", mfc=PAPER, label="objective claims"),
            Line2D([], [], color=MUTED, lw=1.8, label="exact"),
            Line2D([], [], color=MUTED, marker="o", ls="", label="unbiased estimate"),
        ],
    )
    return figure


@themed
def by_terms(cells: pd.DataFrame, columns: int = 3) -> Figure | None:
    """The gap against the number of terms at the last step: measured, expected, its bound."""
    cells = measured(cells, "gap", "gap_expected", "gap_bound", "n_terms", "step")
    cells = _objectives(cells)
    if cells.empty:
        return None
    flows = _flows(cells)
    figure, panels = make_panels(len(flows), columns)
    for ax, (title, here) in zip(panels, flows, strict=True):
        last = here[here["step"] == here["step"].max()].sort_values("n_terms")
        n_terms, gap = last["n_terms"].astype(float), last["gap"]
        expected, bound = last["gap_expected"], last["gap_bound"]
        floor = log_axis(ax, "y", [gap.abs(), expected.abs(), bound], DECADES)
        ax.plot(n_terms, bound, color=INK, lw=1.1, ls=DASHES)
        ax.plot(n_terms, expected.abs().clip(lower=floor), color=ACCENT, lw=1.8)
        ends = np.sort(np.abs(last[["gap_low", "gap_high"]].to_numpy(float)), axis=1)
        unresolved = ((last["gap_low"] <= 0) & (last["gap_high"] >= 0)).to_numpy()
        below = unresolved | (gap.abs() <= floor).to_numpy()
        size = np.where(below, ends[:, 1], gap.abs()).clip(min=floor)
        resolved, negative = ~below, (gap < 0).to_numpy()
        ax.vlines(
            n_terms[resolved],
            ends[resolved, 0].clip(min=floor),
            ends[resolved, 1],
            color=ACCENT,
            lw=1.8,
        )
        for shown, face in ((resolved & ~negative, ACCENT), (resolved & negative, PAPER)):
            ax.plot(n_terms[shown], size[shown], "o", color=ACCENT, mfc=face, ms=6)
        draw_edge_marks(ax, n_terms[below].to_numpy(), size[below], ACCENT)
        count_axis(ax, here["n_terms"])
        ax.set(title=f"{title}, step {last['step'].max()}", xlabel="terms N")
    label_outer(panels, columns, "|objective − exact|  (bit/dim)")
    add_legend(
        figure,
        [
            Line2D([], [], color=INK, lw=1.1, ls=DASHES, label="bound from K"),
            Line2D([], [], color=ACCENT, lw=1.8, label="expected"),
            Line2D([], [], color=ACCENT, marker="o", ls="", label="overstates"),
            Line2D([], [], color=ACCENT, marker="o", mfc=PAPER, ls="", label="understates"),
            below_handle("at most"),
        ],
    )
    return figure


def _objectives(cells: pd.DataFrame) -> pd.DataFrame:
    """A cell for each flow, step and objective; `objective` is `N = 2` or the roulette's law."""
    if cells.empty:
        return cells
    terms = cells["n_terms"] if "n_terms" in cells else pd.Series(np.nan, cells.index)
    laws = cells["roulette"] if "roulette" in cells else pd.Series("", cells.index)
    names = [
        f"N = {n:g}" if not pd.isna(n) else f"roulette, {law}"
        for n, law in zip(terms.astype(float), laws, strict=True)
    ]
    cells = cells.assign(objective=names, _order=terms.astype(float))
    return cells.drop_duplicates([*FLOW, "step", "objective"])


def _flows(cells: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Title to cells, for each data set, architecture and K."""
    named = [axis for axis in FLOW if axis == "lipschitz" or cells[axis].nunique() > 1]
    words = []
    for values, here in cells.groupby(FLOW):
        known = dict(zip(FLOW, values, strict=True))
        title = ", ".join(
            f"K = {known[axis]:g}" if axis == "lipschitz" else str(known[axis]) for axis in named
        )
        words.append((title, here))
    return words[:MAX_PANELS]


def _styles(cells: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Objective to colour and marker: few terms are pale, and the roulette stands out."""
    ordered = cells.sort_values("_order")["objective"].drop_duplicates()
    fixed = [name for name in ordered if name.startswith("N")]
    colors = sns.color_palette("viridis_r", len(fixed) + 1).as_hex()[1:]
    styles = dict(zip(fixed, zip(colors, MARKERS * 9, strict=False), strict=False))
    laws = [name for name in ordered if name not in styles]
    return styles | {name: (ACCENT, "*" if i == 0 else "p") for i, name in enumerate(laws)}


def _marks(ax: Axes, cells: pd.DataFrame, metric: str, color: str, marker: str, face: str) -> None:
    """Draw each value with its interval."""
    if metric not in cells:
        return
    steps = cells["step"].astype(float)
    ends = cells[[f"{metric}_low", f"{metric}_high"]]
    finite = np.isfinite(ends).all(axis=1)
    ax.vlines(steps[finite], *ends[finite].to_numpy(float).T, color=color, lw=1.2)
    size = 8 if marker == "*" else 5
    ax.plot(steps, cells[metric], marker, color=color, mfc=face, ms=size, mew=1.0, ls="")


def _handles(styles: dict[str, tuple[str, str]]) -> list[Line2D]:
    return [
        Line2D([], [], color=color, marker=marker, ms=8 if marker == "*" else 5, label=name)
        for name, (color, marker) in styles.items()
    ]


PICTURES = (
    Picture(
        "training_gap",
        over_steps,
        "One flow, trained with each objective in turn. Dashed with open marks: the objective's "
        "own estimate at held-out points. Solid: the exact log-likelihood there. Filled marks: an "
        "unbiased estimate, which should lie on the solid line. Bars are 99 % intervals. The "
        "shaded gap is likelihood that only the truncated series claims; where the dashed curve "
        "rises while its solid line falls, the training has exploited the error of its objective. "
        "A roulette has no gap.",
    ),
    Picture(
        "training_gap_terms",
        by_terms,
        "The error of the objective at the last step against its number of terms. A filled mark "
        "overstates the likelihood, an open one understates it. Its bar, the 99 % interval, "
        "should contain the line, which is computed from the Jacobian without sampling, and stay "
        "below the dashed bound, which depends on K and the blocks alone. A triangle is the upper "
        "end of an interval that contains zero.",
    ),
)
