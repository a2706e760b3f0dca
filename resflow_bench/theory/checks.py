"""Checks of arguments; each error names the caller, the rule, the value and the remedy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resflow_bench.arguments import check_count

Floats = NDArray[np.float64]


def square(caller: str, a: ArrayLike) -> Floats:
    """Finite float64 matrices (..., d, d)."""
    array = np.asarray(a, dtype=np.float64)
    if array.ndim < 2 or array.shape[-1] != array.shape[-2] or array.shape[-1] == 0:
        raise ValueError(
            f"{caller} needs square matrices (..., d, d); got shape {array.shape}. "
            "Pass one matrix per example."
        )
    if not np.isfinite(array).all():
        raise ValueError(
            f"{caller} needs finite matrices; got NaN or inf. "
            "Leave out the examples where g overflows."
        )
    return array


def contraction(caller: str, lipschitz: ArrayLike) -> Floats:
    """Constants in [0, 1)."""
    k = np.asarray(lipschitz, dtype=np.float64)
    if not ((k >= 0.0) & (k < 1.0)).all():
        raise ValueError(
            f"{caller} needs 0 <= lipschitz < 1; got {k}. Pass the bound of the whole branch g, "
            "not of one of its layers."
        )
    return k


def at_least(caller: str, name: str, value: ArrayLike, least: float) -> Floats:
    """Numbers of at least `least`."""
    array = np.asarray(value, dtype=np.float64)
    if not (array >= least).all():
        raise ValueError(f"{caller} needs {name} of at least {least}; got {array}. Raise `{name}`.")
    return array


def probe_count(caller: str, n_probes: int) -> int:
    """At least one probe."""
    return check_count(caller, "n_probes", n_probes)
