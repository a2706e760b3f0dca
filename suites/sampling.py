"""Draws of a flow's log-determinant, and their errors, which several suites sample."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from resflow_bench import theory
from resflow_bench.flows import Flatten, Logit, ResidualFlow
from resflow_bench.intervals import (
    Interval,
    chebyshev_mean_interval,
    lower_variance_interval,
    mean_interval,
    variance_interval,
)
from resflow_bench.lab import Skip, replicates
from resflow_bench.logdet import LogDetEstimator, Probe
from resflow_bench.memory import at_once
from resflow_bench.models import Problem

EXAMPLES_PER_CALL = 512
"""Probes x points x repeats in one call: large enough to hide overhead, small enough that the
longest N of a batch is not far from the mean."""

IMAGES_PER_CALL = 64
"""A convolution's hidden layers hold many times as many numbers, which should stay in a cache."""


ROUNDING = 16.0
"""Units in the last place, relative to |log-det|, that an interval allows for rounding: d = 64
products a term, errors of random sign."""


MIN_DRAWS = 256
"""Below this many draws neither a t interval nor a skewness correction can be trusted."""


NORMAL_ORDER = 8
"""An estimate with a finite moment of this order has a variance whose own standard error has a
variance: there, and only there, Student's interval is used for it and for its mean."""


NORMAL_99, CHEBYSHEV_99 = 2.576, 10.0
"""Half-widths of intervals for a mean, in its standard deviations."""

REACHABLE = 1e-9
"""A term evaluated less often than once in 1e9 draws does not show in any experiment."""


class Errors(NamedTuple):
    """Intervals for the mean over points of E[estimate] - exact, nats, from the same draws.

    plain: of estimate - ln|det df/dx|.
    paired: of estimate - sum_blocks (1/m) sum_j v_j^T log(I + J) v_j, with the estimate's probes;
        of other blocks with the sum of their series in the place of log(I + J).
    shares: the same two means from each share of the draws.
    draws: estimate - ln|det df/dx| of each draw, (n_draws, P).
    n: examples that were drawn.
    message: why the draws ended, and which interval it is.
    """

    plain: Interval
    paired: Interval
    shares: tuple[tuple[float, ...], tuple[float, ...]]
    draws: np.ndarray
    n: int
    message: str


