"""The inverse of a residual block, the second half of a block of an implicit flow."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from resflow_bench.arguments import check_batch, finite_rows
from resflow_bench.fixed_point import Outcome, Solution
from resflow_bench.flows.bijection import ROUNDING, or_zeros
from resflow_bench.flows.copies import in_float64
from resflow_bench.flows.inversion import AnyInversion
from resflow_bench.flows.preimage import preimage
from resflow_bench.flows.residual import ResidualBlock
from resflow_bench.layers import AnyBranch
from resflow_bench.layers.orders import conversion
from resflow_bench.logdet.estimator import Estimator
from resflow_bench.theory import INVERSE, Coefficients


class InverseBlock(nn.Module):
    """z with z + g(z) = x,  ln|det dz/dx| = -ln|det(I + J_g(z))|,  for Lip(g) <= K < 1.

    After a residual block x -> x + g_1(x) it makes a block of an implicit flow: z + g_2(z) =
    x + g_1(x), which stretches by up to (1 + K)/(1 - K) and shrinks by as much.

    Args:
        block: z -> z + g(z).

    Properties: unbiased if the estimator is, with its variance and its products. A call solves for
        z to rounding, and a backward pass solves one linear system, see `flows.preimage`; the
        inverse is one evaluation of g.

    Raises:
        ArithmeticError: in every call, where z was not found.

    Source: Lu, Chen, Li, Wang and Zhu (2021), "Implicit normalizing flows".
    """

    coefficients: Coefficients = INVERSE

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.block = block

    @property
    def g(self) -> AnyBranch:
        """As of the residual block."""
        return self.block.g

    def at(self, x: Tensor) -> Tensor:
        """z: the point of J, (B, *event)."""
        return preimage(self.block, x)

    def given(self, context: Tensor) -> InverseBlock:
        """As `ResidualBlock.given`."""
        return InverseBlock(self.block.given(context))

    def forward(self, x: Tensor) -> Tensor:
        return preimage(self.block, x)

    def forward_and_log_det(
        self, x: Tensor, estimator: Estimator, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        z = preimage(self.block, x)
        return z, -estimator(self.g, z, generator).value

    @torch.no_grad()
    def inverse(
        self, z: Tensor, inversion: AnyInversion, error: Tensor | None = None, certify: bool = True
    ) -> Solution:
        """x = z + g(z), in one evaluation.

        ||x - x*||  <=  ||x - x'|| + rounding of x' + (1 + K) error,  x' that of float64, with the
        certified K.
        """
        check_batch("InverseBlock", z, (...,), name="z")
        x = self.block(z)
        zeros = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        outcome = torch.where(finite_rows(x), Outcome.CONVERGED, Outcome.DIVERGED).to(torch.int8)
        bound = self._bound(z, x, or_zeros(error, z)) if certify else None
        return Solution(x, zeros, zeros.long(), outcome, bound)

    def _bound(self, z: Tensor, x: Tensor, error: Tensor) -> Tensor:
        branch, order, n = in_float64(self.g), self.g.order, math.prod(z.shape[1:])
        wide = z.double()
        exact = wide + branch(wide)
        off = (x.double() - exact).flatten(1).norm(dim=1)
        sizes = self.block.sizes(wide, exact, order) * conversion(order, 2.0, n)
        off = off + ROUNDING * torch.finfo(torch.float64).eps * sizes
        known = self.block.bounds()
        stretch = 1 + known.lipschitz * conversion(2.0, order, n) * conversion(order, 2.0, n)
        # Not 0 times infinity.
        return off + torch.where(error > 0, error * stretch, 0.0)
