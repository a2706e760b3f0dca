"""Several runs as one: each metric of each cell from the rows of all of them.

With v_i a value of n_i draws, s_i its standard error and [l_i, u_i] its interval, of run i, and
w_i = n_i / sum n, a metric that is a mean over draws has

    v = sum w_i v_i,    s^2 = sum w_i^2 s_i^2,
    [v - sqrt(sum w_i^2 (v_i - l_i)^2),  v + sqrt(sum w_i^2 (u_i - v_i)^2)].

Runs of the same preset and seed repeat each other's draws, so of such the first counts alone, and
only runs of other seeds make an interval narrower.

Source: Zou and Donner (2008), "Construction of confidence limits about effect measures: a general
approach", Statistics in Medicine 27, 1693-1702, for the limits. They keep the asymmetry of an
interval, and of Chebyshev's intervals they are Chebyshev's again.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from resflow_bench.analysis.margins import Margins
from resflow_bench.analysis.rules import ROUNDING
from resflow_bench.intervals import median_interval
from resflow_bench.lab.store import REPLICATES

STATUSES = ["ok", "skipped", "failed"]  # of a cell, from best to worst

AVERAGES = 1.0
"""Standard errors of a mean of replicates by which it may be off the value of all draws: a mean of
unequal shares is, and a mean of the shares' variances."""


class PooledRuns(NamedTuple):
    """The rows of several runs as those of one.

    frames: suite to rows. The replicates of a time are its values in the runs.
    left_out: suite, cell and metric of what cannot be pooled: it differs between seeds, and is no
        mean over draws (a median or a maximum, or an exact number at other points).
    """

    frames: dict[str, pd.DataFrame]
    left_out: pd.DataFrame


def pool(
    runs: Sequence[tuple[Hashable, Mapping[str, pd.DataFrame]]], margins: Margins
) -> PooledRuns:
    """The rows of all runs as those of one.

    A cell that failed or was skipped in one of the runs counts as such. A cell that only some of
    the runs have is taken from those. A time has one sample in each run, which is one process: its
    value is their median, its interval by ranks. A number that all seeds repeat stays as it is.

    Args:
        runs: of each what its draws follow from, such as preset and seed, and its rows.
        margins: say which metrics are times.
    """
    if len(runs) == 1:
        return PooledRuns(dict(runs[0][1]), _nothing())
    suites: dict[str, list[pd.DataFrame]] = {}
    draws = sorted({key for key, _ in runs}, key=repr)  # two sides of the same seeds pair
    for key, frames in sorted(runs, key=lambda run: draws.index(run[0])):
        for name, frame in frames.items():
            suites.setdefault(name, []).append(frame.assign(_draws=draws.index(key)))
    frames, left_out = {}, [_nothing()]
    for name, several in suites.items():
        frames[name], lost = _pooled(name, several, margins)
        left_out.append(lost)
    return PooledRuns(frames, pd.concat(left_out, ignore_index=True))


def _nothing() -> pd.DataFrame:
    return pd.DataFrame(columns=["suite", "cell", "metric"], dtype=str)


def _pooled(
    suite: str, frames: list[pd.DataFrame], margins: Margins
) -> tuple[pd.DataFrame, pd.DataFrame]:
    table = pd.concat(frames, ignore_index=True)
    rank = table["status"].map(STATUSES.index)
    table = table[rank == rank.groupby(table["cell"]).transform("max")]
    names = table["metric"].drop_duplicates()
    is_time = table["metric"].isin([name for name in names if margins.is_time(suite, name)])
    repeats = table.duplicated(["cell", "metric", "_draws"])  # of one seed
    keep = is_time | ~repeats
    table, is_time = table[keep], is_time[keep]
    groups = table.groupby(["cell", "metric"], sort=False, dropna=False)
    numbers = ["value", "standard_error", "ci_low", "ci_high"]
    differs = (groups[numbers].transform("nunique", dropna=False) > 1).any(axis=1)
    several = is_time & (groups["value"].transform("size") > 1)
    open_ = table[(differs & ~_repeated(table, groups)) | several]
    first = table[~table.duplicated(["cell", "metric"])].drop(columns="_draws")
    made: dict[Any, dict[str, Any]] = {}
    lost: list[Any] = []
    for (_, metric), rows in _grouped(open_):
        combined = _processes(rows) if margins.is_time(suite, metric) else _mean(rows)
        if combined is None:
            lost.append(rows.index[0])
        else:
            made[rows.index[0]] = combined
    for column in (*numbers, "n", "message", *({REPLICATES} & set(first))):
        values = [new[column] for new in made.values()]
        first[column] = _with(first[column], [*made], values)
    left_out = first.loc[lost, ["suite", "cell", "metric"]]
    return first.drop(index=lost).reset_index(drop=True), left_out


