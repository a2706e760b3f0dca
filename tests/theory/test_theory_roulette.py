"""The exact variance of the roulette estimator and its bounds, against enumeration and by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import reference
from reference import linear_families

from resflow_bench import theory
from resflow_bench.logdet import Gaussian, Geometric, Poisson, Rademacher, Roulette

PROBES = {"gaussian": Gaussian(), "rademacher": Rademacher()}
FAMILIES = sorted(linear_families(3, 0.5))
IDENTITY = np.eye(1)


class Noiseless:
    """A probe that returns tr A: what is left is the roulette's own noise."""

    def variance(self, moments: theory.Moments, n_probes: int) -> np.ndarray:
        return np.zeros_like(moments.trace)


# --- tails ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("n_tails", [1, 2, 17])
def test_tail_moments_are_those_of_the_tails(name: str, n_tails: int) -> None:
    j = linear_families(5, 0.7)[name]
    found = theory.tail_moments(j, n_tails)
    for k in range(1, n_tails + 1):
        truth = theory.moments(reference.tail(j, k))
        for ours, theirs in zip(found[1:], truth[1:], strict=True):
            scale = truth.frobenius_sq if ours.ndim else 1.0
            assert ours[k - 1] == pytest.approx(float(theirs), rel=1e-10, abs=1e-12 * float(scale))
    assert found.dim == 5


def test_the_first_tail_is_the_logarithm() -> None:
    j = linear_families(16, 0.95)["gaussian"]
    found = theory.tail_moments(j, 3)
    truth = theory.moments(reference.log_matrix(j))
    assert found.trace[0] == pytest.approx(float(reference.log_det(j)), rel=1e-12)
    for ours, theirs in zip(found[2:], truth[2:], strict=True):
        assert ours[0] == pytest.approx(float(theirs), rel=1e-10)


@pytest.mark.parametrize("eigenvalue", [-0.99, -0.3, 0.5, 0.9])
def test_a_tail_of_1e_100_has_its_digits(eigenvalue: float) -> None:
    k = np.array([1, 10, 100, 190])
    found = theory.tail_moments(np.diag([eigenvalue, 0.0]), 190).trace[k - 1]
    truth = [float(reference.tail(eigenvalue * IDENTITY, int(i), 5000)[0, 0]) for i in k]
    np.testing.assert_allclose(found, truth, rtol=1e-11)
    assert eigenvalue != -0.3 or abs(found[-1]) < 1e-100


def test_tail_moments_of_a_batch_are_those_of_each() -> None:
    batch = np.stack([[a, 0.5 * a] for a in linear_families(4, 0.6).values()])
    found = theory.tail_moments(batch, 5)
    assert found.trace.shape == (5, *batch.shape[:-2])
    one = theory.tail_moments(batch[3, 1], 5)
    for ours, theirs in zip(found[1:], one[1:], strict=True):
        np.testing.assert_array_equal(ours[:, 3, 1], theirs)


def test_a_series_that_diverges_has_no_tails() -> None:
    with pytest.raises(ValueError, match=r"spectral radii below 1.*got 1\.5"):
        theory.tail_moments(np.diag([0.2, -1.5]), 3)


# --- the roulette ---------------------------------------------------------------------------------

ROULETTES = [
    Roulette(Geometric(0.5), n_exact=0),
    Roulette(Geometric(0.5), n_exact=3),
    Roulette(Geometric(0.2), n_exact=1),
]


