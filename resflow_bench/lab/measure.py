"""What is observed: estimates against the truth, errors against bounds, seconds against FLOPs."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from resflow_bench import theory
from resflow_bench.fixed_point import Outcome, Solution
from resflow_bench.flows import Inversion, ResidualBlock, ResidualFlow, residual
from resflow_bench.intervals import (
    Interval,
    chebyshev_mean_interval,
    lower_variance_interval,
    mean_interval,
    variance_interval,
)
from resflow_bench.lab.build import (
    Problem,
    build_estimator,
    build_flow,
    build_points,
    build_problem,
    dense_truth,
    sizes,
)
from resflow_bench.lab.cells import Cell, Context, Failure, Observation
from resflow_bench.logdet import Fixed, LogDetEstimator, Probe, Roulette

EXAMPLES_PER_CALL = 512
"""Probes x points x repeats in one call: large enough to hide overhead, small enough that the
longest N of a batch is not far from the mean."""

ROUNDING = 16.0
"""Units in the last place, relative to |log-det|, that an interval allows for rounding: d = 64
products a term, errors of random sign."""

MIN_DRAWS = 256
"""Below this many draws neither a t interval nor a skewness correction can be trusted."""

TAME = 8
"""An estimate with a finite moment of this order has a variance whose own standard error has a
variance: there, and only there, Student's interval is used for it and for its mean."""

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
    per_point = _total_variance(problem, estimator)
    expected = estimator.truncation.bias(problem.jacobians).sum(-1)  # (P,)
    bound = len(problem.flow.blocks) * estimator.truncation.bias_bound(
        cell["lipschitz"], cell["dim"]
    )

    n_points = len(problem.x)
    variance = per_point.mean() / n_points  # of one draw's mean over the points
    normal = estimator.truncation.moment_is_finite(problem.spectral_radius, TAME)
    width = NORMAL_99 if normal else CHEBYSHEV_99
    budget = int(context.effort["max_draws"]) // n_points
    wanted = np.ceil(width**2 * variance / context.effort["half_width"] ** 2)
    n_draws = int(min(max(wanted, MIN_DRAWS), budget))
    estimates, forms = draw_pairs(problem, estimator, n_draws, context.generator_seed(cell))
    traces = np.trace(problem.logarithms, axis1=-2, axis2=-1).sum(-1)  # (P,)
    probe_noise = _probe_noise(problem, estimator).mean() / n_points
    reached = "as narrow as asked" if wanted <= n_draws else "budget spent"
    kind = "t" if normal else "Chebyshev's, for heavy tails"
    for metric, errors, theirs in (
        ("bias", estimates - problem.log_det, variance),
        ("bias_paired", estimates - problem.log_det - (forms - traces), variance - probe_noise),
    ):
        means = errors.mean(1)  # (n_draws,)
        if not np.isfinite(variance):
            interval = Interval(float(means.mean()), math.nan, -math.inf, math.inf, n_draws)
            message = "infinite variance: no interval for the mean exists"
        else:
            interval = (
                mean_interval(means) if normal else chebyshev_mean_interval(means, max(theirs, 0.0))
            )
            interval = _widen(interval, _rounding(cell, problem))
            message = f"{reached}: {n_draws} draws at {n_points} points; interval: {kind}"
        yield _observe(metric, interval, "nat", n=n_draws * n_points, message=message)
    yield _exactly("bias_expected", expected.mean(), "nat")
    yield _exactly("bias_bound", bound, "nat")
    yield _exactly("log_det_exact", problem.log_det.mean(), "nat")
    yield from realised(problem.norm, problem.spectral_radius)


