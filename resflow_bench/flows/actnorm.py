"""ActNorm: one scale and one shift for each channel, set from the first batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from resflow_bench.fixed_point import Solution
from resflow_bench.flows.bijection import carried, closed_form
from resflow_bench.flows.residual import Inversion
from resflow_bench.logdet.estimator import Estimator

STD_FLOOR = 1e-3
"""The smallest standard deviation that the data may set: a constant channel stays finite."""


class ActNorm(nn.Module):
    """z = exp(log_scale) (x + shift),  ln|det dz/dx| = n_positions sum_c log_scale_c.

    x is (B, C, *grid), with one scale and one shift for each channel c; n_positions is the number
    of points of the grid. A vector (B, d) is d channels at one position.

    `initialise(x)` sets shift and scale so that each channel of z has mean 0 and standard
    deviation 1 over the batch and the grid. Until then the layer is the identity.

    Args:
        n_channels: C.

    Source: Kingma and Dhariwal (2018), "Glow", section 3.1. Initialisation is a call of its own,
        not a flag that the first forward pass flips.
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(n_channels))
        self.log_scale = nn.Parameter(torch.zeros(n_channels))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Normalise the batch x, (B, C, *grid)."""
        channels = x.transpose(0, 1).flatten(1)  # (C, B n_positions)
        std = channels.std(1, correction=min(1, channels.shape[1] - 1))  # of one example: 0
        self.shift.copy_(-channels.mean(1))
        self.log_scale.copy_(-std.clamp_min(STD_FLOOR).log())

    def forward(self, x: Tensor) -> Tensor:
        """exp(log_scale) (x + shift), (B, C, *grid)."""
        return (x + _along(self.shift, x)) * _along(self.log_scale, x).exp()

    def forward_and_log_det(
        self, x: Tensor, estimator: Estimator, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """(z, ln|det dz/dx|), exact: the estimator is not asked."""
        n_positions = math.prod(x.shape[2:])
        return self(x), (n_positions * self.log_scale.sum()).expand(len(x))

    @torch.no_grad()
    def inverse(
        self, z: Tensor, inversion: Inversion, error: Tensor | None = None, certify: bool = True
    ) -> Solution:
        """x = exp(-log_scale) z - shift; an error in z grows by at most max_c exp(-log_scale_c)."""
        scaled = z * (-_along(self.log_scale, z)).exp()
        x = scaled - _along(self.shift, z)
        if not certify:
            return closed_form(x, None)
        # exp, product and difference are each off by at most a unit in the last place.
        sizes = x.flatten(1).norm(dim=1).double() + scaled.flatten(1).norm(dim=1).double()
        rounding = 2 * torch.finfo(z.dtype).eps * sizes
        stretch = (-self.log_scale.double()).exp().max()
        return closed_form(x, rounding + carried(error, z) * stretch)

    def extra_repr(self) -> str:
        return f"{len(self.shift)}"


def _along(channels: Tensor, x: Tensor) -> Tensor:
    """(C,) as (C, 1...), to stand beside x, (B, C, *grid)."""
    return channels if x.ndim == 2 else channels.view(-1, *[1] * (x.ndim - 2))
