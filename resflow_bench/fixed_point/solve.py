"""The fixed-point iteration: evaluate f, measure residuals, end examples, step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resflow_bench.arguments import check_batch, check_count
from resflow_bench.fixed_point.solution import BLOW_UP, Outcome, Solution
from resflow_bench.fixed_point.steps import PICARD, Selectable, Step
from resflow_bench.fixed_point.windows import (
    CHECK_EVERY,
    PATIENCE,
    check_value,
    norms,
    solve_in_windows,
)


@torch.no_grad()
def solve(
    f: Callable[..., Tensor],
    x0: Tensor,
    step: Step = PICARD,
    *,
    rtol: float = 1e-6,
    atol: float = 1e-6,
    max_steps: int = 1000,
    args: tuple[Tensor | Selectable, ...] | None = None,
) -> Solution:
    """x with ||f(x) - x||_2 <= atol + rtol ||x||_2, for every example of a batch.

    If f is a K-contraction, the returned x has ||r|| / (1 + K) <= ||x - x*|| <= ||r|| / (1 - K)
    with r = f(x) - x in exact arithmetic. Computed in floating point r has an error of its own,
    about the unit roundoff times ||x||, which the same 1 / (1 - K) magnifies: residuals near that
    level, and a residual of 0, certify nothing below it.

    Args:
        f: (B, *event) -> (B, *event), each example independently of the others.
        x0: (B, *event), where to start.
        step: the rule for the next iterate.
        rtol, atol: the tolerance on the norm itself. (The public residual-flow code compares the
            squared step with its tolerance, and so stops at the square root of the tolerance.)
        max_steps: the number of steps after which an example ends with MAX_STEPS; 0 only measures.
        args: further arguments of f, f(x, *args): tensors (B, ...) with a row for each example, or
            objects whose `select(keep)` returns those of the examples `keep`.
            Once half of the examples have ended, f is evaluated for the others alone, with their
            rows. None: f(x) is evaluated for all until all have ended.

    Returns:
        A `Solution`, without a graph. The value, residual and n_steps of an example are those at
        its end. They do not depend on the rest of the batch, to the bit if each example of f(x)
        does not, which matrix products promise only among batches of one size.

    Properties: max(n_steps) + 1 evaluations of f on a CPU; with `args`, of at most twice as many
        examples as are running. Elsewhere f is evaluated for all; the host waits for the device
        after `UNASKED` steps, then after each `CHECK_EVERY`, or a quarter of those before, at the
        price of as many idle evaluations. STAGNATED and DIVERGED are tested at fixed steps,
        whatever the rest of the batch.

    Raises:
        TypeError: x0 or f(x) is no tensor.
        ValueError: tolerances below zero or not finite, max_steps below zero or no whole number, x0
            not of floating point or without a batch axis, or an f that changes shape or dtype.

    >>> solution = solve(lambda x: 0.5 * x + 1, torch.zeros(2, 3))
    >>> solution.n_steps.tolist(), [Outcome(o).name for o in solution.outcome.tolist()]
    ([19, 19], ['CONVERGED', 'CONVERGED'])
    """
    _check(x0, rtol, atol, max_steps)
    if x0.device.type != "cpu":
        return solve_in_windows(f, x0, step, rtol, atol, max_steps, args or ())
    x, state, rest = x0.clone(), step.init(x0), args or ()
    now = _Iterates.at_start(x)
    limit = mark = now.residual
    next_mark = 0
    rows, ended = None, now  # the examples in x, None for all; the iterates of all examples
    for k in range(max_steps + 1):
        fx = f(x, *rest)
        check_value(fx, x)
        residual = norms(fx - x)
        if k == 0:
            # Finite, so that an overflow is beyond it even if the first residual was huge.
            limit = (BLOW_UP * residual).clamp(max=torch.finfo(residual.dtype).max)
        bounded = residual <= limit  # False where it is NaN
        converged = bounded & (residual <= rtol * norms(x) + atol)
        taken = now.running & (converged | (residual < now.residual))
        now.best = _choose(taken, x, now.best)
        now.residual = torch.where(taken, residual, now.residual)
        now.running = now.running & ~converged
        if k % CHECK_EVERY == 0 or k == max_steps:
            now.end(~bounded, Outcome.DIVERGED)
        if k == next_mark:
            now.end(~(now.residual < mark), Outcome.STAGNATED)
            mark, next_mark = now.residual, k + max(PATIENCE, k // 4)
        if k == max_steps:
            break
        n_running = int(now.running.sum())
        if n_running == 0:
            break
        x, state = step.next(x, fx, state)  # of ended examples too, whose x is not used again
        now.n_steps = now.n_steps + now.running
        if args is not None and 2 * n_running <= len(x):
            ended = now.into(ended, rows)
            keep = now.running.nonzero()[:, 0]
            rows = keep if rows is None else rows[keep]
            x, limit, mark = x[keep], limit[keep], mark[keep]
            state, rest = _select(state, keep), _select(rest, keep)
            now = now.select(keep)
    now.end(now.running, Outcome.MAX_STEPS)
    ended = now.into(ended, rows)
    return Solution(ended.best, ended.residual, ended.n_steps, ended.outcome)


@dataclass(eq=False)
class _Iterates:
    """The best iterate of each of n examples, (n, *event), and its numbers, (n,) each."""

    best: Tensor
    residual: Tensor
    n_steps: Tensor
    outcome: Tensor  # CONVERGED unless `end` set another; meaningless while running
    running: Tensor

    @classmethod
    def at_start(cls, x: Tensor) -> _Iterates:
        residual = torch.full_like(norms(x), math.inf)
        n_steps = torch.zeros_like(residual, dtype=torch.int64)
        outcome = torch.full_like(n_steps, Outcome.CONVERGED, dtype=torch.int8)
        return cls(x, residual, n_steps, outcome, torch.ones_like(n_steps, dtype=torch.bool))

    def end(self, where: Tensor, outcome: Outcome) -> None:
        """Mark running examples in `where` as ended with `outcome`."""
        here = self.running & where
        self.outcome = torch.where(here, outcome, self.outcome)
        self.running = self.running & ~here

    def select(self, keep: Tensor) -> _Iterates:
        return _Iterates(*(t[keep] for t in self._columns()))

    def into(self, ended: _Iterates, rows: Tensor | None) -> _Iterates:
        """All examples: these at `rows`, the others from `ended`; these alone if None."""
        if rows is None:
            return self
        columns = zip(ended._columns(), self._columns(), strict=True)
        return _Iterates(*(old.index_copy(0, rows, new) for old, new in columns))

    def _columns(self) -> tuple[Tensor, ...]:
        return self.best, self.residual, self.n_steps, self.outcome, self.running


def _select(state: Any, keep: Tensor) -> Any:
    """State or arguments for the examples `keep`, (n,); numbers and None have no rows."""
    if isinstance(state, Tensor):  # first, as a tensor has a `select` of its own
        return state[keep]
    if isinstance(state, Selectable):
        return state.select(keep)
    return tuple(_select(part, keep) for part in state) if isinstance(state, tuple) else state


def _choose(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` for the examples in the mask, `old` for the others; no copy if the mask is all True."""
    if bool(mask.all()):
        return new
    return torch.where(mask.view((-1,) + (1,) * (new.ndim - 1)), new, old)


def _check(x0: Tensor, rtol: float, atol: float, max_steps: int) -> None:
    check_batch("solve", x0, (...,), name="x0")
    check_count("solve", "max_steps", max_steps, 0)
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not 0 <= value < math.inf:
            raise ValueError(f"solve needs a finite `{name}` of at least 0; got {value}.")
