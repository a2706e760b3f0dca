"""Several runs as one: rows by eye, and the coverage of the intervals that result."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from resflow_bench.analysis.margins import Margins
from resflow_bench.analysis.pooling import PooledRuns, pool
from resflow_bench.intervals import (
    Interval,
    chebyshev_mean_interval,
    lower_variance_interval,
    mean_interval,
    variance_interval,
)
from resflow_bench.lab import Metric, replicates

MARGINS = Margins({"s": {"m": Metric("more"), "rate": Metric("less", is_time=True)}})
NAN, INF = math.nan, math.inf
Row = tuple[str, str, Interval, tuple[float, ...]]


def frame(*rows: Row, status: str = "ok", message: str = "") -> pd.DataFrame:
    """Rows of (cell, metric, interval, replicates) in the suite `s`."""
    lines = [
        {
            **{"suite": "s", "cell": cell, "status": status, "message": message},
            **{"metric": metric, "value": of.value, "unit": "nat", "n": of.n},
            **{"standard_error": of.standard_error, "ci_low": of.low, "ci_high": of.high},
            **{"dim": 2, "replicates": np.array(shares)},
        }
        for cell, metric, of, shares in rows
    ]
    return pd.DataFrame(lines)


def pooled(*runs: tuple[int, pd.DataFrame]) -> PooledRuns:
    return pool([(seed, {"s": rows}) for seed, rows in runs], MARGINS)


def one(*runs: tuple[int, pd.DataFrame]) -> dict[str, object]:
    """The only row of what is pooled."""
    (row,) = pooled(*runs).frames["s"].to_dict("records")
    return row


def of(value: float, error: float, low: float, high: float, n: int = 100) -> pd.DataFrame:
    return frame(("c", "m", Interval(value, error, low, high, n), (value - 1, value + 1)))


def test_a_mean_of_two_seeds() -> None:
    """Errors 3 and 4 of equal draws: (3, 4)/2 has the norm 2.5; so have the limits."""
    row = one((0, of(1.0, 3.0, -5.0, 7.0)), (1, of(2.0, 4.0, -6.0, 10.0)))
    assert (row["value"], row["standard_error"], row["n"]) == (1.5, 2.5, 200)
    assert (row["ci_low"], row["ci_high"]) == (-3.5, 6.5)
    assert row["message"] == "mean of 2 seeds"
    assert list(row["replicates"]) == [0.0, 2.0, 1.0, 3.0]  # type: ignore[call-overload]


def test_more_draws_count_for_more() -> None:
    row = one((0, of(0.0, 1.0, -3.0, 3.0, 300)), (1, of(4.0, 3.0, -5.0, 13.0, 100)))
    assert row["value"] == 1.0
    assert row["standard_error"] == pytest.approx(math.hypot(0.75 * 1, 0.25 * 3))


def test_an_interval_keeps_its_asymmetry() -> None:
    row = one((0, of(1.0, 1.0, 0.0, 5.0)), (1, of(1.0, 1.0, 0.0, 5.0 + 1e-9)))
    below, above = 1.0 - float(str(row["ci_low"])), float(str(row["ci_high"])) - 1.0
    assert above == pytest.approx(4 * below)


def test_a_run_of_the_same_seed_is_not_counted_twice() -> None:
    """Also if another machine rounded otherwise: its draws are the same."""
    row = of(1.0, 3.0, -5.0, 7.0)
    again = of(1.0 + 1e-9, 3.0, -5.0, 7.0)
    assert one((0, row), (0, again))["standard_error"] == 3.0
    other = of(2.0, 4.0, -6.0, 10.0)
    assert one((0, row), (0, again), (1, other))["standard_error"] == 2.5


def test_the_order_of_the_runs_does_not_matter() -> None:
    """Replicates are in the order of the seeds, so that two sides pair."""
    runs = ((0, of(1.0, 3.0, -5.0, 7.0)), (1, of(2.0, 4.0, -6.0, 10.0)))
    for both in (runs, runs[::-1]):
        assert list(one(*both)["replicates"]) == [0.0, 2.0, 1.0, 3.0]  # type: ignore[call-overload]


def test_what_is_exact_is_kept_up_to_the_rounding_of_a_machine() -> None:
    row = one((0, of(2.0, 0.0, 2.0, 2.0)), (1, of(2.0 + 1e-9, 0.0, 2.0 + 1e-9, 2.0 + 1e-9)))
    assert (row["value"], row["message"], row["n"]) == (2.0, "", 100)
    same = of(INF, NAN, NAN, NAN)
    assert one((0, same), (1, same))["value"] == INF


@pytest.mark.parametrize(
    "interval",
    [
        Interval(2.0, 0.0, 2.0, 2.0, 1),  # exact, at other points
        Interval(2.0, NAN, NAN, NAN, 1),  # a maximum
        Interval(2.0, NAN, 1.5, 2.9, 1),  # a median
    ],
)
def test_what_is_no_mean_is_left_out(interval: Interval) -> None:
    several = pooled(
        (0, frame(("c", "m", interval, ()), ("d", "m", interval, ()))),
        (1, frame(("c", "m", interval._replace(value=3.0), ()), ("d", "m", interval, ()))),
    )
    assert several.frames["s"]["cell"].tolist() == ["d"]
    assert several.left_out.to_dict("records") == [{"suite": "s", "cell": "c", "metric": "m"}]


def test_replicates_that_do_not_average_to_the_value_make_no_mean() -> None:
    """As those of 1 - ESS/n, whose shares are smaller than the whole."""
    shares = tuple(np.linspace(0.8, 0.9, 16))
    runs = [(seed, frame(("c", "m", Interval(0.99, NAN, 0.9 + seed / 9, INF, 9), shares)))
            for seed in (0, 1)]  # fmt: skip
    assert len(pooled(*runs).left_out) == 1
    assert len(pooled(runs[0], runs[0]).left_out) == 0


def test_a_time_is_a_median_over_processes_of_any_seed() -> None:
    values = [5.0, 1.0, 2.0, 3.0, 4.0, 6.0, 7.0, 100.0]
    runs = [
        (i % 2, frame(("c", "rate", Interval(v, NAN, v - 1, v + 1, 9), ())))
        for i, v in enumerate(values)
    ]
    row = one(*runs)
    assert (row["value"], row["ci_low"], row["ci_high"], row["n"]) == (4.5, 1.0, 100.0, 8)
    assert sorted(row["replicates"]) == sorted(values)  # type: ignore[call-overload]
    few = one(*runs[:3])
    assert (few["value"], few["ci_low"], few["ci_high"]) == (2.0, -INF, INF)


def test_cells_of_one_run_alone_and_cells_that_failed() -> None:
    ok = of(1.0, 1.0, 0.0, 2.0)
    failed = frame(("c", "", Interval(NAN, NAN, NAN, NAN, 0), ()), status="failed", message="why")
    rows = pooled((0, pd.concat([ok, ok.assign(cell="d")])), (1, failed)).frames["s"]
    assert dict(zip(rows["cell"], rows["status"], strict=True)) == {"c": "failed", "d": "ok"}


N_CELLS, N_DRAWS = 1000, 256
LEAST = 0.99 - 4 * math.sqrt(0.99 * 0.01 / N_CELLS)
"""0.9774: what a coverage of 99 % of 1,000 cells falls below once in 30,000 times."""


def mean(shares: np.ndarray) -> float:
    return float(shares.mean())


def variance(shares: np.ndarray) -> float:
    return float(shares.var(0, ddof=1).mean())


def chebyshev(y: np.ndarray) -> Interval:
    return chebyshev_mean_interval(y, 1.0)


def coverage(
    interval: Callable[[np.ndarray], Interval],
    share: Callable[[np.ndarray], float],
    truth: float,
    seeds: tuple[int, ...],
    law: Callable[[np.random.Generator], np.ndarray],
) -> tuple[float, float]:
    """The share of cells whose pooled interval holds the truth, and its mean relative width.

    Cells are measured by each seed; those of one seed are equal.
    """
    frames = {}
    for seed in set(seeds):
        generator = np.random.default_rng(seed)
        draws = [law(generator) for _ in range(N_CELLS)]
        rows = [(str(i), "m", interval(y), replicates(y.reshape(N_DRAWS, 1), share))
                for i, y in enumerate(draws)]  # fmt: skip
        frames[seed] = frame(*rows)
    several = pooled(*((seed, frames[seed]) for seed in seeds))
    assert len(several.left_out) <= 0.01 * N_CELLS
    got = several.frames["s"]
    width, before = ((rows["ci_high"] - rows["ci_low"]).mean() for rows in (got, frames[seeds[0]]))
    inside = (got["ci_low"] <= truth) & (truth <= got["ci_high"])
    return float(inside.mean()), float(width / before) if math.isfinite(before) else NAN


def exponential(generator: np.random.Generator) -> np.ndarray:
    return generator.exponential(size=N_DRAWS)


@pytest.mark.parametrize("n_seeds", [2, 8])
def test_coverage_of_a_pooled_mean(n_seeds: int) -> None:
    """99 % intervals of 1,000 cells, and narrower by the square root of the number of seeds."""
    inside, width = coverage(mean_interval, mean, 1.0, tuple(range(n_seeds)), exponential)
    assert stats.binomtest(round(inside * N_CELLS), N_CELLS, 0.99).pvalue > 1e-4, inside
    assert width == pytest.approx(n_seeds**-0.5, rel=0.02)


def test_coverage_of_a_pooled_variance_and_of_chebyshev_s_interval() -> None:
    """Hall's asymmetric limits stay so; Chebyshev's are wide, and stay Chebyshev's."""
    inside, width = coverage(
        variance_interval, variance, 2.0, (0, 1, 2, 3), lambda g: g.chisquare(1, (N_DRAWS, 1))
    )
    assert inside >= LEAST
    assert 0.5 < width < 0.65
    inside, width = coverage(chebyshev, mean, 1.0, (0, 1, 2, 3), exponential)
    assert inside == 1.0
    assert width == pytest.approx(0.5)


def test_coverage_of_a_lower_limit() -> None:
    """A variance with an infinite eighth moment has no upper limit, before and after."""
    inside, width = coverage(
        lower_variance_interval, variance, 5 / 3, (0, 1), lambda g: g.standard_t(5, (N_DRAWS, 1))
    )
    assert inside >= LEAST
    assert math.isnan(width)


def test_repeated_seeds_as_if_independent_would_not_cover() -> None:
    """The twin that takes four runs of one seed for four seeds is seen by the same test."""
    generator = np.random.default_rng(0)
    rows = [(str(i), "m", mean_interval(y), ()) for i in range(N_CELLS)
            for y in [exponential(generator)]]  # fmt: skip
    first = frame(*rows)
    for seeds, is_right in (((0, 0, 0, 0), True), ((0, 1, 2, 3), False)):
        several = pooled(*((seed, first.assign(value=first["value"] + 1e-9 * i))
                           for i, seed in enumerate(seeds))).frames["s"]  # fmt: skip
        inside = float(((several["ci_low"] <= 1) & (several["ci_high"] >= 1)).mean())
        assert (inside >= LEAST) == is_right, inside
