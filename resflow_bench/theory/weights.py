"""Importance weights exp(e), e = estimate - truth of a log-density: bias and effective sample size.

An unbiased log-density is a biased weight. If e is normal with mean b and variance s^2,

    E[exp(t e)] = exp(t b + t^2 s^2/2),    ESS/n = E[exp(e)]^2 / E[exp(2 e)] = exp(-s^2),

with ESS the effective sample size of n weights. A bias that is the same everywhere cancels in it.

Source: Kong (1992) for the effective sample size.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from resflow_bench.theory.checks import Floats, at_least, probe_count, square


def normal_log_moment(order: float, bias: ArrayLike, variance: ArrayLike) -> Floats:
    """ln E[exp(t e)] = t b + t^2 s^2/2, t = `order`, for a normal e; inf if s^2 is.

    Raises:
        ValueError: if a variance is negative or NaN.
    """
    variance = at_least("normal_log_moment", "variance", variance, 0.0)
    return np.asarray(order * np.asarray(bias, dtype=np.float64) + order**2 * variance / 2.0)


def gaussian_log_moment(order: float, a: ArrayLike, n_probes: int = 1) -> Floats:
    """ln E[exp((t/m) sum_j v_j^T A v_j)] = -(m/2) sum_i ln(1 - 2 t l_i/m), v_j ~ N(0, I), exactly.

    l_i are the eigenvalues of sym A, t = `order`; shape (...). Inf if 2 t l_i >= m for one of them:
    so weights from one Gaussian probe have no finite mean where an l_i is 1/2 or more, and no
    finite variance where it is 1/4 or more.

    Raises:
        ValueError: if `a` is not a finite (..., d, d) array or `n_probes` is below 1.
    """
    matrix = square("gaussian_log_moment", a)
    m = probe_count("gaussian_log_moment", n_probes)
    values = np.linalg.eigvalsh((matrix + matrix.swapaxes(-1, -2)) / 2.0)
    left = 1.0 - 2.0 * order * values / m
    finite = (left > 0.0).all(-1)
    logs = np.log(np.where(left > 0.0, left, 1.0)).sum(-1)
    return np.where(finite, -m / 2.0 * logs, np.inf)


def ess_loss(log_first: float, log_second: float) -> float:
    """1 - ESS/n = 1 - E[w]^2/E[w^2] of weights w, from ln E[w] and ln E[w^2]; 1 if E[w^2] is inf.

    >>> round(ess_loss(0.005, 0.02), 6)  # normal e, s^2 = 0.01
    0.00995
    """
    return 1.0 if log_second == math.inf else 0.0 - math.expm1(2.0 * log_first - log_second)


def error_of_ess(ess: float) -> float:
    """sqrt(-ln ESS/n), nats: the root mean square error of which normal errors keep this share.

    Of e's variance the part over x, that of the bias, counts too. It is at most the mean square of
    the bias, so bias^2 + variance <= -ln(ESS/n) suffices.

    Raises:
        ValueError: if `ess` is outside (0, 1).

    >>> round(error_of_ess(0.99), 4)
    0.1003
    """
    if not 0.0 < ess < 1.0:
        raise ValueError(
            f"error_of_ess needs a share between 0 and 1, both excluded; got {ess}. Give for "
            "example 0.99, which loses one sample in a hundred."
        )
    return math.sqrt(-math.log(ess))
