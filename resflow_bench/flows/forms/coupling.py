"""Affine and additive coupling: half of the channels scale and shift the other half."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from resflow_bench.arguments import check_batch, check_count
from resflow_bench.flows.bijection import ROUNDING
from resflow_bench.flows.copies import in_float64, memoised, on_host
from resflow_bench.layers.linear import drawn


class AffineCoupling(nn.Module):
    """x = (a, b) by channels  ->  z = (a, exp(s(a)) b + t(a)),  ln|det dz/dx| = sum_i s_i(a).

    s = m tanh(r / m) with m = `max_log_scale`, so that no scale leaves [exp(-m), exp(m)]; r and t
    come from one network of three layers with ReLU between them. Its last layer starts at 0, and
    the coupling as the identity. a is the first half of the channels, and has one more than b if
    their number is odd.

    Args:
        n_channels: C, at least 2; x is (B, C, *grid).
        width: of the network's two hidden layers.
        kernel_size: k, odd; for images (B, C, H, W) the layers are convolutions k-1-k with zero
            padding. Vectors (B, C) take 1.
        max_log_scale: m; 0 is the additive coupling, with s = 0.
        generator: draws the first two layers; None is a fresh one with seed 0.

    Raises:
        ValueError: fewer than two channels, a width below 1, an even kernel, or a negative or
            infinite `max_log_scale`.

    Source: Dinh, Krueger and Bengio (2015), "NICE", 3.2; Dinh, Sohl-Dickstein and Bengio (2017),
        "Density estimation using Real NVP", 3.2, where r is not bounded.
    """

    def __init__(
        self,
        n_channels: int,
        width: int = 64,
        kernel_size: int = 1,
        max_log_scale: float = 2.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.n_channels = check_count("AffineCoupling", "n_channels", n_channels, 2)
        self.width = check_count("AffineCoupling", "width", width)
        self.kernel_size = check_count("AffineCoupling", "kernel_size", kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(
                f"AffineCoupling needs an odd kernel_size; got {kernel_size}. Take 3 for images."
            )
        if not 0 <= max_log_scale < math.inf:
            raise ValueError(
                "AffineCoupling needs a finite max_log_scale of at least 0; got "
                f"{max_log_scale}. Choose, for example, 2."
            )
        self.max_log_scale = max_log_scale
        generator = generator or torch.Generator().manual_seed(0)
        n_moved = n_channels // 2
        n_out = 2 * n_moved if max_log_scale else n_moved
        sizes = (n_channels - n_moved, width, width, n_out)
        kernels = (kernel_size, 1, kernel_size)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for n_in, n, k in zip(sizes[:-1], sizes[1:], kernels, strict=True):
            weight, bias = drawn((n, n_in, k, k), n_in * k * k, bias=True, generator=generator)
            self.weights.append(weight)
            self.biases.append(bias)
        nn.init.zeros_(self.weights[-1])
        nn.init.zeros_(self.biases[-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_and_log_det(x)[0]

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self._split(x, "x")
        log_scale, shift = self.scale_and_shift(a)
        z = torch.cat([a, b * log_scale.exp() + shift], dim=1)
        return z, log_scale.flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        a, b = self._split(z, "z")
        log_scale, shift = self.scale_and_shift(a)
        return torch.cat([a, (b - shift) * (-log_scale).exp()], dim=1)

    def inverse_error(self, z: Tensor, x: Tensor, error: Tensor) -> Tensor:
        """sqrt(e^2 + e_b^2) from an error e in z, with e_b the error in b.

        Let L be the product of the norms of the network's layers, a Lipschitz constant of (s, t),
        and r the residual z_b - exp(s) b - t, evaluated in float64 with a bound on its rounding.
        The exact inverse has an a that is off by at most e, so an s that is off by at most L e:

            e_b  <=  max exp(-s) exp(L e) (||r|| + e + L e) + max|b| exp(L e) L e,

        with exp(m) for the first product and exp(2 m) for the last exponential, where they are
        smaller. L is often far above the slopes that are met, as is the bound.
        """
        exact = in_float64(self)
        layers = memoised(on_host(exact), _sizes)
        a, b = exact._split(x.double(), "x")  # noqa: SLF001 - a copy of this object
        moved = exact._split(z.double(), "z")[1]  # noqa: SLF001
        log_scale, shift = exact.scale_and_shift(a)
        scaled = b * log_scale.exp()
        # The rounding of the network, relative to the sizes inside it.
        n_positions = math.prod(x.shape[2:])
        magnitude, lipschitz = _norm(a), 1.0
        for weight, bias in layers:
            magnitude = weight * magnitude + bias * math.sqrt(n_positions)
            lipschitz *= weight
        off = magnitude * (1 + _largest(scaled))
        sizes = _norm(moved) + _norm(scaled) + off
        residual = _norm(moved - scaled - shift)
        residual += ROUNDING * torch.finfo(torch.float64).eps * sizes
        change = lipschitz * error
        of_s = change if self.max_log_scale else torch.zeros_like(change)
        stretch = (_largest(-log_scale, signed=True) + of_s).clamp_max(self.max_log_scale).exp()
        error_b = stretch * (residual + error + change)
        error_b += _largest(b) * of_s * of_s.clamp_max(2 * self.max_log_scale).exp()
        return torch.hypot(error, error_b)

    def scale_and_shift(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """(s, t) of a, (B, C // 2, *grid) each."""
        h = a
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.relu(h) if index else h
            if a.ndim == 2:
                h = functional.linear(h, weight.flatten(1), bias)
            else:
                h = functional.conv2d(h, weight, bias, padding=weight.shape[-1] // 2)
        if not self.max_log_scale:
            return torch.zeros_like(h), h
        raw, shift = h.chunk(2, dim=1)
        return self.max_log_scale * torch.tanh(raw / self.max_log_scale), shift

    def extra_repr(self) -> str:
        return (
            f"{self.n_channels}, width={self.width}, kernel_size={self.kernel_size}, "
            f"max_log_scale={self.max_log_scale:g}"
        )

    def _split(self, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
        is_image = self.kernel_size > 1 or x.ndim > 2
        event = (self.n_channels, None, None) if is_image else (self.n_channels,)
        check_batch("AffineCoupling", x, event, self.weights[0].dtype, name)
        n_kept = self.n_channels - self.n_channels // 2
        return x[:, :n_kept], x[:, n_kept:]


@torch.no_grad()
def _sizes(coupling: AffineCoupling) -> list[tuple[float, float]]:
    """(a bound on the spectral norm, the 2-norm of the bias) of each layer."""
    return [
        (_spectral_bound(weight), float(bias.norm()))
        for weight, bias in zip(coupling.weights, coupling.biases, strict=True)
    ]


def _spectral_bound(weight: Tensor) -> float:
    """A bound on the norm of a convolution with zero padding, on a grid of any size.

    1. It is a part of the convolution on the infinite grid, of norm sup ||W(f)||_2 over all
       frequencies f, W(f) = sum_p W_p exp(-i p f).
    2. u* W(f) v is a trigonometric polynomial of degree r = k // 2 in each of the two angles, so
       that its supremum is at most 1 / cos(pi r / n)^2 times its maximum over n x n frequencies
       (Ehlich and Zeller, 1964), here 1.04 times for n = 16 r.
    """
    degree = weight.shape[-1] // 2
    n = max(1, 16 * degree)
    symbols = torch.fft.fft2(weight, s=(n, n)) if degree else weight
    largest = torch.linalg.matrix_norm(symbols.permute(2, 3, 0, 1), 2).max()
    return float(largest) / math.cos(math.pi * degree / n) ** 2


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def _largest(x: Tensor, *, signed: bool = False) -> Tensor:
    """The largest entry of each example, or the largest in modulus, (B,)."""
    return (x if signed else x.abs()).flatten(1).amax(1)
