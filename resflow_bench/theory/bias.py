"""The truncated series S_N, and the bias of its trace."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from resflow_bench.theory.checks import Floats, at_least, contraction, square
from resflow_bench.theory.coefficients import RESIDUAL, Coefficients


def log_tail(lipschitz: ArrayLike, n_terms: ArrayLike) -> Floats:
    """tau_N(K) = sum_{k>N} K^k/k = -log(1 - K) - sum_{k<=N} K^k/k = int_0^K t^N/(1 - t) dt.

    The largest truncation error of log(1 + t), |t| <= K, after N terms; at most
    K^(N+1)/((N+1)(1-K)). Computed to a relative 1e-12: the difference of logarithms is noise where
    tau < 1e-16, and scipy's hyp2f1, which equals the integral, returns NaN for N >= 200 and
    K >= 0.98. K and N may have any shapes that broadcast.

    Raises:
        ValueError: if a K is outside [0, 1) or an N is negative.

    Source: Behrmann et al. (2019), Theorem 3.

    >>> round(float(log_tail(0.9, 10)), 3)
    0.184
    """
    k = contraction("log_tail", lipschitz)
    n = at_least("log_tail", "n_terms", n_terms, 0)
    return tail(k, n)


def truncation_bias_bound(
    lipschitz: ArrayLike, dim: int, n_terms: ArrayLike, coefficients: Coefficients = RESIDUAL
) -> Floats:
    """d tau_N(K) >= |tr S_N - ln|det(I + J)|| for every J with ||J||_2 <= K, in nats.

    Of another block's series d sum_{k>N} |c_k| K^k. Attained by J = -K I.

    Raises:
        ValueError: if K is outside [0, 1), `dim` below 1 or `n_terms` negative.

    Source: Behrmann et al. (2019), Theorem 3.
    """
    k = contraction("truncation_bias_bound", lipschitz)
    n = at_least("truncation_bias_bound", "n_terms", n_terms, 0)
    return at_least("truncation_bias_bound", "dim", dim, 1) * absolute_tail(k, n, coefficients)


def series(
    jacobian: ArrayLike, n_terms: int, n_traced: int = 0, coefficients: Coefficients = RESIDUAL
) -> Floats:
    """sum_{k=L+1}^N c_k J^k, c_k = (-1)^(k+1)/k, (..., d, d); N matrix products, Horner's rule.

    S_N at L = `n_traced` = 0; S_N - S_L, without the cancellation, if the first L traces are exact
    and probes estimate the rest. Zero if N <= L.

    Raises:
        ValueError: if `jacobian` is not a finite (..., d, d) array, or `n_terms` or `n_traced` is
            negative.

    Source: Behrmann et al. (2019), section 3.
    """
    j = square("series", jacobian)
    at_least("series", "n_terms", n_terms, 0)
    at_least("series", "n_traced", n_traced, 0)
    total = np.zeros_like(j)
    diagonal = np.einsum("...ii->...i", total)  # a view, writeable
    for k in range(n_terms, 0, -1):
        if k > n_traced:
            diagonal += coefficients(k)
        total[...] = j @ total
    return total


def truncation_bias(
    jacobian: ArrayLike, n_terms: int, coefficients: Coefficients = RESIDUAL
) -> Floats:
    """tr S_N - ln|det(I + J)| = sum_i Re tau_N(-lambda_i), lambda_i the eigenvalues of J; in nats.

    The bias of a truncated estimate, without sampling; shape (...). It depends on the eigenvalues
    alone: exactly zero for a strictly triangular J, and rounding for any other nilpotent one. No
    cancellation, so a bias of 1e-20 has its digits. Valid for any J, also where the series diverges
    as N grows. Another block's series is biased by plus times this plus minus times that of -J.

    Raises:
        ValueError: if `jacobian` is not a finite (..., d, d) array or `n_terms` is negative.

    Source: Behrmann et al. (2019), section 3; tau_N as in `log_tail`, continued to complex
    arguments.

    >>> round(float(truncation_bias(-0.9 * np.eye(2), 4)), 3)  # overstates
    1.181
    """
    j = square("truncation_bias", jacobian)
    n = at_least("truncation_bias", "n_terms", n_terms, 0)
    eigenvalues = np.linalg.eigvals(j).astype(np.complex128)
    bias = coefficients.combine(lambda t: tail(-t, n).real.sum(axis=-1), eigenvalues)
    return np.asarray(bias)


def tail(z: np.ndarray, n: np.ndarray) -> np.ndarray:
    """-log(1 - z) - sum_{k<=n} z^k/k, for real or complex z."""
    return _by_case(z, n, lambda z, n: z ** (n + 1) * fraction(z, n), _difference)


def absolute_tail(k: np.ndarray, n: np.ndarray, coefficients: Coefficients) -> np.ndarray:
    """sum_{l>n} |c_l| K^l, 0 <= K < 1: tau_n(K) for log(1 + t)."""
    return np.abs(coefficients.combine(lambda z: tail(z, n), k))


def log_of_tail(
    lipschitz: np.ndarray, n: np.ndarray, coefficients: Coefficients = RESIDUAL
) -> np.ndarray:
    """log of `absolute_tail`, 0 < K < 1, also where it is itself below the smallest float64."""

    def log_fraction(k: np.ndarray, n: np.ndarray) -> np.ndarray:
        # The powers of K and -K in front differ by a sign.
        parts = coefficients.combine(lambda z: np.sign(z) ** (n + 1) * fraction(z, n), k)
        return np.asarray((n + 1) * np.log(k) + np.log(np.abs(parts)))

    def difference(k: np.ndarray, n: np.ndarray) -> np.ndarray:
        return np.log(np.abs(coefficients.combine(lambda z: _difference(z, n), k)))

    return _by_case(lipschitz, n, log_fraction, difference)


Case = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _by_case(z: np.ndarray, n: np.ndarray, fraction: Case, difference: Case) -> np.ndarray:
    """The tail by the fraction, or by the difference where the fraction converges slowly and the
    difference keeps its digits.

    300 levels of the fraction leave 1e-13 if |1 - z| >= 0.01 or n |1 - z| >= 1. In the rest of the
    unit disc, and outside it, the tail is not small against the logarithm.
    """
    z, n = np.broadcast_arrays(z, n)
    gap = np.abs(1.0 - z)
    subtract = ((gap < 0.01) & (n * gap < 1.0)) | (np.abs(z) >= 1.0)
    value = np.empty(z.shape, dtype=z.dtype)
    value[~subtract] = fraction(z[~subtract], n[~subtract])
    value[subtract] = difference(z[subtract], n[subtract])
    return value


def fraction(z: np.ndarray, n: np.ndarray, n_levels: int = 300) -> np.ndarray:
    """int_0^1 t^n/(1 - z t) dt = 2F1(1, n+1; n+2; z)/(n+1), by Gauss's continued fraction.

    The tail over z^(n+1). Converges for all z off the cut [1, inf), slowly near z = 1 unless
    n |1 - z| is at least 1 there.

    Source: DLMF 15.7.1 and 15.7.2 with b = 0.
    """
    b = n + 1.0
    value = np.ones_like(z)
    for level in range(n_levels, 0, -1):
        i, odd = divmod(level, 2)
        if odd:
            coefficient = (b + i) ** 2 / ((b + 2 * i) * (b + 2 * i + 1))
        else:
            coefficient = i**2 / ((b + 2 * i - 1) * (b + 2 * i))
        value = 1.0 - coefficient * z / value
    return 1.0 / (b * value)


def _difference(z: np.ndarray, n: np.ndarray) -> np.ndarray:
    partial = np.empty_like(z)
    for one in np.unique(z):  # few differ: they are one K, or the eigenvalues of a J
        same = z == one
        k = np.arange(1.0, n[same].max() + 1.0)
        sums = np.cumsum(np.append(0.0, one**k / k))
        partial[same] = sums[n[same].astype(int)]
    with np.errstate(divide="ignore"):  # z = 1: det(I + J) = 0, and -log(0) = inf is the answer
        return -np.log(1.0 - z) - partial
