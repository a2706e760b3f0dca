"""The suite `path_gradient`: its gradients by finite differences, its claims at small sizes."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import suites
from resflow_bench.flows import ResidualFlow
from resflow_bench.lab import Cell, Context, Observation, Skip
from resflow_bench.logdet import Determinant, Fixed, Gaussian, LogDetEstimator
from resflow_bench.models import build_flow
from resflow_bench.models.catalogue import normal_points
from suites.path_gradient.measure import (
    EXACT,
    inverted,
    mean_of,
    mean_variance,
    reverse_kl_gradient,
)

AXES = {"model": "steep", "dim": 3, "lipschitz": 0.8, "dtype": "float64", "device": "cpu"}
AXES |= {"probe": "rademacher", "n_probes": 1, "tolerance": 1e-12}
FIXED = {"truncation": "fixed", "n_terms": 1}
ROULETTE = {"truncation": "roulette", "roulette": "geometric(0.2)", "n_exact": 2}


def observe(results: Path, **axes: object) -> dict[str, Observation]:
    cell = Cell("path_gradient", {**AXES, **axes})  # type: ignore[arg-type]
    context = Context(0, {"n_points": 3, "n_draws": 40}, results)
    return {o.metric: o for o in suites.load("path_gradient").measure(cell, context)}


@pytest.fixture(scope="module")
def flow() -> ResidualFlow:
    return build_flow(Cell("path_gradient", AXES), Path("unused")).requires_grad_(True)


@pytest.fixture(scope="module")
def z() -> Tensor:
    return normal_points(3, 3).double()


def moved(flow: ResidualFlow, direction: Tensor, by: float) -> ResidualFlow:
    """A copy whose parameters went that far in a direction."""
    twin = copy.deepcopy(flow)
    with torch.no_grad():
        start = 0
        for p in twin.parameters():
            p.add_(direction[start : start + p.numel()].view_as(p), alpha=by)
            start += p.numel()
    return twin


@pytest.mark.parametrize("score", [True, False])
def test_the_exact_gradient_is_the_derivative(flow: ResidualFlow, z: Tensor, score: bool) -> None:
    """Central differences along a random direction; without the score log p has fixed parameters.

    The two differ here by far more than the tolerance.
    """
    x = inverted(flow, z, EXACT)
    gradients = [
        reverse_kl_gradient(flow, z, x, Determinant(), score=s) for s in (score, not score)
    ]
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(len(gradients[0]), generator=generator, dtype=torch.float64)
    direction /= direction.norm()

    def loss(by: float) -> float:
        there = moved(flow, direction, by)
        density = (there if score else flow).with_estimator(Determinant())
        with torch.no_grad():
            x = inverted(there, z, EXACT)
            return float((density.log_prob(x) + 0.5 * x.square().sum(-1)).mean())

    # So small a step leaves the norms within the promise but for its slack.
    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert float(gradients[0] @ direction) == pytest.approx(slope, rel=1e-5)
    assert abs(float(gradients[1] @ direction) - slope) > 1e-3 * abs(slope)


def test_a_mean_without_noise_is_that_of_many_draws(flow: ResidualFlow, z: Tensor) -> None:
    x = inverted(flow, z, EXACT)
    estimator = LogDetEstimator(Gaussian(), Fixed(2))
    mean = reverse_kl_gradient(flow, z, x, mean_of(estimator, 3))
    again = reverse_kl_gradient(flow, z, x, mean_of(estimator, 3), torch.Generator().manual_seed(5))
    assert torch.allclose(mean, again, rtol=1e-10, atol=1e-10)
    draws = LogDetEstimator(Gaussian(), Fixed(2), 2000)
    many = reverse_kl_gradient(flow, z, x, draws, torch.Generator().manual_seed(0))
    exact = reverse_kl_gradient(flow, z, x, Determinant())
    assert float((many - mean).norm()) < 0.3 * float((mean - exact).norm())


def test_the_measured_bias_is_the_expected_one(tmp_path) -> None:
    """Of one term it is not zero; a loose inverse has one too; a roulette has none."""
    for axes in (FIXED, {**ROULETTE, "tolerance": 0.1}):
        seen = observe(tmp_path, **axes)
        bias, expected = seen["gradient_bias"], seen["gradient_bias_expected"].value
        assert bias.ci_low <= expected <= bias.ci_high
        assert bias.ci_low > 0.0, "zero would do"
    seen = observe(tmp_path, **ROULETTE)
    assert abs(seen["gradient_bias_expected"].value) < 1e-9
    assert seen["gradient_bias"].ci_low <= 0.0 <= seen["gradient_bias"].ci_high
    assert seen["gradient_variance"].ci_low > 0.0


def test_no_interval_without_moments(tmp_path) -> None:
    seen = observe(tmp_path, **{**ROULETTE, "roulette": "poisson(2)"})
    for metric in ("gradient_bias", "gradient_variance"):
        assert seen[metric].ci_high == math.inf
        assert "no interval" in seen[metric].message


def test_the_path_gradient_has_no_noise_at_the_optimum(flow: ResidualFlow, z: Tensor) -> None:
    """The flow with g = 0 and identities between: p = q = N(0, I)."""
    still = copy.deepcopy(flow)
    with torch.no_grad():
        for name, p in still.named_parameters():
            p.mul_(0.0 if "weight" in name or "shift" in name or "scale" in name else 1.0)
            if name.endswith("bias"):
                p.zero_()
    x = inverted(still, z, EXACT)
    assert torch.allclose(x, z)
    assert mean_variance(still, z, x, score=False) < 1e-20
    assert mean_variance(still, z, x, score=True) > 1e-3


def test_a_model_without_parameters_is_skipped(tmp_path) -> None:
    with pytest.raises(Skip, match="no parameter"):
        observe(tmp_path, **FIXED, model="minus-identity")
