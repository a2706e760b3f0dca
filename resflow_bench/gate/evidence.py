"""Evidence that a metric is worse than its margin allows: one test for each kind of metric.

With b_i and n_i the samples of BASE and NEW, the hypothesis "no worse than the margin allows" is
tested one-sidedly, E n - E b (1 +- rtol) -+ atol <= 0:

    exact    one number on each side: no test
    paired   the same random numbers on both sides: Student's test of the differences
    Welch    independent samples
    by rank  times: Mann and Whitney's test, since a disturbance doubles the time of a process now
             and then, and would shift a mean

Where either direction is worse, p is twice the smaller one.

Source: Welch (1947); Mann and Whitney (1947).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from resflow_bench.gate.samples import Samples
from resflow_bench.lab import Metric


@dataclass(frozen=True)
class Evidence:
    """The result of one test, before the false discoveries over all tests are controlled.

    reason: the test in words.
    p: of "no worse than the margin allows".
    p_beyond: of the opposite, "worse than the margin allows".
    error, freedom: the standard error of the excess over the margin, and its degrees of freedom; 0
        and infinite where nothing is random.
    n_directions: the number of directions that are worse.
    least_p: the smallest p that so few samples can give.
    """

    reason: str
    p: float
    p_beyond: float
    error: float = 0.0
    freedom: float = math.inf
    n_directions: int = 1
    least_p: float = 0.0


def certain(is_worse: bool, reason: str) -> Evidence:
    """The evidence where nothing is random."""
    return Evidence(reason, *((0.0, 1.0) if is_worse else (1.0, 0.0)))


def of_ranks(metric: Metric, base: np.ndarray, new: np.ndarray) -> Evidence:
    """Mann and Whitney's test of NEW against BASE moved to the margin.

    `error` is that of the medians as if the noise were normal with the spread of its middle; the
    test's efficiency is then 3 / pi of Welch's.
    """
    assert metric.worse != "other"
    direction = 1 if metric.worse == "more" else -1
    moved = base * (1 + direction * metric.rtol) + direction * metric.atol
    p, p_beyond = (
        float(stats.mannwhitneyu(direction * new, direction * moved, alternative=tail).pvalue)
        for tail in ("greater", "less")
    )
    n, m = len(new), len(base)
    middle = [stats.median_abs_deviation(values, scale="normal") for values in (new, moved)]
    spread = math.sqrt(float(np.square(middle).mean()))
    error = spread * math.sqrt(math.pi / 3 * (1 / n + 1 / m))
    least_p = 1 / math.comb(n + m, n)
    return Evidence(f"{m}+{n} by rank", p, p_beyond, error, n + m - 2, least_p=least_p)


def of_means(metric: Metric, base: Samples, new: Samples, is_paired: bool) -> Evidence:
    """Student's test of the pairs, or Welch's; certain where neither side is random."""
    excess = _paired if is_paired else _independent
    directions = {"more": (1,), "less": (-1,), "other": (1, -1)}[metric.worse]
    excesses = [excess(metric, direction, base, new) for direction in directions]
    worst, n = max(excesses), len(new.values)
    reason = f"{n} pairs" if is_paired else f"{len(base.values)}+{n}"
    if worst.error == 0:
        return certain(worst.value > 0, "exact" if n == 1 else reason)
    p = min(1.0, len(directions) * min(one.p for one in excesses))
    p_beyond = float(stats.t.cdf(worst.value / worst.error, worst.freedom))
    return Evidence(reason, p, p_beyond, worst.error, worst.freedom, len(directions))


@dataclass(frozen=True, order=True)
class _Excess:
    """The excess of NEW over the margin in one direction, with standard error and freedom."""

    value: float
    error: float
    freedom: float

    @property
    def p(self) -> float:
        if self.error == 0:
            return 0.0 if self.value > 0 else 1.0
        return float(stats.t.sf(self.value / self.error, self.freedom))


def _paired(metric: Metric, direction: int, base: Samples, new: Samples) -> _Excess:
    beyond = direction * (new.values - _factor(metric, direction, base) * base.values) - metric.atol
    error = float(beyond.std(ddof=1)) / math.sqrt(len(beyond))
    return _Excess(float(beyond.mean()), error, len(beyond) - 1)


def _independent(metric: Metric, direction: int, base: Samples, new: Samples) -> _Excess:
    factor = _factor(metric, direction, base)
    beyond = direction * (new.mean - factor * base.mean) - metric.atol
    a, b = new.error**2, (factor * base.error) ** 2
    inverse = a**2 / new.freedom if a else 0.0
    inverse += b**2 / base.freedom if b else 0.0
    freedom = (a + b) ** 2 / inverse if inverse else math.inf
    return _Excess(float(beyond), math.sqrt(a + b), freedom)


def _factor(metric: Metric, direction: int, base: Samples) -> float:
    """The factor that moves BASE to its relative margin."""
    return float(1 + direction * metric.rtol * np.sign(base.mean))
