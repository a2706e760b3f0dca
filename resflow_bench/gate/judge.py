"""Verdicts on every metric of every cell in two tables of samples, BASE and NEW.

1. Each metric with a margin is tested against it, see `evidence`.
2. Over all tests false discoveries are controlled at `FALSE_DISCOVERIES`: what is rejected is a
   regression.
3. Anything else is fine where its interval lies within the margin, and undecided where it does not.

Source: Benjamini and Hochberg (1995).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd
from scipy import special, stats

from resflow_bench.analysis.margins import Margins
from resflow_bench.gate.evidence import Evidence, certain, of_means, of_ranks
from resflow_bench.gate.samples import KEYS, Samples
from resflow_bench.lab import Metric

FALSE_DISCOVERIES = 0.05  # largest expected share of false ones among the regressions reported
CONFIDENCE = 0.95  # one-sided, that a metric called fine is within its margin
POWER = 0.8  # probability of detecting the smallest detectable change
MOST_FREEDOM = 1e6  # degrees of freedom from which Student's law is the normal one
MIN_ROUNDS = 4  # processes on each side below which a time is not judged

# An interval of another level, or with another allowance for rounding, is a regression. Where that
# allowance is most of it in BASE, it differs between machines and is not compared.
MOST_REACH, SAME_REACH = 3.2, 0.15

FINE, WORSE, OPEN = "fine", "regression", "undecided"
UNJUDGED, NO_BASE = "not judged", "no base"
NOT_IN_NEW, NOT_IN_BASE = "measured in BASE and not in NEW", "BASE does not have it"

IN_BASE, IN_NEW, BROKEN, SKIPPED = "only in BASE", "only in NEW", "failed", "skipped"
NO_MARGIN, FEW_PROCESSES, NO_ERROR = "no margin", "few processes", "infinite error"
OTHER_VERSION = "other version"
CODES = (IN_BASE, IN_NEW, BROKEN, SKIPPED, NO_MARGIN, FEW_PROCESSES, NO_ERROR, OTHER_VERSION)

NO_REASON = "no reason is on record; asv stores what was skipped and what is not a number alike"


def judge(base: pd.DataFrame, new: pd.DataFrame, margins: Margins) -> pd.DataFrame:
    """A row for each metric of each cell of either table.

    Args:
        base, new: tables of `samples`.
        margins: of the metrics; one without a margin is not judged.

    Returns:
        suite, cell, metric, unit, verdict, reason; base and new (means, or medians of times),
        change (new - base), margin, p (adjusted), detectable: the smallest change for the worse
        that is detected with probability `POWER`; NaN where nothing is random, and any change
        beyond the margin is detected.
    """
    lines = weigh(base, new, margins)
    tested = lines["p"].notna()
    if not tested.any():
        return lines.drop(columns=_WORKINGS)
    lines.loc[tested, "p"] = stats.false_discovery_control(lines.loc[tested, "p"])
    # The level at which even a single regression is detected.
    each = FALSE_DISCOVERIES / tested.sum() / lines["n_directions"]
    freedom = lines["freedom"].clip(upper=MOST_FREEDOM)
    shift = special.nctdtrinc(freedom, 1 - POWER, stats.t.isf(each, freedom))
    lines["detectable"] = (lines["margin"] + shift * lines["error"]).where(lines["error"] > 0)
    lines.loc[lines["least_p"] > each, "detectable"] = math.inf  # so few samples find nothing
    within = lines["p_beyond"] <= 1 - CONFIDENCE
    worse = tested & (lines["p"] <= FALSE_DISCOVERIES)
    cases = [worse, tested & within, tested]
    lines["verdict"] = np.select(cases, [WORSE, FINE, OPEN], default=lines["verdict"])
    return lines.drop(columns=_WORKINGS)


def weigh(base: pd.DataFrame, new: pd.DataFrame, margins: Margins) -> pd.DataFrame:
    """The lines of `judge` before false discoveries are controlled, with the fields of `Evidence`.

    `code` says why a metric was not tested, in one or two words: one of `CODES`, or empty.
    """
    lines = pd.DataFrame([*_lines(base, new, margins)], columns=_COLUMNS)
    return lines.astype(dict.fromkeys(_NUMBERS, float))  # also where there is none at all


def confirmed(table: pd.DataFrame, again: pd.DataFrame) -> pd.DataFrame:
    """The table, with the verdicts of a second measurement in place of the regressions.

    A regression that the second measurement could not judge stays one.
    """
    second = again[again["verdict"].isin([FINE, OPEN])].set_index(KEYS)["verdict"]
    verdicts = second.reindex(pd.MultiIndex.from_frame(table[KEYS])).to_numpy()
    acquitted = (table["verdict"] == WORSE) & pd.notna(verdicts)
    reason = "worse once, and not when measured again"
    return table.assign(
        verdict=table["verdict"].mask(acquitted, pd.Series(verdicts, table.index)),
        reason=table["reason"].mask(acquitted, reason),
    )


_FIELDS = [field.name for field in fields(Evidence) if field.name not in ("reason", "p")]
_WORKINGS = ["code", *_FIELDS]
_NUMBERS = ["base", "new", "change", "margin", "p", "detectable", *_FIELDS]
_COLUMNS = [*KEYS, "unit", "verdict", "reason", "code", *_NUMBERS]


def _ended(verdict: str, reason: str, code: str = "") -> dict[str, Any]:
    return {"verdict": verdict, "reason": reason, "code": code}


def _lines(base: pd.DataFrame, new: pd.DataFrame, margins: Margins) -> Iterator[dict[str, Any]]:
    """A line for each metric with some of `_COLUMNS`: its verdict, or the evidence for one."""
    before, after = _by_cell(base), _by_cell(new)
    for suite, cell in dict.fromkeys([*before, *after]):
        known = {"suite": suite, "cell": cell, "unit": None, "verdict": "", "code": ""}
        olds, news = before.get((suite, cell), {}), after.get((suite, cell), {})
        if trouble := _trouble(next(iter(olds.values()), None), next(iter(news.values()), None)):
            yield known | {"metric": ""} | trouble
            continue
        for metric in dict.fromkeys([*olds, *news]):
            if metric not in news:
                line = _ended("missing", NOT_IN_NEW, IN_BASE)
            elif metric in olds:
                line = _compared(margins.of(suite, metric), olds[metric], news[metric])
            elif math.isnan(news[metric].samples.mean):
                line = _ended("failed", "not a number", BROKEN)
            else:
                line = _ended(UNJUDGED, NOT_IN_BASE, IN_NEW)
            yield known | {"metric": metric} | line


def _by_cell(table: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """(suite, cell) -> metric -> its row."""
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for row in table.itertuples(index=False):
        cells.setdefault((row.suite, row.cell), {})[row.metric] = row
    return cells


def _trouble(base: Any, new: Any) -> dict[str, Any] | None:
    """The end of the line of a cell that cannot be compared, by the first row of each side."""
    status = [None if row is None else str(row.status) for row in (base, new)]
    reasons = ["" if row is None else str(row.message) for row in (base, new)]
    versions = ["" if row is None else str(row.version) for row in (base, new)]
    match status:
        case [_, "failed"]:
            return _ended("failed", reasons[1], BROKEN)
        case ["skipped", "skipped"] if reasons[1] and reasons[0] in ("", reasons[1]):
            return _ended(UNJUDGED, f"skipped on both sides: {reasons[1]}", SKIPPED)
        case [_, "skipped"] if status[0] != "ok":
            return _ended("skipped", reasons[1] or NO_REASON, SKIPPED)
        case ["ok", "skipped" | None]:
            why = reasons[1] or (status[1] and NO_REASON)
            code = SKIPPED if status[1] else IN_BASE
            return _ended("missing", NOT_IN_NEW + (f": {why}" if why else ""), code)
        case ["ok", "ok"] if versions[0] == versions[1]:
            return None
        case ["ok", "ok"]:
            return _ended(UNJUDGED, "the benchmark itself has another version", OTHER_VERSION)
        case [None, _]:
            return _ended(UNJUDGED, NOT_IN_BASE, IN_NEW)
        case [_, None]:
            reason = f"it {_became(status[0])} in BASE, and NEW does not have it"
            return _ended(UNJUDGED, reason, IN_BASE)
    return _ended(NO_BASE, f"it {_became(status[0])} in BASE: {reasons[0]}", BROKEN)


def _became(status: str | None) -> str:
    return "was skipped" if status == "skipped" else str(status)


def _compared(metric: Metric | None, base: Any, new: Any) -> dict[str, Any]:
    """The line of a metric that both tables have; `base` and `new` are its rows."""
    old, now = base.samples, new.samples
    is_time = metric is not None and metric.is_time
    before, after = (float(np.median(s.values)) if is_time else s.mean for s in (old, now))
    line = {"unit": new.unit, "base": before, "new": after, "change": after - before}
    if metric is None:
        return line | _ended(UNJUDGED, f"no margin is declared for {new.metric}", NO_MARGIN)
    line["margin"] = metric.atol + metric.rtol * abs(before)
    if ended := _not_finite(metric, old, now):
        return line | ended
    if is_time:
        n = min(len(old.values), len(now.values))
        if n < MIN_ROUNDS:
            needs = f"a time needs {MIN_ROUNDS} on each side"
            reason = f"{n} process{'es' * (n != 1)}; {needs}"
            return line | _ended(UNJUDGED, reason, FEW_PROCESSES)
        return line | vars(of_ranks(metric, old.values, now.values))
    if old.reach <= MOST_REACH and not abs(now.reach / old.reach - 1) <= SAME_REACH:
        reason = f"its interval reaches {now.reach:.3g} standard errors, {old.reach:.3g} in BASE"
        return line | vars(certain(True, reason))
    if old.same_as(now):
        return line | vars(certain(False, "the same numbers"))
    is_paired = bool(base.paired and new.paired) and len(old.values) == len(now.values) > 1
    return line | vars(of_means(metric, old, now, is_paired))


def _not_finite(metric: Metric, old: Samples, now: Samples) -> dict[str, Any]:
    """The end of a line where a mean or a standard error is not finite; empty where all are."""
    if now.mean == old.mean and math.isinf(now.mean):
        return _ended(FINE, "infinite in both") | {"change": 0.0}
    if not math.isfinite(now.mean) or math.isnan(now.error):
        return _ended("failed", f"{now.mean} is not finite", BROKEN)
    if math.isnan(old.mean) or (math.isnan(old.error) and not math.isinf(old.mean)):
        return _ended(NO_BASE, "not a number in BASE", BROKEN)
    if math.isinf(old.mean):
        is_worse = metric.worse in ("other", "more" if old.mean < 0 else "less")
        return {"margin": 0.0, **vars(certain(is_worse, "infinite in BASE alone"))}
    if math.isinf(now.error) or math.isinf(old.error):
        return _ended(UNJUDGED, "the standard error is infinite", NO_ERROR)
    return {}
