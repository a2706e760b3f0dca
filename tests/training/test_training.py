"""Training: it learns, it resumes to the same numbers, it says why it stops."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from resflow_bench.data import Dataset
from resflow_bench.flows import ResidualFlow
from resflow_bench.logdet import Exact, Geometric, LogDetEstimator, Rademacher, Roulette
from resflow_bench.training.trainer import JUMP, Diverged, Trainer, Training

ESTIMATOR = LogDetEstimator(Rademacher(), Roulette(Geometric(0.3), n_exact=2))


def ring() -> Dataset:
    """400 points near a circle."""
    noise = torch.Generator().manual_seed(0)
    angle = 2 * torch.pi * torch.rand(400, generator=noise)
    radius = 2 + 0.2 * torch.randn(400, generator=noise)
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return Dataset("ring", points, points)


def counts() -> Dataset:
    """The ring as counts of 0 to 7, to be dequantised."""
    points = ((ring().train + 3) / 6 * 8).clamp(0, 7).byte()
    return Dataset("counts", points, points, n_levels=8)


@dataclass(frozen=True)
class Scaled:
    """The ring, blown up: what a trainer meets when a dataset is not what it was."""

    factor: float

    @property
    def train(self) -> Tensor:
        return ring().train

    def prepare(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        return batch * self.factor


def make_trainer(n_steps: int = 60, data: Dataset | None = None, **settings: Any) -> Trainer:
    """Two dimensions, four blocks."""
    flow = ResidualFlow.mlp(2, (32, 32), 4, 0.9, estimator=ESTIMATOR)
    settings = {"batch_size": 128, **settings}
    return Trainer(flow, data or ring(), Training(n_steps, **settings))


def snapshot(flow: ResidualFlow) -> dict[str, Tensor]:
    return copy.deepcopy(flow.state_dict())


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_training_raises_the_exact_likelihood() -> None:
    """By at least 0.5 nat over ActNorm alone, on the data, with the exact log-det."""
    trainer = make_trainer(200, learning_rate=2e-2)
    points = trainer.data.train
    trainer.flow.initialise(points)
    exact = trainer.flow.with_estimator(Exact())
    with torch.no_grad():
        before = exact.log_prob(points).mean().item()
    for _ in range(200):
        trainer.step()
    with torch.no_grad():
        assert exact.log_prob(points).mean().item() > before + 0.5


@pytest.mark.parametrize("make", [ring, counts])
@pytest.mark.parametrize("ema", [0.0, 0.8])
def test_resumed_training_goes_on_to_the_same_numbers(make, ema, tmp_path) -> None:
    """Losses, flow and average, through a file, across an epoch, with noise drawn each batch."""
    through = make_trainer(data=make(), ema=ema)
    losses = [through.step() for _ in range(12)]
    first = make_trainer(data=make(), ema=ema)
    for _ in range(5):
        first.step()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = make_trainer(data=make(), ema=ema)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [second.step() for _ in range(7)] == losses[5:]
    assert_equal(second.flow.state_dict(), through.flow.state_dict())
    assert_equal(second.averaged().state_dict(), through.averaged().state_dict())
    assert second.best_loss == through.best_loss


def test_a_state_is_a_snapshot() -> None:
    """Later steps change neither the state nor, through it, another trainer."""
    trainer, twin = make_trainer(ema=0.5), make_trainer(ema=0.5)
    trainer.step()
    state = trainer.state_dict()
    twin.load_state_dict(state)
    expected = trainer.step()
    trainer.step()
    assert twin.step() == expected
    twin.load_state_dict(state)
    assert twin.step() == expected


def test_seeds_decide() -> None:
    for make in (ring, counts):
        assert make_trainer(data=make()).step() == make_trainer(data=make()).step()
        assert make_trainer(data=make()).step() != make_trainer(data=make(), seed=1).step()


def test_counts_are_dequantised_afresh_for_each_batch() -> None:
    """Whole epochs of one batch: the rows are the same, x is not."""
    trainer = make_trainer(data=counts(), batch_size=400)
    seen = []
    prepare = trainer.data.prepare

    @dataclass(frozen=True)
    class Listening:
        train: Tensor

        def prepare(self, batch: Tensor, generator: torch.Generator) -> Tensor:
            x = prepare(batch, generator)
            seen.append(x.sort(dim=0).values)
            return x

    trainer.data = Listening(trainer.data.train)
    trainer.step()
    trainer.step()
    assert torch.equal((seen[0] * 8).floor(), (seen[1] * 8).floor())
    assert not torch.equal(seen[0], seen[1])


def test_the_average_is_the_weighted_mean_of_the_steps() -> None:
    """sum_i d^(t-i) theta_i / sum_i d^(t-i), to rounding; the last parameters are rejected."""
    decay = 0.6
    trainer = make_trainer(ema=decay, learning_rate=1e-2)
    iterates = []
    for _ in range(5):
        trainer.step()
        iterates.append([parameter.detach().double() for parameter in trainer.flow.parameters()])
    weight = torch.tensor([decay**i for i in range(5)][::-1], dtype=torch.float64)
    weight /= weight.sum()
    averaged = list(trainer.averaged().parameters())
    for i, mean in enumerate(averaged):
        expected = sum(w * step[i] for w, step in zip(weight, iterates, strict=True))
        torch.testing.assert_close(mean.detach().double(), expected, rtol=0, atol=1e-6)
    moved = [(a - b).abs().max() for a, b in zip(averaged, iterates[-1], strict=True)]
    assert max(moved) > 1e-4


def test_a_state_with_an_accelerator_s_generator_is_refused_whole() -> None:
    """Such states were saved while a training drew its random numbers on its device."""
    trainer = Trainer(ResidualFlow.mlp(2, (4,), 1, 0.9), ring(), Training(3, batch_size=8))
    trainer.step()
    state = trainer.state_dict()
    before = copy.deepcopy(trainer.flow.state_dict())
    state["generator"] = torch.zeros(16, dtype=torch.uint8)
    state["flow"] = {name: 2 * value for name, value in state["flow"].items()}
    with pytest.raises(ValueError, match="Begin a new training from its weights"):
        trainer.load_state_dict(state)
    for name, value in trainer.flow.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_averaging_leaves_the_trained_flow_alone(ema) -> None:
    """Its state stays, bit for bit, and so do its next steps; the copy keeps its promises."""
    trainer, twin = make_trainer(ema=ema, learning_rate=0.1), make_trainer(learning_rate=0.1)
    for _ in range(5):
        trainer.step()
        twin.step()
    before = snapshot(trainer.flow)
    averaged = trainer.averaged()
    assert_equal(trainer.flow.state_dict(), before)
    for block in averaged.blocks:
        assert block.branch.lipschitz_certified() <= block.lipschitz * (1 + 1e-9)
    assert trainer.step() == twin.step()
    if not ema:
        parameters = dict(averaged.named_parameters())
        assert_equal(parameters, {name: before[name] for name in parameters})


def test_an_average_swapped_into_the_flow_is_rejected() -> None:
    """The twin: public code aligns the trained flow on its average, then swaps the weights back."""
    trainer = make_trainer(ema=0.9, learning_rate=0.1)
    for _ in range(5):
        trainer.step()
    before = snapshot(trainer.flow)
    own = [parameter.detach().clone() for parameter in trainer.flow.parameters()]
    with torch.no_grad():
        for parameter, mean in zip(trainer.flow.parameters(), trainer.average, strict=True):
            parameter.copy_(mean)
        trainer.flow.align()
        for parameter, value in zip(trainer.flow.parameters(), own, strict=True):
            parameter.copy_(value)
    with pytest.raises(AssertionError):
        assert_equal(trainer.flow.state_dict(), before)


def test_promises_hold_after_every_step_and_the_excess_is_what_the_update_took_away() -> None:
    """At a hostile rate a step breaks the promise, and its update mends it."""
    trainer = make_trainer(learning_rate=0.1, warm_up=0)
    excesses = []
    for _ in range(10):
        trainer.step()
        before = snapshot(trainer.flow)
        excesses.append(trainer.excess())
        assert_equal(trainer.flow.state_dict(), before)
        for block in trainer.flow.blocks:
            assert block.branch.lipschitz_certified() <= block.lipschitz * (1 + 1e-6)
    assert max(excesses) > 1.01


def test_the_excess_is_that_of_a_flow_that_is_not_updated(monkeypatch) -> None:
    """The same ten steps, the last without its update, certified in place."""
    trainer, twin = (make_trainer(learning_rate=0.1, warm_up=0) for _ in range(2))
    for _ in range(9):
        trainer.step()
        twin.step()
    trainer.step()
    monkeypatch.setattr(twin.flow, "update", lambda: None)
    twin.step()
    certified = [block.branch.lipschitz_certified() / 0.9 for block in twin.flow.blocks]
    assert trainer.excess() == max(certified)
    with pytest.raises(ValueError, match="Call `step` first"):
        make_trainer().excess()


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (math.nan, "loss is nan at step 3 .*gradient norm nan"),
        (1e30, "loss is inf at step 3"),
        (JUMP, "at best, at step 3 .*gradient norm"),
    ],
)
def test_divergence_says_why_and_changes_nothing(factor, words) -> None:
    """The flow and the average stay, and training goes on when the data are mended."""
    trainer = make_trainer(ema=0.5)
    trainer.flow.estimator = LogDetEstimator(Rademacher(), Roulette(Geometric(0.9), n_exact=2))
    losses = [trainer.step(), trainer.step()]
    before = trainer.state_dict()
    mended, trainer.data = trainer.data, Scaled(factor)
    with pytest.raises(Diverged, match=words) as error:
        trainer.step()
    for said in (
        "largest certified constant of a block is 0.",
        "variance of geometric(0.9), n_exact=2 is infinite",
        "Leave the examples" if math.isnan(factor) else "Lower `learning_rate`, or use a roulette",
        "left as they were",
    ):
        assert said in str(error.value)
    assert_equal(trainer.flow.state_dict(), before["flow"])
    assert all(map(torch.equal, trainer.average, before["average"]))
    assert trainer.n_steps_done == 2
    trainer.data = mended
    assert trainer.step() < max(losses) + 1


def test_a_gradient_that_is_not_finite_stops_before_the_step() -> None:
    """The loss is fine; Adam would have put nan into every parameter."""
    trainer = make_trainer()
    trainer.step()
    before = snapshot(trainer.flow)
    first = next(trainer.flow.parameters())
    handle = first.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(Diverged, match=r"loss is [\d.]+ at step 2 .*gradient norm (inf|nan)"):
        trainer.step()
    handle.remove()
    assert_equal(trainer.flow.state_dict(), before)


def test_a_first_batch_that_fails_leaves_the_actnorms_alone() -> None:
    """Neither the roulette nor the learning rate is blamed for the data."""
    trainer = make_trainer()
    trainer.flow.estimator = LogDetEstimator(Rademacher(), Roulette(Geometric(0.1), n_exact=2))
    before = snapshot(trainer.flow)
    trainer.data = Scaled(math.nan)
    with pytest.raises(Diverged, match=r"cannot begin\. .*all finite; got 128, 128 of"):
        trainer.step()
    assert_equal(trainer.flow.state_dict(), before)


def test_a_roulette_of_finite_variance_is_not_blamed() -> None:
    """Data that overflow after the first batch: the examples are finite, their loss is not."""
    trainer = make_trainer()
    trainer.flow.estimator = LogDetEstimator(Rademacher(), Roulette(Geometric(0.1), n_exact=2))
    trainer.step()
    trainer.data = Scaled(1e38)
    with pytest.raises(Diverged, match=r"is finite\. Lower `learning_rate`\."):
        trainer.step()


def test_one_example_a_step_is_enough_to_begin() -> None:
    """One row has no spread: the scales stay 1, and the loss falls."""
    trainer = make_trainer(60, batch_size=1)
    losses = [trainer.step() for _ in range(60)]
    assert all(map(math.isfinite, losses))
    assert sum(losses[-20:]) < sum(losses[:20])


def test_the_diagnosis_knows_lost_weights() -> None:
    trainer = make_trainer()
    trainer.step()
    with torch.no_grad():
        next(trainer.flow.parameters()).fill_(math.nan)
    with pytest.raises(Diverged, match=r"not finite before it\. Lower"):
        trainer.step()


def test_a_step_that_lost_its_parameters_is_named_and_not_saved() -> None:
    """As off the CPU, where no update of the norms finds it."""
    trainer = make_trainer(learning_rate=0.01, warm_up=0)
    trainer.flow.update = lambda: None
    trainer.step()
    trainer.state_dict()
    with torch.no_grad():
        next(trainer.flow.parameters()).fill_(math.nan)
    words = r"Step 1 \(learning rate 0\.01, gradient norm [\d.]+\) left parameters"
    with pytest.raises(Diverged, match=words):
        trainer.state_dict()


def test_learning_rate_warms_up_and_decays() -> None:
    trainer = make_trainer(100, learning_rate=1.0, warm_up=10)
    rates = []
    for done in range(101):
        trainer.n_steps_done = done
        rates.append(trainer.learning_rate)
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(rates[9], rel=1e-2)
    assert rates[100] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_steps": 0}, "n_steps at least 1; got 0"),
        ({"batch_size": 0}, "batch_size at least 1; got 0"),
        ({"learning_rate": 0.0}, "learning_rate above 0; got 0.0"),
        ({"warm_up": -1}, "warm_up at least 0; got -1"),
        ({"clip_norm": 0.0}, "clip_norm above 0; got 0.0"),
        ({"ema": 1.0}, r"ema in \[0, 1\); got 1.0"),
        ({"seed": 2**64}, rf"seed in \[0, 2\^63\); got {2**64}"),
    ],
)
def test_bad_settings_are_refused_with_the_value(settings, words) -> None:
    with pytest.raises(ValueError, match=words):
        Training(**{"n_steps": 1, **settings})


def test_a_state_with_another_average_is_refused() -> None:
    with pytest.raises(ValueError, match="same `ema`; got 0"):
        make_trainer(ema=0.9).load_state_dict(make_trainer().state_dict())
