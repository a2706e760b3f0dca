"""Do the intervals hold the truth as often as they say? By simulation, at fixed sizes and seeds.

A coverage of 0.99 counted over R simulations has a standard error of sqrt(.0099/R): `COVERAGE` asks
for |z| < 4. The biased twin is the plain normal interval, which the same count rejects.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from reference import linear_families, series
from scipy import stats

from resflow_bench import theory
from resflow_bench.intervals import (
    LEVEL,
    Interval,
    chebyshev_mean_interval,
    lower_variance_interval,
    mean_interval,
    median_interval,
    variance_interval,
)
from resflow_bench.logdet import Geometric, Roulette

Draw = Callable[[np.random.Generator, int, int], np.ndarray]


def slack(n_simulations: int) -> float:
    """Four standard errors of a count that should be `LEVEL`."""
    return 4 * math.sqrt(LEVEL * (1 - LEVEL) / n_simulations)


def coverage(
    interval: Callable[[np.ndarray], Interval],
    draw: Draw,
    truth: float,
    size: tuple[int, int],
    n_simulations: int,
) -> float:
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(n_simulations):
        found = interval(draw(rng, *size))
        hits += found.low <= truth <= found.high
    return hits / n_simulations


A = series(linear_families(8, 0.9)["gaussian"], 10)
EIGENVALUES = np.linalg.eigvalsh((A + A.T) / 2)


def gaussian_form(rng: np.random.Generator, n: int, n_points: int) -> np.ndarray:
    """v^T A v, v ~ N(0, I): sum_i lambda_i(sym A) chi^2_1."""
    return rng.standard_normal((n, n_points, len(A))) ** 2 @ EIGENVALUES


def rademacher_form(rng: np.random.Generator, n: int, n_points: int) -> np.ndarray:
    v = 2.0 * rng.integers(0, 2, (n, n_points, len(A))) - 1.0
    return ((v @ A) * v).sum(axis=-1)


def chi_squared(rng: np.random.Generator, n: int, n_points: int) -> np.ndarray:
    """v^2: the most skewed quadratic form of normal numbers that there is."""
    return rng.standard_normal((n, n_points)) ** 2


def roulette(rng: np.random.Generator, n: int, n_points: int) -> np.ndarray:
    """The estimate for J = -I/2, d = 8, Gaussian probes: its eighth moment is just finite."""
    n_terms = ROULETTE.n_exact + rng.geometric(ROULETTE.law.stop, (n, n_points)) - 1
    k = np.arange(1, 200)
    partial = np.cumsum(-(0.5**k) / k / ROULETTE.survival(k))
    return rng.chisquare(8, (n, n_points)) * partial[n_terms - 1]


ROULETTE = Roulette(Geometric(0.5), n_exact=2)
MOMENTS = theory.moments(A)
DRAWS: dict[str, tuple[Draw, float]] = {
    "gaussian": (gaussian_form, float(theory.iid_variance(MOMENTS, 3.0))),
    "rademacher": (rademacher_form, float(theory.iid_variance(MOMENTS, 1.0))),
    "roulette": (roulette, theory.roulette_variance_bound_lipschitz(0.5, 8, ROULETTE)),
    "chi-squared": (chi_squared, 2.0),
}


def plain_interval(draws: np.ndarray) -> Interval:
    """Value +- 2.576 standard errors."""
    z = draws.var(axis=0, ddof=1).mean()
    squares = ((draws - draws.mean(axis=0)) ** 2).mean(axis=1)
    error = squares.std(ddof=1) / math.sqrt(len(draws))
    half_width = stats.norm.isf((1 - LEVEL) / 2) * error
    return Interval(z, error, z - half_width, z + half_width, len(draws))


@pytest.mark.parametrize(("n", "n_points"), [(1000, 1), (4000, 1), (1000, 8)])
@pytest.mark.parametrize("name", ["gaussian", "rademacher", "roulette"])
def test_variance_interval_covers_what_it_says(name: str, n: int, n_points: int) -> None:
    """Sees a coverage of 98 %: R = 2000, so 4 standard errors are 0.9 %."""
    draw, truth = DRAWS[name]
    found = coverage(variance_interval, draw, truth, (n, n_points), 2000)
    assert found == pytest.approx(LEVEL, abs=slack(2000))


def test_variance_interval_at_the_worst_quadratic_form() -> None:
    """98.4 % where the plain interval, which the same bound rejects, covers 96.7 %."""
    draw, truth = DRAWS["chi-squared"]
    found = coverage(variance_interval, draw, truth, (1000, 1), 4000)
    assert abs(found - 0.984) < 4 * math.sqrt(0.984 * 0.016 / 4000)
    plain = coverage(plain_interval, draw, truth, (1000, 1), 4000)
    assert plain < 0.984 - 4 * math.sqrt(0.984 * 0.016 / 4000)


def test_variance_interval_is_the_inverse_of_hall_s_transformation() -> None:
    draws = np.random.default_rng(6).exponential(size=(500, 3))
    found = variance_interval(draws)
    z = ((draws - draws.mean(axis=0)) ** 2).mean(axis=1) * 500 / 499
    a = stats.skew(z) / math.sqrt(500)
    moved = stats.chi2.ppf(LEVEL, 1) * found.value / 500  # by the error of the mean
    assert found.value == pytest.approx(draws.var(axis=0, ddof=1).mean(), rel=1e-12)
    assert found.standard_error == pytest.approx(stats.sem(z), rel=1e-12)
    for limit, quantile in ((found.low + moved, LEVEL), (found.high - moved, 1 - LEVEL)):
        level = (1 + LEVEL) / 2 if quantile == LEVEL else (1 - LEVEL) / 2
        t = (found.value - limit) / found.standard_error
        hall = t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6
        assert hall == pytest.approx(stats.t.ppf(level, 499), rel=1e-9)
    assert found.high - found.value > found.value - found.low > 0
    np.testing.assert_allclose(variance_interval(10 * draws - 3)[:4], np.multiply(found[:4], 100))


@pytest.mark.parametrize("value", [0.0, 0.1, -1e300])
def test_no_variance_is_exactly_none(value: float) -> None:
    assert variance_interval(np.full((1000, 3), value)) == Interval(0.0, 0.0, 0.0, 0.0, 1000)


def test_symmetric_squares_get_the_plain_t_interval() -> None:
    """Z in equal numbers 0 and 1 either side: no skewness, nothing to correct."""
    draws = np.array([-1.0, 1.0, 0.0, 0.0] * 25)
    found = variance_interval(draws)
    plain = found.standard_error * stats.t.isf((1 - LEVEL) / 2, 99)
    plain += stats.chi2.ppf(LEVEL, 1) * found.value / 100
    assert found.high - found.value == pytest.approx(plain, rel=1e-9)
    assert found.value - found.low == pytest.approx(plain, rel=1e-9)


def test_two_values_are_covered() -> None:
    """y = -1 or 1: Z hardly varies, and what is left is the error of the mean, second order.

    All of 2,000 intervals at n = 1,000 hold the variance 1, or all but a few; the interval without
    the second order misses about one in seven.
    """
    rng = np.random.default_rng(8)
    missed = first_order_missed = 0
    for _ in range(2000):
        found = variance_interval(rng.choice([-1.0, 1.0], 1000))
        moved = stats.chi2.ppf(LEVEL, 1) * found.value / 1000
        missed += not found.low <= 1.0 <= found.high
        first_order_missed += not found.low + moved <= 1.0 <= found.high - moved
    assert missed <= 40
    assert first_order_missed > 150


@pytest.mark.parametrize("n", [1000, 4000])
def test_lower_variance_interval_of_an_infinite_eighth_moment(n: int) -> None:
    """Student's t with 3 degrees of freedom: variance 3, fourth moment infinite."""

    def draw(rng: np.random.Generator, n: int, n_points: int) -> np.ndarray:
        return rng.standard_t(3, (n, n_points))

    found = coverage(lower_variance_interval, draw, 3.0, (n, 1), 1000)
    assert found >= LEVEL - slack(1000)
    interval = lower_variance_interval(draw(np.random.default_rng(7), n, 1))
    assert math.isnan(interval.standard_error)
    assert interval.high == math.inf
    assert 1.0 < interval.low < interval.value


