"""Glow's affine coupling, and a map of the plane whose density is known in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from resflow_bench.arguments import check_batch, check_count
from resflow_bench.layers.linear import drawn

LARGEST_LOG_SCALE = 2.0
"""A coupling stretches by e^2 at most, so that its inverse keeps most of the digits."""

KERNELS = (3, 1, 3)


class AffineCoupling(nn.Module):
    """x = (a, b) by channels -> z = (a, exp(s(a)) b + t(a)),  ln|det dz/dx| = sum s(a).

    s = 2 tanh(raw / 2); raw and t come from a network of a with SiLU between its three layers: of
    linear layers on vectors (B, C), of convolutions 3-1-3 on images (B, C, H, W). Its last layer is
    0 at first, and the coupling the identity.

    Args:
        n_channels: C, at least 2; a has C // 2 of them.
        width: of the hidden layers.
        is_image: whether x has a grid.
        generator: draws the weights; None is a fresh one with seed 0.

    Raises:
        ValueError: fewer than two channels.

    Source: Dinh et al. (2017), "Density estimation using Real NVP"; Kingma and Dhariwal (2018),
    "Glow", figure 2.
    """

    def __init__(
        self,
        n_channels: int,
        width: int = 64,
        is_image: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.n_channels = check_count("AffineCoupling", "n_channels", n_channels, 2)
        self.width, self.is_image = check_count("AffineCoupling", "width", width), is_image
        self.n_kept = n_channels // 2
        sizes = (self.n_kept, width, width, 2 * (n_channels - self.n_kept))
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        generator = generator or torch.Generator().manual_seed(0)
        for n_in, n_out, size in zip(sizes[:-1], sizes[1:], KERNELS, strict=True):
            kernel = (size, size) if is_image else ()
            shape, fan_in = (n_out, n_in, *kernel), n_in * math.prod(kernel)
            weight, bias = drawn(shape, fan_in, bias=True, generator=generator)
            self.weights.append(weight)
            self.biases.append(bias)
        for last in (self.weights[-1], self.biases[-1]):
            nn.init.zeros_(last)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_and_log_det(x)[0]

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self._halves(x, "x")
        log_scale, shift = self._numbers_of(a)
        z = torch.cat([a, log_scale.exp() * b + shift], dim=1)
        return z, log_scale.flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        a, b = self._halves(z, "z")
        log_scale, shift = self._numbers_of(a)
        return torch.cat([a, (b - shift) * (-log_scale).exp()], dim=1)

    def inverse_error(self, z: Tensor, x: Tensor, error: Tensor) -> Tensor:
        """Infinity: no Lipschitz constant of the network is known."""
        return torch.full_like(error, torch.inf)

    def extra_repr(self) -> str:
        return f"{self.n_channels}, width={self.width}, is_image={self.is_image}"

    def _halves(self, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
        grid = (None, None) if self.is_image else ()
        check_batch("AffineCoupling", x, (self.n_channels, *grid), name=name)
        return x[:, : self.n_kept], x[:, self.n_kept :]

    def _numbers_of(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """(s, t)."""
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if self.is_image:
                a = functional.conv2d(a, weight, bias, padding=KERNELS[k] // 2)
            else:
                a = functional.linear(a, weight, bias)
            a = functional.silu(a) if k < len(KERNELS) - 1 else a
        raw, shift = a.chunk(2, dim=1)
        return LARGEST_LOG_SCALE * torch.tanh(raw / LARGEST_LOG_SCALE), shift


class CubeRoot(nn.Module):
    """z_i = x_i^(1/3) with its sign,  ln|det dz/dx| = -sum_i (2/3 ln|x_i| + ln 3).

    A flow of it alone has the density of u = z^3, z standard normal: in the plane

        q(u, v) = |u v|^(-2/3) / (18 pi) exp(-(|u|^(2/3) + |v|^(2/3)) / 2),

    which is infinite where a coordinate is 0: the cube's inverse has no derivative there.
    """

    def forward(self, x: Tensor) -> Tensor:
        check_batch("CubeRoot", x, (None,))
        return x.sign() * x.abs().pow(1 / 3)

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self(x), -(2 / 3 * x.abs().log() + math.log(3)).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        check_batch("CubeRoot", z, (None,), name="z")
        return z**3

    def inverse_error(self, z: Tensor, x: Tensor, error: Tensor) -> Tensor:
        """|x - x*| <= 3 (|z| + error)^2 error, and the rounding of the cube."""
        size = z.double().norm(dim=1) + error
        rounding = 4 * torch.finfo(z.dtype).eps * x.double().norm(dim=1)
        return 3 * size**2 * error + rounding
