"""A continuous flow in T steps as a residual flow: when it is one, and what it is off by."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from scipy.integrate import solve_ivp
from torch import Tensor

from resflow_bench.fixed_point import Outcome
from resflow_bench.flows import ResidualFlow, ToTolerance
from resflow_bench.intervals import LEVEL, Interval, mean_interval
from resflow_bench.lab import Cell, Context, Observation, Skip, exactly, observe, silent
from resflow_bench.logdet import Determinant
from resflow_bench.models import dense_truth, sizes
from resflow_bench.models.catalogue import held_out
from resflow_bench.systems import AdaptivePath, Continuous, residual_flow
from resflow_bench.systems.adaptive import ZUKO_SCALE
from resflow_bench.systems.ode import METHODS, Tableau, integrate
from resflow_bench.training.recipe import finite_moments_estimator
from resflow_bench.training.weights import trained
from suites.flows.measure import flows_recipe
from suites.trained import largest_certified

N_TRUE = 512
"""Steps of the classical Runge-Kutta method whose result is the truth."""

TOLERANCE = 1e-10
"""The tolerance of the fixed-point inverse, which is computed in float64."""

TRIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)
"""Tolerances of the adaptive solver, the loosest first."""


ZUKO = {"zuko": ZUKO_SCALE, "zuko-unscaled": 1.0, "zuko-hutchinson": ZUKO_SCALE}
"""Method -> the factor by which zuko's solver sees the log-det."""


class _Ends(NamedTuple):
    """z and ln|det dz/dx| of points: (P, d), (P,)."""

    z: Tensor
    log_det: Tensor


def measure_euler(cell: Cell, context: Context) -> Iterable[Observation]:
    """The flow with the blocks x + g(x), g = -h u, of h = 1/T, against the differential equation.

    A cell with a `tolerance` is a path of zuko's adaptive solver instead, see `_audit`.

    All in float64, at held-out points.

    * `step_norm`: the largest ||J_g||_2, h Lip(u) as it is realised; `is_contraction` if below 1.
    * `field_norm`: that over h. The flow is a residual flow from about so many steps on.
    * `step_norm_certified`, of a field with a certified constant alone: a bound on the Lipschitz
      constant of every step, from its layers. Where it is below 1, `error_over_bound`: the largest
      ||x - x'|| over its certified bound, of the fixed-point inverse x'.
    * `log_prob_rms`: root mean square of log p of the steps, with exact determinants, less that of
      the path. `order`: log2 of its ratio to that of 2T steps, with a jackknife interval.
    * `trace_rms`: the same for the sum of h tr(du/dx) at the steps, in place of determinants.
    * `fixed_point_error`: largest ||x - x'|| of the fixed-point inverse x' of the steps' z, its
      `outcome` and `n_inverse_steps`; `backward_error`: of x' by as many steps of the equation
      from z.
    * `log_det_error`: mean of an unbiased estimate of the log-det, less the determinants'.
    * `n_evaluations`: of u, by the steps; `n_evaluations_adaptive`: by RK45 of scipy at the loosest
      tolerance of `TRIES` with as small a `log_prob_rms`.
    """
    n_points = int(context.effort["n_points"])
    axes = {name: cell[name] for name in ("dataset", "architecture", "step")}
    problem = _problem(Cell(cell.suite, axes), context.results, n_points)
    if cell.get("tolerance") is not None:
        yield from _audit(problem, cell, context.generator_seed(cell))
        return
    n_steps, method = int(cell["n_solver_steps"]), str(cell["method"])
    try:
        blocks = residual_flow(problem.flow, n_steps, method)
    except ValueError as reason:
        raise Skip(str(reason)) from None
    ends = _ends(blocks, problem.x)
    jacobians, _ = dense_truth(blocks, problem.x)
    norm, radius = sizes(jacobians)
    yield exactly("step_norm", norm, "1")
    yield exactly("field_norm", norm * n_steps, "1")
    yield exactly("is_contraction", float(norm < 1), "1")
    certified = largest_certified(blocks)
    if certified < math.inf:
        yield exactly("step_norm_certified", certified, "1")
    errors = _log_prob(ends) - _log_prob(problem.truth)
    halved = _ends(residual_flow(problem.flow, 2 * n_steps, method), problem.x)
    finer = _log_prob(halved) - _log_prob(problem.truth)
    yield exactly("log_prob_rms", rms(errors), "nat")
    yield observe("order", order(errors, finer), "1", n_points)
    traced = _path(problem, METHODS[method], n_steps)
    yield exactly("trace_rms", rms(_log_prob(traced) - _log_prob(problem.truth)), "nat")
    yield from _inverses(problem, blocks, ends, certify=certified < 1)
    with torch.no_grad():
        back, _ = integrate(problem.path.velocity, ends.z, 0.0, 1.0, METHODS[method], n_steps)
    error = float((back - problem.x).norm(dim=1).max())
    yield Observation("backward_error", error, "1", n=n_points)
    if radius < 1:
        yield _estimated(blocks, problem.x, ends, norm, context, cell)
    yield exactly("n_evaluations", float(n_steps * len(METHODS[method].b)), "1")
    adaptive = _adaptive(problem, rms(errors))
    if not math.isnan(adaptive):
        yield exactly("n_evaluations_adaptive", adaptive, "1")


