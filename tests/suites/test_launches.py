"""The suite `launches` counts the call that its cell names, and names the lines that wait."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_up import rows

import suites
from resflow_bench.analysis.tables import wide
from resflow_bench.flows import ResidualFlow
from resflow_bench.lab import Cell, Context, Skip
from resflow_bench.logdet import Fixed, LogDetEstimator, Rademacher
from resflow_bench.speed.standin import standin, unsupported
from suites.launches import FIXED, measure
from suites.launches.figures import calls

pytestmark = pytest.mark.skipif(bool(unsupported()), reason=unsupported() or "-")

OURS = {"architecture": "mlp", "lipschitz": 0.9, "batch_size": 4, "implementation": "ours"}


def observe(**axes) -> dict:
    cell = Cell("launches", {**OURS, **axes})
    observations = suites.load("launches").measure(cell, Context(0, {}, Path("unused")))
    return {o.metric: o for o in observations}


def test_counts_are_those_of_the_call_itself() -> None:
    """Of a flow of other widths: a count depends on the shape of the code, not of the numbers."""
    found = observe(operation="log_prob", **FIXED)
    estimator = LogDetEstimator(Rademacher(), Fixed(10), n_probes=2)
    flow = ResidualFlow.mlp(16, (32, 32), 8, 0.9, estimator=estimator)
    with standin():
        flow, x = flow.to("sim"), torch.rand(4, 16).to("sim")
        with standin() as counts, torch.no_grad():
            flow.log_prob(x)
    assert found["n_launches"].value == counts.n_launches > 0
    assert found["n_waits"].value == counts.n_waits == 0
    assert found["n_launches"].ci_low == found["n_launches"].ci_high == counts.n_launches


def test_a_row_names_the_lines_that_wait(monkeypatch) -> None:
    def waiting(flow: ResidualFlow) -> None:
        for parameter in list(flow.parameters())[:5]:
            parameter.sum().item()

    monkeypatch.setattr(ResidualFlow, "update", waiting)
    waits = observe(operation="update")["n_waits"]
    assert waits.value == 5
    assert waits.message.startswith("5 in test_launches.py:")


def test_the_figure_is_of_the_architecture_that_others_have_too() -> None:
    call = {"lipschitz": 0.9, "operation": "log_prob"}
    cells = [("conv", "ours"), ("conv", "ours"), ("mlp", "ours"), ("mlp", "normflows")]
    frame = rows(
        "launches",
        (
            (
                call | {"architecture": name, "implementation": by, "batch_size": size},
                {"n_launches": 9.0, "n_waits": 0.0},
            )
            for size, (name, by) in enumerate(cells, 1)
        ),
    )
    figure = calls(wide(frame), 2)
    assert {line.get_label() for line in figure.axes[0].get_lines()} == {"ours", "normflows"}


def test_a_call_that_an_implementation_lacks_is_skipped(monkeypatch) -> None:
    pytest.importorskip("torchflows")
    with pytest.raises(Skip, match=r"torchflows .* has no update of its own"):
        observe(implementation="torchflows", mode="evaluation", n_probes=1, operation="update")
    with pytest.raises(Skip, match="set `mode`"):
        observe(implementation="torchflows", operation="log_prob", **FIXED)
    monkeypatch.setattr(measure, "unsupported", lambda: "no stand-in here")
    with pytest.raises(Skip, match="no stand-in here"):
        observe(operation="update")