def measure_variance(cell: Cell, context: Context) -> Iterable[Observation]:
    """The per-example variance, mean over points, against its closed form and three bounds."""
    problem = build_problem(cell, context.results, int(context.effort["n_points"]))
    estimator = build_estimator(cell)
    truncation, m = estimator.truncation, estimator.n_probes
    n_points, n_blocks = len(problem.x), len(problem.flow.blocks)
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
    rounding = _rounding(cell, problem)
    interval = _widen(interval, rounding * (2 * math.sqrt(interval.value) + rounding))
    low = max(0.0, interval.low)
    yield _observe(
        "variance", interval._replace(low=low), "nat^2", n=n_draws * n_points, message=message
    )
    yield _exactly("variance_expected", expected, "nat^2")
    yield _exactly("variance_is_finite", float(finite), "1")
    yield _exactly("variance_reachable", _reachable(problem, estimator).mean(), "nat^2")
    bound = truncation.variance_bound(problem.jacobians, m).sum(-1).mean()
    yield _exactly("variance_bound", bound, "nat^2")
    k, d = cell["lipschitz"], cell["dim"]
    uniform = n_blocks * truncation.variance_bound_lipschitz(k, d, m)
    yield _exactly("variance_bound_lipschitz", uniform, "nat^2")
    if isinstance(truncation, Fixed):
        printed = n_blocks * float(theory.printed_variance_bound(d, truncation.n_terms, m))
        yield _exactly("variance_bound_printed", printed, "nat^2")
    yield from realised(problem.norm, problem.spectral_radius)


def measure_inverse(cell: Cell, context: Context) -> Iterable[Observation]:
    """max ||x^ - x|| over points, against the certificate, Banach's rate and the steps it needs.

    The truth is the inverse of the same parameters in float64, to rounding.
    """
    flow = build_flow(cell, context.results)
    z = flow(build_points(cell, int(context.effort["n_points"])))
    tolerance = cell["tolerance"]
    inversion = Inversion(rtol=tolerance, atol=tolerance, max_steps=cell["max_steps"])
    solution = flow.inverse(z, inversion)
    truth = copy.deepcopy(flow).double().inverse(z.double(), Inversion(max_steps=100_000))
    error = (solution.value.double() - truth.value).norm(dim=1)
    # What is known of the truth itself is charged to the bound's side of the comparison.
    bound = _bound(solution) + _bound(truth)
    if not bool(torch.isfinite(bound).all()):
        raise Failure(
            f"lipschitz={cell['lipschitz']} is 1 or more once rounded to {cell['dtype']}: nothing "
            "can be certified; take a smaller constant or a finer dtype"
        )
    banach, steps = _banach(flow, z, inversion, tolerance)

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
    yield _exactly("lipschitz_promised", cell["lipschitz"], "1")
    yield _exactly("lipschitz_certified", certified, "1")
    yield _exactly("lipschitz_power_iteration", unaligned, "1")
    yield _exactly("lipschitz_realised", problem.norm, "1")
    yield _exactly("spectral_radius", problem.spectral_radius, "1")


def draw(problem: Problem, estimator: LogDetEstimator, n_draws: int, seed: int) -> np.ndarray:
    """Independent estimates of the flow's log-det: (n_draws, P), nats, float64."""
    return np.concatenate(list(_draws(problem, estimator, n_draws, seed)))


