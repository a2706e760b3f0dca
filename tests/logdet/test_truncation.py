"""How many terms, which weights: the draws against their law, the closed forms behind them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import gammaln

from resflow_bench import theory
from resflow_bench.logdet import (
    Fixed,
    Gaussian,
    Geometric,
    Poisson,
    Rademacher,
    Roulette,
    Tabulated,
)

DTYPE = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


TABULATED = Tabulated((1.0, 0.9, 0.9, 0.3), 0.6)


@pytest.mark.parametrize("law", [Geometric(0.5), Geometric(0.1), Poisson(2.0), TABULATED], ids=str)
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


# --- strata ---------------------------------------------------------------------------------------


def marginal_z(n_terms: np.ndarray, roulette: Roulette) -> float:
    """The worst z of P(N_b >= k), n_terms (n, B), over the examples and the k with P > 0.02."""
    k = np.arange(1, 40)
    survival = roulette.survival(k)
    k, survival = (
        k[(survival < 1) & (survival > 0.02)],
        survival[(survival < 1) & (survival > 0.02)],
    )
    seen = (n_terms[:, :, None] >= k).mean(0)  # (B, K)
    return float(
        np.abs((seen - survival) / np.sqrt(survival * (1 - survival) / len(n_terms))).max()
    )


def draws(roulette: Roulette, n: int, batch_size: int) -> np.ndarray:
    """N, (n, B)."""
    like, noise = torch.zeros(1, dtype=DTYPE), generator(5)
    return np.stack([roulette.draw(batch_size, like, noise).n_terms for _ in range(n)])


@pytest.mark.parametrize("law", [Geometric(0.5), Poisson(2.0), TABULATED], ids=str)
@pytest.mark.parametrize("batch_size", [1, 7])
def test_each_example_of_a_stratified_batch_has_the_law(law, batch_size: int) -> None:
    """|z| < 4, n = 4,000 batches. The twin gives the lowest N to the first example."""
    roulette = Roulette(law, n_exact=1, per="stratified")
    n_terms = draws(roulette, 4000, batch_size)
    assert marginal_z(n_terms, roulette) < 4
    if batch_size > 1:
        assert marginal_z(np.sort(n_terms, axis=1), roulette) > 4


def test_the_work_of_a_stratified_batch_hardly_varies() -> None:
    """Var(sum N), B = 64: 64 (1 - stop)/stop^2 = 128 one by one, 64 times that in common."""
    variance = {}
    for per in ("example", "batch", "stratified"):
        work = draws(Roulette(Geometric(0.5), 1, per=per), 3000, 64).sum(1)
        variance[per] = work.var()
        assert abs(work.mean() - 128) < 4 * work.std() / 3000**0.5  # E N = 2
    assert variance["example"] == pytest.approx(128, rel=0.15)
    assert variance["batch"] == pytest.approx(64 * 128, rel=0.25)
    assert variance["stratified"] < 0.1 * variance["example"]


def roulette_means(n_terms: np.ndarray, roulette: Roulette) -> np.ndarray:
    """The batch means of sum_{k<=N} (-1)^(k+1) tr J^k/(k P_k), J = -0.6 I, d = 4: no probe."""
    k = np.arange(1, n_terms.max() + 1)
    sums = np.cumsum(-4 * 0.6**k / k / roulette.survival(k))
    return sums[n_terms - 1].mean(1)


def test_the_roulette_s_error_of_a_batch_mean() -> None:
    """|z| < 4, n = 3,000 batches of 48: unbiased, with variance V/B, V, and far below V/B.

    The twin that takes the middle of each stratum never goes beyond P_k = 1/96, and is biased.
    """
    truth, each, batch_size = 4 * np.log(0.4), Roulette(Geometric(0.3), n_exact=1), 48
    one = float(theory.roulette_variance(-0.6 * np.eye(4), each, Rademacher()))
    variance = {}
    for per in ("example", "batch", "stratified"):
        roulette = replace(each, per=per)
        means = roulette_means(draws(roulette, 3000, batch_size), roulette)
        assert abs(means.mean() - truth) < 4 * means.std() / 3000**0.5
        variance[per] = means.var()
    assert variance["example"] == pytest.approx(one / batch_size, rel=0.15)
    assert variance["batch"] == pytest.approx(one, rel=0.25)
    assert variance["stratified"] < 0.1 * variance["example"]
    middles = each.n_exact + each._quantile((np.arange(batch_size) + 0.5) / batch_size)
    twin = roulette_means(middles[None], each)[0]
    assert abs(twin - truth) > 4 * (variance["stratified"] / 3000) ** 0.5


def test_an_empty_batch_has_no_terms_to_draw() -> None:
    for per in ("example", "batch", "stratified"):
        roulette = Roulette(Geometric(0.5), 1, per=per)
        assert roulette.draw(0, torch.zeros(1), generator()).n_terms.shape == (0,)


# --- an infinite variance -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("law", "radius", "said"),
    [
        (Geometric(0.5), 0.9, r"geometric\(0.5\), which decays by 0.5.*stop < 0.19 \(about 0.1"),
        (Geometric(0.19), 0.9, "infinite variance"),
        (Poisson(2.0), 0.1, r"poisson\(2\), which decays by 0, .*leave out `spectral_radius`"),
        (Tabulated((1.0, 0.5), 0.2), 0.5, "infinite variance"),
        (Geometric(0.5), 1.0, "0 <= spectral_radius < 1; got 1.0"),
        (Geometric(0.5), -0.1, "0 <= spectral_radius < 1"),
        (Geometric(0.5), float("nan"), "0 <= spectral_radius < 1"),
    ],
)
def test_a_law_of_infinite_variance_is_refused(law, radius: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Roulette(law, 3, spectral_radius=radius)


def test_the_radius_is_a_check_and_no_part_of_the_law() -> None:
    checked = Roulette(Geometric(0.1), 3, spectral_radius=0.9)
    assert Roulette(Poisson(2.0), 3, spectral_radius=0.0).spectral_radius == 0.0
    assert checked == Roulette(Geometric(0.1), 3)
    assert repr(checked) == repr(Roulette(Geometric(0.1), 3))
    assert str(checked) == "geometric(0.1), n_exact=3"
    with pytest.raises(ValueError, match="infinite variance"):
        replace(checked, law=Geometric(0.5))
