"""Intervals at 99 %: for a mean, a median, and the variance of an estimator with heavy tails."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.99
"""The one confidence level of every table, verdict and figure."""

CLIP = 0.99
"""The quantile at which `lower_variance_interval` clips: of a thousand draws ten remain above it,
about the fewest for a central limit theorem."""


class Interval(NamedTuple):
    """A value and the limits that hold the truth with probability `LEVEL`.

    `standard_error` is NaN where the limits are not (nearly) normal ones around the value.
    """

    value: float
    standard_error: float
    low: float
    high: float
    n: int


def mean_interval(samples: ArrayLike) -> Interval:
    """mean +- t_{n-1} s/sqrt(n), for E y from n i.i.d. samples (n,).

    Properties: exact for normal samples, asymptotic for any finite variance.

    Raises:
        ValueError: if there are fewer than two samples, or one is not finite.

    Source: Student (1908).

    >>> mean_interval([1.0, 2.0, 3.0]).value
    2.0
    """
    y = _samples("mean_interval", samples)
    n = len(y)
    value, error = float(y.mean()), float(y.std(ddof=1)) / math.sqrt(n)
    half_width = error * float(stats.t.isf((1.0 - LEVEL) / 2.0, n - 1))
    return Interval(value, error, value - half_width, value + half_width, n)


def chebyshev_mean_interval(samples: ArrayLike, variance: float) -> Interval:
    """mean +- sqrt(Var y / (n (1 - LEVEL))), for E y from n i.i.d. samples (n,) of known variance.

    Properties: covers with probability at least `LEVEL` for every law with that variance, at every
    n; 3.9 times as wide as a normal interval. With an infinite variance, the whole line.

    Raises:
        ValueError: if there is no sample, one is not finite, or `variance` is negative or NaN.

    Source: Chebyshev (1867).
    """
    y = _samples("chebyshev_mean_interval", samples, least=1)
    if not variance >= 0.0:
        raise ValueError(
            f"chebyshev_mean_interval needs a variance of at least 0; got {variance}. "
            "Pass the exact variance of one sample, or inf."
        )
    value, half_width = float(y.mean()), math.sqrt(variance / (len(y) * (1.0 - LEVEL)))
    return Interval(value, math.nan, value - half_width, value + half_width, len(y))


def variance_interval(draws: ArrayLike) -> Interval:
    """mean_r Z_r,  Z_r = n/(n-1) (1/P) sum_i (y_ri - ybar_i)^2,  for (1/P) sum_i Var(y_i).

    A sample variance is skewed: without a large draw it is too small, and so is its standard error.
    Hall's transformation of the studentised error T of mean Z, with a the skewness of Z over
    sqrt(n),

        h(T) = T + a T^2/3 + a^2 T^3/27 + a/6,

    is monotone and removes that skewness; h^{-1} of the quantiles of Student's t are the limits,
    each moved out by the error of ybar, (ybar - E y)^2 = Var(y)/n times a chi-squared number, which
    is the only error where y takes two values and Z hardly varies.

    Args:
        draws: (n, P), or (n,) for one estimate; rows are independent, entries of a row need not be.

    Properties: for a finite eighth moment of y; where it is not, take `lower_variance_interval`.
    Zero variance gives [0, 0]. Measured coverage, to +- 0.5 %: 98.4 % to 99.2 % for n from 1000 to
    4000, one and eight points, Gaussian, Rademacher and roulette estimates, and the worst that a
    quadratic form of normal numbers can do (chi-squared with one degree of freedom); 97.9 % to
    99 % down to n = 64. With an infinite fourth moment: 93 %.

    Raises:
        ValueError: if there are fewer than two draws, or one is not finite.

    Source: Hall (1992), "On the removal of skewness by transformation", JRSS B 54(1), 221-228,
    with the quantiles of t in place of normal ones.

    >>> variance_interval([[1.0], [3.0]]).value
    2.0
    """
    z = _squares("variance_interval", draws)
    n = len(z)
    value, error = float(z.mean()), float(z.std(ddof=1)) / math.sqrt(n)
    skewness = _skewness(z)
    quantile = float(stats.t.isf((1.0 - LEVEL) / 2.0, n - 1))
    second_order = float(stats.chi2.isf(1.0 - LEVEL, 1)) * value / n
    low = value - error * _untransform(quantile, skewness / math.sqrt(n)) - second_order
    high = value - error * _untransform(-quantile, skewness / math.sqrt(n)) + second_order
    return Interval(value, error, max(0.0, low), high, n)


def lower_variance_interval(draws: ArrayLike) -> Interval:
    """[low, inf) for (1/P) sum_i Var(y_i), finite or not, from n joint draws (n, P).

    As `variance_interval`, one-sided, on min(Z, c) with c the `CLIP` quantile of Z: E min(Z, c) is
    at most E Z, which may be infinite, so the limit stays a lower limit.

    Returns:
        value: the sample variance, which need not be near the true one; standard_error: NaN.

    Raises:
        ValueError: if there are fewer than two draws, or one is not finite.

    Source: Hall (1992), as above, on a truncated mean.
    """
    z = _squares("lower_variance_interval", draws)
    n = len(z)
    clipped = np.minimum(z, np.quantile(z, CLIP))
    error = float(clipped.std(ddof=1)) / math.sqrt(n)
    quantile = float(stats.t.isf(1.0 - LEVEL, n - 1))
    low = float(clipped.mean()) - error * _untransform(quantile, _skewness(clipped) / math.sqrt(n))
    return Interval(float(z.mean()), math.nan, max(0.0, low), math.inf, n)


def median_interval(samples: ArrayLike) -> Interval:
    """[y_(r), y_(n+1-r)], r the largest with P(Binomial(n, 1/2) < r) <= (1 - LEVEL)/2: the median.

    Properties: covers with probability at least `LEVEL` for every law, at every n. Below eight
    samples no two of them do: the whole line.

    Raises:
        ValueError: if there is no sample, or one is not finite.

    Source: Thompson (1936), Ann. Math. Stat. 7.
    """
    y = np.sort(_samples("median_interval", samples, least=1))
    n = len(y)
    rank = int(stats.binom.ppf((1.0 - LEVEL) / 2.0, n, 0.5))  # the least r with P(B <= r) above
    low, high = (float(y[rank - 1]), float(y[n - rank])) if rank > 0 else (-math.inf, math.inf)
    return Interval(float(np.median(y)), math.nan, low, high, n)


def _untransform(x: float, a: float) -> float:
    """h^{-1}(x), h(T) = T + a T^2/3 + a^2 T^3/27 + a/6 = ((1 + a T/3)^3 - 1)/a + a/6."""
    if a == 0.0:
        return x
    cube = a * (x - a / 6.0)  # (1 + a T/3)^3 - 1
    if cube > -0.5:
        return 3.0 / a * math.expm1(math.log1p(cube) / 3.0)  # keeps its digits as a -> 0
    return 3.0 / a * (float(np.cbrt(1.0 + cube)) - 1.0)


def _skewness(z: NDArray[np.float64]) -> float:
    """E (z - E z)^3 / (E (z - E z)^2)^(3/2) of the sample; 0 for a constant."""
    spread = float(z.std())
    return float((((z - z.mean()) / spread) ** 3).mean()) if spread > 0.0 else 0.0


def _squares(caller: str, draws: ArrayLike) -> NDArray[np.float64]:
    """Z_r = n/(n-1) (1/P) sum_i (y_ri - ybar_i)^2, (n,), whose mean is the mean sample variance."""
    y = np.asarray(draws, dtype=np.float64)
    y = _samples(caller, y.reshape(len(y), -1) if y.ndim else y, n_axes=2)
    centred = y - y[0]  # equal draws differ by exactly zero; their mean may round
    centred -= centred.mean(axis=0)
    return np.asarray((centred**2).mean(axis=1) * (len(y) / (len(y) - 1)))


def _samples(
    caller: str, samples: ArrayLike, *, n_axes: int = 1, least: int = 2
) -> NDArray[np.float64]:
    y = np.asarray(samples, dtype=np.float64)
    if y.ndim != n_axes or len(y) < least or y.size == 0:
        raise ValueError(
            f"{caller} needs at least {least} samples on the first of {n_axes} axes; got shape "
            f"{y.shape}. Draw more."
        )
    if not np.isfinite(y).all():
        raise ValueError(
            f"{caller} needs finite samples; got {np.count_nonzero(~np.isfinite(y))} that are not. "
            "Report the cell as failed instead of averaging over them."
        )
    return y
