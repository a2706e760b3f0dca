"""Observations: the metrics of one cell, each with its unit, interval, replicates and picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isnan, nan
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    pass
import io

import numpy as np

from resflow_bench.intervals import Interval
from resflow_bench.lab.cells import Cell


@dataclass(frozen=True)
class Observation:
    """One metric of one cell: a value with its unit and, where it is random, its 99 % interval.

    Infinite is a value (a variance may be), NaN is the lack of one. `picture` is what a figure of
    the cell needs besides numbers: a few small arrays as the bytes of an .npz file, one picture a
    cell, of a suite that says it `has_pictures`. `replicates` are independent values of the same
    kind, each from a share of the draws in the order in which they were drawn: what a comparison
    with another run of the same seed pairs.

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
    """What became of a cell: its observations, or why there are none."""

    cell: Cell
    status: Literal["ok", "failed", "skipped"]
    observations: tuple[Observation, ...] = ()
    message: str = ""


N_REPLICATES = 16
"""Shares of a cell's draws that are kept: enough for Student's t, few enough to store."""


def observe(
    metric: str,
    interval: Interval,
    unit: str,
    n: int,
    message: str = "",
    picture: bytes | None = None,
    replicates: tuple[float, ...] = (),
) -> Observation:
    """Something sampled, with its interval."""
    value, standard_error, low, high, _ = interval
    return Observation(
        metric, value, unit, standard_error, low, high, n, message, picture, replicates
    )


def replicates(draws: np.ndarray, of: Callable[[np.ndarray], float]) -> tuple[float, ...]:
    """`of` each of `N_REPLICATES` equal shares of the draws, (n, P), in their order."""
    shares = np.array_split(draws, min(N_REPLICATES, len(draws) // 2))
    return tuple(float(of(share)) for share in shares)


def exactly(metric: str, value: float, unit: str) -> Observation:
    """Something computed, not sampled."""
    value = float(value)
    return Observation(metric, value, unit, 0.0, value, value)


def pack(**arrays: np.ndarray | float) -> bytes:
    """The arrays by name; equal arrays give equal bytes."""
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **{k: np.asarray(v) for k, v in arrays.items()})
    return stream.getvalue()


def unpack(picture: bytes) -> dict[str, np.ndarray]:
    """What `pack` was given.

    >>> unpack(pack(reach=2.0))["reach"].item()
    2.0
    """
    with np.load(io.BytesIO(picture), allow_pickle=False) as arrays:
        return dict(arrays)