def test_lower_variance_interval_grows_where_the_variance_is_infinite() -> None:
    y = np.random.default_rng(8).standard_t(1, 100_000)
    lows = [lower_variance_interval(y[:n]).low for n in (1000, 10_000, 100_000)]
    assert 10 < lows[0] < lows[2] < math.inf


def test_mean_interval_is_student_s() -> None:
    y = np.random.default_rng(9).normal(3.0, 2.0, 6)
    found = mean_interval(y)
    truth = stats.ttest_1samp(y, 0.0).confidence_interval(LEVEL)
    np.testing.assert_allclose(found[:4], [y.mean(), stats.sem(y), truth.low, truth.high])
    assert found.n == 6
    simulated = coverage(
        lambda draws: mean_interval(draws[:, 0]),
        lambda rng, n, p: rng.normal(3.0, 2.0, (n, p)),
        3.0,
        (6, 1),
        4000,
    )
    assert simulated == pytest.approx(LEVEL, abs=slack(4000))


def test_chebyshev_mean_interval_covers_where_t_does_not() -> None:
    """A lottery, 1 in 400 and mean 1: at n = 400 there are often no winners to make t aware."""

    def lottery(rng: np.random.Generator, n: int, n_points: int) -> np.ndarray:
        return 400.0 * (rng.random(n) < 1 / 400)

    rigorous = coverage(lambda y: chebyshev_mean_interval(y, 399.0), lottery, 1.0, (400, 1), 2000)
    assert rigorous >= LEVEL
    assert coverage(mean_interval, lottery, 1.0, (400, 1), 2000) < 0.7
    found = chebyshev_mean_interval([1.0, 3.0], 0.5)
    assert (found.value, found.low, found.high) == pytest.approx((2.0, -3.0, 7.0))
    assert math.isnan(found.standard_error)
    assert chebyshev_mean_interval([1.0], math.inf)[2:] == (-math.inf, math.inf, 1)


