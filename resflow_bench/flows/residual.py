"""The residual block z = x + g(x), Lip(g) < 1, and its certified inverse."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from resflow_bench.fixed_point import Picard, Solution, Step, solve
from resflow_bench.layers import Branch, LinearBranch
from resflow_bench.layers.orders import conversion, norm
from resflow_bench.logdet.estimator import Estimator

Part = TypeVar("Part", bound=nn.Module)

ROUNDING = 8.0
"""Units in the last place, relative to |x| + |z| and the magnitudes inside g, that the residual of
an inverse is charged for its own evaluation in float64. Three convolutions of up to 4,608 terms
each were seen to err by no more than five units relative to |g(x)|, held against 80 bits."""


@dataclass(frozen=True)
class Inversion:
    """How to invert a block: x <- z - g(x) until ||z - x - g(x)|| <= atol + rtol ||x||.

    step: how the next iterate follows.
    rtol, atol: bound the residual, not its square, of every example by itself. None takes ten
        units in the last place of the working dtype, relative to the size of the numbers, which is
        about as far as Picard's iteration goes before rounding stops it.
    max_steps: for each block.
    error: the largest ||x - x*||_2 that is good enough. A flow's inverse that cannot certify it
        for an example says UNCERTIFIED. None asks for nothing.

    Raises:
        ValueError: an `error` that is not positive and finite.
    """

    step: Step = Picard()
    rtol: float | None = None
    atol: float | None = None
    max_steps: int = 2000
    error: float | None = None

    def __post_init__(self) -> None:
        if self.error is not None and not 0 < self.error < math.inf:
            raise ValueError(
                f"Inversion needs a positive, finite `error`, or None; got {self.error}."
            )

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
            certify: whether to compute `error_bound`: K is then the certified constant (of the
                weights as they are, not the one promised) and the residual is evaluated in
                float64, so that the bound also covers what float32 does not resolve.

        Properties: no graph is recorded. Where g is a contraction in a p-norm with p other than 2,
            the inequality holds in that norm; `error` and the bound are converted from and to
            the 2-norm.
        """
        solution = inversion(self.branch, z)
        if not certify:
            return solution
        branch, z, x = in_float64(self.branch), z.double(), solution.value.double()
        order, n = branch.order, math.prod(z.shape[1:])
        slack = 1.0 - branch.lipschitz_certified()
        sizes = norm(x.flatten(1), order) + norm(z.flatten(1), order) + branch.magnitude(x)
        residual = norm((z - x - branch(x)).flatten(1), order)
        residual = residual + ROUNDING * torch.finfo(x.dtype).eps * sizes
        if error is not None:
            residual = residual + error * conversion(2.0, order, n)
        bound = residual * conversion(order, 2.0, n) / slack
        # Not certified to be a contraction, or not a number: no bound holds.
        bound = torch.where((bound < torch.inf) & (slack > 0.0), bound, torch.inf)
        return replace(solution, error_bound=bound)


def in_float64(part: Part) -> Part:
    """The same map computed in float64: `part` itself if that is what it does, else a copy."""
    state = part.state_dict().values()
    if all(t.dtype == torch.float64 for t in state if t.is_floating_point()):
        return part
    return copy.deepcopy(part).double()
