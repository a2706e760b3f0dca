"""log(1 + t) in Chebyshev's polynomials of an interval, and the bias of a partial sum."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.polynomial import chebyshev, legendre
from numpy.typing import ArrayLike

from resflow_bench.theory.checks import Floats, at_least, square


@lru_cache
def chebyshev_coefficients(
    low: float, high: float, n: int, n_traced: int = 0
) -> tuple[Floats, Floats]:
    """c_0, ..., c_(n-1) and c'_0, ..., c'_(n-1), float64, of the infinite series:

        f(t) = log(1 + t) - sum_{k<=L} (-1)^(k+1) t^k/k = t^(L+1) sum_j c_j T_j(tau),
        f'(t)                                           = t^L     sum_j c'_j T_j(tau),

    tau = (2t - low - high)/(high - low), L = `n_traced`. With the power of t in front every partial
    sum is exact at t = 0, where most eigenvalues of a residual flow's J are. Both series converge
    where tau(t) is inside the Bernstein ellipse (foci +-1) through tau(-1).

    1. 1/(1 + s t) = (1/D) [1 + 2 sum_{j>0} (-q)^j T_j(tau)] with the interval's middle a and half
       length b, D^2 = (1 + s a)^2 - (s b)^2, q = s b/(1 + s a + D).
    2. f'(t)/t^L = (-1)^L/(1 + t), and f(t)/t^(L+1) = (-1)^L int_0^1 s^L/(1 + s t) ds.

    Sums of terms of one sign: every c_j has its digits, however small, as is needed for a complex
    t, where T_j(tau) grows as fast. (An interpolation has an absolute error of 1e-16.)

    Raises:
        ValueError: unless -1 < low < high, or if `n` or `n_traced` is below 0.

    >>> c, _ = chebyshev_coefficients(-0.5, 0.5, 40)
    >>> round(0.3 * float(chebyshev.chebval(0.6, c)), 12) == round(math.log(1.3), 12)
    True
    """
    at_least("chebyshev_coefficients", "n", n, 0)
    at_least("chebyshev_coefficients", "n_traced", n_traced, 0)
    if not -1.0 < low < high < math.inf:
        raise ValueError(
            f"chebyshev_coefficients needs -1 < low < high, where log(1 + t) is analytic; got "
            f"low={low}, high={high}. Choose an interval with the eigenvalues of J."
        )
    node, weight = legendre.leggauss(64)
    u = (1.0 + node) / 2.0
    s = np.append(1.0 - u**2, 1.0)  # of the integral, where large j see s near 1 alone; of f'
    middle, half = (low + high) / 2, (high - low) / 2
    root = np.sqrt((1 + s * middle) ** 2 - (s * half) ** 2)
    ratio = s * half / (1 + s * middle + root)
    terms = 2.0 * (-ratio) ** np.arange(n)[:, None] * (-s) ** n_traced / root  # (n, S)
    terms[:1] /= 2.0
    return terms[:, :-1] @ (weight * u), terms[:, -1]


def chebyshev_bias(
    jacobian: ArrayLike, n_terms: int, low: float, high: float, n_traced: int = 0
) -> Floats:
    """tr p_N(J) - tr f(J) = sum_i Re [p_N(lambda_i) - f(lambda_i)], nats, (...).

    p_N = t^(L+1) (c_0 T_0 + ... + c_(N-L-1) T_(N-L-1)), of degree N; it depends on the eigenvalues
    alone, whether J is symmetric or not.

    Raises:
        ValueError: as `chebyshev_coefficients`; if `jacobian` is not a finite (..., d, d) array, or
            `n_terms` is negative.
    """
    j = square("chebyshev_bias", jacobian)
    at_least("chebyshev_bias", "n_terms", n_terms, 0)
    n_chebyshev = max(n_terms - n_traced, 0)
    c, _ = chebyshev_coefficients(low, high, n_chebyshev, n_traced)
    t = np.linalg.eigvals(j).astype(np.complex128)
    tau = (2 * t - low - high) / (high - low)
    probed = t ** (n_traced + 1) * chebyshev.chebval(tau, c) if n_chebyshev else 0 * t
    powers = sum(((-1) ** (k + 1) / k * t**k for k in range(1, n_traced + 1)), 0 * t)
    return np.asarray((probed + powers - np.log(1 + t)).real.sum(axis=-1))
