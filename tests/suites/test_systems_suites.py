"""The suites `flows` and `euler`, and the older suites, on systems without residual blocks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from made_up import make_frames
from torch import Tensor, nn

import suites
from resflow_bench.analysis.verdicts import judge
from resflow_bench.architectures import ARCHITECTURES
from resflow_bench.flows import ResidualBlock, ResidualFlow
from resflow_bench.lab import Cell, Context, Observation, Skip, unpack
from resflow_bench.layers import mlp_branch
from resflow_bench.logdet import Determinant
from resflow_bench.notebook import measure
from resflow_bench.systems import residual_flow
from suites.euler.measure import order, rms
from suites.flows.measure import flows_recipe

pytest.importorskip("zuko")

EFFORT = {"n_points": 12, "n_draws": 40, "n_grid": 8, "n_mass": 80, "n_samples": 60}
EFFORT |= {"seconds": 0.01, "max_draws": 64, "half_width": 0.5}
PLANE = {"dataset": "eight-gaussians", "step": 5}
PLACE = {"dtype": "float32", "device": "cpu"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


def observe(suite: str, results: Path, **axes: Any) -> dict[str, Observation]:
    context = Context(seed=0, effort=EFFORT, results=results)
    return {o.metric: o for o in suites.load(suite).measure(Cell(suite, axes), context)}


@pytest.mark.parametrize("architecture", ["mlp", "nsf", "glow", "flow-matching"])
def test_flows_measures_every_kind(results: Path, architecture: str) -> None:
    found = observe("flows", results, architecture=architecture, **PLANE, **PLACE)
    assert found["mass_error"].value < 0.02, "of a few steps, on a coarse grid"
    gap = found["sample_gap"]
    assert abs(gap.value) < 5 * gap.standard_error, "samples are from the density"
    assert found["divergence"].value > 0
    assert 25_000 < found["n_parameters"].value < 45_000
    assert found["round_trip_error"].value < 1e-3
    assert all(found[f"{name}_s"].value > 0 for name in ("train_step", "log_prob", "sample"))
    picture = found["log_prob"].picture
    assert picture is not None
    assert unpack(picture)["learned"].shape == (8, 8)
    assert found["log_prob"].message


def test_a_flow_of_another_architecture_has_other_settings() -> None:
    rates = {
        name: flows_recipe(Cell("flows", {**PLANE, **PLACE, "architecture": name})).training
        for name in ("mlp", "nsf", "flow-matching")
    }
    assert len({training.learning_rate for training in rates.values()}) == 3
    with pytest.raises(Skip, match="conv is for images"):
        flows_recipe(Cell("flows", {**PLANE, **PLACE, "architecture": "conv"}))


@pytest.mark.parametrize(("method", "expected"), [("euler", 1.0), ("midpoint", 2.0)])
def test_the_steps_of_a_path_are_a_residual_flow(
    results: Path, method: str, expected: float
) -> None:
    axes = {**PLANE, "architecture": "flow-matching", "method": method, "n_solver_steps": 32}
    found = observe("euler", results, **axes)
    assert found["step_norm"].value == pytest.approx(found["field_norm"].value / 32)
    assert found["is_contraction"].value == 1.0
    assert not {"step_norm_certified", "error_over_bound"} & set(found), "none is known"
    assert found["order"].value == pytest.approx(expected, abs=0.15)
    assert found["fixed_point_error"].value < 1e-7
    assert found["fixed_point_error"].value < found["backward_error"].value
    estimate = found["log_det_error"]
    assert abs(estimate.value) < 5 * estimate.standard_error
    assert found["n_evaluations"].value == 32 * expected


def test_the_steps_of_a_certified_field_are_certified_contractions(results: Path) -> None:
    """By Euler's method from T > L = 14.4 on; not at T = 2 by the midpoint rule."""
    axes = {**PLANE, "architecture": "certified-flow-matching"}
    found = observe("euler", results, **axes, method="euler", n_solver_steps=16)
    certified = found["step_norm_certified"].value
    assert 0 < found["step_norm"].value <= certified <= 0.9 * (1 + 1e-6)
    assert 0 < found["error_over_bound"].value <= 1
    assert found["outcome"].value == 0
    few = observe("euler", results, **axes, method="midpoint", n_solver_steps=2)
    assert few["step_norm_certified"].value > 1
    assert "error_over_bound" not in few


