"""The likelihood that a training's objective claims, and the exact one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resflow_bench.analysis.tables import label
from resflow_bench.report import style
from resflow_bench.report.picture import Picture
from suites.marks import drawn_from, entry

FLOW = ["dataset", "architecture", "lipschitz"]
MARKERS = "osD^vPX"
FEW = 3
"""Up to as many places are drawn as marks alone: a line through them is no trend."""
DECADES = 6
"""The length of a gap's axis; smaller gaps are of no interest."""


@drawn_from("log_prob_objective", "log_prob_exact", "step")
def over_steps(cells: pd.DataFrame, columns: int) -> Figure:
    """Log-likelihood against steps: each objective's own estimate, and the exact value."""
    cells = _objectives(cells)
    flows = _flows(cells)
    figure, panels = style.make_panels(len(flows), columns)
    styles = _styles(cells)
    few = cells["step"].nunique() <= FEW
    for ax, (title, here) in zip(panels, flows, strict=True):
        for place, (name, (color, marker)) in enumerate(styles.items()):
            mine = here[here["objective"] == name].sort_values("step")
            beside = 1 + 0.06 * (place - (len(styles) - 1) / 2) if few else 1
            steps = mine["step"].astype(float) * beside
            claimed, true = mine["log_prob_objective"], mine["log_prob_exact"]
            claim, exact = f"{name}, objective claims", f"{name}, exact"
            gap: dict[str, Any] = {"color": color, "label": f"{name}, gap"}
            if few:
                ax.vlines(steps, true, claimed, alpha=0.25, lw=6, **gap)
                ax.plot(steps, true, "_", color=color, ms=11, mew=1.8, label=exact)
            else:
                ax.fill_between(steps, true, claimed, alpha=0.12, lw=0, **gap)
                ax.plot(steps, claimed, color=color, ls=style.DASHES, lw=1.3, label=claim)
                ax.plot(steps, true, color=color, lw=1.8, label=exact)
            look: dict[str, Any] = {"color": color, "marker": marker}
            _marks(ax, (steps, mine), "log_prob_objective", claim, mfc=style.PAPER, **look)
            _marks(ax, (steps, mine), "log_prob_unbiased", f"{name}, unbiased estimate", **look)
        style.count_axis(ax, here["step"])
        ax.set(title=title, xlabel="optimiser steps")
    style.label_outer(panels, columns, "held-out log-likelihood (bit/dim)")
    dashes = "" if few else style.DASHES
    solid: dict[str, Any] = {"marker": "_", "ls": "", "mew": 1.8} if few else {}
    line = "" if few else "-"
    handles = [
        *(entry(n, color, marker=m, ms=_size(m), ls=line) for n, (color, m) in styles.items()),
        entry("objective claims", style.MUTED, ls=dashes, marker="o", mfc=style.PAPER),
        entry("exact", style.MUTED, lw=1.8, **solid),
        entry("unbiased estimate", style.MUTED, marker="o", ls=""),
    ]
    style.add_legend(figure, handles)
    return figure


@drawn_from("gap", "gap_expected", "gap_bound", "n_terms", "step")
def by_terms(cells: pd.DataFrame, columns: int) -> Figure:
    """The gap against the number of terms at the last step: measured, expected, its bound."""
    flows = _flows(_objectives(cells))
    figure, panels = style.make_panels(len(flows), columns)
    few = cells["n_terms"].nunique() <= FEW
    dash: dict[str, Any] = {"marker": "_", "ls": "", "ms": 15, "mew": 1.8} if few else {}
    for ax, (title, here) in zip(panels, flows, strict=True):
        last = here[here["step"] == here["step"].max()].sort_values("n_terms")
        n_terms, gap = last["n_terms"].astype(float), last["gap"]
        expected, bound = last["gap_expected"], last["gap_bound"]
        floor = style.log_axis(ax, "y", [gap.abs(), expected.abs(), bound], DECADES)
        ax.plot(n_terms, bound, color=style.INK, lw=1.1, ls=style.DASHES, label="bound from K")
        curve = expected.abs().clip(lower=floor)
        ax.plot(n_terms, curve, color=style.ACCENT, lw=1.8, **dash, label="expected")
        ends = np.sort(np.abs(last[["gap_low", "gap_high"]].to_numpy(float)), axis=1)
        unresolved = ((last["gap_low"] <= 0) & (last["gap_high"] >= 0)).to_numpy()
        below = unresolved | (gap.abs() <= floor).to_numpy()
        size = np.where(below, ends[:, 1], gap.abs()).clip(min=floor)
        negative = (gap < 0).to_numpy()
        for name, sign, face in (
            ("overstates", ~negative, style.ACCENT),
            ("understates", negative, style.PAPER),
        ):
            at, look = ~below & sign, {"color": style.ACCENT, "label": name}
            low, high = ends[at, 0].clip(min=floor), ends[at, 1]
            ax.vlines(n_terms[at], low, high, lw=1.8, **look)
            ax.plot(n_terms[at], size[at], "o", mfc=face, ms=6, **look)
        style.draw_edge_marks(ax, n_terms[below], size[below], style.ACCENT, "gap")
        style.count_axis(ax, here["n_terms"])
        ax.set(title=f"{title}, step {last['step'].max()}", xlabel="terms N")
    style.label_outer(panels, columns, "|objective − exact|  (bit/dim)")
    handles = [
        entry("bound from K", style.INK, lw=1.1, ls=style.DASHES),
        entry("expected", style.ACCENT, lw=1.8, **dash),
        entry("overstates", style.ACCENT, marker="o", ls=""),
        entry("understates", style.ACCENT, marker="o", mfc=style.PAPER, ls=""),
        style.below_handle("at most"),
    ]
    style.add_legend(figure, handles)
    return figure


