"""The training steps of `peers`: gradients of one law, times, memory, flows on images."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from steep_flows import conv, mlp
from torch import Tensor

from resflow_bench.lab import Cell, Context, Observation
from resflow_bench.peers import PEERS, Peer, Request, peer
from resflow_bench.peers.normflows import neumann_bias
from resflow_bench.speed.timing import peak_bytes
from suites.peers import SUITE, against
from suites.peers import measure as lab

pytestmark = pytest.mark.skipif(
    find_spec("normflows") is None,
    reason="normflows is not installed; .venv/bin/pip install -e '.[peers]' brings it",
)


def gradients(of: Peer, x: Tensor) -> list[Tensor]:
    with of.seeded(5):
        return list(torch.autograd.grad(of.log_prob(x.clone()).mean(), of.parameters))


@pytest.mark.parametrize("make", [mlp, conv])
def test_gradients_are_the_same_at_the_stated_number_of_terms(make) -> None:
    """Up to the 1e-6 of each coefficient that ours keeps for rounding; one term more is seen."""
    flow, x = make()

    def difference(mine: int, its: int) -> float:
        pair = (("ours", mine), ("normflows", its))
        each = [gradients(PEERS[w](flow, Request("memory-saving", n)), x) for w, n in pair]
        return max(
            float((a.flatten() - b.flatten()).norm() / a.norm()) for a, b in zip(*each, strict=True)
        )

    assert difference(4, 4) < 5e-5
    assert difference(4, 5) > 5e-4


def test_the_formula_of_their_value_with_so_many_powers() -> None:
    """sum_k (-1)^k tr J^(k + 1), k < N, and its limit."""
    j = 0.3 * np.random.default_rng(0).normal(size=(2, 3, 3))
    sums = [(-1) ** k * np.linalg.matrix_power(j, k + 1) for k in range(4)]
    value = np.trace(sum(sums), axis1=1, axis2=2)
    expected = value - np.linalg.slogdet(np.eye(3) + j).logabsdet
    np.testing.assert_allclose(neumann_bias(j, 4), expected, rtol=1e-12)
    np.testing.assert_allclose(neumann_bias(j, 400), neumann_bias(j), rtol=1e-12)
    assert np.abs(neumann_bias(j, 4) - neumann_bias(j)).max() > 1e-3


def test_a_series_without_its_number_of_terms_is_refused() -> None:
    with pytest.raises(ValueError, match="pass n_terms"):
        Request("series")


def test_peaks_are_flat_in_the_number_of_terms() -> None:
    """Ours, and theirs in its memory-saving mode; their plain series, the twin, is not."""
    flow, x = mlp()

    def growth(name: str, mode: str) -> float:
        made = [PEERS[name](flow, Request(mode, n)) for n in (5, 50)]
        few, many = (peak_bytes(lambda one=one: gradients(one, x), "cpu") for one in made)
        return many / few

    assert growth("ours", "memory-saving") < 1.05
    assert growth("normflows", "memory-saving") < 1.05
    assert growth("normflows", "series") > 2


def test_a_step_trains_and_is_timed_in_its_parts(monkeypatch) -> None:
    """By a clock of 3 s a gradient and 1 s an update of theirs, 1 s each of ours."""
    flow, x = mlp()
    request = Request("memory-saving", 3)
    theirs, ours = (PEERS[name](flow, request) for name in ("normflows", "ours"))
    before = [p.detach().clone() for p in theirs.parameters]
    ticks = {theirs.update: 1.0, ours.update: 1.0}
    n_calls = iter(range(10**6))

    def clock(call) -> float:
        call()
        if call in ticks:
            return ticks[call]
        return 3.0 if next(n_calls) % 2 == 0 else 1.0

    monkeypatch.setattr(lab, "elapsed", clock)
    seen = {o.metric: o for o in lab._step_costs(theirs, ours, x, 8, 0)}
    assert seen["step_s"].value == 4.0
    assert seen["step_over_ours"].value == 2.0
    assert seen["update_share"].value == 0.25
    assert any(not torch.equal(p, q) for p, q in zip(theirs.parameters, before, strict=True))
    without = replace(theirs, update=None)
    seen = {o.metric: o for o in lab._step_costs(without, ours, x, 8, 0)}
    assert seen["update_share"].value == 0.0


@pytest.fixture(scope="module")
def of_images() -> dict[str, Observation]:
    axes = {"model": "conv", "dim": 64, "lipschitz": 0.9, "dtype": "float32", "device": "cpu"}
    whose = {"implementation": "normflows", "mode": "memory-saving", "n_terms": 20}
    cell = Cell("peers", {**axes, **whose, "n_probes": 1, "batch_size": 16})
    effort = {"n_points": 2, "n_calls": 8, "n_copies": 2, "n_gradients": 16, "n_pairs": 8}
    found = SUITE.measure(cell, Context(0, effort, Path("results")))
    return {o.metric: o for o in found}


def test_flows_on_images_are_compared_behind_their_logit(of_images) -> None:
    """The same map; norms are those of fully connected layers, which it has none of."""
    assert of_images["map_difference"].value < 1e-4
    bias, expected = of_images["bias"], of_images["bias_expected"].value
    assert abs(bias.value - expected) < 5 * bias.standard_error
    assert "norm_over_asked" not in of_images
    assert of_images["step_over_ours"].ci_low <= of_images["step_over_ours"].value
    assert of_images["gradient_peak_over_ours"].value > 1.0


@pytest.mark.parametrize(
    "name", ["AgainstNormflows", "InverseAgainstNormflows", "TrainingAgainstNormflows"]
)
def test_the_asv_classes_track_ratios(name, monkeypatch) -> None:
    monkeypatch.setattr(against, "N_PAIRS", 1)
    monkeypatch.setattr(against, "N_TERMS", 2)
    benchmark = getattr(against, name)()
    benchmark.setup()
    tracked = benchmark.track_time_ratio()
    assert len(tracked["samples"]) == 1
    assert tracked["samples"][0] > 0
    monkeypatch.setattr(benchmark, "samples", lambda _: {})
    turned = against.PairedRatio.samples(benchmark, lambda *_: np.array([[8.0, 2.0]]))
    assert turned["samples"] == [0.25]  # ours over theirs
    parts = against.PairedRatio.samples(benchmark, lambda *_: np.array([[[6.0, 2], [1, 1]]]))
    assert parts["samples"] == [0.25]
    monkeypatch.setattr(peer, "find_spec", lambda name: None)
    with pytest.raises(NotImplementedError, match="peers"):
        benchmark.setup()
