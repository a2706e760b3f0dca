"""The cube: each coordinate of the data is the third power of its latent."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from resflow_bench.arguments import check_batch


class Cube(nn.Module):
    """z_i = sign(x_i) |x_i|^(1/3), with the inverse x_i = z_i^3.

    ln|det dz/dx| = sum_i (-2/3 ln|x_i| - ln 3), which is infinite where a coordinate is 0: the
    density of the flow is unbounded there, and integrable. A gradient at 0 is NaN.
    """

    def forward(self, x: Tensor) -> Tensor:
        check_batch("Cube", x, (...,))
        return x.sign() * x.abs().pow(1 / 3)

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self(x), (-2 / 3 * x.abs().log() - math.log(3)).flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        check_batch("Cube", z, (...,), name="z")
        return z**3

    def inverse_error(self, z: Tensor, x: Tensor, error: Tensor) -> Tensor:
        """Rounding, and e (3 m^2 + 3 m e + e^2) from an error e in z, with m = max_i |z_i|."""
        largest = z.double().abs().flatten(1).amax(1)
        rounding = 4 * torch.finfo(z.dtype).eps * x.double().flatten(1).norm(dim=1)
        return rounding + error * (3 * largest**2 + 3 * largest * error + error**2)
