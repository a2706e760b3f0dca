"""How many terms, which weights: the draws against their law, the closed forms behind them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import gammaln

from resflow_bench import theory
from resflow_bench.logdet import Fixed, Gaussian, Geometric, Poisson, Rademacher, Roulette

DTYPE = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("law", [Geometric(0.5), Geometric(0.1), Poisson(2.0)], ids=str)
def test_roulette_draws_its_law(law) -> None:
    """P(N >= k) from 200,000 draws within 4 binomial standard errors, each k with P > 1e-4."""
    n = 200_000
    roulette = Roulette(law, n_exact=2)
    weights = roulette.draw(n, torch.zeros(1, dtype=DTYPE), generator(3)).weights
    k = np.arange(1, len(weights) + 1)
    survival = roulette.survival(k)
    seen = (weights > 0).double().mean(1).numpy()
    keep = survival > 1e-4
    error = np.sqrt(survival * (1 - survival) / n)
    assert np.all(np.abs(seen - survival)[keep] <= 4 * error[keep])
    nonzero = weights.numpy()[weights.numpy() > 0]
    assert set(nonzero) <= set(1 / survival)
    assert np.all(np.diff((weights > 0).double().numpy(), axis=0) <= 0)  # no term skipped


def test_n_is_drawn_per_example_or_per_batch() -> None:
    like = torch.zeros(1, dtype=DTYPE)
    n_terms = (Roulette(Geometric(0.5), 2).draw(64, like, generator()).weights > 0).sum(0)
    assert len(n_terms.unique()) > 2
    shared = (Roulette(Geometric(0.5), 2, per="batch").draw(64, like, generator()).weights > 0).sum(
        0
    )
    assert len(shared.unique()) == 1


def test_expected_terms_of_the_public_settings() -> None:
    """geometric(0.5) with three unit weights and Poisson(2) with two: four expected terms each."""
    k = np.arange(1, 200)
    public = [Roulette(Geometric(0.5), n_exact=3), Roulette(Poisson(2.0), n_exact=2)]
    for roulette in public:
        assert roulette.survival(k).sum() == pytest.approx(4.0)
    assert 1 / public[1].survival(np.array([1, 2, 3, 4])) == pytest.approx(
        [1, 1, 1 / 0.864665, 1 / 0.593994], rel=1e-5
    )


def test_poisson_survival_is_exact_far_in_the_tail() -> None:
    """1 - cdf is 1.1e-16 for ever; the leading terms of the tail's own series are not."""
    for rate, j in ((2.0, 25), (2.0, 40), (20.0, 80)):
        i = np.arange(j, j + 60)
        log_terms = i * np.log(rate) - rate - gammaln(i + 1.0)
        assert Poisson(rate).survival(np.array([j]))[0] == pytest.approx(
            np.exp(log_terms).sum(), rel=1e-9
        )


def test_closed_forms_are_reached_through_the_truncation() -> None:
    """-K I, d = 32, K = 0.9, N = 10: 287.30, attained; zero with Rademacher probes."""
    matrix = -0.9 * np.eye(32)
    assert Fixed(10).variance(matrix, Gaussian(), 1) == pytest.approx(287.30, abs=0.01)
    assert Fixed(10).variance_bound(matrix, 1) == pytest.approx(287.30, abs=0.01)
    assert Fixed(10).variance_bound_lipschitz(0.9, 32, 1) == pytest.approx(287.30, abs=0.01)
    assert Fixed(10).variance(matrix, Rademacher(), 1) == pytest.approx(0.0, abs=1e-10)
    assert Fixed(5).bias(matrix) == pytest.approx(float(theory.truncation_bias(matrix, 5)))
    assert Roulette(Poisson(2.0), 2).variance(matrix, Gaussian(), 1) == np.inf
    assert not Roulette(Geometric(0.5), 2).moment_is_finite(0.9, 2)
    assert Roulette(Geometric(0.1), 2).moment_is_finite(0.9, 2)
