"""Claims about a training's objective: margins, statements, a finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resflow_bench.analysis.rules import AtMost, Equals
from resflow_bench.analysis.words import drawn, interval, measured, number, plural
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
    everywhere = measured(cells, "gap", "log_prob_objective", "log_prob_exact", "step")
    cells = measured(everywhere, "n_terms")
    if cells.empty:
        return ""
    cells = cells[cells["lipschitz"] == cells["lipschitz"].max()]
    c = cells.sort_values(["step", "n_terms"], ascending=[False, True], kind="stable").iloc[0]
    sign = -1.0 if c["gap"] < 0 else 1.0
    found = (
        f"Trained for {c['step']:,} steps on {c['dataset']} at K = {c['lipschitz']:g} with "
        f"{plural(int(c['n_terms']), 'term')}, a flow claims {interval(c, 'gap', sign)} bit/dim "
        f"{'more' if sign > 0 else 'less'} than it has ({drawn(c, 'gap')}). Its objective puts the "
        f"held-out log-likelihood at {number(c['log_prob_objective'], 4)} bit/dim, and the exact "
        f"value is {number(c['log_prob_exact'], 4)}."
    )
    if "roulette" not in everywhere or (others := measured(everywhere, "roulette")).empty:
        return found
    worst = others.loc[others["gap"].abs().idxmax()]
    return (
        f"{found} With a roulette the largest gap of {plural(len(others), 'cell')} is "
        f"{interval(worst, 'gap')} bit/dim ({drawn(worst, 'gap')})."
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
