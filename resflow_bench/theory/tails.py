"""M_k = sum_{l>=k} c_l J^l, c_l = (-1)^(l+1)/l, the tails of the series, with all their digits."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from resflow_bench.theory.bias import fraction
from resflow_bench.theory.checks import Floats, at_least, square
from resflow_bench.theory.coefficients import RESIDUAL, Coefficients
from resflow_bench.theory.hutchinson import Moments, moments


def spectral_radius(jacobian: ArrayLike) -> Floats:
    """rho = max_i |lambda_i|, shape (...); exactly zero if J is strictly triangular.

    Raises:
        ValueError: if `jacobian` is not a finite (..., d, d) array.
    """
    return np.abs(np.linalg.eigvals(square("spectral_radius", jacobian))).max(axis=-1)


def tail_moments(
    jacobian: ArrayLike, n_tails: int, coefficients: Coefficients = RESIDUAL
) -> Moments:
    """Moments of M_k, k = 1..n_tails, on a new leading axis: all fields but `dim` (n_tails, ...).

    Accumulated from the smallest term to the largest, so an M_k of 1e-100 has all its digits; the
    difference M_1 - S_(k-1) would have none. One J at a time: n_tails + O(sqrt(n_tails + n_more))
    matrix products, n_more = 45/log(1/rho), and O(sqrt(n_tails)) matrices in memory, below 400 MB
    for n_tails <= 2000 at d = 512.

    Raises:
        ValueError: if `jacobian` is not a finite (..., d, d) array, `n_tails` is below 1, or a
            spectral radius is 1 or more, where the series diverges.
    """
    j = square("tail_moments", jacobian)
    at_least("tail_moments", "n_tails", n_tails, 1)
    rho = spectral_radius(j)
    if rho.max(initial=0.0) >= 1.0:
        raise ValueError(
            f"tail_moments needs spectral radii below 1, or the series diverges; got "
            f"{rho.max():.6g}. Leave those jacobians out, or take a partial sum with `series`."
        )
    flat = j.reshape(-1, *j.shape[-2:])
    columns = np.empty((4, n_tails, len(flat)))
    for i, (a, r) in enumerate(zip(flat, rho.ravel(), strict=True)):
        scaled, log_scale = scaled_tails(a, r, n_tails, coefficients)
        columns[0, :, i] = scaled.trace * np.exp(log_scale)
        columns[1:, :, i] = np.stack(scaled[2:]) * np.exp(2.0 * log_scale)
    return Moments(j.shape[-1], *columns.reshape(4, n_tails, *j.shape[:-2]))


def scaled_tails(
    j: np.ndarray, rho: float, n_tails: int, coefficients: Coefficients = RESIDUAL
) -> tuple[Moments, Floats]:
    """Moments of M_k e^(-log_scale_k), k = 1..n_tails, and log_scale (n_tails,), of one J (d, d).

    1. Small steps J, ..., J^s and large steps J^s, J^2s, ... are stored; J^(is+j) is one product of
       the two. Each is scaled to unit Frobenius norm, with the norm's logarithm stored beside it:
       J^k and the roulette's 1/P_k need not fit a float64, only their product.
    2. The tail beyond the last large step is summed until it no longer changes.
    3. From there down, M_k = c_k J^k + M_(k+1).
    """
    n_more = 45.0 / -math.log(rho) if rho > 0.0 else 0.0  # e^-45 = 2^-65 is below rounding
    n_small = math.ceil(math.sqrt(n_tails + n_more))
    n_small = max(1, min(n_small, n_tails, 2**23 // j.size))  # 64 MiB for each of three stacks
    n_large = -(-n_tails // n_small)
    small, log_small = _powers(j, n_small)  # (s, d, d), (s,)
    large, log_large = _powers(small[-1], n_large)  # (n_large, d, d), (n_large,)
    log_large += log_small[-1] * np.arange(1, n_large + 1)

    steps = small * np.exp(log_small)[:, None, None]
    tail = _last_tail(large[-1], steps, n_large * n_small, coefficients)
    log_tail_scale = log_large[-1]
    fields, log_scale = np.empty((4, n_large, n_small)), np.empty((n_large, n_small))
    for i in reversed(range(n_large)):
        k = np.arange(i * n_small + 1, (i + 1) * n_small + 1)
        block = large[i - 1] @ small if i else small.copy()
        block *= coefficients(k)[:, None, None]
        log_scale[i] = log_small + (log_large[i - 1] if i else 0.0)
        for p in reversed(range(n_small)):
            block[p] += math.exp(log_tail_scale - log_scale[i, p]) * tail
            tail, log_tail_scale = block[p], log_scale[i, p]
        fields[:, i] = moments(block)[1:]
    return Moments(len(j), *fields.reshape(4, -1)[:, :n_tails]), log_scale.ravel()[:n_tails]


def late_tails(
    j: np.ndarray, first: int, last: int, coefficients: Coefficients = RESIDUAL
) -> tuple[Moments, Floats]:
    """`scaled_tails` for k = first..last, of a J (d, d) with distinct eigenvectors; 0 < rho < 1.

    M_k = sum_i m_k(lambda_i) x_i y_i^H, m_k(t) = sum_{l>=k} c_l t^l, with right and left
    eigenvectors x_i and y_i, y_i^H x_j = [i = j]. No product of matrices depends on k:

        tr M_k = sum_i m_i,    tr M_k^2 = sum_i m_i^2,
        ||M_k||_F^2 = sum_{i,j} m_i* m_j (x_i^H x_j)(y_j^H y_i).

    A J with eigenvectors near each other loses digits: compare with `scaled_tails` at k = first.
    Eigenvalues whose powers are below rounding by then are left out.
    """
    values, right = np.linalg.eig(j)
    left = np.linalg.inv(right)  # y_i^H in row i
    log_rho = math.log(np.abs(values).max())
    with np.errstate(divide="ignore"):
        late = first * (np.log(np.abs(values)) - log_rho) > -80.0
    values, right, left = values[late].astype(complex), right[:, late], left[late]
    gram = (right.conj().T @ right) * (left @ left.conj().T).T
    diagonals = right * left.T  # (d, r)

    n = max(1, min(2**12, int(50.0 / -log_rho)))  # over which rho^k stays far from underflow
    radius = math.exp(log_rho)
    powers = (values / radius) ** np.arange(n)[:, None]
    rho = np.exp(log_rho * np.arange(n + 1))[:, None]
    n_blocks = -(-max(last + 1 - first, math.ceil(1.0 / -log_rho)) // n)
    fields, end = np.empty((4, n_blocks, n)), first + n_blocks * n
    m = coefficients.combine(
        lambda t: -((-t / radius) ** end) * fraction(-t, np.array(end - 1.0)), values
    )[None]  # of k = end, over rho^end
    for i in reversed(range(n_blocks)):
        start = first + i * n
        terms = coefficients(np.arange(start, start + n))[:, None] * rho[:-1] * powers
        terms *= (values / radius) ** start
        terms[-1] += rho[-1] * m[0]  # of l >= start + n
        m = terms[::-1].cumsum(axis=0)[::-1] / rho[:-1]  # m_k rho^-k
        frobenius = ((m.conj() @ gram) * m).sum(axis=1).real
        symmetric = 0.5 * (frobenius + (m**2).sum(axis=1).real)
        diagonal = ((m @ diagonals.T).real ** 2).sum(axis=1)
        off = np.maximum(symmetric - diagonal, 0.0)
        fields[:, i] = m.sum(axis=1).real, frobenius, diagonal, off
    log_scale = np.arange(float(first), last + 1.0) * log_rho
    return Moments(len(j), *fields.reshape(4, -1)[:, : len(log_scale)]), log_scale


def _powers(a: np.ndarray, n: int) -> tuple[Floats, Floats]:
    """a, ..., a^n, each over its Frobenius norm, and the logarithms of the norms (of 0: any)."""
    powers = np.empty((n, *a.shape))
    logs = np.zeros(n)
    power, log_norm = np.eye(len(a)), 0.0
    for i in range(n):
        power = power @ a
        norm = float(np.linalg.norm(power))
        if norm > 0.0:
            power, log_norm = power / norm, log_norm + math.log(norm)
        powers[i], logs[i] = power, log_norm
    return powers, logs


def _last_tail(lead: np.ndarray, small: np.ndarray, n: int, coefficients: Coefficients) -> Floats:
    """sum_{l>n} c_l a J^(l-n) with a = `lead` and J, ..., J^s = `small`."""
    n_small = len(small)
    growth = np.linalg.norm(small, axis=(1, 2)).sum()
    total = np.zeros_like(lead)
    while np.linalg.norm(lead) * growth / (n + 1) > 2.0**-64 * np.linalg.norm(total):
        k = np.arange(n + 1, n + n_small + 1)
        total += lead @ np.tensordot(coefficients(k), small, axes=1)
        lead = lead @ small[-1]
        n += n_small
    return total
