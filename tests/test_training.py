"""Training: it learns, it resumes to the same numbers, it says why it stops; cached weights."""

from __future__ import annotations

import pytest
import torch

from resflow_bench import data
from resflow_bench.flows import ResidualFlow
from resflow_bench.lab import weights
from resflow_bench.logdet import Exact, Geometric, LogDetEstimator, Rademacher, Roulette
from resflow_bench.training import Diverged, Trainer, Training

ESTIMATOR = LogDetEstimator(Rademacher(), Roulette(Geometric(0.3), n_exact=2))


def make_trainer(n_steps: int = 60, **settings: float) -> Trainer:
    """A 2-D ring, four blocks."""
    noise = torch.Generator().manual_seed(0)
    angle = 2 * torch.pi * torch.rand(400, generator=noise)
    radius = 2 + 0.2 * torch.randn(400, generator=noise)
    ring = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    flow = ResidualFlow.mlp(2, (32, 32), 4, 0.9, estimator=ESTIMATOR)
    return Trainer(flow, ring, Training(n_steps, batch_size=128, **settings))  # type: ignore[arg-type]


def test_training_raises_the_exact_likelihood() -> None:
    """By at least 0.5 nat over ActNorm alone, on the data, with the exact log-det."""
    trainer = make_trainer(200, learning_rate=2e-2)
    trainer.flow.initialise(trainer.data)
    exact = trainer.flow.with_estimator(Exact())
    with torch.no_grad():
        before = exact.log_prob(trainer.data).mean().item()
    for _ in range(200):
        trainer.step()
    with torch.no_grad():
        assert exact.log_prob(trainer.data).mean().item() > before + 0.5


def test_resumed_training_goes_on_to_the_same_numbers(tmp_path) -> None:
    through = make_trainer()
    losses = [through.step() for _ in range(20)]
    first = make_trainer()
    for _ in range(7):
        first.step()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = make_trainer()
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [second.step() for _ in range(13)] == losses[7:]
    for ours, theirs in zip(second.flow.parameters(), through.flow.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_seeds_decide() -> None:
    assert make_trainer().step() == make_trainer().step()
    assert make_trainer().step() != make_trainer(seed=1).step()


def test_promise_holds_after_alignment() -> None:
    """Ten steps at a hostile rate put a norm above its promise; `align` brings it back."""
    trainer = make_trainer(learning_rate=0.1, warm_up=0, n_power_steps=0)
    for _ in range(10):
        trainer.step()
    branches = [block.branch for block in trainer.flow.blocks]
    assert max(branch.lipschitz_certified() for branch in branches) > 0.9
    trainer.flow.align()
    assert max(branch.lipschitz_certified() for branch in branches) <= 0.9


def test_a_loss_that_is_not_a_number_stops_with_the_reason() -> None:
    trainer = make_trainer()
    trainer.step()
    before = [parameter.clone() for parameter in trainer.flow.parameters()]
    trainer.data = torch.full_like(trainer.data, torch.nan)
    with pytest.raises(Diverged, match=r"loss is nan at step 2 .* Lower `learning_rate`"):
        trainer.step()
    for ours, theirs in zip(trainer.flow.parameters(), before, strict=True):
        assert torch.equal(ours, theirs)


def test_learning_rate_warms_up_and_decays() -> None:
    trainer = make_trainer(100, learning_rate=1.0, warm_up=10)
    rates = []
    for done in range(101):
        trainer.n_steps_done = done
        rates.append(trainer.learning_rate)
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(rates[9], rel=1e-2)
    assert rates[100] == pytest.approx(0.1)


def test_digits_are_the_documented_ones() -> None:
    train, test = data.digits()
    assert train.shape == (1437, 64)
    assert test.shape == (360, 64)
    assert torch.isfinite(train).all()
    assert train.abs().max() <= torch.logit(torch.tensor(0.95)) + 1e-6
    assert torch.equal(train, data.digits().train)
    assert not torch.equal(train, data.digits(seed=1).train)


def test_weights_are_cached_by_what_made_them(tmp_path, monkeypatch) -> None:
    """Made once; read back bit for bit; a killed training goes on; other settings, other file."""
    monkeypatch.setattr(weights, "SETTINGS", Training(n_steps=4, batch_size=32))
    monkeypatch.setattr(weights, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    said: list[str] = []
    made = weights.trained_digits(0.8, tmp_path, said.append)
    assert "step 2/4" in said[1]
    (file,) = (tmp_path / "models").iterdir()
    assert file.name.startswith("digits-K0.8-")
    said.clear()
    for ours, theirs in zip(
        weights.trained_digits(0.8, tmp_path, said.append).parameters(),
        made.parameters(),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    assert said == []

    class Killed(Exception):
        pass

    def kill(message: str) -> None:
        if "step 2/4" in message:
            raise Killed

    with pytest.raises(Killed):
        weights.trained_digits(0.8, tmp_path / "killed", kill)
    resumed = weights.trained_digits(0.8, tmp_path / "killed", said.append)
    assert "step 3/4" in said[0]
    for ours, theirs in zip(resumed.parameters(), made.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert len(list((tmp_path / "killed" / "models").iterdir())) == 1
    before = weights.fingerprint(0.8)
    assert weights.fingerprint(0.7) != before
    monkeypatch.setattr(weights, "SETTINGS", Training(n_steps=5, batch_size=32))
    assert weights.fingerprint(0.8) != before
