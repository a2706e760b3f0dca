"""The fixed-point iteration off the CPU: steps first, their bookkeeping in windows, few questions.

There each small operation is a launch, and each question that the host asks is a wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from resflow_bench.fixed_point.solution import BLOW_UP, Outcome, Solution
from resflow_bench.fixed_point.steps import Selectable, Step

# No new best residual in a window of so many steps, or of a quarter of the steps before it, is the
# rounding floor: down to it a contraction improves in every step. Near it residuals are few units
# in the last place and lose one in about 1 / (1 - K) steps; the floor is some 16 / (1 - K) steps
# away (float32), so that a window growing with the steps taken waits long enough for any K.
PATIENCE = 32
# Steps between tests for divergence, which no contraction needs; off the CPU also the steps of a
# window.
CHECK_EVERY = 8
# Off the CPU the host first asks after so many steps whether all examples have ended, and again
# after `CHECK_EVERY` or a quarter of the steps before. An iteration of so many steps never asks.
UNASKED = 24


@torch.no_grad()
def solve_in_windows(
    f: Callable[..., Tensor],
    x0: Tensor,
    step: Step,
    rtol: float,
    atol: float,
    max_steps: int,
    args: tuple[Tensor | Selectable, ...],
) -> Solution:
    """The `Solution` of `solve`, all examples evaluated until all have ended or the host asks.

    Properties: about 30 operations a window beside f and the step; a window holds x and f(x) of
        each of its steps, at most 2 (`CHECK_EVERY` + 1) tensors like x0.
    """
    x, state = x0.clone(), step.init(x0)
    best, start, next_mark, next_question = x, 0, PATIENCE, UNASKED
    while True:
        multiple = CHECK_EVERY * math.ceil(max(start, 1) / CHECK_EVERY)
        stop = min(multiple, next_mark, max_steps)
        points, images = [], []
        for k in range(start, stop + 1):
            fx = f(x, *args)
            check_value(fx, x)
            points.append(x)
            images.append(fx)
            if k < max_steps:
                x, state = step.next(x, fx, state)
        window = torch.stack(points)  # (w, B, *event)
        residuals = _norms(torch.stack(images) - window)  # (w, B)
        if start == 0:
            first = residuals[0]
            # Finite, so that an overflow is beyond it even if the first residual was huge.
            limit = (BLOW_UP * first).clamp(max=torch.finfo(first.dtype).max)
            running = first <= limit  # False where it is NaN
            outcome = torch.where(running, Outcome.CONVERGED, Outcome.DIVERGED).to(torch.int8)
            n_steps = torch.zeros_like(running, dtype=torch.int64)
            residual, mark = torch.full_like(first, math.inf), first
        bounded = residuals <= limit
        converged = bounded & (residuals <= rtol * _norms(window) + atol)
        # The first converged iterate, or else the first of the least residual.
        score = residuals.nan_to_num(math.inf, math.inf).masked_fill(converged, -1.0)
        lowest, at = score.min(0)
        ended = running & (lowest < 0)
        taken = running & (lowest < residual)
        index = at.view(1, -1, *[1] * (x.ndim - 1))
        chosen = window.gather(0, index.expand(1, *x.shape))[0]
        best = torch.where(taken.view(index.shape[1:]), chosen, best)
        residual = torch.where(taken, residuals.gather(0, at[None])[0], residual)
        n_steps = torch.where(running, torch.where(ended, at + start, stop), n_steps)
        running = running & ~ended
        if stop % CHECK_EVERY == 0 or stop == max_steps:
            outcome = torch.where(running & ~bounded[-1], Outcome.DIVERGED, outcome)
            running = running & bounded[-1]
        if stop == next_mark:
            is_better = residual < mark
            outcome = torch.where(running & ~is_better, Outcome.STAGNATED, outcome)
            running = running & is_better
            mark, next_mark = residual, stop + max(PATIENCE, stop // 4)
        if stop == max_steps:
            break
        if stop >= next_question:
            if not bool(running.any()):
                break
            next_question = stop + max(CHECK_EVERY, stop // 4)
        start = stop + 1
    outcome = torch.where(running, Outcome.MAX_STEPS, outcome)
    return Solution(best, residual, n_steps, outcome)


def check_value(fx: object, x: Tensor) -> None:
    """Refuse an f(x) that is unlike x."""
    if not isinstance(fx, Tensor):
        raise TypeError(f"solve needs an f that returns a tensor; got {type(fx).__name__}.")
    if fx.shape != x.shape or fx.dtype != x.dtype:
        raise ValueError(
            "solve needs an f that keeps the shape and dtype of its argument; got "
            f"{tuple(fx.shape)} of {fx.dtype} from {tuple(x.shape)} of {x.dtype}."
        )


def norms(x: Tensor) -> Tensor:
    """||x||_2 over the event, (B, *event) -> (B,)."""
    norm: Tensor = torch.linalg.vector_norm(x.flatten(1) if x.ndim > 1 else x[:, None], dim=1)
    return norm


def _norms(window: Tensor) -> Tensor:
    """(w, B, *event) -> (w, B)."""
    return norms(window.flatten(0, 1)).view(window.shape[:2])
