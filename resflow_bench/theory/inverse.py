"""How far a fixed-point iterate is from the inverse, and how many steps it may take."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resflow_bench.theory.checks import Floats, at_least, contraction


def residual_error_bounds(residual_norm: ArrayLike, lipschitz: ArrayLike) -> tuple[Floats, Floats]:
    """||r||/(1 + K) <= ||x - x*|| <= ||r||/(1 - K), r = z - x - g(x), f(x*) = z.

    How far x is from the inverse of z, in any norm in which g has Lipschitz constant at most K.

    Returns:
        (low, high), of the broadcast shape.

    Raises:
        ValueError: if K is outside [0, 1).

    Derivation: r = f(x*) - f(x), and f = id + g changes distances by a factor in [1 - K, 1 + K].

    Source: Behrmann et al. (2019), Lemma 2 (the Lipschitz constants of f and of its inverse).

    >>> residual_error_bounds(0.5, 0.5)[1].item()
    1.0
    """
    k = contraction("residual_error_bounds", lipschitz)
    norm = np.asarray(residual_norm, dtype=np.float64)
    return np.asarray(norm / (1.0 + k)), np.asarray(norm / (1.0 - k))


def picard_error_bound(lipschitz: ArrayLike, n_steps: ArrayLike, first_step: ArrayLike) -> Floats:
    """K^n/(1 - K) ||x_1 - x_0|| >= ||x_n - x*|| after n steps of x <- z - g(x).

    From x_0 = z the first step is ||g(z)||. Attained by g(x) = -K x.

    Raises:
        ValueError: if K is outside [0, 1) or `n_steps` is negative.

    Source: Banach (1922); Behrmann et al. (2019), section 2, Algorithm 1.
    """
    k = contraction("picard_error_bound", lipschitz)
    n = at_least("picard_error_bound", "n_steps", n_steps, 0)
    return np.asarray(k**n / (1.0 - k) * np.asarray(first_step, dtype=np.float64))


def picard_steps(
    lipschitz: ArrayLike, error: ArrayLike, first_step: ArrayLike
) -> NDArray[np.int64]:
    """The least n >= 0 with K^n/(1 - K) ||x_1 - x_0|| <= error: as many steps as may be needed.

    log(error (1 - K)/||x_1 - x_0||)/log K, rounded up.

    Raises:
        ValueError: if K is outside [0, 1), or `error` is not positive.

    Source: as `picard_error_bound`.

    >>> picard_steps(0.9, error=1e-5, first_step=1.0).item()
    132
    """
    k = contraction("picard_steps", lipschitz)
    error = np.asarray(error, dtype=np.float64)
    if not (error > 0.0).all():
        raise ValueError(
            f"picard_steps needs a positive error; got {error.min()}. Ask for no less than the "
            "rounding error of the dtype over 1 - K."
        )
    with np.errstate(divide="ignore", invalid="ignore"):  # K = 0, or a first step of 0
        steps = np.log(error * (1.0 - k) / np.asarray(first_step, dtype=np.float64)) / np.log(k)
    n = np.maximum(np.ceil(np.nan_to_num(steps, nan=0.0, posinf=0.0, neginf=0.0)), 0.0)
    n = np.maximum(n - 1.0, 0.0)  # the logarithms round: start one lower and climb
    for _ in range(2):
        n = n + (picard_error_bound(k, n, first_step) > error * (1.0 + 1e-12))
    return np.asarray(n, dtype=np.int64)
