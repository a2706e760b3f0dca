"""Has anything become worse? Samples of two sides in, a verdict for each metric of each cell out.

1. With b_i and n_i the samples of BASE and NEW, and the metric's margin declared in `metrics`, the
   hypothesis "no worse than the margin allows" is tested one-sidedly: E n - E b (1 +- rtol) -+ atol
   <= 0, by Student on the differences where both sides drew the same random numbers, else by Welch.
   Times go by ranks instead, by Mann and Whitney: what disturbs a process doubles its time now and
   then, and would carry a mean along. Where either way is worse, twice the smaller p.
2. Over all that was tested false discoveries are controlled at `FALSE_DISCOVERIES`.
3. What is left is fine where the interval lies within the margin, and undecided where it does not.

Source: Benjamini and Hochberg (1995); Welch (1947); Mann and Whitney (1947).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import special, stats

from resflow_bench.gate.metrics import METRICS, Metric

KEYS = ["suite", "cell", "metric"]

FALSE_DISCOVERIES = 0.05
"""The share of false ones among the regressions that are found, at most, in the mean."""

CONFIDENCE = 0.95
"""One-sided, that what is called fine is within its margin."""

POWER = 0.8
"""With which the smallest detectable change is found."""

MOST_FREEDOM = 1e6
"""Degrees of freedom from which Student's law is the normal one."""

MIN_ROUNDS = 4
"""Processes a side below which nothing is said of a time."""

FINE, WORSE, OPEN = "fine", "regression", "undecided"
UNJUDGED, NO_BASE = "not judged", "no base"


