"""ActNorm: one scale and one shift for each coordinate, set from the first batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from resflow_bench.fixed_point import Outcome, Solution
from resflow_bench.flows.residual import Inversion
from resflow_bench.logdet.estimator import Estimator

STD_FLOOR = 1e-3
"""The smallest standard deviation that the data may set: a constant coordinate stays finite."""


class ActNorm(nn.Module):
    """z = exp(log_scale) (x + shift),  ln|det dz/dx| = sum_i log_scale_i.

    `initialise(x)` sets shift and scale so that z has mean 0 and standard deviation 1 over x.
    Until then the layer is the identity.

    Args:
        dim: number of coordinates.

    Source: Kingma and Dhariwal (2018), "Glow", section 3.1. Initialisation is a call of its own,
        not a flag that the first forward pass flips.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(dim))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Normalise the batch x, (B, d)."""
        self.shift.copy_(-x.mean(0))
        self.log_scale.copy_(-x.std(0).clamp_min(STD_FLOOR).log())

    def forward(self, x: Tensor) -> Tensor:
        """exp(log_scale) (x + shift), (B, d)."""
        return (x + self.shift) * self.log_scale.exp()

    def forward_and_log_det(
        self, x: Tensor, estimator: Estimator, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """(z, ln|det dz/dx|), exact: the estimator is not asked."""
        return self(x), self.log_scale.sum().expand(x.shape[0])

    @torch.no_grad()
    def inverse(
        self, z: Tensor, inversion: Inversion, error: Tensor | None = None, certify: bool = True
    ) -> Solution:
        """x = exp(-log_scale) z - shift; an error in z grows by at most max_i exp(-log_scale_i)."""
        x = z * (-self.log_scale).exp() - self.shift
        zeros = torch.zeros(z.shape[0], device=z.device)
        bound = None
        if certify:
            rounding = torch.finfo(z.dtype).eps * (x.norm(dim=1) + self.shift.norm()).double()
            stretch = (-self.log_scale.double()).exp().max()
            bound = 2 * rounding + (0.0 if error is None else error * stretch)
        return Solution(
            value=x,
            residual=zeros.to(z.dtype),
            n_steps=zeros.long(),
            outcome=torch.full_like(zeros, Outcome.CONVERGED, dtype=torch.int8),
            error_bound=bound,
        )
