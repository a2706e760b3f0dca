"""The residual block z = x + g(x), Lip(g) < 1, and its certified inverse."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from resflow_bench.fixed_point import Auto, Picard, Solution, Step, solve
from resflow_bench.flows.certificate import apart_near, certificate, near_is_known
from resflow_bench.flows.refinement import in_float64, kept, recast, refined
from resflow_bench.layers import Branch, LinearBranch
from resflow_bench.layers.orders import conversion, norm
from resflow_bench.logdet.estimator import Estimator

ROUNDING = 8.0
"""Units in the last place, relative to |x| + |z| and the magnitudes inside g, that the residual of
an inverse is charged for its own evaluation in float64. Three convolutions of up to 4,608 terms
each were seen to err by no more than five units relative to |g(x)|, held against 80 bits."""

SHARE = 0.05
"""A block's bound above this share of the error asked for is worth d products: the blocks that
follow will stretch it."""


@dataclass(frozen=True)
class Inversion:
    """How to invert a block: x <- z - g(x) until ||z - x - g(x)|| <= atol + rtol ||x||.

    step: how the next iterate follows. None is `Picard()`, whose rate is known beforehand, or,
        where an `error` is asked, `Auto()`, and `Secant()` for iterations in a coarser dtype.
    rtol, atol: bound the residual, not its square, of every example by itself. None takes ten
        units in the last place of the working dtype, relative to the size of the numbers, which is
        about as far as Picard's iteration goes before rounding stops it.
    max_steps: for each block.
    error: the largest ||x - x*||_2 that is good enough. A flow's inverse that cannot certify it
        for an example says UNCERTIFIED. None asks for nothing.
    dtype: in which to iterate, float32 or float64. Where z is finer, x is then refined with
        residuals in z's dtype until they meet the tolerance. None is z's.

    Raises:
        ValueError: an `error` that is not positive and finite, or another dtype.
    """

    step: Step | None = None
    rtol: float | None = None
    atol: float | None = None
    max_steps: int = 2000
    error: float | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.error is not None and not 0 < self.error < math.inf:
            raise ValueError(
                f"Inversion needs a positive, finite `error`, or None; got {self.error}."
            )
        if self.dtype not in (None, torch.float32, torch.float64):
            raise ValueError(
                "Inversion iterates in torch.float32 or torch.float64, or, for None, in z's "
                f"`dtype`; got {self.dtype}."
            )

    def __call__(self, branch: Branch | LinearBranch, z: Tensor) -> Solution:
        """Solve x + g(x) = z from x = z, (B, *event)."""
        floor = 10 * torch.finfo(z.dtype).eps
        rtol = floor if self.rtol is None else self.rtol
        atol = floor if self.atol is None else self.atol
        if self.dtype == torch.float32 and z.dtype == torch.float64:
            return refined(
                branch, z, self.step, self.dtype, rtol=rtol, atol=atol, max_steps=self.max_steps
            )
        step = self.step or (Picard() if self.error is None else Auto())
        g = branch.normalised()
        return solve(
            lambda x, y: y - g(x),
            z,
            step,
            rtol=rtol,
            atol=atol,
            max_steps=self.max_steps,
            args=(z,),
        )


class ResidualBlock(nn.Module):
    """z = x + g(x),  ln|det dz/dx| = ln|det(I + J_g(x))|,  with Lip(g) <= `lipschitz` < 1.

    Args:
        branch: g, with the constant that it promises.

    Source: Behrmann et al. (2019), Theorem 1.
    """

    def __init__(self, branch: Branch | LinearBranch) -> None:
        super().__init__()
        self.branch = branch

    @property
    def lipschitz(self) -> float:
        """The constant that the branch promises."""
        return self.branch.lipschitz

    def forward(self, x: Tensor) -> Tensor:
        """x + g(x), (B, *event)."""
        return x + self.branch(x)

    def forward_and_log_det(
        self, x: Tensor, estimator: Estimator, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """(x + g(x), the estimator's value of ln|det(I + J_g(x))|), (B, *event) and (B,) nats."""
        g, log_det, _ = estimator(self.branch, x, generator)
        return x + g, log_det

    @torch.no_grad()
    def inverse(
        self, z: Tensor, inversion: Inversion, error: Tensor | None = None, certify: bool = True
    ) -> Solution:
        """x with x + g(x) = z, and ||x - x*|| <= (||z - x - g(x)|| + error) / m.

        1. m = `certificate`'s: ||f(x) - f(y)|| >= m ||x - y|| everywhere; at least 1 - K.
        2. Where that leaves a bound near `inversion.error` or above, x* is within it of x, and m of
           that ball (`apart_near`) is the better one.

        Args:
            z: (B, *event).
            inversion: step, tolerances, cap and the error that decides on 2.
            error: (B,), how far z itself may be from the z that is meant.
            certify: whether to compute `error_bound`: m is then of the weights as they are, not as
                promised, and the residual is evaluated in float64, so that the bound also covers
                what float32 does not resolve.

        Properties: no graph is recorded. Where g is a contraction in a p-norm with p other than 2,
            the inequality holds in that norm; `error` and the bound are converted from and to
            the 2-norm.
        """
        solution = inversion(self.branch, z)
        if not certify:
            return solution
        branch, z, x = in_float64(self.branch), z.double(), solution.value.double()
        order, n = branch.order, math.prod(z.shape[1:])
        known = kept(branch, certificate)
        # A size, of which float32 has digits enough.
        inside = recast(self.branch, torch.float32).magnitude(x.float()).double()
        sizes = norm(x.flatten(1), order) + norm(z.flatten(1), order) + inside
        if solution.value.dtype == torch.float64 and order == 2.0:
            residual = solution.residual  # at that x, of that g
        else:
            residual = norm((z - x - branch(x)).flatten(1), order)
        residual = residual + ROUNDING * torch.finfo(x.dtype).eps * sizes
        if error is not None:
            residual = residual + error * conversion(2.0, order, n)
        bound = residual * conversion(order, 2.0, n) / known.apart
        # Not certified to keep points apart, or not a number: no bound holds.
        bound = torch.where((bound < torch.inf) & (known.apart > 0.0), bound, torch.inf)
        if inversion.error is not None and near_is_known(branch, n, known):
            loose = (bound > SHARE * inversion.error) & (bound < torch.inf)
            rows = loose.nonzero()[:, 0]
            if len(rows):
                near = apart_near(branch, x[rows], bound[rows], known)
                better = residual[rows] / torch.where(near > known.apart, near, known.apart)
                bound = bound.index_copy(0, rows, better)
        return replace(solution, error_bound=bound)
