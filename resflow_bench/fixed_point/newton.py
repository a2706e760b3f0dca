"""Newton's step, with products in a coarse dtype and residuals in a fine one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""v -> J v, (B, *event) -> (B, *event)."""

Linearise = Callable[[Tensor], Product]
"""x -> (v -> -J_f(x) v), (B, *event)."""

# Off the CPU the host waits for the device once in so many products, to learn whether all systems
# are solved. A system takes about ten.
PRODUCTS_PER_CHECK = 8
# The batch from which solved examples are left out, once they are half of it: of a smaller one a
# product costs as much as a larger.
SHRUNK_FROM = 64


@dataclass(frozen=True)
class NewtonKrylov:
    """x_{n+1} = x_n + d,  (I + J_n) d = r_n := f(x_n) - x_n,  J_n = -J_f(x_n).

    The system is solved in the coarse dtype for a right side scaled to norm 1, so that only r's own
    dtype limits how small r becomes. Its tolerance relative to r is

        min(`loosest`, max(`reduction`, ||r||, floor / ||r||)),   floor = an ulp of ||x||:

    a step reaches ||r||^2 at best, and nothing below the floor. Where a residual grew, the example
    takes Picard's step.

    linearise: x -> (v -> -J_f(x) v), x rounded to `dtype` and the products in it; with a `select`
        if the examples' maps differ, see `Step`.
    precondition: an approximation of (I + J)^-1, the same for all examples; None is I.
    dtype: of the products.
    reduction, loosest: bounds on the tolerance of a system, relative to r.
    max_steps: of a system, a product each.

    Source: Dembo, Eisenstat and Steihaug (1982), "Inexact Newton methods".
    """

    linearise: Linearise
    precondition: Product | None = None
    dtype: torch.dtype = torch.float32
    reduction: float = 1e-6
    loosest: float = 1e-2
    max_steps: int = 200

    def init(self, x0: Tensor) -> tuple[Tensor, Linearise]:
        """||r|| of the step before, (B,), infinite at first, and `linearise` of the examples."""
        norm = torch.full((len(x0),), torch.inf, dtype=x0.dtype, device=x0.device)
        return norm, self.linearise

    def next(
        self, x: Tensor, fx: Tensor, state: tuple[Tensor, Linearise]
    ) -> tuple[Tensor, tuple[Tensor, Linearise]]:
        before, linearise = state
        residual = fx - x
        norm = residual.flatten(1).norm(dim=1)
        scale = norm.view(-1, *[1] * (x.ndim - 1))
        # 0 / 0 where x is the fixed point.
        right = torch.where(scale > 0, residual / scale, 0.0).to(self.dtype)
        floor = torch.finfo(x.dtype).eps * x.flatten(1).norm(dim=1)
        wanted = torch.maximum(norm, floor / norm).clamp(self.reduction, self.loosest)
        product = linearise(x.to(self.dtype))
        d = minimal_residuals(product, right, wanted, self.max_steps, self.precondition)
        grew = ~(norm <= before)
        newton = x + scale * d.to(x.dtype)
        return torch.where(grew.view_as(scale), fx, newton), (norm, linearise)


@dataclass(frozen=True)
class Newton:
    """x_{n+1} = x_n + (I + J_n)^-1 (f(x_n) - x_n),  J_n = -J_f(x_n), the systems solved directly.

    A few kernels where `NewtonKrylov` takes a dozen for each product; d^2 numbers an example.

    linearise, dtype: as in `NewtonKrylov`.
    """

    linearise: Linearise
    dtype: torch.dtype = torch.float32

    def init(self, x0: Tensor) -> Linearise:
        return self.linearise

    def next(self, x: Tensor, fx: Tensor, state: Linearise) -> tuple[Tensor, Linearise]:
        product = state(x.to(self.dtype))
        return x + direct(product, (fx - x).to(self.dtype)).to(x.dtype), state


