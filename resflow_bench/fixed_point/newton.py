"""Newton's step with a Jacobian that is kept: coarse products, fine residuals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from resflow_bench.fixed_point.solve import solve
from resflow_bench.fixed_point.steps import Step


class Linear(Protocol):
    """A linear map of each example, in some dtype."""

    def push(self, v: Tensor) -> Tensor:
        """J v, (B, *event) -> (B, *event)."""
        ...

    def select(self, examples: Tensor) -> Linear:
        """The same for some of the examples, given by their indices (n,)."""
        ...


class Kept(NamedTuple):
    """J where the iteration began, and ||f(x) - x|| at the last iterate, (B,)."""

    jacobian: Linear
    norm: Tensor


@dataclass(frozen=True)
class NewtonKrylov:
    """x_{n+1} = x_n + d,  (I + J) d = f(x_n) - x_n,  J = -J_f(x_0).

    The system is solved in the coarse dtype, for ||f(x_n) - x_n|| = 1, whatever that of x: each
    step divides the residual by about 1 / `reduction`, down to the rounding of x's own dtype, since
    r is computed in that. Where a residual grew, the example takes Picard's step.

    linearise: x -> -J_f(x), x rounded to `dtype` and the products in it.
    linear: how the system is solved, as the fixed point of `stride` times d <- r - J d.
    dtype: of the products.
    reduction: the tolerance of the system, relative to r.
    stride: products in a step of the system's; so seldom it is asked who has ended.
    max_steps: of the system.

    Properties: with Lip(f) <= K < 1 the error after a step is at most
        (`reduction` + ||J(x_n) - J|| up to x*) / (1 - K) of the one before. One product with J for
        each of the system's steps, no evaluation of f beyond the one that `solve` makes.
    Source: Kelley (1995), "Iterative Methods for Linear and Nonlinear Equations": the chord method.
    """

    linearise: Callable[[Tensor], Linear]
    linear: Step
    dtype: torch.dtype = torch.float32
    reduction: float = 1e-5
    stride: int = 4
    max_steps: int = 1000

    def init(self, x0: Tensor) -> Kept:
        norm = torch.full((len(x0),), torch.inf, dtype=x0.dtype, device=x0.device)
        return Kept(self.linearise(x0.to(self.dtype)), norm)

    def next(self, x: Tensor, fx: Tensor, state: Kept) -> tuple[Tensor, Kept]:
        residual = fx - x
        norm = residual.flatten(1).norm(dim=1)
        scale = norm.view(-1, *[1] * (x.ndim - 1))
        # 0 / 0 where there is nothing to do.
        right = torch.where(scale > 0, residual / scale, 0.0).to(self.dtype)

        def f(d: Tensor, r: Tensor, jacobian: Linear) -> Tensor:
            for _ in range(self.stride):
                d = r - jacobian.push(d)
            return d

        solution = solve(
            f,
            right,
            self.linear,
            rtol=0.0,
            atol=self.reduction,
            max_steps=self.max_steps,
            args=(right, state.jacobian),
        )
        grew = ~(norm <= state.norm)
        newton = x + scale * solution.value.to(x.dtype)
        return torch.where(grew.view_as(scale), fx, newton), Kept(state.jacobian, norm)