def sample_errors(
    problem: Problem, estimator: LogDetEstimator, max_draws: int, half_width: float, seed: int
) -> Errors:
    """Errors of as many draws as `half_width` nat asks for, at most `max_draws` examples.

    The number of draws follows from the closed-form variance, before any draw is made.
    """
    n_points = len(problem.x)
    variance = total_variance(problem, estimator).mean() / n_points  # of a draw's mean over points
    normal = estimator.truncation.moment_is_finite(problem.spectral_radius, NORMAL_ORDER)
    width = NORMAL_99 if normal else CHEBYSHEV_99
    wanted = np.ceil(width**2 * variance / half_width**2)
    n_draws = int(min(max(wanted, MIN_DRAWS), max_draws // n_points))
    estimates, forms = draw_pairs(problem, estimator, n_draws, seed)
    rounding = rounding_of(problem.x, problem.log_det)
    traces = sum(np.trace(m, axis1=-2, axis2=-1) for m in problem.logarithms)  # (P,)
    errors = estimates - problem.log_det
    paired = errors - (forms - traces)
    probe_noise = _probe_noise(problem, estimator).mean() / n_points
    reached = "as narrow as asked" if wanted <= n_draws else "budget spent"
    kind = "t" if normal else "Chebyshev's, for heavy tails"
    message = f"{reached}: {n_draws} draws at {n_points} points; interval: {kind}"
    if not np.isfinite(variance):
        message = "infinite variance: no interval for the mean exists"

    def interval(samples: np.ndarray, of_variance: float) -> Interval:
        known = None if normal else max(of_variance, 0)
        return widened(sample_mean(samples.mean(1), bool(np.isfinite(variance)), known), rounding)

    return Errors(
        interval(errors, variance),
        interval(paired, variance - probe_noise),
        (replicates(errors, np.mean), replicates(paired, np.mean)),
        errors,
        n_draws * n_points,
        message,
    )


def draw(problem: Problem, estimator: LogDetEstimator, n_draws: int, seed: int) -> np.ndarray:
    """Independent estimates of the flow's log-det: (n_draws, P), nats, float64."""
    return np.concatenate(list(_draws(problem, estimator, n_draws, seed)))


def draw_pairs(
    problem: Problem, estimator: LogDetEstimator, n_draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Estimates as `draw`, and sum_blocks (1/m) sum_j v_j^T log(I + J) v_j with their probes."""
    probe = _Remembering(estimator.probe)
    logarithms = [torch.from_numpy(m).to(problem.x.device) for m in problem.logarithms]
    estimates, forms = [], []
    for batch in _draws(problem, replace(estimator, probe=probe), n_draws, seed):
        form = torch.zeros(batch.shape, dtype=torch.float64, device=problem.x.device)
        for logarithm, probes in zip(logarithms, probe.drawn, strict=True):
            v = probes.double().view(len(probes), *batch.shape, -1)  # (m, n, P, d)
            form += torch.einsum("mnpi,pij,mnpj->np", v, logarithm, v) / len(v)
        probe.drawn.clear()
        estimates.append(batch)
        forms.append(form.cpu().numpy())
    return np.concatenate(estimates), np.concatenate(forms)


def _draws(
    problem: Problem, estimator: LogDetEstimator, n_draws: int, seed: int
) -> Iterator[np.ndarray]:
    """The estimates of `draw`, (n, P) at a time."""
    flow = problem.flow.with_estimator(estimator)
    generator = torch.Generator(problem.x.device).manual_seed(seed)
    n_points = len(problem.x)
    examples = EXAMPLES_PER_CALL if problem.x.ndim == 2 else IMAGES_PER_CALL
    per_call = max(1, at_once(examples) // (n_points * estimator.n_probes))
    for start in range(0, n_draws, per_call):
        n = min(per_call, n_draws - start)
        with torch.no_grad():
            x = problem.x.repeat(n, *[1] * (problem.x.ndim - 1))
            _, log_det = flow.forward_and_log_det(x, generator)
        yield log_det.double().view(n, n_points).cpu().numpy()


@dataclass(frozen=True)
class _Remembering:
    """A probe that records its vectors, one (m, B, d) for each block."""

    probe: Probe
    drawn: list[Tensor] = field(default_factory=list)

    def sample(self, n_probes: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
        v = self.probe.sample(n_probes, x, generator)
        self.drawn.append(v)
        return v


def total_variance(problem: Problem, estimator: LogDetEstimator) -> np.ndarray:
    """The variance of the flow's log-det, (P,): blocks draw independently, so variances add."""
    truncation, probe = estimator.truncation, with_variance(estimator.probe)
    return problem.over_blocks(
        lambda matrices, c: truncation.variance(matrices, probe, estimator.n_probes, coefficients=c)
    )


def with_variance(probe: Probe) -> theory.ProbeVariance:
    """The probe, whose variance has a closed form.

    Raises:
        Skip: it has none.
    """
    if isinstance(probe, theory.ProbeVariance):
        return probe
    raise Skip(
        f"{probe} probes have no closed form of the variance in the moments of J, which the rows "
        "are compared with; the suite efficiency measures them"
    )


def _probe_noise(problem: Problem, estimator: LogDetEstimator) -> np.ndarray:
    """Var((1/m) sum_j v_j^T log(I + J) v_j), (P,).

    A roulette's estimate has this variance and, uncorrelated with it, that of its random number of
    terms. Of a truncated estimate minus the form all moments are finite.
    """
    probe, m = with_variance(estimator.probe), estimator.n_probes
    return np.sum([theory.hutchinson_variance(x, probe, m) for x in problem.logarithms], axis=0)


def without_logit(flow: ResidualFlow, x: Tensor) -> tuple[ResidualFlow, Tensor, np.ndarray]:
    """The flow behind its logit, the points there, and the logit's log-det, (P,), nats.

    Other implementations hold no logit, and no layer that makes vectors of images. A flow without
    either is returned as it is.
    """
    layers, behind = cast("list[nn.Module]", list(flow.bijections)), x.double()
    known = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    while isinstance(first := layers[0], Logit | Flatten):
        with torch.no_grad():
            behind, log_det = first.forward_and_log_det(behind)
        layers, known = layers[1:], known + log_det
    if len(layers) == len(flow.bijections):
        return flow, x, np.zeros(len(x))
    return ResidualFlow(layers, tuple(behind.shape[1:])), behind.to(x), known.cpu().numpy()


def rounding_of(x: Tensor, log_det: np.ndarray) -> float:
    """Nats by which rounding may move an estimate of log_det, (P,), in the dtype of x."""
    return ROUNDING * torch.finfo(x.dtype).eps * max(1.0, float(np.abs(log_det).max()))


def widened(interval: Interval, by: float) -> Interval:
    """The interval, longer by so much at either end."""
    return interval._replace(low=interval.low - by, high=interval.high + by)


def sample_mean(samples: np.ndarray, finite: bool, variance: float | None) -> Interval:
    """The mean of samples (n,): Student's interval, or Chebyshev's by the variance of a sample.

    finite: whether their variance is; else no interval exists.
    """
    if not finite:
        return Interval(float(samples.mean()), math.nan, -math.inf, math.inf, len(samples))
    if variance is None:
        return mean_interval(samples)
    return chebyshev_mean_interval(samples, variance)


def sample_variance(draws: np.ndarray, is_normal: bool, rounding: float = 0.0) -> Interval:
    """The variance of draws (n, P), mean over points; each may be off by `rounding`.

    is_normal: whether the moment of order `NORMAL_ORDER` is finite; else there is no upper limit.
    """
    found = variance_interval(draws) if is_normal else lower_variance_interval(draws)
    found = widened(found, rounding * (2 * math.sqrt(found.value) + rounding))
    return found._replace(low=max(0.0, found.low))
