"""Beginnings and ends of a training: init, more steps, the best weights, patience, a hook."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_train_resume import but_times, signal_at
from trainings import STEPS, TINY, Call, Whole, calling, newest, same, undisturbed, weights_of

from resflow_bench.analysis.tables import wide
from resflow_bench.architectures import architecture_named
from resflow_bench.data import dataset_named
from resflow_bench.flows import ResidualFlow, saving
from resflow_bench.lab.store import Run, Store
from resflow_bench.models.own import own_model
from resflow_bench.training import run as run_of_training
from resflow_bench.training.best import BestHeldOut
from resflow_bench.training.plan import TrainingPlan, begin
from resflow_bench.training.trainer import Trainer, Training
from resflow_bench.training.weights import TrainingFiles, load_weights


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return undisturbed(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def call(tmp_path: Path) -> Iterator[Call]:
    with calling(tmp_path) as call:
        yield call


def refused(call: Call, words: str, why: str) -> None:
    outcome = call(words)
    assert outcome.code == 2
    assert re.fullmatch(r"error: .*\n", outcome.err)
    assert why in outcome.err


# --- more steps


def test_the_rate_decays_over_its_own_steps_and_stays() -> None:
    settings = Training(20, 16, 1.0, warm_up=0, decay_steps=10)
    flow = ResidualFlow.mlp(2, (4,), 1, 0.9)
    trainer, rates = Trainer(flow, dataset_named("moons"), settings), []
    for trainer.n_steps_done in (0, 5, 10, 15, 20):
        rates.append(trainer.learning_rate)
    assert rates == pytest.approx([1.0, 0.55, 0.1, 0.1, 0.1])
    with pytest.raises(ValueError, match="decay_steps at least 0; got -1"):
        Training(20, decay_steps=-1)


def test_more_steps_are_those_of_one_training_of_that_length(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, in two parts, or killed in between: the same weights and rows."""
    assert call(TINY).code == 0
    run = newest(Path.cwd())
    first = weights_of(run)
    refused(call, f"train --resume {run.name} --steps {STEPS - 1}", "was begun with steps=12")
    refused(call, f"train --resume {run.name} --steps 25 --seed 3", "was begun with seed=0")
    with monkeypatch.context() as patch:
        signal_at(patch, "step", 4, signal.SIGINT)
        assert call(f"train --resume {run.name} --steps 25").code == 128 + signal.SIGINT
    outcome = call(f"train --resume {run.name}")
    assert outcome.code == 0, outcome.err
    assert "25 of 25 steps" in outcome.out
    assert not same(weights_of(run), first)
    assert len(run.about["resumed"]) == 2
    assert call(f"train --resume {run.name}").out == outcome.out, "it has ended"

    assert call(TINY.replace(f"--steps {STEPS}", f"--steps 25 --decay-steps {STEPS}")).code == 0
    at_once = newest(Path.cwd())
    assert same(weights_of(run), weights_of(at_once))
    rows = [but_times(one.frame("training")) for one in (run, at_once)]
    pd.testing.assert_frame_equal(*rows, check_exact=True)
    assert set(rows[0]["step"]) == {5, 10, 12, 15, 20, 25}
    assert run.about["arguments"] == at_once.about["arguments"]
    TrainingFiles(run).checkpoint.unlink()
    refused(call, f"train --resume {run.name} --steps 30", f"--init run:{run.name}")


# --- weights to begin with


def test_a_training_begins_with_the_weights_of_another(call: Call, whole: Whole) -> None:
    where = f"--results {whole.folder / 'results'}"
    init = f"run:{whole.run.name}"
    outcome = call(f"{TINY} --seed 1 --learning-rate 1e-9 --init {init} {where}")
    assert outcome.code == 0, outcome.err
    run = newest(whole.folder)
    assert {f"--init={init}", "--seed=1"} <= set(run.about["arguments"])
    for name, tensor in weights_of(run).items():
        torch.testing.assert_close(tensor, whole.weights[name], atol=1e-5, rtol=1e-4)
    file = TrainingFiles(whole.run).weights
    assert call(f"{TINY} --seed 1 --learning-rate 1e-9 --init {file}").code == 0
    assert same(weights_of(newest(Path.cwd())), weights_of(run))


def test_a_smaller_constant_is_kept_by_the_weights_of_a_larger_one(
    call: Call, whole: Whole
) -> None:
    file = TrainingFiles(whole.run).weights
    assert max(b.branch.lipschitz_certified() for b in ResidualFlow.load(file).blocks) > 0.5
    assert call(f"{TINY} --lipschitz 0.5 --init {file}").code == 0
    rows = newest(Path.cwd()).frame("training")
    certified = rows[rows["metric"] == "lipschitz_certified"]["value"]
    assert (certified <= 0.5 * (1 + 1e-6)).all()
    flow = architecture_named("mlp")((2,), 0.5)
    load_weights(flow, str(file), Path("results"))
    before_any_step = max(block.branch.lipschitz_certified() for block in flow.blocks)
    assert before_any_step <= 0.5 * (1 + 1e-6)


