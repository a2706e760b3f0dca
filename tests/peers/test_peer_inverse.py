"""The inverse of a batch of latents by each implementation: time, error, certificate."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import pandas as pd
import pytest
import torch
from torch import Tensor

from resflow_bench.flows import MultiScale, ResidualFlow, image_flow
from resflow_bench.peers import PEERS, Request
from suites.peers import measure as lab
from suites.peers.claims import uncertified_inverse

pytestmark = pytest.mark.skipif(
    find_spec("normflows") is None or find_spec("torchflows") is None,
    reason="a peer is not installed; .venv/bin/pip install -e '.[peers]' brings it",
)
EVALUATION = Request("evaluation")


def points(*event: int) -> Tensor:
    return torch.randn(12, *event, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def flow() -> ResidualFlow:
    """Two blocks, d = 4, K = 0.5, with ||J|| near 1/4: weights near the identity."""
    flow = ResidualFlow.mlp(4, (8, 8), 2, 0.5)
    flow.initialise(points(4))
    with torch.no_grad():
        for block in flow.blocks:
            for layer in block.branch.layers:
                layer.weight += 2 * torch.eye(*layer.weight.shape)
                layer.bias += 1
    flow.align()
    return flow


def observed(flow: ResidualFlow, name: str, x: Tensor, **changes) -> dict[str, float]:
    peer = replace(PEERS[name](flow, EVALUATION), **changes)
    seen = lab._inverse_costs(peer, PEERS["ours"](flow, EVALUATION), flow, x, 8, 0)
    return {o.metric: o.value for o in seen}


def test_errors_are_those_of_latents_and_a_shifted_inverse_is_seen(flow) -> None:
    """Theirs maps back to z as far as its tolerance goes; ours by its certificate."""
    x = points(4)
    z = lab.latents(x)
    assert torch.equal(z, lab.latents(2 * x))
    seen = {name: observed(flow, name, x) for name in PEERS}
    for name in PEERS:
        found = PEERS[name](flow, EVALUATION).inverse(z)[0]
        with torch.no_grad():
            off = float((flow(found) - z).norm(dim=1).max())
        error = seen[name]["inverse_batch_error"]  # 1 - K <= ||f'|| <= 1 + K, in each of two blocks
        assert off / 8 - 1e-6 < error < 8 * off + 1e-6
    mine = seen["ours"]
    assert mine["inverse_batch_error"] <= mine["inverse_batch_bound"] <= 1e-5
    assert seen["normflows"]["inverse_batch_error"] > 1e-4
    assert "inverse_batch_bound" not in seen["normflows"]
    ours = PEERS["ours"](flow, EVALUATION).inverse
    shifted = observed(flow, "ours", x, inverse=lambda z: (ours(z)[0] + 1.0, None))
    assert shifted["inverse_batch_error"] == pytest.approx(2.0, rel=1e-4)  # sqrt(d)


def test_times_are_of_the_inverse_and_over_ours(flow, monkeypatch) -> None:
    """By a clock of 2 s for theirs and 8 s for ours."""
    theirs, ours = (PEERS[name](flow, EVALUATION) for name in ("normflows", "ours"))
    calls = []

    def clock(call) -> float:
        call()
        calls.append(call.func)
        return 2.0 if call.func is theirs.inverse else 8.0

    monkeypatch.setattr(lab, "elapsed", clock)
    seen = {o.metric: o for o in lab._inverse_costs(theirs, ours, flow, points(4), 8, 0)}
    assert set(calls) == {theirs.inverse, ours.inverse}
    assert seen["inverse_s"].value == 2.0
    assert seen["inverse_over_ours"].value == 0.25
    assert seen["inverse_over_ours"].n == 8


def test_latents_of_images_have_the_shape_of_each_map() -> None:
    """normflows keeps the image, ours is flat: the same numbers."""
    flow = image_flow((2, 4, 4), MultiScale(1, 2, (4, 4), n_tail=0, margin=None))
    x = points(2, 4, 4)
    flow.initialise(x)
    flow.align()
    seen = observed(flow, "normflows", x)
    assert seen["inverse_batch_error"] < 1e-2


def test_no_inverse_computes_a_log_det(flow, monkeypatch) -> None:
    import normflows.flows.residual as theirs
    from torchflows.bijections.finite.residual import iterative

    def refuse(*args, **kwargs) -> None:
        raise AssertionError("a log-det beside the inverse")

    monkeypatch.setattr(theirs.iResBlock, "_logdetgrad", refuse)
    monkeypatch.setattr(iterative.ResFlowBlock, "log_det", refuse)
    z = lab.latents(points(4))
    for name in PEERS:
        assert PEERS[name](flow, EVALUATION).inverse(z)[0].shape == z.shape
    with pytest.raises(AssertionError, match="beside the inverse"):
        PEERS["normflows"](flow, EVALUATION).log_det(z)
    with pytest.raises(AssertionError, match="beside the inverse"):
        PEERS["torchflows"](flow, EVALUATION).log_det(z)


def test_a_tolerance_that_is_not_kept_is_a_finding() -> None:
    """Only where it is missed, with the certified bound of ours for the same flow."""
    flow = {"model": "trained", "dim": 64, "lipschitz": 0.9, "dtype": "float32", "device": "cpu"}
    mine = {"implementation": "ours", "inverse_batch_error": 1e-9, "inverse_batch_bound": 7e-7}
    its = {"implementation": "normflows", "inverse_batch_error": 0.05}
    times = {"inverse_over_ours": 0.25, "inverse_over_ours_low": 0.2, "inverse_over_ours_high": 0.3}
    common = flow | times | {"inverse_asked": 1e-5, "status": "ok"}
    cells = pd.DataFrame([common | mine, common | its])
    said = uncertified_inverse(cells)
    assert said.startswith("The inverse of normflows does not keep its tolerance. Of the trained")
    for words in ("off by 0.0500", "where 1.00e-5", "in 0.250 [0.200, 0.300] of", "most 7.00e-7."):
        assert words in said
    assert uncertified_inverse(cells.assign(inverse_batch_error=1e-6)) == ""
    assert uncertified_inverse(cells.iloc[1:]).endswith("certified inverse.")
