"""The variance of an estimate of the log-determinant."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from resflow_bench import theory
from resflow_bench.intervals import lower_variance_interval, variance_interval
from resflow_bench.lab import Cell, Context, Observation, exactly, observe, replicates
from resflow_bench.logdet import Fixed, LogDetEstimator, Roulette
from resflow_bench.models import Problem, build_estimator, build_problem, realised
from suites.sampling import MIN_DRAWS, NORMAL_ORDER, draw, rounding_of, total_variance, widened

REACHABLE = 1e-9
"""A term evaluated less often than once in 1e9 draws does not show in any experiment."""


def measure_variance(cell: Cell, context: Context) -> Iterable[Observation]:
    """The per-example variance, mean over points, against its closed form and three bounds."""
    problem = build_problem(cell, context.results, int(context.effort["n_points"]))
    estimator = build_estimator(cell)
    truncation, m = estimator.truncation, estimator.n_probes
    n_points = len(problem.x)
    expected = total_variance(problem, estimator).mean()
    finite = bool(np.isfinite(expected))

    n_draws = max(MIN_DRAWS, int(context.effort["max_draws"]) // n_points)
    estimates = draw(problem, estimator, n_draws, context.generator_seed(cell))
    if truncation.moment_is_finite(problem.spectral_radius, NORMAL_ORDER):
        interval, message = variance_interval(estimates), ""
    else:
        interval = lower_variance_interval(estimates)
        message = (
            "the eighth moment is infinite: the interval is one-sided"
            if finite
            else "infinite variance: the sample variance grows with the number of draws"
        )
    rounding = rounding_of(problem)
    interval = widened(interval, rounding * (2 * math.sqrt(interval.value) + rounding))
    low = max(0.0, interval.low)
    shares = replicates(estimates, lambda share: share.var(0, ddof=1).mean())
    interval = interval._replace(low=low)
    yield observe("variance", interval, "nat^2", n_draws * n_points, message, replicates=shares)
    yield exactly("variance_expected", expected, "nat^2")
    yield exactly("variance_is_finite", float(finite), "1")
    yield exactly("variance_reachable", _reachable(problem, estimator).mean(), "nat^2")
    bound = problem.over_blocks(lambda matrices: truncation.variance_bound(matrices, m)).mean()
    yield exactly("variance_bound", bound, "nat^2")
    k = cell["lipschitz"]
    uniform = problem.over_dims(lambda d: truncation.variance_bound_lipschitz(k, d, m))
    yield exactly("variance_bound_lipschitz", uniform, "nat^2")
    if isinstance(truncation, Fixed):
        n_terms = truncation.n_terms
        printed = problem.over_dims(lambda d: float(theory.printed_variance_bound(d, n_terms, m)))
        yield exactly("variance_bound_printed", printed, "nat^2")
    yield from realised(problem.norm, problem.spectral_radius)


def _reachable(problem: Problem, estimator: LogDetEstimator) -> np.ndarray:
    """The part of the variance from terms that are evaluated in at least one of 1e9 draws, (P,)."""
    truncation = estimator.truncation
    if not isinstance(truncation, Roulette):
        return total_variance(problem, estimator)
    return problem.over_blocks(
        lambda matrices: theory.roulette_variance(
            matrices, truncation, estimator.probe, estimator.n_probes, REACHABLE
        )
    )
