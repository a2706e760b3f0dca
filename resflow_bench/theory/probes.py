"""The variance of Hutchinson's estimator with probes of fixed length, or dependent ones."""

from __future__ import annotations

import numpy as np

from resflow_bench.theory.checks import Floats
from resflow_bench.theory.hutchinson import Moments


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

    Source: by the derivation above.

    >>> from resflow_bench.theory import moments
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

    Source: by the derivation above.
    """
    order = 1 << (moments.dim - 1).bit_length()
    r = n_probes % order
    factor = 2.0 * r * (order - r) / (n_probes**2 * max(1, order - 1))
    return np.asarray(factor * moments.off_diagonal_sq)
