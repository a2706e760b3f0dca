"""The variance of one draw: its closed form, its bounds, and whether it is finite."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resflow_bench.analysis.tables import axes, label, varying
from resflow_bench.logdet import law_named
from resflow_bench.report import style
from resflow_bench.report.picture import Picture
from suites.marks import draw_points, drawn_from, entry, make_rows, mark, models_in
from suites.models import MAIN

ALMOST_NO_VARIANCE = 1e-12


@drawn_from("variance", "variance_expected")
def over_closed_form(cells: pd.DataFrame, columns: int) -> Figure | None:
    """Measured over closed-form variance with its interval, a panel for each model."""
    expected = cells["variance_expected"]
    cells = cells[(expected > ALMOST_NO_VARIANCE) & np.isfinite(expected)]
    if cells.empty:
        return None
    ends = cells[["variance_low", "variance_high"]].div(cells["variance_expected"], axis=0) - 1
    reach = 1.08 * float(ends.abs().where(np.isfinite(ends)).max().max())
    shown = varying(cells, [axis for axis in axes(cells) if axis != "model"])
    names = models_in(cells)[::-1]
    figure, panels = style.make_panels(len(names), columns, height=1.6)
    for ax, name in zip(panels, names, strict=True):
        _draw_ratios(ax, cells[cells["model"] == name], shown, reach)
        ax.set(title=name, ylim=(1 - reach, 1 + reach), xticks=[])
        ax.locator_params(axis="y", nbins=5)
    style.label_outer(panels, columns, "measured /\nclosed form")
    handles = [
        entry("measured", style.MUTED, marker="o", ls="", ms=5),
        entry("closed form", style.INK, lw=1),
    ]
    if np.isinf(cells["variance_high"]).any():
        handles.append(entry("open above", style.MUTED, marker="^", ls="", ms=5))
    style.add_legend(figure, handles)
    return figure


def _draw_ratios(ax: Axes, cells: pd.DataFrame, shown: list[str], reach: float) -> None:
    """The ratios of one model, side by side in the order of their closed forms."""
    cells = cells.sort_values("variance_expected")
    name, expected = str(cells["model"].iloc[0]), cells["variance_expected"]
    said = [label(cell, shown) for cell in cells[shown].to_dict("records")]
    ax.fmt_xdata = lambda x: said[round(x)]
    order = pd.Series(np.arange(len(cells)), cells.index)
    low, value, high = (cells[m] / expected for m in ("variance_low", "variance", "variance_high"))
    top = high.clip(upper=1 + reach)
    ax.axhline(1, color=style.INK, lw=1, label="closed form")
    draw_points(ax, name, (order, value), (low, top))
    look: dict[str, Any] = {"color": mark(name)[0], "ms": 5, "mew": 0, "clip_on": False}
    unbounded = np.isinf(high)
    open_above = f"{name}, open above"
    (ends,) = ax.plot(order[unbounded], top[unbounded], "^", **look, zorder=3, label=open_above)
    ends.set_in_layout(False)
    ax.set_xlim(-1, len(cells))


CHAIN = {
    "variance_expected": ("closed form", style.INK, "|"),
    "variance_bound": ("Avron–Toledo", style.BLUE, "o"),
    "variance_bound_lipschitz": ("from K alone", style.GREEN, "s"),
    "variance_bound_printed": ("printed formula, no bound", style.PINK, "X"),
}


@drawn_from("variance", *list(CHAIN)[:3])
def bounds(cells: pd.DataFrame, columns: int) -> Figure | None:
    """The chain measured <= Avron-Toledo <= Lipschitz-only, one row per model and probe."""
    cells = cells[(cells["truncation"] == "fixed") & np.isfinite(cells["variance_expected"])]
    if cells.empty:
        return None
    hard = ["lipschitz", "n_terms", "dim"]
    cells = cells[cells["n_probes"] == cells["n_probes"].min()]
    cells = cells.sort_values(hard).drop_duplicates(["model", "probe"], keep="last")
    cells = cells.sort_values(["variance_bound_lipschitz", "variance_bound", "variance"])
    names = [c for c in CHAIN if c in cells]
    figure, ax = make_rows(cells, varying(cells, ["model", *hard]), columns, suffix="probe")
    n_ticks = 4 if columns == 1 else 7
    floor = style.log_axis(ax, "x", [cells[n] for n in ("variance", *names)], n_ticks=n_ticks)
    rows = np.arange(len(cells))
    ends = cells[["variance", *names[:3]]].clip(lower=floor)
    reach = ends.min(axis=1), ends.max(axis=1)
    ax.hlines(rows, *reach, color=style.LINE, lw=3, zorder=1, label="range")
    handles = [entry("measured", style.ACCENT, marker="o", ls="", ms=5)]
    for metric in names:
        text, color, marker = CHAIN[metric]
        face, edge = (style.PAPER, 1.3) if marker in "os" else (color, 0)
        size, edge = (11, 2) if marker == "|" else (6.5, edge)
        value = cells[metric].clip(lower=floor)
        look: dict[str, Any] = {"color": color, "mfc": face, "ms": size, "mew": edge, "label": text}
        ax.plot(value, rows, marker, **look)
        handles.append(entry(text, color, marker=marker, ls="", ms=7, mew=1.4, mfc=face))
    shown = (cells["variance"] > floor).to_numpy()
    low, high = (cells[m].clip(lower=floor) for m in ("variance_low", "variance_high"))
    ax.hlines(rows[shown], low[shown], high[shown], color=style.ACCENT, lw=2, label="measured")
    value = cells["variance"].clip(lower=floor)
    look = {"color": style.ACCENT, "ms": 5, "mec": style.PAPER, "mew": 0.5, "label": "measured"}
    ax.plot(value[shown], rows[shown], "o", **look)
    style.draw_edge_marks(ax, value[~shown], rows[~shown], style.ACCENT, "measured")
    common = [name for name in (*hard, "n_probes") if cells[name].nunique(dropna=False) == 1]
    words = f"variance of one draw (nat²)\n{label(cells.iloc[0], common)}"
    figure.supxlabel(words, size=9)  # centred on the figure: it is wider than a phone's panel
    style.add_legend(figure, [*handles, style.below_handle("zero")])
    return figure


@drawn_from("variance_is_finite", "roulette", "spectral_radius")
def roulette(cells: pd.DataFrame, columns: int) -> Figure | None:
    """Finite or infinite variance: spectral radius against the stop probability, and Poisson."""
    figure, (ax,) = style.make_panels(1, 1, width=min(columns, 2) * style.PANEL, height=3.0)
    stop = np.linspace(0, 1, 201)
    edge = np.sqrt(1 - stop)
    infinite: dict[str, Any] = {"color": style.ACCENT, "alpha": 0.13, "lw": 0}
    ax.fill_between(stop, edge, 1, **infinite, label="infinite, geometric law")
    ax.axvspan(1.06, 1.24, **infinite, label="infinite, Poisson law")
    ax.plot(stop, edge, color=style.INK, lw=1.2, label="ρ² = 1 − stop")
    ax.annotate("ρ² = 1 − stop", (0.42, math.sqrt(0.58)), (3, 4), textcoords="offset points")
    ax.text(0.97, 0.94, "infinite", ha="right", color=style.ACCENT, weight="bold")
    ax.text(0.03, 0.06, "finite", color=style.BLUE, weight="bold")
    ratio = cells["roulette"].map(lambda law: law_named(law).decay)
    x = np.where(ratio > 0, 1 - ratio, 1.15)
    thin: dict[str, Any] = {"ms": 6, "mec": style.PAPER, "mew": 0.5, "clip_on": False}
    heavy: dict[str, Any] = {"ms": 9, "mec": style.INK, "mew": 1.2, "clip_on": False}
    for finite, color, marker in ((1, style.BLUE, "o"), (0, style.ACCENT, "X")):
        mine = cells["variance_is_finite"] == finite
        for is_main, given in ((False, thin), (True, heavy)):
            some = mine & ((cells["model"] == MAIN) == is_main)
            said = ("finite" if finite else "infinite") + (f", {MAIN}" if is_main else "")
            radius = cells["spectral_radius"][some]
            ax.plot(x[some], radius, marker, color=color, **given, label=said)
    ax.set(xlim=(0, 1.24), ylim=(0, 1), xlabel="stop probability", ylabel="spectral radius ρ")
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1, 1.15], ["0", ".25", ".5", ".75", "1", "Poisson"])
    handles = [
        entry("finite", style.BLUE, marker="o", ls=""),
        entry("infinite", style.ACCENT, marker="X", ls=""),
        entry("trained flow", style.INK, marker="o", mfc="none", ms=8, ls=""),
    ]
    style.add_legend(figure, handles)
    return figure


PICTURES = (
    Picture(
        "variance",
        over_closed_form,
        "The measured variance of one draw of the log-determinant, divided by the variance that "
        "its formula gives; a panel for each model, on one scale. A mark is one setting (K, terms, "
        "probe and the like, named by its tooltip and in the CSV), from left to right in the order "
        "of the formula's value; its bar is the 99 % interval. If the formula is right, marks "
        "scatter about the line at 1, and about one bar in a hundred misses it by chance. Where a "
        "bar ends in a triangle, the tail of the roulette is too heavy for an upper limit. "
        "Variances that are zero or infinite have no ratio and are not drawn.",
    ),
    Picture(
        "bounds",
        bounds,
        "The variance of one draw, and what bounds it, a row for each model and law of the probe, "
        "at the largest K, N and d measured. From left to right a row should show: the measured "
        "variance with its 99 % interval, on the short upright line of its formula; Avron and "
        "Toledo's bound, which uses the Jacobian; and the bound from K alone (for a flow, summed "
        "over its blocks). The grey line spans them: a long one means a bound far from tight, and "
        "where marks coincide the bound is attained. The cross is a bound as printed in a widely "
        "read post: where it lies left of the measurement it is no bound. A triangle on the left "
        "edge is a variance of zero.",
    ),
    Picture(
        "roulette",
        roulette,
        "Roulettes of finite and of infinite variance. A mark is a model with one law of the "
        "number of terms: its stop probability across, its spectral radius ρ up, the largest over "
        "blocks and points. Theory: a geometric law that stops with probability p has a finite "
        "variance below the curve, ρ² < 1 − p, and an infinite one in the shaded region. A Poisson "
        "law (right) stops so soon that only a nilpotent J, ρ = 0, is safe. In the shaded region a "
        "sample variance may look moderate but estimates nothing, and the mean of any number of "
        "draws has infinite variance too.",
    ),
)
