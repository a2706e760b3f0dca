"""The bias of a truncated series against theory and its bound."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from resflow_bench.report import style
from resflow_bench.report.picture import Picture
from suites.marks import (
    FLOWS,
    MODELS,
    draw_points,
    drawn_from,
    entry,
    mark,
    model_handles,
    models_in,
)
from suites.models import MAIN

DECADES = 7
"""The length of a bias's axis; smaller biases are of no interest."""

DASHES = (style.DASHES, (0, (7, 2, 1.5, 2)), (0, (1, 1.5)), (0, (9, 3)))
"""The dashes of bounds that differ, in turn."""


@drawn_from("bias_paired", "bias_expected", "bias_bound", "n_terms", "dim", "lipschitz")
def by_terms(cells: pd.DataFrame, columns: int) -> Figure | None:
    """|bias| / d against the number of terms, a panel for each Lipschitz constant."""
    constants = style.spread(sorted(cells["lipschitz"].unique()), style.MAX_PANELS)
    figure, panels = style.make_panels(len(constants), columns)
    names = models_in(cells)
    whose = ["lipschitz", "model", "n_terms"]
    bounds = (cells["bias_bound"] / cells["dim"].astype(float)).groupby([cells[a] for a in whose])
    curves = {k: _shared(some.droplevel(0)) for k, some in bounds.max().groupby(level=0)}
    dashes = _dashes([owners for some in curves.values() for owners in some.values()])
    for ax, constant in zip(panels, constants, strict=True):
        here = cells[cells["lipschitz"] == constant]
        dim = here["dim"].astype(float)
        expected = here["bias_expected"].abs() / dim
        low, high = here["bias_paired_low"] / dim, here["bias_paired_high"] / dim
        unresolved = (low <= 0) & (high >= 0)
        size = np.where(unresolved, np.maximum(-low, high), here["bias_paired"].abs() / dim)
        size = pd.Series(size, here.index)
        floor = style.log_axis(ax, "y", [expected, here["bias_bound"] / dim, size], DECADES)
        ends = np.maximum(np.sort(np.abs([low, high]), axis=0), floor)
        below = (unresolved | (size <= floor)).to_numpy()
        for curve, owners in curves[constant].items():
            terms, heights = zip(*curve, strict=True)
            (who,) = (group for group in dashes if owners <= group)
            ax.plot(terms, heights, color=style.INK, lw=1.1, ls=dashes[who], label=_bound(who))
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
        *(entry(_bound(who), style.INK, lw=1.1, ls=ls) for who, ls in dashes.items()),
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


def _dashes(several: Iterable[set[str]]) -> dict[frozenset[str], Any]:
    """The models that have a bound in common anywhere, to the dashes of its line."""
    groups: list[frozenset[str]] = []
    for owners in several:
        same = [group for group in groups if group & owners]
        groups = [group for group in groups if group not in same]
        groups.append(frozenset(owners).union(*same))
    groups.sort(key=lambda group: group <= FLOWS)  # the linear maps come first
    return dict(zip(groups, cycle(DASHES), strict=False))


def _bound(owners: frozenset[str]) -> str:
    """The name of a bound: whose it is."""
    linear = owners & ({*MODELS} - FLOWS)
    whose = ["linear"] * bool(linear) + sorted(owners - linear, key=[*MODELS, *owners].index)
    return "bound: " + ", ".join([*whose[:2], *["…"] * (len(whose) > 2)])


PICTURES = (
    Picture(
        "bias",
        by_terms,
        "Bias of the log-determinant, per dimension, when its series is cut after N terms; a panel "
        "for each promised Lipschitz constant K. Marks are measured, with 99 % intervals: the mean "
        "difference from the whole series, with the same random vectors. In theory each mark lies "
        "on the line of its colour, which is computed from the Jacobian without sampling, and "
        "below the broken black line of its bound, which depends only on K; for a flow it is the "
        "sum over the blocks. A line that ends early, or a model missing from a panel, was not "
        "measured there. The distance "
        "of the trained flow from its bound shows what its smaller realised constant saves. An "
        "open triangle is the upper end of an interval that contains zero: the bias is there or "
        "below. A triangular map has no bias at any N, hence no line. Roulettes, which should "
        "have no bias either, are in the table.",
    ),
)
