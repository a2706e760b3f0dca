"""A training that is stopped, killed or fails: what is kept, and where it goes on from."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import inf
from pathlib import Path

import pandas as pd
import pytest
import torch
from trainings import STEPS, TINY, Call, Whole, calling, newest, same, undisturbed, weights_of

from resflow_bench.analysis.tables import wide
from resflow_bench.data import dataset_named
from resflow_bench.lab.store import Run, Store
from resflow_bench.training import run as run_of_training
from resflow_bench.training.plan import TrainingPlan, begin
from resflow_bench.training.trainer import Trainer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return undisturbed(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def call(tmp_path: Path) -> Iterator[Call]:
    with calling(tmp_path) as call:
        yield call


def but_times(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["metric"] != "examples_per_s"].reset_index(drop=True)


# --- stopped, and gone on with


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every step."""
    monkeypatch.setattr(run_of_training, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    monkeypatch.setattr(run_of_training, "CHECKPOINT_SHARE", inf)


def signal_at(monkeypatch: pytest.MonkeyPatch, place: str, count: int, number: int) -> None:
    """The signal comes in the middle of the `count`-th call of a function of the training."""
    owner = Trainer if place == "step" else run_of_training
    before, calls = getattr(owner, place), []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), number)
        return before(*arguments)

    monkeypatch.setattr(owner, place, interrupted)


@pytest.mark.parametrize(
    ("place", "count", "number", "kept"),
    [
        ("step", 7, signal.SIGINT, 7),  # the step is finished first, and kept
        ("_log_prob", 2, signal.SIGTERM, 10),  # the row of step 10 is not, and is due on resume
        ("_log_prob", 3, signal.SIGINT, 12),
        ("step", 1, signal.SIGTERM, 1),
    ],
)
@pytest.mark.usefixtures("often")
def test_a_training_that_was_stopped_goes_on_to_the_same_numbers(
    whole: Whole, call: Call, monkeypatch, place: str, count: int, number: int, kept: int
) -> None:
    with monkeypatch.context() as patch:
        signal_at(patch, place, count, number)
        outcome = call(TINY)
    run = newest(Path.cwd())
    assert outcome.code == 128 + number
    assert outcome.out == ""
    command = f"resflow-bench train --resume {run.name}"
    said = f"interrupted: {kept} of {STEPS} steps are stored; train the rest with:\n  {command}\n"
    assert outcome.err.endswith(said)
    assert run.about["status"] == "interrupted"
    assert not run_of_training.TrainingFiles(run).weights.exists()
    if kept < 5:
        refused = call("report")
        assert refused.code == 2
        assert command in refused.err
    refused = call(f"run --resume {run.name}")
    assert refused.code == 2
    assert command in refused.err
    arrives_at_the_same(whole, call, run)


def arrives_at_the_same(whole: Whole, call: Call, run: Run) -> None:
    outcome = call(f"train --resume {run.name}")
    assert outcome.code == 0, outcome.err
    assert same(weights_of(run), whole.weights)
    rows = run.frame("training")
    pd.testing.assert_frame_equal(but_times(rows), but_times(whole.rows), check_exact=True)
    assert len(pd.read_parquet(run.path / "training")) == len(whole.rows)
    assert run.about["status"] == "finished"
    assert len(run.about["resumed"]) == 1
    assert run_of_training.TrainingFiles(run).checkpoint.exists(), "for more steps"


def test_a_training_that_was_killed_goes_on_to_the_same_numbers(whole: Whole, call: Call) -> None:
    """Killed after a row that is on disk and a checkpoint from before that row."""
    script = f"""
import os, signal, sys
from resflow_bench.cli import main
from resflow_bench.lab.store import run as store
from resflow_bench.training import run as train
from resflow_bench.training.trainer import Trainer
store.SECONDS_BUFFERED, train.SECONDS_BETWEEN_CHECKPOINTS = -1.0, 0.0
train.CHECKPOINT_SHARE = float("inf")
step, log_prob = Trainer.step, train._log_prob
def late(*arguments):
    train.SECONDS_BETWEEN_CHECKPOINTS = 1e9
    return log_prob(*arguments)
def killed(trainer):
    if trainer.n_steps_done == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(trainer)
Trainer.step, train._log_prob = killed, late
sys.argv = "resflow-bench {TINY}".split()
main()
"""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    process = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert process.returncode == -signal.SIGKILL
    run = newest(Path.cwd())
    assert run.about["status"] == "running"
    state = torch.load(run_of_training.TrainingFiles(run).checkpoint, weights_only=True)
    assert state["trainer"]["n_steps_done"] == 4
    assert set(run.frame("training")["step"]) == {5}
    arrives_at_the_same(whole, call, run)


