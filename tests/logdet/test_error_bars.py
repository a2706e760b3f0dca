"""The standard error of one call: where there is one, that it holds, and where it is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import Tensor

from resflow_bench.layers import mlp_branch
from resflow_bench.logdet import (
    Arnoldi,
    Averaged,
    Estimator,
    Fixed,
    Gaussian,
    Geometric,
    Hadamard,
    LogDetEstimator,
    Orthogonal,
    Rademacher,
    Roulette,
    Series,
    Sphere,
    Taylor,
    exact_log_det,
)

N_COPIES = 4000
ROULETTE = Roulette(Geometric(0.3), n_exact=2)
PROBES = LogDetEstimator(Rademacher(), Fixed(40), n_probes=8)


def branch() -> torch.nn.Module:
    return mlp_branch(5, (12,), 0.8, generator=generator(1)).double().requires_grad_(False)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(n_copies: int) -> Tensor:
    return torch.randn(1, 5, generator=generator(2), dtype=torch.float64).repeat(n_copies, 1)


WITH_ONE = {
    "rademacher": PROBES,
    "gaussian": replace(PROBES, probe=Gaussian()),
    "sphere": replace(PROBES, probe=Sphere()),
    "one trace": replace(PROBES, probe=Gaussian(), n_traced=1),
    "two probes": replace(PROBES, probe=Gaussian(), n_probes=2),
    "averaged hadamard": Averaged(replace(PROBES, probe=Hadamard(), n_probes=2), n_draws=8),
    "averaged roulette": Averaged(replace(PROBES, truncation=ROULETTE, n_probes=2), n_draws=8),
}


@pytest.mark.parametrize("estimator", WITH_ONE.values(), ids=WITH_ONE)
def test_a_standard_error_is_that_of_the_value(estimator: Estimator) -> None:
    """E[standard_error^2] = Var(value): the difference to (value - mean)^2 has mean zero.

    z-score of 4,000 independent examples, exceeded once in 10,000 tests. Half the error, the twin,
    is told apart.
    """
    found = estimator(branch(), points(N_COPIES), generator())
    assert found.standard_error is not None
    squares = (found.value - found.value.mean()).square()
    for factor, holds in ((1.0, True), (0.5, False)):
        excess = squares - (factor * found.standard_error).square()
        z = float(excess.mean() / (excess.std() / N_COPIES**0.5))
        assert (abs(z) < float(stats.norm.isf(0.5e-4))) is holds, z


@pytest.mark.parametrize("name", ["rademacher", "gaussian", "averaged roulette"])
def test_intervals_of_one_call_cover(name: str) -> None:
    """95 % intervals of Student's t with 7 degrees of freedom, 4,000 of them: 93.5 % to 96.5 %.

    Binomial noise is 0.9 % at 99.9 %; the rest is for values that are not normal.
    """
    found = WITH_ONE[name](branch(), points(N_COPIES), generator(5))
    assert found.standard_error is not None
    error = (found.value - exact_log_det(branch(), points(1))).abs()
    covered = (error <= stats.t.isf(0.025, 7) * found.standard_error).double().mean()
    assert 0.935 < float(covered) < 0.965


WITHOUT = {
    "one probe": replace(PROBES, n_probes=1),
    "orthogonal": replace(PROBES, probe=Orthogonal()),
    "hadamard": replace(PROBES, probe=Hadamard()),
    "roulette": replace(PROBES, truncation=ROULETTE),
    "one N for the batch": replace(PROBES, truncation=replace(ROULETTE, per="batch")),
    "arnoldi": replace(PROBES, expansion=Arnoldi()),
    "one draw": Averaged(PROBES, n_draws=1),
}


@pytest.mark.parametrize("estimator", WITHOUT.values(), ids=WITHOUT)
def test_no_error_is_stated_where_the_probes_do_not_tell_it(estimator: Estimator) -> None:
    assert estimator(branch(), points(3), generator()).standard_error is None


def test_the_spread_of_hadamard_probes_would_overstate_their_error() -> None:
    """The reason of the refusal: D probes of D have no error at all, and a spread."""
    estimator = replace(PROBES, probe=Hadamard(), n_probes=8)  # D = 8 for d = 5
    found = estimator(branch(), points(100), generator())
    assert float(found.value.std()) < 1e-12
    alone = replace(estimator, n_probes=1)(branch(), points(100), generator())
    assert float(alone.value.std()) > 1e-3


@pytest.mark.parametrize("estimator", [PROBES, replace(PROBES, gradient=Series())])
def test_a_gradient_changes_no_error_and_does_not_reach_it(estimator: LogDetEstimator) -> None:
    x = points(3)
    still = estimator(branch(), x, generator())
    moving = estimator(branch(), x.requires_grad_(), generator())
    assert moving.value.requires_grad
    assert moving.standard_error is not None
    assert not moving.standard_error.requires_grad
    assert still.standard_error is not None
    torch.testing.assert_close(moving.standard_error, still.standard_error, rtol=1e-12, atol=0)


def test_the_value_is_the_mean_of_the_forms() -> None:
    x = points(2)
    terms, v = Fixed(5).draw(2, x, None), Rademacher().sample(3, x, generator())
    jacobian = branch().linearise(x)[1]
    found = Taylor().expand(jacobian, v, terms, 0, adjoint=False)
    assert found.forms is not None
    each = [Taylor().expand(jacobian, one[None], terms, 0, adjoint=False).value for one in v]
    torch.testing.assert_close(found.forms, torch.stack(each), rtol=1e-12, atol=0)
