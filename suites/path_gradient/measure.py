"""The gradient of a reverse Kullback-Leibler divergence through samples, against the exact one."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from resflow_bench.fixed_point import Outcome
from resflow_bench.flows import ResidualFlow, StandardNormal, ToTolerance
from resflow_bench.flows.implicit import attached
from resflow_bench.intervals import Interval, mean_interval
from resflow_bench.lab import Cell, Context, Failure, Observation, Skip, exactly, observe
from resflow_bench.logdet import Determinant, Estimator, Fixed, Hadamard, LogDetEstimator
from resflow_bench.models import build_estimator, build_flow, dense_truth, realised, sizes
from resflow_bench.models.catalogue import normal_points
from resflow_bench.threads import one_thread
from suites.sampling import NORMAL_ORDER

MAX_STEPS = 10_000
"""The cap on the steps of an inverse; a cell whose inverse needs more fails."""

NO_BIAS = 1e-9
"""A share of the gradient's length. In float64 a smaller difference is rounding."""

EXACT = ToTolerance(rtol=1e-14, atol=1e-14, max_steps=MAX_STEPS)


def measure_path_gradient(cell: Cell, context: Context) -> Iterable[Observation]:
    """Gradients of the mean of log p(x) - log q(x), x = f^-1(z), p the flow's and q = N(0, I).

    The latents z are the same throughout. Let G be a draw of the gradient, from the cell's
    estimator at samples to the cell's tolerance, and G* the exact gradient: the determinant in
    float64, at samples to rounding. Relative to |G*|, and |G*|^2 where it is a square:

    - `gradient_bias`: the mean of G - G* along E[G] - G*, which is computed without sampling: all D
      columns of a Hadamard matrix give the exact tr S_N, and the determinant stands for a roulette.
      So `gradient_bias_expected` is the length of the bias. Where there is none to rounding, the
      direction is that of G*.
    - `gradient_variance`: E |G - E[G]|^2, of the log-det's noise alone.
    - `sampling_variance`: the variance of G* itself over as many other latents. `path_variance`:
      the same without the score, the derivative of log p at a fixed x, whose mean is zero.

    Source: Roeder, Wu and Duvenaud (2017), "Sticking the Landing", for the gradient without score.
    """
    estimator, tol = build_estimator(cell), cell["tolerance"]
    flow = build_flow(cell, context.results).requires_grad_(True)
    if not list(flow.parameters()):
        raise Skip(f"the model {cell['model']} has no parameter: no gradient to measure")
    if not isinstance(flow.base, StandardNormal):
        raise Skip("latents are drawn from a standard normal; this flow has another base density")
    z = normal_points(int(context.effort["n_points"]), cell["dim"]).to(
        cell["device"], torch.float64
    )
    true_flow = copy.deepcopy(flow).double()
    with one_thread():
        x = inverted(true_flow, z, EXACT)
        tolerance = ToTolerance(rtol=tol, atol=tol, max_steps=MAX_STEPS)
        latents = z.to(getattr(torch, cell["dtype"]))
        near = inverted(flow, latents, tolerance)
        jacobians, _ = dense_truth(true_flow, x)
        norm, radius = sizes(jacobians)
        exact = reverse_kl_gradient(true_flow, z, x, Determinant())
        mean = reverse_kl_gradient(true_flow, z, near.double(), mean_of(estimator, flow.dim))
        size, bias = float(exact.norm()), mean - exact
        direction = bias if float(bias.norm()) > NO_BIAS * size else exact
        direction = direction / (direction.norm() * size)
        generator = torch.Generator(z.device).manual_seed(context.generator_seed(cell))
        along, squares = [], []
        for _ in range(int(context.effort["n_draws"])):
            draw = reverse_kl_gradient(flow, latents, near, estimator, generator).double()
            along.append(float((draw - exact) @ direction))
            squares.append(float((draw - mean).square().sum()) / size**2)
        spreads = [mean_variance(true_flow, z, x, score) / size**2 for score in (True, False)]
    is_normal = estimator.truncation.moment_is_finite(radius, NORMAL_ORDER)
    message = "" if is_normal else "the eighth moment is infinite: no interval"
    n = len(along) * len(z)
    yield observe("gradient_bias", _interval(along, is_normal), "1", n, message)
    yield exactly("gradient_bias_expected", float(bias @ direction), "1")
    variance = _interval(squares, is_normal)
    variance = variance._replace(low=max(0.0, variance.low))
    yield observe("gradient_variance", variance, "1", n, message)
    yield exactly("sampling_variance", spreads[0], "1")
    yield exactly("path_variance", spreads[1], "1")
    yield exactly("gradient_norm", size, "nat")
    yield from realised(norm, radius)


def mean_of(estimator: LogDetEstimator, dim: int) -> Estimator:
    """An estimator without noise whose value and gradient are the means of the given one's.

    E v v^T = I for its probes; the columns of a Hadamard matrix of order D >= d have exactly that.
    """
    if not isinstance(estimator.truncation, Fixed):
        return Determinant()
    return LogDetEstimator(Hadamard(), estimator.truncation, 1 << (dim - 1).bit_length())


def inverted(flow: ResidualFlow, z: Tensor, inversion: ToTolerance) -> Tensor:
    """f^-1(z), (P, *event).

    Raises:
        Failure: it diverged or took too many steps. Steps that ended at rounding are accepted.
    """
    solution = flow.inverse(z, inversion, certify=False)
    bad = (solution.outcome == Outcome.DIVERGED) | (solution.outcome == Outcome.MAX_STEPS)
    if bad.any():
        raise Failure(f"{int(bad.sum())} of {len(z)} inverses did not end within {MAX_STEPS} steps")
    return solution.value


def reverse_kl_gradient(
    flow: ResidualFlow,
    z: Tensor,
    x: Tensor,
    estimator: Estimator,
    generator: torch.Generator | None = None,
    score: bool = True,
) -> Tensor:
    """d/d theta of the mean of log p(x) - log q(x), one vector of all parameters' entries.

    Without the score log p has constant parameters, and depends on theta through x alone.
    """
    moving = attached(flow.layers, z, x)
    density = flow if score else copy.deepcopy(flow).requires_grad_(False)
    log_p = density.with_estimator(estimator).log_prob(moving, generator)
    log_q = -0.5 * moving.flatten(1).square().sum(-1)  # up to a constant
    loss = (log_p - log_q).mean()
    parameters = list(flow.parameters())
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return torch.cat([g.flatten() for g in gradients])


def mean_variance(flow: ResidualFlow, z: Tensor, x: Tensor, score: bool) -> float:
    """The variance of the exact gradient's mean over P latents, summed over parameters."""
    rows = zip(z.split(1), x.split(1), strict=True)
    each = torch.stack(
        [reverse_kl_gradient(flow, *row, Determinant(), score=score) for row in rows]
    )
    return float(each.var(0).sum()) / len(each)


def _interval(samples: list[float], is_normal: bool) -> Interval:
    """Student's interval for the mean, or the whole line."""
    if is_normal:
        return mean_interval(samples)
    return Interval(float(np.mean(samples)), math.nan, -math.inf, math.inf, len(samples))
