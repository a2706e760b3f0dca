"""ActNorm: one scale and one shift for each channel, set from the first batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from resflow_bench.arguments import check_batch, finite_rows

STD_FLOOR = 1e-3
"""The smallest standard deviation that the data may set."""


class ActNorm(nn.Module):
    """z = exp(log_scale) (x + shift),  ln|det dz/dx| = n_positions sum_c log_scale_c.

    x is (B, C, *grid), with one scale and one shift for each channel c; n_positions is the number
    of points of the grid. A vector (B, d) is d channels at one position.

    `initialise(x)` sets shift and scale so that each channel of z has mean 0 and standard
    deviation 1 over the batch and the grid; a channel that is constant keeps the scale 1. Until
    then the layer is the identity.

    Args:
        n_channels: C.

    Source: Kingma and Dhariwal (2018), "Glow", section 3.1. Initialisation is a call of its own,
        not a side effect of the first forward pass.
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(n_channels))
        self.log_scale = nn.Parameter(torch.zeros(n_channels))

    @property
    def n_channels(self) -> int:
        """C."""
        return len(self.shift)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Normalise the batch x, (B, C, *grid).

        Raises:
            ValueError: x has no example, or numbers that are not finite.
        """
        check_examples(len(x), int(self.fit(x)))

    @torch.no_grad()
    def fit(self, x: Tensor) -> Tensor:
        """`initialise`, without a wait for the device: the number of examples not finite, ().

        Where it is not 0 the layer stays as it is.

        Raises:
            ValueError: x has no example.
        """
        self._check(x)
        if not len(x):
            check_examples(0, 0)
        n_lost = (~finite_rows(x)).sum()
        channels = x.transpose(0, 1).flatten(1)  # (C, B n_positions)
        mean = channels.mean(1)
        std = channels.std(1, correction=min(1, channels.shape[1] - 1))  # of one number: 0
        # To float32's rounding, in a coarser dtype too, where 1 % is a few units in the last place.
        eps = min(torch.finfo(dtype).eps for dtype in (x.dtype, torch.float32))
        is_constant = std <= 8 * eps * mean.abs()
        std = torch.where(is_constant, 1.0, std.clamp_min(STD_FLOOR))
        self.shift.copy_(torch.where(n_lost == 0, -mean, self.shift))
        self.log_scale.copy_(torch.where(n_lost == 0, -std.log(), self.log_scale))
        return n_lost

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        return (x + _along(self.shift, x)) * _along(self.log_scale, x).exp()

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = self.log_scale.sum()
        if (n_positions := math.prod(x.shape[2:])) != 1:
            total = n_positions * total
        return self(x), total.expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        self._check(z, "z")
        return self._scaled(z) - _along(self.shift, z)

    def inverse_error(self, z: Tensor, x: Tensor, error: Tensor) -> Tensor:
        """Rounding, and the error in z times at most max_c exp(-log_scale_c)."""
        # exp, product and difference are each off by at most a unit in the last place.
        scaled = self._scaled(z)
        sizes = x.flatten(1).norm(dim=1).double() + scaled.flatten(1).norm(dim=1).double()
        rounding = 2 * torch.finfo(z.dtype).eps * sizes
        return rounding + error * (-self.log_scale.double()).exp().max()

    def extra_repr(self) -> str:
        return f"{len(self.shift)}"

    def _check(self, x: Tensor, name: str = "x") -> None:
        check_batch("ActNorm", x, (len(self.shift), ...), name=name)

    def _scaled(self, z: Tensor) -> Tensor:
        return z * (-_along(self.log_scale, z)).exp()


def check_examples(n: int, n_lost: int) -> None:
    """Refuse n examples of which n_lost are not finite, or none at all."""
    if not n or n_lost:
        raise ValueError(
            "ActNorm needs one example or more to be initialised from, all finite; got "
            f"{n}, {n_lost} of them not finite. Leave those out."
        )


def _along(channels: Tensor, x: Tensor) -> Tensor:
    """(C,) as (C, 1...), to broadcast with x, (B, C, *grid)."""
    return channels if x.ndim == 2 else channels.view(-1, *[1] * (x.ndim - 2))
