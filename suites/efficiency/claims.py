"""Claims about the cost of an error: margins, statements, a finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from resflow_bench.analysis.rules import Equals
from resflow_bench.analysis.words import interval
from resflow_bench.lab import TIME, Claims, Finding, Statement
from resflow_bench.theory import seconds_to_target
from suites import margins
from suites.efficiency.comparison import compared, reference, seconds_to
from suites.models import FIRST, GLOSSARY, named, telling

if TYPE_CHECKING:
    import pandas as pd

STATEMENTS = (
    Statement(
        "variance as expected",
        "the variance of a candidate is the closed form of its probe, truncation and traces",
        "2‖sym A‖² + (κ₄ − 3) Σ A_ii², and Abel summation over the roulette's stops",
        Equals("variance", "variance_expected"),
    ),
    Statement(
        "bias as expected",
        "the mean of a truncated estimate is off by exactly tr S_N − ln|det(I + J)|",
        "Hutchinson (1989): E vᵀAv = tr A",
        Equals("bias", "bias_expected", margins.BIAS_RESOLUTION),
        only="implementation == 'ours' and truncation == 'fixed'",
    ),
    Statement(
        "unbiased",
        "no remedy adds bias: traces, strata, a control, a tuned roulette; nor does a determinant",
        "Chen et al. (2019), theorem 1",
        Equals("bias", "bias_expected", margins.BIAS_RESOLUTION),
        only="implementation == 'ours' and truncation != 'fixed'",
    ),
)


def cheapest(cells: pd.DataFrame) -> str:
    """The candidate that reaches `TARGET` in the least time, against the reference's draw."""
    cells = compared(cells)
    if not cells.empty:
        cells = cells.groupby(["dim", "model"]).filter(lambda some: reference(some) is not None)
    if cells.empty:
        return ""
    cells = telling(cells.sort_values(["dim", "model"], kind="stable"))
    cells = cells[cells["dim"] == cells["dim"].iloc[0]]
    seconds, usual = seconds_to(cells, np.asarray([margins.TARGET]))[:, 0], reference(cells)
    if usual is None or not np.isfinite(seconds).any():
        return ""
    best = cells.iloc[int(seconds.argmin())]
    rate = seconds.min() / best["relative_time"]  # seconds to the target, per unit of ratio
    spread = usual["spread"] if usual["finite"] else usual["variance_low"]
    needed = float(seconds_to_target(usual["seconds"], spread, best["floor"], margins.TARGET))
    times = float(f"{needed / seconds.min():.2g}")
    infinite = "" if usual["finite"] else ", of infinite variance there,"
    return (
        f"A log-det of {named(best)} to {margins.TARGET} nat takes "
        f"{interval(best, 'relative_time', 1e3 * rate)} ms an example by the candidate "
        f"“{best['name']}”. Averaging the draw that {_trained_by(usual)}{infinite} takes "
        f"{'' if usual['finite'] else 'at least '}{times:,.0f} times as long."
    )


def _trained_by(usual: pd.Series) -> str:
    if usual["implementation"] == "ours":
        return "the public implementations train by (in our code)"
    return f"{usual['name'].split(',')[0]} trains by"


CLAIMS = Claims(
    metrics={
        "bias": margins.SAMPLED_NAT,
        **margins.each(margins.EXACT, "bias_expected", "variance_expected"),
        "variance": margins.NOISE,
        "variance_is_finite": margins.FLAG,
        "n_products": margins.COUNT,
        **margins.each(TIME, "seconds_per_example", "seconds_to_target"),
        **margins.REALISED,
    },
    statements=STATEMENTS,
    findings=(Finding(30, cheapest),),
    first=FIRST,
    glossary=GLOSSARY,
)
