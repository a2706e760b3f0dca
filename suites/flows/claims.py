"""Claims about all systems: margins, what a density has to keep, a finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resflow_bench.analysis.rules import AtLeast, Equals, Exactly
from resflow_bench.analysis.words import drawn, interval, measured, number
from resflow_bench.lab import TIME, Claims, Finding, Metric, Statement
from suites.margins import BITS_PER_DIM, ERROR, EXACT, each

if TYPE_CHECKING:
    import pandas as pd

MASS = 0.01
"""The integral of a density on a grid may be off by it, most of it from the grid."""

GAP = 0.1
"""Nat: a difference between samples and density that is worth acting upon."""

STATEMENTS = (
    Statement(
        "no better than the truth",
        "E[ln p_true(x) − ln p(x)] ≥ 0 over x from the true density",
        "Gibbs' inequality: a Kullback–Leibler divergence is at least 0",
        AtLeast("divergence", 0.0),
    ),
    Statement(
        "the density integrates to one",
        "|∫ p(x) dx − 1| ≤ 0.01 over a square that holds the data",
        "the change of variables, for maps; Chen et al. (2018), theorem 1, for paths",
        Exactly("mass_error", MASS),
    ),
    Statement(
        "samples are from the density",
        "the mean of ln p over samples is ∫ p ln p",
        "both are the negative entropy of p",
        Equals("sample_gap", 0.0, GAP),
    ),
)


def against_examples(cells: pd.DataFrame) -> str:
    """The system whose library's example does best beside ours."""
    cells = measured(cells, "log_prob_minus_ours", "implementation", "step")
    if cells.empty:
        return ""
    better = int((cells["log_prob_minus_ours_low"] > 0).sum())
    c = cells.sort_values("log_prob_minus_ours", ascending=False, kind="stable").iloc[0]
    return (
        f"The examples of libraries do better than the systems of this suite in {better} of "
        f"{len(cells)} comparisons. The best beside ours is that of {c['architecture']} on "
        f"{c['dataset']}: its held-out log-likelihood less ours is "
        f"{interval(c, 'log_prob_minus_ours')} nat after {c['step']:,} steps "
        f"({drawn(c, 'log_prob_minus_ours')} seeds), with {c['n_parameters']:,.0f} parameters."
    )


def best_of_each(cells: pd.DataFrame) -> str:
    """The likelihood and the seconds of the systems on the data that most of them have."""
    cells = measured(cells, "divergence", "train_step_s", "step")
    if cells.empty:
        return ""
    name = cells["dataset"].value_counts().index[0]
    cells = cells[cells["dataset"] == name].sort_values("step", ascending=False, kind="stable")
    cells = cells.drop_duplicates("architecture").sort_values("divergence", kind="stable")
    if len(cells) < 2:
        return ""
    best, worst = cells.iloc[0], cells.iloc[-1]
    after = [
        f"{c['step']:,} steps, {number(c['step'] * c['train_step_s'])} s ({drawn(c, 'divergence')})"
        for c in (best, worst)
    ]
    return (
        f"Of {len(cells)} systems on {name}, {best['architecture']} comes nearest to the true "
        f"density, to {interval(best, 'divergence')} nat. That is after {after[0]}; the farthest, "
        f"{worst['architecture']}, leaves {interval(worst, 'divergence')} nat after {after[1]}."
    )


CLAIMS = Claims(
    metrics={
        **each(Metric("less", atol=0.05), "log_prob", "log_prob_ours"),
        "log_prob_minus_ours": Metric("more", atol=0.05),
        "divergence": Metric("more", atol=0.05),
        "bits_per_dim": BITS_PER_DIM,
        "mass_error": Metric("more", atol=MASS),
        "sample_gap": Metric("other", atol=GAP),
        "round_trip_error": ERROR,
        **each(EXACT, "n_parameters", "n_parameters_ours"),
        **each(TIME, "train_step_s", "log_prob_s", "sample_s"),
    },
    statements=STATEMENTS,
    findings=(Finding(70, best_of_each), Finding(71, against_examples)),
    glossary={
        "log_prob": "the mean of ln p(x) over held-out x, with the exact log-det or trace",
        "log_prob_minus_ours": "the log_prob of the example of the system's library less that of "
        "this package, trained on the same data for as many steps, with a network of the size of "
        "ours or (example-own-size) of its own; the interval is over trainings from several seeds",
        "divergence": "the mean of ln p_true(x) − ln p(x) over held-out x: what is left to learn",
        "mass_error": "the integral of p over a grid, less 1, without its sign",
        "sample_gap": "the mean of ln p over samples less the integral of p ln p",
        "round_trip_error": "the largest ‖x − f⁻¹(f(x))‖ of held-out x, in the flow's dtype",
        "n_parameters": "numbers that the training changes",
        "train_step_s": "seconds of an optimiser step of 256 examples, median",
        "log_prob_s, sample_s": "seconds of an example's density and of a sample, median",
    },
)
