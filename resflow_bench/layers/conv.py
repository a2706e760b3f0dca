"""Convolutions whose operator norm, on the grid they act on, is at most a coefficient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from resflow_bench.jacobian import KernelStage
from resflow_bench.jacobian.stages import FAST, padding
from resflow_bench.layers.layer import Certificate
from resflow_bench.layers.linear import Matrix, uniform
from resflow_bench.layers.norms.spectral import Operator, Pair, SpectralNorm, finite, leading, unit
from resflow_bench.layers.orders import Order

# Smaller sides of an operator up to which its leading pair is exact: in every update (2 ms on one
# core at 256) and where time is not pressing (0.1 s at 1024).
SIDE_IN_UPDATE = 256
SIDE_AT_ALL = 1024

# Power steps from a random start, for a weight of which nothing is known.
STEPS_FROM_SCRATCH = 30

# Complex entries of the symbol held at once; 2^24 are 256 MiB.
MAX_ENTRIES = 2**24


@dataclass(frozen=True)
class Convolution:
    """A(W): R^(n_in x H x W) -> R^(n_out x H x W), stride 1, odd kernel, as many zeros as it needs.

    n_in, n_out: channels.
    grid: (H, W), each above half the kernel's size: a tap that reaches further meets only zeros.
    """

    n_in: int
    n_out: int
    grid: tuple[int, int]

    @property
    def shape_in(self) -> tuple[int, ...]:
        return (self.n_in, *self.grid)

    @property
    def shape_out(self) -> tuple[int, ...]:
        return (self.n_out, *self.grid)

    def apply(self, weight: Tensor, v: Tensor) -> Tensor:
        return functional.conv2d(v[None], weight, padding=padding(weight))[0]

    def follow(self, weight: Tensor, u: Tensor) -> Pair:
        """Exact up to `SIDE_IN_UPDATE`; beyond, two power steps and the symbol's bound."""
        if self._side <= SIDE_IN_UPDATE:
            return self._solve_by_gram(weight)
        u, v = self._power(weight, u, n_steps=2)
        if not torch.linalg.vector_norm(u) > 0:  # zero weights, NaN, or a start that A^T maps to 0
            return self._solve_by_symbol(weight)
        return Pair(u, v, symbol_norm(weight, self.grid))

    def solve(self, weight: Tensor) -> Pair:
        """Exact up to `SIDE_AT_ALL`; beyond, power iteration and the symbol's bound."""
        exact = self._side <= SIDE_AT_ALL
        return self._solve_by_gram(weight) if exact else self._solve_by_symbol(weight)

    def certificate(self, weight: Tensor) -> Certificate:
        """svd: the norm to rounding, from the Gram matrix. fft: the bound of `symbol_norm`."""
        if self._side <= SIDE_AT_ALL:
            return Certificate(float(leading(operator_gram(weight, self.grid))[1]), "svd")
        return Certificate(float(symbol_norm(finite(weight), self.grid)), "fft")

    @property
    def _side(self) -> int:
        return min(self.n_in, self.n_out) * math.prod(self.grid)

    def _transpose(self, weight: Tensor, u: Tensor) -> Tensor:
        return functional.conv_transpose2d(u[None], weight, padding=padding(weight))[0]

    def _solve_by_gram(self, weight: Tensor) -> Pair:
        x, norm = leading(operator_gram(weight, self.grid))
        if self.n_in <= self.n_out:
            v = x.reshape(self.shape_in)
            return Pair(unit(self.apply(weight, v)), v, norm)
        u = x.reshape(self.shape_out)
        return Pair(u, unit(self._transpose(weight, u)), norm)

    def _power(self, weight: Tensor, u: Tensor, n_steps: int) -> tuple[Tensor, Tensor]:
        for _ in range(n_steps):
            v = unit(self._transpose(weight, u))
            u = unit(self.apply(weight, v))
        return u, v

    def _solve_by_symbol(self, weight: Tensor) -> Pair:
        bound = symbol_norm(finite(weight), self.grid)
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(self.shape_out, generator=generator, dtype=weight.dtype)
        return Pair(*self._power(weight, start.to(weight.device), STEPS_FROM_SCRATCH), bound)


