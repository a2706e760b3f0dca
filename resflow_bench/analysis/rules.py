"""Statements about the cells of a suite, and the rules by which a measurement is held to them.

A `Statement` is words and a rule; a rule takes the cells of a suite (`tables.wide`) to one line
each: how surprising the measurement is if the statement is true, and whether its interval alone
shows the statement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from scipy import stats

from resflow_bench.analysis.tables import number, with_interval
from resflow_bench.intervals import LEVEL

ROUNDING = 1e-6  # relative, of a bound: eight units in the last place of float32
Z = stats.norm.ppf((1 + LEVEL) / 2)
OUTCOMES = {
    0: "converged",
    1: "stopped at max_steps",
    2: "stagnated",
    3: "diverged",
    4: "uncertified",
}
NO_INTERVAL, INFINITE = "no interval", "infinite variance"
CHANCE = "outside its interval, as one in a hundred is by chance"


class Rule(Protocol):
    """Cells in; out, per cell, on the same index: `p`, `shown`, `broken`, `reason`, `detail`.

    `p` is NaN where nothing was sampled; then `broken` decides. `shown`: the interval alone shows
    the statement. `reason`: why it does not.
    """

    @property
    def metrics(self) -> tuple[str, ...]: ...

    def test(self, cells: pd.DataFrame) -> pd.DataFrame: ...


@dataclass(frozen=True)
class Statement:
    """A sentence of theory about one suite; `only`, a query, restricts it."""

    suite: str
    name: str
    says: str
    source: str
    rule: Rule
    only: str = ""

    def test(self, cells: pd.DataFrame) -> pd.DataFrame:
        """The rule's lines for the cells that it speaks of, with `cell`; maybe none."""
        if not set(self.rule.metrics) <= set(cells):
            return pd.DataFrame()
        cells = cells[cells["status"] == "ok"].dropna(subset=list(self.rule.metrics))
        if self.only:
            cells = cells.query(self.only)
        lines = self.rule.test(cells).assign(
            suite=self.suite, statement=self.name, cell=cells["cell"]
        )
        if "variance_is_finite" in cells:  # no interval of a mean or a variance means much then
            infinite = cells["variance_is_finite"].reindex(lines.index) == 0.0
            lines.loc[infinite, ["p", "shown", "reason"]] = [np.nan, False, INFINITE]
        return lines


@dataclass(frozen=True)
class Equals:
    """mean = reference, two-sided.

    Shown if the interval holds the reference and reaches no further than 10 % of it, or
    `resolution`, to either side.
    """

    metric: str
    reference: str | float
    resolution: float = 0.02  # nat (nat^2): what nobody would act upon

    @property
    def metrics(self) -> tuple[str, ...]:
        return _named(self.metric, self.reference)

    def test(self, cells: pd.DataFrame) -> pd.DataFrame:
        interval, reference = _Intervals.of(cells, self.metric), _column(cells, self.reference)
        inside = (interval.low <= reference) & (reference <= interval.high)
        reach = np.maximum(0.1 * np.abs(reference), self.resolution)
        narrow = interval.high - interval.low <= 2 * reach
        unbounded = np.isneginf(interval.low) & np.isposinf(interval.high)
        reason = np.select(
            [interval.missing, unbounded, ~inside, ~narrow],
            [NO_INTERVAL, INFINITE, CHANCE, "interval too wide"],
            default="",
        )
        p = np.where(unbounded, np.nan, interval.p_value(reference))
        return _lines(cells, p, inside & narrow, reason, interval.against("expected", reference))


@dataclass(frozen=True)
class AtMost:
    """mean <= bound, one-sided; shown if the whole 99 % interval is inside.

    With `absolute`, |mean| <= bound. An infinite bound says nothing: such a cell is left out.
    `theory` is the metric of what the mean should be, to tell a bound that is attained.
    """

    metric: str
    bound: str | float
    theory: str = ""
    absolute: bool = False

    @property
    def metrics(self) -> tuple[str, ...]:
        return _named(self.metric, self.bound, self.theory)

    def test(self, cells: pd.DataFrame) -> pd.DataFrame:
        cells = cells[np.isfinite(_column(cells, self.bound))]
        interval, bound = _Intervals.of(cells, self.metric), _column(cells, self.bound)
        against = interval.against("bound", bound)
        bound = bound + ROUNDING * np.abs(bound)
        shown = interval.high <= bound
        if self.absolute:
            shown &= interval.low >= -bound
            interval = interval.mirrored(interval.value < 0)
        attained = np.zeros(len(cells), bool)
        if self.theory:
            attained = np.abs(_column(cells, self.theory)) >= bound * (1 - 1e-3)
        reason = np.select(
            [interval.missing, shown, interval.low > bound, attained],
            [NO_INTERVAL, "", CHANCE, "the bound is attained"],
            default="interval across the bound",
        )
        p = interval.p_value(bound, one_sided=True)
        return _lines(cells, p, shown, reason, against)


