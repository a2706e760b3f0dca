"""The variance of one draw: its closed form, its bounds, and whether it is finite."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resflow_bench.analysis.tables import label, varying
from resflow_bench.analysis.words import measured
from resflow_bench.logdet import law_named
from resflow_bench.report.picture import Picture
from resflow_bench.report.style import (
    ACCENT,
    BLUE,
    GREEN,
    INK,
    LINE,
    MUTED,
    PANEL,
    PAPER,
    PINK,
    add_legend,
    below_handle,
    draw_edge_marks,
    log_axis,
    make_panels,
    themed,
)
from suites.marks import draw_points, make_rows, mark, model_handles, models_in
from suites.models import MAIN

ALMOST_NO_VARIANCE = 1e-12


@themed
def over_closed_form(cells: pd.DataFrame, columns: int = 3) -> Figure | None:
    """Measured over closed-form variance with its interval, cells by model and closed form."""
    cells = measured(cells, "variance", "variance_expected")
    if len(cells):
        expected = cells["variance_expected"]
        cells = cells[(expected > ALMOST_NO_VARIANCE) & np.isfinite(expected)]
    if cells.empty:
        return None
    names = models_in(cells)
    place = cells["model"].map({name: -i for i, name in enumerate(names)})
    cells = cells.assign(_place=place).sort_values(["_place", "variance_expected"])
    figure, (ax,) = make_panels(1, 1, width=columns * PANEL, height=3.0)
    expected, order = cells["variance_expected"], pd.Series(np.arange(len(cells)), cells.index)
    low, value, high = (cells[m] / expected for m in ("variance_low", "variance", "variance_high"))
    ends = np.concatenate([low - 1, high - 1])
    reach = 1.08 * np.abs(ends[np.isfinite(ends)]).max()
    top = high.clip(upper=1 + reach)
    unbounded = np.isinf(high)
    ax.axhline(1, color=INK, lw=1)
    for name in names:
        draw_points(ax, name, (order, value), (low, top), shown=(cells["model"] == name).to_numpy())
    colors = cells["model"].map(lambda name: mark(name)[0])[unbounded]
    ax.scatter(
        order[unbounded], top[unbounded], s=26, c=colors, marker="^", clip_on=False, zorder=3
    )
    ax.set(ylim=(1 - reach, 1 + reach), xlim=(-1, len(cells)), xticks=[])
    ax.set(xlabel="cells, by model and closed form", ylabel="measured / closed form")
    open_above = Line2D([], [], color=MUTED, marker="^", ls="", ms=5, label="open above")
    add_legend(figure, [*model_handles(names), *([open_above] if unbounded.any() else [])])
    return figure


CHAIN = {
    "variance_expected": ("closed form", INK, "|"),
    "variance_bound": ("Avron–Toledo", BLUE, "o"),
    "variance_bound_lipschitz": ("from K alone", GREEN, "s"),
    "variance_bound_printed": ("as printed: no bound", PINK, "X"),
}


@themed
def bounds(cells: pd.DataFrame, columns: int = 3) -> Figure | None:
    """The chain measured <= Avron-Toledo <= Lipschitz-only, one row per model and probe."""
    cells = measured(cells, "variance", *list(CHAIN)[:3])
    cells = cells[(cells["truncation"] == "fixed") & np.isfinite(cells["variance_expected"])]
    if cells.empty:
        return None
    hard = ["lipschitz", "n_terms", "dim"]
    cells = cells[cells["n_probes"] == cells["n_probes"].min()]
    cells = cells.sort_values(hard).drop_duplicates(["model", "probe"], keep="last")
    cells = cells.sort_values(["variance_bound_lipschitz", "variance_bound", "variance"])
    names = [c for c in CHAIN if c in cells]
    figure, ax = make_rows(cells, [*varying(cells, ["model", *hard])], columns, suffix="probe")
    floor = log_axis(ax, "x", [cells[n] for n in ("variance", *names)])
    rows = np.arange(len(cells))
    ends = cells[["variance", *names[:3]]].clip(lower=floor)
    ax.hlines(rows, ends.min(axis=1), ends.max(axis=1), color=LINE, lw=3, zorder=1)
    for metric in names:
        _, color, marker = CHAIN[metric]
        hollow = marker in "os"
        ax.plot(
            cells[metric].clip(lower=floor),
            rows,
            marker,
            color=color,
            mfc=PAPER if hollow else color,
            ms=11 if marker == "|" else 6.5,
            mew=2 if marker == "|" else 1.3 if hollow else 0,
        )
    shown = (cells["variance"] > floor).to_numpy()
    low, high = (cells[m].clip(lower=floor) for m in ("variance_low", "variance_high"))
    ax.hlines(rows[shown], low[shown], high[shown], color=ACCENT, lw=2)
    value = cells["variance"].clip(lower=floor)
    ax.plot(value[shown], rows[shown], "o", color=ACCENT, ms=5, mec=PAPER, mew=0.5)
    draw_edge_marks(ax, value[~shown], rows[~shown], ACCENT)
    words = f"variance of one draw (nat²)\n{_common(cells, [*hard, 'n_probes'])}"
    figure.supxlabel(words, size=9)  # centred on the figure: it is wider than a phone's panel
    sampled = Line2D([], [], color=ACCENT, marker="o", ls="", ms=5, label="measured")
    handles = [
        Line2D(
            [], [], color=c, marker=m, ls="", ms=7, label=text, mew=1.4,
            mfc=PAPER if m in "os" else c,
        )
        for text, c, m in (CHAIN[n] for n in names)
    ]  # fmt: skip
    add_legend(figure, [sampled, *handles, below_handle("zero")])
    return figure


@themed
def roulette(cells: pd.DataFrame, columns: int = 3) -> Figure | None:
    """Finite or infinite variance: spectral radius against the stop probability, and Poisson."""
    cells = measured(cells, "variance_is_finite", "roulette", "spectral_radius")
    if cells.empty:
        return None
    figure, (ax,) = make_panels(1, 1, width=min(columns, 2) * PANEL, height=3.0)
    stop = np.linspace(0, 1, 201)
    edge = np.sqrt(1 - stop)
    ax.fill_between(stop, edge, 1, color=ACCENT, alpha=0.13, lw=0)
    ax.axvspan(1.06, 1.24, color=ACCENT, alpha=0.13, lw=0)
    ax.plot(stop, edge, color=INK, lw=1.2)
    ax.annotate("ρ² = 1 − stop", (0.42, math.sqrt(0.58)), (3, 4), textcoords="offset points")
    ax.text(0.97, 0.94, "infinite", ha="right", color=ACCENT, weight="bold")
    ax.text(0.03, 0.06, "finite", color=BLUE, weight="bold")
    ratio = cells["roulette"].map(lambda law: law_named(law).decay)
    x = np.where(ratio > 0, 1 - ratio, 1.15)
    for finite, color, marker in ((1, BLUE, "o"), (0, ACCENT, "X")):
        mine = cells["variance_is_finite"] == finite
        for strong in (False, True):
            some = mine & ((cells["model"] == MAIN) == strong)
            ax.plot(
                x[some],
                cells["spectral_radius"][some],
                marker,
                color=color,
                ms=9 if strong else 6,
                mec=INK if strong else PAPER,
                mew=1.2 if strong else 0.5,
                clip_on=False,
            )
    ax.set(xlim=(0, 1.24), ylim=(0, 1), xlabel="stop probability", ylabel="spectral radius ρ")
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1, 1.15], ["0", ".25", ".5", ".75", "1", "Poisson-like"])
    handles = [
        Line2D([], [], color=BLUE, marker="o", ls="", label="finite"),
        Line2D([], [], color=ACCENT, marker="X", ls="", label="infinite"),
        Line2D([], [], color=INK, marker="o", mfc="none", ms=8, ls="", label="trained flow"),
    ]
    add_legend(figure, handles)
    return figure


def _common(cells: pd.DataFrame, names: list[str]) -> str:
    """The axes among `names` on which all cells agree, in words."""
    shared = [name for name in names if cells[name].nunique(dropna=False) == 1]
    return label(cells.iloc[0], shared)


PICTURES = (
    Picture(
        "variance",
        over_closed_form,
        "Measured variance of one draw over its closed form, with 99 % intervals; each mark is a "
        "cell. Marks scatter about one, and one bar in a hundred misses it by chance. Where a bar "
        "ends in a triangle, the tail of the roulette is too heavy for an upper limit. Cells "
        "whose variance is zero or infinite have no ratio and are not drawn.",
    ),
    Picture(
        "bounds",
        bounds,
        "The variance of each model at its hardest setting, and its bounds. From left to right: "
        "measured (on its closed form), Avron and Toledo's bound, and the bound from K alone (for "
        "a flow, summed over its blocks); where they coincide, the bound is attained. The cross "
        "is the bound as printed in a widely read post: wherever it lies left of the measurement, "
        "it is no bound. A triangle on the left edge is a variance of zero.",
    ),
    Picture(
        "roulette",
        roulette,
        "Roulettes of finite and of infinite variance. A geometric law that stops with "
        "probability p needs ρ(J)² < 1 − p (below the curve), with ρ the largest spectral radius "
        "over blocks and points. A Poisson law stops so early that only a nilpotent J (ρ = 0) is "
        "safe. Where the variance is infinite, a sample variance may look moderate but estimates "
        "nothing, and the mean of any number of draws has infinite variance too.",
    ),
)
