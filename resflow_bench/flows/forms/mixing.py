"""Mixing: an invertible linear map of the channels, the same at every position."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from resflow_bench.arguments import check_batch
from resflow_bench.flows.bijection import ROUNDING
from resflow_bench.flows.copies import on_host


class Mixing(nn.Module):
    """z_p = W x_p at every position p,  W = P L (U + diag(s)),  |s| = exp(log_scale).

    ln|det dz/dx| = n_positions sum_c log_scale_c, exactly and without a determinant. P is a fixed
    permutation and the signs of s are fixed; L is unit lower triangular and U strictly upper. W
    starts as a random orthogonal matrix.

    Args:
        n_channels: C; x is (B, C, *grid).
        generator: draws the first W; None is a fresh one with seed 0.

    Source: Kingma and Dhariwal (2018), "Glow", section 3.2.
    """

    def __init__(self, n_channels: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        shape = (n_channels, n_channels)
        normal = torch.randn(shape, generator=generator, device=generator.device).double()
        permutation, lower, upper = torch.linalg.lu(torch.linalg.qr(normal).Q)
        scale = upper.diagonal()
        dtype = torch.get_default_dtype()
        self.lower = nn.Parameter(lower.tril(-1).to(dtype))
        self.upper = nn.Parameter(upper.triu(1).to(dtype))
        self.log_scale = nn.Parameter(scale.abs().log().to(dtype))
        self.sign: Tensor  # (C,), of s
        self.rows: Tensor  # (C,) int64: row i of W is row rows[i] of L (U + diag(s))
        self.register_buffer("sign", scale.sign().to(dtype))
        self.register_buffer("rows", permutation.argmax(1))

    @property
    def n_channels(self) -> int:
        """C."""
        return len(self.sign)

    def weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """W, (C, C), differentiable; computed in `dtype`, by default the parameters'."""
        lower, upper = self._factors(dtype)
        return (lower @ upper)[self.rows]

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        return _apply(self.weight(), x)

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        n_positions = math.prod(x.shape[2:])
        return self(x), (n_positions * self.log_scale.sum()).expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        self._check(z, "z")
        lower, upper = self._factors()
        x = _positions(z)[:, self.rows.argsort()]
        x = torch.linalg.solve_triangular(lower, x, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, x, upper=True).view_as(z)

    def inverse_error(self, z: Tensor, x: Tensor, error: Tensor) -> Tensor:
        """||x - x*|| <= ||W^-1||_2 (||z - W x|| + error).

        The residual is evaluated in float64, and a bound on its own rounding is added.
        """
        weight = self.weight(torch.float64)
        singular = torch.linalg.svdvals(on_host(self).weight(torch.float64)).to(weight.device)
        z, x = z.double(), x.double()
        sizes = _norm(z) + singular[0] * _norm(x)
        residual = _norm(z - _apply(weight, x))
        residual += ROUNDING * torch.finfo(torch.float64).eps * sizes
        return (residual + error) / singular[-1]

    def extra_repr(self) -> str:
        return f"{len(self.log_scale)}"

    def _check(self, x: Tensor, name: str = "x") -> None:
        check_batch("Mixing", x, (len(self.sign), ...), self.lower.dtype, name)

    def _factors(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """L and U + diag(s), (C, C) each."""
        dtype = dtype or self.lower.dtype
        identity = torch.eye(len(self.sign), dtype=dtype, device=self.lower.device)
        scale = self.sign.to(dtype) * self.log_scale.to(dtype).exp()
        lower = self.lower.to(dtype).tril(-1) + identity
        return lower, self.upper.to(dtype).triu(1) + torch.diag(scale)


def _apply(weight: Tensor, x: Tensor) -> Tensor:
    return (weight @ _positions(x)).view_as(x)


def _positions(x: Tensor) -> Tensor:
    """(B, C, *grid) -> (B, C, n_positions)."""
    return x.reshape(*x.shape[:2], math.prod(x.shape[2:]))


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)
