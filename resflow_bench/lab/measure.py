"""What is observed: estimates against the truth, errors against bounds, seconds against FLOPs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from resflow_bench import theory
from resflow_bench.fixed_point import Outcome, Solution
from resflow_bench.flows import ResidualBlock, ResidualFlow, ToTolerance, bijection
from resflow_bench.intervals import (
    Interval,
    chebyshev_mean_interval,
    lower_variance_interval,
    mean_interval,
    variance_interval,
)
from resflow_bench.lab.cells import Cell, Context, Failure, Observation
from resflow_bench.logdet import Fixed, LogDetEstimator, Probe, Roulette
from resflow_bench.models.build import (
    Problem,
    build_estimator,
    build_flow,
    build_points,
    build_problem,
    dense_truth,
    sizes,
)

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

TAME = 8
"""An estimate with a finite moment of this order has a variance whose own standard error has a
variance: there, and only there, Student's interval is used for it and for its mean."""

N_REPLICATES = 16
"""Shares of a cell's draws that are kept: enough for Student's t, few enough to store."""

NORMAL_99 = 2.576
CHEBYSHEV_99 = 10.0

REACHABLE = 1e-9
"""A term evaluated less often than once in 1e9 draws does not show in any experiment."""


def measure_bias(cell: Cell, context: Context) -> Iterable[Observation]:
    """Mean over points and draws of estimate - exact, against the value computed from J.

    `bias` is that. `bias_paired` is the mean of estimate - (1/m) sum_j v_j^T log(I + J) v_j with
    the very probes of the estimate: the same mean, for any probe with E v v^T = I, but without the
    noise of the probes, which hides a small bias.

    Draws are taken until the 99 % interval of `bias` is `half_width` nat to either side, or
    `max_draws` examples have been spent. How many that takes is known beforehand from the
    closed-form variance, so no draw is looked at before the number is fixed.
    """
    problem = build_problem(cell, context.results, int(context.effort["n_points"]))
    estimator = build_estimator(cell)
    sampled = sample_errors(
        problem,
        estimator,
        max_draws=int(context.effort["max_draws"]),
        half_width=context.effort["half_width"],
        seed=context.generator_seed(cell),
    )
    expected = problem.over_blocks(estimator.truncation.bias)  # (P,)
    bound = problem.over_dims(lambda dim: estimator.truncation.bias_bound(cell["lipschitz"], dim))
    intervals = (sampled.plain, sampled.paired)
    for metric, interval, shares in zip(
        ("bias", "bias_paired"), intervals, sampled.shares, strict=True
    ):
        yield observe(metric, interval, "nat", sampled.n, sampled.message, replicates=shares)
    yield exactly("bias_expected", expected.mean(), "nat")
    yield exactly("bias_bound", bound, "nat")
    yield exactly("log_det_exact", problem.log_det.mean(), "nat")
    yield from realised(problem.norm, problem.spectral_radius)


class Errors(NamedTuple):
    """Intervals for the mean over points of E[estimate] - exact, nats, from the same draws.

    plain: of estimate - ln|det df/dx|.
    paired: of estimate - sum_blocks (1/m) sum_j v_j^T log(I + J) v_j, with the estimate's probes.
    shares: the same two means from each share of the draws.
    n: examples that were drawn.
    message: why the draws ended, and which interval it is.
    """

    plain: Interval
    paired: Interval
    shares: tuple[tuple[float, ...], tuple[float, ...]]
    n: int
    message: str