@pytest.mark.parametrize("n", [8, 9, 10, 11, 37, 100, 1001])
def test_median_interval_is_the_narrowest_that_is_sure(n: int) -> None:
    found = median_interval(np.random.default_rng(10).permutation(n) + 1.0)
    rank = int(found.low)  # sample r is the r-th smallest
    assert found.high == n + 1 - rank
    assert 2 * stats.binom.cdf(rank - 1, n, 0.5) <= 1 - LEVEL < 2 * stats.binom.cdf(rank, n, 0.5)
    assert (found.value, found.n) == ((n + 1) / 2, n)


def test_median_interval_of_too_few_is_the_whole_line() -> None:
    assert median_interval(np.arange(7.0))[2:] == (-math.inf, math.inf, 7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([1.0]), r"at least 2 samples.*got shape \(1,\)"),
        (lambda: mean_interval([1.0, math.nan]), "finite samples; got 1 that"),
        (lambda: median_interval([]), "at least 1 samples"),
        (lambda: median_interval([[1.0, 2.0]]), r"first of 1 axes; got shape \(1, 2\)"),
        (lambda: variance_interval(np.zeros((1, 4))), "at least 2 samples"),
        (lambda: variance_interval(np.zeros((4, 0))), r"got shape \(4, 0\)"),
        (lambda: variance_interval(1.0), r"got shape \(\)"),
        (lambda: lower_variance_interval([0.0, math.inf]), "finite samples; got 1"),
        (lambda: chebyshev_mean_interval([1.0], -1.0), r"at least 0; got -1\.0"),
        (lambda: chebyshev_mean_interval([1.0], math.nan), "at least 0; got nan"),
    ],
)
def test_what_may_not_be_passed(call: Callable[[], Interval], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