class _OnPath(NamedTuple):
    """A flow of a path alone, float64; the path; its inputs; and its exact ends."""

    flow: ResidualFlow
    path: Continuous
    x: Tensor
    truth: _Ends


@lru_cache(maxsize=4)
def _problem(cell: Cell, results: Path, n_points: int) -> _OnPath:
    flow = copy.deepcopy(trained(flows_recipe(cell), results, silent, int(cell["step"]))).double()
    *before, path = flow.requires_grad_(False).bijections
    if not isinstance(path, Continuous):
        raise Skip(f"{cell['architecture']} is no continuous flow; take flow-matching")
    x = held_out(str(cell["dataset"]), n_points).double()
    for layer in before:
        x = layer(x)
    alone = ResidualFlow([path], path.dim)
    problem = _OnPath(alone, path, x, _Ends(x, x))
    return problem._replace(truth=_path(problem, METHODS["rk4"], N_TRUE))


def _path(problem: _OnPath, method: Tableau, n_steps: int) -> _Ends:
    with torch.no_grad():
        rates = problem.path.velocity_and_trace
        return _Ends(*integrate(rates, problem.x, 1.0, 0.0, method, n_steps))


def _ends(flow: ResidualFlow, x: Tensor) -> _Ends:
    with torch.no_grad():
        return _Ends(*flow.with_estimator(Determinant()).forward_and_log_det(x))


def _log_prob(ends: _Ends) -> np.ndarray:
    """log p up to a constant, (P,)."""
    return (ends.log_det - 0.5 * ends.z.square().sum(1)).numpy()


def rms(errors: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.square(errors).mean()))


def order(errors: np.ndarray, finer: np.ndarray) -> Interval:
    """log2 of the ratio of two root mean squares, and its jackknife interval over points."""
    a, b, n = np.square(errors), np.square(finer), len(errors)
    value = 0.5 * math.log2(a.sum() / b.sum())
    without = 0.5 * np.log2((a.sum() - a) / (b.sum() - b))
    error = math.sqrt((n - 1) * np.var(without))
    reach = stats.t.ppf((1 + LEVEL) / 2, n - 1) * error
    return Interval(value, error, value - reach, value + reach, n)


def _inverses(
    problem: _OnPath, blocks: ResidualFlow, ends: _Ends, certify: bool
) -> Iterable[Observation]:
    """The rows of the fixed-point inverse."""
    n = len(problem.x)
    inversion = ToTolerance(rtol=TOLERANCE, atol=TOLERANCE)
    solution = blocks.inverse(ends.z, inversion, certify=certify)
    worst = Outcome(int(solution.outcome.max()))
    said = worst.name.lower()
    errors = (solution.value - problem.x).norm(dim=1)
    yield Observation("fixed_point_error", float(errors.max()), "1", n=n, message=said)
    yield Observation("n_inverse_steps", float(solution.n_steps.max()), "steps", n=n)
    yield Observation("outcome", float(worst), "1", n=n, message=said)
    if solution.error_bound is not None:
        over = float((errors / solution.error_bound).max())
        yield Observation("error_over_bound", over, "1", n=n)


