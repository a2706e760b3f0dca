"""Claims about the inverse: margins, statements, a finding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from resflow_bench.analysis.rules import Exactly
from resflow_bench.analysis.words import measured, number
from resflow_bench.architectures import LINEAR_FAMILIES
from resflow_bench.lab import Claims, Finding, Metric, Statement
from suites.margins import ERROR, EXACT, REALISED, each
from suites.models import FIRST, GLOSSARY, named, telling

if TYPE_CHECKING:
    import pandas as pd

OUTCOMES: Mapping[float, str] = {
    0: "converged",
    1: "stopped at max_steps",
    2: "stagnated",
    3: "diverged",
    4: "uncertified",
}
FLOOR = (
    "n_steps_bound <= max_steps and (dtype == 'float64' and tolerance * (1 - lipschitz) >= {0} * "
    "1.2e-16 or dtype == 'float32' and tolerance * (1 - lipschitz) >= {0} * 6e-8)"
)
"""A tolerance of some times the rounding floor u / (1 - K), below which no residual falls, and
steps enough to reach it."""

REACHABLE = FLOOR.format(1)
COUNTABLE = FLOOR.format(10)
"""Nearer to the floor, rounding costs steps beyond those that exact arithmetic takes."""

NEAR_ONE = (
    "error >= 1e-6 and dtype == 'float64' and lipschitz <= 0.9999 and dim <= 64 and "
    f"model in {[*LINEAR_FAMILIES, 'steep']}"
)
"""Errors that rounding, magnified by 1 / (1 - K) in float64, leaves room for, in the flows of which
it is promised: one linear block, and eight steep ones."""

MOST_EVALUATIONS = 100.0

STATEMENTS = (
    Statement(
        "error within certificate",
        "‖x̂ − x‖ ≤ ‖x̂ − x′‖ + ‖r′‖ / m, x′ the inverse in float64, r′ its residual, m ≥ 1 − K",
        "‖f(x) − f(y)‖ ≥ m ‖x − y‖, block by block; Banach's theorem for m = 1 − K",
        Exactly("error_over_bound", 1.0),
    ),
    Statement(
        "error within Banach's rate",
        "after n steps, ‖x̂ − x‖ ≤ Kⁿ ‖g(y)‖ / (1 − K), block by block (float64, above rounding)",
        "Banach's fixed-point theorem, a priori",
        Exactly("inverse_error", "inverse_error_banach"),
        # Far above the rounding floor u / (1 - K), which a theorem on real numbers ignores.
        only="dtype == 'float64' and inverse_error_banach > 1e-6",
    ),
    Statement(
        "steps within Banach's count",
        "no more steps than ln(ε (1 − K) / ‖g(y)‖) / ln K, for ε far above rounding, u / (1 − K)",
        "Banach's fixed-point theorem, a priori",
        Exactly("n_steps", "n_steps_bound"),
        only=COUNTABLE,
    ),
    Statement(
        "every solve converged",
        "every point met its tolerance",
        "K < 1 and a tolerance above the rounding floor u / (1 − K)",
        Exactly("outcome", 0.0, OUTCOMES),
        only=REACHABLE,
    ),
    Statement(
        "an error is certified near K = 1",
        "every bound is within the error requested, 1e-6 or more: linear maps and the steep flow, "
        "d ≤ 64, K ≤ 0.9999",
        "m near a point is the least singular value of I + J less Lip(J) times the radius",
        Exactly("uncertified_share", 0.0),
        only=NEAR_ONE,
    ),
    Statement(
        "a certificate costs few evaluations",
        "a certified inverse computes no more than 100 evaluations of g in each block, products "
        "with J included",
        "Newton's steps with a common preconditioner; d ≤ 64 products to tighten a bound",
        Exactly("n_evaluations", MOST_EVALUATIONS),
        only=NEAR_ONE + " and lipschitz >= 0.99",
    ),
)


def certified(cells: pd.DataFrame) -> str:
    """The error of the inverse, its certificate, and its steps against Banach's count."""
    cells = measured(cells, "inverse_error", "inverse_error_bound", "n_steps", "n_steps_bound")
    cells = cells[cells["outcome"] == 0] if "outcome" in cells else cells
    if cells.empty:
        return ""
    c = telling(cells).sort_values(["dtype", "tolerance"], kind="stable").iloc[0]
    n = c["inverse_error_n"]
    return (
        f"The inverse of {named(c)} is off by {number(c['inverse_error'])} at the worst of "
        f"{n:,.0f} points. It was iterated to a tolerance of {number(c['tolerance'], 1)} on the "
        f"residual in {c['dtype']}; its residual and K = {c['lipschitz']:g} certify, without the "
        f"true inverse, an error of at most {number(c['inverse_error_bound'])}. It took "
        f"{c['n_steps']:,.0f} steps; by Banach's theorem {c['n_steps_bound']:,.0f} suffice."
    )


CLAIMS = Claims(
    metrics={
        **each(ERROR, "inverse_error", "inverse_error_bound", "residual"),
        "outcome": Metric("more"),
        "uncertified_share": Metric("more"),
        "n_evaluations": Metric("more", rtol=0.1, atol=1.0),
        "n_steps": Metric("more", rtol=0.1, atol=1.0),
        "n_steps_bound": Metric("other", rtol=0.05, atol=1.0),
        "inverse_error_banach": EXACT,
        **REALISED,
    },
    statements=STATEMENTS,
    findings=(Finding(60, certified),),
    first=FIRST,
    glossary=GLOSSARY,
)
