"""Claims about the cost of an error: margins, statements, a finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from resflow_bench.analysis.rules import Equals
from resflow_bench.analysis.words import drawn, interval, share, with_interval
from resflow_bench.lab import TIME, Claims, Finding, Metric, Statement
from resflow_bench.theory import seconds_to_target
from suites import margins
from suites.efficiency.comparison import compared, of_gradient, reference, seconds_to
from suites.models import FIRST, GLOSSARY, named, telling

if TYPE_CHECKING:
    import pandas as pd

GRADIENT_RESOLUTION = 0.05
"""A share of the gradient's length. A step that is too long by it matters less than its noise."""

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
    Statement(
        "gradient unbiased",
        "nor does any of them bias the gradient, along the exact one",
        "Chen et al. (2019), theorem 2",
        Equals("gradient_bias", 0.0, GRADIENT_RESOLUTION),
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


def least_noise(cells: pd.DataFrame) -> str:
    """The candidate whose gradient has the least variance x time, against the reference's."""
    cells = compared(of_gradient(cells))
    if not cells.empty:
        cells = cells.groupby(["dim", "model"]).filter(lambda some: reference(some) is not None)
    if cells.empty:
        return ""
    cells = telling(cells.sort_values(["dim", "model"], kind="stable"))
    cells = cells[cells["dim"] == cells["dim"].iloc[0]]
    usual, noisy = reference(cells), cells[cells["finite"] & (cells["variance"] > 0)]
    if usual is None or noisy.empty:
        return ""
    best = noisy.loc[(noisy["variance"] * noisy["relative_time"]).idxmin()]
    value, most, least = (
        usual[f"variance{mine}"]
        * usual[f"relative_time{mine}"]
        / (best[f"variance{its}"] * best[f"relative_time{its}"])
        for mine, its in (("", ""), ("_high", "_low"), ("_low", "_high"))
    )
    times = with_interval(value, least, most)
    found = (
        f"The gradient of a batch's log-det of {named(best)} has the least variance × time by the "
        f"candidate “{best['name']}”. To the same noise, averaging the draws of {usual['name']} "
        f"takes {times} times as long ({drawn(best, 'variance')} draws of each)."
    )
    exact = cells[cells["estimator"] == "determinant"]
    if exact.empty:
        return found
    over = share(exact["relative_time"].iloc[0] / usual["relative_time"], "the time of such a draw")
    return f"{found} The gradient of the determinant has no noise, and takes {over}."


def _trained_by(usual: pd.Series) -> str:
    if usual["implementation"] == "ours":
        return "the public implementations train by (in our code)"
    return f"{usual['name'].split(',')[0]} trains by"


CLAIMS = Claims(
    metrics={
        "bias": margins.SAMPLED_NAT,
        **margins.each(margins.EXACT, "bias_expected", "variance_expected"),
        **margins.each(margins.NOISE, "variance", "gradient_variance"),
        "gradient_bias": Metric("other", atol=0.01),
        "variance_is_finite": margins.FLAG,
        "n_products": margins.COUNT,
        **margins.each(TIME, "seconds_per_example", "seconds_to_target"),
        **margins.each(TIME, "gradient_seconds", "gradient_variance_time"),
        **margins.REALISED,
    },
    statements=STATEMENTS,
    findings=(Finding(30, cheapest), Finding(31, least_noise)),
    first=FIRST,
    glossary={
        **GLOSSARY,
        "gradient_variance, gradient_bias": "of the gradient of a batch's mean log-det in the "
        "parameters of all g: variance summed over parameters, relative to the squared length of "
        "the exact gradient; error along the exact gradient, relative to its length",
    },
)