def _estimated(
    blocks: ResidualFlow, x: Tensor, ends: _Ends, norm: float, context: Context, cell: Cell
) -> Observation:
    n_draws = int(context.effort["n_draws"])
    estimated = blocks.with_estimator(finite_moments_estimator(min(norm, 0.99)))
    generator = torch.Generator().manual_seed(context.generator_seed(cell))
    with torch.no_grad():
        draws = [
            (estimated.forward_and_log_det(x, generator)[1] - ends.log_det).mean().item()
            for _ in range(n_draws)
        ]
    return observe("log_det_error", mean_interval(np.asarray(draws)), "nat", n_draws)


def _audit(problem: _OnPath, cell: Cell, seed: int) -> Iterable[Observation]:
    """zuko's CNF with the same field, in float64, at a tolerance, against the truth.

    * `z_error`, `trace_error`: the largest ||z - z'|| and |log-det - log-det'| of a point.
      `z_error_over_tolerance`, `trace_error_over_tolerance`: those over the tolerance.
    * `n_evaluations` of u; `n_evaluations_rk4`: by the classical method in the fewest steps, a
      power of two, with as small a `trace_error`.

    The method is `zuko`; `zuko-unscaled`, with the log-det under the same tolerance as z; or
    `zuko-hutchinson`, whose `trace_error` is the noise of its probe, and has no like in rk4.
    """
    method, tolerance = str(cell["method"]), float(cell["tolerance"])
    if method not in ZUKO:
        raise Skip(f"a tolerance is for a method of {', '.join(ZUKO)}; got {method}")
    try:
        path = AdaptivePath(problem.path.field, tolerance, ZUKO[method])
    except ValueError as reason:
        raise Skip(str(reason)) from None
    probes = finite_moments_estimator(0.5)  # any estimator that is not exact: zuko draws its own
    estimator = probes if method == "zuko-hutchinson" else Determinant()
    calls: list[object] = []
    counted = path.field.register_forward_hook(lambda *_: calls.append(None))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        found = _Ends(*path.forward_and_log_det(problem.x, estimator, generator))
    counted.remove()
    off = float((found.z - problem.truth.z).norm(dim=1).max())
    for name, error in (("z_error", off), ("trace_error", trace_error(found, problem.truth))):
        yield exactly(name, error, "1" if name == "z_error" else "nat")
        yield exactly(f"{name}_over_tolerance", error / tolerance, "1")
    yield exactly("n_evaluations", float(len(calls)), "1")
    if method == "zuko-hutchinson":
        return
    for n_steps in (2**k for k in range(9)):
        ours = _path(problem, METHODS["rk4"], n_steps)
        if trace_error(ours, problem.truth) <= trace_error(found, problem.truth):
            yield exactly("n_evaluations_rk4", float(4 * n_steps), "1")
            return


def trace_error(found: _Ends, truth: _Ends) -> float:
    """The largest |log-det - log-det'| of a point."""
    return float((found.log_det - truth.log_det).abs().max())


def _adaptive(problem: _OnPath, target: float) -> float:
    """Evaluations of u by RK45 at the loosest tolerance that reaches the target; NaN if none."""
    n, d = problem.x.shape
    start = np.concatenate([problem.x.numpy().ravel(), np.zeros(n)])

    def slope(t: float, state: np.ndarray) -> np.ndarray:
        u, trace = problem.path.velocity_and_trace(
            t, torch.from_numpy(state[: n * d].reshape(n, d))
        )
        return np.concatenate([u.numpy().ravel(), trace.numpy()])

    with torch.no_grad():
        for tolerance in TRIES:
            solved = solve_ivp(slope, (1.0, 0.0), start, rtol=tolerance, atol=tolerance)
            end = torch.from_numpy(solved.y[:, -1].copy())
            found = _Ends(end[: n * d].view(n, d), end[n * d :])
            if rms(_log_prob(found) - _log_prob(problem.truth)) <= target:
                return float(solved.nfev)
    return math.nan
