"""Validation curves: unbiased at every point, with errors that hold."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from resflow_bench.flows import ResidualFlow
from resflow_bench.logdet import (
    Determinant,
    Exact,
    Fixed,
    Geometric,
    Hadamard,
    LogDetEstimator,
    Rademacher,
    Roulette,
)
from resflow_bench.training import curve as module
from resflow_bench.training.curve import CurvePoint, ValidationCurve

DIM, N_TIMES, N_POINTS = 6, 8, 4
EXAMPLE = LogDetEstimator(Rademacher(), Roulette(Geometric(0.3), n_exact=2))
BATCH = LogDetEstimator(Hadamard(), Roulette(Geometric(0.3), 2, per="batch"), n_probes=2)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(n_copies: int = 1) -> Tensor:
    """The same points so many times, one copy after the other."""
    x = torch.randn(N_POINTS, DIM, generator=generator(2), dtype=torch.float64)
    return x.repeat(n_copies, 1)


def a_training(step: float = 0.01) -> tuple[ResidualFlow, Callable[[], None]]:
    """A flow, and what changes all its weights a little, in place."""
    noise = generator(1)
    flow = ResidualFlow.mlp(DIM, (16,), n_blocks=2, lipschitz=0.9, generator=noise).double()

    def change() -> None:
        with torch.no_grad():
            for parameter in flow.parameters():
                change = torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype)
                parameter.add_(step * change)
        flow.update()

    return flow, change


def errors(curve: ValidationCurve, n_copies: int, seed: int = 3) -> tuple[Tensor, list[CurvePoint]]:
    """Estimate - exact of each time, copy and point: (T, R, P); and the curve."""
    (flow, change), noise = a_training(), generator(seed)
    found, said = [], []
    for _ in range(N_TIMES):
        exact = flow.with_estimator(Exact()).log_prob(points()).detach()
        said.append(curve.update(flow, noise))
        found.append(said[-1].log_prob.view(n_copies, N_POINTS) - exact)
        change()
    return torch.stack(found), said


N_COPIES = 500
LIMIT = float(stats.norm.isf(1e-4 / (2 * N_TIMES)))
"""Of the largest of T z-scores, exceeded once in 10,000 tests."""


def z_scores(e: Tensor) -> Tensor:
    """Of the mean over points at each time, n = 500 copies: (T,)."""
    each = e.mean(2)
    return each.mean(1) / (each.std(1) / each.shape[1] ** 0.5)


def test_every_point_of_a_curve_is_unbiased_and_its_error_is_as_stated() -> None:
    """Through a whole flow in a loop that changes it in place, at z-scores of 500 copies."""
    curve = ValidationCurve(points(N_COPIES), EXAMPLE, n_draws=4, n_first=8)
    e, said = errors(curve, N_COPIES)
    assert z_scores(e).abs().max() < LIMIT
    stated = torch.stack([point.standard_error.view(N_COPIES, N_POINTS) for point in said])
    excess = e.square() - stated.square()  # of mean zero
    assert z_scores(excess).abs().max() < LIMIT
    found = e.square().mean((1, 2))  # of 2,000 errors at each time
    # Eight draws each time without the recursion would have the first point's error.
    assert found[-1] < 0.7 * found[0]


def test_yesterday_s_weights_are_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A twin that keeps the flow itself follows none of its changes, and is found out."""
    monkeypatch.setattr(module.copy, "deepcopy", lambda flow: flow)
    curve = ValidationCurve(points(N_COPIES), EXAMPLE, n_draws=4, n_first=8)
    e, _ = errors(curve, N_COPIES)
    assert z_scores(e).abs().max() > 2 * LIMIT


@pytest.mark.parametrize("estimator", [EXAMPLE, BATCH], ids=["per example", "per batch"])
def test_intervals_of_the_mean_cover(estimator: LogDetEstimator) -> None:
    """99 % of the intervals hold the exact mean: of 40 curves at eight times, 320 intervals.

    Those of one curve are dependent; that many misses or fewer have a probability of 0.999 even if
    each curve missed all times or none.
    """
    n_curves, missed = 40, 0
    for seed in range(n_curves):
        e, said = errors(ValidationCurve(points(), estimator, n_draws=4, n_first=8), 1, seed)
        for error, point in zip(e.mean((1, 2)), said, strict=True):
            missed += not point.mean.low <= point.mean.value - float(error) <= point.mean.high
    assert missed <= N_TIMES * stats.binom.isf(0.001, n_curves, 0.01)


def test_without_a_change_a_curve_averages_all_its_draws() -> None:
    flow, _ = a_training()
    curve = ValidationCurve(points(N_COPIES), EXAMPLE, n_draws=4, n_first=4)
    noise = generator(0)
    said = [curve.update(flow, noise).standard_error.square().mean() for _ in range(6)]
    ratios = np.asarray([float(said[0] / one) for one in said])
    np.testing.assert_allclose(ratios, np.arange(1, 7), rtol=0.1)  # n = 8,000 squares in the first


def test_an_exact_estimator_gives_the_exact_curve() -> None:
    flow, change = a_training()
    curve = ValidationCurve(points(), Determinant())
    for _ in range(3):
        point = curve.update(flow, generator(0))
        exact = flow.with_estimator(Determinant()).log_prob(points())
        torch.testing.assert_close(point.log_prob, exact.detach(), rtol=0, atol=1e-12)
        assert point.mean.standard_error < 1e-12
        change()


def test_a_curve_leaves_the_flow_as_it_was() -> None:
    flow, _ = a_training()
    before = copy.deepcopy(flow.state_dict())
    estimator = flow.estimator
    ValidationCurve(points(), LogDetEstimator(Rademacher(), Fixed(3))).update(flow, generator(0))
    assert flow.estimator is estimator
    assert all(torch.equal(before[name], tensor) for name, tensor in flow.state_dict().items())


@pytest.mark.parametrize("n", [2, 5])
def test_too_few_draws_for_an_error_bar_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match="even n_draws of at least 4; got"):
        ValidationCurve(points(), EXAMPLE, n_draws=n)
    with pytest.raises(ValueError, match="even n_first of at least 4; got"):
        ValidationCurve(points(), EXAMPLE, n_first=n)
