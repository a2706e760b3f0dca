"""The error of a fixed-point inverse, its certificate and its steps."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from resflow_bench.fixed_point import Outcome, Solution
from resflow_bench.flows import (
    MonotoneBlock,
    ResidualBlock,
    ResidualFlow,
    ToError,
    ToRounding,
    ToTolerance,
    bijection,
)
from resflow_bench.flows.certificate import branch_bounds
from resflow_bench.jacobian import CHUNK_NUMBERS, Map, dense_jacobian, linearise
from resflow_bench.lab import Cell, Context, Failure, Observation
from resflow_bench.layers import AnyBranch
from resflow_bench.memory import at_once
from resflow_bench.models import build_flow, build_points, dense_truth, realised, sizes
from resflow_bench.models.own import version
from resflow_bench.speed.timing import Call

NEWTON_STEPS = 50
"""Near the solution the digits double in each, and most need five."""

FLOOR = 1e-9
"""The residual per size of z, far above float64's rounding, at which Newton has not converged."""


def measure_inverse(cell: Cell, context: Context) -> Iterable[Observation]:
    """max ||x^ - x|| over points, against the certificate, Banach's rate and the steps it needs.

    The truth is the inverse of the same parameters in float64, to rounding, by Newton's method: no
    step of it is one of the solver's that is measured, or of the one behind its certificate.
    """
    flow, z, truth, (norm, radius) = _truth_of(cell, context)
    if cell.get("error") is not None:
        yield from _certified(cell, flow, z)
        yield from realised(norm, radius)
        return
    tolerance = cell["tolerance"]
    inversion = ToTolerance(rtol=tolerance, atol=tolerance, max_steps=cell["max_steps"])
    solution = flow.inverse(z, inversion)
    error = (solution.value.double() - truth.value).flatten(1).norm(dim=1)
    # The truth has an error bound of its own, which counts on the bound's side.
    bound = _bound(solution) + _bound(truth)
    is_bounded = bool(torch.isfinite(bound).all())
    if not is_bounded and any(_is_rounded_to_one(block) for block in flow.blocks):
        raise Failure(
            f"lipschitz={cell['lipschitz']} is 1 or more once rounded to {cell['dtype']}: nothing "
            "can be certified; take a smaller constant or a finer dtype"
        )
    n = len(z)
    yield Observation("inverse_error", float(error.max()), "1", n=n)
    yield Observation("inverse_error_bound", float(bound.max()), "1", n=n)
    if is_bounded:  # else some part knows no constant of its inverse, and no theorem gives a rate
        yield Observation("error_over_bound", float((error / bound).max()), "1", n=n)
    yield Observation("residual", float(solution.residual.max()), "1", n=n)
    yield Observation("n_steps", float(solution.n_steps.max()), "steps", n=n)
    # Of w in x = 2 w - z, a monotone block's inverse, `_banach` knows nothing.
    monotone = any(isinstance(part, MonotoneBlock) for part in flow.modules())
    if is_bounded and flow.blocks and not monotone:
        banach, steps = _banach(flow, truth.value.to(z.dtype), inversion, tolerance)
        if tolerance:
            yield Observation("n_steps_bound", float(steps.max()), "steps", n=n)
        else:
            yield Observation("inverse_error_banach", float(banach.max()), "1", n=n)
    worst = Outcome(int(solution.outcome.max()))
    yield Observation("outcome", float(worst), "1", n=n, message=worst.name.lower())
    yield from realised(norm, radius)


def _certified(cell: Cell, flow: ResidualFlow, z: Tensor) -> Iterator[Observation]:
    """The inverse that certifies the cell's `error`, or refuses, and its work."""
    solution, n = flow.inverse(z, ToError(cell["error"])), len(z)
    # As the truth of all cells, with a bound as sharp as the one that is judged.
    newton = ToError(cell["error"], cast("ToRounding", solved_by_newton))
    truth = copy.deepcopy(flow).double().layers.inverse(z.double(), newton)
    error = (solution.value.double() - truth.value).flatten(1).norm(dim=1)
    bound = _bound(solution) + _bound(truth)
    yield Observation("inverse_error", float(error.max()), "1", n=n)
    yield Observation("inverse_error_bound", float(bound.max()), "1", n=n)
    if bool(torch.isfinite(bound).all()):
        yield Observation("error_over_bound", float((error / bound).max()), "1", n=n)
    yield Observation("uncertified_share", float((~solution.converged).double().mean()), "1", n=n)
    work = _evaluations(lambda: flow.inverse(z, ToError(cell["error"])))
    once = _evaluations(lambda: flow(truth.value.to(z.dtype)))
    yield Observation("n_evaluations", work / once, "evaluations", n=n)
    worst = Outcome(int(solution.outcome.max()))
    yield Observation("outcome", float(worst), "1", n=n, message=worst.name.lower())


