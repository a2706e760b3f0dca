"""The closed forms at Lipschitz constants of 0.99 to 0.9999, against sums over eigenvalues."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from reference import linear_families

from resflow_bench import theory
from resflow_bench.logdet import Gaussian, Geometric, Roulette
from resflow_bench.theory import MONOTONE, RESIDUAL, Coefficients
from resflow_bench.theory.tails import late_tails, scaled_tails

Squares = Callable[[np.ndarray], np.ndarray]


def eigenvalue_tails(eigenvalues: np.ndarray, n: int) -> np.ndarray:
    """sum_{l>=k} (-1)^(l+1) lambda^l/l, k = 1..n, (n, d); n terms are all that counts."""
    found, beyond = np.empty((n, len(eigenvalues)), complex), np.zeros(len(eigenvalues))
    logs = np.log(eigenvalues.astype(complex))
    for start in reversed(range(0, n, 20_000)):
        order = np.arange(start + 1, min(start + 20_000, n) + 1)[:, None]
        terms = -np.exp(order * (logs + 1j * math.pi)) / order
        terms[-1] += beyond
        found[start : start + len(order)] = terms[::-1].cumsum(0)[::-1]
        beyond = found[start]
    return found


def stopped(squares: np.ndarray, stop: float, n_exact: int) -> float:
    """sum_k E[T_k^2] (1/P_k - 1/P_(k-1)), a geometric law after `n_exact` terms."""
    later = squares[n_exact:]
    return float(later @ (stop * (1.0 - stop) ** -np.arange(1.0, len(later) + 1)))


@pytest.mark.parametrize("lipschitz", [0.99, 0.999, 0.9999])
@pytest.mark.parametrize("n_terms", [0, 10, 99, 1000, 9_999, 10_001, 50_000])
def test_log_tail_near_one(lipschitz: float, n_terms: int) -> None:
    k = np.arange(n_terms + 1.0, n_terms + 1 + 45 / (1 - lipschitz))
    truth = math.fsum(lipschitz**k / k)
    assert theory.log_tail(lipschitz, n_terms) == pytest.approx(truth, rel=2e-12)


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("lipschitz", [0.99, 0.999, 0.9999])
@pytest.mark.parametrize("name", ["minus-identity", "plus-identity", "orthogonal", "symmetric"])
def test_roulette_variance_near_one(name: str, lipschitz: float, share: float) -> None:
    j = linear_families(4, lipschitz)[name]
    stop = share * (1 - lipschitz)
    tails = eigenvalue_tails(np.linalg.eigvals(j), math.ceil(45 / (1 - lipschitz)))
    noise = 2 * (tails.real**2).sum(1)  # of a Gaussian probe and a normal J
    truth = noise[0] + stopped(tails.sum(1).real ** 2 + noise, stop, 3)
    roulette = Roulette(Geometric(stop), n_exact=3)
    assert theory.roulette_variance(j, roulette, Gaussian()) == pytest.approx(truth, rel=1e-9)
    if name == "minus-identity":
        bound = theory.roulette_variance_bound_lipschitz(lipschitz, 4, roulette)
        assert bound == pytest.approx(truth, rel=1e-9)


def test_without_enough_eigenvectors_the_powers_are_formed() -> None:
    rho, above, stop = 0.999, 0.01, 1e-3
    n = 45_000
    order = np.arange(1.0, n + 1)
    m = eigenvalue_tails(np.array([-rho]), n)[:, 0].real
    slope = ((-1.0) ** (order + 1) * (-rho) ** (order - 1))[::-1].cumsum()[::-1]  # m_k'
    squares = (2 * m) ** 2 + 2 * (2 * m**2 + (above * slope) ** 2 / 2)
    truth = squares[0] - 4 * m[0] ** 2 + stopped(squares, stop, 1)
    j = np.array([[-rho, above], [0.0, -rho]])
    found = theory.roulette_variance(j, Roulette(Geometric(stop), n_exact=1), Gaussian())
    assert found == pytest.approx(truth, rel=1e-8)


@pytest.mark.parametrize("coefficients", [RESIDUAL, MONOTONE])
def test_late_tails_are_the_tails(coefficients: Coefficients) -> None:
    j = linear_families(6, 0.97)["gaussian"]
    j *= 0.97 / theory.spectral_radius(j)
    early, log_early = scaled_tails(j, 0.97, 400, coefficients)
    late, log_late = late_tails(j, 50, 400, coefficients)
    for ours, theirs, power in zip(late[1:], early[1:], (1, 2, 2, 2), strict=True):
        scale = np.exp(power * (log_late - log_early[49:]))
        size = early.frobenius_sq[49:] ** (power / 2)  # a trace may be zero
        np.testing.assert_allclose(ours * scale / size, theirs[49:] / size, rtol=0, atol=1e-11)
