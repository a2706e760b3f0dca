"""Claims about the learned density: margins, a statement, two findings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resflow_bench.analysis.rules import AtLeast
from resflow_bench.analysis.words import drawn, interval, measured
from resflow_bench.lab import Claims, Finding, Metric, Statement
from suites.margins import BITS_PER_DIM, CERTIFIED, EXACT, REALISED

if TYPE_CHECKING:
    import pandas as pd

STATEMENTS = (
    Statement(
        "no better than the truth",
        "E[ln p_true(x) − ln p(x)] ≥ 0 over x from the true density",
        "Gibbs' inequality: a Kullback–Leibler divergence is at least 0",
        AtLeast("divergence", 0.0),
    ),
)


def left_to_learn(cells: pd.DataFrame) -> str:
    """The divergence from the true density, where that is known: the least and the most."""
    cells = _last(measured(cells, "divergence", "step"), "divergence")
    if cells.empty:
        return ""
    best, worst = cells.iloc[0], cells.iloc[-1]
    found = (
        f"On {best['dataset']}, {best['architecture']} is {interval(best, 'divergence')} nat from "
        f"the true density. That is after {best['step']:,} steps at K = {best['lipschitz']:g} "
        f"({drawn(best, 'divergence')} held out)"
    )
    if len(cells) == 1:
        return f"{found}."
    return (
        f"{found}; on {worst['dataset']} it is {interval(worst, 'divergence')} nat, after "
        f"{worst['step']:,}."
    )


def images(cells: pd.DataFrame) -> str:
    """The bits per dimension on data whose density is not known."""
    cells = measured(cells, "bits_per_dim", "step")
    cells = _last(cells[cells["divergence"].isna()] if "divergence" in cells else cells)
    if cells.empty:
        return ""
    c = cells.iloc[0]
    return (
        f"On {c['dataset']}, {c['architecture']} has {interval(c, 'bits_per_dim')} bit/dim. That "
        f"is after {c['step']:,} steps at K = {c['lipschitz']:g} "
        f"({drawn(c, 'bits_per_dim')} held out)."
    )


def _last(cells: pd.DataFrame, by: str = "bits_per_dim") -> pd.DataFrame:
    """One cell for each dataset, the best of those trained longest; the best dataset first."""
    cells = cells.sort_values(["step", by], ascending=[False, True], kind="stable")
    return cells.drop_duplicates("dataset").sort_values(by, kind="stable")


CLAIMS = Claims(
    metrics={
        "log_prob": Metric("less", atol=0.05),
        "divergence": Metric("more", atol=0.05),
        "bits_per_dim": BITS_PER_DIM,
        "log_prob_true": EXACT,
        "lipschitz_certified": CERTIFIED,
        **REALISED,
    },
    statements=STATEMENTS,
    findings=(Finding(66, left_to_learn), Finding(67, images)),
)