@dataclass(frozen=True)
class AtLeast:
    """mean >= bound, one-sided; `AtMost` of the negatives."""

    metric: str
    bound: float

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric,)

    def test(self, cells: pd.DataFrame) -> pd.DataFrame:
        value, low, high = (self.metric + end for end in ("", "_low", "_high"))
        negated = {value: -cells[value], low: -cells[high], high: -cells[low]}
        lines = AtMost(self.metric, -self.bound).test(cells.assign(**negated))
        reference = _column(cells, self.bound)
        return lines.assign(detail=_Intervals.of(cells, self.metric).against("at least", reference))


@dataclass(frozen=True)
class Exactly:
    """value <= bound, two numbers without sampling error, to rounding."""

    metric: str
    bound: str | float

    @property
    def metrics(self) -> tuple[str, ...]:
        return _named(self.metric, self.bound)

    def test(self, cells: pd.DataFrame) -> pd.DataFrame:
        value, bound = _column(cells, self.metric), _column(cells, self.bound)
        shown = value <= bound + ROUNDING * np.abs(bound)
        digits = np.where(shown, 3, 8)  # a violation may be small
        three = zip(value, bound, digits, strict=True)
        words = [f"{number(v, n)}, bound {number(b, n)}" for v, b, n in three]
        if self.metric == "outcome":
            words = [OUTCOMES[int(v)] for v in value]
        lines = _lines(cells, np.full(len(cells), np.nan), shown, np.full(len(cells), ""), words)
        return lines.assign(broken=~shown)


@dataclass(frozen=True)
class _Intervals:
    """99 % intervals of one metric, one per cell; `normal`: their standard error is known."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    normal: np.ndarray

    @classmethod
    def of(cls, cells: pd.DataFrame, metric: str) -> _Intervals:
        value, low, high, error = (
            _column(cells, metric + suffix) for suffix in ("", "_low", "_high", "_se")
        )
        return cls(value, low, high, ~np.isnan(error) | (low == high))

    @property
    def missing(self) -> np.ndarray:
        return np.isnan(self.low) | np.isnan(self.high)

    def mirrored(self, where: np.ndarray) -> _Intervals:
        low, high = np.where(where, -self.high, self.low), np.where(where, -self.low, self.high)
        return _Intervals(np.where(where, -self.value, self.value), low, high, self.normal)

    def p_value(self, reference: np.ndarray, one_sided: bool = False) -> np.ndarray:
        """From z = 2.576 distance / half-width, the half on the reference's side.

        An interval that is not normal (Chebyshev's, or one that is open above) can only say
        "outside": p = 0.01. NaN where there is no interval.
        """
        distance = self.value - reference
        half = np.where(distance > 0, self.value - self.low, self.high - self.value)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(distance == 0.0, 0.0, Z * distance / half)
        outside = self.low > reference
        if not one_sided:
            z, outside = np.abs(z), outside | (self.high < reference)
        tail = stats.norm.sf(z) * (1 if one_sided else 2)
        p = np.where(self.normal, tail, np.where(outside, 1 - LEVEL, 1.0))
        return np.where(self.missing, np.nan, p)

    def against(self, word: str, reference: np.ndarray) -> list[str]:
        four = zip(self.value, self.low, self.high, reference, strict=True)
        return [f"{with_interval(v, a, b)}, {word} {number(r)}" for v, a, b, r in four]


def _named(*metrics: str | float) -> tuple[str, ...]:
    return tuple(m for m in metrics if isinstance(m, str) and m)


def _column(cells: pd.DataFrame, source: str | float) -> np.ndarray:
    if isinstance(source, str):
        return cells[source].to_numpy(float)
    return np.full(len(cells), source)


def _lines(
    cells: pd.DataFrame, p: np.ndarray, shown: np.ndarray, reason: np.ndarray, detail: list[str]
) -> pd.DataFrame:
    columns = {"p": p, "shown": shown, "broken": False, "reason": reason, "detail": detail}
    return pd.DataFrame(columns, index=cells.index)
