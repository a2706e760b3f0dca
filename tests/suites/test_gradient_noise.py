"""The gradients of `efficiency`: their variance and bias again, from dense Jacobians."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from made_up import make_frames
from torch import Tensor

from resflow_bench.analysis.tables import wide
from resflow_bench.flows import ResidualFlow
from resflow_bench.lab import Cell, Context, Observation, Value
from resflow_bench.logdet import Fixed, LogDetEstimator, Rademacher
from resflow_bench.models import build_points, build_problem
from suites.efficiency import BASELINE, DETERMINANT
from suites.efficiency import gradients as lab
from suites.efficiency.claims import least_noise
from suites.efficiency.comparison import compared, of_gradient, reference
from suites.efficiency.gradients import exact_gradient
from suites.efficiency.measure import measure_efficiency
from suites.efficiency.sampler import MOST_PILOTS, N_FIRST, branch_parameters

D, B = 3, 4
WHERE: Mapping[str, Value] = {
    **{"model": "steep", "dim": D, "lipschitz": 0.6, "dtype": "float64"},
    **{"device": "cpu", "batch_size": B},
}
EFFORT = {"n_points": 2, "n_calls": 8, "n_copies": 2, "n_pairs": 8, "n_gradients": 256}
ONE_TERM: Mapping[str, Value] = {
    **{"implementation": "ours", "estimator": "hutchinson", "truncation": "fixed", "n_terms": 1},
    **{"probe": "gaussian", "n_probes": 1, "n_traced": 0, "expansion": "taylor"},
}


def observe(candidate: Mapping[str, Value], **other: Value) -> dict[str, Observation]:
    cell = Cell("efficiency", {**WHERE, **candidate, **other})
    found = measure_efficiency(cell, Context(0, EFFORT, Path("results")))
    return {observation.metric: observation for observation in found}


def flow_and_batch() -> tuple[ResidualFlow, Tensor]:
    """Those of the cells, by the catalogue alone."""
    cell, first = Cell("efficiency", WHERE), N_FIRST + MOST_PILOTS
    flow = build_problem(cell, Path("results"), 2).flow
    return flow, build_points(cell, first + B, Path("results"))[first:]


def dense_jacobians(flow: ResidualFlow, x: Tensor) -> list[Tensor]:
    """J of each block at each example, (B, d, d), by autograd, with a graph to the parameters."""
    found = []
    for layer, inputs in flow.inputs(x):
        if hasattr(layer, "branch"):
            each = [
                torch.autograd.functional.jacobian(layer.branch, one[None], create_graph=True)
                for one in inputs
            ]
            found.append(torch.stack([j[0, :, 0, :] for j in each]))
    return found


@pytest.fixture(scope="module")
def moments() -> tuple[float, float]:
    """(E |G - E G|^2, <E G - G*, G*>) over |G*|^2, of the gradient of mean v^T J v.

    Of a Gaussian v, Var(v^T M v) = 2 ||sym M||^2 with M = dJ/dtheta, and E v^T M v = tr M; G* is
    the gradient of ln|det(I + J)|.
    """
    flow, x = flow_and_batch()
    parameters = branch_parameters(flow)
    with lab.requiring_grad(parameters):
        jacobians = dense_jacobians(flow, x)

        def gradient(value: Tensor) -> Tensor:
            parts = torch.autograd.grad(
                value, parameters, retain_graph=True, materialize_grads=True
            )
            return torch.cat([part.flatten() for part in parts])

        eye = torch.eye(D, dtype=torch.float64)
        exact = gradient(sum(torch.logdet(eye + j).mean() for j in jacobians))
        mean = gradient(sum(j.diagonal(dim1=1, dim2=2).sum(1).mean() for j in jacobians))
        spread = torch.zeros(())
        for j in jacobians:
            for matrix in (0.5 * (j + j.mT) / B).unbind():
                squares = [gradient(entry).square().sum() for entry in matrix.flatten()]
                spread = spread + 2 * sum(squares)
    size = exact.square().sum()
    return float(spread / size), float((mean - exact) @ exact / size)


def test_variance_and_bias_of_a_gradient(moments) -> None:
    variance, bias = moments
    o = observe(ONE_TERM)
    found = o["gradient_variance"]
    assert found.ci_low < variance < found.ci_high
    assert not found.ci_low < 2 * variance < found.ci_high  # a twin: two examples share a probe
    assert o["gradient_bias"].ci_low < bias < o["gradient_bias"].ci_high
    assert not o["gradient_bias"].ci_low < 0 < o["gradient_bias"].ci_high
    half = observe(ONE_TERM, n_probes=2)["gradient_variance"]
    assert half.ci_low < variance / 2 < half.ci_high
    for end in ("value", "ci_low", "ci_high"):
        both = getattr(found, end) * getattr(o["gradient_seconds"], end)
        assert getattr(o["gradient_variance_time"], end) == pytest.approx(both, rel=1e-12)
    assert o["gradient_relative_time"].ci_low < o["gradient_relative_time"].value


def test_a_roulette_and_a_determinant_have_no_bias() -> None:
    o = observe({**BASELINE, "per": "example", "roulette": "geometric(0.2)"})
    assert o["gradient_bias"].ci_low < 0 < o["gradient_bias"].ci_high
    exact = observe(DETERMINANT)
    assert exact["gradient_variance"].value == 0.0
    assert abs(exact["gradient_bias"].value) < 1e-12
    assert exact["gradient_seconds"].value > 0


def test_without_eight_moments_no_upper_limit_is_claimed() -> None:
    o = observe({**BASELINE, "roulette": "geometric(0.9)"})
    assert o["variance_is_finite"].value == 0.0
    assert o["gradient_variance"].ci_high == math.inf
    assert (o["gradient_bias"].ci_low, o["gradient_bias"].ci_high) == (-math.inf, math.inf)
    assert "at least" in o["gradient_variance_time"].message


def test_where_there_is_no_gradient_there_are_no_rows(monkeypatch) -> None:
    deflated = {**BASELINE, "estimator": "xtrace", "probe": "sphere", "n_probes": 2, "n_traced": 1}
    for found in (observe(deflated), observe(ONE_TERM, model="minus-identity")):
        assert "variance" in found
        assert not any(metric.startswith("gradient") for metric in found)
    monkeypatch.setattr(lab, "MOST", 1000)
    assert "gradient_variance" not in observe(ONE_TERM)


def test_parameters_require_a_gradient_only_meanwhile() -> None:
    """The flow is kept for the next cells."""
    observe(ONE_TERM)
    flow, x = flow_and_batch()
    assert not any(p.requires_grad for p in flow.parameters())
    assert exact_gradient(flow, x).shape == (sum(p.numel() for p in branch_parameters(flow)),)
    plain = flow.with_estimator(LogDetEstimator(Rademacher(), Fixed(2)))
    assert not plain.forward_and_log_det(x)[1].requires_grad


@pytest.mark.skipif(
    find_spec("normflows") is None,
    reason="normflows is not installed; .venv/bin/pip install -e '.[peers]' brings it",
)
def test_of_their_memory_saving_mode_the_gradient_is_measured(moments) -> None:
    """Their value is another quantity there; their gradient is as noisy as ours of that law."""
    theirs = {"implementation": "normflows", "mode": "memory-saving", "n_probes": 1}
    o = observe(theirs, lipschitz=0.3)
    assert "variance" not in o
    assert o["gradient_variance"].message.startswith("normflows")
    law = {**BASELINE, "roulette": "geometric(0.5)", "n_exact": 4}
    ours = observe(law, lipschitz=0.3)["gradient_variance"]
    assert ours.ci_low < o["gradient_variance"].value < ours.ci_high
    assert o["gradient_bias"].ci_low < 0 < o["gradient_bias"].ci_high


def test_the_least_noise_is_said() -> None:
    """0.005 x 2 against 50 x 1.5: 7,500; the determinant takes 3.2 of 1.5 times."""
    cells = wide(make_frames()["efficiency"]).query("model == 'trained'")
    said = least_noise(cells)
    assert "by the candidate “tuned, Hadamard”" in said
    assert "normflows, memory-saving takes 7,500 [" in said
    assert "takes 2.1 times the time of such a draw" in said
    for some, mode in ((cells, "roulette"), (of_gradient(cells), "memory-saving")):
        usual = reference(compared(some))
        assert usual is not None
        assert usual["mode"] == mode
    assert least_noise(cells.assign(gradient_variance=math.nan)) == ""