def _objectives(cells: pd.DataFrame) -> pd.DataFrame:
    """A cell for each flow, step and objective; `objective` is `N = 2` or the roulette's law."""
    terms = cells.get("n_terms", pd.Series(np.nan, cells.index)).astype(float)
    laws = cells.get("roulette", pd.Series("", cells.index))
    names = [
        f"roulette, {law}" if pd.isna(n) else f"N = {n:g}"
        for n, law in zip(terms, laws, strict=True)
    ]
    cells = cells.assign(objective=names, _order=terms)
    return cells.drop_duplicates([*FLOW, "step", "objective"])


def _flows(cells: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Title to cells, for each data set, architecture and K."""
    named = [axis for axis in FLOW if axis == "lipschitz" or cells[axis].nunique() > 1]
    flows = [(label(here.iloc[0], named), here) for _, here in cells.groupby(FLOW)]
    return flows[: style.MAX_PANELS]


def _styles(cells: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Objective to colour and marker: few terms are pale, and the roulette stands out."""
    ordered = cells.sort_values("_order")["objective"].drop_duplicates()
    fixed = [name for name in ordered if name.startswith("N")]
    colors = sns.color_palette("viridis_r", len(fixed) + 1).as_hex()[1:]
    styles = dict(zip(fixed, zip(colors, MARKERS * 9, strict=False), strict=False))
    laws = [name for name in ordered if name not in styles]
    return styles | {name: (style.ACCENT, "*" if i == 0 else "p") for i, name in enumerate(laws)}


def _marks(
    ax: Axes, at: tuple[pd.Series, pd.DataFrame], metric: str, series: str, **look: Any
) -> None:
    """Draw the metric of cells with its interval, at their steps; `look` is of a `Line2D`."""
    steps, cells = at
    if metric not in cells:
        return
    ends = cells[[f"{metric}_low", f"{metric}_high"]]
    ends = ends.where(np.isfinite(ends).all(axis=1), np.nan)
    ax.vlines(steps, *ends.to_numpy(float).T, color=look["color"], lw=1.2, label=series)
    size = _size(look["marker"])
    ax.plot(steps, cells[metric], **look, ms=size, mew=1.0, ls="", label=series)


def _size(marker: str) -> int:
    return 8 if marker == "*" else 5


PICTURES = (
    Picture(
        "training_gap",
        over_steps,
        "Held-out log-likelihood over the training of one flow, with each objective in turn, a "
        "colour for each. Open marks (dashed line): the objective's own estimate at held-out "
        "points. Dash (solid line): the exact log-likelihood there. Filled marks: an unbiased "
        "estimate, which should lie on the exact one. Bars are 99 % intervals. The pale gap is "
        "likelihood that only the truncated series claims; where the claim rises from step to "
        "step while the exact value falls, the training has exploited the error of its "
        "objective. Lines are drawn from four checkpoints on, since two or three show no trend; "
        "the objectives then stand side by side at their step. "
        "A roulette has no gap.",
    ),
    Picture(
        "training_gap_terms",
        by_terms,
        "The error of the objective at the last step against its number of terms. A filled mark "
        "overstates the likelihood, an open one understates it. Its bar, the 99 % interval, "
        "should contain the line (a dash where there are three numbers of terms or fewer), which "
        "is computed from the Jacobian without sampling, and stay below the dashed bound, which "
        "depends on K and the blocks alone. A triangle is the upper end of an interval that "
        "contains zero.",
    ),
)
