"""Models of the user's own, by each of the forms of their name, and the refusals."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from resflow_bench.analysis import verdicts
from resflow_bench.cli import main
from resflow_bench.cli.choices import parse_assignment
from resflow_bench.flows import ActNorm, ResidualBlock, ResidualFlow
from resflow_bench.lab import Cell, Skip
from resflow_bench.lab.discovery import load
from resflow_bench.lab.store import Store
from resflow_bench.layers import Uncertified
from resflow_bench.logdet import Determinant
from resflow_bench.models import build_flow, build_points
from resflow_bench.models.catalogue import held_out, normal_points
from resflow_bench.models.own import given, own_model, settler

ROOT = Path(__file__).parents[2]
SOURCE = """
import torch
from torch import nn
from resflow_bench.flows import ResidualFlow
from beside import SCALE


def g():
    g = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
    for parameter in g.parameters():
        parameter.data.mul_(SCALE)
    return g


def two_blocks():
    return [g(), g()]


def flow(dim, lipschitz):
    return ResidualFlow.mlp(dim, (8,), 2, lipschitz)


def of_lipschitz(lipschitz):
    return ResidualFlow.mlp(5, (8,), 2, lipschitz)


def with_points():
    return nn.Conv2d(1, 1, 1), torch.ones(2, 1, 4, 4)


def expanding():
    g = nn.Linear(2, 2, bias=False)
    g.weight.data = torch.tensor([[0.0, 2.0], [-2.0, 0.0]])
    return g


def number():
    return 3


def deaf_flow(dim):
    return ResidualFlow.mlp(5, (8,), 2, 0.9)


def deaf_module(dim):
    return nn.Linear(5, 5)
"""
AXES = {"dim": 64, "lipschitz": 0.9, "dtype": "float32", "device": "cpu"}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(SOURCE)
    (tmp_path / "beside.py").write_text("SCALE = 0.8\n")
    return tmp_path


def cell(model: str, **axes: object) -> Cell:
    return Cell("bias", {**AXES, "model": model, **axes})


def call(*arguments: str) -> int:
    """The exit code of the command, in a process of its own as the user's file is imported."""
    command = [sys.executable, "-m", "resflow_bench", *arguments]
    path = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=path, check=False, capture_output=True).returncode


@pytest.mark.parametrize(
    ("function", "settled"),
    [
        ("two_blocks", (3, math.inf)),
        ("flow", (64, 0.9)),
        ("of_lipschitz", (5, 0.9)),
        ("with_points", (16, math.inf)),
    ],
)
def test_a_function_in_a_file(function: str, settled: tuple[int, float], here: Path) -> None:
    name = f"own.py:{function}"
    assert parse_assignment(f"model={name}") == ("model", (name,))
    found = settler(here)(cell(name), ())
    assert (found["dim"], found["lipschitz"]) == settled
    flow, points = build_flow(found, here), build_points(found, 3, here)
    assert flow.log_prob(points, torch.Generator().manual_seed(0)).shape == (3,)
    again = build_flow(found, here)
    assert all(
        torch.equal(a, b) for a, b in zip(flow.parameters(), again.parameters(), strict=True)
    ), "every cell has the same weights"


def test_an_axis_that_the_user_sets_stays_and_is_skipped(here: Path) -> None:
    found = settler(here)(cell("own.py:two_blocks", dim=7), {"dim"})
    assert (found["dim"], found["lipschitz"]) == (7, math.inf)
    with pytest.raises(Skip, match="has dim=3; got dim=7"):
        build_flow(found, here)


def test_a_saved_flow_and_a_run(here: Path) -> None:
    flow = ResidualFlow.mlp(2, (4,), 1, 0.7)
    flow.save(here / "flow.pt", {"dataset": "moons"})
    (here / "results" / "models").mkdir(parents=True)
    flow.save(here / "results" / "models" / "quick-1.pt")
    results = here / "results"
    x = torch.randn(4, 2)
    expected = flow.with_estimator(Determinant()).log_prob(x)
    data, normal = held_out("moons", 50), normal_points(50, 2)
    for name, expected_points in (("flow.pt", data), ("run:quick-1", normal)):
        found = settler(results)(cell(name), ())
        assert (found["dim"], found["lipschitz"]) == (2, 0.7)
        again = build_flow(found, results).with_estimator(Determinant())
        torch.testing.assert_close(again.log_prob(x), expected)
        assert torch.equal(build_points(found, 50, results), expected_points)


def test_damaged_weights_of_a_run_come_with_their_remedy(here: Path) -> None:
    (here / "models").mkdir()
    (here / "models" / "r1.pt").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"no whole file.* then `resflow-bench train --resume r1`"):
        settler(here)(cell("run:r1"), ())


