"""Claims about the gradient through samples: margins, statements, three findings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resflow_bench.analysis.rules import Equals
from resflow_bench.analysis.words import drawn, interval, measured, number, plural, share
from resflow_bench.lab import Claims, Finding, Metric, Statement
from suites.margins import EXACT, NOISE, REALISED, each
from suites.models import FIRST, GLOSSARY, named, telling

if TYPE_CHECKING:
    import pandas as pd

RESOLUTION = 0.05
"""A share of the gradient's length. A step that is too long by it matters less than its noise."""

STATEMENTS = (
    Statement(
        "gradient bias as expected",
        "the mean gradient of a truncated estimate is that of tr S_N, also with the Neumann "
        "gradient; that of a roulette is the determinant's at the samples that the inverse found",
        "Hutchinson (1989): E vᵀAv = tr A; Chen et al. (2019), theorem 2",
        Equals("gradient_bias", "gradient_bias_expected", RESOLUTION),
    ),
    Statement(
        "roulette gradient unbiased",
        "with a roulette and samples to rounding the gradient has no bias, whatever the law",
        "Chen et al. (2019), theorem 2",
        Equals("gradient_bias", 0.0, RESOLUTION),
        only="truncation == 'roulette' and tolerance <= 1e-9",
    ),
)


def noise(cells: pd.DataFrame) -> str:
    """The noise of the log-det beside that of the samples."""
    cells = measured(cells, "gradient_variance", "sampling_variance", "path_variance")
    cells = cells[cells["truncation"] == "roulette"]
    if cells.empty:
        return ""
    c = telling(cells).sort_values("tolerance", kind="stable").iloc[0]
    return (
        f"In the gradient of a reverse KL divergence of {named(c)}, one draw of {c['roulette']} "
        f"has a variance of {interval(c, 'gradient_variance')} of its squared length. The samples "
        f"themselves have {number(c['sampling_variance'])}, and {number(c['path_variance'])} "
        f"without the score ({drawn(c, 'gradient_variance')})."
    )


def truncated(cells: pd.DataFrame) -> str:
    """The bias of the shortest series, at the tightest inverse, and of the longest."""
    cells = _fixed(cells)
    cells = cells[cells["tolerance"] == cells["tolerance"].min()]
    if cells.empty:
        return ""
    cells = cells.sort_values("n_terms", kind="stable")
    c, longest = cells.iloc[0], cells.iloc[-1]
    bias, left = (share(one["gradient_bias_expected"], "its length") for one in (c, longest))
    found = (
        f"Cut after {plural(int(c['n_terms']), 'term')}, the series biases the gradient of a "
        f"reverse KL divergence of {named(c)} by {bias}. That is at K = {c['lipschitz']:g} and a "
        f"tolerance of {c['tolerance']:g} of the inverse; measured, the bias is "
        f"{interval(c, 'gradient_bias')} of the length ({drawn(c, 'gradient_bias')})"
    )
    if len(cells) == 1:
        return f"{found}."
    return f"{found}. {plural(int(longest['n_terms']), 'term')} leave {left}."


def loose(cells: pd.DataFrame) -> str:
    """The bias of a loose inverse, with the longest series."""
    cells = _fixed(cells)
    cells = cells[cells["tolerance"].between(1e-3, 0.05)]
    if cells.empty:
        return ""
    c = cells.sort_values(["tolerance", "n_terms"], ascending=False, kind="stable").iloc[0]
    return (
        f"Samples of {named(c)} inverted to a tolerance of {c['tolerance']:g} bias that gradient "
        f"by {share(c['gradient_bias_expected'], 'its length')}. That is with "
        f"{plural(int(c['n_terms']), 'term')}, at K = {c['lipschitz']:g}; measured, the bias is "
        f"{interval(c, 'gradient_bias')} of the length ({drawn(c, 'gradient_bias')})."
    )


def _fixed(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of a truncated series, of the most telling model."""
    cells = measured(cells, "gradient_bias", "gradient_bias_expected", "tolerance", "n_terms")
    cells = cells[cells["truncation"] == "fixed"]
    return telling(cells) if len(cells) else cells


CLAIMS = Claims(
    metrics={
        "gradient_bias": Metric("other", atol=0.01),
        "gradient_variance": NOISE,
        **each(EXACT, "gradient_bias_expected", "gradient_norm"),
        **each(EXACT, "sampling_variance", "path_variance"),
        **REALISED,
    },
    statements=STATEMENTS,
    findings=(Finding(80, truncated), Finding(81, loose), Finding(82, noise)),
    first=FIRST,
    glossary={
        **GLOSSARY,
        "gradient_bias": "the mean error of the gradient of E[log p(x) − log q(x)], x = f⁻¹(z), "
        "q = N(0, I), relative to the length of the exact gradient; along the expected bias where "
        "there is one, else along the gradient",
        "gradient_variance, sampling_variance": "the variance of that gradient, relative to its "
        "squared length: from the log-det's noise, and from the choice of z",
        "path_variance": "the sampling variance without the score, the derivative of log p at a "
        "fixed x: its mean is zero, and without it the noise vanishes where p = q",
    },
)
