"""An inverse in float64 from iterations in float32, and what need not be computed twice."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from resflow_bench.fixed_point import Auto, NewtonKrylov, Secant, Solution, Step, solve
from resflow_bench.jacobian import JacobianChain, MatrixStage, Stage, dense_jacobian
from resflow_bench.layers import Activation, Branch, LinearBranch, SpectralLinear
from resflow_bench.layers.branches import linearise_activation

Part = TypeVar("Part", bound=nn.Module)
Made = TypeVar("Made")

# The coarse iteration ends here, relative to 1 + ||x||: Newton's step then does more for its
# products than the coarse iteration for as many evaluations.
START = 1e-3
# Three or four do; if so many do not, they do not converge.
MAX_REFINEMENTS = 8
# The d up to which the mean Jacobian is formed and inverted, which two threads of MKL are known to
# do without hanging.
LARGEST_INVERTED = 256


def refined(
    branch: Branch | LinearBranch,
    z: Tensor,
    step: Step | None,
    dtype: torch.dtype,
    *,
    rtol: float,
    atol: float,
    max_steps: int,
) -> Solution:
    """x + g(x) = z to the tolerance in z's dtype, by iterations and products in a coarser one.

    1. P = (I + J)^-1 at the batch's mean slopes at z. Iterate x <- x + P (z - x - g(x)) in the
       coarse dtype from x = z, until that changes x by `START` (1 + ||x||).
    2. Correct x by (I + J)^-1 (z - x - g(x)): the residual in z's dtype, J that of the coarse x.
    3. Where that did not reach the tolerance, iterate without P in z's dtype.

    Args:
        step: for 1 and 3; None is `Secant` for 1 and `Auto` for 3.

    Returns:
        A `Solution` in z's dtype; `n_steps` counts the steps of 1, 2 and 3.
    """
    fine = kept(branch, Frozen)
    coarse, target = kept(recast(branch, dtype), Frozen), z.to(dtype)
    precondition = by_the_mean(coarse, target)
    start = solve(
        lambda x, y: x + precondition(y - x - coarse(x)),
        target,
        step or Secant(),
        rtol=max(rtol, START),
        atol=max(atol, START),
        max_steps=max_steps,
        args=(target,),
    )
    newton = NewtonKrylov(lambda x: coarse.linearise(x)[1], precondition, dtype)

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
    last = solve(f, x, step or Auto(), max_steps=max_steps, args=(y,), **options)
    return replace(
        solution,
        value=solution.value.index_copy(0, rest, last.value),
        residual=solution.residual.index_copy(0, rest, last.residual),
        n_steps=solution.n_steps.index_add(0, rest, last.n_steps),
        outcome=solution.outcome.index_copy(0, rest, last.outcome),
    )


class Frozen:
    """g and its products with every weight normalised once, for as long as the weights stand.

    A linear layer's norm costs as much as its product with a few hundred examples.
    """

    def __init__(self, branch: Branch | LinearBranch) -> None:
        self.stages: list[Any] = list(branch.stages) if isinstance(branch, Branch) else [branch]
        self.weights = [
            stage.weight_normalised().detach() if isinstance(stage, SpectralLinear) else None
            for stage in self.stages
        ]
        self.maps = [
            stage.normalised() if hasattr(stage, "normalised") else stage for stage in self.stages
        ]

    def __call__(self, x: Tensor) -> Tensor:
        """g(x), (B, *event)."""
        for stage in self.maps:
            x = stage(x)
        return x

    def linearise(self, x: Tensor) -> tuple[Tensor, JacobianChain]:
        """g(x) and its J, as `Branch.linearise`; no graph."""
        jacobians: list[Stage] = []
        for stage, apply, weight in zip(self.stages, self.maps, self.weights, strict=True):
            jacobian: Stage
            if weight is not None:
                x, jacobian = apply(x), MatrixStage(weight)
            elif isinstance(stage, Activation):
                x, jacobian = linearise_activation(stage, x)
            else:
                x, jacobian = stage.linearise(x)
            jacobians.append(jacobian)
        return x, JacobianChain(jacobians)


def by_the_mean(branch: Frozen, x: Tensor) -> Callable[[Tensor], Tensor]:
    """r -> (I + J)^-1 r with the one J of the mean slopes at x; I where d is large.

    (I + J)^-1 exists for ||J|| < 1, which a mean of Jacobians below 1 in norm is; where it does
    not, what it gives is not finite, and an iteration with it says so.
    """
    dim = math.prod(x.shape[1:])
    if dim > LARGEST_INVERTED or not len(x):
        return lambda r: r
    mean = dense_jacobian(branch.linearise(x)[1].mean(), x[:1])[0]
    identity = torch.eye(dim, dtype=x.dtype, device=x.device)
    inverse = torch.linalg.inv_ex(identity + mean).inverse.mT.contiguous()
    return lambda r: (r.flatten(1) @ inverse).view_as(r)


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
