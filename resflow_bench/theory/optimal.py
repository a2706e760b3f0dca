"""The law of a roulette of least variance for its work."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression

from resflow_bench.theory.checks import Floats, at_least


def optimal_survival(
    second_moments: ArrayLike, mean_square: float, costs: ArrayLike | None = None
) -> Floats:
    """P_k = sqrt((b_k/c_k)/(b_1/c_1)), k = 1..n: the least Var(Y) sum_k c_k P_k, pooled to fall.

    For the estimate Y of `roulette_variance`, with T_k the sum of its terms from k on:

        Var(Y) = sum_k b_k/P_k,  b_k = E[T_k^2] - E[T_(k+1)^2],  less E[T_1]^2 at k = 1.

    By Cauchy and Schwarz Var(Y) sum_k c_k P_k >= (sum_k sqrt(b_k c_k))^2, which these P_k attain.
    Where b_k/c_k rises, or is negative, neighbours take their common mean (weights c_k), which is
    the minimum over all P_k that do not rise. P_1 = 1, always.

    If the first T_2, T_3, ... outweigh the noise of the probes, Var(T_1), the first P_k are all 1:
    the optimal number of exact terms. Without noise of the probes, all are 1.

    Args:
        second_moments: E[T_k^2], k = 1..n + 1; for several J their mean over the J.
        mean_square: E[T_1]^2, (ln|det(I + J)|)^2 if no trace is taken exactly; the mean over the J.
        costs: c_k > 0, k = 1..n; by default 1. The cost of an estimate besides its terms belongs to
            c_1.

    Returns:
        (n,), from 1 on, never rising; 0 only where the T_k do not differ any more.

    Raises:
        ValueError: if there are fewer than two second moments or one is negative, or `costs` is not
            n positive numbers.

    Source: Rhee and Glynn (2015), "Unbiased estimation with square root convergence for SDE
        models", for the square root and the work-normalised variance.

    >>> optimal_survival([5.0, 1.0, 0.25, 0.05], mean_square=1.0).round(3).tolist()
    [1.0, 0.5, 0.258]
    """
    squares = at_least("optimal_survival", "second_moments", second_moments, 0.0)
    if squares.ndim != 1 or len(squares) < 2:
        raise ValueError(
            f"optimal_survival needs E[T_k^2], k = 1..n + 1, n >= 1; got shape {squares.shape}. "
            "Average over the jacobians first."
        )
    c = np.ones(len(squares) - 1) if costs is None else np.asarray(costs, dtype=np.float64)
    if c.shape != (len(squares) - 1,) or not (c > 0.0).all():
        raise ValueError(
            f"optimal_survival needs {len(squares) - 1} positive costs, one a term; got {c}. "
            "Add costs that occur once to the first."
        )
    b = squares[:-1] - squares[1:]
    b[0] -= mean_square
    pooled = isotonic_regression(b / c, weights=c, increasing=False).x
    if pooled[0] <= 0.0:
        return np.ones_like(c)
    return np.asarray(np.sqrt(np.maximum(pooled, 0.0) / pooled[0]))
