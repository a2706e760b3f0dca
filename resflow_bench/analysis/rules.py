"""Rules that compare measured cells with the statements of a suite.

A rule takes cells of `tables.wide` and returns the lines that `lab.claims.Rule` describes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from resflow_bench.analysis.words import measured, number, with_interval
from resflow_bench.intervals import LEVEL

if TYPE_CHECKING:
    import pandas as pd

    from resflow_bench.lab import Statement

ROUNDING = 1e-6  # relative, of a bound: eight units in the last place of float32
Z = stats.norm.ppf((1 + LEVEL) / 2)

NO_INTERVAL, INFINITE = "no interval", "infinite variance"
CHANCE = "outside its interval, as one in a hundred is by chance"
ATTAINED, WIDE, ACROSS = "the bound is attained", "interval too wide", "interval across the bound"
REASONS = {
    INFINITE: "the roulette has no finite variance there, so no interval can be trusted.",
    NO_INTERVAL: "there were too few draws for one.",
    CHANCE: "a near miss, too small to reject among so many comparisons.",
    ATTAINED: "theory puts the mean on the bound itself, so the interval straddles the bound "
    "however many draws are made.",
    WIDE: "the interval holds the expected value but is too wide to show it: it reaches further "
    "than 10 % of the value, and further than a difference worth acting upon; more draws would "
    "decide.",
    ACROSS: "the interval holds the bound; more draws would decide.",
}
"""The meaning of each reason for which a verdict is undecided."""


def apply(statement: Statement, cells: pd.DataFrame) -> pd.DataFrame:
    """The rule's lines for the cells selected by the statement, with `statement` and `cell`."""
    rule = statement.rule
    cells = measured(cells, *rule.metrics)
    if cells.empty:
        return cells
    if statement.only:
        try:
            cells = cells.query(statement.only)
        except NameError:  # pandas' for a metric that no cell has: none is selected
            cells = cells.head(0)
    lines = rule.test(cells)  # of some of the cells
    lines = lines.assign(statement=statement.name, cell=cells["cell"].reindex(lines.index))
    if "variance_is_finite" in cells:  # else no interval of a mean or a variance can be trusted
        infinite = cells["variance_is_finite"].reindex(lines.index) == 0.0
        lines.loc[infinite, ["p", "shown", "reason"]] = [np.nan, False, INFINITE]
    return lines


@dataclass(frozen=True)
class Equals:
    """mean = reference, two-sided.

    Shown if the interval holds the reference and is no wider than twice the larger of
    `resolution` and 10 % of the reference.
    """

    metric: str
    reference: str | float
    resolution: float = 0.02  # nat (nat^2): a difference too small to act upon

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
            [NO_INTERVAL, INFINITE, CHANCE, WIDE],
            default="",
        )
        p = np.where(unbounded, np.nan, interval.p_value(reference))
        return _lines(cells, p, inside & narrow, reason, interval.against("expected", reference))


@dataclass(frozen=True)
class AtMost:
    """mean <= bound, one-sided; shown if the whole 99 % interval is inside.

    With `absolute`, |mean| <= bound. A cell whose bound is infinite is left out. `theory` names the
    metric of the expected mean, by which a bound that theory attains is recognised.
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
            theory = _column(cells, self.theory)
            attained = (np.abs(theory) if self.absolute else theory) >= bound - 1e-3 * np.abs(bound)
        reason = np.select(
            [interval.missing, shown, interval.low > bound, attained],
            [NO_INTERVAL, "", CHANCE, ATTAINED],
            default=ACROSS,
        )
        p = interval.p_value(bound, one_sided=True)
        return _lines(cells, p, shown, reason, against)


@dataclass(frozen=True)
class AtLeast:
    """mean >= bound, one-sided; `AtMost` of the negatives."""

    metric: str
    bound: str | float
    theory: str = ""

    @property
    def metrics(self) -> tuple[str, ...]:
        return _named(self.metric, self.bound, self.theory)

    def test(self, cells: pd.DataFrame) -> pd.DataFrame:
        value, low, high = (self.metric + end for end in ("", "_low", "_high"))
        negated = {value: -cells[value], low: -cells[high], high: -cells[low]}
        negated |= {name: -cells[name] for name in _named(self.bound, self.theory)}
        bound = self.bound if isinstance(self.bound, str) else -self.bound
        lines = AtMost(self.metric, bound, self.theory).test(cells.assign(**negated))
        reference = _column(cells, self.bound)
        return lines.assign(detail=_Intervals.of(cells, self.metric).against("at least", reference))


@dataclass(frozen=True)
class Exactly:
    """value <= bound, two numbers without sampling error, up to rounding.

    A cell whose bound is infinite is left out.
    `words`: value to words, for a metric whose numbers are codes.
    """

    metric: str
    bound: str | float
    words: Mapping[float, str] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[str, ...]:
        return _named(self.metric, self.bound)

    def test(self, cells: pd.DataFrame) -> pd.DataFrame:
        cells = cells[~np.isposinf(_column(cells, self.bound))]
        value, bound = _column(cells, self.metric), _column(cells, self.bound)
        shown = value <= bound + ROUNDING * np.abs(bound)
        digits = np.where(shown, 3, 8)  # a violation may be small
        three = zip(value, bound, digits, strict=True)
        detail = [self.words.get(v, f"{number(v, n)}, bound {number(b, n)}") for v, b, n in three]
        lines = _lines(cells, np.full(len(cells), np.nan), shown, np.full(len(cells), ""), detail)
        return lines.assign(broken=~shown)


@dataclass(frozen=True)
class _Intervals:
    """99 % intervals of one metric, one per cell; `normal`: where their standard error is known."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    normal: np.ndarray

    @classmethod
    def of(cls, cells: pd.DataFrame, metric: str) -> _Intervals:
        ends = ("", "_low", "_high", "_se")
        value, low, high, error = (_column(cells, metric + end) for end in ends)
        return cls(value, low, high, ~np.isnan(error) | (low == high))

    @property
    def missing(self) -> np.ndarray:
        return np.isnan(self.low) | np.isnan(self.high)

    def mirrored(self, where: np.ndarray) -> _Intervals:
        low, high = np.where(where, -self.high, self.low), np.where(where, -self.low, self.high)
        return _Intervals(np.where(where, -self.value, self.value), low, high, self.normal)

    def p_value(self, reference: np.ndarray, one_sided: bool = False) -> np.ndarray:
        """p from z = 2.576 distance / half-width, the half on the reference's side of the value.

        An interval that is not normal (Chebyshev's, or one that is open above) gives p = 1 inside
        and p = 0.01 outside. NaN where there is no interval.
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


def _column(cells: pd.DataFrame, metric: str | float) -> np.ndarray:
    """The metric's values, or a constant for each cell."""
    if isinstance(metric, str):
        return cells[metric].to_numpy(float)
    return np.full(len(cells), metric)


def _lines(
    cells: pd.DataFrame, p: np.ndarray, shown: np.ndarray, reason: np.ndarray, detail: list[str]
) -> pd.DataFrame:
    columns = {"p": p, "shown": shown, "broken": False, "reason": reason, "detail": detail}
    return cells[[]].assign(**columns)


def worth_showing(value: float, low: float, high: float) -> tuple[float, float, float]:
    """The value and its limits; NaN in place of limits that are no wider than rounding."""
    is_rounding = high - low <= 2 * ROUNDING * abs(value)
    return (value, math.nan, math.nan) if is_rounding else (value, low, high)
