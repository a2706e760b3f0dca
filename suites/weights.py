"""Importance weights w = exp(e), e = estimate - truth of a log-det: what two suites say of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from scipy.special import logsumexp

from resflow_bench import theory
from resflow_bench.intervals import CLIP, Interval, mean_interval
from resflow_bench.lab import Observation, exactly, observe, replicates
from resflow_bench.logdet import Fixed, Gaussian, LogDetEstimator
from resflow_bench.models import Problem
from suites.sampling import rounding_of, total_variance

EVERY_ORDER = 64
"""An estimate with a finite moment of this order is taken to have all of them. One without has no
finite E[exp(e)] or no finite E[exp(-e)]."""

SKEWED = 0.1
"""Skewness of the weights, over the square root of their number, above which a t interval misses
more often than it should: 1.1 % instead of 1 % for log-normal weights."""

MESSAGES = {
    True: "interval: t",
    False: "one-sided interval: the weights' tail is too heavy for an upper limit",
}

LogMoment = Callable[[float], float]
"""ln E[w^t], a function of t; the mean is over the points and the draws."""


def log_moment_of(problem: Problem, estimator: LogDetEstimator) -> LogMoment:
    """Exact for fixed terms and Gaussian probes; else for normal errors of the exact bias and
    variance of each point, an approximation.
    """
    truncation, m = estimator.truncation, estimator.n_probes
    bias = problem.over_blocks(truncation.bias)  # (P,)
    variance = total_variance(problem, estimator)  # (P,)

    def log_moment(order: float) -> float:
        if isinstance(truncation, Fixed) and isinstance(estimator.probe, Gaussian):
            series = truncation.n_terms
            logs = problem.over_blocks(
                lambda j, c: theory.gaussian_log_moment(
                    order, theory.series(j, series, coefficients=c), m
                )
            )
            logs = logs - order * problem.log_det
        else:
            logs = theory.normal_log_moment(order, bias, variance)
        return float(logsumexp(logs)) - math.log(len(logs))

    return log_moment


def observe_weight_bias(
    problem: Problem, estimator: LogDetEstimator, errors: np.ndarray
) -> Iterator[Observation]:
    """ln E[w] from errors e, (n, P): its estimate, and its closed form."""
    log_moment = log_moment_of(problem, estimator)
    is_light = _is_light(log_moment, 1.0, errors.size) and _has_moments(problem, estimator)
    by = rounding_of(problem.x, problem.log_det)
    (mean, error, low, high, n), top, clip = _interval(errors, is_light, _mean)
    with np.errstate(divide="ignore"):
        ends = np.add(np.log(np.maximum([mean, low, high], 0.0)), [top, clip, top])
    value, low, high = (float(end) for end in ends)
    interval = Interval(value, error / mean, low - by, high + by, n)
    shares = replicates(errors, lambda e: float(logsumexp(e)) - math.log(e.size))
    message = MESSAGES[is_light]
    yield observe("weight_bias", interval, "nat", errors.size, message, replicates=shares)
    yield exactly("weight_bias_expected", log_moment(1.0), "nat")


def observe_ess_loss(
    problem: Problem, estimator: LogDetEstimator, errors: np.ndarray
) -> Iterator[Observation]:
    """1 - ESS/n = 1 - E[w]^2/E[w^2] from errors e, (n, P): its estimate, and its closed form."""
    log_moment = log_moment_of(problem, estimator)
    is_light = _is_light(log_moment, 2.0, errors.size) and _has_moments(problem, estimator)
    by = 4.0 * rounding_of(problem.x, problem.log_det)  # ln(E[w]^2/E[w^2]) moves by as much
    (value, error, low, high, n), *_ = _interval(errors, is_light, _loss)
    interval = Interval(value, error, max(0.0, low - by), min(1.0, high + by), n)
    shares = replicates(errors, lambda e: float(_loss(np.exp(e - e.max())).mean()))
    message = MESSAGES[is_light]
    yield observe("ess_loss", interval, "1", errors.size, message, replicates=shares)
    yield exactly("ess_loss_expected", theory.ess_loss(log_moment(1.0), log_moment(2.0)), "1")


def _mean(weights: np.ndarray) -> np.ndarray:
    """Numbers (n,) whose mean is that of the weights (n, P)."""
    return np.asarray(weights.mean(1))


def _loss(weights: np.ndarray) -> np.ndarray:
    """Numbers (n,) whose mean is 1 - mean(w)^2/mean(w^2) and whose spread is, to first order, its
    error (the delta method).
    """
    first, second = weights.mean(), (weights**2).mean()
    ratio = first**2 / second
    return np.asarray(1.0 - ratio * (2.0 * weights / first - weights**2 / second).mean(1))


def _interval(
    errors: np.ndarray, is_light: bool, of: Callable[[np.ndarray], np.ndarray]
) -> tuple[Interval, float, float]:
    """The mean of `of(w)`, w = exp(e - max e), and max e; Student's interval, or open above.

    Where the tail is too heavy, errors above the `CLIP` quantile c are set to it. That lowers E[w],
    and it lowers 1 - E[w]^2/E[w^2], as min(w, c)/w falls with w (the Lorenz order). So a lower
    limit of either stays one. It is that of `of(exp(e - c))`, where the largest error may be so
    large that all other w are zero; the third number is c, or max e again.
    """
    top = float(errors.max())
    interval = mean_interval(of(np.exp(errors - top)))
    if is_light:
        return interval, top, top
    clip = float(np.quantile(errors, CLIP))
    clipped = mean_interval(of(np.exp(np.minimum(errors, clip) - clip)))
    return interval._replace(standard_error=math.nan, low=clipped.low, high=math.inf), top, clip


def _has_moments(problem: Problem, estimator: LogDetEstimator) -> bool:
    return estimator.truncation.moment_is_finite(problem.spectral_radius, EVERY_ORDER)


def _is_light(log_moment: LogMoment, power: float, n: int) -> bool:
    """True if the skewness of w^power over sqrt(n) is at most `SKEWED`."""
    first, second, third = (log_moment(k * power) for k in (1, 2, 3))
    if not third - 3.0 * first < 700.0:  # e^700 is near the largest float; inf - inf is NaN
        return False
    second, third = math.exp(second - 2.0 * first), math.exp(third - 3.0 * first)
    spread = max(second - 1.0, 1e-8)  # below, the difference is rounding
    return (third - 3.0 * second + 2.0) / spread**1.5 <= SKEWED * math.sqrt(n)
