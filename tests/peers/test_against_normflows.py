"""The comparisons with normflows compare the same thing: maps, gradients, densities, batches."""

from __future__ import annotations

import math
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from steep_flows import conv, mlp

from resflow_bench.data import Dataset, digits_images
from resflow_bench.flows import Logit, ResidualBlock, ResidualFlow
from resflow_bench.lab import Cell, Context, Failure, Skip
from resflow_bench.layers import LinearBranch
from resflow_bench.logdet import Exact, Geometric, Roulette
from resflow_bench.peers import peer
from resflow_bench.peers.normflows import normflows_flow, normflows_nets, normflows_seeded
from suites.density import SUITE, against
from suites.density.against import TrainingEnd, measure_against
from suites.density.claims import trained_alike
from suites.density.learners import THEIR_ROULETTE, certified, exact_log_prob

pytestmark = pytest.mark.skipif(
    find_spec("normflows") is None,
    reason="normflows is not installed; .venv/bin/pip install -e '.[peers]' brings it",
)


@pytest.mark.parametrize("make", [mlp, conv])
def test_their_density_is_ours(make) -> None:
    """Held against what their memory-saving mode returns, which is another sum's mean."""
    flow, x = make()
    peer = normflows_flow(flow, reduce_memory=True, n_power_series=60)
    with torch.no_grad():
        expected = flow.with_estimator(Exact()).log_prob(x)
    torch.testing.assert_close(exact_log_prob(flow, x), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(exact_log_prob(peer, x), expected, rtol=1e-5, atol=0)
    with normflows_seeded(0):
        returned = peer.log_prob(x.repeat(50, *[1] * (x.ndim - 1)))
    error = returned.detach().unflatten(0, (50, -1)).mean(1) - expected.mean()  # (50,)
    assert abs(error.mean()) > 4 * error.std() / math.sqrt(50)


def test_the_roulette_is_theirs() -> None:
    """J^k comes with P(N > k) in ours, P(G + 2 >= k) in theirs; three exact terms differ."""
    from normflows.flows.residual import geometric_1mcdf

    k = np.arange(12)
    law = stats.geom.sf(k - 2 - 1, 0.5)
    np.testing.assert_allclose([geometric_1mcdf(0.5, n, 2) for n in k], law, rtol=1e-12)
    np.testing.assert_allclose(THEIR_ROULETTE.survival(k + 1), law, rtol=1e-12)
    assert Roulette(Geometric(0.5), 3, "batch").survival(k + 1)[3] == law[3] / 2


def test_certified_constants_are_of_the_weights_in_use() -> None:
    """A power iteration that has missed the leading direction is found out."""
    flow, _ = mlp()
    peer = normflows_flow(flow, reduce_memory=True)
    assert certified(peer) == pytest.approx(certified(flow), rel=1e-5)
    layer = normflows_nets(peer)[0][0]
    layer.u, layer.v = (torch.linalg.svd(layer.weight.detach())[i] for i in (0, 2))
    layer.u, layer.v = layer.u[:, -1].clone(), layer.v[-1].clone()
    assert certified(peer) > 1.5 * certified(flow)


def test_their_draws_are_seeded_and_the_global_generators_left_alone() -> None:
    flow, x = mlp()
    peer = normflows_flow(flow, reduce_memory=True)
    before = torch.get_rng_state(), str(np.random.mtrand._rand.get_state())
    values = []
    for seed in (0, 0, 1):
        with normflows_seeded(seed):
            values.append(peer.forward_kld(x).item())
    assert values[0] == values[1] != values[2]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.mtrand._rand.get_state()) == before[1]


def test_what_cannot_be_compared_is_refused() -> None:
    flow = ResidualFlow([Logit(), *ResidualFlow.mlp(2, (4,), 1, 0.5).bijections], 2)
    with pytest.raises(ValueError, match="got Logit"):
        normflows_flow(flow, reduce_memory=True)
    linear = ResidualFlow([ResidualBlock(LinearBranch(0.5 * torch.eye(2), 0.5))], 2)
    with pytest.raises(ValueError, match="got LinearBranch"):
        normflows_flow(linear, reduce_memory=True)


