"""The series of a monotone and of an inverse block, through every part of the estimator.

The branch is steep, of norm 0.8 and with odd and even traces that differ; its truth is autograd's
dense Jacobian in float64.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from resflow_bench.architectures import steep_flow
from resflow_bench.flows import MonotoneBlock
from resflow_bench.layers import Branch
from resflow_bench.logdet import (
    LAWS,
    PROBES,
    Arnoldi,
    Fixed,
    Geometric,
    LogDetEstimator,
    Neumann,
    Rademacher,
    Roulette,
    Series,
    Taylor,
    exact_log_det,
    jacobian,
    law_named,
)
from resflow_bench.theory import INVERSE, MONOTONE, Coefficients

DIM, K = 5, 0.8
BLOCKS = pytest.mark.parametrize("c", [INVERSE, MONOTONE], ids=["inverse", "monotone"])
LAW_NAMES = ["geometric(0.3)", "poisson(4)"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def branch() -> Branch:
    found = steep_flow(DIM, K, seed=1).double().blocks[0].branch
    assert isinstance(found, Branch)
    return found


def points(n: int = 1) -> Tensor:
    return torch.randn(n, DIM, generator=generator(2), dtype=torch.float64)


def truth(g: Any, x: Tensor, c: Coefficients) -> Tensor:
    minus = exact_log_det(lambda u: -g(u), x)
    return c.plus * exact_log_det(g, x) + c.minus * minus


def draws(estimator: LogDetEstimator, c: Coefficients, n: int, seed: int = 0) -> Tensor:
    """n estimates at one point, (n,)."""
    with torch.no_grad():
        return estimator(branch(), points().expand(n, -1), generator(seed), c).value


def z_score(values: Tensor, mean: float) -> float:
    return float((values.mean() - mean) / (values.std() / math.sqrt(len(values))))


def test_the_laws_and_probes_tested_are_all_there_are() -> None:
    assert {str(law_named(name)).partition("(")[0] for name in LAW_NAMES} == {*LAWS}


@BLOCKS
@pytest.mark.parametrize("probe", PROBES.values(), ids=str)
def test_a_truncated_value_has_the_mean_of_its_terms(probe: Any, c: Coefficients) -> None:
    """With every probe; |z| < 4 of 20,000 draws, which reject the residual block's series."""
    g = branch()
    j = jacobian(g, points())[0].detach()
    mean = sum(float(c(k) * torch.linalg.matrix_power(j, k).trace()) for k in range(1, 5))
    values = draws(LogDetEstimator(probe, Fixed(4), n_probes=2), c, 20_000)
    assert abs(z_score(values, mean)) < 4
    plain = sum((-1) ** (k + 1) / k * torch.linalg.matrix_power(j, k).trace() for k in range(1, 5))
    assert abs(z_score(values, float(plain))) > 8


@BLOCKS
@pytest.mark.parametrize("n_traced", [0, 1, 2])
@pytest.mark.parametrize("law", LAW_NAMES)
def test_a_roulette_is_unbiased(law: str, n_traced: int, c: Coefficients) -> None:
    """With leading traces exact or not; the variance falls by the first trace's share."""
    roulette = Roulette(law_named(law), n_exact=4)
    estimator = LogDetEstimator(Rademacher(), roulette, n_traced=n_traced)
    values = draws(estimator, c, 20_000, seed=4)
    exact = float(truth(branch(), points(), c).detach())
    assert abs(z_score(values, exact)) < 4
    assert float(values.std()) / math.sqrt(20_000) < 0.03 * abs(exact)


@BLOCKS
def test_products_are_those_of_one_residual_block(c: Coefficients) -> None:
    estimator = LogDetEstimator(Rademacher(), Fixed(7), n_probes=3)
    with torch.no_grad():
        assert estimator(branch(), points(), generator(), c).n_products == 21
        assert estimator(branch(), points(), generator()).n_products == 21


@pytest.mark.parametrize("estimator", [
    LogDetEstimator(Rademacher(), Fixed(6), n_probes=2),
    LogDetEstimator(Rademacher(), Roulette(Geometric(0.3), 2)),
    LogDetEstimator(Rademacher(), Roulette(Geometric(0.3), 2, "stratified"), gradient=Series()),
    LogDetEstimator(Rademacher(), Fixed(6), expansion=Taylor(torch.float32)),
], ids=["fixed", "roulette", "series", "lower tail"])  # fmt: skip
def test_each_draw_is_the_difference_of_the_two_log_dets_from_its_draws(
    estimator: LogDetEstimator,
) -> None:
    """The value of -g minus that of g, with the same random numbers; to the tail's rounding."""
    g, x = branch(), points(6)
    found = estimator(g, x, generator(), MONOTONE).value
    other = estimator(MonotoneBlock(g).minus.g, x, generator()).value
    rounding = 1e-5 if estimator.expansion == Taylor(torch.float32) else 1e-12
    expected = other - estimator(g, x, generator()).value
    torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding)


@BLOCKS
def test_exact_traces_have_the_coefficients(c: Coefficients) -> None:
    """Without a probed term the estimate is c_1 tr J + c_2 tr J^2 to rounding."""
    g, x = branch(), points(4)
    j = jacobian(g, x)
    expected = sum(c(k) * torch.linalg.matrix_power(j, k).diagonal(0, 1, 2).sum(1) for k in (1, 2))
    found = LogDetEstimator(Rademacher(), Fixed(2), n_traced=2)(g, x, generator(), c).value
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@BLOCKS
@pytest.mark.parametrize("n_traced", [0, 1])
@pytest.mark.parametrize("gradient", [Neumann(), Series()], ids=str)
def test_gradients_are_unbiased(gradient: Any, n_traced: int, c: Coefficients) -> None:
    """In x and in every parameter, along one direction each; unequal weights of the examples."""
    g, x = branch(), points()
    n, copies = 4000, 10
    roulette = Roulette(Geometric(0.25), n_exact=3)
    estimator = LogDetEstimator(Rademacher(), roulette, gradient=gradient, n_traced=n_traced)
    inputs = [x.requires_grad_(), *list(g.parameters())[:-1]]  # not the last bias
    ways = [torch.randn(t.shape, generator=generator(7), dtype=t.dtype) for t in inputs]

    def slopes(value: Tensor) -> Tensor:
        found = torch.autograd.grad(value, inputs)
        return torch.stack([(a * way).sum() for a, way in zip(found, ways, strict=True)])

    exact = slopes(truth(g, x, c).sum())
    weights = torch.linspace(0.5, 1.5, n, dtype=torch.float64)
    means = []
    for seed in range(copies):
        value = estimator(g, x.expand(n, -1), generator(seed), c).value
        means.append(slopes((weights * value).sum() / weights.sum()))
    stacked = torch.stack(means)
    error = stacked.std(0) / math.sqrt(copies)
    z = (stacked.mean(0) - exact) / error
    assert float(z.abs().max()) < 6, "of Student's t with nine degrees of freedom"
    assert float((exact.abs() / error).max()) > 30


def test_another_expansion_is_refused_in_one_line() -> None:
    estimator = LogDetEstimator(Rademacher(), Fixed(4), expansion=Arnoldi())
    with pytest.raises(ValueError, match="a series in both J and -J is Taylor's; got arnoldi"):
        estimator(branch(), points(), generator(), MONOTONE)
    value = estimator(branch(), points(), generator(), INVERSE).value
    torch.testing.assert_close(value, -estimator(branch(), points(), generator()).value)