class SpectralConv2d(nn.Module):
    """y = W_c * x + b, stride 1, zero padding, with ||x -> W_c * x||_2 <= coefficient.

    The norm is that of the operator R^(C_in H W) -> R^(C_out H W) on its grid. The kernel reshaped
    to a matrix (C_out, C_in kh kw) has a norm up to sqrt(kh kw) times smaller: promising by it is
    promising nothing. The bound is a theorem right after `update` and `align`, see `SpectralNorm`.
    Between a step and its update it is not: it was exceeded by up to 2.3 % at a learning rate of
    1e-2.

    What an update costs and gives depends on the operator's smaller side min(C_in, C_out) H W,
    where an axis on which one tap meets the grid counts as 1, so that a 1 x 1 kernel is a matrix.
    Up to `SIDE_IN_UPDATE` the leading pair is exact. Above, u and v follow by power iteration and
    the bound is `symbol_norm`, which gives away some per cent on small grids; from `SIDE_AT_ALL`
    on, `align` and `certificate` do the same.

    Args:
        in_channels, out_channels: C_in, C_out.
        kernel_size: odd, one number or (kh, kw).
        grid: (H, W) of x; other sizes are refused, as the norm is of this grid's operator.
        coefficient: the promised bound, above 0.
        bias: whether b is added.
        generator: where W and b are drawn from, both uniform in +-1/sqrt(C_in kh kw). None stands
            for a fresh generator with seed 0, never for the global one.

    Raises:
        ValueError: an even kernel, a size below 1, or a coefficient that is not positive and
            finite; later, an x of another shape.

    Source: Gouk et al. (2018) and Behrmann et al. (2019), Invertible Residual Networks, iterate on
    the operator; neither bounds it from above.

    >>> layer = SpectralConv2d(3, 8, 3, grid=(8, 8), coefficient=0.9)
    >>> y, jacobian = layer.linearise(torch.zeros(5, 3, 8, 8))
    >>> jacobian.vjp(torch.ones(2, 5, 8, 8, 8)).shape, layer.certificate().norm <= 0.9
    (torch.Size([2, 5, 3, 8, 8]), True)
    """

    domain: Order = 2.0
    codomain: Order = 2.0

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        grid: tuple[int, int],
        coefficient: float,
        *,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        if min(in_channels, out_channels, *grid, *kernel) < 1:
            raise ValueError(
                "SpectralConv2d needs sizes of at least 1; "
                f"got in_channels={in_channels}, out_channels={out_channels}, "
                f"kernel_size={kernel_size}, grid={grid}."
            )
        if any(size % 2 == 0 for size in kernel):
            raise ValueError(
                "SpectralConv2d needs an odd `kernel_size`, so that the grid stays as it is; "
                f"got {kernel_size}."
            )
        self.n_in, self.n_out = in_channels, out_channels
        self.grid = (int(grid[0]), int(grid[1]))
        if generator is None:
            generator = torch.Generator().manual_seed(0)
        fan_in = in_channels * math.prod(kernel)
        self.weight = uniform((out_channels, in_channels, *kernel), fan_in, generator)
        self.bias = uniform((out_channels,), fan_in, generator) if bias else None
        self.norm = SpectralNorm(self._operator(), coefficient, self._reached(self.weight))
        self.coefficient = self.norm.coefficient

    def weight_normalised(self) -> Tensor:
        """W_c, shape (C_out, C_in, kh, kw), differentiable in W."""
        return self.weight / self.norm.divisor(self._reached(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (B, C_in, H, W) -> (B, C_out, H, W)."""
        return self.normalised()(x)

    def normalised(self) -> Callable[[Tensor], Tensor]:
        """The map with its weight normalised once, for many evaluations."""
        return self._with(self.weight_normalised().to(memory_format=FAST))

    def linearise(self, x: Tensor) -> tuple[Tensor, KernelStage]:
        """y, (B, C_out, H, W), and v -> v^T J, (..., B, C_out, H, W) -> (..., B, C_in, H, W)."""
        weight = self.weight_normalised().to(memory_format=FAST)
        return self._with(weight)(x), KernelStage(weight)

    def update(self) -> None:
        """Follows W after an optimiser step; afterwards the operator's norm is <= coefficient."""
        self.norm.update(self._reached(self.weight))

    def align(self) -> None:
        """The exact singular pair, and the coefficient attained, where that is affordable."""
        self.norm.align(self._reached(self.weight))

    def certificate(self) -> Certificate:
        """The tightest affordable bound on the operator that `forward` applies: svd or fft."""
        return self.norm.certificate(self._reached(self.weight_normalised()))

    def extra_repr(self) -> str:
        kernel = tuple(self.weight.shape[2:])
        return (
            f"{self.n_in}, {self.n_out}, kernel_size={kernel}, grid={self.grid}, "
            f"bias={self.bias is not None}"
        )

    def _with(self, weight: Tensor) -> Callable[[Tensor], Tensor]:
        def convolve(x: Tensor) -> Tensor:
            if x.shape[1:] != (self.n_in, *self.grid):
                raise ValueError(
                    f"SpectralConv2d needs x of shape (B, {self.n_in}, {self.grid[0]}, "
                    f"{self.grid[1]}), as its norm is promised on that grid; got "
                    f"{tuple(x.shape)}. Build the layer with the `grid` of its input."
                )
            x = x.to(memory_format=FAST)
            return functional.conv2d(x, weight, self.bias, padding=padding(weight))

        return convolve

    def _reach(self) -> tuple[int, int]:
        """How far from the centre a tap can be and still meet the grid."""
        kh, kw = self.weight.shape[2:]
        return min(kh // 2, self.grid[0] - 1), min(kw // 2, self.grid[1] - 1)

    def _operator(self) -> Operator:
        if self._reach() == (0, 0):
            return Matrix(self.n_in, self.n_out)
        # Along an axis with one tap the operator is a copy of itself on one point per position.
        height, width = (n if r else 1 for n, r in zip(self.grid, self._reach(), strict=True))
        return Convolution(self.n_in, self.n_out, (height, width))

    def _reached(self, weight: Tensor) -> Tensor:
        """The taps that meet the grid, as the operator takes them."""
        for axis, reach in zip((2, 3), self._reach(), strict=True):
            weight = weight.narrow(axis, weight.shape[axis] // 2 - reach, 2 * reach + 1)
        return weight[:, :, 0, 0] if self._reach() == (0, 0) else weight


def operator_gram(weight: Tensor, grid: tuple[int, int]) -> Tensor:
    """G = A^T A, or A A^T if C_out < C_in: the smaller Gram matrix of the zero-padded operator.

    A = sum_t W_t (x) S_t (x) S'_t over the taps, with S_t the shift of an axis that drops what
    leaves it. So A^T A = sum_{s,t} W_s^T W_t (x) S_s^T S_t (x) S'_s^T S'_t: the wide channels are
    summed once, and the two axes come in one after the other. A^T has the taps transposed and
    in reverse.

    Args:
        weight: (C_out, C_in, kh, kw).
        grid: (H, W).

    Returns:
        (n, n) with n = min(C_in, C_out) H W, rows and columns as (channel, y, x).

    Properties: O(n^2 (kh^2 + kw^2)) products besides those of the taps.
    """
    n_out, n_in, kh, kw = weight.shape
    narrow_first = (
        weight.permute(1, 2, 3, 0) if n_in <= n_out else weight.flip(2, 3).permute(0, 2, 3, 1)
    )
    c = min(n_in, n_out)
    taps = narrow_first.reshape(c * kh * kw, -1)
    products = (taps @ taps.mT).reshape(c, kh, kw, c, kh, kw)
    rows, columns = _overlaps(kh, grid[0], weight), _overlaps(kw, grid[1], weight)
    gram = torch.einsum("isujtv,stab,uvde->iadjbe", products, rows, columns)
    return gram.reshape(c * grid[0] * grid[1], -1)


def _overlaps(n_taps: int, n: int, like: Tensor) -> Tensor:
    """S_s^T S_t for all taps s, t, (n_taps, n_taps, n, n); S_t[y, x] = 1 where x = y + t - mid."""
    place = torch.arange(n, device=like.device)
    tap = torch.arange(n_taps, device=like.device) - n_taps // 2
    shift = (place[:, None] + tap[:, None, None] == place).to(like)  # (n_taps, n, n)
    return torch.einsum("sya,tyb->stab", shift, shift)


def symbol_norm(weight: Tensor, grid: tuple[int, int]) -> Tensor:
    """max over frequencies w of sigma_1(sum_t W_t e^(i w t)): a bound on ||A|| from above.

    1. On a torus of (H + kh // 2, W + kw // 2) points the convolution is block diagonal in the
       Fourier basis, one C_out x C_in block per frequency; its norm is the largest of the blocks'.
    2. Two points of the grid are less than H apart. Going round the torus the other way they are
       more than kh // 2 apart, further than a tap reaches. So the zero-padded operator is the
       periodic one, fed with x on the grid and zeros elsewhere, and read on the grid alone.
    3. Such a compression cannot have a larger norm.

    Properties: converges to ||A|| from above as the grid grows. For 3 x 3 kernels it was larger by
    11 % on 4 x 4, 2.2 % on 8 x 8, 0.7 % on 16 x 16 and 0.2 % on 32 x 32 with Gaussian weights, and
    by 31, 8, 2.3 and 0.6 % with all weights positive, whose leading vectors feel the edges most.

    Args:
        weight: (C_out, C_in, kh, kw), kh // 2 < H and kw // 2 < W.
        grid: (H, W).

    Returns:
        The bound, shape (), in the weight's dtype.

    Source: Sedghi, Gupta and Long (2019), The Singular Values of Convolutional Layers, for 1.
    """
    kernel = weight if weight.shape[0] <= weight.shape[1] else weight.transpose(0, 1)
    n_narrow, n_wide, kh, kw = kernel.shape
    height, width = grid[0] + kh // 2, grid[1] + kw // 2
    place = torch.arange(max(height, width), device=weight.device).to(weight)
    # A real kernel's blocks at w and -w are conjugates: half of one axis is enough.
    turns = (
        (place[:height, None] * place[:kh] / height)[:, None, :, None]
        + (place[: width // 2 + 1, None] * place[:kw] / width)[None, :, None, :]
    ).reshape(-1, kh * kw)  # (frequencies, taps)
    waves = torch.polar(torch.ones_like(turns), 2 * math.pi * turns)
    flat = kernel.permute(2, 3, 0, 1).reshape(kh * kw, -1).to(waves)
    largest = []
    for some in waves.split(max(1, MAX_ENTRIES // flat.shape[1])):
        symbol = (some @ flat).reshape(-1, n_narrow, n_wide)
        largest.append(torch.linalg.eigvalsh(symbol @ symbol.mH)[:, -1].amax())
    return torch.stack(largest).amax().clamp(min=0).sqrt()
