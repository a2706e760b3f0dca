"""Observations: the metrics of one cell, each with its unit, interval, replicates and picture."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from math import isnan, nan
from typing import Literal

import numpy as np

from resflow_bench.intervals import Interval
from resflow_bench.lab.cells import Cell


@dataclass(frozen=True)
class Observation:
    """One metric of one cell: a value with its unit and, where it is random, its 99 % interval.

    value: infinity is a value, since a variance may be infinite; NaN is none.
    picture: small arrays that a figure of the cell needs, as `pack` returns them; at most one a
        cell, in a suite with `has_pictures`.
    replicates: independent values of the metric, each from an equal share of the draws, in the
        order of the draws. A comparison with another run of the same seed pairs them.

    Raises:
        ValueError: if the value is NaN; a measure that finds none raises `Failure` or leaves the
            metric out, so that nothing diverges in silence.
    """

    metric: str
    value: float
    unit: str
    standard_error: float = nan
    ci_low: float = nan
    ci_high: float = nan
    n: int = 1
    message: str = ""
    picture: bytes | None = None
    replicates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if isnan(self.value):
            raise ValueError(f"metric `{self.metric}` is NaN; leave it out or raise Failure.")


@dataclass(frozen=True)
class Result:
    """The outcome of a cell: its observations, or the message that says why there are none."""

    cell: Cell
    status: Literal["ok", "failed", "skipped"]
    observations: tuple[Observation, ...] = ()
    message: str = ""


N_REPLICATES = 16  # shares of a cell's draws: enough for Student's t, few enough to store


def observe(
    metric: str,
    interval: Interval,
    unit: str,
    n: int,
    message: str = "",
    picture: bytes | None = None,
    replicates: tuple[float, ...] = (),
) -> Observation:
    """The observation of a sampled quantity, with its interval."""
    value, standard_error, low, high, _ = interval
    return Observation(
        metric, value, unit, standard_error, low, high, n, message, picture, replicates
    )


def replicates(draws: np.ndarray, of: Callable[[np.ndarray], float]) -> tuple[float, ...]:
    """`of` applied to each of `N_REPLICATES` equal shares of the draws, (n, P), in their order."""
    shares = np.array_split(draws, min(N_REPLICATES, len(draws) // 2))
    return tuple(float(of(share)) for share in shares)


def exactly(metric: str, value: float, unit: str) -> Observation:
    """The observation of a computed quantity, without sampling error."""
    value = float(value)
    return Observation(metric, value, unit, 0.0, value, value)


def pack(**arrays: np.ndarray | float) -> bytes:
    """The arrays as the bytes of an .npz file without pickles; equal arrays give equal bytes."""
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **{k: np.asarray(v) for k, v in arrays.items()})
    return stream.getvalue()


def unpack(picture: bytes) -> dict[str, np.ndarray]:
    """The arrays that `pack` was given.

    >>> unpack(pack(reach=2.0))["reach"].item()
    2.0
    """
    with np.load(io.BytesIO(picture), allow_pickle=False) as arrays:
        return dict(arrays)