@pytest.fixture
def toy(monkeypatch) -> Dataset:
    x = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
    data = Dataset("toy", train=x[:500], test=x[500:])
    monkeypatch.setattr(against, "dataset", lambda name: data)
    monkeypatch.setattr(against, "N_BLOCKS", 2)
    return data


CELL = Cell("density", {"dataset": "toy", "lipschitz": 0.9, "step": 4, **against.HELD})
CONTEXT = Context(0, {"n_seeds": 2, "n_points": 50}, Path("results"))


def test_a_training_repeats_to_the_bit(toy) -> None:
    for is_ours in (True, False):
        mine, again, other = (against.train(toy, 0.9, 4, is_ours, s, 50) for s in (0, 0, 1))
        assert [step for step, _ in mine.looks] == ([1, 2, 3, 4] if is_ours else [4])
        assert mine.looks[-1][1] == mine.held_out
        assert mine.looks == again.looks != other.looks
        assert mine.fitted == again.fitted != mine.held_out
        assert 0 < mine.certified < 0.9 * 1.01


def test_both_begin_with_the_same_density_and_see_the_same_batches(toy, monkeypatch) -> None:
    """A seed of its own is seen in both."""
    seen = []

    def see(learner, x_of_steps, n_steps) -> list[int]:
        x = torch.stack(list(x_of_steps))
        seen.append((exact_log_prob(learner.flow, x[0]), x))
        return [n_steps]

    monkeypatch.setattr(against, "fit", see)
    for is_ours, seed in ((True, 0), (False, 0), (False, 1)):
        against.train(toy, 0.9, 4, is_ours, seed, 50)
    mine, its, other = seen
    torch.testing.assert_close(mine[0], its[0], rtol=0, atol=1e-4)
    assert torch.equal(mine[1], its[1])
    assert abs(mine[0] - other[0]).max() > 0.05
    assert not torch.equal(mine[1], other[1])