@dataclass(frozen=True)
class Samples:
    """What one side knows of a metric of a cell.

    values: independent of each other, (n,); one where nothing is random.
    standard_error: of their mean where they are summed up already; NaN if the values say it.
    """

    values: np.ndarray
    standard_error: float = math.nan

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        if not math.isnan(self.standard_error):
            return self.standard_error
        n = len(self.values)
        if not math.isfinite(self.mean):
            return math.nan
        return float(self.values.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0

    def typical(self, by_rank: bool) -> float:
        """The mean, or the median."""
        return float(np.median(self.values)) if by_rank else self.mean

    def same_as(self, other: Samples) -> bool:
        """To the last bit, which no clock repeats and common random numbers do."""
        return np.array_equal(self.values, other.values) and self.error == other.error

    @property
    def freedom(self) -> float:
        """Degrees of freedom behind `error`."""
        return len(self.values) - 1 if math.isnan(self.standard_error) else math.inf


def judge(base: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """A row for each metric of each cell of either side.

    Args:
        base, new: suite, cell, metric (empty where a cell has none), status, message, unit, samples
            (`Samples`), paired (whether samples with the same index drew the same numbers), version
            (of the benchmark: others are not compared).

    Returns:
        suite, cell, metric, unit, verdict, reason; base and new (means), change (new - base),
        margin, p (adjusted), detectable: the smallest change for the worse that would be found
        with probability `POWER`; where nothing is random, NaN: any beyond the margin is.
    """
    lines = pd.DataFrame(list(_lines(base, new)), columns=_COLUMNS)
    lines = lines.astype(dict.fromkeys(_NUMBERS, float))  # also where there is none at all
    tested = lines["p"].notna()
    if not tested.any():
        return lines.drop(columns=_WORKINGS)
    lines.loc[tested, "p"] = stats.false_discovery_control(lines.loc[tested, "p"])
    # The level at which even a lone regression is found.
    each = FALSE_DISCOVERIES / tested.sum() / lines["ways"]
    freedom = lines["freedom"].clip(upper=MOST_FREEDOM)
    shift = special.nctdtrinc(freedom, 1 - POWER, stats.t.isf(each, freedom))
    lines["detectable"] = (lines["margin"] + shift * lines["error"]).where(lines["error"] > 0)
    lines.loc[lines["least_p"] > each, "detectable"] = math.inf  # so few samples find nothing
    within = lines["p_beyond"] <= 1 - CONFIDENCE
    worse = tested & (lines["p"] <= FALSE_DISCOVERIES)
    lines["verdict"] = np.select(
        [worse, tested & within, tested], [WORSE, FINE, OPEN], default=lines["verdict"]
    )
    return lines.drop(columns=_WORKINGS)


def only_twice(table: pd.DataFrame, again: pd.DataFrame) -> pd.DataFrame:
    """The table, where what was a regression is what the second measurement says that it is.

    What the second could not judge stays a regression.
    """
    second = again[again["verdict"].isin([FINE, OPEN])].set_index(KEYS)["verdict"]
    found = second.reindex(pd.MultiIndex.from_frame(table[KEYS])).to_numpy()
    acquitted = (table["verdict"] == WORSE) & pd.notna(found)
    reason = "worse once, and not when measured again"
    return table.assign(
        verdict=table["verdict"].mask(acquitted, pd.Series(found, table.index)),
        reason=table["reason"].mask(acquitted, reason),
    )


_WORKINGS = ["p_beyond", "error", "freedom", "ways", "least_p"]
_NUMBERS = ["base", "new", "change", "margin", "p", "detectable", *_WORKINGS]
_COLUMNS = [*KEYS, "unit", "verdict", "reason", *_NUMBERS]


def _lines(base: pd.DataFrame, new: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Untested rows are final; tested ones have p and what `_WORKINGS` names."""
    before = dict(iter(base.groupby(KEYS[:2], sort=False)))
    after = dict(iter(new.groupby(KEYS[:2], sort=False)))
    for key in dict.fromkeys([*before, *after]):
        one, other = before.get(key), after.get(key)
        trouble = _trouble(one, other)
        if trouble:
            verdict, reason = trouble
            yield dict(zip(KEYS, (*key, ""), strict=True), verdict=verdict, reason=reason)
            continue
        assert one is not None
        assert other is not None
        olds, news = (rows.set_index("metric") for rows in (one, other))
        for metric in dict.fromkeys([*olds.index, *news.index]):
            row = dict(zip(KEYS, (*key, metric), strict=True))
            if metric not in news.index:
                yield row | {"verdict": "missing", "reason": "measured in BASE and not in NEW"}
            elif metric in olds.index:
                yield row | _line(METRICS.get(metric), olds.loc[metric], news.loc[metric])
            elif math.isnan(news.loc[metric]["samples"].mean):
                yield row | {"verdict": "failed", "reason": "not a number"}
            else:
                yield row | {"verdict": UNJUDGED, "reason": "BASE does not have it"}


def _trouble(base: pd.DataFrame | None, new: pd.DataFrame | None) -> tuple[str, str] | None:
    """Why a whole cell cannot be compared, and whose fault that is."""
    status = [None if side is None else str(side["status"].iloc[0]) for side in (base, new)]
    said = ["" if side is None else str(side["message"].iloc[0]) for side in (base, new)]
    versions = ["" if side is None else str(side["version"].iloc[0]) for side in (base, new)]
    match status:
        case [_, "failed"]:
            return "failed", said[1]
        case ["skipped" | "failed" | None, "skipped"]:
            return "skipped", said[1]
        case ["ok", "skipped" | None]:
            return "missing", "measured in BASE and not in NEW" + (said[1] and f": {said[1]}")
        case ["ok", "ok"] if versions[0] == versions[1]:
            return None
        case ["ok", "ok"]:
            return UNJUDGED, "the benchmark itself has another version"
        case [None, _]:
            return UNJUDGED, "BASE does not have it"
        case [_, None]:
            return UNJUDGED, f"it {status[0]} in BASE, and NEW does not have it"
    return NO_BASE, f"it {status[0]} in BASE: {said[0]}"


def _line(metric: Metric | None, base: pd.Series, new: pd.Series) -> dict[str, Any]:
    old, now = base["samples"], new["samples"]
    before, after = (side.typical(metric is not None and metric.is_time) for side in (old, now))
    line: dict[str, Any] = {
        "unit": new["unit"], "base": before, "new": after, "change": after - before,
    }  # fmt: skip
    if metric is None:
        return line | {"verdict": UNJUDGED, "reason": f"no margin is declared for {new.name}"}
    line["margin"] = metric.atol + metric.rtol * abs(before)
    if now.mean == old.mean and math.isinf(now.mean):
        return line | {"verdict": FINE, "reason": "infinite in both", "change": 0.0}
    if not math.isfinite(now.mean) or math.isnan(now.error):
        return line | {"verdict": "failed", "reason": f"{now.mean} is not finite"}
    if math.isnan(old.mean) or (math.isnan(old.error) and not math.isinf(old.mean)):
        return line | {"verdict": NO_BASE, "reason": "not a number in BASE"}
    if math.isinf(old.mean):
        is_worse = metric.worse in ("other", "more" if old.mean < 0 else "less")
        return line | _certain(is_worse) | {"margin": 0.0, "reason": "infinite in BASE alone"}
    if math.isinf(now.error) or math.isinf(old.error):
        return line | {"verdict": UNJUDGED, "reason": "the standard error is infinite"}
    if metric.is_time:
        n = min(len(old.values), len(now.values))
        if n < MIN_ROUNDS:
            reason = f"{n} process{'es' * (n != 1)} a side; a time needs {MIN_ROUNDS}"
            return line | {"verdict": UNJUDGED, "reason": reason}
        reason = f"{len(old.values)}+{len(now.values)} by rank"
        return line | _by_rank(metric, old.values, now.values) | {"reason": reason}
    if old.same_as(now):
        return line | _certain(False) | {"reason": "the same numbers"}
    is_paired = bool(base["paired"] and new["paired"]) and len(old.values) == len(now.values) > 1
    ways = {"more": (1,), "less": (-1,), "other": (1, -1)}[metric.worse]
    found = [_excess(metric, way, old, now, is_paired) for way in ways]
    p = min(1.0, len(ways) * min(_p_value(*one) for one in found))
    excess, error, freedom = max(found)
    reason = f"{len(now.values)} pairs" if is_paired else f"{len(old.values)}+{len(now.values)}"
    if error == 0:
        said = "exact" if len(now.values) == 1 else reason
        return line | _certain(excess > 0) | {"reason": said}
    p_beyond = float(stats.t.cdf(excess / error, freedom))
    workings = {"p_beyond": p_beyond, "error": error, "freedom": freedom, "ways": len(ways)}
    return line | workings | {"p": p, "least_p": 0.0, "reason": reason}


def _certain(is_worse: bool) -> dict[str, float]:
    """The workings where nothing is random."""
    p = {"p": 0.0, "p_beyond": 1.0} if is_worse else {"p": 1.0, "p_beyond": 0.0}
    return p | {"error": 0.0, "freedom": math.inf, "ways": 1, "least_p": 0.0}


def _by_rank(metric: Metric, old: np.ndarray, new: np.ndarray) -> dict[str, float]:
    """Mann and Whitney's test of NEW against BASE moved to the margin.

    What is detectable is as if the noise were normal, of the spread of its middle: the test's
    efficiency is then 3 / pi of Welch's.
    """
    assert metric.worse != "other"
    way = 1 if metric.worse == "more" else -1
    moved = old * (1 + way * metric.rtol) + way * metric.atol
    p, p_beyond = (
        float(stats.mannwhitneyu(way * new, way * moved, alternative=side).pvalue)
        for side in ("greater", "less")
    )
    n, m = len(new), len(old)
    middle = [stats.median_abs_deviation(side, scale="normal") for side in (new, moved)]
    spread = math.sqrt(float(np.square(middle).mean()))
    error = spread * math.sqrt(math.pi / 3 * (1 / n + 1 / m))
    freedom = {"freedom": n + m - 2, "ways": 1, "least_p": 1 / math.comb(n + m, n)}
    return {"p": p, "p_beyond": p_beyond, "error": error} | freedom


def _excess(
    metric: Metric, way: int, old: Samples, new: Samples, is_paired: bool
) -> tuple[float, float, float]:
    """(how far NEW is beyond the margin, its standard error, degrees of freedom)."""
    factor = 1 + way * metric.rtol * np.sign(old.mean)
    if is_paired:
        beyond = way * (new.values - factor * old.values) - metric.atol
        error = float(beyond.std(ddof=1)) / math.sqrt(len(beyond))
        return float(beyond.mean()), error, len(beyond) - 1
    beyond = way * (new.mean - factor * old.mean) - metric.atol
    a, b = new.error**2, (factor * old.error) ** 2
    less = a**2 / new.freedom if a else 0.0
    less += b**2 / old.freedom if b else 0.0
    freedom = (a + b) ** 2 / less if less else math.inf
    return float(beyond), math.sqrt(a + b), freedom


def _p_value(excess: float, error: float, freedom: float) -> float:
    if error == 0:
        return 0.0 if excess > 0 else 1.0
    return float(stats.t.sf(excess / error, freedom))
