"""The work to a target error when independent draws of an estimate are averaged."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from resflow_bench.theory.checks import Floats, at_least


def draws_to_target(
    variance: ArrayLike, bias: ArrayLike, target: ArrayLike, bias_share: float = 1.0
) -> Floats:
    """n = max(1, variance/(target^2 - bias^2)): the least n >= 1, a real number, for which the mean
    of n draws has bias^2 + variance/n <= target^2.

    Infinite where the variance is, where |bias| >= target, and where |bias| > bias_share target.

    Args:
        variance: of one draw, nat^2, at least 0; may be inf.
        bias: of a draw, nats, of either sign.
        target: root mean square error, nats, at least 0.
        bias_share: the largest |bias|, as a share of the target, at which averaging is accepted.

    Returns:
        Of the broadcast shape of the first three.

    Raises:
        ValueError: if a variance or a target is negative or NaN.
    """
    variance = at_least("draws_to_target", "variance", variance, 0.0)
    target = at_least("draws_to_target", "target", target, 0.0)
    size = np.abs(np.asarray(bias, dtype=np.float64))
    left = target**2 - size**2
    reached = (left > 0.0) & (size <= bias_share * target)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(reached, np.maximum(1.0, variance / left), np.inf)


def seconds_to_target(
    seconds: ArrayLike,
    variance: ArrayLike,
    bias: ArrayLike,
    target: ArrayLike,
    bias_share: float = 1.0,
) -> Floats:
    """seconds max(1, variance/(target^2 - bias^2)): a draw's seconds times `draws_to_target`.

    Args:
        seconds: of one draw, above 0; the other arguments are those of `draws_to_target`.

    Raises:
        ValueError: as `draws_to_target`.

    >>> seconds_to_target(2.0, [0.25, 1.0, np.inf, 0.25], [0.0, 0.0, 0.0, 0.6], 0.5).tolist()
    [2.0, 8.0, inf, inf]
    """
    n_draws = draws_to_target(variance, bias, target, bias_share)
    return np.asarray(np.asarray(seconds, dtype=np.float64) * n_draws)