def test_a_flow_of_normflows(here: Path) -> None:
    pytest.importorskip("normflows")
    from resflow_bench.peers.normflows import normflows_flow

    ours = ResidualFlow.mlp(3, (8,), 2, 0.9)
    ours.initialise(torch.randn(16, 3))
    theirs = normflows_flow(ours, reduce_memory=False).eval()
    with given({"theirs": theirs}):
        found = settler(here)(cell("theirs"), ())
        assert (found["dim"], found["lipschitz"]) == (3, math.inf)
        flow = build_flow(found, here)
    x = torch.randn(5, 3)
    exactly = Determinant()
    expected = ours.with_estimator(exactly).log_prob(x)
    torch.testing.assert_close(
        flow.with_estimator(exactly).log_prob(x), expected, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("own.py:number", "a model is a ResidualFlow, a flow of normflows.*got int"),
        ("own.py:deaf_flow", "`own.py:deaf_flow`, called with dim=2: .* a flow of dim=5"),
        ("own.py:deaf_module", "called with dim=2: g fails at points of shape"),
        ("own.py:none", "`own.py` has no `none`"),
        ("broken.py:g", "cannot be loaded: ZeroDivisionError"),
        ("missing.py:g", "cannot be loaded: FileNotFoundError"),
        ("no_such_module:g", "cannot be loaded: ModuleNotFoundError"),
        ("none.pt", "`none.pt` cannot be read"),
        ("run:none", "cannot be read"),
        ("run:", "cannot be read"),
        (".pt", "cannot be read"),
        (".py:g", "cannot be loaded"),
        (":g", "cannot be loaded"),
    ],
)
def test_refusals(
    name: str, why: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: object
) -> None:
    (here / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ValueError, match=why):
        settler(here)(cell(name), ())
    monkeypatch.setattr(sys, "argv", ["resflow-bench", "run", "bias", "--set", f"model={name}"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_file_that_changes_is_read_again(here: Path) -> None:
    before = own_model("own.py:two_blocks", here)
    (here / "own.py").write_text(SOURCE.replace("[g(), g()]", "[g()]"))
    after = own_model("own.py:two_blocks", here)
    assert before is not None
    assert after is not None
    n_blocks = [len(m.flow(3, math.inf, here, print).blocks) for m in (before, after)]
    assert n_blocks == [2, 1]


def test_four_suites_measure_modules_and_claim_no_bound(here: Path) -> None:
    suites = ("bias", "variance", "inverse", "lipschitz")
    asked = ("--set", "model=own.py:two_blocks,own.py:flow", "--jobs", "2")
    assert call("run", *suites, "--preset", "smoke", *asked) == 0
    run = Store(here / "results").runs()[-1]
    assert set(run.about["files"]) == {"own.py:two_blocks", "own.py:flow"}
    rows = pd.concat(run.frames().values())
    assert set(rows["status"]) == {"ok"}
    mine = rows[rows["model"] == "own.py:two_blocks"]
    assert set(mine["dim"]) == {3}
    exact = mine[mine["metric"] == "log_det_exact"]["value"]
    assert exact.nunique() == 1, "all cells measure one flow"
    bounds = mine[mine["metric"].isin(["bias_bound", "inverse_error_bound"])]
    assert len(bounds)
    assert np.isinf(bounds["value"][bounds["metric"] == "inverse_error_bound"]).all()
    assert not set(mine["metric"]) & {"lipschitz_promised", "lipschitz_certified"}
    assert (mine[mine["metric"] == "inverse_error"]["value"] < 10).all()
    assert call("report") == 0
    (here / "own.py").write_text(SOURCE + "\n")
    assert call("run", "--resume", run.name) == 2, "the rows would be of two flows"


def test_a_series_that_diverges_is_a_failed_cell(here: Path) -> None:
    asked = ("--set", "model=own.py:expanding", "--jobs", "1")
    assert call("run", "bias", "lipschitz", "--preset", "smoke", *asked) == 1
    frames = Store(here / "results").runs()[-1].frames()
    assert "modulus 2 and norm 2" in frames["bias"]["message"].iloc[0]
    realised = frames["lipschitz"].set_index("metric")["value"]
    assert realised["lipschitz_realised"] == pytest.approx(2.0)


def test_advise_takes_the_same_names_and_prints_what_runs(here: Path) -> None:
    command = [sys.executable, "-m", "resflow_bench", "advise", "--json", "--seconds", "1"]
    path = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for name in ("own.py:two_blocks", "own.py:flow"):
        asked = ["--model", name, "--target-error", "0.05", "--batch-size", "8"]
        done = subprocess.run([*command, *asked], env=path, check=True, capture_output=True)
        code = json.loads(done.stdout)["code"]
        subprocess.run([sys.executable, "-c", code], env=path, check=True)


# --- a branch without a certificate


def uncertified(scale: float) -> Uncertified:
    g = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in g.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return Uncertified(g)


def test_an_uncertified_branch_does_what_needs_no_constant() -> None:
    flow = ResidualFlow([ResidualBlock(uncertified(0.12)), ActNorm(4).double()], 4)
    x = torch.randn(40, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solution = flow.inverse(flow(x))
    assert float((solution.value - x).abs().max().detach()) < 1e-12
    assert solution.error_bound is not None
    assert torch.isinf(solution.error_bound).all(), "no error is certified"
    exact = flow.with_estimator(Determinant()).log_prob(x)
    with torch.no_grad():
        draws = torch.stack(
            [flow.log_prob(x, torch.Generator().manual_seed(k)) for k in range(400)]
        )
    error = (draws.mean(0) - exact.detach()).abs() / (draws.std(0) / 20)
    assert float(error.max()) < 5
    flow.update()
    flow.align()
    y = flow.rsample(40, torch.Generator().manual_seed(2))
    y.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in flow.parameters())


class Odd(nn.Module):
    """A module that is no branch, in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return {
            "couples": lambda: torch.tanh(x - x.mean(0)),
            "detaches": lambda: self.scale * x.detach(),
            "narrows": lambda: x[:, :1],
            "is lost": lambda: x / 0,
            "fails": lambda: x @ torch.ones(7, 7),
        }[self.way]()


@pytest.mark.parametrize(
    ("way", "why"),
    [
        ("couples", "couples the examples"),
        ("detaches", "hides its dependence on x from autograd"),
        ("narrows", "same shape"),
        ("is lost", "not finite"),
        ("fails", r"g fails at points of shape \(2, 3\)"),
    ],
)
def test_a_module_that_is_no_branch_is_refused(way: str, why: str, here: Path) -> None:
    for source in ((Odd(way), torch.randn(4, 3)),
                   ResidualFlow([ResidualBlock(Uncertified(Odd(way)))], 3)):  # fmt: skip
        with given({"odd": source}), pytest.raises(ValueError, match=f"model `odd`: .*{why}"):
            settler(here)(cell("odd"), ())


def test_a_flow_is_measured_in_evaluation_mode(here: Path) -> None:
    g = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    flow = ResidualFlow([ResidualBlock(Uncertified(g))], 3)
    with given({"mine": flow}):
        made = build_flow(settler(here)(cell("mine"), ()), here)
    assert not any(module.training for module in made.modules())
    assert all(module.training for module in flow.modules()), "a copy is measured"


def test_an_object_goes_before_a_name_of_the_catalogue(here: Path) -> None:
    flow = ResidualFlow.mlp(2, (4,), 1, 0.3)
    for name in ("trained", "init", "a.pt", "run:x"):
        with given({name: flow}):
            assert build_flow(settler(here)(cell(name), ()), here).dim == 2


def test_an_error_in_the_users_function_is_one_line(here: Path) -> None:
    def needs(width: int) -> nn.Module:
        return nn.Linear(width, width)

    def opens() -> nn.Module:
        raise FileNotFoundError("nothere.pt")

    for source, why in ((needs, "missing 1 required"), (opens, "FileNotFoundError: nothere.pt")):
        with given({"mine": source}), pytest.raises(ValueError, match=f"failed: .*{why}"):
            settler(here)(cell("mine"), ())
    with (
        given({"mine": (nn.Linear(2, 2), [[1.0, 2.0]])}),
        pytest.raises(ValueError, match="tensor"),
    ):
        settler(here)(cell("mine"), ())


def test_the_page_of_a_flow_without_a_promise_has_no_verdict_on_bounds(here: Path) -> None:
    suites = ("bias", "variance", "inverse", "lipschitz")
    asked = ("--set", "model=own.py:two_blocks", "--jobs", "2", "--out", "page")
    assert call("run", *suites, "--preset", "smoke", *asked) == 0
    page = (here / "page" / "index.html").read_text()
    text = re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)
    assert not re.search(r"\bnan\b", text), "a verdict about no cell"
    run = Store(here / "results").runs()[-1]
    judged = verdicts.judge(run.frames(), {name: load(name) for name in run.suites})
    assert not (judged["verdict"] == "violated").any()


def test_a_conditional_flow_is_refused_by_name(here: Path) -> None:
    ResidualFlow.mlp(2, (4,), 1, 0.7, context=3).save(here / "flow.pt")
    with pytest.raises(ValueError, match="a conditional flow needs a context of 3"):
        settler(here)(cell("flow.pt"), ())


def test_any_other_branch_is_refused_with_the_remedy() -> None:
    with pytest.raises(TypeError, match=r"got Linear.*Uncertified\(g\)"):
        ResidualBlock(nn.Linear(2, 2))
