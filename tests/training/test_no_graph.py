"""An evaluation keeps no graph: it would cost memory and change no number."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from resflow_bench.data import Dataset
from resflow_bench.flows import ResidualFlow
from resflow_bench.lab import Cell, Value
from resflow_bench.logdet import Fixed, LogDetEstimator, Rademacher
from resflow_bench.models import build_flow
from resflow_bench.speed import timing
from resflow_bench.training import run as train
from suites.throughput import measure

AXES: dict[str, Value] = {
    **{"model": "init", "dim": 8, "lipschitz": 0.5, "dtype": "float32", "device": "cpu"},
    **{"batch_size": 4, "truncation": "fixed", "n_terms": 2, "probe": "rademacher", "n_probes": 1},
}
X = torch.randn(512, 4, generator=torch.Generator().manual_seed(0))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


EVALUATIONS: dict[str, Callable[[ResidualFlow], object]] = {
    "held-out likelihood": lambda flow: train._log_prob(flow, Dataset("x", X, X), generator()),
    "inverse": lambda flow: flow.inverse(X),
    "sample": lambda flow: flow.sample(512, generator()),
}


def excess(evaluate: Callable[[ResidualFlow], object]) -> float:
    """Peak bytes of a flow whose parameters ask for gradients, over those of one that is frozen."""
    estimator = LogDetEstimator(Rademacher(), Fixed(5))
    flow = ResidualFlow.mlp(4, (48, 48), 2, 0.9, estimator=estimator)
    frozen = copy.deepcopy(flow).requires_grad_(False)
    trains, still = (timing.peak_bytes(lambda f=f: evaluate(f), "cpu") for f in (flow, frozen))
    return trains / still


@pytest.mark.parametrize("name", EVALUATIONS)
def test_an_evaluation_of_a_flow_that_trains_holds_no_more_than_of_a_frozen_one(name) -> None:
    assert excess(EVALUATIONS[name]) < 1.05


def test_a_graph_is_seen() -> None:
    """What the test above rejects."""
    assert excess(lambda flow: flow.log_prob(X, generator())) > 2


def test_a_measured_flow_asks_for_no_gradients(tmp_path) -> None:
    flow = build_flow(Cell("throughput", AXES), tmp_path)
    assert not any(parameter.requires_grad for parameter in flow.parameters())


def test_a_timed_evaluation_keeps_no_graph(tmp_path, monkeypatch) -> None:
    build = build_flow
    monkeypatch.setattr(measure, "build_flow", lambda *args: build(*args).requires_grad_(True))
    for operation in ("log_prob", "sample"):
        call = measure.build_call(Cell("throughput", {**AXES, "operation": operation}), tmp_path)
        assert not call().requires_grad  # type: ignore[attr-defined]