@pytest.mark.usefixtures("often")
def test_a_checkpoint_that_does_not_fit_is_refused(call: Call, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        signal_at(patch, "step", 1, signal.SIGINT)
        call(TINY)
    run = newest(Path.cwd())
    file = run_of_training.TrainingFiles(run).checkpoint
    for content in (b"", b"nothing of the kind", file.read_bytes()[:-1000]):
        file.write_bytes(content)
        outcome = call(f"train --resume {run.name}")
        assert outcome.code == 2
        assert re.fullmatch(r"error: checkpoint .* does not fit .*\n", outcome.err)


def test_data_that_have_changed_are_refused_and_leave_the_record(whole: Whole, call: Call) -> None:
    run = Store(Path("results")).create(whole.run.about | {"status": "interrupted"})
    run.write_about(run.about | {"training": run.about["training"] | {"digest": "another"}})
    before = run.about
    outcome = call(f"train --resume {run.name}")
    assert outcome.code == 2
    assert re.fullmatch(r"error: run .* was begun on other checkerboard .*\n", outcome.err)
    assert run.about == before


def test_a_training_needs_no_main_thread(whole: Whole, tmp_path: Path) -> None:
    """Notebooks and schedulers call it in another, where Python handles no signal."""
    data, plan = dataset_named("checkerboard"), TrainingPlan.recorded(whole.run, {})
    run = begin(plan, Store(tmp_path))
    with ThreadPoolExecutor() as other:
        assert other.submit(run_of_training.train, plan, data, run).result().n_done == STEPS
    assert run.about["status"] == "finished"
    assert same(weights_of(run), whole.weights)


# --- failed


def test_a_divergence_keeps_what_came_before_and_says_why(call: Call) -> None:
    outcome = call(f"{TINY} --learning-rate 3")
    run = newest(Path.cwd())
    cells = wide(run.frame("training"))
    failed = cells[cells["status"] == "failed"]
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    (row,) = failed.to_dict("records")
    said = f"failed: step {row['step']} of checkerboard-mlp-K0.9: Diverged: The training "
    assert said in outcome.err
    assert row["message"] in outcome.err
    assert "Lower `learning_rate`" in outcome.err
    done = row["step"] - 1
    assert f"run {run.name}: checkerboard-mlp-K0.9, {done} of {STEPS} steps\n" in outcome.out
    assert cells[cells["status"] == "ok"]["step"].max() == done > 0
    assert all(tensor.isfinite().all() for tensor in weights_of(run).values())
    assert run.about["status"] == "failed"
    page = call("report --out page")
    assert page.code == 0, page.err
    assert "Lower `learning_rate`" in Path("page/index.html").read_text()
    again = call(f"train --resume {run.name}")
    assert again.code == 1
    assert said in again.err


@pytest.mark.usefixtures("often")
def test_a_failure_that_has_passed_leaves_no_failed_row(
    whole: Whole, call: Call, monkeypatch
) -> None:
    """Memory ran out once, at a step that has no row: on resume it has one."""
    step = Trainer.step

    def exhausted(trainer):
        if trainer.n_steps_done == 7:
            raise RuntimeError("out of memory")
        return step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", exhausted)
        outcome = call(TINY)
    assert outcome.code == 1
    assert "RuntimeError: out of memory" in outcome.err
    run = newest(Path.cwd())
    assert not run_of_training.TrainingFiles(run).weights.exists()
    assert call(f"train --resume {run.name}").code == 0
    assert set(run.frame("training")["status"]) == {"ok"}
    assert set(run.frame("training")["step"]) == {5, 8, 10, 12}
    assert same(weights_of(run), whole.weights)


def test_held_out_points_that_are_lost_are_counted(call: Call, monkeypatch) -> None:
    monkeypatch.setattr(run_of_training, "_log_prob", lambda *arguments: [1.0, inf, 2.0])
    assert call("train moons --preset smoke --steps 1 --batch-size 8").code == 0
    (cell,) = wide(newest(Path.cwd()).frame("training")).to_dict("records")
    assert (cell["n_not_finite"], cell["n_not_finite_n"]) == (1, 3)
    assert "log_prob_test is left out" in cell["message"]
    assert "log_prob_test" not in cell
