"""The differences between two runs: frames in, a frame out."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import norm, t

from resflow_bench.analysis.tables import axes
from resflow_bench.intervals import LEVEL
from resflow_bench.lab.store import REPLICATES

KEYS = ["suite", "cell", "metric"]
_Z = float(norm.isf((1 - LEVEL) / 2))


def changes(
    base: Mapping[str, pd.DataFrame], new: Mapping[str, pd.DataFrame], is_paired: bool = False
) -> pd.DataFrame:
    """new - base for every metric of every cell that both runs measured, the surest change first.

    With s the standard error of a value, the difference has s = sqrt(s_base^2 + s_new^2), z is
    their quotient, and the interval is difference +- 2.576 s. A value with an interval but without
    a standard error is taken as normal with that width. A value with neither is exact, and any
    change of it has an infinite z.

    Args:
        is_paired: whether the runs drew the same random numbers. Where both have replicates, s is
            then that of the mean of their differences, and Student's quantile takes the place of
            2.576.

    Returns:
        One row per suite, cell and metric: unit, base, new, difference, low, high, z, and the axes.
    """
    before, after = _values(base), _values(new)
    after = after[[*KEYS, "value", "s", *({REPLICATES} & set(after))]]
    both = before.merge(after, on=KEYS, suffixes=("_base", "_new"))
    # Equal infinities have not changed, and inf - inf does not say so.
    same = both["value_base"] == both["value_new"]
    difference = (both["value_new"] - both["value_base"]).mask(same, 0.0)
    s = np.hypot(both["s_base"], both["s_new"])
    reach = _Z * s
    if is_paired and {f"{REPLICATES}_base", f"{REPLICATES}_new"} <= set(both):
        sides = (both[f"{REPLICATES}_base"], both[f"{REPLICATES}_new"])
        pairs = [_of_pairs(*pair) for pair in zip(*sides, strict=True)]
        s = pd.Series([pair[0] for pair in pairs], both.index).fillna(s)
        reach = s * pd.Series([pair[1] for pair in pairs], both.index).fillna(_Z)
    table = both[KEYS].assign(
        unit=both["unit"],
        base=both["value_base"],
        new=both["value_new"],
        difference=difference,
        low=difference - reach,
        high=difference + reach,
        z=(difference / s).mask(same, 0.0),
    )
    table = table.join(both[axes(before.drop(columns="s"))])
    order = pd.DataFrame({"z": table["z"].abs(), "size": (difference / table["base"]).abs()})
    return table.loc[order.sort_values(["z", "size"], ascending=False, kind="stable").index]


def _of_pairs(base: np.ndarray | None, new: np.ndarray | None) -> tuple[float, float]:
    """The standard error of the mean difference, and Student's quantile; NaN without pairs."""
    if base is None or new is None or len(base) != len(new) or len(new) < 2:
        return math.nan, math.nan
    error = float(np.std(np.subtract(new, base), ddof=1)) / math.sqrt(len(new))
    return error, float(t.isf((1 - LEVEL) / 2, len(new) - 1))


def _values(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    rows = pd.concat(frames.values(), ignore_index=True)
    rows = rows[rows["status"] == "ok"]
    width = (rows["ci_high"] - rows["ci_low"]).fillna(0.0)
    s = rows["standard_error"].fillna(width / (2 * _Z))
    return rows.assign(s=s).drop(columns=["standard_error", "ci_low", "ci_high"])
