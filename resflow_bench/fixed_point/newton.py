"""Newton's step: coarse products, fine residuals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from resflow_bench.jacobian import Jacobian

# Off the CPU whether all examples have ended is asked so seldom, since the answer is waited for.
CHECK_EVERY = 4


@dataclass(frozen=True)
class NewtonKrylov:
    """x_{n+1} = x_n + d,  (I + J_n) d = r_n := f(x_n) - x_n,  J_n = -J_f(x_n).

    The system is solved in the coarse dtype for a right side of norm 1, whatever that of r: only
    r's own dtype limits how small r becomes. Its tolerance relative to r is

        min(`loosest`, max(`reduction`, ||r||, floor / ||r||)),   floor = an ulp of ||x||:

    a step reaches ||r||^2 at best, and nothing below the floor. Where a residual grew, the example
    takes Picard's step.

    linearise: x -> -J_f(x) with `push`, x rounded to `dtype` and the products in it.
    precondition: an approximation of (I + J)^-1, the same for all examples; None is I.
    dtype: of the products.
    max_steps: of the system, a product each.

    Source: Dembo, Eisenstat and Steihaug (1982), "Inexact Newton methods".
    """

    linearise: Callable[[Tensor], Jacobian]
    precondition: Callable[[Tensor], Tensor] | None = None
    dtype: torch.dtype = torch.float32
    reduction: float = 1e-6
    loosest: float = 1e-2
    max_steps: int = 200

    def init(self, x0: Tensor) -> Tensor:
        """||r|| before, (B,)."""
        return torch.full((len(x0),), torch.inf, dtype=x0.dtype, device=x0.device)

    def next(self, x: Tensor, fx: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        residual = fx - x
        norm = residual.flatten(1).norm(dim=1)
        scale = norm.view(-1, *[1] * (x.ndim - 1))
        # 0 / 0 where there is nothing to do.
        right = torch.where(scale > 0, residual / scale, 0.0).to(self.dtype)
        floor = torch.finfo(x.dtype).eps * x.flatten(1).norm(dim=1)
        wanted = torch.maximum(norm, floor / norm).clamp(self.reduction, self.loosest)
        push = self.linearise(x.to(self.dtype)).push
        d = minimal_residuals(push, right, wanted, self.max_steps, self.precondition)
        grew = ~(norm <= state)
        newton = x + scale * d.to(x.dtype)
        return torch.where(grew.view_as(scale), fx, newton), norm


def minimal_residuals(
    push: Callable[[Tensor], Tensor],
    right: Tensor,
    tolerance: Tensor,
    max_steps: int,
    precondition: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """d with ||right - (I + J) d|| <= tolerance, or as near as `max_steps` come: (B, *event).

    Each step goes along p to the least residual; p is the residual, of which as much of the p
    before is taken away as makes the two (I + J) p orthogonal.

    Args:
        push: v -> J v.
        right: (B, *event).
        tolerance: (B,).
        precondition: M^-1, approximately (I + J)^-1; d = M^-1 of what solves (I + J) M^-1.

    Properties: residuals never grow; they go to 0 without a preconditioner if the symmetric part
        of I + J is positive, as it is for ||J||_2 < 1. A product a step.
    Source: Eisenstat, Elman and Schultz (1983), "Variational iterative methods for nonsymmetric
        systems of linear equations", Orthomin(1).
    """
    tiny = torch.finfo(right.dtype).tiny
    limit = tolerance.to(right.dtype).square()
    shape = (-1, *[1] * (right.ndim - 1))
    on_cpu = right.device.type == "cpu"

    def image(r: Tensor) -> tuple[Tensor, Tensor]:
        p = r if precondition is None else precondition(r)
        return p, p + push(p)

    residual, solution = right, torch.zeros_like(right)
    p, q = image(residual)
    for k in range(1, max_steps + 1):
        size = _dot(q, q).clamp_min(tiny)
        length = (_dot(q, residual) / size).view(shape)
        solution = torch.addcmul(solution, length, p)
        residual = torch.addcmul(residual, length, q, value=-1)
        asked = on_cpu or k % CHECK_EVERY == 0
        if asked and bool((_dot(residual, residual) <= limit).all()):
            break
        if k < max_steps:
            next_p, next_q = image(residual)
            share = (_dot(next_q, q) / size).view(shape)
            p = torch.addcmul(next_p, share, p, value=-1)
            q = torch.addcmul(next_q, share, q, value=-1)
    return solution


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(B, *event), (B, *event) -> (B,)."""
    product: Tensor = torch.linalg.vecdot(a.flatten(1), b.flatten(1))
    return product
