"""The roulette of least variance times work: against a search, geometric laws, from a pilot."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from reference import linear_families
from scipy import optimize

from resflow_bench import theory
from resflow_bench.layers import LinearBranch, mlp_branch
from resflow_bench.logdet import (
    Arnoldi,
    Fixed,
    Gaussian,
    Geometric,
    Hadamard,
    LogDetEstimator,
    Probe,
    Rademacher,
    Roulette,
    Tabulated,
    Taylor,
    jacobian,
    optimal_roulette,
    pilot_roulette,
)

DTYPE = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def product(
    j: np.ndarray, roulette: Roulette, probe: Probe, n_probes: int = 1, n_traced: int = 0
) -> float:
    """Mean variance times expected terms."""
    variance = theory.roulette_variance(j, roulette, probe, n_probes, n_traced=n_traced)
    return float(variance.mean() * roulette.survival(np.arange(1, 4000)).sum())


def best_geometric(j: np.ndarray, probe: Probe, n_probes: int = 1, n_traced: int = 0) -> float:
    """The least product over eight numbers of exact terms and 16 laws of finite variance."""
    most = 1.0 - float(theory.spectral_radius(j).max()) ** 2
    return min(
        product(j, Roulette(Geometric(stop), n_exact), probe, n_probes, n_traced)
        for n_exact in range(n_traced + 1, n_traced + 9)
        for stop in np.arange(0.04, 1.0, 0.06)
        if stop < most
    )


# --- the optimum ----------------------------------------------------------------------------------


def objective(b: np.ndarray, c: np.ndarray, survival: np.ndarray) -> float:
    return float((b / survival).sum() * (c * survival).sum())


@pytest.mark.parametrize("seed", range(12))
def test_no_search_finds_a_better_survival(seed: int) -> None:
    """L-BFGS from five starts over all P that do not rise, six terms: b that rise and fall."""
    rng = np.random.default_rng(seed)
    squares = rng.exponential(size=7) * 0.6 ** np.arange(7)
    squares[-1] = 0.1 * squares.min()
    mean_square, c = 0.5 * squares[0], rng.uniform(0.5, 3.0, 6)
    squares[0] += squares[1]  # the probes' noise outweighs T_2
    found = theory.optimal_survival(squares, mean_square, c)
    b = squares[:-1] - squares[1:]
    b[0] -= mean_square
    assert found[0] == 1.0
    assert np.all(np.diff(found) <= 0)

    def at(steps: np.ndarray) -> float:
        return objective(b, c, np.exp(-np.cumsum(np.r_[0.0, steps])))

    starts = rng.exponential(size=(5, 5))
    best = min(optimize.minimize(at, s, bounds=[(0.0, 20.0)] * 5).fun for s in starts)
    assert objective(b, c, found) <= best * (1 + 1e-12)
    assert objective(b, c, found) == pytest.approx(best, rel=1e-4)
    for twin in (found**2, np.sqrt(found)):  # without the square root, and with one too many
        assert objective(b, c, twin) > best * 1.01


def test_pooling_by_hand() -> None:
    """b = 4, 1, 3, 1 after the square of the mean: 1 and 3 share 2."""
    found = theory.optimal_survival([10.0, 5.0, 4.0, 1.0, 0.0], mean_square=1.0)
    np.testing.assert_allclose(found, [1.0, 0.5**0.5, 0.5**0.5, 0.5], rtol=1e-15)
    dear = theory.optimal_survival([10.0, 5.0, 4.0, 1.0, 0.0], 1.0, costs=[4.0, 1.0, 3.0, 1.0])
    np.testing.assert_array_equal(dear, np.ones(4))


def test_without_noise_of_the_probes_every_term_pays() -> None:
    squares = 0.5 ** np.arange(8.0)
    np.testing.assert_array_equal(theory.optimal_survival(squares, squares[0]), np.ones(7))
    roulette = optimal_roulette(-0.5 * np.eye(4), Rademacher())
    exact = Fixed(roulette.n_exact).bias(-0.5 * np.eye(4))
    assert abs(exact) < 1e-6


@pytest.mark.parametrize(
    ("lipschitz", "printed", "geometric"),
    [(-0.5, 22.3, 23.5), (-0.9, 1060, 1250), (0.9, 42.3, 76.7)],
)
def test_the_optimum_of_scaled_identities(
    lipschitz: float, printed: float, geometric: float
) -> None:
    """d = 8, a Gaussian probe; beside it stop = 1 - K with one or three exact terms."""
    j = lipschitz * np.eye(8)
    found = product(j, optimal_roulette(j, Gaussian()), Gaussian())
    assert found == pytest.approx(printed, rel=3e-3)
    stop = 1 - abs(lipschitz)
    laws = [Roulette(Geometric(stop), n_exact) for n_exact in (1, 3)]
    assert min(product(j, law, Gaussian()) for law in laws) == pytest.approx(geometric, rel=3e-3)


@pytest.mark.parametrize("n_traced", [0, 1, 2])
@pytest.mark.parametrize(
    "name", ["minus-identity", "orthogonal", "symmetric", "antisymmetric", "gaussian", "triangular"]
)
def test_no_geometric_law_is_better(name: str, n_traced: int) -> None:
    """d = 12, K = 0.8. Probes with noise: without it there is no least product."""
    j = linear_families(12, 0.8, seed=2)[name]
    roulette = optimal_roulette(j, Gaussian(), 2, n_traced)
    assert roulette.n_exact > n_traced
    found = product(j, roulette, Gaussian(), 2, n_traced)
    assert found <= best_geometric(j, Gaussian(), 2, n_traced) * (1 + 1e-9)
    cut = np.array(roulette.law.table)  # type: ignore[attr-defined]
    twin = Roulette(Tabulated(tuple(cut**2), roulette.law.decay), roulette.n_exact)
    assert product(j, twin, Gaussian(), 2, n_traced) > found


def test_several_jacobians_share_one_law() -> None:
    """Of the mean variance: better than the law that suits one of them."""
    j = np.stack([-0.8 * np.eye(6), linear_families(6, 0.5)["gaussian"]])
    both = optimal_roulette(j, Gaussian())
    for one in j:
        alone = optimal_roulette(one, Gaussian())
        assert product(j, both, Gaussian()) < product(j, alone, Gaussian())


def test_what_is_paid_once_buys_more_terms() -> None:
    j = -0.7 * np.eye(6)
    k = np.arange(1, 500)
    terms = [
        optimal_roulette(j, Gaussian(), n_besides=n).survival(k).sum() for n in (0.0, 2.0, 8.0)
    ]
    assert terms == sorted(terms)
    assert terms[2] > 1.2 * terms[0]


# --- as a roulette --------------------------------------------------------------------------------


@pytest.mark.parametrize("n_probes", [1, 2])
def test_the_variance_of_a_table_is_the_sum_over_every_number_of_terms(n_probes: int) -> None:
    roulette = Roulette(Tabulated((1.0, 0.7, 0.7, 0.1), 0.5), n_exact=1)
    for j in linear_families(2, 0.45, seed=3).values():
        truth = reference.roulette_variance(j, roulette.survival, "rademacher", n_probes)
        found = float(theory.roulette_variance(j, roulette, Rademacher(), n_probes))
        assert found == pytest.approx(truth, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("probe", [Gaussian(), Hadamard()], ids=str)
def test_the_estimate_is_unbiased_and_has_its_variance(probe: Probe) -> None:
    """|z| < 4 each, n = 40,000; the twin, the same N with weights one, is rejected."""
    j = linear_families(4, 0.8, seed=1)["gaussian"]
    branch = LinearBranch(torch.from_numpy(j), 0.8)
    roulette = optimal_roulette(j, probe, 2)
    x, truth = torch.zeros(40_000, 4, dtype=DTYPE), float(reference.log_det(j))
    with torch.no_grad():
        draws = LogDetEstimator(probe, roulette, 2)(branch, x, generator(6)).value.numpy()
    squares = (draws - draws.mean()) ** 2
    expected = float(roulette.variance(j, probe, 2))
    assert abs(draws.mean() - truth) < 4 * draws.std() / 200
    assert abs(squares.mean() - expected) < 4 * squares.std() / 200

    class Unweighted:
        def draw(self, *arguments: object) -> object:
            terms = roulette.draw(*arguments)  # type: ignore[arg-type]
            return terms._replace(weights=(terms.weights > 0).to(terms.weights))

    with torch.no_grad():
        twin = LogDetEstimator(probe, Unweighted(), 2)(branch, x, generator(6)).value  # type: ignore[arg-type]
    assert abs(twin.mean() - truth) > 4 * twin.std() / 200


@pytest.mark.parametrize("n_traced", [0, 1])
def test_a_pilot_finds_nearly_the_optimum(n_traced: int) -> None:
    """Within 5 % of the product that the Jacobians give; stop = 1/2 is not."""
    branch = mlp_branch(6, (16,), 0.9, generator=generator()).double()
    with torch.no_grad():
        for linear in branch.layers:
            left, _, right = torch.linalg.svd(linear.weight, full_matrices=False)
            linear.weight.copy_(2 * left @ right)
    branch.align()
    x = torch.randn(32, 6, generator=generator(1), dtype=DTYPE)
    j = jacobian(branch, x).detach().numpy()
    estimator = LogDetEstimator(Gaussian(), Fixed(4), 2, n_traced=n_traced)
    pilot = pilot_roulette(estimator, branch, x, 0.9, generator(2), n_draws=64)
    assert pilot.law.decay == 0.9
    assert pilot.n_exact > n_traced
    best = product(j, optimal_roulette(j, Gaussian(), 2, n_traced), Gaussian(), 2, n_traced)
    found = product(j, pilot, Gaussian(), 2, n_traced)
    assert best <= found * (1 + 1e-9)
    assert found < 1.05 * best
    assert product(j, Roulette(Geometric(0.5), 3), Gaussian(), 2, n_traced) > 1.05 * best


def test_a_pilot_weighs_the_terms_of_the_expansion() -> None:
    """Arnoldi's increments fall faster where J is symmetric: fewer terms for the same b_1."""
    j = torch.from_numpy(linear_families(8, 0.8)["symmetric"])
    branch, x = LinearBranch(j, 0.8), torch.zeros(64, 8, dtype=DTYPE)
    k, expected = np.arange(1, 500), []
    for expansion in (Arnoldi(), Taylor()):
        estimator = LogDetEstimator(Gaussian(), Fixed(4), expansion=expansion)
        found = pilot_roulette(estimator, branch, x, 0.8, generator(3), n_terms=32)
        expected.append(found.survival(k).sum())
    assert expected[0] < 0.8 * expected[1]
    estimator = LogDetEstimator(Gaussian(), Fixed(1), expansion=Arnoldi())
    one = pilot_roulette(estimator, lambda z: 0.5 * z, x[:, :1], 0.5, generator())
    assert one.survival(np.array([1, 2, 3])).tolist() == [1.0, 0.5, 0.25]  # d = 1: nothing is left
    unknown = LogDetEstimator(Gaussian(), Fixed(4), expansion=Unknown())
    with pytest.raises(TypeError, match="needs an expansion with `increments`"):
        pilot_roulette(unknown, branch, x, 0.8, generator())