def sample_errors(
    problem: Problem, estimator: LogDetEstimator, max_draws: int, half_width: float, seed: int
) -> Errors:
    """Draws as `measure_bias` says, until `half_width` nat or `max_draws` examples are reached."""
    n_points = len(problem.x)
    variance = _total_variance(problem, estimator).mean() / n_points  # of a draw's mean over points
    normal = estimator.truncation.moment_is_finite(problem.spectral_radius, TAME)
    width = NORMAL_99 if normal else CHEBYSHEV_99
    wanted = np.ceil(width**2 * variance / half_width**2)
    n_draws = int(min(max(wanted, MIN_DRAWS), max_draws // n_points))
    estimates, forms = draw_pairs(problem, estimator, n_draws, seed)
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
        means = samples.mean(1)  # (n_draws,)
        if not np.isfinite(variance):
            return Interval(float(means.mean()), math.nan, -math.inf, math.inf, n_draws)
        found = (
            mean_interval(means) if normal else chebyshev_mean_interval(means, max(of_variance, 0))
        )
        return _widen(found, _rounding(problem))

    return Errors(
        interval(errors, variance),
        interval(paired, variance - probe_noise),
        (replicates(errors, np.mean), replicates(paired, np.mean)),
        n_draws * n_points,
        message,
    )


def measure_variance(cell: Cell, context: Context) -> Iterable[Observation]:
    """The per-example variance, mean over points, against its closed form and three bounds."""
    problem = build_problem(cell, context.results, int(context.effort["n_points"]))
    estimator = build_estimator(cell)
    truncation, m = estimator.truncation, estimator.n_probes
    n_points = len(problem.x)
    expected = _total_variance(problem, estimator).mean()
    finite = bool(np.isfinite(expected))

    n_draws = max(MIN_DRAWS, int(context.effort["max_draws"]) // n_points)
    estimates = draw(problem, estimator, n_draws, context.generator_seed(cell))
    if truncation.moment_is_finite(problem.spectral_radius, TAME):
        interval, message = variance_interval(estimates), ""
    else:
        interval = lower_variance_interval(estimates)
        message = (
            "the eighth moment is infinite: the interval is one-sided"
            if finite
            else "infinite variance: the sample variance grows with the number of draws"
        )
    rounding = _rounding(problem)
    interval = _widen(interval, rounding * (2 * math.sqrt(interval.value) + rounding))
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


def measure_inverse(cell: Cell, context: Context) -> Iterable[Observation]:
    """max ||x^ - x|| over points, against the certificate, Banach's rate and the steps it needs.

    The truth is the inverse of the same parameters in float64, to rounding.
    """
    flow = build_flow(cell, context.results)
    z = flow(build_points(cell, int(context.effort["n_points"])))
    tolerance = cell["tolerance"]
    inversion = ToTolerance(rtol=tolerance, atol=tolerance, max_steps=cell["max_steps"])
    solution = flow.inverse(z, inversion)
    truth = copy.deepcopy(flow).double().inverse(z.double(), ToTolerance(max_steps=100_000))
    error = (solution.value.double() - truth.value).flatten(1).norm(dim=1)
    # What is known of the truth itself is charged to the bound's side of the comparison.
    bound = _bound(solution) + _bound(truth)
    if not bool(torch.isfinite(bound).all()):
        raise Failure(
            f"lipschitz={cell['lipschitz']} is 1 or more once rounded to {cell['dtype']}: nothing "
            "can be certified; take a smaller constant or a finer dtype"
        )
    banach, steps = _banach(flow, truth.value.to(z.dtype), inversion, tolerance)

    n = len(z)
    yield Observation("inverse_error", float(error.max()), "1", n=n)
    yield Observation("inverse_error_bound", float(bound.max()), "1", n=n)
    yield Observation("error_over_bound", float((error / bound).max()), "1", n=n)
    yield Observation("residual", float(solution.residual.max()), "1", n=n)
    yield Observation("n_steps", float(solution.n_steps.max()), "steps", n=n)
    if tolerance:
        yield Observation("n_steps_bound", float(steps.max()), "steps", n=n)
    else:
        yield Observation("inverse_error_banach", float(banach.max()), "1", n=n)
    worst = Outcome(int(solution.outcome.max()))
    yield Observation("outcome", float(worst), "1", n=n, message=worst.name.lower())
    jacobians, _ = dense_truth(flow, truth.value.to(z.dtype))
    yield from realised(*sizes(jacobians))


def measure_lipschitz(cell: Cell, context: Context) -> Iterable[Observation]:
    """Promised, certified and realised constants of the worst block."""
    problem = build_problem(cell, context.results, int(context.effort["n_points"]))
    certified = max(block.branch.lipschitz_certified() for block in problem.flow.blocks)
    as_left = build_flow(cell, context.results, aligned=False)
    unaligned = max(block.branch.lipschitz_certified() for block in as_left.blocks)
    yield exactly("lipschitz_promised", cell["lipschitz"], "1")
    yield exactly("lipschitz_certified", certified, "1")
    yield exactly("lipschitz_power_iteration", unaligned, "1")
    yield exactly("lipschitz_realised", problem.norm, "1")
    yield exactly("spectral_radius", problem.spectral_radius, "1")


def draw(problem: Problem, estimator: LogDetEstimator, n_draws: int, seed: int) -> np.ndarray:
    """Independent estimates of the flow's log-det: (n_draws, P), nats, float64."""
    return np.concatenate(list(_draws(problem, estimator, n_draws, seed)))


def draw_pairs(
    problem: Problem, estimator: LogDetEstimator, n_draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same estimates, and sum_blocks (1/m) sum_j v_j^T log(I + J) v_j with their probes."""
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
    """(n, P) at a time."""
    flow = problem.flow.with_estimator(estimator)
    generator = torch.Generator(problem.x.device).manual_seed(seed)
    n_points = len(problem.x)
    examples = EXAMPLES_PER_CALL if problem.x.ndim == 2 else IMAGES_PER_CALL
    per_call = max(1, examples // (n_points * estimator.n_probes))
    for start in range(0, n_draws, per_call):
        n = min(per_call, n_draws - start)
        with torch.no_grad():
            x = problem.x.repeat(n, *[1] * (problem.x.ndim - 1))
            _, log_det = flow.forward_and_log_det(x, generator)
        yield log_det.double().view(n, n_points).cpu().numpy()


@dataclass(frozen=True)
class _Remembering:
    """A probe that keeps what it drew, one (m, B, d) a block."""

    probe: Probe
    drawn: list[Tensor] = field(default_factory=list)

    def sample(self, n_probes: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
        v = self.probe.sample(n_probes, x, generator)
        self.drawn.append(v)
        return v

    def variance(self, moments: theory.Moments, n_probes: int) -> np.ndarray:
        return self.probe.variance(moments, n_probes)


def _total_variance(problem: Problem, estimator: LogDetEstimator) -> np.ndarray:
    """Of the flow's log-det, (P,): the blocks draw independently, so their variances add."""
    truncation = estimator.truncation
    return problem.over_blocks(
        lambda matrices: truncation.variance(matrices, estimator.probe, estimator.n_probes)
    )


def _probe_noise(problem: Problem, estimator: LogDetEstimator) -> np.ndarray:
    """Var((1/m) sum_j v_j^T log(I + J) v_j), (P,).

    A roulette's estimate has this and its own noise, uncorrelated; a truncated one's distance from
    the form is tame, so that its own variance is never asked for.
    """
    probe, m = estimator.probe, estimator.n_probes
    return np.sum([theory.hutchinson_variance(x, probe, m) for x in problem.logarithms], axis=0)


def _reachable(problem: Problem, estimator: LogDetEstimator) -> np.ndarray:
    """The variance from terms that are evaluated at least once in 1e9 draws, (P,)."""
    truncation = estimator.truncation
    if not isinstance(truncation, Roulette):
        return _total_variance(problem, estimator)
    return problem.over_blocks(
        lambda matrices: theory.roulette_variance(
            matrices, truncation, estimator.probe, estimator.n_probes, REACHABLE
        )
    )


def _banach(
    flow: ResidualFlow, x: Tensor, inversion: ToTolerance, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Before any step: Banach's bound on the error after `max_steps`, and the steps that suffice.

    Block by block, ||x_n - x*|| <= (K^n ||g(z)|| + error in z + rounding) / (1 - K), where the
    working dtype charges `flows.bijection.ROUNDING` units in the last place of the numbers' size;
    and the residual falls below the tolerance once K^n ||g(z)|| does. A block whose z is off by e
    begins at ||g(z)|| + K e. Latents of an earlier scale have no error, so that one number carries
    the error of the rest through all scales. x (B, *event), what is to be found; (B,), (B,).
    """
    ulps = bijection.ROUNDING * torch.finfo(x.dtype).eps
    error = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    steps = torch.zeros_like(error)
    for layer, inputs in reversed(list(flow.inputs(x))):
        z = layer(inputs)
        if isinstance(layer, ResidualBlock):
            k = layer.branch.lipschitz_certified()
            first = _norm(layer.branch(z)) + k * error
            found = _norm(inputs)
            error = (k**inversion.max_steps * first + error + ulps * (_norm(z) + found)) / (1 - k)
            # ||x_n|| >= ||x|| - ||x_n - x||, and the last is at most the residual over 1 - K.
            asked = tolerance * (1 + found) / (1 + tolerance / (1 - k))
            steps += (torch.log(asked / first) / math.log(k)).ceil().clamp_min(0)
        else:
            error = _bound(bijection.as_bijection(layer).inverse(z, inversion, error))
    return error, steps


def _norm(x: Tensor) -> Tensor:
    """||x||_2 over the event, float64, (B,)."""
    return x.double().flatten(1).norm(dim=1)


def _bound(solution: Solution) -> Tensor:
    assert solution.error_bound is not None  # asked for, wherever this is called
    return solution.error_bound


def _rounding(problem: Problem) -> float:
    eps = torch.finfo(problem.x.dtype).eps
    return ROUNDING * eps * max(1.0, float(np.abs(problem.log_det).max()))


def _widen(interval: Interval, by: float) -> Interval:
    return interval._replace(low=interval.low - by, high=interval.high + by)


def observe(
    metric: str,
    interval: Interval,
    unit: str,
    n: int,
    message: str = "",
    picture: bytes | None = None,
    replicates: tuple[float, ...] = (),
) -> Observation:
    """Something sampled, with its interval."""
    value, standard_error, low, high, _ = interval
    return Observation(
        metric, value, unit, standard_error, low, high, n, message, picture, replicates
    )


def replicates(draws: np.ndarray, of: Callable[[np.ndarray], float]) -> tuple[float, ...]:
    """`of` each of `N_REPLICATES` equal shares of the draws, (n, P), in their order."""
    shares = np.array_split(draws, min(N_REPLICATES, len(draws) // 2))
    return tuple(float(of(share)) for share in shares)


def exactly(metric: str, value: float, unit: str) -> Observation:
    """Something computed, not sampled."""
    value = float(value)
    return Observation(metric, value, unit, 0.0, value, value)


def realised(norm: float, spectral_radius: float) -> Iterable[Observation]:
    """What the data meet of the promise, as every suite's rows say it."""
    yield exactly("norm_realised", norm, "1")
    yield exactly("spectral_radius", spectral_radius, "1")
