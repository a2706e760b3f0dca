"""The linear operators whose norms are bounded: matrices, and convolutions on their actual grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from resflow_bench.jacobian.stages import padding
from resflow_bench.layers.norms.squaring import gram_norm
from resflow_bench.layers.orders import norm

# Complex entries of the symbol held at once; 2^24 are 256 MiB.
MAX_ENTRIES = 2**24


@dataclass(frozen=True, eq=False)
class Matrix:
    """A: x -> W x with W (n_out, n_in)."""

    weight: Tensor

    spectral_method = "svd"

    @property
    def n_in(self) -> int:
        return self.weight.shape[1]

    @property
    def n_out(self) -> int:
        return self.weight.shape[0]

    @property
    def shape_in(self) -> tuple[int, ...]:
        return (self.n_in,)

    @property
    def shape_out(self) -> tuple[int, ...]:
        return (self.n_out,)

    def apply(self, x: Tensor) -> Tensor:
        """A x, (..., n_in) -> (..., n_out)."""
        if x.ndim == 1:  # which `linear` would make a matrix product of
            return torch.mv(self.weight, x)
        return functional.linear(x, self.weight)

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y, (..., n_out) -> (..., n_in)."""
        return torch.mv(self.weight.mT, y) if y.ndim == 1 else y @ self.weight

    def column_norms(self, q: float | Tensor) -> Tensor:
        """||A e_i||_q, (n_in,)."""
        return norm(self.weight.mT, q)

    def row_norms(self, q: float | Tensor) -> Tensor:
        """||A^T e_j||_q, (n_out,)."""
        return norm(self.weight, q)

    def gram(self) -> Tensor:
        """The smaller Gram matrix: A A^T, or A^T A if n_out > n_in."""
        weight = self.weight if self.n_out <= self.n_in else self.weight.mT
        return weight @ weight.mT

    def spectral(self) -> Tensor:
        """||A||_2, (), from all eigenvalues of the smaller Gram matrix: exact to rounding."""
        return largest_singular_value(self.weight if self.n_out <= self.n_in else self.weight.mT)

    def collapsed(self) -> Matrix:
        return self

    def absolute(self) -> Matrix:
        """|A|, entry by entry."""
        return Matrix(self.weight.abs())

    def to(self, dtype: torch.dtype) -> Matrix:
        return Matrix(self.weight.to(dtype))


@dataclass(frozen=True, eq=False)
class Convolution:
    """A: cross-correlation with stride 1 and zero padding k // 2, on flat images of one grid.

    weight: (C_out, C_in, kh, kw), odd kh and kw.
    grid: (H, W). n_in is C_in H W, n_out is C_out H W; the methods are those of `Matrix`.
    """

    weight: Tensor
    grid: tuple[int, int]

    spectral_method = "fft"

    @property
    def n_in(self) -> int:
        return math.prod(self.shape_in)

    @property
    def n_out(self) -> int:
        return math.prod(self.shape_out)

    @property
    def shape_in(self) -> tuple[int, ...]:
        return (self.weight.shape[1], *self.grid)

    @property
    def shape_out(self) -> tuple[int, ...]:
        return (self.weight.shape[0], *self.grid)

    def apply(self, x: Tensor) -> Tensor:
        images = x.reshape(-1, *self.shape_in)
        y = functional.conv2d(images, self.weight, padding=padding(self.weight))
        return y.reshape(*x.shape[:-1], -1)

    def adjoint(self, y: Tensor) -> Tensor:
        images = y.reshape(-1, *self.shape_out)
        x = functional.conv_transpose2d(images, self.weight, padding=padding(self.weight))
        return x.reshape(*y.shape[:-1], -1)

    def column_norms(self, q: float | Tensor) -> Tensor:
        return _row_norms(self.weight.transpose(0, 1).flip(2, 3), self.grid, q)

    def row_norms(self, q: float | Tensor) -> Tensor:
        return _row_norms(self.weight, self.grid, q)

    def gram(self) -> Tensor:
        """The smaller Gram matrix: A^T A, or A A^T if C_out < C_in, (n, n).

        A = sum_t W_t (x) S_t (x) S'_t over the taps, with S_t the shift of an axis that drops what
        leaves it. So A^T A = sum_{s,t} W_s^T W_t (x) S_s^T S_t (x) S'_s^T S'_t: the wide channels
        are summed once, and the two axes come in one after the other. A^T has the taps transposed
        and in reverse. n = min(C_in, C_out) H W, rows and columns as (channel, y, x).

        Properties: O(n^2 (kh^2 + kw^2)) products besides those of the taps.
        """
        weight, grid = self.weight, self.grid
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

    def spectral(self) -> Tensor:
        """An upper bound on ||A||_2, (), see `symbol_norm`."""
        return symbol_norm(self._trimmed(), self.grid)

    def collapsed(self) -> Matrix | Convolution:
        """The smallest operator with the same ||.||_2, by W's taps that meet the grid alone.

        Along an axis with one such tap A is a copy of itself on one point for each position, so
        that axis counts one point; with one tap along both it is a matrix.
        """
        weight = self._trimmed()
        taps = weight.shape[2:]
        if taps == (1, 1):
            return Matrix(weight[:, :, 0, 0])
        height, width = (n if k > 1 else 1 for n, k in zip(self.grid, taps, strict=True))
        return Convolution(weight, (height, width))

    def absolute(self) -> Convolution:
        return Convolution(self.weight.abs(), self.grid)

    def to(self, dtype: torch.dtype) -> Convolution:
        return Convolution(self.weight.to(dtype), self.grid)

    def dense(self) -> Matrix:
        """A as a `Matrix` (n_out, n_in)."""
        return Matrix(self.apply(torch.eye(self.n_in).to(self.weight)).mT)

    def _trimmed(self) -> Tensor:
        """The weight without the taps that leave the grid from every point of it."""
        weight = self.weight
        for axis, half, n in zip((2, 3), padding(weight), self.grid, strict=True):
            reach = min(half, n - 1)
            weight = weight.narrow(axis, half - reach, 2 * reach + 1)
        return weight