@pytest.mark.parametrize(
    ("metric", "wrong", "statement"),
    [
        ("step_norm_certified", 0.01, "a step within its certificate"),
        ("outcome", 1.0, "a certified contraction is inverted"),
        ("error_over_bound", 1.01, "error within certificate"),
        ("trace_error_over_tolerance", 101.0, "zuko's log-det within its scale"),
    ],
)
def test_a_broken_certificate_of_a_step_is_seen(metric: str, wrong: float, statement: str) -> None:
    frame, suite = make_frames()["euler"], suites.load("euler")

    def said() -> pd.Series:
        verdicts = judge({"euler": frame}, {"euler": suite})
        return verdicts[verdicts["statement"] == statement]["verdict"]

    assert len(said()) == (1 if metric.startswith("trace") else 4)
    assert set(said()) == {"holds"}
    frame.loc[frame.index[frame["metric"].eq(metric)][0], "value"] = wrong
    assert (said() == "violated").sum() == 1


def test_a_tolerance_of_zuko_is_measured_against_the_truth(results: Path) -> None:
    """The noise of a probe is no matter of a tolerance."""
    axes = {**PLANE, "architecture": "flow-matching", "tolerance": 1e-6}
    scaled, alike, noisy = (
        observe("euler", results, **axes, method=name)
        for name in ("zuko", "zuko-unscaled", "zuko-hutchinson")
    )
    for found in (scaled, alike):
        assert 0 < found["z_error"].value < 1e-4
        assert found["trace_error_over_tolerance"].value == pytest.approx(
            found["trace_error"].value / 1e-6
        )
        assert found["trace_error_over_tolerance"].value < 100
    assert scaled["n_evaluations"].value <= alike["n_evaluations"].value
    # Where both take the same steps the two are equal but for rounding.
    assert scaled["trace_error"].value >= (1 - 1e-6) * alike["trace_error"].value
    assert noisy["trace_error"].value > 100 * scaled["trace_error"].value
    assert noisy["z_error"].value < 1e-4
    loose = observe("euler", results, **(axes | {"tolerance": 1e-3}), method="zuko")
    assert loose["n_evaluations"].value < scaled["n_evaluations"].value
    assert loose["z_error"].value > scaled["z_error"].value
    with pytest.raises(Skip, match="a tolerance is for a method of zuko"):
        observe("euler", results, **axes, method="euler")
    with pytest.raises(Skip, match="positive tolerance"):
        observe("euler", results, **(axes | {"tolerance": 0.0}), method="zuko")


def test_euler_refuses_what_has_no_field(results: Path) -> None:
    axes = {**PLANE, "method": "euler", "n_solver_steps": 4}
    with pytest.raises(Skip, match="nsf is no continuous flow"):
        observe("euler", results, **axes, architecture="nsf")
    with pytest.raises(Skip, match="rk4"):
        observe("euler", results, **(axes | {"method": "rk4"}), architecture="flow-matching")


def test_blocks_of_a_path_have_the_density_of_their_own_map() -> None:
    """By the whole Jacobian of the map, in float64."""
    flow = ARCHITECTURES["flow-matching"]((3,), 0.9).double().requires_grad_(False)
    blocks = residual_flow(flow, 5).with_estimator(Determinant())
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, log_det = blocks.forward_and_log_det(x)
    for row, value in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: blocks(v[None])[0], row)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], value)
    with pytest.raises(ValueError, match=r"got (LipSwish|ResidualBlock)"):
        residual_flow(ARCHITECTURES["mlp"]((3,), 0.9), 5)


def test_an_order_is_that_of_made_up_errors() -> None:
    errors = np.random.default_rng(0).normal(size=200)
    found = order(errors, errors / 4)
    assert found.value == pytest.approx(2)
    assert found.low == pytest.approx(found.high), "every point says the same"
    apart = order(errors, np.random.default_rng(1).normal(size=200) / 4)
    assert apart.low < 2 < apart.high
    assert rms(np.array([3.0, 4.0])) == pytest.approx(math.sqrt(12.5))


