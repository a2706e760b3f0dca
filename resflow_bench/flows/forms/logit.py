"""Logit: from the unit cube of images to all of R^d, on which a flow acts."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from resflow_bench.arguments import check_batch
from resflow_bench.layers.activations import softplus


class Logit(nn.Module):
    """z_i = logit(y_i),  y = margin + (1 - 2 margin) x,  for x in [0, 1]^d.

    ln|det dz/dx| = sum_i ln((1 - 2 margin) / (y_i (1 - y_i)))
                  = sum_i ln(1 - 2 margin) + softplus(z_i) + softplus(-z_i).

    The inverse's slope is (1 - 2 margin)^-1 y (1 - y), so that it stretches no error by more than
    1/4 / (1 - 2 margin). It maps R^d to a cube that is larger than the unit cube by
    margin / (1 - 2 margin) on each side. Outside that cube the log-det is -inf, as the density of a
    flow is 0 there, and z means nothing.

    Args:
        margin: the distance of y from 0 and 1; in (0, 1/2).

    Raises:
        ValueError: a margin outside (0, 1/2).

    Source: Dinh, Sohl-Dickstein and Bengio (2017), "Density estimation using Real NVP", 4.1.
    """

    def __init__(self, margin: float = 0.05) -> None:
        super().__init__()
        if not 0 < margin < 0.5:
            raise ValueError(
                f"Logit needs 0 < margin < 0.5 to be finite and increasing on [0, 1]; got {margin}."
                " Choose, for example, 0.05."
            )
        self.margin = margin

    def forward(self, x: Tensor) -> Tensor:
        """z, (B, *event); NaN outside the cube."""
        return torch.logit(self._inside(x))

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self._inside(x)
        is_outside = (y <= 0) | (y >= 1)  # False where y is NaN, which z then is too
        z = torch.logit(torch.where(is_outside, 0.5, y))
        slopes = softplus(z) + softplus(-z) + math.log1p(-2 * self.margin)
        return z, torch.where(is_outside, -math.inf, slopes).flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        check_batch("Logit", z, (...,), name="z")
        return (torch.sigmoid(z) - self.margin) / (1 - 2 * self.margin)

    def inverse_error(self, z: Tensor, x: Tensor, error: Tensor) -> Tensor:
        """Rounding, and at most 1/4 / (1 - 2 margin) times the error in z."""
        width = 1 - 2 * self.margin
        # Before the division each number is below 1 and off by at most four units in the last
        # place of 1 (two of the sigmoid, its difference from the margin, the quotient).
        rounding = 4 * torch.finfo(z.dtype).eps * math.sqrt(math.prod(z.shape[1:])) / width
        return rounding + error * (0.25 / width)

    def extra_repr(self) -> str:
        return f"margin={self.margin:g}"

    def _inside(self, x: Tensor) -> Tensor:
        """y."""
        check_batch("Logit", x, (...,))
        return self.margin + (1 - 2 * self.margin) * x