def test_batches_are_drawn_without_replacement(monkeypatch) -> None:
    monkeypatch.setattr(against, "BATCH_SIZE", 4)
    x = torch.arange(10.0)[:, None]
    data = Dataset("ten", x, x)
    drawn = list(against.batches(data, 5, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in drawn] == [4] * 5
    for first, second in islice(zip(drawn[::2], drawn[1::2], strict=False), 2):
        assert len({*first.flatten().tolist(), *second.flatten().tolist()}) == 8


def test_digits_are_dequantised_afresh_in_every_batch() -> None:
    """And land in logit space, from where the counts can be read again."""
    data = digits_images()
    generator = torch.Generator().manual_seed(0)
    first, second = (against.vectors(data, data.train[:4], generator) for _ in range(2))
    assert first.shape == (4, 64)
    assert not torch.equal(first, second)
    for x in (first, second):
        counts = ((x.double().sigmoid() - 0.05) / 0.9 * 17).floor()
        assert torch.equal(counts.view(4, 1, 8, 8), data.train[:4].double())


def test_a_row_is_theirs_minus_ours(toy, monkeypatch) -> None:
    """Differences -1 and -3 over two seeds: -2, within 2 +- 63.66 by Student's law.

    Ours is at their end after one step of four, and after three.
    """
    trained = {
        (True, 0): TrainingEnd(1.0, 5.0, 0.9, ((1, 0.5), (2, 0.7), (4, 1.0))),
        (False, 0): TrainingEnd(0.0, 4.0, 1.1, ((4, 0.0),)),
        (True, 1): TrainingEnd(2.0, 6.0, 0.8, ((1, -2.0), (3, -0.5), (4, 2.0))),
        (False, 1): TrainingEnd(-1.0, 5.0, 0.95, ((4, -1.0),)),
    }
    monkeypatch.setattr(against, "train", lambda *args: trained[args[3], args[4]])
    seen = {o.metric: o for o in SUITE.measure(CELL, CONTEXT)}
    held_out = seen["log_prob_minus_ours"]
    assert (held_out.value, held_out.n, held_out.replicates) == (-2.0, 2, (-1.0, -3.0))
    reach = stats.t.ppf(0.995, df=1)  # of a mean of two whose standard error is one
    assert held_out.ci_low == pytest.approx(-2 - reach)
    assert held_out.ci_high == pytest.approx(-2 + reach)
    assert seen["log_prob_ours"].value == 1.5
    assert seen["fitted_minus_ours"].value == -1.0
    assert seen["steps_to_match"].value == 0.5  # 1/4 and 3/4
    assert seen["lipschitz_certified"].value == 1.1
    assert seen["lipschitz_certified_ours"].value == 0.9
    trained[True, 1] = TrainingEnd(-2.0, 6.0, 0.8, ((4, -2.0),))
    lost = {o.metric: o for o in measure_against(CELL, CONTEXT)}["steps_to_match"]
    assert lost.value == math.inf
    assert lost.message.startswith("not reached in as many steps with 1 of 2 seeds")


def test_trainings_of_the_suite_are_paired(toy) -> None:
    """Ten times nearer to each other than seeds are."""
    seen = {o.metric: o for o in measure_against(CELL, CONTEXT)}
    of_ours = [against.train(toy, 0.9, 4, True, seed, 50).held_out for seed in (0, 1)]
    assert seen["log_prob_ours"].value == pytest.approx(np.mean(of_ours))
    assert max(map(abs, seen["log_prob_minus_ours"].replicates)) < 0.5
    assert seen["lipschitz_certified_ours"].value <= 0.9


def test_what_is_not_trained_alike_is_skipped(toy, monkeypatch) -> None:
    for axis, other in (("implementation", "ours"), ("architecture", "conv"), ("dtype", "float64")):
        cell = Cell("density", {**CELL.axes, axis: other})
        with pytest.raises(Skip, match=f"for {axis}={against.HELD[axis]} alone; got {other}"):
            list(measure_against(cell, CONTEXT))
    monkeypatch.setattr(peer, "find_spec", lambda name: None)
    with pytest.raises(Skip, match=r"pip install -e '\.\[peers\]'"):
        list(measure_against(CELL, CONTEXT))


def test_a_loss_that_is_not_finite_names_the_step(toy) -> None:
    x = torch.full_like(toy.train, torch.inf)
    with pytest.raises(Failure, match="the loss of ours is nan at step 1"):
        list(against.fit(against.ours(ResidualFlow.mlp(2, (4,), 1, 0.9), Exact()), iter([x]), 2))


def test_the_finding_names_each_dataset_at_its_longest() -> None:
    common = {"status": "ok", "implementation": "normflows", "log_prob_minus_ours_n": 3}
    cells = [
        common | {"dataset": name, "step": step, "log_prob_minus_ours": value}
        | {"log_prob_minus_ours_low": value - 0.2, "log_prob_minus_ours_high": value + 0.2}
        for name, step, value in (("digits", 200, -1.6), ("digits", 800, 0.25), ("moons", 200, 0.1))
    ]  # fmt: skip
    said = trained_alike(pd.DataFrame(cells))
    assert "0.25 [0.05, 0.45] after 800 steps on digits" in said
    assert "0.10 [−0.10, 0.30] after 200 steps on moons" in said
    assert "on digits, normflows shows a better held-out density" in said
    assert "shows no other" in trained_alike(pd.DataFrame(cells[2:]))
    assert "shows a worse" in trained_alike(pd.DataFrame(cells[:1]))
    assert "(n = 3 seeds)" in said
    assert "1.6" not in said
    assert trained_alike(pd.DataFrame(cells).drop(columns="implementation")) == ""
