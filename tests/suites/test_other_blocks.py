"""`bias` and `variance` on monotone and implicit flows: truth, closed forms, bounds, verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import suites
from resflow_bench.advise.budget import Budget
from resflow_bench.advise.inspection import inspect
from resflow_bench.lab import Cell, Context, Observation
from resflow_bench.logdet import Fixed
from resflow_bench.models import build_problem
from resflow_bench.theory import INVERSE, MONOTONE, RESIDUAL

D = 3
EFFORT = {"n_points": 2, "max_draws": 5000, "half_width": 0.02}
WHERE = {"dim": D, "dtype": "float64", "device": "cpu"}
MODELS = pytest.mark.parametrize("model", ["monotone-steep", "implicit-steep"])
TRUNCATIONS = pytest.mark.parametrize(
    "truncation",
    [
        {"truncation": "fixed", "n_terms": 2, "lipschitz": 0.9},
        {"truncation": "fixed", "n_terms": 5, "lipschitz": 0.5},
        {"truncation": "roulette", "roulette": "geometric(0.3)", "n_exact": 3, "lipschitz": 0.5},
    ],
    ids=["2-terms", "5-terms", "roulette"],
)


def observe(suite: str, model: str, **axes: Any) -> dict[str, Observation]:
    cell = Cell(suite, {**WHERE, "model": model, "probe": "gaussian", "n_probes": 1, **axes})
    context = Context(seed=0, effort=EFFORT, results=Path("results"))
    return {o.metric: o for o in suites.load(suite).measure(cell, context)}


def within(found: Observation, value: float) -> bool:
    return found.ci_low <= value <= found.ci_high


@MODELS
def test_the_exact_log_det_is_that_of_autograd(model: str) -> None:
    """The whole flow's Jacobian, apart from the log-dets of ActNorm and of each block."""
    cell = Cell("bias", {**WHERE, "model": model, "lipschitz": 0.9})
    problem = build_problem(cell, Path("results"), 4)
    flow = problem.flow
    dense = [
        torch.autograd.functional.jacobian(lambda u: flow(u[None])[0], one) for one in problem.x
    ]
    truth = torch.linalg.slogdet(torch.stack(dense)).logabsdet
    np.testing.assert_allclose(problem.log_det, truth, rtol=1e-10, atol=1e-10)
    expected = [MONOTONE] * 8 if model == "monotone-steep" else [RESIDUAL, INVERSE] * 4
    assert problem.coefficients == tuple(expected)
    traces = sum(np.trace(m, axis1=-2, axis2=-1) for m in problem.logarithms)
    others = [f for f, _ in flow.inputs(problem.x) if type(f).__name__ == "ActNorm"]
    rest = sum(f.forward_and_log_det(problem.x)[1].numpy() for f in others)
    np.testing.assert_allclose(traces + rest, truth, rtol=1e-9, atol=1e-9)
    assert problem.spectral_radius > 0.3


@MODELS
@TRUNCATIONS
def test_bias_is_the_expected_one_and_within_its_bound(model: str, truncation: Any) -> None:
    found = observe("bias", model, **truncation)
    expected = found["bias_expected"].value
    assert within(found["bias_paired"], expected)
    assert within(found["bias"], expected)
    assert abs(expected) <= found["bias_bound"].value
    if truncation["truncation"] == "fixed":
        assert not within(found["bias_paired"], 0.0), "it is seen"
        assert not within(found["bias_paired"], -expected), "and its sign"
    else:
        assert expected == 0.0


@MODELS
@TRUNCATIONS
def test_variance_is_the_closed_form_and_within_its_bounds(model: str, truncation: Any) -> None:
    found = observe("variance", model, **truncation)
    expected = found["variance_expected"].value
    assert within(found["variance"], expected)
    assert not within(found["variance"], 0.8 * expected)
    assert expected <= found["variance_bound"].value <= found["variance_bound_lipschitz"].value
    printed = model == "implicit-steep" and truncation["truncation"] == "fixed"
    assert ("variance_bound_printed" in found) == printed
    assert found["norm_realised"].value < truncation["lipschitz"]


@MODELS
def test_advise_knows_the_bias_of_their_series(model: str) -> None:
    """The largest over the points, against the closed form of each block."""
    cell = Cell("bias", {**WHERE, "model": model, "lipschitz": 0.9})
    problem = build_problem(cell, Path("results"), 2)
    found = inspect(problem.flow, problem.x, 0.1, Budget(10.0, lambda progress: None))
    biases = found.truncation_biases(6)
    for n in range(1, 7):
        expected = np.abs(problem.over_blocks(Fixed(n).bias)).max()
        assert biases[n - 1] == pytest.approx(expected, rel=1e-9)