Operator = Matrix | Convolution


def symbol_norm(weight: Tensor, grid: tuple[int, int]) -> Tensor:
    """max over frequencies w of sigma_1(sum_t W_t e^(i w t)), (): a bound on ||A|| from above.

    1. On a torus of (H + kh // 2, W + kw // 2) points the convolution is block diagonal in the
       Fourier basis, one C_out x C_in block per frequency; its norm is the largest of the blocks'.
    2. Two points of the grid are less than H apart. Going round the torus the other way they are
       more than kh // 2 apart, further than a tap reaches. So the zero-padded operator is the
       periodic one, fed with x on the grid and zeros elsewhere, and read on the grid alone.
    3. Such a compression cannot have a larger norm.

    Properties: converges to ||A|| from above as the grid grows. For 3 x 3 kernels of 1 to 64
    channels (six pairs of C_in and C_out, 16 draws of weights) it was larger by 5 to 26 % on 4 x 4,
    1.4 to 7 % on 8 x 8, 0.5 to 1.7 % on 16 x 16 and 0.1 to 0.6 % on 32 x 32 with Gaussian weights;
    by 25 to 34, 7 to 9, 1.9 to 2.4 and about 0.6 % with all weights positive.

    Args:
        weight: (C_out, C_in, kh, kw), kh // 2 < H and kw // 2 < W.
        grid: (H, W).

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
        largest.append(largest_singular_value(symbol).amax())
    return torch.stack(largest).amax()


def largest_singular_value(a: Tensor) -> Tensor:
    """||A||_2 of matrices (..., n, m), n <= m, in float64 or complex128, (...).

    Exact to rounding on the CPU, by LAPACK; elsewhere the bound `gram_norm`.
    """
    gram = a @ a.mH
    if a.is_cpu:
        return torch.linalg.eigvalsh(gram)[..., -1].clamp(min=0).sqrt()
    return gram_norm(gram)[0] * (1 + gram_rounding(a))


def gram_rounding(a: Tensor) -> float:
    """The share of ||A|| that rounding A A^H in float64 may hide: n m eps / 4 and more."""
    return math.prod(a.shape[-2:]) * torch.finfo(a.dtype).eps


def dense_stack(operators: Sequence[Operator]) -> Tensor:
    """The matrices of k operators of one kind, shape and grid, (k, n_out, n_in), in float64."""
    first, weights = operators[0], torch.stack([a.weight for a in operators]).double()
    if isinstance(first, Matrix):
        return weights
    units = torch.eye(first.n_in, dtype=torch.float64, device=weights.device)
    units, kernels = units.view(-1, *first.shape_in), weights.flatten(0, 1)
    images = functional.conv2d(units, kernels, padding=padding(first.weight))
    return images.reshape(first.n_in, len(operators), first.n_out).permute(1, 2, 0)


def _overlaps(n_taps: int, n: int, like: Tensor) -> Tensor:
    """S_s^T S_t for all taps s, t, (n_taps, n_taps, n, n); S_t[y, x] = 1 where x = y + t - mid."""
    place = torch.arange(n, device=like.device)
    tap = torch.arange(n_taps, device=like.device) - n_taps // 2
    shift = (place[:, None] + tap[:, None, None] == place).to(like)  # (n_taps, n, n)
    return torch.einsum("sya,tyb->stab", shift, shift)


def _row_norms(weight: Tensor, grid: tuple[int, int], q: float | Tensor) -> Tensor:
    """The q-norms of the rows of a convolution, (C_out H W,): at the borders taps fall off."""
    n_out, n_in, *size = weight.shape
    ones = weight.new_ones(1, 1, *grid)
    inside = functional.unfold(ones, tuple(size), padding=padding(weight))[0]
    taps = weight.reshape(n_out, n_in, -1).transpose(1, 2)  # (C_out, kh kw, C_in)
    per_tap = norm(taps, q)  # (C_out, kh kw)
    return norm(per_tap[:, None, :] * inside.mT, q).flatten()  # (C_out, H W, kh kw) -> (C_out H W,)
