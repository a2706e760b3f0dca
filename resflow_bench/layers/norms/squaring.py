"""Norms by repeated squaring of Gram matrices: products alone, for devices nobody should wait for.

LAPACK is faster for one matrix on a CPU. On an accelerator it makes the host wait, and its CUDA
counterparts do so too; here a whole batch of matrices takes a fixed number of products.
"""

from __future__ import annotations

import torch
from torch import Tensor

# n^(1 / 2^(t + 2)) after t squarings, the most by which the bound exceeds the norm: at n = 1024
# 4.3e-4 after 12 and 1.1e-7 after 24.
SQUARINGS_IN_UPDATE = 12
SQUARINGS = 24

# Squarings from one scaling to the next: of a norm of n^(-1/2) or more they leave at least n^-8.
_UNSCALED = 4


def gram_norm(gram: Tensor, n_squarings: int = SQUARINGS) -> tuple[Tensor, Tensor]:
    """An upper bound on ||A|| from G = A^H A, and a power of G up to its length.

    With G_0 = G and G_(t+1) = G_t^2, lambda_1(G)^(2^t) = lambda_1(G_t) is at most ||G_t||_F, hence

        ||A|| <= ||G_t||_F^(1 / 2^(t + 1)) <= n^(1 / 2^(t + 2)) ||A||.

    Args:
        gram: G (..., n, n), Hermitian and positive semidefinite, in float64 or complex128.
        n_squarings: t, a multiple of 4.

    Returns:
        The bound, (...), in float64: 0 for G = 0, NaN where G is not finite; and G^(2^t) up to its
        length, (..., n, n), for `largest_column`.

    Properties: at least ||A||, rounding included: a product of Hermitian matrices is off by at most
        n eps / 2 ||G_t||_F^2 <= n^2 eps / 2 lambda_1(G_t)^2, of which the power 2^-(t + 2) counts,
        so that all of them together change the norm by less than n^2 eps. t products; the host does
        not wait for them.
    Source: Delattre, Barthélemy, Araujo and Allauzen (2023), Efficient bound of Lipschitz constant
        for convolutional layers by Gram iteration, algorithm 1.
    """
    finfo = torch.finfo(gram.dtype)
    power, sizes = gram, []
    for _ in range(n_squarings // _UNSCALED):
        sizes.append(torch.linalg.matrix_norm(power))
        power = power / sizes[-1].clamp(min=finfo.tiny)[..., None, None]
        for _ in range(_UNSCALED):
            power = power @ power
    bound = torch.linalg.matrix_norm(power)
    for size in reversed(sizes):
        bound = size * bound ** (0.5**_UNSCALED)
    rounding = (gram.shape[-1] ** 2 + 1024) * finfo.eps  # 1024 for the scalings and the roots
    return bound.sqrt() * (1 + rounding), power


def largest_column(power: Tensor) -> Tensor:
    """The column of the largest diagonal entry, a unit vector, or 0 if it is zero; (..., n).

    Of G^k with large k it is the leading eigenvector after k steps of power iteration, from a start
    with a share of at least 1 / n in it. power: (..., n, n), symmetric, positive semidefinite.
    """
    largest = power.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
    column = power.gather(-2, largest.expand(*largest.shape[:-1], power.shape[-1]))[..., 0, :]
    return unit(column)


def unit(x: Tensor) -> Tensor:
    """x / ||x|| along the last axis, or x where it is zero."""
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / size.clamp(min=torch.finfo(x.dtype).tiny)
