"""Claims about the steps of a continuous flow: margins, orders, inverses, a finding."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from resflow_bench.analysis.rules import AtLeast, Equals, Exactly
from resflow_bench.analysis.words import measured, number
from resflow_bench.lab import Claims, Finding, Metric, Statement
from suites.margins import CERTIFIED, ERROR, EXACT, FLAG, SAMPLED_NAT, each

if TYPE_CHECKING:
    import pandas as pd

ASYMPTOTIC = 64
"""Steps from which on the error is taken to fall by its power of h."""

AUDITED = (
    *("z_error", "z_error_over_tolerance", "trace_error", "trace_error_over_tolerance"),
    "n_evaluations_rk4",
)
"""Metrics of an adaptive solver at a tolerance."""

STATEMENTS = (
    Statement(
        "Euler's order is one",
        f"by Euler's method the error of log p falls at least as h^0.9, from T = {ASYMPTOTIC} on",
        "Hairer, Nørsett and Wanner (1993), theorem II.3.6",
        AtLeast("order", 0.9),
        only=f"method == 'euler' and n_solver_steps >= {ASYMPTOTIC}",
    ),
    Statement(
        "the midpoint rule's order is two",
        f"by the midpoint rule the error falls at least as h^1.8, from T = {ASYMPTOTIC} on",
        "Hairer, Nørsett and Wanner (1993), theorem II.3.6",
        AtLeast("order", 1.8),
        only=f"method == 'midpoint' and n_solver_steps >= {ASYMPTOTIC}",
    ),
    Statement(
        "the steps' log-det is unbiased",
        "where every step is a contraction, a roulette's estimate is the determinants', in mean",
        "Chen et al. (2019), theorem 1, with h Lip(u) < 1",
        Equals("log_det_error", 0.0, 0.1),
        only="is_contraction == 1",
    ),
    Statement(
        "a step within its certificate",
        "‖∂g/∂x‖₂ ≤ h L by Euler's method, h L (1 + h L / 2) by the midpoint rule, L certified",
        "the product of the layers' norms, at every time",
        Exactly("step_norm", "step_norm_certified"),
    ),
    Statement(
        "a certified contraction is inverted",
        "the fixed-point inverse of every step meets its tolerance",
        "Banach's fixed-point theorem, with a certified constant below 1",
        Exactly("outcome", 0.0),
        only="step_norm_certified < 1",
    ),
    Statement(
        "error within certificate",
        "‖x̂ − x‖ ≤ the sum over steps of residuals, each over its 1 − K and those after it",
        "‖f(x) − f(y)‖ ≥ (1 − K) ‖x − y‖, step by step",
        Exactly("error_over_bound", 1.0),
    ),
    Statement(
        "zuko's log-det within its scale",
        "the error of the log-det is at most 100 tolerances: the solver is shown a 100th of it",
        "`trace_scale` of zuko's FreeFormJacobianTransform: a yardstick, as errors of steps add up",
        Exactly("trace_error_over_tolerance", 100.0),
        only="method == 'zuko'",
    ),
)


def needed(cells: pd.DataFrame) -> str:
    """The number of steps from which a trained field's Euler steps are a residual flow."""
    cells = measured(cells, "field_norm", "step_norm", "log_prob_rms", "n_evaluations")
    cells = cells[cells["method"] == "euler"] if len(cells) else cells
    if "step_norm_certified" in cells:  # a field that was made to be one
        cells = cells[cells["step_norm_certified"].isna()]
    cells = cells[cells["is_contraction"] == 1.0] if len(cells) else cells
    if cells.empty:
        return ""
    c = cells.sort_values("n_solver_steps", kind="stable").iloc[0]
    said = (
        f"{c['n_solver_steps']:,.0f} Euler steps, of the numbers measured, are the first that make "
        f"a residual flow of {c['architecture']} on {c['dataset']}. Its field has norms up to "
        f"{number(c['field_norm'])}, and log p by these steps is off by "
        f"{number(c['log_prob_rms'])} nat"
    )
    adaptive = c.get("n_evaluations_adaptive", math.nan)
    if not math.isnan(adaptive):
        said += f"; an adaptive solver needs {adaptive:,.0f} evaluations for as little"
    return said + "."


def audited(cells: pd.DataFrame) -> str:
    """The tolerance that zuko's log-det keeps, beside the same solver with the log-det unscaled."""
    cells = measured(cells, "z_error_over_tolerance", "trace_error_over_tolerance")
    both = {"zuko", "zuko-unscaled"}
    if not len(cells) or not both <= set(cells["method"]):
        return ""
    cells = cells[cells["method"].isin(both)].sort_values("tolerance", kind="stable")
    c, unscaled = (cells[cells["method"] == method].iloc[0] for method in sorted(both))
    return (
        f"At a tolerance of {c['tolerance']:g} zuko's adaptive solver errs by "
        f"{number(c['z_error_over_tolerance'])} tolerances in z and by "
        f"{number(c['trace_error_over_tolerance'])} in the log-det. It sees the log-det divided by "
        f"100; undivided it errs by {number(unscaled['trace_error_over_tolerance'])}, for "
        f"{unscaled['n_evaluations']:,.0f} evaluations in place of {c['n_evaluations']:,.0f}."
    )


CLAIMS = Claims(
    metrics={
        **each(EXACT, "step_norm", "field_norm", "n_evaluations"),
        "is_contraction": FLAG,
        "step_norm_certified": CERTIFIED,
        **each(ERROR, "error_over_bound"),
        "outcome": Metric("more"),
        **each(Metric("more", rtol=0.01), "log_prob_rms", "trace_rms"),
        "order": Metric("less", atol=0.02),
        **each(ERROR, "fixed_point_error", "backward_error"),
        **each(Metric("more", rtol=0.05), "n_inverse_steps", "n_evaluations_adaptive"),
        "log_det_error": SAMPLED_NAT,
        **each(Metric("more", rtol=0.05), *AUDITED),
    },
    statements=STATEMENTS,
    findings=(Finding(72, needed), Finding(73, audited)),
    glossary={
        "z_error, trace_error, ..._over_tolerance": "the largest error of z and of the log-det by "
        "zuko's adaptive solver, and those over the tolerance that was asked for",
        "n_evaluations_rk4": "evaluations by the classical method in the fewest steps, a power of "
        "two, with as small an error of the log-det",
        "step_norm, field_norm": "the largest ‖∂g/∂x‖₂ of a step g = −h u along the paths, and it "
        "over h",
        "step_norm_certified": "a bound on the Lipschitz constant of every step, from the norms of "
        "the field's layers",
        "outcome, error_over_bound": "0 if the fixed-point inverse of every point converged; the "
        "largest error of x over its certified bound",
        "is_contraction": "1 if every step had a norm below 1 at these points",
        "log_prob_rms": "root mean square of log p by T steps, with their exact determinants, less "
        "log p of the differential equation",
        "trace_rms": "the same, with h tr ∂u/∂x in place of the determinants",
        "order": "log₂ of the ratio of log_prob_rms at T and at 2T steps",
        "fixed_point_error, backward_error": "the largest error of x, from the z of the steps: by "
        "the fixed-point inverse of each step, and by as many steps of the equation backwards",
        "log_det_error": "the mean of an unbiased estimate of the steps' log-det less the exact",
        "n_evaluations, n_evaluations_adaptive": "evaluations of the field a path: by the steps, "
        "and by Dormand and Prince's method at the loosest tolerance with as small an error",
    },
)
