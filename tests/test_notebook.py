"""Suites from Python: the rows of the command, models that are objects, figures, threads."""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import resflow_bench
from resflow_bench.cli import main
from resflow_bench.flows import ResidualFlow
from resflow_bench.lab.progress import Progress
from resflow_bench.lab.store import Store

NUMBERS = ["cell", "metric", "value", "ci_low", "ci_high", "n"]


class Shrinking(nn.Module):
    """g(x) = tanh(a x)."""

    def __init__(self, dim: int, lipschitz: float = 0.5) -> None:
        super().__init__()
        self.weight = nn.Parameter(lipschitz * torch.eye(dim))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight)


def test_the_rows_are_those_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Progress] = []
    rows = resflow_bench.measure(
        "bias", preset="smoke", model="init", n_terms=(2, 3), seed=5, listen=heard.append
    )
    assert heard[-1].n_done == heard[-1].n_total == 3
    words = "run bias --preset smoke --seed 5 --jobs 1 --set model=init n_terms=2,3 --results"
    monkeypatch.setattr(sys, "argv", ["resflow-bench", *words.split(), str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    expected = Store(tmp_path).runs()[-1].frame("bias")
    pd.testing.assert_frame_equal(rows[NUMBERS], expected[NUMBERS])
    pd.testing.assert_index_equal(rows.columns, expected.columns)


def test_flows_and_functions_and_names_side_by_side(tmp_path: Path) -> None:
    flow = ResidualFlow.mlp(dim=3, hidden=(8,), n_blocks=2, lipschitz=0.9)
    before = {name: t.clone() for name, t in flow.state_dict().items()}
    models = {"mine": flow, "made": lambda dim, lipschitz: [Shrinking(dim, lipschitz)] * 2}
    with pytest.warns(UserWarning, match="cells were skipped, such as bias model=mine"):
        rows = resflow_bench.measure(
            *(["bias", "lipschitz"],), preset="smoke", results=tmp_path, model=models,
            lipschitz=(0.5, 0.9),
        )  # fmt: skip
    assert resflow_bench.draw("bias", rows[rows["status"] == "skipped"]) == {}
    assert all(torch.equal(t, before[name]) for name, t in flow.state_dict().items())
    assert all(p.requires_grad for p in flow.parameters()), "the flow is measured, not changed"
    one = rows[rows["suite"] == "lipschitz"].set_index(["model", "lipschitz", "metric"])["value"]
    assert one["mine", 0.9, "lipschitz_promised"] == 0.9
    assert one["made", 0.5, "lipschitz_realised"] <= 0.5 < one["made", 0.9, "lipschitz_realised"]
    skipped = rows[rows["status"] == "skipped"]
    assert set(zip(skipped["model"], skipped["lipschitz"], strict=True)) == {("mine", 0.5)}
    assert "lipschitz=0.9; got lipschitz=0.5" in skipped["message"].iloc[0]
    assert len(Store(tmp_path).runs()) == 1, "a run is kept where a folder is named"


def test_a_flow_that_was_trained_on_is_measured_anew() -> None:
    flow = ResidualFlow.mlp(dim=2, hidden=(4,), n_blocks=1, lipschitz=0.9)

    def norm() -> float:
        rows = resflow_bench.measure("lipschitz", preset="smoke", model=flow)
        return float(rows.set_index("metric")["value"]["lipschitz_realised"])

    first = norm()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(0.5)
    flow.update()
    assert norm() < first


def test_threads_do_not_see_each_others_models() -> None:
    def realised(k: int) -> float:
        rows = resflow_bench.measure(
            "lipschitz", preset="smoke", model=Shrinking, dim=k, lipschitz=0.1 * k
        )
        return float(rows.set_index("metric")["value"]["lipschitz_realised"])

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(realised, range(1, 9)))
    assert np.all(np.diff(found) > 0), found


def _in_a_daemon(queue: multiprocessing.SimpleQueue[int]) -> None:
    queue.put(len(resflow_bench.measure("lipschitz", preset="smoke", model="init")))


def test_a_daemon_can_measure() -> None:
    """As a worker of Dask, which may have no children of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    worker = context.Process(target=_in_a_daemon, args=(queue,), daemon=True)
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert queue.get() == 5


@pytest.mark.parametrize("suite", ["bias", "variance", "inverse", "lipschitz"])
@pytest.mark.parametrize("promised", [True, False])
def test_figures(suite: str, promised: bool) -> None:
    flow = ResidualFlow.mlp(dim=3, hidden=(4,), n_blocks=1, lipschitz=0.5)
    model = flow if promised else (Shrinking(3), torch.randn(5, 3))
    rows = resflow_bench.measure(suite, preset="smoke", model=model)
    figures = resflow_bench.draw(suite, rows)
    assert figures.keys() & {suite, "convergence"}
    assert all(isinstance(figure, Figure) for figure in figures.values())
    assert resflow_bench.draw("throughput", rows) == {}


def test_refusals() -> None:
    with pytest.raises(ValueError, match="no suite is called `biass`"):
        resflow_bench.measure("biass")
    with pytest.raises(ValueError, match="no axis is called `models`"):
        resflow_bench.measure("bias", models="init")
    with pytest.raises(ValueError, match="must lie strictly between 0 and 1"):
        resflow_bench.measure("bias", lipschitz=2)
    with pytest.raises(AttributeError, match="no attribute 'measures'"):
        _ = resflow_bench.measures