def draw_pairs(
    problem: Problem, estimator: LogDetEstimator, n_draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same estimates, and sum_blocks (1/m) sum_j v_j^T log(I + J) v_j with their probes."""
    probe = _Remembering(estimator.probe)
    logarithms = torch.from_numpy(problem.logarithms).to(problem.x.device)
    estimates, forms = [], []
    for batch in _draws(problem, replace(estimator, probe=probe), n_draws, seed):
        form = torch.zeros(batch.shape, dtype=torch.float64, device=problem.x.device)
        for block, probes in enumerate(probe.drawn):
            v = probes.double().view(len(probes), *batch.shape, -1)  # (m, n, P, d)
            form += torch.einsum("mnpi,pij,mnpj->np", v, logarithms[:, block], v) / len(v)
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
    per_call = max(1, EXAMPLES_PER_CALL // (n_points * estimator.n_probes))
    for start in range(0, n_draws, per_call):
        n = min(per_call, n_draws - start)
        with torch.no_grad():
            _, log_det = flow.forward_and_log_det(problem.x.repeat(n, 1), generator)
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

    def variance(self, moments: theory.Moments) -> np.ndarray:
        return self.probe.variance(moments)


def _total_variance(problem: Problem, estimator: LogDetEstimator) -> np.ndarray:
    """Of the flow's log-det, (P,): the blocks draw independently, so their variances add."""
    return estimator.truncation.variance(
        problem.jacobians, estimator.probe, estimator.n_probes
    ).sum(-1)


def _probe_noise(problem: Problem, estimator: LogDetEstimator) -> np.ndarray:
    """Var((1/m) sum_j v_j^T log(I + J) v_j), (P,).

    A roulette's estimate has this and its own noise, uncorrelated; a truncated one's distance from
    the form is tame, so that its own variance is never asked for.
    """
    return theory.hutchinson_variance(problem.logarithms, estimator.probe, estimator.n_probes).sum(
        -1
    )


def _reachable(problem: Problem, estimator: LogDetEstimator) -> np.ndarray:
    """The variance from terms that are evaluated at least once in 1e9 draws, (P,)."""
    truncation = estimator.truncation
    if not isinstance(truncation, Roulette):
        return _total_variance(problem, estimator)
    return theory.roulette_variance(
        problem.jacobians, truncation, estimator.probe, estimator.n_probes, REACHABLE
    ).sum(-1)


def _banach(
    flow: ResidualFlow, z: Tensor, inversion: Inversion, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Before any step: Banach's bound on the error after `max_steps`, and the steps that suffice.

    Block by block, ||x_n - x*|| <= (K^n ||g(z)|| + error in z + rounding) / (1 - K), where the
    working dtype charges `flows.residual.ROUNDING` units in the last place of the numbers' size;
    and the residual falls below the tolerance once K^n ||g(z)|| does. (B,), (B,).
    """
    ulps = residual.ROUNDING * torch.finfo(z.dtype).eps
    error = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    steps = torch.zeros_like(error)
    for layer in reversed(flow.bijections):
        # A block's own certificate is not wanted: the bound before any step is derived here.
        certify = not isinstance(layer, ResidualBlock)
        solution = layer.inverse(z, inversion, error, certify)
        if isinstance(layer, ResidualBlock):
            k = layer.branch.lipschitz_certified()
            first = layer.branch(z).double().norm(dim=1)
            size = z.double().norm(dim=1) + solution.value.double().norm(dim=1)
            error = (k**inversion.max_steps * first + error + ulps * size) / (1 - k)
            # ||x_n|| >= ||x|| - ||x_n - x||, and the last is at most the residual over 1 - K.
            asked = tolerance * (1 + solution.value.double().norm(dim=1))
            asked /= 1 + tolerance / (1 - k)
            steps += (torch.log(asked / first) / math.log(k)).ceil().clamp_min(0)
        else:
            error = _bound(solution)
        z = solution.value
    return error, steps


def _bound(solution: Solution) -> Tensor:
    assert solution.error_bound is not None  # asked for, wherever this is called
    return solution.error_bound


def _rounding(cell: Cell, problem: Problem) -> float:
    eps = torch.finfo(getattr(torch, cell["dtype"])).eps
    return ROUNDING * eps * max(1.0, float(np.abs(problem.log_det).max()))


def _widen(interval: Interval, by: float) -> Interval:
    return interval._replace(low=interval.low - by, high=interval.high + by)


def _observe(metric: str, interval: Interval, unit: str, n: int, message: str = "") -> Observation:
    value, standard_error, low, high, _ = interval
    return Observation(metric, value, unit, standard_error, low, high, n, message)


def _exactly(metric: str, value: float, unit: str) -> Observation:
    """Something computed, not sampled."""
    value = float(value)
    return Observation(metric, value, unit, 0.0, value, value)


def realised(norm: float, spectral_radius: float) -> Iterable[Observation]:
    """What the data meet of the promise, as every suite's rows say it."""
    yield _exactly("norm_realised", norm, "1")
    yield _exactly("spectral_radius", spectral_radius, "1")
