"""The residual block z = x + g(x), Lip(g) < 1, and its certified inverse."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from resflow_bench.fixed_point import Picard, Solution, Step, solve
from resflow_bench.layers import Branch, LinearBranch
from resflow_bench.logdet.estimator import Estimator

ROUNDING = 8.0
"""Units in the last place, relative to |x| + |z|, that the residual of an inverse is charged for
its own evaluation in float64: three layers of 128 rounding errors each, added in quadrature."""


@dataclass(frozen=True)
class Inversion:
    """How to invert a block: x <- z - g(x) until ||z - x - g(x)|| <= atol + rtol ||x||.

    The tolerances bound the residual, not its square, of every example by itself. `None` takes ten
    units in the last place of the working dtype, relative to the size of the numbers, which is
    about as far as Picard's iteration goes before rounding stops it.
    """

    step: Step = Picard()
    rtol: float | None = None
    atol: float | None = None
    max_steps: int = 2000

    def __call__(self, branch: Branch | LinearBranch, z: Tensor) -> Solution:
        """Solve x + g(x) = z from x = z, (B, *event)."""
        g = branch.normalised()
        floor = 10 * torch.finfo(z.dtype).eps
        return solve(
            lambda x: z - g(x),
            z,
            self.step,
            rtol=floor if self.rtol is None else self.rtol,
            atol=floor if self.atol is None else self.atol,
            max_steps=self.max_steps,
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
        """x with x + g(x) = z, and ||x - x*|| <= (||z - x - g(x)|| + error) / (1 - K).

        Args:
            z: (B, *event).
            inversion: step, tolerances and cap.
            error: (B,), how far z itself may be from the z that is meant.
            certify: whether to compute `error_bound`: K is then the certified constant (by
                singular values, not the power iteration's estimate from below) and the residual is
                evaluated in float64, so that the bound also covers what float32 does not resolve.

        Properties: no graph is recorded.
        """
        solution = inversion(self.branch, z)
        if not certify:
            return solution
        g, x = copy.deepcopy(self.branch).double(), solution.value.double()
        slack = 1.0 - g.lipschitz_certified()
        eps = torch.finfo(x.dtype).eps
        residual = _norm(z.double() - x - g(x)) + ROUNDING * eps * (_norm(x) + _norm(z.double()))
        bound = (residual if error is None else residual + error) / slack
        if slack <= 0.0:  # not certified to be a contraction: no bound holds
            bound = torch.full_like(bound, torch.inf)
        return replace(solution, error_bound=bound)


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)
