"""An inverse in float64 from iterations in float32, and what need not be computed twice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from resflow_bench.fixed_point import NewtonKrylov, Solution, Step, solve
from resflow_bench.layers import Branch, LinearBranch

Part = TypeVar("Part", bound=nn.Module)
Made = TypeVar("Made")

# The coarse iteration ends here, relative to ||x||, and each refinement of the fine residual
# divides it by as much: float32 gives little more, and less would take a refinement more.
REDUCTION = 1e-5
# Two or three do; if so many do not, they do not converge.
MAX_REFINEMENTS = 8


def refined(
    branch: Branch | LinearBranch,
    z: Tensor,
    step: Step,
    dtype: torch.dtype,
    *,
    rtol: float,
    atol: float,
    max_steps: int,
) -> Solution:
    """x + g(x) = z to the tolerance in z's dtype, by iterations and products in a coarser one.

    1. Iterate in the coarse dtype from x = z, until the residual is `REDUCTION` of ||x||.
    2. Correct x by (I + J)^-1 (z - x - g(x)): the residual in z's dtype, J that of the coarse x.
    3. Where that did not reach the tolerance, iterate in z's dtype.

    Returns:
        A `Solution` in z's dtype; `n_steps` counts the steps of 1, 2 and 3.
    """
    rough, fine = recast(branch, dtype), branch.normalised()
    coarse, target = rough.normalised(), z.to(dtype)
    start = solve(
        lambda x, y: y - coarse(x),
        target,
        step,
        rtol=max(rtol, REDUCTION),
        atol=max(atol, REDUCTION),
        max_steps=max_steps,
        args=(target,),
    )
    newton = NewtonKrylov(lambda x: rough.linearise(x)[1], step, dtype, REDUCTION)

    def f(x: Tensor, y: Tensor) -> Tensor:
        return y - fine(x)

    options: dict[str, Any] = {"rtol": rtol, "atol": atol}
    x, rounds = start.value.to(z.dtype), min(MAX_REFINEMENTS, max_steps)
    solution = solve(f, x, newton, max_steps=rounds, args=(z,), **options)
    solution = replace(solution, n_steps=solution.n_steps + start.n_steps)
    rest = (~solution.converged).nonzero()[:, 0]
    if not len(rest):
        return solution
    y, x = z[rest], solution.value[rest]
    last = solve(f, x, step, max_steps=max_steps, args=(y,), **options)
    return replace(
        solution,
        value=solution.value.index_copy(0, rest, last.value),
        residual=solution.residual.index_copy(0, rest, last.residual),
        n_steps=solution.n_steps.index_add(0, rest, last.n_steps),
        outcome=solution.outcome.index_copy(0, rest, last.outcome),
    )


def recast(part: Part, dtype: torch.dtype) -> Part:
    """The same map computed in a dtype: `part` itself if that is what it does, else a copy."""
    if all(t.dtype == dtype for t in _state(part) if t.is_floating_point()):
        return part
    made: Part = kept(part, _COPIES[dtype])
    return made


def in_float64(part: Part) -> Part:
    """The same map computed in float64: `part` itself if that is what it does, else a copy."""
    return recast(part, torch.float64)


def kept(part: Part, make: Callable[[Part], Made]) -> Made:
    """make(part), or what it gave before if no parameter and no buffer has changed by a bit.

    They are compared by value: what is written through `.data` leaves no other trace. A comparison
    takes microseconds where a copy or a certificate of the norms takes milliseconds.

    Args:
        part: whose state decides; what is made must not refer to it, or neither is ever freed.
        make: a function that lives as long as the module it stands in.
    """
    made = _KEPT.setdefault(part, {})
    state = _state(part)
    if make in made:
        then, value = made[make]
        if len(then) == len(state) and all(map(_same, then, state)):
            return value
    value = make(part)
    made[make] = [t.clone() for t in state], value
    return value


_KEPT: WeakKeyDictionary[nn.Module, dict[Callable[[Any], Any], tuple[list[Tensor], Any]]] = (
    WeakKeyDictionary()
)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


def _state(part: nn.Module) -> list[Tensor]:
    return [t.detach() for t in (*part.parameters(), *part.buffers())]


def _double(part: Part) -> Part:
    return copy.deepcopy(part).double()


def _single(part: Part) -> Part:
    return copy.deepcopy(part).float()


_COPIES: dict[torch.dtype, Callable[[Any], Any]] = {
    torch.float64: _double,
    torch.float32: _single,
}
