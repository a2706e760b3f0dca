"""What one pilot says of every number of probes, against closed forms; what `tuned` makes of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from reference import linear_families
from torch import Tensor

from resflow_bench import theory
from resflow_bench.layers import LinearBranch, mlp_branch
from resflow_bench.logdet import (
    PROBES,
    Arnoldi,
    Fixed,
    Hadamard,
    LogDetEstimator,
    PerBranch,
    Rademacher,
    Roulette,
    Taylor,
    dense_log_det,
    jacobian,
    tuned,
)
from resflow_bench.logdet.optimal import Pilot, pilot, share
from resflow_bench.logdet.tuned import N_PROBES, mean_terms
from resflow_bench.theory import ProbeVariance
from resflow_bench.threads import one_torch_thread

DTYPE = torch.float64
D, K = 8, 0.8
J = linear_families(D, K)["gaussian"]
CLOSED = [probe for probe in PROBES.values() if isinstance(probe, ProbeVariance)]
ALL = pytest.mark.parametrize("probe", CLOSED, ids=str)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def closed_form(probe: ProbeVariance, n_traced: int = 0, n_tails: int = 64) -> Pilot:
    """What a pilot of infinitely many probes would see of J."""
    tails = theory.tail_moments(J, n_tails)
    later = np.maximum(np.arange(n_tails), n_traced)
    variances = {m: probe.variance(tails, m)[later] for m in {*N_PROBES, 5, 7}}
    return Pilot(tails.trace[later] ** 2, variances)


def rejected(samples: np.ndarray, expected: np.ndarray) -> bool:
    """Whether a mean is more than four standard errors away; the wider interval of 40 samples."""
    error = samples.std(0, ddof=1) / len(samples) ** 0.5
    return bool((np.abs(samples.mean(0) - expected) > 4.0 * error).any())


# --- the share of a variance that m probes leave


@ALL
@pytest.mark.parametrize("n_probes", [1, 2, 5, D, 13, 2 * D])
def test_the_share_of_the_variance_is_that_of_any_matrix(
    probe: ProbeVariance, n_probes: int
) -> None:
    matrix = np.random.default_rng(1).normal(size=(D, D))
    moments = theory.moments(matrix)
    expected = probe.variance(moments, n_probes) / probe.variance(moments, 1)
    assert share(probe, D, n_probes) == pytest.approx(float(expected), rel=1e-12, abs=1e-15)
    if n_probes > 1 and str(probe) in ("hadamard", "orthogonal"):  # a twin: independent ones
        assert share(probe, D, n_probes) < 0.95 / n_probes


def test_in_one_dimension_nothing_is_left_to_share() -> None:
    assert [share(PROBES[name], 1, 2) for name in ("sphere", "orthogonal", "hadamard")] == [0.0] * 3


# --- the moments, from few probes


@ALL
def test_moments_from_four_probes_are_unbiased(probe: ProbeVariance) -> None:
    """40 pilots at 100 points; the twins take the four for independent of each other."""
    branch = LinearBranch(torch.from_numpy(J), K)
    x, noise, n_terms = torch.zeros(100, D, dtype=DTYPE), generator(2), 6
    base = LogDetEstimator(probe, Fixed(4))
    seen = [pilot(base, branch, x, 4, (1,), noise, n_terms) for _ in range(40)]
    variances = np.stack([one.variances[1] for one in seen])
    squares = np.stack([one.mean_squares for one in seen])
    terms = [(-1.0) ** (k + 1) / k * np.linalg.matrix_power(J, k) for k in range(1, n_terms + 1)]
    tails = np.cumsum(terms[::-1], axis=0)[::-1]
    expected = np.asarray([float(probe.variance(theory.moments(a), 1)) for a in tails])
    traces = np.trace(tails, axis1=1, axis2=2) ** 2
    assert not rejected(variances, expected)
    assert not rejected(squares, traces)
    c = share(probe, D, 4)
    if c < 0.2:
        assert rejected(variances * 4 * (1.0 - c) / 3, expected)
        assert rejected(squares + (c - 0.25) * variances, traces)


# --- the variance and the law, for every number of probes


@ALL
@pytest.mark.parametrize("n_traced", [0, 2])
def test_the_predicted_variance_is_that_of_the_closed_form(
    probe: ProbeVariance, n_traced: int
) -> None:
    """The twin thinks of every probe as independent of the others."""
    seen = closed_form(probe, n_traced)
    for m in (1, 2, 5, 7):
        roulette = seen.roulette(m, K)
        expected = float(roulette.variance(J, probe, m, n_traced))
        assert seen.variance(roulette, m) == pytest.approx(expected, rel=1e-6)
        alone = Pilot(seen.mean_squares, {m: seen.variances[1] / m}).variance(roulette, m)
        knows = m > 1 and str(probe) in ("hadamard", "orthogonal")
        assert (abs(alone - expected) > 0.05 * expected) == knows


@pytest.mark.parametrize("expansion", [Taylor(), Arnoldi()], ids=str)
@pytest.mark.parametrize("probe", [Rademacher(), Hadamard()], ids=str)
def test_one_pilot_predicts_what_draws_show(
    probe: ProbeVariance, expansion: Taylor | Arnoldi
) -> None:
    """16 points of an MLP, 256 probes each, 500 draws: to 15 %; the twin has twice the probes."""
    branch = mlp_branch(D, (16,), K, generator=generator(3)).double().requires_grad_(False)
    with torch.no_grad():
        for p in branch.parameters():
            p.mul_(4.0 if p.ndim == 2 else 1.0)
    branch.align()
    x = torch.randn(16, D, generator=generator(4), dtype=DTYPE)
    base = LogDetEstimator(probe, Fixed(4), expansion=expansion)
    seen = pilot(base, branch, x, 64, (1, 2, 4, 8), generator(5))
    for m in (1, 4):
        roulette = seen.roulette(m, branch.lipschitz)
        one = LogDetEstimator(probe, roulette, m, expansion=expansion)
        draws = one(branch, x.repeat(500, 1), generator(6)).value.view(500, 16)
        shown = float(draws.var(0).mean())
        assert seen.variance(roulette, m) == pytest.approx(shown, rel=0.15)
        assert seen.variance(roulette, 2 * m) < 0.7 * shown


def test_the_mean_of_a_law_is_its_sum() -> None:
    roulette = closed_form(Rademacher()).roulette(4, 0.95)
    assert mean_terms(roulette) == pytest.approx(roulette.survival(np.arange(1, 4000)).sum())


# --- tuned


@dataclass(frozen=True)
class Counting:
    """Taylor, which notes how many probes and terms its increments were asked for."""

    asked: list[tuple[int, int]]

    def increments(self, jacobian: object, v: Tensor, n_terms: int, n_traced: int = 0) -> Tensor:
        self.asked.append((len(v), n_terms))
        return Taylor().increments(jacobian, v, n_terms, n_traced)  # type: ignore[arg-type]

    expand = Taylor().expand


def test_one_pilot_a_branch_and_no_draw_besides() -> None:
    asked: list[tuple[int, int]] = []
    base = LogDetEstimator(Rademacher(), Fixed(4), expansion=Counting(asked))
    branches = [mlp_branch(4, (6,), k, generator=generator()) for k in (0.5, 0.9)]
    x = torch.zeros(3, 4)
    tuned([(g, x) for g in branches], base, generator=generator(), n_draws=2)
    assert asked == [(16, 64)] * 2


def test_no_other_number_of_probes_is_better_at_its_price() -> None:
    """Of one block: the closed form's variance times products, to 5 %; the worst is far off."""
    branch = LinearBranch(torch.from_numpy(J), K)
    x = torch.zeros(16, D, dtype=DTYPE)
    for probe in (Rademacher(), Hadamard()):
        base = LogDetEstimator(probe, Fixed(4))
        chosen = tuned([(branch, x)], base, generator=generator(7), n_draws=16)
        assert isinstance(chosen, PerBranch)

        def price(one: LogDetEstimator) -> float:
            assert isinstance(one.truncation, Roulette)
            variance = float(one.truncation.variance(J, one.probe, one.n_probes))
            return variance * (8.0 + one.n_probes * mean_terms(one.truncation))

        exactly = closed_form(probe)
        others = [
            price(LogDetEstimator(probe, exactly.roulette(m, K), m))
            for m in N_PROBES
            if m % D or str(probe) != "hadamard"  # where no variance is left, nothing is compared
        ]
        assert price(chosen.estimators[branch]) < 1.05 * min(others)
        assert max(others) > 1.3 * min(others)


# --- one thread


def test_threads_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError), one_torch_thread():
            raise KeyError
        assert torch.get_num_threads() == 2
        seen = []
        slogdet = torch.linalg.slogdet

        def noted(matrix: Tensor) -> object:
            seen.append(torch.get_num_threads())
            return slogdet(matrix)

        monkeypatch.setattr(torch.linalg, "slogdet", noted)
        matrix = jacobian(lambda z: 0.5 * z, torch.zeros(2, 3))
        assert dense_log_det(matrix).tolist() == pytest.approx([3 * np.log(1.5)] * 2)
        assert seen == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
