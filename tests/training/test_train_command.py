"""`resflow-bench train` as a user meets it: rows, weights, refusals, figures."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from trainings import (
    SETTINGS,
    STEPS,
    TINY,
    Call,
    Whole,
    calling,
    newest,
    same,
    undisturbed,
    weights_of,
)

from resflow_bench.analysis.tables import wide
from resflow_bench.architectures import architecture_named
from resflow_bench.data import dataset_named
from resflow_bench.flows import ResidualFlow
from resflow_bench.lab.progress import Progress, shown
from resflow_bench.lab.store import Store
from resflow_bench.logdet import exact_log_det
from resflow_bench.threads import one_thread
from resflow_bench.training.plan import PRESETS, TRAINING, TrainingPlan
from resflow_bench.training.recipe import finite_moments_estimator
from resflow_bench.training.trainer import Trainer
from suites.training import figures


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return undisturbed(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def call(tmp_path: Path) -> Iterator[Call]:
    with calling(tmp_path) as call:
        yield call


@pytest.fixture(scope="module")
def by_hand() -> tuple[Trainer, list[float]]:
    """The trainer alone, without a run around it, and its losses."""
    flow = architecture_named("mlp")((2,), 0.9).with_estimator(
        finite_moments_estimator(0.9, per="batch")
    )
    trainer = Trainer(flow, dataset_named("checkerboard"), SETTINGS)
    with one_thread():
        return trainer, [trainer.step() for _ in range(STEPS)]


# --- what a training leaves


def test_the_weights_are_the_average_that_the_trainer_alone_arrives_at(
    whole: Whole, by_hand: tuple[Trainer, list[float]]
) -> None:
    trainer, _ = by_hand
    assert same(whole.weights, trainer.averaged().state_dict())
    assert not same(whole.weights, trainer.flow.state_dict()), "the last weights are no average"


def test_the_rows_say_what_the_trainer_alone_measures(
    whole: Whole, by_hand: tuple[Trainer, list[float]]
) -> None:
    trainer, losses = by_hand
    cells = wide(whole.rows).set_index("step")
    assert list(cells.index) == [5, 10, 12]
    for first, last in ((0, 5), (5, 10), (10, 12)):
        mean = sum(losses[first:last]) / (last - first)
        assert cells["loss"][last] == pytest.approx(mean, rel=1e-12)
        assert cells["loss_low"][last] < mean < cells["loss_high"][last]
    last = cells.loc[STEPS]
    assert last["lipschitz_excess"] == trainer.excess()
    certified = [block.branch.lipschitz_certified() for block in trainer.flow.blocks]
    assert last["lipschitz_certified"] == max(certified) <= 0.9 * (1 + 1e-6)
    bits = dataset_named("checkerboard").bits_per_dim(torch.tensor(last["log_prob_test"]))
    assert last["bits_per_dim"] == pytest.approx(float(bits), rel=1e-6)
    assert last["bits_per_dim_low"] < last["bits_per_dim"] < last["bits_per_dim_high"]
    # To a tenth at the end of the cosine, of which the last step takes the one before.
    assert 0.1 < last["learning_rate"] / SETTINGS.learning_rate < 0.12
    assert (cells["examples_per_s"] > 0).all()
    assert whole.rows.groupby("metric")["unit"].unique().map(list).to_dict() == {
        "loss": ["nat"],
        "log_prob_test": ["nat"],
        "bits_per_dim": ["bit/dim"],
        "lipschitz_certified": ["1"],
        "lipschitz_excess": ["1"],
        "learning_rate": ["1"],
        "examples_per_s": ["1/s"],
    }
    axes = wide(whole.rows).iloc[0]
    assert axes[[*figures.TRAINING, "dtype"]].to_list() == [
        *("checkerboard", "mlp", 0.9, 16, "cpu"),
        "float32",
    ]


def test_the_held_out_likelihood_is_that_of_the_averaged_weights(whole: Whole) -> None:
    """|z| < 4 against exact log-dets at the same points: 0.02 nat would be seen.

    The same flow before training is the twin that this rejects.
    """
    data, generator = dataset_named("checkerboard"), torch.Generator().manual_seed(7)
    x = data.test[torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))[:200]]
    value = wide(whole.rows).iloc[-1]["log_prob_test"]

    @torch.no_grad()
    def z(flow: ResidualFlow) -> float:
        exact = flow.with_estimator(Exact()).log_prob(x).double().mean()
        draws = [
            flow.with_estimator(finite_moments_estimator(0.9)).log_prob(x, generator).mean()
            for _ in range(12)
        ]
        return (value - float(exact)) / float(torch.stack(draws).std())

    flow = architecture_named("mlp")((2,), 0.9)
    assert abs(z(flow)) > 4
    flow.load_state_dict(whole.weights)
    assert abs(z(flow)) < 4


class Exact:
    """The log-det itself, where an estimator is expected."""

    def __call__(self, g, x, generator=None):
        return finite_moments_estimator(0.9)(g, x, generator)._replace(
            value=exact_log_det(g, x).to(x)
        )


def test_the_end_says_where_the_weights_are_and_the_two_lines_load_them(
    whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = whole.run.name
    lines = whole.outcome.out.splitlines()
    assert lines[0] == f"run {name}: checkerboard-mlp-K0.9, {STEPS} of {STEPS} steps"
    assert re.fullmatch(r"held-out log-likelihood: −\d.* nat, \d.* bits/dim", lines[1])
    assert "200 examples" in lines[2]
    assert lines[3] == f"weights: results/models/{name}.pt"
    assert lines[-1] == f"next: resflow-bench report {name}"
    monkeypatch.chdir(whole.folder)
    scope: dict[str, ResidualFlow] = {}
    exec("\n".join(line.strip() for line in lines[4:6]), scope)
    assert same(scope["flow"].state_dict(), whole.weights)
    assert sorted(file.name for file in (whole.folder / "results/models").iterdir()) == [
        *(f"{name}-best.pt", f"{name}.checkpoint", f"{name}.pt")
    ]


def test_run_json_says_how_to_train_it_again(whole: Whole, call: Call) -> None:
    about = whole.run.about
    assert about["status"] == "finished"
    assert {"versions", "commit", "device", "threads", "start", "end"} <= about.keys()
    outcome = call(" ".join(about["arguments"]))
    assert outcome.code == 0
    again = newest(Path.cwd())
    assert same(weights_of(again), whole.weights)
    assert again.about["arguments"] == about["arguments"]


def test_progress_is_said_with_the_time_left(whole: Whole) -> None:
    lines = whole.outcome.err.splitlines()
    number = r"-?\d[\d.]*"
    for line in lines[:-1]:
        assert re.match(rf"step \d+/{STEPS}, \d+:\d\d left: loss {number} nat[,;] ", line)
    assert re.fullmatch(
        rf"step {STEPS}/{STEPS}: loss {number} nat, {number} bits/dim, Lip\(g\) ≤ 0.\d+", lines[-1]
    )


def test_in_a_terminal_progress_is_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with shown("step {}/{}") as listen:
        listen(Progress(100, 20_000, 7325.2, "loss 2.5 nat, 1.8 bits/dim, Lip(g) ≤ 0.9"))
    err = capsys.readouterr().err
    err = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", err)
    assert "100/20000 2:02:05 left" in err
    assert "loss 2.5 nat, 1.8 bits/dim, Lip(g) ≤ 0.9" in err


# --- its rows, read


def test_show_report_and_compare_read_a_training(whole: Whole, call: Call) -> None:
    where = f"--results {whole.folder / 'results'}"
    name = whole.run.name
    shown = json.loads(call(f"show {name} --format json {where}").out)
    assert len(shown) == len(whole.rows) == 3 * 7
    assert "log_prob_test" in call(f"show {name} {where}").out
    outcome = call(f"report {name} {where} --out page")
    assert outcome.code == 0, outcome.err
    page = Path("page/index.html").read_text()
    assert TRAINING.question in page
    assert "resflow-bench train checkerboard --preset=smoke" in page
    for figure in ("likelihood", "promises"):
        assert Path(f"page/figures/{figure}.svg").exists()
    assert call(f"{TINY} --seed 1 {where}").code == 0
    other = newest(whole.folder)
    outcome = call(f"compare {name} {other.name} {where}")
    assert outcome.code == 0
    assert outcome.out.count("log_prob_test") == 3
    assert not same(weights_of(other), whole.weights), "the seed decides"


def test_a_curve_that_falls_from_the_start_leaves_the_rest_readable() -> None:
    """Nearly all of the panel's height is for the last rows, not for the first."""
    steps = list(range(10, 310, 10))
    held_out = [-3000.0, -400.0, *(-3.0 + 0.01 * i for i in range(28))]
    ends = {"": 0.0, "_low": -0.1, "_high": 0.1}
    columns = {f"log_prob_test{e}": [p + by for p in held_out] for e, by in ends.items()}
    columns |= {f"loss{e}": [-p + by for p in held_out] for e, by in ends.items()}
    same_for_all = {"status": "ok", "dataset": "moons", "architecture": "mlp", "lipschitz": 0.9,
                    "batch_size": 64, "device": "cpu"}  # fmt: skip
    cells = pd.DataFrame({**same_for_all, "step": steps, **columns})
    figure = figures.likelihood(cells, 1)
    assert figure is not None
    low, high = figure.axes[0].get_ylim()
    assert low < min(held_out[2:])
    assert high - low < 2
    assert figures.promises(cells, 1) is None, "nothing of it was measured"