def test_weights_that_do_not_fit_or_have_changed(
    call: Call, whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = TrainingFiles(whole.run).weights
    refused(call, f"{TINY} --architecture deep --init {file}", "are of another architecture")
    refused(call, f"train digits-logit --preset smoke --init {file}", "another architecture")
    refused(call, f"{TINY} --init none.pt", "`none.pt` cannot be read")
    refused(call, f"{TINY} --init run:none", "none.pt` cannot be read")
    Path("text.pt").write_text("none")
    refused(call, f"{TINY} --init text.pt", "is no whole file of a flow")
    Path("start.pt").write_bytes(file.read_bytes())
    with monkeypatch.context() as patch:
        signal_at(patch, "step", 1, signal.SIGINT)
        call(f"{TINY} --init start.pt")
    run = newest(Path.cwd())
    TrainingFiles(run).checkpoint.unlink()  # as if killed before there was one
    flow = ResidualFlow.load(file)
    flow.save("start.pt", {"other": "notes"})
    refused(call, f"train --resume {run.name}", "was begun from other weights start.pt")


# --- the best


def test_the_best_weights_are_those_of_the_best_row(call: Call) -> None:
    """A rate so large that the likelihood falls again."""
    assert call(f"{TINY} --steps 40 --ema 0 --learning-rate 0.3").code == 0
    run = newest(Path.cwd())
    cells = wide(run.frame("training")).set_index("step")
    best = cells["log_prob_test"].idxmax()
    assert best < 40, "the last row would be no test"
    file = TrainingFiles(run).best
    assert saving.read(file).about["steps"] == best
    outcome = call(f"train --resume {run.name}")
    assert re.search(rf"\nbest: .* nat at step {best}, weights: .*/{file.name}\n", outcome.out)
    assert call(f"{TINY} --steps {best} --decay-steps 40 --ema 0 --learning-rate 0.3").code == 0
    model = own_model(f"run:{run.name}-best", Path("results"))
    assert model is not None
    again = weights_of(newest(Path.cwd()))
    assert same(model.flow(2, 0.9, Path("results"), print).state_dict(), again)


def test_an_improvement_is_beyond_noise_or_adds_up() -> None:
    noise = np.random.default_rng(0).normal(0, 1e-3, (8, 100))
    base = np.random.default_rng(1).normal(0, 1, 100)

    def rows_without(rise: float) -> list[int]:
        best, counts = BestHeldOut(), []
        for step, e in enumerate(noise):
            best.note(step, list(base + rise * step + e))
            counts.append(best.n_without)
        return counts

    assert rows_without(0.0)[-1] >= 6, "nothing but noise"
    assert rows_without(1.0) == [0] * 8
    slow = rows_without(2e-4)  # under the noise from row to row, and above it in three
    assert slow[1] == 1
    assert max(slow) < 5
    assert rows_without(-1.0) == list(range(8))


def test_a_lost_point_is_no_improvement() -> None:
    best = BestHeldOut()
    assert best.note(1, [0.0, 1.0])
    assert not best.note(2, [float("inf"), 9.0])
    assert (best.step, best.n_without) == (1, 1)


# --- patience


FALLING = f"{TINY} --ema 0 --learning-rate 0.3 --steps 200 --patience 2"


def test_a_training_without_improvement_stops(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = call(FALLING)
    assert outcome.code == 0, outcome.err
    run = newest(Path.cwd())
    done = int(run.frame("training")["step"].max())
    assert done < 200
    assert f"{done} of 200 steps, stopped after 2 rows without an improvement\n" in outcome.out
    assert run.about["status"] == "finished"
    assert call(f"train --resume {run.name}").out == outcome.out
    refused(call, f"train --resume {run.name} --steps 300", "was stopped at step")
    refused(call, f"train --resume {run.name} --patience 3", "was begun with patience=2")
    with monkeypatch.context() as patch:
        signal_at(patch, "_log_prob", 2, signal.SIGINT)
        assert call(FALLING).code == 128 + signal.SIGINT
    stopped = newest(Path.cwd())
    assert call(f"train --resume {stopped.name}").code == 0
    pd.testing.assert_frame_equal(
        but_times(stopped.frame("training")), but_times(run.frame("training")), check_exact=True
    )
    assert same(weights_of(stopped), weights_of(run))
    best = [TrainingFiles(one).best for one in (run, stopped)]
    assert same(*(ResidualFlow.load(file).state_dict() for file in best))


# --- a hook


def test_each_logged_row_is_passed_on(whole: Whole, tmp_path: Path) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    data, plan = dataset_named("checkerboard"), TrainingPlan.recorded(whole.run, {})
    run = begin(plan, Store(tmp_path))
    run_of_training.train(plan, data, run, on_row=lambda *row: seen.append(row))
    assert [step for step, _ in seen] == [5, 10, 12]
    rows = wide(whole.rows).set_index("step")
    for step, row in seen:
        for metric, value in row.items():
            assert metric == "examples_per_s" or value == rows[metric][step]


def test_a_record_of_an_earlier_version_is_read(whole: Whole, tmp_path: Path) -> None:
    about = dict(whole.run.about)
    training = {k: v for k, v in about["training"].items() if k not in ("init", "init_digest")}
    training.pop("patience")
    training.pop("reading")
    training["settings"] = {k: v for k, v in training["settings"].items() if k != "decay_steps"}
    run: Run = Store(tmp_path).create(about | {"training": training})
    assert TrainingPlan.recorded(run, {}) == TrainingPlan.recorded(whole.run, {})
