"""Claims about a training's objective: margins, statements, a finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resflow_bench.analysis.rules import AtMost, Equals
from resflow_bench.analysis.words import interval, measured, number
from resflow_bench.lab import Claims, Finding, Statement
from suites.margins import BITS, CERTIFIED, EXACT, NOISE, REALISED, each

if TYPE_CHECKING:
    import pandas as pd

RESOLUTION = 0.01  # bit/dim: the last digit that likelihoods are printed with

STATEMENTS = (
    Statement(
        "gap as expected",
        "a truncated objective is off by Σ tr S_N − ln|det(I + J)| over the blocks, over d ln 2",
        "Hutchinson (1989): E vᵀAv = tr A",
        Equals("gap", "gap_expected", RESOLUTION),
    ),
    Statement(
        "gap within bound",
        "|gap| ≤ Σ d τ_N(K) / (d ln 2), the sum over blocks",
        "Behrmann et al. (2019), theorem 3",
        AtMost("gap", "gap_bound", absolute=True, theory="gap_expected"),
        only="truncation == 'fixed'",
    ),
    Statement(
        "no gap with a roulette",
        "the mean of a roulette objective is exact",
        "Chen et al. (2019), theorem 1",
        Equals("gap", 0.0, RESOLUTION),
        only="truncation == 'roulette'",
    ),
    Statement(
        "curve at a tenth",
        "a validation curve of 50 points, five steps apart, costs a tenth of independent draws",
        "Dharangutte & Musco (2021), algorithm 2, on averaged weights",
        AtMost("curve_cost", 0.1),
    ),
)


def overstated(cells: pd.DataFrame) -> str:
    """The excess of the objective of fewest terms over the likelihood at the last step."""
    cells = measured(cells, "gap", "log_prob_objective", "log_prob_exact", "n_terms", "step")
    if cells.empty:
        return ""
    cells = cells[cells["lipschitz"] == cells["lipschitz"].max()]
    c = cells.sort_values(["step", "n_terms"], ascending=[False, True], kind="stable").iloc[0]
    n = int(c["n_terms"])
    return (
        f"Trained for {c['step']:,} steps on {c['dataset']} at K = {c['lipschitz']:g} with {n} "
        f"term{'s' * (n > 1)}, a flow's objective is off by {interval(c, 'gap')} bit/dim: it "
        f"claims a held-out log-likelihood of {number(c['log_prob_objective'], 4)} bit/dim, and "
        f"has {number(c['log_prob_exact'], 4)}."
    )


def followed(cells: pd.DataFrame) -> str:
    """The cost of a validation curve by difference, at the largest K and the last step."""
    cells = measured(cells, "curve_cost", "step")
    if cells.empty:
        return ""
    c = cells.sort_values(["lipschitz", "step"], kind="stable").iloc[-1]
    return (
        f"A validation curve of the training on {c['dataset']} at K = {c['lipschitz']:g}, each "
        f"point from the one before, takes {interval(c, 'curve_cost')} of the products of "
        "independent draws with the same error."
    )


CLAIMS = Claims(
    metrics={
        **each(
            BITS, "gap", "gap_expected", "log_prob_exact", "log_prob_objective", "log_prob_unbiased"
        ),
        "gap_bound": EXACT,
        "curve_cost": NOISE,
        "lipschitz_certified": CERTIFIED,
        **REALISED,
    },
    statements=STATEMENTS,
    findings=(Finding(20, overstated), Finding(21, followed)),
)