def _repeated(table: pd.DataFrame, groups: Any) -> pd.Series:
    """The rows of numbers without sampling error that agree up to the rounding of a machine."""
    is_exact = ~(table["ci_high"] > table["ci_low"]) & ~(table["standard_error"] > 0)
    value = groups["value"]
    spread = value.transform("max") - value.transform("min")
    near = is_exact & (spread <= ROUNDING * table["value"].abs())
    return near.groupby([table["cell"], table["metric"]], dropna=False).transform("all")


def _grouped(table: pd.DataFrame) -> Any:
    return table.groupby(["cell", "metric"], sort=False) if len(table) else ()


def _with(column: pd.Series, index: list[Any], values: list[Any]) -> pd.Series:
    """The column with some of its entries replaced; entries may be arrays."""
    entries = column.to_numpy(object).copy()
    for place, value in zip(column.index.get_indexer(index), values, strict=True):
        entries[place] = value
    return pd.Series(entries, column.index).astype(column.dtype)


def _processes(rows: pd.DataFrame) -> dict[str, Any]:
    """A time in several runs: the median, and its interval by ranks."""
    values = rows["value"].to_numpy(float)
    median = median_interval(values)
    return {
        **{"value": median.value, "standard_error": math.nan},
        **{"ci_low": median.low, "ci_high": median.high},
        **{"n": len(rows), "message": f"median of {len(rows)} processes", REPLICATES: values},
    }


def _mean(rows: pd.DataFrame) -> dict[str, Any] | None:
    """A mean over draws of several seeds; None if it is none."""
    error = rows["standard_error"].to_numpy(float)
    replicates = [np.asarray(one, float) for one in rows.get(REPLICATES, [()] * len(rows))
                  if one is not None]  # fmt: skip
    is_replicated = len(replicates) == len(rows) and all(len(one) > 1 for one in replicates)
    value = rows["value"].to_numpy(float)
    if not np.isfinite(value).all():
        return None
    is_sampled = bool(np.isfinite(error).all() and (error > 0).any())
    if not is_sampled and not (is_replicated and all(map(_averages, replicates, value))):
        return None
    n = rows["n"].to_numpy(float)
    w = n / n.sum() if (n > 0).all() else np.full(len(n), 1 / len(n))
    mean = float(w @ value)
    low, high = rows["ci_low"].to_numpy(float), rows["ci_high"].to_numpy(float)
    if np.isinf(low).any() or np.isinf(high).any():  # one-sided: the mean of limits is a limit
        ends = float(w @ low), float(w @ high)
    else:
        below, above = (float(np.linalg.norm(w * reach)) for reach in (value - low, high - value))
        ends = mean - below, mean + above
    return {
        **{"value": mean, "standard_error": float(np.linalg.norm(w * error))},
        **{"ci_low": ends[0], "ci_high": ends[1], "n": int(n.sum())},
        "message": f"mean of {len(rows)} seeds",
        REPLICATES: np.concatenate(replicates) if is_replicated else np.empty(0),
    }


def _averages(replicates: np.ndarray, value: float) -> bool:
    """True if the replicates, which vary, have this mean."""
    error = float(replicates.std(ddof=1)) / math.sqrt(len(replicates))
    return error > 0 and abs(float(replicates.mean()) - value) <= AVERAGES * error
