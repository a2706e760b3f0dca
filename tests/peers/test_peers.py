"""Peers hold our weights; each number of theirs is recomputed here, and a wrong twin is seen."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import reference
import torch
from scipy import linalg

import suites
from resflow_bench.flows import DiagonalNormal, ResidualFlow
from resflow_bench.lab import Cell, Context, Observation, Skip
from resflow_bench.logdet import Fixed, Geometric, Poisson, Roulette
from resflow_bench.models import build_problem, dense_truth
from resflow_bench.peers import MODES, PEERS, Peer, Request, peer
from resflow_bench.peers.normflows import neumann_bias, normflows_flow
from resflow_bench.peers.peer import check_convertible
from resflow_bench.peers.torchflows import roulette_bias
from suites.peers.figures import side_by_side
from suites.peers.measure import (
    UPSTREAM,
    _values,
    batch_correlation,
    draw,
    exact,
    gradient_error,
    inverse_error,
)

pytestmark = pytest.mark.skipif(
    find_spec("normflows") is None or find_spec("torchflows") is None,
    reason="a peer is not installed; .venv/bin/pip install -e '.[peers]' brings it",
)
EFFORT = {"n_points": 4, "n_calls": 16, "n_copies": 4, "n_gradients": 16, "n_pairs": 8}


@pytest.fixture(scope="module")
def flow() -> ResidualFlow:
    """Two blocks in float64, d = 4, with ||J|| near 1/2: weights near the identity."""
    flow = ResidualFlow.mlp(4, (8, 8), 2, 0.9).double()
    flow.initialise(points())
    with torch.no_grad():
        for block in flow.blocks:
            for layer in block.branch.layers:
                layer.weight += 2 * torch.eye(*layer.weight.shape)
                layer.bias += 1
            for phi in block.branch.activations:
                phi.raw_beta.fill_(3.0)
    flow.align()
    return flow


def points(n: int = 4) -> torch.Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1), dtype=torch.double)


def made(flow: ResidualFlow, name: str, mode: str, n_terms: int = 5, n_probes: int = 1) -> Peer:
    return PEERS[name](flow, Request(mode, n_terms if mode == "series" else None, n_probes))


def available() -> list[tuple[str, str]]:
    return [(n, m) for n in PEERS for m in MODES if (n, m) != ("torchflows", "memory-saving")]


@pytest.mark.parametrize(("name", "mode"), available())
def test_the_conversion_is_exact(flow, name, mode) -> None:
    """Each g, the map, and ln|det df/dx| of their own map; a weight that moved is seen."""
    x, theirs = points(), made(flow, name, mode)
    for block, branch in zip(flow.blocks, theirs.branches, strict=True):
        torch.testing.assert_close(branch(x), block.branch(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs.map(x), flow(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        exact(theirs, x).detach().numpy(), dense_truth(flow, x)[1], rtol=1e-4, atol=1e-5
    )
    with torch.no_grad():
        theirs.parameters[0][0, 0] += 0.1
        assert (theirs.map(x) - flow(x)).abs().max() > 1e-3


def test_float32_branches_agree_to_a_few_units_in_the_last_place(flow) -> None:
    x, single = points().float(), copy.deepcopy(flow).float()
    for name in PEERS:
        theirs = made(single, name, "series")
        for block, branch in zip(single.blocks, theirs.branches, strict=True):
            torch.testing.assert_close(branch(x), block.branch(x), rtol=0, atol=1e-5)


def test_what_their_formulas_have_as_mean() -> None:
    """Against the scalar's values and the eigenvalues of a symmetric matrix; signs matter."""
    scalar = np.array([[[0.5]]])
    assert neumann_bias(scalar)[0] == pytest.approx(0.5 / 1.5 - math.log(1.5))
    assert roulette_bias(scalar)[0] == pytest.approx(0.5 - 0.5 * math.log(1.5) - math.log(1.5))
    eigenvalues = np.array([-0.6, 0.1, 0.4])
    q = linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    matrix = (q * eigenvalues) @ q.T
    logs = np.log1p(eigenvalues)
    expected = (eigenvalues / (1 + eigenvalues) - logs).sum()
    assert neumann_bias(matrix[None])[0] == pytest.approx(expected)
    expected = (eigenvalues * (1 - logs) - logs).sum()
    assert roulette_bias(matrix[None])[0] == pytest.approx(expected)


