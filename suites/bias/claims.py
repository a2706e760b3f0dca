"""Claims about the bias: margins, statements, two findings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from resflow_bench.analysis.rules import AtLeast, AtMost, Equals
from resflow_bench.analysis.words import drawn, interval, measured, number, plural
from resflow_bench.lab import Claims, Finding, Statement
from suites.margins import BIAS_RESOLUTION, EXACT, REALISED, SAMPLED_NAT, each
from suites.models import FIRST, GLOSSARY, WEIGHTS, named, telling

if TYPE_CHECKING:
    import pandas as pd

STATEMENTS = (
    Statement(
        "bias as expected",
        "the mean of a truncated estimate is off by exactly tr S_N − ln|det(I + J)|",
        "Hutchinson (1989): E vᵀAv = tr A",
        Equals("bias", "bias_expected", BIAS_RESOLUTION),
        only="truncation == 'fixed'",
    ),
    Statement(
        "bias as expected, paired",
        "the mean distance of an estimate from vᵀ log(I + J) v with the same probes is its bias, "
        "with less noise",
        "Hutchinson (1989): E vᵀ log(I + J) v is the log-det itself",
        Equals("bias_paired", "bias_expected", BIAS_RESOLUTION),
    ),
    Statement(
        "bias within bound",
        "|bias| ≤ d τ_N(K), with τ_N(K) = Σ_{k>N} Kᵏ/k",
        "Behrmann et al. (2019), theorem 3",
        AtMost("bias_paired", "bias_bound", absolute=True, theory="bias_expected"),
        only="truncation == 'fixed'",
    ),
    Statement(
        "roulette unbiased",
        "a roulette estimate has no bias, whatever its law",
        "Chen et al. (2019), theorem 1",
        Equals("bias", 0.0, BIAS_RESOLUTION),
        only="truncation == 'roulette'",
    ),
    Statement(
        "weight bias at least the bias",
        "ln E[exp(e)] ≥ E[e], e = estimate − ln|det(I + J)|: an unbiased estimate gives a weight "
        "that is too large on average",
        "Jensen's inequality",
        AtLeast("weight_bias", "bias_expected", theory="weight_bias_expected"),
    ),
)


def truncation(cells: pd.DataFrame) -> str:
    """The bias of a truncated series, nearest to ten terms."""
    cells = measured(cells, "bias_paired", "bias_expected", "bias_bound", "n_terms")
    if cells.empty:
        return ""
    cells = telling(cells).sort_values("n_terms", key=lambda n: (n - 10).abs(), kind="stable")
    c = cells.iloc[0]
    n = int(c["n_terms"])
    found = (
        f"Cut after {plural(n, 'term')}, the log-det of {named(c)} is biased by "
        f"{number(c['bias_expected'])} nat. That is computed from its Jacobian without sampling; "
        f"measured, it is {interval(c, 'bias_paired')} nat ({drawn(c, 'bias_paired')})"
    )
    if not math.isfinite(c["bias_bound"]):
        return f"{found}. It promises no constant, so that no bound is claimed."
    bound = number(c["bias_bound"])
    return f"{found}. K = {c['lipschitz']:g} alone guarantees no better than {bound} nat."


def roulette(cells: pd.DataFrame) -> str:
    """The number of roulettes whose interval holds a bias of zero, and the largest deviation."""
    cells = measured(cells, "bias", "bias_low", "bias_high", "roulette")
    bounded = cells[np.isfinite(cells["bias_high"] - cells["bias_low"])]
    if bounded.empty:
        return ""
    n_hold = int(((bounded["bias_low"] <= 0) & (bounded["bias_high"] >= 0)).sum())
    c = bounded.loc[bounded["bias"].abs().idxmax()]
    n_open = len(cells) - len(bounded)
    unknown = f" Of {plural(n_open, 'more cell')} the variance is infinite." if n_open else ""
    return (
        f"The roulette's bias is zero within its 99 % interval in {n_hold:,} of "
        f"{plural(len(bounded), 'cell')}. By chance one interval in a hundred misses it. The "
        f"largest deviation is {interval(c, 'bias')} nat ({drawn(c, 'bias')}), of {c['roulette']} "
        f"on {named(c)} at K = {c['lipschitz']:g}.{unknown}"
    )


CLAIMS = Claims(
    metrics={
        **each(SAMPLED_NAT, "bias", "bias_paired", "weight_bias"),
        **each(EXACT, "bias_expected", "bias_bound", "log_det_exact", "weight_bias_expected"),
        **REALISED,
    },
    statements=STATEMENTS,
    findings=(Finding(10, truncation), Finding(45, roulette)),
    first=FIRST,
    glossary={**GLOSSARY, **WEIGHTS},
)
