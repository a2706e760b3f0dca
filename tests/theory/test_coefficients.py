"""Closed forms with the coefficients of every block, against sums over dense float64 matrices."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from resflow_bench import theory
from resflow_bench.logdet import Fixed, Gaussian, Geometric, Rademacher, Roulette, optimal_roulette
from resflow_bench.theory import INVERSE, MONOTONE, RESIDUAL, Coefficients

D, K = 4, 0.7
BLOCKS = pytest.mark.parametrize(
    "c", [RESIDUAL, INVERSE, MONOTONE, Coefficients(1.5, 0.5)], ids=repr
)


def matrix() -> np.ndarray:
    a = np.random.default_rng(3).normal(size=(D, D))
    return K * a / np.linalg.norm(a, 2)


def log_det(j: np.ndarray, c: Coefficients) -> float:
    plus, minus = (np.linalg.slogdet(np.eye(D) + s * j)[1] for s in (1, -1))
    return float(c.plus * plus + c.minus * minus)


def coefficient(c: Coefficients, k: int) -> float:
    """Of t^k in plus log(1 + t) + minus log(1 - t), one logarithm at a time."""
    return float(c.plus * (-1) ** (k + 1) / k - c.minus / k)


def partial(j: np.ndarray, c: Coefficients, first: int, last: int) -> np.ndarray:
    powers = [np.linalg.matrix_power(j, k) for k in range(first, last + 1)]
    terms = [coefficient(c, k) * p for k, p in enumerate(powers, start=first)]
    return np.sum(terms, axis=0)


@BLOCKS
def test_coefficients_are_those_of_the_sum(c: Coefficients) -> None:
    k = np.arange(1, 9)
    expected = [coefficient(c, n) for n in range(1, 9)]
    np.testing.assert_allclose(c(k), expected, rtol=1e-15, atol=1e-17)
    assert c(3) == pytest.approx(expected[2])


def test_a_monotone_block_has_no_even_term_and_twice_the_odd_ones() -> None:
    assert MONOTONE(np.arange(1, 5)).tolist() == [-2.0, 0.0, -2 / 3, 0.0]
    with pytest.raises(ValueError, match=r"\|plus\| >= \|minus\|"):
        Coefficients(0.5, 1.0)


@BLOCKS
@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_the_bias_is_that_of_the_partial_sum(c: Coefficients, n: int) -> None:
    j = matrix()
    series = theory.series(j, n, coefficients=c)
    np.testing.assert_allclose(series, partial(j, c, 1, n), rtol=1e-12, atol=1e-14)
    bias = Fixed(n).bias(j, c)
    assert bias == pytest.approx(np.trace(series) - log_det(j, c), rel=1e-9)
    assert abs(bias) > 1e-5
    assert abs(bias) <= Fixed(n).bias_bound(K, D, c)


@BLOCKS
@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_bounds_from_k_alone_are_sums_of_sizes_that_minus_k_attains(
    c: Coefficients, n: int
) -> None:
    worst = -K * np.eye(D)
    rest = math.fsum(abs(coefficient(c, k)) * K**k for k in range(n + 1, 400))
    head = math.fsum(abs(coefficient(c, k)) * K**k for k in range(1, n + 1))
    assert Fixed(n).bias_bound(K, D, c) == pytest.approx(D * rest, rel=1e-12)
    assert abs(Fixed(n).bias(worst, c)) == pytest.approx(D * rest, rel=1e-12)
    bound = Fixed(n).variance_bound_lipschitz(K, D, 2, coefficients=c)
    assert bound == pytest.approx(2 * D / 2 * head**2, rel=1e-12)
    attained = Fixed(n).variance(worst, Gaussian(), 2, coefficients=c)
    assert attained == pytest.approx(bound, rel=1e-12)


def by_stops(
    j: np.ndarray, c: Coefficients, roulette: Roulette, of: Callable[[np.ndarray], float]
) -> float:
    """Var(Y) = E[V(A_N)] + Var(tr A_N), A_N the weighted sum of N terms: one N at a time."""
    n_terms = np.arange(roulette.n_exact, 300)
    survival = roulette.survival(np.arange(1, 302))
    p = np.append(1.0, survival)[n_terms] - survival[n_terms]
    weighted = np.zeros((D, D))
    noise, traces = [], []
    for n in range(n_terms[-1] + 1):
        if n:
            weighted = weighted + partial(j, c, n, n) / survival[n - 1]
        if n >= roulette.n_exact:
            noise.append(of(weighted))
            traces.append(np.trace(weighted))
    mean = np.dot(p, traces)
    assert mean == pytest.approx(log_det(j, c), rel=1e-9)
    return float(np.dot(p, noise) + np.dot(p, (np.asarray(traces) - mean) ** 2))


@BLOCKS
@pytest.mark.parametrize("n_exact", [0, 3])
def test_the_variance_of_a_roulette_is_the_sum_over_its_stops(
    c: Coefficients, n_exact: int
) -> None:
    j, roulette = 0.8 * matrix(), Roulette(Geometric(0.3), n_exact)
    for probe in (Gaussian(), Rademacher()):
        expected = by_stops(
            j, c, roulette, lambda a, p=probe: float(theory.hutchinson_variance(a, p))
        )
        assert roulette.variance(j, probe, 1, coefficients=c) == pytest.approx(expected, rel=1e-6)
    bound = by_stops(j, c, roulette, lambda a: float(2 * (a**2).sum()))
    found = roulette.variance_bound(j, 1, coefficients=c)
    assert found == pytest.approx(bound, rel=1e-6)
    assert found > roulette.variance(j, Gaussian(), 1, coefficients=c)


@BLOCKS
def test_the_uniform_bound_of_a_roulette_is_attained_by_minus_k(c: Coefficients) -> None:
    roulette = Roulette(Geometric(0.2), 2)
    bound = roulette.variance_bound_lipschitz(0.6, D, 3, 1, c)
    worst = roulette.variance(-0.6 * np.eye(D), Gaussian(), 3, 1, c)
    assert worst == pytest.approx(bound, rel=1e-9)


def test_the_optimal_roulette_of_a_monotone_block_pairs_its_terms() -> None:
    """No better one is near: other geometric decays lose, in variance times E[N]."""
    j = np.stack([matrix(), -0.9 * matrix()])
    best = optimal_roulette(j, Gaussian(), coefficients=MONOTONE)
    table = best.survival(np.arange(1, 9))
    pairs = np.isclose(table[1:], table[:-1], rtol=1e-9)
    assert pairs.sum() >= 3

    def cost(roulette: Roulette) -> float:
        survival = roulette.survival(np.arange(1, 400))
        variance = roulette.variance(j, Gaussian(), 1, coefficients=MONOTONE).mean()
        return float(variance * survival.sum())

    plain = optimal_roulette(j, Gaussian())
    others = [Roulette(Geometric(p), n) for p in (0.2, 0.4) for n in (1, 2, 3)]
    assert all(cost(best) < cost(other) for other in (plain, *others))