def _evaluations(call: Call) -> int:
    """Floating-point operations of all products but those of batches of matrices."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    counts = counter.get_flop_counts()["Global"]
    return sum(n for operation, n in counts.items() if operation is not torch.ops.aten.bmm)


def _is_rounded_to_one(block: ResidualBlock) -> bool:
    """True if the block promises a contraction, which its weights as they are do not certify."""
    return block.lipschitz < 1 <= block.branch.lipschitz_certified()


class _Truth(NamedTuple):
    """A flow, latents, their inverse to rounding, and the norm and spectral radius there."""

    flow: ResidualFlow
    z: Tensor
    solution: Solution
    sizes: tuple[float, float]


def _truth_of(cell: Cell, context: Context) -> _Truth:
    """The truth that all cells of one model and dtype share."""
    axes = ("model", "dim", "lipschitz", "dtype", "device")
    key = Cell(cell.suite, {name: cell[name] for name in axes})
    n_points, results = int(context.effort["n_points"]), context.results
    return _truth(key, results, n_points, version(cell["model"], results))


@lru_cache(maxsize=2)
def _truth(cell: Cell, results: Path, n_points: int, version: int) -> _Truth:  # noqa: ARG001
    flow = build_flow(cell, results)
    z = flow(build_points(cell, n_points, results))
    newton = cast("ToRounding", solved_by_newton)  # as any function of a branch and z
    solution = copy.deepcopy(flow).double().inverse(z.double(), newton)
    jacobians, log_det = dense_truth(flow, solution.value.to(z.dtype))
    if not all(block.lipschitz < 1 for block in flow.blocks):
        size = 1.0 + z.double().flatten(1).norm(dim=1)
        if not np.isfinite(log_det).all() or bool((solution.residual > FLOOR * size).any()):
            raise Failure(
                "x + g(x) is singular at these points, or Newton's method finds no inverse there, "
                "so that no error is known. Scale g down."
            )
    return _Truth(flow, z, solution, sizes(jacobians))


def solved_by_newton(branch: AnyBranch, z: Tensor) -> Solution:
    """x with x + g(x) = z, from x = z, as exactly as z's dtype allows; no graph."""
    g, dim = branch.normalised(), math.prod(z.shape[1:])
    pieces = [_newton(g, piece) for piece in z.split(max(1, at_once(CHUNK_NUMBERS) // dim**2))]
    value, residual = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    zeros = torch.zeros(len(z), dtype=torch.int8, device=z.device)
    return Solution(value, residual, zeros.long(), zeros)


def _newton(g: Map, z: Tensor) -> tuple[Tensor, Tensor]:
    """x <- x - (I + J)^-1 (x + g(x) - z), J dense: the x of least residual, and that residual."""
    x, best, least = z, z, torch.full((len(z),), math.inf, dtype=z.dtype, device=z.device)
    identity = torch.eye(math.prod(z.shape[1:]), dtype=z.dtype, device=z.device)
    for _ in range(NEWTON_STEPS):
        value, jacobian = linearise(g, x)
        residual = x + value - z
        size = residual.flatten(1).norm(dim=1)
        is_best = size < least
        if not is_best.any():
            break
        best = torch.where(is_best.view(-1, *[1] * (z.ndim - 1)), x, best)
        least = torch.where(is_best, size, least)
        matrix = identity + dense_jacobian(jacobian, x)
        step = torch.linalg.solve_ex(matrix, residual.flatten(1)).result  # inf if singular
        x = x - step.view_as(x)
    return best, least


def _banach(
    flow: ResidualFlow, x: Tensor, inversion: ToTolerance, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Banach's a-priori bound on the error after `max_steps`, and the steps that suffice.

    Block by block, ||x_n - x*|| <= (K^n ||g(z)|| + error in z + rounding) / (1 - K), where the
    working dtype charges `flows.bijection.ROUNDING` units in the last place of the numbers' size;
    and the residual falls below the tolerance once K^n ||g(z)|| does. A block whose z is off by e
    begins at ||g(z)|| + K e. Latents of an earlier scale have no error, so that one number carries
    the error of the others through all scales.

    Args:
        x: (B, *event), the exact inverse.

    Returns:
        The bound, (B,), and the steps, (B,).
    """
    ulps = bijection.ROUNDING * torch.finfo(x.dtype).eps
    error = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    steps = torch.zeros_like(error)
    for layer, inputs in reversed(list(flow.inputs(x))):
        z = layer(inputs)
        if isinstance(layer, ResidualBlock):
            k = max(branch_bounds(layer.branch).lipschitz, sys.float_info.min)  # 0 has no logarithm
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
