"""x = f(x) for a batch of examples, each with its own outcome and residual."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Protocol

import torch
from torch import Tensor

# No new best residual in a window of so many steps, or of a quarter of the steps before it, is the
# rounding floor: down to it a contraction improves in every step. Near it residuals are few units
# in the last place and lose one in about 1 / (1 - K) steps; the floor is some 16 / (1 - K) steps
# away (float32), so that a window growing with the steps taken waits long enough for any K.
PATIENCE = 32
# A contraction never raises its residual; a million times the first is not rounding.
BLOW_UP = 1e6
# Divergence is looked for this often, which no contraction pays for; off the CPU so is the question
# whether all examples have ended, because the answer waits for the device.
CHECK_EVERY = 8


class Outcome(IntEnum):
    """How an example ended."""

    CONVERGED = 0
    MAX_STEPS = 1
    STAGNATED = 2
    DIVERGED = 3
    UNCERTIFIED = 4


_CAUSES = {
    Outcome.MAX_STEPS: "still above tolerance after max_steps; raise max_steps or loosen rtol/atol",
    Outcome.STAGNATED: (
        "no new best residual for long, which is the rounding floor or no contraction; "
        "loosen rtol/atol, use float64, or certify the Lipschitz constant"
    ),
    Outcome.DIVERGED: (
        f"not finite or {BLOW_UP:g} times the first residual; f is not a contraction there: "
        "certify the Lipschitz constant"
    ),
    Outcome.UNCERTIFIED: (
        "converged, but its error bound is not within what was asked; compute in float64 "
        "(`flow.double()`), or take smaller Lipschitz constants or fewer blocks"
    ),
}


@dataclass(frozen=True, eq=False)
class Solution:
    """What was found, and how good it is, example by example.

    Attributes:
        value: (B, *event), the last iterate where converged, otherwise the best one (x0 where
            nothing was finite).
        residual: (B,), ||f(x) - x||_2 at `value`, as computed in its dtype; inf where nothing was
            finite.
        n_steps: (B,) int64, steps taken until the example ended; f was evaluated once more.
        outcome: (B,) int8, an `Outcome` each.
        error_bound: (B,) bound on ||value - x*||_2, or None unless a caller who knows a Lipschitz
            constant certifies one.
        error: what `demand` asked of the bound, or None.
    """

    value: Tensor
    residual: Tensor
    n_steps: Tensor
    outcome: Tensor
    error_bound: Tensor | None = None
    error: float | None = None

    @property
    def converged(self) -> Tensor:
        """(B,) bool."""
        return self.outcome == Outcome.CONVERGED

    def raise_if_failed(self) -> Solution:
        """This solution, if every example converged.

        Raises:
            ArithmeticError: some did not; the message has counts, causes and remedies.
        """
        failed = ~self.converged
        if not bool(failed.any()):
            return self
        causes = [
            f"{int(here.sum())} {outcome.name} ({cause}; {self._reached(outcome, here)})"
            for outcome, cause in _CAUSES.items()
            if bool((here := self.outcome == outcome).any())
        ]
        raise ArithmeticError(
            f"{int(failed.sum())} of {len(failed)} fixed points not found: {'; '.join(causes)}."
        )

    def demand(self, error: float) -> Solution:
        """This solution, UNCERTIFIED where it converged but `error_bound` is not within `error`.

        What did not converge keeps its outcome, which says more.

        Raises:
            ValueError: there is no `error_bound`.
        """
        if self.error_bound is None:
            raise ValueError(
                f"Solution.demand({error}) needs an `error_bound`; got None. Solve with `certify`."
            )
        short = self.converged & ~(self.error_bound <= error)  # also where it is not a number
        outcome = torch.where(short, Outcome.UNCERTIFIED, self.outcome)
        return replace(self, outcome=outcome, error=error)

    def _reached(self, outcome: Outcome, here: Tensor) -> str:
        """The worst number among the examples `here`, of the kind that decided their outcome."""
        if outcome != Outcome.UNCERTIFIED or self.error_bound is None or self.error is None:
            return f"largest residual {float(self.residual[here].max()):.2e}"
        dtype = str(self.value.dtype).removeprefix("torch.")
        reached = float(self.error_bound[here].max())
        return f"{dtype} reached {reached:.2e}, asked {self.error:g}"


class Step(Protocol):
    """How x_{n+1} follows from x_n and f(x_n), each example by itself."""

    def init(self, x0: Tensor) -> Any: ...

    def next(self, x: Tensor, fx: Tensor, state: Any) -> tuple[Tensor, Any]: ...


@dataclass(frozen=True)
class Picard:
    """x_{n+1} = f(x_n).

    Properties: ||x_n - x*|| <= K^n ||x_0 - x*|| if f is a K-contraction (Banach), attained by
    f(x) = y + K x; no state.
    """

    def init(self, x0: Tensor) -> None:
        return None

    def next(self, x: Tensor, fx: Tensor, state: None) -> tuple[Tensor, None]:
        return fx, state


@torch.no_grad()
def solve(
    f: Callable[[Tensor], Tensor],
    x0: Tensor,
    step: Step = Picard(),
    *,
    rtol: float = 1e-6,
    atol: float = 1e-6,
    max_steps: int = 1000,
) -> Solution:
    """x with ||f(x) - x||_2 <= atol + rtol ||x||_2, for every example of a batch.

    If f is a K-contraction, the returned x has ||r|| / (1 + K) <= ||x - x*|| <= ||r|| / (1 - K)
    with r = f(x) - x in exact arithmetic. Computed in floating point r has an error of its own,
    about the unit roundoff times ||x||, which the same 1 / (1 - K) magnifies: residuals near that
    level, and a residual of 0, certify nothing below it.

    Args:
        f: (B, *event) -> (B, *event), each example by itself.
        x0: (B, *event), where to start.
        step: how the next iterate follows.
        rtol, atol: the tolerance on the norm itself. (The public residual-flow code compares the
            squared step with its tolerance, and so stops at the square root of what was asked.)
        max_steps: after so many steps an example that has not ended is given up; 0 only measures.

    Returns:
        A `Solution`, without a graph. What an example ended with is frozen: its value, residual
        and n_steps do not depend on who else is in the batch.

    Properties: max(n_steps) + 1 evaluations of f on a CPU. Elsewhere the host waits for the device
    once in `CHECK_EVERY` steps, at the price of up to `CHECK_EVERY` - 1 idle evaluations.
    STAGNATED and DIVERGED are looked for at fixed steps, whatever else is in the batch.

    Raises:
        ValueError: tolerances or max_steps below zero or not finite, x0 not of floating point or
            without a batch axis, or an f that changes the shape.

    >>> solution = solve(lambda x: 0.5 * x + 1, torch.zeros(2, 3))
    >>> solution.n_steps.tolist(), [Outcome(o).name for o in solution.outcome.tolist()]
    ([19, 19], ['CONVERGED', 'CONVERGED'])
    """
    _check(x0, rtol, atol, max_steps)
    on_cpu = x0.device.type == "cpu"
    x, state = x0.clone(), step.init(x0)
    best, best_residual = x, torch.full_like(_norm(x), math.inf)
    limit = best_residual
    mark, next_mark = best_residual, 0
    n_steps = torch.zeros_like(best_residual, dtype=torch.int64)
    running = torch.ones_like(n_steps, dtype=torch.bool)
    # What an example that is no longer running ended with, unless a check says otherwise.
    outcome = torch.full_like(n_steps, Outcome.CONVERGED, dtype=torch.int8)
    for k in range(max_steps + 1):
        fx = f(x)
        if fx.shape != x.shape:
            raise ValueError(
                "solve needs an f that keeps the shape of its argument; got "
                f"{tuple(fx.shape)} from {tuple(x.shape)}."
            )
        residual = _norm(fx - x)
        if k == 0:
            # Finite, so that an overflow is beyond it even if the first residual was huge.
            limit = (BLOW_UP * residual).clamp(max=torch.finfo(residual.dtype).max)
        bounded = residual <= limit  # False where it is NaN
        converged = bounded & (residual <= rtol * _norm(x) + atol)
        taken = running & (converged | (residual < best_residual))
        best = _choose(taken, x, best)
        best_residual = torch.where(taken, residual, best_residual)
        running = running & ~converged
        if k % CHECK_EVERY == 0 or k == max_steps:
            diverged = running & ~bounded
            outcome = torch.where(diverged, Outcome.DIVERGED, outcome)
            running = running & ~diverged
        if k == next_mark:
            stagnated = running & ~(best_residual < mark)
            outcome = torch.where(stagnated, Outcome.STAGNATED, outcome)
            running = running & ~stagnated
            mark, next_mark = best_residual, k + max(PATIENCE, k // 4)
        if k == max_steps or ((on_cpu or k % CHECK_EVERY == 0) and not bool(running.any())):
            break
        x, state = step.next(x, fx, state)  # of ended examples too, which nobody looks at again
        n_steps += running
    outcome = torch.where(running, Outcome.MAX_STEPS, outcome)
    return Solution(best, best_residual, n_steps, outcome)


def _choose(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` for the examples in the mask, `old` for the others; without a copy if that is all."""
    if mask.device.type == "cpu" and bool(mask.all()):
        return new
    return torch.where(mask.view((-1,) + (1,) * (new.ndim - 1)), new, old)


def _norm(x: Tensor) -> Tensor:
    """||x||_2 over the event, (B, *event) -> (B,)."""
    norm: Tensor = torch.linalg.vector_norm(x.flatten(1) if x.ndim > 1 else x[:, None], dim=1)
    return norm


def _check(x0: Tensor, rtol: float, atol: float, max_steps: int) -> None:
    if x0.ndim == 0 or not x0.is_floating_point():
        raise ValueError(
            "solve needs x0 of floating point with a batch axis (B, *event); got "
            f"{x0.dtype} of shape {tuple(x0.shape)}."
        )
    for name, value in (("rtol", rtol), ("atol", atol), ("max_steps", max_steps)):
        if not 0 <= value < math.inf:
            raise ValueError(f"solve needs a finite `{name}` of at least 0; got {value}.")