@pytest.mark.parametrize("model", ["nsf", "flow-matching"])
def test_older_suites_take_a_system_or_say_why_not(
    results: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resflow_bench.models.catalogue import MODELS, Trained

    found_model = MODELS[model]
    assert isinstance(found_model, Trained)

    def untrained(*_: object) -> ResidualFlow:
        return ARCHITECTURES[model]((2,), 0.9)

    monkeypatch.setattr(Trained, "flow", untrained)
    axes = {"model": model, "dim": 2, "lipschitz": 0.9, **PLACE}
    asked = {"truncation": "fixed", "n_terms": 2, "probe": "rademacher", "n_probes": 1}
    inverse = observe("inverse", results, **axes, tolerance=1e-4, max_steps=100)
    assert inverse["inverse_error_bound"].value == math.inf
    assert inverse["inverse_error"].value < 1e-3
    assert "error_over_bound" not in inverse
    timed = observe(
        "throughput", results, **axes, **asked, operation="log_prob", batch_size=8
    )  # fmt: skip
    assert timed["wall_s"].value > 0
    for suite in ("bias", "variance", "lipschitz"):
        with pytest.raises(Skip, match="no residual block"):
            observe(suite, results, **axes, **asked)


class Twice(nn.Module):
    """A closed form of the user's own, z = 2 x, that knows no constant of its inverse, or 1/2."""

    def __init__(self, constant: float) -> None:
        super().__init__()
        self.constant = constant

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * x, x.new_full((len(x),), x.shape[1] * math.log(2))

    def inverse(self, z: Tensor) -> Tensor:
        return z / 2

    def inverse_error(self, z: Tensor, x: Tensor, error: Tensor) -> Tensor:
        return self.constant * (error + 1e-30)  # not infinity times 0


def test_inverse_takes_a_closed_form_without_an_error_bound() -> None:
    """No failure for a reason that is none, and no theorem for the part that is known."""
    for constant in (math.inf, 0.5):
        block = ResidualBlock(mlp_branch(2, (8,), 0.5))
        flow = ResidualFlow([Twice(constant), block], 2)
        rows = measure("inverse", model=flow, tolerance=(1e-5,), max_steps=(100,))
        assert set(rows["status"]) == {"ok"}
        iterated = rows[(rows["dtype"] == "float64") & rows["tolerance"].notna()]
        found = iterated.set_index("metric")["value"]
        assert found["inverse_error"] < 1e-4
        assert math.isinf(found["inverse_error_bound"]) == math.isinf(constant)
        assert ("error_over_bound" in found) == math.isfinite(constant)
        assert ("n_steps_bound" in found) == math.isfinite(constant)


def test_one_term_of_the_steps_is_the_trace_estimator(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFJORD's, along the path: its bias is that of a trace for a log-det, its variance 2||sym||^2
    less the diagonal's for a Rademacher probe.
    """
    from resflow_bench.models.catalogue import MODELS, Stepped, Trained

    flow = ARCHITECTURES["flow-matching"]((2,), 0.9)
    monkeypatch.setattr(Trained, "flow", lambda *_: flow)
    model = MODELS["flow-matching-16-steps"]
    assert isinstance(model, Stepped)
    blocks = model.flow(2, 0.9, results, print).double()
    assert len(blocks.blocks) == 16
    axes = {"model": model.name, "dim": 2, "lipschitz": 0.9, "dtype": "float64", "device": "cpu"}
    asked = {"truncation": "fixed", "n_terms": 1, "probe": "rademacher", "n_probes": 1}
    found = observe("variance", results, **axes, **asked)
    x = model.points(EFFORT["n_points"], 2).double()
    expected = 0.0
    for g, h in blocks.branches(x):
        for row in h.detach():
            sym = torch.autograd.functional.jacobian(lambda v, g=g: g(v[None])[0], row)
            sym = 0.5 * (sym + sym.T)
            expected += 2 * float(sym.square().sum() - sym.diagonal().square().sum()) / len(x)
    assert found["variance_expected"].value == pytest.approx(expected)
    low, high = found["variance"].ci_low, found["variance"].ci_high
    assert low is not None
    assert high is not None
    assert low < expected < high


def test_no_verdict_is_against_a_right_result() -> None:
    """A mass of 1.001 and an order of 0.98 without much noise are as they should be."""
    found = {name: make_frames()[name] for name in ("flows", "euler")}
    order = found["euler"]["metric"].eq("order")
    found["euler"].loc[order, ["value", "ci_low", "ci_high"]] -= 0.02
    verdicts = judge(found, {name: suites.load(name) for name in found})
    assert "violated" not in set(verdicts["verdict"])
    exact = verdicts[verdicts["statement"].str.contains("order|one$")]
    assert set(exact["verdict"]) == {"holds"}
    assert len(set(verdicts["statement"])) == 10
    found["flows"].loc[found["flows"]["metric"].eq("mass_error"), "value"] = 0.02
    against = judge(found, {name: suites.load(name) for name in found})
    bad = against[against["verdict"] == "violated"]
    assert set(bad["statement"]) == {"the density integrates to one"}
