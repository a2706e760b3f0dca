"""The laws of the probe v of Hutchinson's estimator tr A = E[v^T A v]."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from resflow_bench import theory
from resflow_bench.constants import constant


class Probe(Protocol):
    """A law of m vectors v_j, each with E v = 0 and E v v^T = I, for which E[v^T A v] = tr A.

    Any m vectors in a row of a longer draw, from a multiple of m on, are a draw of m. Where the
    variance depends on A's moments alone a law is a `theory.ProbeVariance` too.
    """

    def sample(self, n_probes: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw probes shaped like x: (m, B, *event), in x's dtype and device."""


@dataclass(frozen=True)
class Gaussian:
    """v ~ N(0, I):  Var(v^T A v) = 2 ||sym A||_F^2  (at most 2 ||A||_F^2, equal iff A = A^T).

    Properties: unbiased for every A. The variance is attained at its Avron-Toledo bound by every
    symmetric A, scaled identities among them.

    Source: Hutchinson (1990); Avron and Toledo (2011), for symmetric A, often quoted without the
    square of the Frobenius norm.

    >>> Gaussian().fourth_moment
    3.0
    """

    fourth_moment = 3.0

    def __str__(self) -> str:
        return "gaussian"

    def sample(self, n_probes: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
        shape, device = (n_probes, *x.shape), drawn_on(x, generator)
        v = torch.randn(shape, generator=generator, dtype=x.dtype, device=device)
        return v.to(x.device, non_blocking=True)

    def variance(self, moments: theory.Moments, n_probes: int) -> np.ndarray:
        return theory.iid_variance(moments, self.fourth_moment) / n_probes


@dataclass(frozen=True)
class Rademacher:
    """v_i = +1 or -1 with probability 1/2:  Var(v^T A v) = 2 (||sym A||_F^2 - sum_i A_ii^2).

    Properties: unbiased for every A; never more variance than `Gaussian`, and none at all for a
    diagonal A.

    Source: Hutchinson (1990).

    >>> Rademacher().fourth_moment
    1.0
    """

    fourth_moment = 1.0

    def __str__(self) -> str:
        return "rademacher"

    def sample(self, n_probes: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw (m, B, *event) independent signs, eight from each random byte.

        That takes a fifth of the time of as many Bernoulli numbers, which was that of four products
        of a branch with 128 hidden units.
        """
        n = n_probes * x.numel()
        device = drawn_on(x, generator)
        random = torch.randint(
            256, (-(-n // 8),), generator=generator, dtype=torch.int32, device=device
        )
        signs = constant(_signs, x.dtype, x.device).index_select(
            0, random.to(x.device, non_blocking=True)
        )
        return signs.flatten()[:n].view(n_probes, *x.shape)

    def variance(self, moments: theory.Moments, n_probes: int) -> np.ndarray:
        return theory.iid_variance(moments, self.fourth_moment) / n_probes


@dataclass(frozen=True)
class Sphere:
    """v uniform on ||v||^2 = d:  Var(v^T A v) = (2d/(d+2)) (||sym A||_F^2 - tr(A)^2/d).

    Properties: unbiased for every A; never more variance than `Gaussian`, and none at all for a
    multiple of I. Compared with `Rademacher`, the part off the diagonal adds d/(d + 2) of the
    variance, and an uneven diagonal adds more.

    >>> v = Sphere().sample(1, torch.zeros(1, 3), torch.Generator())
    >>> round(v.square().sum().item(), 4)
    3.0
    """

    def __str__(self) -> str:
        return "sphere"

    def sample(self, n_probes: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
        dim = math.prod(x.shape[1:])
        v = _normal((n_probes, len(x), dim), x, generator)
        v = torch.nn.functional.normalize(v, dim=-1).mul_(math.sqrt(dim))
        return v.to(x.dtype).reshape(n_probes, *x.shape)

    def variance(self, moments: theory.Moments, n_probes: int) -> np.ndarray:
        return theory.orthogonal_variance(moments, 1) / n_probes


@dataclass(frozen=True)
class Orthogonal:
    """m <= d orthogonal v_j, ||v_j||^2 = d, uniformly oriented:  (d - m)/(d - 1) of `Sphere`'s
    variance, and none at all at m = d.

    More than d are drawn d at a time, each d independent of the others.

    Properties: unbiased for every A; each v_j alone is that of `Sphere`. Cost: a QR decomposition
    of (d, m) for each example, 2 m^2 d products of numbers beside the m d^2 of a dense J.

    >>> v = Orthogonal().sample(2, torch.zeros(1, 2), torch.Generator())
    >>> abs(round((v[0] * v[1]).sum().item(), 4))
    0.0
    """

    def __str__(self) -> str:
        return "orthogonal"

    def sample(self, n_probes: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
        batch_size, dim = len(x), math.prod(x.shape[1:])

        def block(n: int) -> Tensor:
            q, r = torch.linalg.qr(_normal((batch_size, dim, n), x, generator))
            # With the sign that LAPACK gives R's diagonal v would not have mean zero.
            q = torch.where(r.diagonal(dim1=1, dim2=2)[:, None] < 0.0, -q, q)
            return q.mul_(math.sqrt(dim)).permute(2, 0, 1)

        return _blocks(block, n_probes, dim).to(x.dtype).reshape(n_probes, *x.shape)

    def variance(self, moments: theory.Moments, n_probes: int) -> np.ndarray:
        return theory.orthogonal_variance(moments, n_probes)


@dataclass(frozen=True)
class Hadamard:
    """v_j = s * h_j, s random signs, h_j different columns of a Hadamard matrix of order D >= d:
    (D - m)/(D - 1) of `Rademacher`'s variance, D the next power of two, and none at all at m = D.

    The columns are Sylvester's, h_c[a] = (-1)^popcount(a & c), cut to the first d rows. More than
    D vectors are drawn D at a time, each D independent of the others.

    Properties: unbiased for every A; each v_j alone is a Rademacher vector, and m = 1 is one. The
    random numbers are those of s and D that choose the columns, whatever m.

    >>> v = Hadamard().sample(2, torch.zeros(1, 4), torch.Generator())
    >>> (v[0] * v[1]).sum().item()
    0.0
    """

    def __str__(self) -> str:
        return "hadamard"

    def sample(self, n_probes: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw (m, B, *event); each example has columns of its own."""
        batch_size, dim = len(x), math.prod(x.shape[1:])
        n_bits = (dim - 1).bit_length()  # D = 2^n_bits

        def block(n: int) -> Tensor:
            size = (batch_size, 2**n_bits)
            device = drawn_on(x, generator)
            key = torch.rand(size, generator=generator, dtype=torch.float32, device=device)
            column = key.topk(n, dim=1).indices.T  # (n, B), all different in an example
            column = column.to(x.device, non_blocking=True)
            h = torch.ones(n, batch_size, 1, dtype=x.dtype, device=x.device)
            for bit in range(n_bits):  # h[a + 2^bit] = h[a] (-1)^(that bit of c), a < 2^bit
                sign = 1 - 2 * (column >> bit & 1)
                h = torch.cat([h, h * sign.to(x.dtype)[..., None]], dim=2)
            signs = Rademacher().sample(1, x, generator).view(1, batch_size, dim)
            return h[..., :dim] * signs

        return _blocks(block, n_probes, 2**n_bits).reshape(n_probes, *x.shape)

    def variance(self, moments: theory.Moments, n_probes: int) -> np.ndarray:
        return theory.hadamard_variance(moments, n_probes)


@dataclass(frozen=True)
class Hierarchical:
    """v_j = s * h_j, s random signs, h_j the j-th column of a Hadamard matrix at each entry's
    colour: the variance of `Rademacher` from pairs of the same colour alone.

        Var((1/m) sum_j v_j^T A v_j) = 2 sum_{a!=b} (sym(A)_ab G_ab)^2,
        G_ab = (1/m) sum_j h_ja h_jb.

    At m = 2^b, G_ab is 1 for two entries with the same first b bits of their colour and 0 for all
    others. The bits are those of the channel, then of the pixel: as m grows, pixels of the same
    colour move apart, by a factor of sqrt(2) each time it doubles. Entries that are close to each
    other, where the Jacobian of a convolution is large, are told apart first.

    Properties: unbiased for every A; each v_j alone is a Rademacher vector, and m = 1 is one. Best
        at powers of two that are at least the number of channels. A vector's entries are channels.
        More vectors than there are colours are drawn in independent blocks.

    Source: Stathopoulos, Laeuchli and Orginos (2013), "Hierarchical Probing for Estimating the
        Trace of the Matrix Inverse on Toroidal Lattices".

    >>> v = Hierarchical().sample(4, torch.zeros(1, 2, 1, 2), None)  # 2 channels, 2 pixels
    >>> (v.flatten(1).mT @ v.flatten(1)).abs()
    tensor([[4., 0., 0., 0.],
            [0., 4., 0., 0.],
            [0., 0., 4., 0.],
            [0., 0., 0., 4.]])
    """

    def __str__(self) -> str:
        return "hierarchical"

    def sample(self, n_probes: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
        columns = _columns(x.shape[1:], n_probes, x.dtype, x.device)  # (n, *event)
        n = len(columns)
        signs = Rademacher().sample(-(-n_probes // n), x, generator)
        return (signs[:, None] * columns[:, None]).flatten(0, 1)[:n_probes]


def _signs(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The eight signs of each byte, (256, 8)."""
    bits = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device) & 1
    return bits.to(dtype).mul_(2.0).sub_(1.0)


def drawn_on(x: Tensor, generator: torch.Generator | None) -> torch.device:
    """The device on which random numbers for x are drawn: the generator's, if there is one.

    So a generator on the CPU gives the same numbers wherever x is.
    """
    return x.device if generator is None else generator.device


def _normal(shape: tuple[int, ...], x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers on x's device, of at least four bytes, to be normalised."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    normal = torch.randn(shape, generator=generator, dtype=dtype, device=drawn_on(x, generator))
    return normal.to(x.device, non_blocking=True)


def _blocks(block: Callable[[int], Tensor], n: int, size: int) -> Tensor:
    """`n` vectors, (n, B, d), `size` of them at a time."""
    return torch.cat([block(min(size, n - start)) for start in range(0, n, size)])


@lru_cache(maxsize=16)
def _columns(event: torch.Size, n_probes: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The first columns of `Hierarchical`, (n, *event): n is `n_probes`, at most the colours."""
    colour, n_bits = colours(event or (1,))
    column = torch.arange(min(n_probes, 2**n_bits))[:, None]
    parity = torch.zeros_like(column * colour.flatten())
    for bit in range(n_bits):
        parity ^= (column & colour.flatten()) >> bit & 1
    return (1 - 2 * parity).to(device, dtype).view(-1, *event)


def colours(event: Sequence[int]) -> tuple[Tensor, int]:
    """The colour of each entry of an event (C, *grid), and the number of its bits.

    The bits are those of the channel, from the lowest on; then for each power of two q, with p the
    pixel's position in units of q along the axes longer than q: the parity of sum_i p_i, and that
    of each p_i but the last. So 2 colours of a plane are a chessboard's, and 4 are a pixel's place
    in a square of 2 x 2.

    >>> colour, n_bits = colours((1, 2, 4))
    >>> colour[0].tolist(), n_bits
    ([[0, 1, 4, 5], [3, 2, 7, 6]], 3)
    """
    channel, *position = torch.meshgrid(*[torch.arange(n) for n in event], indexing="ij")
    bits = [channel >> bit for bit in range((event[0] - 1).bit_length())]
    for level in range((max(event[1:], default=1) - 1).bit_length()):
        place = [p >> level for p, n in zip(position, event[1:], strict=True) if n > 1 << level]
        bits += [sum(place, torch.zeros_like(channel)), *place[:-1]]
    shifted = [(bit & 1) << index for index, bit in enumerate(bits)]
    return sum(shifted, torch.zeros_like(channel)), len(bits)
