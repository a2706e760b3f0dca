"""The variance of Hutchinson's trace estimator, exact and bounded."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from resflow_bench.theory.bias import absolute_tail
from resflow_bench.theory.checks import Floats, at_least, contraction, probe_count, square
from resflow_bench.theory.coefficients import RESIDUAL, Coefficients


@runtime_checkable
class ProbeVariance(Protocol):
    """A law of m vectors v_j, each with E v = 0 and E v v^T = I."""

    def variance(self, moments: Moments, n_probes: int) -> np.ndarray:
        """Var((1/m) sum_j v_j^T A v_j), from the moments of A."""


class Moments(NamedTuple):
    """The moments of A that Var(v^T A v) depends on, each of the leading shape (...) of A.

    The diagonal of sym A = (A + A^T)/2 and the rest are separate: the variance of Rademacher probes
    depends on the rest alone, and must not be a difference of large numbers.
    """

    dim: int
    trace: Floats
    frobenius_sq: Floats
    diagonal_sq: Floats
    off_diagonal_sq: Floats

    @property
    def symmetric_sq(self) -> Floats:
        """||sym A||_F^2."""
        return self.diagonal_sq + self.off_diagonal_sq


def moments(a: ArrayLike) -> Moments:
    """d, tr A, ||A||_F^2, sum_i A_ii^2 and sum_{i!=j} ((A_ij + A_ji)/2)^2 of (..., d, d) matrices.

    Raises:
        ValueError: if `a` is not a finite (..., d, d) array.
    """
    matrix = square("moments", a)
    diagonal = np.einsum("...ii->...i", matrix)
    rest = matrix + matrix.swapaxes(-1, -2)
    np.einsum("...ii->...i", rest)[...] = 0.0  # a view
    return Moments(
        dim=matrix.shape[-1],
        trace=diagonal.sum(axis=-1),
        frobenius_sq=np.einsum("...ij,...ij->...", matrix, matrix),
        diagonal_sq=np.einsum("...i,...i->...", diagonal, diagonal),
        off_diagonal_sq=0.25 * np.einsum("...ij,...ij->...", rest, rest),
    )


def iid_variance(moments: Moments, fourth_moment: float) -> Floats:
    """Var(v^T A v) = 2 ||sym A||_F^2 + (k4 - 3) sum_i A_ii^2 for i.i.d. v_i, E v_i^4 = k4.

    For any real A and v_i of mean 0 and variance 1. Gaussian, k4 = 3: ||A||_F^2 + tr A^2.
    Rademacher, k4 = 1: 2 sum_{i!=j} sym(A)_ij^2.

    Derivation: v^T A v = v^T sym(A) v; E v_i v_j v_k v_l is the sum of the three pairings, and has
    k4 - 3 more where i = j = k = l.

    Source: Hutchinson (1990); Avron and Toledo (2011), Table 1.
    """
    return 2.0 * moments.off_diagonal_sq + (fourth_moment - 1.0) * moments.diagonal_sq


def orthogonal_variance(moments: Moments, n_probes: int) -> Floats:
    """2 d r (d - r) / (m^2 (d - 1)(d + 2)) (||sym A||_F^2 - tr(A)^2/d),  r = m mod d.

    The variance of (1/m) sum_j v_j^T A v_j with the v_j drawn d at a time: each d of them, and the
    r left over, are orthogonal, of length sqrt(d) and uniformly oriented. Zero where m is a
    multiple of d. m = 1 is a vector on the sphere, (2d/(d + 2)) (||sym A||_F^2 - tr(A)^2/d).

    Derivation, for S = sym A - (tr(A)/d) I, since a multiple of I adds no noise:

    1. A full block has sum_j v_j^T S v_j = d tr S = 0, so only the r left over count.
    2. For u uniform on the unit sphere, E (u^T S u)^2 = (2 ||S||_F^2 + (tr S)^2)/(d (d + 2)), and
       a w orthogonal to u has E[w w^T | u] = (I - u u^T)/(d - 1), so that
       E (u^T S u)(w^T S w) = -E (u^T S u)^2/(d - 1).
    3. Var sum_(j<=r) u_j^T S u_j = r (1 - (r - 1)/(d - 1)) 2 ||S||_F^2/(d (d + 2)), times (d/m)^2.

    >>> float(orthogonal_variance(moments(np.diag([1.0, -1.0])), 1))
    2.0
    """
    d, r = moments.dim, n_probes % moments.dim
    # Rounding alone can take the difference below zero, where A is a multiple of I.
    diagonal = np.maximum(moments.diagonal_sq - moments.trace**2 / d, 0.0)
    factor = 2.0 * d * r * (d - r) / (n_probes**2 * max(1, d - 1) * (d + 2))
    return np.asarray(factor * (diagonal + moments.off_diagonal_sq))


def hadamard_variance(moments: Moments, n_probes: int) -> Floats:
    """2 r (D - r) / (m^2 (D - 1)) sum_{i!=j} sym(A)_ij^2,  r = m mod D,  D = 2^ceil(log2 d) >= d.

    The variance of (1/m) sum_j v_j^T A v_j with v_j = s * h_j drawn D at a time: s are independent
    signs, the h_j different random columns of a Hadamard matrix of order D, cut to d rows. Zero
    where m is a multiple of D; m = 1 is a Rademacher vector.

    Derivation, with G_ab = (1/m) sum_j h_ja h_jb:

    1. The estimate less tr A is sum_{a!=b} s_a s_b A_ab G_ab, whose variance over s is
       2 sum_{a!=b} sym(A)_ab^2 G_ab^2.
    2. The h_ja h_jb, a != b, are m draws without replacement from D signs of which half are +1,
       since the rows a and b are orthogonal. A full block leaves G_ab = 0, and r < D draws
       E G_ab^2 = (r/m)^2 (D - r)/(r (D - 1)).
    """
    order = 1 << (moments.dim - 1).bit_length()
    r = n_probes % order
    factor = 2.0 * r * (order - r) / (n_probes**2 * max(1, order - 1))
    return np.asarray(factor * moments.off_diagonal_sq)


def hutchinson_variance(a: ArrayLike, probe: ProbeVariance, n_probes: int = 1) -> Floats:
    """Var((1/m) sum_j v_j^T A v_j), exactly; shape (...). For independent v_j, Var(v^T A v)/m.

    Raises:
        ValueError: if `a` is not a finite (..., d, d) array or `n_probes` is below 1.

    Source: Hutchinson (1990).
    """
    m = probe_count("hutchinson_variance", n_probes)
    return np.asarray(probe.variance(moments(a), m))


def avron_toledo_bound(a: ArrayLike, n_probes: int = 1) -> Floats:
    """(2/m) ||A||_F^2 >= Var((1/m) sum_j v_j^T A v_j) for any real A, Gaussian or Rademacher v.

    Attained by Gaussian probes iff A is symmetric.

    Raises:
        ValueError: if `a` is not a finite (..., d, d) array or `n_probes` is below 1.

    Source: Avron and Toledo (2011), Table 1, for symmetric A; else by ||sym A||_F <= ||A||_F.
    """
    return 2.0 * moments(a).frobenius_sq / probe_count("avron_toledo_bound", n_probes)


def series_variance_bound(
    lipschitz: ArrayLike,
    dim: int,
    n_terms: int | None = None,
    n_probes: int = 1,
    n_traced: int = 0,
    coefficients: Coefficients = RESIDUAL,
) -> Floats:
    """(2d/m) s^2, s = sum_{k=L+1}^N K^k/k >= the variance of m probes of S_N - S_L, ||J||_2 <= K.

    Of another block's series s = sum_{k=L+1}^N |c_k| K^k.

    N = None is the infinite series, s = -log(1 - K) at L = `n_traced` = 0. Attained by J = -K I
    with Gaussian probes.

    Derivation: ||S_N - S_L||_F <= sum_k ||J^k||_F/k and ||J^k||_F <= sqrt(d) K^k, into
    `avron_toledo_bound`.

    Raises:
        ValueError: if K is outside [0, 1), `dim`, `n_terms` or `n_probes` below 1, or `n_traced`
            below 0.

    Source: Avron and Toledo (2011), Table 1, with the triangle inequality.

    >>> round(float(series_variance_bound(0.9, dim=32, n_terms=10)), 1)
    287.3
    """
    k = contraction("series_variance_bound", lipschitz)
    d = at_least("series_variance_bound", "dim", dim, 1)
    first = at_least("series_variance_bound", "n_traced", n_traced, 0)
    norm = absolute_tail(k, first, coefficients)
    if n_terms is not None:
        last = at_least("series_variance_bound", "n_terms", n_terms, 1)
        norm = norm - absolute_tail(k, np.maximum(last, first), coefficients)
    return 2.0 * d * norm**2 / probe_count("series_variance_bound", n_probes)


def printed_variance_bound(dim: int, n_terms: int, n_probes: int = 1) -> float:
    """2 H_N sqrt(d)/m, H_N = sum_{k=1}^N 1/k: a published variance "bound" that is WRONG.

    It comes from 2 ||A||_F in place of 2 ||A||_F^2, and from ||J^k||_F <= sqrt(d). J = -K I at
    K = 0.9, d = 32, N = 10 has a Gaussian variance of 287.3, and this "bound" is 33.1. Reports
    show it beside the valid one, `series_variance_bound`.

    Raises:
        ValueError: if `dim`, `n_terms` or `n_probes` is below 1.
    """
    d = at_least("printed_variance_bound", "dim", dim, 1)
    n = int(at_least("printed_variance_bound", "n_terms", n_terms, 1))
    harmonic = math.fsum(1.0 / k for k in range(1, n + 1))
    return 2.0 * harmonic * math.sqrt(d) / probe_count("printed_variance_bound", n_probes)
