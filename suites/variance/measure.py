"""The variance of an estimate of the log-determinant."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from resflow_bench import theory
from resflow_bench.lab import Cell, Context, Observation, exactly, observe, replicates
from resflow_bench.logdet import Fixed, LogDetEstimator, Roulette
from resflow_bench.models import Problem, build_estimator, build_problem, convergent, realised
from suites import sampling
from suites.weights import observe_ess_loss


def measure_variance(cell: Cell, context: Context) -> Iterable[Observation]:
    """The per-example variance, mean over points, against its closed form and three bounds.

    `ess_loss` is the share of the effective sample size that importance weights
    exp(estimate - exact) lose, from the same draws.
    """
    problem = convergent(build_problem(cell, context.results, int(context.effort["n_points"])))
    estimator = build_estimator(cell)
    truncation, m = estimator.truncation, estimator.n_probes
    n_points = len(problem.x)
    expected = sampling.total_variance(problem, estimator).mean()
    finite = bool(np.isfinite(expected))

    n_draws = max(sampling.MIN_DRAWS, int(context.effort["max_draws"]) // n_points)
    estimates = sampling.draw(problem, estimator, n_draws, context.generator_seed(cell))
    is_normal = truncation.moment_is_finite(problem.spectral_radius, sampling.NORMAL_ORDER)
    message = "" if is_normal else "the eighth moment is infinite: the interval is one-sided"
    if not (is_normal or finite):
        message = "infinite variance: the sample variance grows with the number of draws"
    rounding = sampling.rounding_of(problem.x, problem.log_det)
    interval = sampling.sample_variance(estimates, is_normal, rounding)
    shares = replicates(estimates, lambda share: share.var(0, ddof=1).mean())
    yield observe("variance", interval, "nat^2", n_draws * n_points, message, replicates=shares)
    yield exactly("variance_expected", expected, "nat^2")
    yield exactly("variance_is_finite", float(finite), "1")
    yield exactly("variance_reachable", _reachable(problem, estimator).mean(), "nat^2")
    bound = problem.over_blocks(lambda j, c: truncation.variance_bound(j, m, coefficients=c))
    yield exactly("variance_bound", bound.mean(), "nat^2")
    uniform = math.inf  # none is claimed for a flow without a promise
    if problem.is_promised:
        k = cell["lipschitz"]
        uniform = problem.over_dims(
            lambda d, c: truncation.variance_bound_lipschitz(k, d, m, coefficients=c)
        )
    yield exactly("variance_bound_lipschitz", uniform, "nat^2")
    # What was printed is about ln|det(I + J)|, or its negative.
    if isinstance(truncation, Fixed) and not any(c.minus for c in problem.coefficients):
        n_terms = truncation.n_terms
        printed = problem.over_dims(lambda d, _: theory.printed_variance_bound(d, n_terms, m))
        yield exactly("variance_bound_printed", printed, "nat^2")
    yield from observe_ess_loss(problem, estimator, estimates - problem.log_det)
    yield from realised(problem.norm, problem.spectral_radius)


def _reachable(problem: Problem, estimator: LogDetEstimator) -> np.ndarray:
    """The part of the variance from terms that are evaluated in at least one of 1e9 draws, (P,)."""
    truncation, probe = estimator.truncation, sampling.with_variance(estimator.probe)
    if not isinstance(truncation, Roulette):
        return sampling.total_variance(problem, estimator)
    return problem.over_blocks(
        lambda matrices, c: theory.roulette_variance(
            matrices,
            truncation,
            probe,
            estimator.n_probes,
            sampling.REACHABLE,
            coefficients=c,
        )
    )
