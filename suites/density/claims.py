"""Claims about the learned density: margins, statements, findings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resflow_bench.analysis.rules import AtLeast, Exactly
from resflow_bench.analysis.words import drawn, interval, measured
from resflow_bench.lab import Claims, Finding, Metric, Statement
from suites.margins import BITS_PER_DIM, CERTIFIED, EXACT, REALISED, each

if TYPE_CHECKING:
    import pandas as pd

STATEMENTS = (
    Statement(
        "no better than the truth",
        "E[ln p_true(x) − ln p(x)] ≥ 0 over x from the true density",
        "Gibbs' inequality: a Kullback–Leibler divergence is at least 0",
        AtLeast("divergence", 0.0),
    ),
    Statement(
        "a trained flow keeps its constant",
        "the certified constant of every block is at most the promised K after a training",
        "each update rescales the weights by a bound on their norm",
        Exactly("lipschitz_certified_ours", "lipschitz"),
    ),
)

DISPUTED = (
    Statement(
        "five power iterations keep the constant",
        "the certified constant of every block is at most the promised K after a training",
        "the examples of normflows; a power iteration bounds a norm from below",
        Exactly("lipschitz_certified", "lipschitz"),
        only="implementation == 'normflows'",
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


def trained_alike(cells: pd.DataFrame) -> str:
    """The comparison of most steps: whose density is better, held out, from the same weights."""
    cells = measured(cells, "log_prob_minus_ours", "step", "implementation")
    if cells.empty:
        return ""
    cells = cells.sort_values(["dataset", "step"], ascending=[True, False], kind="stable")
    parts = [
        f"{interval(c, 'log_prob_minus_ours')} after {c['step']:,} steps on {c['dataset']}"
        for _, c in cells.drop_duplicates("dataset").iterrows()
    ]
    c = cells.iloc[0]
    low, high = c["log_prob_minus_ours_low"], c["log_prob_minus_ours_high"]
    is_better = "no other" if low <= 0 <= high else "a worse" if high < 0 else "a better"
    return (
        f"Trained alike on {c['dataset']}, {c['implementation']} shows {is_better} held-out "
        "density than this package. Its log-likelihood less ours, in nats, is "
        f"{', '.join(parts)} ({drawn(c, 'log_prob_minus_ours')} seeds)."
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
        **each(Metric("more", atol=0.05), "log_prob_minus_ours", "fitted_minus_ours"),
        "log_prob_ours": Metric("less", atol=0.05),
        "steps_to_match": Metric("more", rtol=0.1),
        **each(CERTIFIED, "lipschitz_certified", "lipschitz_certified_ours"),
        **REALISED,
    },
    statements=STATEMENTS,
    disputed=DISPUTED,
    findings=(Finding(66, left_to_learn), Finding(67, images), Finding(68, trained_alike)),
    glossary={
        "log_prob_minus_ours, fitted_minus_ours": "mean ln p(x) of the implementation less that of "
        "this package, trained alike, held out and of training examples; the interval is over "
        "trainings from several seeds",
        "steps_to_match": "the share of its steps after which this package reaches its final "
        "held-out log-likelihood",
    },
)