@pytest.mark.parametrize("n_probes", [1, 2])
@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("roulette", ROULETTES, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_roulette_variance_over_every_number_of_terms_and_every_probe(
    name: str, roulette: Roulette, probe: str, n_probes: int
) -> None:
    j = linear_families(2, 0.45, seed=3)[name]
    truth = reference.roulette_variance(j, roulette.survival, probe, n_probes)
    found = float(theory.roulette_variance(j, roulette, PROBES[probe], n_probes))
    assert found == pytest.approx(truth, rel=1e-9, abs=1e-15)


def test_a_poisson_roulette_has_finite_variance_for_a_nilpotent_jacobian_alone() -> None:
    j = linear_families(4, 0.9, seed=3)["triangular"]
    roulette = Roulette(Poisson(2.0), n_exact=1)
    truth = reference.roulette_variance(j, roulette.survival, "gaussian", max_terms=20)
    assert theory.roulette_variance(j, roulette, Gaussian()) == pytest.approx(truth, rel=1e-9)
    assert theory.roulette_variance(0.1 * np.eye(4), roulette, Gaussian()) == math.inf
    assert theory.roulette_variance_bound(0.1 * np.eye(4), roulette) == math.inf
    assert theory.roulette_variance_bound_lipschitz(0.1, 4, roulette) == math.inf
    assert theory.roulette_variance_bound_lipschitz(0.0, 4, roulette) == 0.0


@pytest.mark.parametrize(
    ("dim", "n_exact", "lipschitz", "stop", "work"),
    [
        (8, 1, -0.5, 0.5, 23.5),
        (8, 3, -0.5, 0.5, 31.1),
        (8, 1, -0.9, 0.1, 1360),
        (8, 3, -0.9, 0.1, 1250),
        (8, 1, 0.9, 0.1, 76.7),
    ],
)
def test_variance_times_expected_terms(
    dim: int, n_exact: int, lipschitz: float, stop: float, work: float
) -> None:
    roulette = Roulette(Geometric(stop), n_exact)
    variance = float(theory.roulette_variance(lipschitz * np.eye(dim), roulette, Gaussian()))
    assert variance * (n_exact + (1 - stop) / stop) == pytest.approx(work, rel=3e-3)


@pytest.mark.parametrize(
    ("lipschitz", "best"), [(0.3, 0.80), (0.5, 0.64), (0.7, 0.44), (0.9, 0.18)]
)
def test_the_best_geometric_law_for_the_worst_jacobian(lipschitz: float, best: float) -> None:
    stops = np.arange(0.01, 1 - lipschitz**2, 0.01)
    laws = [Roulette(Geometric(stop), n_exact=1) for stop in stops]
    variances = [theory.roulette_variance_bound_lipschitz(lipschitz, 1, law) for law in laws]
    assert stops[np.argmin(variances / stops)] == pytest.approx(best, abs=0.011)


def test_one_n_for_a_batch_leaves_the_roulette_s_noise_in_its_mean() -> None:
    j, roulette = -0.6 * np.eye(4), Roulette(Geometric(0.5), n_exact=1)
    each = float(theory.roulette_variance(j, roulette, Gaussian())) / 64
    common = float(theory.roulette_variance(j, roulette, Noiseless())) * 63 / 64
    assert each == pytest.approx(0.1694, abs=5e-5)
    assert each + common == pytest.approx(2.8752, abs=5e-5)


@pytest.mark.parametrize(("lipschitz", "noise"), [(0.5, 8e-16), (0.59, 2.5e-12), (0.7, 4e-8)])
def test_twenty_exact_terms_leave_little_roulette(lipschitz: float, noise: float) -> None:
    roulette = Roulette(Geometric(0.5), n_exact=21)
    found = theory.roulette_variance(-lipschitz * IDENTITY, roulette, Noiseless())
    assert found == pytest.approx(noise, rel=0.03)


@pytest.mark.parametrize(
    ("lipschitz", "sums"),
    [
        (0.5, {20: 0.00108, 50: 0.00108, 400: 0.00108}),
        (0.7, {20: 0.0872, 50: 0.0966, 100: 0.0982, 200: 0.0985, 400: 0.0985}),
        (0.7071, {20: 0.106, 50: 0.124, 100: 0.131, 200: 0.135, 400: 0.136}),
        (0.72, {20: 0.154, 50: 0.218, 100: 0.324, 200: 1.33, 400: 309}),
        (0.9, {20: 415, 50: 1.6e8, 100: 1.3e18}),
    ],
)
def test_reachable_variance_is_the_partial_sum(lipschitz: float, sums: dict[int, float]) -> None:
    roulette = Roulette(Geometric(0.5), n_exact=3)
    for n_terms, printed in sums.items():
        survival = 0.999 * 0.5 ** (n_terms - 3)
        found = theory.roulette_variance(
            -lipschitz * IDENTITY, roulette, Noiseless(), min_survival=survival
        )
        assert found == pytest.approx(printed, rel=0.03)


@pytest.mark.parametrize(
    ("lipschitz", "reachable"), [(0.3, 2.58e-5), (0.5, 1.91e-3), (0.7, 54.1), (0.9, 1.36e6)]
)
def test_what_of_an_infinite_variance_a_thousand_million_draws_can_show(
    lipschitz: float, reachable: float
) -> None:
    roulette = Roulette(Poisson(2.0), n_exact=2)
    k = np.arange(2, 18)  # P_17 = 3.9e-9 and P_18 = 4.8e-10
    weights = 1 / roulette.survival(k) - 1 / roulette.survival(k - 1)
    tails = np.array([reference.log_tail(lipschitz, int(i) - 1) for i in k])
    found = theory.roulette_variance(
        -lipschitz * IDENTITY, roulette, Noiseless(), min_survival=1e-9
    )
    assert found == pytest.approx(float(tails**2 @ weights), rel=1e-10)
    assert found == pytest.approx(reachable, rel=5e-3)


@pytest.mark.parametrize("ratio", [0.9, 0.998, 0.9999, 1 - 1e-5])
@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_a_sum_that_hardly_converges(ratio: float, decay: float) -> None:
    """J = -K, K^2 = ratio * decay: u_k = t_k/K^k = 1/k + K u_(k+1), a million times."""
    lipschitz, n_exact = math.sqrt(ratio * decay), 2
    roulette = Roulette(Geometric(1 - decay), n_exact)
    u, truth = 1e-6 / (1 - lipschitz), 0.0
    for k in range(1_000_000, 0, -1):
        u = 1 / k + lipschitz * u
        if k > n_exact:
            truth += 3 * u**2 * ratio**k * (1 - decay) * decay**n_exact
    truth += 2 * (lipschitz * u) ** 2
    found = float(theory.roulette_variance(-lipschitz * IDENTITY, roulette, Gaussian()))
    assert found == pytest.approx(truth, rel=1e-8)
    bound = theory.roulette_variance_bound_lipschitz(lipschitz, 1, roulette)
    assert bound == pytest.approx(truth, rel=1e-8)


@pytest.mark.parametrize("roulette", ROULETTES, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_roulette_bounds_in_order_of_sharpness(name: str, roulette: Roulette) -> None:
    j = linear_families(16, 0.65)[name]
    chain = [
        float(theory.roulette_variance(j, roulette, Rademacher(), 3)),
        float(theory.roulette_variance(j, roulette, Gaussian(), 3)),
        float(theory.roulette_variance_bound(j, roulette, 3)),
        theory.roulette_variance_bound_lipschitz(0.65, 16, roulette, 3),
    ]
    assert all(low <= high * (1 + 1e-12) for low, high in pairwise(chain))
    if name == "minus-identity":
        assert chain[1] == pytest.approx(chain[3], rel=1e-10)


@pytest.mark.parametrize("scale", [1e-3, 1e-12, 1e-300, 0.0])
def test_a_nearly_nilpotent_jacobian(scale: float) -> None:
    """rho^k is far below J^k until k = d: the rate at which the sum is cut must not be rho's."""
    j = np.eye(40, k=1) * 0.6
    j[-1, 0] = scale
    roulette = Roulette(Geometric(0.5), n_exact=1)
    k = np.arange(1, 120)
    p = roulette.survival(np.arange(1, 120))
    weights = 1 / p - np.r_[1, 1 / p[:-1]]
    tails = [reference.tail(j, int(i), 200) for i in k]
    squares = [np.trace(m) ** 2 + np.linalg.norm(m + m.T) ** 2 / 2 for m in tails]
    truth = np.linalg.norm(tails[0] + tails[0].T) ** 2 / 2 + weights @ squares
    assert theory.roulette_variance(j, roulette, Gaussian()) == pytest.approx(truth, rel=1e-10)


def test_a_batch_is_judged_matrix_by_matrix() -> None:
    batch = np.stack([0.5 * np.eye(3), 0.8 * np.eye(3), 1.2 * np.eye(3), np.zeros((3, 3))])[:, None]
    roulette = Roulette(Geometric(0.5), n_exact=2)
    found = theory.roulette_variance(batch, roulette, Gaussian())
    alone = theory.roulette_variance(batch[0, 0], roulette, Gaussian())
    np.testing.assert_array_equal(found, [[alone], [math.inf], [math.inf], [0.0]])
    reachable = theory.roulette_variance(batch, roulette, Gaussian(), min_survival=1e-9)
    np.testing.assert_array_equal(np.isfinite(reachable).ravel(), [True, True, False, True])
    assert theory.roulette_variance(batch[:0], roulette, Gaussian()).shape == (0, 1)


@pytest.mark.parametrize(
    ("radius", "law", "order", "finite"),
    [
        (0.70, Geometric(0.5), 2, True),
        (0.71, Geometric(0.5), 2, False),
        (0.59, Geometric(0.5), 4, True),
        (0.60, Geometric(0.5), 4, False),
        (0.54, Geometric(0.5), 8, True),
        (0.55, Geometric(0.5), 8, False),
        (0.999, Geometric(0.5), 1, True),
        (0.94, Geometric(0.1), 2, True),
        (0.95, Geometric(0.1), 2, False),
        (1e-9, Poisson(2.0), 2, False),
        (0.0, Poisson(2.0), 8, True),
    ],
)
def test_which_moments_are_finite(radius: float, law: Geometric, order: int, finite: bool) -> None:
    roulette = Roulette(law, n_exact=5)
    assert theory.roulette_moment_is_finite(radius, roulette, order) == finite
    if order == 2:
        assert theory.roulette_variance_is_finite([radius] * 2, roulette).tolist() == [finite] * 2


def test_a_divergent_sum_is_not_followed_for_ever() -> None:
    roulette = Roulette(Geometric(1e-7), n_exact=1)
    j = (1 - 1e-8) * IDENTITY
    with pytest.raises(ArithmeticError, match="Raise `min_survival`"):
        theory.roulette_variance(j, roulette, Gaussian(), min_survival=0.5)