def direct(product: Product, right: Tensor) -> Tensor:
    """d with (I + J) d = right, (B, *event), by the columns J e_i; not finite if there is none."""
    n, dim = len(right), math.prod(right.shape[1:])
    identity = torch.eye(dim, dtype=right.dtype, device=right.device)
    basis = identity.view(dim, 1, *right.shape[1:]).expand(dim, n, *right.shape[1:])
    matrix = identity + product(basis).reshape(dim, n, dim).permute(1, 2, 0)
    solution: Tensor = torch.linalg.solve_ex(matrix, right.flatten(1)).result
    return solution.view_as(right)


def minimal_residuals(
    product: Product,
    right: Tensor,
    tolerance: Tensor,
    max_steps: int,
    precondition: Product | None = None,
    select: Callable[[Tensor], Product] | None = None,
) -> Tensor:
    """d with ||right - (I + J) d|| <= tolerance, or the least residual in `max_steps`: (B, *event).

    Each step minimises the residual along p; p is the residual less as much of the p before as
    makes the two (I + J) p orthogonal.

    Args:
        right: (B, *event).
        tolerance: (B,).
        precondition: M^-1, approximately (I + J)^-1; d = M^-1 y with (I + J) M^-1 y = right.
        select: the product of some of the examples, (B',) indices. With it, solved examples of a
            large batch are left out on a CPU, where most take two thirds of the products of the
            last.

    Properties: residuals never grow; they go to 0 without a preconditioner if the symmetric part
        of I + J is positive, as it is for ||J||_2 < 1. A product a step.
    Source: Eisenstat, Elman and Schultz (1983), "Variational iterative methods for nonsymmetric
        systems of linear equations", Orthomin(1).
    """
    tiny = torch.finfo(right.dtype).tiny
    limit = tolerance.to(right.dtype).unsqueeze(1)
    event, on_cpu = right.shape[1:], right.device.type == "cpu"

    def image(residual: Tensor) -> tuple[Tensor, Tensor]:
        r = residual.view(-1, *event)
        p = r if precondition is None else precondition(r)
        if p.data_ptr() == r.data_ptr():  # r itself, which is needed
            p = p.clone()
        return p.flatten(1), (p + product(p)).flatten(1)

    # Vectors are changed in place: a new one comes from colder memory and takes twice the time.
    residual = right.flatten(1).clone()
    whole = solution = torch.zeros_like(residual)
    rows: Tensor | None = None  # the examples that are left; None is all
    p = q = residual  # of the step before, as `size`
    size = limit
    for k in range(max_steps):
        if k and (on_cpu or k % PRODUCTS_PER_CHECK == 0):
            # Where a residual is no number no step will make it one.
            is_open = torch.linalg.vector_norm(residual, dim=1, keepdim=True) > limit
            n_open = int(is_open.count_nonzero())
            if not n_open:
                break
            if on_cpu and select and len(limit) >= SHRUNK_FROM and 2 * n_open <= len(limit):
                whole = solution if rows is None else whole.index_copy(0, rows, solution)
                keep = is_open.nonzero()[:, 0]
                rows = keep if rows is None else rows[keep]
                product = select(rows)
                state = (residual, limit, p, q, size, solution)
                residual, limit, p, q, size, solution = (t.index_select(0, keep) for t in state)
        next_p, next_q = image(residual)
        if k:
            share = torch.linalg.vecdot(next_q, q).unsqueeze(1).div_(size)
            next_p.addcmul_(share, p, value=-1)
            next_q.addcmul_(share, q, value=-1)
        p, q = next_p, next_q
        size = torch.linalg.vector_norm(q, dim=1, keepdim=True).square_().clamp_min_(tiny)
        length = torch.linalg.vecdot(q, residual).unsqueeze(1).div_(size)
        solution.addcmul_(length, p)
        residual.addcmul_(length, q, value=-1)
    if rows is not None:
        solution = whole.index_copy(0, rows, solution)
    return solution.view_as(right)