# --- refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", ("DATASET", "checkerboard", "cifar10", "--resume")),
        ("nope", ("'nope'", "checkerboard", "imagenet32")),
        ("mnist", ("mnist found no folder data", "train-images-idx3-ubyte")),
        ("cifar10 --data elsewhere", ("cifar10 found no folder elsewhere",)),
        ("moons --architecture nope", ("'nope'", "mlp, shallow, wide, deep, dense, conv, ")),
        ("moons --architecture conv", ("(C, H, W)", "(2,)")),
        ("moons --lipschitz 1.2", ("lipschitz", "1.2", "between 0 and 1")),
        ("moons --steps 0", ("n_steps", "at least 1", "0")),
        ("moons --ema 1", ("ema", "[0, 1)", "1.0")),
        (f"moons --seed {2**64}", ("seed", "[0, 2^63)", str(2**64))),
        ("digits --data mine.npy", ("mnist, cifar10, imagenet32", "mine.npy", "Leave it out")),
        ("moons --device nowhere", ("device", "nowhere", "this machine has")),
        ("moons --preset huge", ("huge", "smoke")),
        ("moons --results file --preset smoke", ("`file`", "cannot be written", "--results")),
        ("--resume nope", ("holds no run",)),
        ("moons fish", ("fish",)),
    ],
)
def test_a_refusal_is_one_line_and_changes_nothing(
    call: Call, tmp_path: Path, arguments: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("kept")
    outcome = call(f"train {arguments}")
    assert outcome.code == 2
    assert outcome.out == ""
    assert re.fullmatch(r"error: .*\n", outcome.err)
    for word in words:
        assert word in outcome.err
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_resume_takes_the_run_s_own_settings_and_refuses_others(whole: Whole, call: Call) -> None:
    where = f"--resume {whole.run.name} --results {whole.folder / 'results'}"
    before = whole.run.about
    for given in ("--seed 3", "moons", "--steps 11", "--preset full", "--lipschitz 0.8"):
        outcome = call(f"train {given} {where}")
        assert outcome.code == 2
        assert re.fullmatch(f"error: run `{whole.run.name}` was begun with .*\n", outcome.err)
    for given in ("", "checkerboard --seed 0"):  # finished: said again, nothing done
        outcome = call(f"train {given} {where}")
        assert (outcome.code, outcome.err) == (0, "")
        assert outcome.out.splitlines()[0] == whole.outcome.out.splitlines()[0]
    assert whole.run.about == before
    run = Store(Path("results")).create({"preset": "smoke", "status": "finished"})
    outcome = call(f"train --resume {run.name}")
    assert outcome.code == 2
    assert "is no training" in outcome.err


def test_an_option_s_name_is_in_the_record_and_the_presets_are_whole() -> None:
    data = dataset_named("digits")
    assert PRESETS.keys() == {"smoke", "quick", "full"}
    for preset in PRESETS:
        plan = TrainingPlan.requested(data, {"preset": preset, "steps": 10})
        assert plan.recipe.architecture == "multiscale"
        assert plan.recipe.training.warm_up == 1, "a tenth of the steps at most"
        assert {
            f"--{name.replace('_', '-')}={value}"
            for name, value in plan.options.items()
            if value is not None and name != "dataset"
        } == set(plan.record()["arguments"][2:])


# --- images


def test_images_are_trained_at_several_scales(call: Call) -> None:
    outcome = call("train digits --preset smoke --steps 5 --batch-size 8 --lipschitz 0.5")
    assert outcome.code == 0, outcome.err
    (cell,) = wide(newest(Path.cwd()).frame("training")).to_dict("records")
    assert cell["architecture"] == "multiscale"
    # Of counts, with log2(17) = 4.09 bits for the uniform density.
    assert 1 < cell["bits_per_dim"] < 10
    assert cell["lipschitz_certified"] <= 0.5 * (1 + 1e-6)
