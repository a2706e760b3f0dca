"""The comparisons with normflows compare the same thing: maps, gradients, densities, batches."""

from __future__ import annotations

import math
from importlib.util import find_spec
from itertools import islice

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import stats

from resflow_bench.data import Dataset, digits_images
from resflow_bench.flows import Logit, MultiScale, ResidualBlock, ResidualFlow, image_flow
from resflow_bench.layers import LinearBranch
from resflow_bench.logdet import Exact, Fixed, Gaussian, Geometric, LogDetEstimator, Roulette
from resflow_bench.peers.normflows import normflows_flow, normflows_nets, normflows_seeded
from suites.comparisons import density, log_prob, pairs, training
from suites.comparisons.density import Evaluation, TrainingSpec
from suites.comparisons.learners import (
    THEIR_ROULETTE,
    Learner,
    branch_gradients,
    certified,
    exact_log_prob,
    ours,
    theirs,
)
from suites.comparisons.race import TimeToMatch, outcome

pytestmark = pytest.mark.skipif(
    find_spec("normflows") is None,
    reason="normflows is not installed; .venv/bin/pip install -e '.[peers]' brings it",
)


def points(*event: int) -> torch.Tensor:
    return torch.randn(32, *event, generator=torch.Generator().manual_seed(1), dtype=torch.double)