class Unknown:
    """An expansion that does not say what its terms are."""


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Tabulated((), 0.5), "1 first"),
        (lambda: Tabulated((0.9, 0.5), 0.5), "1 first"),
        (lambda: Tabulated((1.0, 0.5, 0.6), 0.5), "never rising"),
        (lambda: Tabulated((1.0, 0.0), 0.5), "end the table before it"),
        (lambda: Tabulated((1.0, 0.5), 1.0), "0 < decay < 1; got 1.0"),
        (lambda: theory.optimal_survival([1.0], 0.0), "Average over the jacobians"),
        (lambda: theory.optimal_survival([1.0, -0.1], 0.0), "second_moments of at least 0"),
        (lambda: theory.optimal_survival([1.0, 0.1], 0.0, [1.0, 1.0]), "1 positive costs"),
        (lambda: theory.optimal_survival([1.0, 0.1], 0.0, [0.0]), "1 positive costs"),
        (lambda: optimal_roulette(1.1 * np.eye(2), Gaussian()), "spectral radii below 1"),
        (
            lambda: optimal_roulette(np.zeros((2, 2)), Gaussian(), 0),
            "n_probes of at least 1; got 0",
        ),
        (lambda: optimal_roulette(np.zeros((2, 2)), Gaussian(), 1, -1), "n_traced of at least 0"),
        (lambda: pilot(n_terms=5, n_traced=2), "n_terms=5, n_draws=16 and n_traced=2. Raise"),
        (lambda: pilot(n_draws=1), "n_draws >= 2"),
        (lambda: pilot(spectral_radius=1.0), "0 < decay < 1; got 1.0"),
    ],
)
def test_what_is_refused(build, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build()


def pilot(spectral_radius: float = 0.5, n_traced: int = 0, **settings: int) -> Roulette:
    estimator = LogDetEstimator(Rademacher(), Fixed(4), n_traced=n_traced)
    branch = mlp_branch(3, (4,), 0.5, generator=generator())
    return pilot_roulette(
        estimator, branch, torch.zeros(2, 3), spectral_radius, generator(), **settings
    )