def z_scores(theirs: Peer, expected: float, truth: np.ndarray) -> tuple[float, float]:
    """Of the mean over 100 calls of estimate - exact: against what is expected, against zero."""
    errors = (draw(theirs, points(), 100, 16, 3).mean(2) - truth).mean(1)
    scale = errors.std(ddof=1) / math.sqrt(len(errors))
    return (errors.mean() - expected) / scale, errors.mean() / scale


@pytest.mark.parametrize(("name", "mode"), available())
def test_estimates_have_the_mean_of_their_formula(flow, name, mode) -> None:
    """|z| < 4 over 100 calls. The twin: where the formula is no log-det's, zero is rejected."""
    jacobians, truth = dense_truth(flow, points())
    theirs = made(flow, name, mode, n_terms=2)
    expected = float(np.mean([theirs.bias(j) for j in jacobians]) * len(jacobians))
    series = [[np.trace(reference.series(j, 2)) - reference.log_det(j) for j in m]
              for m in jacobians]  # fmt: skip
    if mode == "series":
        assert expected == pytest.approx(np.sum(series) / len(truth), abs=1e-9)
    z, against_zero = z_scores(theirs, expected, truth)
    assert abs(z) < 4
    is_log_det = mode != "series" and (name, mode) != ("normflows", "memory-saving")
    if name == "torchflows" or not is_log_det:
        assert abs(against_zero) > 4
    else:
        assert expected == 0.0


def test_several_samples_in_torchflows_are_taken_at_rearranged_points(flow) -> None:
    """With eight, its mean is that of the series at x viewed as (8, d); |z| < 4, and 4 < |z| at x.

    One block, so that its input is x itself.
    """
    alone = ResidualFlow([flow.bijections[1]], 4)
    x, n_terms, m = points(), 2, 8
    theirs = PEERS["torchflows"](alone, Request("series", n_terms, m))
    assert theirs.bias is None
    errors = draw(theirs, x, 100, 16, 3).mean((1, 2))
    rows = x.repeat_interleave(m, 1).view(-1, 4)
    at_rows, at_x = (
        np.mean([np.trace(reference.series(j, n_terms)) for j in dense_truth(alone, y)[0][0]])
        for y in (rows, x)
    )
    scale = errors.std(ddof=1) / math.sqrt(len(errors))
    assert abs(errors.mean() - at_rows) < 4 * scale
    assert abs(errors.mean() - at_x) > 4 * scale


def test_samples_of_normflows_are_not_probes(flow) -> None:
    """Eight of them leave the variance of the probe; eight probes of ours divide it by eight."""
    spread = {
        (name, m): draw(made(flow, name, "series", n_probes=m), points(), 60, 24, 3)
        .var((0, 2))
        .mean()
        for name in ("ours", "normflows")
        for m in (1, 8)
    }
    assert spread["ours", 1] / spread["ours", 8] == pytest.approx(8, rel=0.3)
    assert spread["normflows", 1] / spread["normflows", 8] == pytest.approx(1, rel=0.3)


def test_batch_correlation_of_known_noise() -> None:
    """a + b_i with Var a = 1, Var b = 3: 1/4; with each its own: 0."""
    rng = np.random.default_rng(0)
    own = rng.normal(size=(4000, 2, 3)) * math.sqrt(3)
    shared = own + rng.normal(size=(4000, 1, 1))
    found = batch_correlation(shared)
    assert found.low < 0.25 < found.high
    assert found.high - found.low < 0.1
    assert found.low > 0
    alone = batch_correlation(own)
    assert alone.low < 0 < alone.high