def with_large_jacobians(flow: ResidualFlow, x: torch.Tensor) -> ResidualFlow:
    """Aligned, in float64, with ||J|| near 1/2: weights near the identity, sharp activations."""
    flow.double().initialise(x)
    with torch.no_grad():
        for block in flow.blocks:
            for layer in block.branch.layers:
                centre = [size // 2 for size in layer.weight.shape[2:]]
                layer.weight[:, :, *centre] += 2 * torch.eye(*layer.weight.shape[:2])
                layer.bias += 1
            for phi in block.branch.activations:
                phi.raw_beta.fill_(3.0)
    flow.align()
    return flow


def mlp() -> tuple[ResidualFlow, torch.Tensor]:
    x = points(4)
    return with_large_jacobians(ResidualFlow.mlp(4, (8, 8), 2, 0.9), x), x


def conv() -> tuple[ResidualFlow, torch.Tensor]:
    x = points(2, 4, 4)
    flow = image_flow((2, 4, 4), MultiScale(1, 2, (4, 4), n_tail=0, margin=None))
    return with_large_jacobians(flow, x), x


def gradient_difference(flow: ResidualFlow, x: torch.Tensor, mine: int, its: int) -> float:
    """The largest relative one over the parameters of the branches, from the same probes."""
    pair = [
        ours(flow, LogDetEstimator(Gaussian(), Fixed(mine)), 5),
        theirs(flow, Fixed(its)),
    ]
    with normflows_seeded(5):
        for learner in pair:
            learner.loss(x).backward()
    gradients = map(branch_gradients, pair)
    return max(float((a - b).norm() / a.norm()) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("make", [mlp, conv])
def test_gradients_are_the_same_at_the_stated_number_of_terms(make) -> None:
    """Up to the 1e-6 of each coefficient that ours keeps for rounding; one term more is seen."""
    flow, x = make()
    assert gradient_difference(flow, x, 4, 4) < 5e-5
    assert gradient_difference(flow, x, 4, 5) > 5e-4


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
    with pytest.raises(ValueError, match=r"got geometric\(0.1\)"):
        theirs(mlp()[0], Roulette(Geometric(0.1), n_exact=3))


def test_peaks_are_flat_in_the_number_of_terms() -> None:
    """Ours, and theirs in the mode compared with; their plain series, the twin, is not."""
    flow, x = mlp()

    def plain(flow: ResidualFlow, truncation: Fixed) -> Learner:
        peer = normflows_flow(flow, reduce_memory=False, n_power_series=truncation.n_terms)
        return Learner(peer, peer.forward_kld, lambda: None)

    def growth(make) -> float:
        few, many = (training.peak(make(flow, Fixed(n)), x) for n in (5, 50))
        return many / few

    assert growth(lambda flow, n: ours(flow, LogDetEstimator(Gaussian(), n))) < 1.05
    assert growth(theirs) < 1.05
    assert growth(plain) > 2


def test_the_page_of_a_small_flow(monkeypatch, capsys) -> None:
    monkeypatch.setattr(pairs, "N_REPEATS", 2)
    flow, x = mlp()
    seconds = training.compare(flow, x, THEIR_ROULETTE)
    assert seconds.shape == (2, 2, 2)
    assert (seconds > 0).all()
    training.report("small", flow, x, (Fixed(3),))
    said = capsys.readouterr().out
    for words in ("small, B = 32", "fixed(3), threads: 1", "updates take", "ours at 50 terms"):
        assert words in said


def test_times_are_ratios_of_whole_steps() -> None:
    """Ours 3 + 1 s, theirs 7 + 1 s: half the time, a quarter and an eighth of it updates."""
    said = training.times(np.array([[[3.0, 1.0], [7.0, 1.0]]] * 10))
    assert said.startswith("0.500 [0.500, 0.500]")
    assert "updates take 25% of ours, 12% of theirs" in said


def test_a_race_that_is_not_won_is_said() -> None:
    """Half the seconds in three quarters of the steps, twice; then one that never got there."""
    won, lost = TimeToMatch(0.5, 0.75), TimeToMatch(math.inf, math.inf)
    assert outcome([won]) == "0.500, in 0.750 of their steps; seeds: 1"
    assert outcome([won, won]).startswith("0.500 [0.500, 0.500] (99 % by t), in 0.750")
    assert outcome([won, lost]) == "not reached in as many steps with 1 of 2 seeds"


@pytest.mark.parametrize("suite", [log_prob, training])
def test_the_asv_face_tracks_ratios(suite, monkeypatch) -> None:
    monkeypatch.setattr(pairs, "N_REPEATS", 1)
    monkeypatch.setattr(suite, "N_TERMS", 2)
    (name,) = (name for name in vars(suite) if name.endswith("AgainstNormflows"))
    face = getattr(suite, name)()
    face.setup()
    (track,) = (method for method in dir(face) if method.startswith("track_"))
    tracked = getattr(face, track)()
    assert len(tracked["samples"]) == 1
    assert tracked["samples"][0] > 0
    monkeypatch.setattr(pairs, "find_spec", lambda name: None)
    with pytest.raises(NotImplementedError, match="peers"):
        face.setup()


@pytest.fixture
def toy(monkeypatch) -> None:
    x = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
    data = Dataset("toy", train=x[:500], test=x[500:])
    monkeypatch.setattr(density, "dataset_named", lambda name: data)
    monkeypatch.setattr(density, "N_BLOCKS", 2)


def test_a_training_repeats_to_the_bit(toy) -> None:
    for whose in ("ours", "theirs"):
        mine, again, other = (
            density.train(TrainingSpec("toy", seed, whose, 4)) for seed in (0, 0, 1)
        )
        assert [look.step for look in mine] == [1, 2, 4]
        assert mine[-1].log_prob.shape == (100,)
        values = [looks[-1].log_prob.tolist() for looks in (mine, again, other)]
        assert values[0] == values[1] != values[2]
        assert 0 < mine[-1].certified < density.LIPSCHITZ * 1.01


def test_both_begin_with_the_same_density_and_see_the_same_batches(toy, monkeypatch) -> None:
    """A seed of its own is seen in both."""
    seen = []

    def see(learner, x_of_steps, spec) -> list[int]:
        x = torch.stack(list(x_of_steps))
        seen.append((exact_log_prob(learner.flow, x[0]), x))
        return []

    monkeypatch.setattr(density, "fit", see)
    for whose, seed in (("ours", 0), ("theirs", 0), ("theirs", 1)):
        density.train(TrainingSpec("toy", seed, whose, 4))
    mine, its, other = seen
    torch.testing.assert_close(mine[0], its[0], rtol=0, atol=1e-4)
    assert torch.equal(mine[1], its[1])
    assert abs(mine[0] - other[0]).max() > 0.05
    assert not torch.equal(mine[1], other[1])


def test_batches_are_drawn_without_replacement(monkeypatch) -> None:
    monkeypatch.setattr(density, "BATCH_SIZE", 4)
    x = torch.arange(10.0)[:, None]
    data = Dataset("ten", x, x)
    drawn = list(density.batches(data, 5, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in drawn] == [4] * 5
    for first, second in islice(zip(drawn[::2], drawn[1::2], strict=False), 2):
        assert len({*first.flatten().tolist(), *second.flatten().tolist()}) == 8


def test_digits_are_dequantised_afresh_in_every_batch() -> None:
    """And land in logit space, from where the counts can be read again."""
    data = digits_images()
    generator = torch.Generator().manual_seed(0)
    first, second = (density.vectors(data, data.train[:4], generator) for _ in range(2))
    assert first.shape == (4, 64)
    assert not torch.equal(first, second)
    for x in (first, second):
        counts = ((x.double().sigmoid() - 0.05) / 0.9 * 17).floor()
        assert torch.equal(counts.view(4, 1, 8, 8), data.train[:4].double())


def test_a_verdict_is_ours_minus_theirs() -> None:
    """Differences 1 and 3 over two seeds: 2, within 2 +- 63.66 by Student's law."""

    def looks(step: int, held_out: float, fitted: float, certified: float) -> list[Evaluation]:
        return [Evaluation(step, np.array([held_out, held_out + 1]), fitted, certified)]

    trained = [
        (looks(8, 1.0, 5.0, 0.9), looks(8, 0.0, 5.0, 1.1)),
        (looks(8, 2.0, 5.0, 0.8), looks(8, -1.0, 5.0, 0.9)),
    ]
    lines = list(density.verdict("toy", trained))
    assert lines[0] == "toy"
    assert lines[1].startswith(
        "  after 8 steps: held-out +2.0000 [-61.6567, +65.6567] (ours 2.000)"
    )
    assert lines[1].endswith("training +0.0000 [+0.0000, +0.0000]")
    assert lines[2].endswith("seed 0, held-out, over its 2 examples: +1.0000 [+1.0000, +1.0000]")
    assert lines[4].endswith(
        "ours: 0.9000 at the end, 0.9000 at any look, at or below the promised 0.9"
    )
    assert lines[5].endswith(
        "theirs: 1.1000 at the end, 1.1000 at any look, ABOVE the promised 0.9"
    )


def test_commands_say_what_is_wrong(monkeypatch) -> None:
    answer = CliRunner().invoke(density.main, ["sunflowers"])
    assert answer.exit_code == 2
    assert "sunflowers" in answer.output
    monkeypatch.setattr(pairs, "find_spec", lambda name: None)
    for main in (log_prob.main, training.main):
        with pytest.raises(SystemExit, match=r"pip install -e '\.\[peers\]'"):
            main()
