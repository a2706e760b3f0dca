"""The distance of a fixed-point iterate from the inverse."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from resflow_bench.theory.checks import Floats, contraction


def residual_error_bounds(residual_norm: ArrayLike, lipschitz: ArrayLike) -> tuple[Floats, Floats]:
    """||r||/(1 + K) <= ||x - x*|| <= ||r||/(1 - K), r = z - x - g(x), f(x*) = z.

    (low, high), of the broadcast shape: bounds on the distance of x from the inverse of z, in any
    norm in which g has a Lipschitz constant of at most K.

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