def flat(value: torch.Tensor, theirs: Peer) -> torch.Tensor:
    parts = torch.autograd.grad(value, theirs.parameters, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def test_weights_of_unequal_size_show_in_the_memory_saving_mode_of_normflows(flow) -> None:
    """Its gradient is that of u_1 for every example; ours, and its other modes, are right."""
    x = points()

    def error(name: str, mode: str) -> Observation:
        theirs = made(flow, name, mode)
        return gradient_error(theirs, theirs, x, 32, 32, 3)

    wrong = error("normflows", "memory-saving")
    theirs = made(flow, "normflows", "memory-saving")
    u = torch.tensor(UPSTREAM, dtype=torch.double)
    right, first = (flat(exact(theirs, x) @ w, theirs) for w in (u, u[:1].expand(4)))
    expected = float((first - right).norm() / right.norm())
    assert wrong.ci_low <= expected <= wrong.ci_high
    assert wrong.ci_low > 0.1
    for name, mode in (("ours", "memory-saving"), ("ours", "roulette"), ("normflows", "roulette")):
        assert error(name, mode).ci_low < 0.1 < wrong.ci_low


def test_inverse_errors_are_what_an_independent_iteration_finds(flow) -> None:
    """Squared steps in normflows, 25 steps in torchflows; theirs by hand, block by block."""
    x = points()

    def by_hand(n_steps: int | None) -> float:
        with torch.no_grad():
            z = flow(x)
            for layer in reversed(flow.bijections):
                if not hasattr(layer, "branch"):
                    z = z * (-layer.log_scale).exp() - layer.shift
                    continue
                y, tol = z, 1e-5 + 1e-5 * z.abs()
                before, z = y, y - layer.branch(y)
                steps = 1
                while steps < (n_steps or 1000):
                    if n_steps is None and bool(((z - before) ** 2 / tol < 1).all()):
                        break
                    before, z, steps = z, y - layer.branch(z), steps + 1
            return float((z - x).norm(dim=1).max())

    found = {name: {o.metric: o.value for o in inverse_error(made(flow, name, "evaluation"), x, 0)}
             for name in PEERS}  # fmt: skip
    assert found["normflows"]["inverse_error"] == pytest.approx(by_hand(None), rel=1e-2)
    assert found["normflows"]["inverse_error"] > 3 * found["normflows"]["inverse_asked"]
    assert found["torchflows"]["inverse_error"] == pytest.approx(by_hand(25), rel=1e-2, abs=1e-12)
    assert "inverse_asked" not in found["torchflows"]
    mine = found["ours"]
    assert mine["inverse_error"] <= mine["inverse_bound"] <= mine["inverse_asked"]


def test_own_layers_and_the_constant_asked_for(flow) -> None:
    """torchflows divides by an estimate, fresh in each pass, and does not multiply by c."""
    for name in PEERS:
        theirs = made(flow, name, "evaluation")
        with theirs.seeded(0), torch.no_grad():
            (w, c), (again, _) = theirs.weights()[0], theirs.weights()[0]
        norm = float(torch.linalg.matrix_norm(w, 2))
        if name == "torchflows":
            assert norm > 1 - 1e-9  # whatever was asked for
            assert not torch.equal(w, again)
        else:
            assert norm <= c * (1 + 1e-6)
            assert torch.equal(w, again)


def test_draws_are_seeded_and_the_global_generator_left_alone(flow) -> None:
    before = torch.get_rng_state()
    for name in PEERS:
        theirs = made(flow, name, "roulette")
        one, same, other = (draw(theirs, points(), 2, 2, seed) for seed in (0, 0, 1))
        assert np.array_equal(one, same)
        assert not np.array_equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_missing_is_skipped_with_a_remedy(flow, monkeypatch, tmp_path) -> None:
    with pytest.raises(Skip, match="no mode that takes gradients"):
        made(flow, "torchflows", "memory-saving")
    with pytest.raises(Skip, match="two terms"):
        made(flow, "torchflows", "series", n_terms=1)
    with pytest.raises(Skip, match="one probe"):
        made(flow, "torchflows", "roulette", n_probes=2)
    axes = {"dim": 4, "lipschitz": 0.5, "dtype": "float32", "device": "cpu"}
    cell = Cell("throughput", {"model": "minus-identity", **axes})
    for name in PEERS:
        with pytest.raises(Skip, match=r"got ResidualBlock\. Take model=trained"):
            made(build_problem(cell, tmp_path, 1).flow, name, "roulette")
    monkeypatch.setattr(peer, "find_spec", lambda name: None)
    for name in ("normflows", "torchflows"):
        with pytest.raises(Skip, match=rf"{name} is not installed; .*\[peers\]"):
            made(flow, name, "roulette")


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict[tuple[str, str], dict]:
    """Metric -> observation of small cells, with blocks too large to be evaluated as one."""
    axes = {"model": "init", "dim": 4, "lipschitz": 0.5, "dtype": "float32", "device": "cpu"}
    suite, found = suites.load("peers"), {}
    for name, mode in (
        ("ours", "evaluation"),
        ("normflows", "series"),
        ("torchflows", "evaluation"),
    ):
        terms = {"n_terms": 3} if mode == "series" else {}
        whose = {"implementation": name, "mode": mode, "batch_size": 1024, "n_probes": 1, **terms}
        context = Context(0, EFFORT, tmp_path_factory.mktemp("results"))
        seen = suite.measure(Cell("peers", {**axes, **whose}), context)
        found[name, mode] = {o.metric: o for o in seen}
    return found


def test_rows_name_versions_and_hold_together(rows) -> None:
    for (name, mode), seen in rows.items():
        package = "resflow_bench" if name == "ours" else name
        assert seen["bias"].message.startswith(package)
        assert seen["bias"].ci_low < seen["bias"].value < seen["bias"].ci_high
        assert seen["map_difference"].value < 1e-4
        assert seen["peak_bytes"].value > 0
        assert ("gradient_error" in seen) == (mode != "evaluation") != ("inverse_error" in seen)
        assert seen["time_over_ours"].ci_low <= seen["time_over_ours"].value
    assert rows["ours", "evaluation"]["peak_over_ours"].value == pytest.approx(1.0, rel=0.05)
    assert rows["normflows", "series"]["peak_over_ours"].value > 1.5


def test_a_finite_variance_is_told_of_roulettes_only(rows, tmp_path) -> None:
    """rho^2 < 1/2, of the law that all three have; rho < 1/2, its mean's condition, is another."""
    assert "variance_is_finite" not in rows["normflows", "series"]
    axes = {"model": "init", "dim": 4, "lipschitz": 0.5, "dtype": "float32", "device": "cpu"}
    problem = build_problem(Cell("peers", axes), tmp_path, 2)
    for rho, finite in ((0.3, 1.0), (0.7, 1.0), (0.71, 0.0), (0.9, 0.0)):
        told = replace(problem, spectral_radius=rho)
        for name in PEERS:
            its_own = PEERS[name](told.flow, Request("evaluation"))
            seen = {o.metric: o for o in _values(told, its_own, told.log_det, 2, 1, 0)}
            assert seen["variance_is_finite"].value == finite
            assert ("infinite variance" in seen["bias"].message) == (finite == 0.0)


@pytest.mark.parametrize(
    ("truncation", "finite"),
    [(Fixed(3), None), (Roulette(Geometric(0.5), 2), 1.0), (Roulette(Poisson(2.0), 2), 0.0)],
    ids=["fixed", "geometric", "poisson"],
)
def test_a_peer_is_one_function(monkeypatch, tmp_path, truncation, finite) -> None:
    """Ours, a nat too high. Its truncation says which moments are finite: under Poisson none is."""

    def make(flow: ResidualFlow, request: Request) -> Peer:
        ours = PEERS["ours"](flow, request)
        return replace(
            ours,
            version="made-up 1.0",
            log_det=lambda x: ours.log_det(x) + 1.0,
            bias=None,
            truncation=truncation,
        )

    monkeypatch.setitem(PEERS, "made-up", make)
    axes = {"model": "init", "dim": 4, "lipschitz": 0.5, "dtype": "float32", "device": "cpu"}
    axes |= {"batch_size": 8}
    cell = Cell("peers", {**axes, "implementation": "made-up", "mode": "evaluation", "n_probes": 1})
    measured = suites.load("peers").measure(cell, Context(0, EFFORT, tmp_path))
    seen = {o.metric: o for o in measured}
    assert seen["bias"].message.startswith("made-up 1.0")
    assert 0.0 < seen["bias"].ci_low < 1.0 < seen["bias"].ci_high
    assert "bias_expected" not in seen
    assert ("infinite variance" in seen["bias"].message) == (finite == 0.0)
    assert (seen["variance_is_finite"].value if "variance_is_finite" in seen else None) == finite


def test_the_figure_shows_each_peer_once(rows) -> None:
    lines = []
    for (name, mode), seen in rows.items():
        line = {"status": "ok", "model": "init", "lipschitz": 0.5, "n_terms": 3, "n_probes": 1}
        line |= {"implementation": name, "mode": mode}
        for metric, o in seen.items():
            line |= {metric: o.value, f"{metric}_low": o.ci_low, f"{metric}_high": o.ci_high}
        lines.append(line)
    figure = side_by_side(pd.DataFrame(lines), 3)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert "bias of the value" in titles
    assert "error of the inverse" in titles
    assert [text.get_text() for text in figure.legends[0].get_texts()][:3] == list(PEERS)
    assert side_by_side(pd.DataFrame(lines).assign(status="failed"), 3) is None
    assert side_by_side(pd.DataFrame(lines).assign(n_probes=4), 3) is None


def test_a_context_and_another_base_density_have_no_counterpart() -> None:
    for name, given in (
        ("DiagonalNormal", ResidualFlow.mlp(2, (4,), 1, 0.9, base=DiagonalNormal(2))),
        ("Conditioner", ResidualFlow.mlp(2, (4,), 1, 0.9, context=3)),
    ):
        with pytest.raises(Skip, match="without a context, of a standard normal base"):
            check_convertible(given)
        with pytest.raises(ValueError, match=f"got {name}"):
            normflows_flow(given, reduce_memory=False)
