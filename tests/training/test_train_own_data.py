"""`resflow-bench train` on a file of the user's own: trained, resumed, measured, refused."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_train_resume import but_times, signal_at
from trainings import Call, calling, newest, same, weights_of

from resflow_bench.analysis.tables import wide
from resflow_bench.data import Reading, read_dataset
from resflow_bench.flows import ResidualFlow, saving
from resflow_bench.logdet import Determinant
from resflow_bench.models.own import own_model
from resflow_bench.training.run import TrainingFiles

TINY = "train ./mine.npy --preset smoke --steps 12 --batch-size 16"
ROWS = np.random.default_rng(0).normal([1.0, -20.0], [0.1, 30.0], (60, 2))


@pytest.fixture
def call(tmp_path: Path) -> Iterator[Call]:
    with calling(tmp_path) as call:
        np.save("mine.npy", ROWS)
        yield call


def test_own_rows_from_file_to_bound(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained, stopped and resumed to the same numbers, trained again by its record, measured."""
    outcome = call(f"{TINY} --held-out 0.2")
    assert outcome.code == 0, outcome.err
    whole = newest(Path.cwd())
    data = read_dataset("./mine.npy", Reading(0.2))
    lines = outcome.out.splitlines()
    assert lines[0].startswith(f"run {whole.name}: mine.npy-mlp-K0.9, 12 of 12 steps")
    assert lines[2].startswith("  of 12 examples")
    assert lines[3] == (
        f"  of standardised columns; in the units of the file add {-data.log_scale:.4g} nat"
    )
    rows = whole.frame("training")
    assert set(rows["dataset"]) == {"./mine.npy"}
    (message,) = set(rows["message"][rows["metric"] == "log_prob_test"])
    assert f"in the units of the file add {-data.log_scale:.6g} nat" in message
    about = saving.read(TrainingFiles(whole).weights).about
    assert about["dataset"] == "./mine.npy"
    assert about["steps"] == 12
    assert (about["mean"], about["scale"]) == (list(data.mean), list(data.scale))

    with monkeypatch.context() as patch:
        signal_at(patch, "step", 7, signal.SIGINT)
        assert call(f"{TINY} --held-out 0.2").code == 128 + signal.SIGINT
    stopped = newest(Path.cwd())
    assert call(f"train --resume {stopped.name}").code == 0
    assert same(weights_of(stopped), weights_of(whole))
    pd.testing.assert_frame_equal(but_times(stopped.frame("training")), but_times(rows))

    assert {"--held-out=0.2", "--standardise"} <= set(whole.about["arguments"])
    assert call(" ".join(whole.about["arguments"])).code == 0
    assert same(weights_of(newest(Path.cwd())), weights_of(whole))

    model = own_model(f"run:{whole.name}", Path("results"))
    assert model is not None
    points = model.points(12, 2)
    assert {tuple(x) for x in points.tolist()} == {tuple(x) for x in data.test.tolist()}
    asked = f"--set model=run:{whole.name} n_terms=2 --preset smoke --jobs 1"
    assert call(f"run bias {asked}").code == 0
    assert set(newest(Path.cwd()).frame("bias")["status"]) == {"ok"}

    np.save("mine.npy", 2 * ROWS)
    TrainingFiles(whole).weights.rename("moved.pt")
    refused = call("run bias --set model=moved.pt --preset smoke")
    assert refused.code == 2
    assert "was trained on other bytes of ./mine.npy" in refused.err


def test_a_resume_refuses_other_bytes_and_other_options(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        signal_at(patch, "step", 3, signal.SIGINT)
        call(f"{TINY} --no-standardise")
    run = newest(Path.cwd())
    assert "--no-standardise" in run.about["arguments"]
    for given in ("--standardise", "--held-out 0.3", "other.npy"):
        outcome = call(f"train --resume {run.name} {given}")
        assert outcome.code == 2
        assert re.fullmatch(r"error: run .* was begun with .*\n", outcome.err)
    np.save("mine.npy", 2 * ROWS)
    outcome = call(f"train --resume {run.name}")
    assert outcome.code == 2
    assert re.fullmatch(r"error: run .* was begun on other \./mine\.npy .*\n", outcome.err)
    Path("mine.npy").unlink()
    outcome = call(f"train --resume {run.name}")
    assert outcome.code == 2
    assert re.fullmatch(r"error: mine\.npy cannot be read .*\n", outcome.err)


def test_a_folder_of_images(call: Call) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
    Path("photos").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(f"photos/{i}.png")
    outcome = call("train photos --preset smoke --steps 5 --batch-size 8 --architecture conv")
    assert outcome.code == 0, outcome.err
    (cell,) = wide(newest(Path.cwd()).frame("training")).to_dict("records")
    assert cell["dataset"] == "photos"
    assert 6 < cell["bits_per_dim"] < 12  # uniform noise has 8
    assert "units of the file" not in outcome.out


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("train none.npy", "none.npy cannot be read"),
        ("train gaps.npy", "gaps.npy has 1 numbers that are NaN"),
        ("train ./mine.npy --held-out 1", "share is between 0 and 1; got 1"),
        ("train moons --held-out 0.1", "moons has its own split"),
        ("train moons --no-standardise", "moons has its own split"),
        ("train ./mine.npy --architecture conv", "(C, H, W)"),
        ("train ./mine.npy --data elsewhere", "needs no files"),
    ],
)
def test_refusals(call: Call, words: str, why: str) -> None:
    np.save("gaps.npy", np.where(ROWS[3, 1] == ROWS, np.nan, ROWS))
    outcome = call(words)
    assert (outcome.code, outcome.out) == (2, "")
    assert re.fullmatch(r"error: .*\n", outcome.err)
    assert why in outcome.err
    assert not Path("results").exists()


def test_a_suite_trains_on_a_file_and_does_not_mix_its_versions(call: Call) -> None:
    asked = "--set dataset=./mine.npy architecture=mlp step=2 --preset smoke --jobs 1"
    outcome = call(f"run density {asked}")
    assert outcome.code == 0, outcome.err
    run = newest(Path.cwd())
    assert set(run.frame("density")["dataset"]) == {"./mine.npy"}
    assert set(run.about["files"]) == {"./mine.npy"}
    np.save("mine.npy", 2 * ROWS)
    outcome = call(f"run --resume {run.name}")
    assert outcome.code == 2
    assert "was begun with another `./mine.npy`" in outcome.err
    refused = call("run density --set dataset=nope --preset smoke")
    assert refused.code == 2
    assert "or a path of .npy" in refused.err


def test_weights_are_those_of_standardised_rows(call: Call) -> None:
    """The density in the file's units integrates to one only with the change of units."""
    assert call(TINY.replace("--steps 12", "--steps 60")).code == 0
    weights = TrainingFiles(newest(Path.cwd())).weights
    flow, about = ResidualFlow.load(weights, Determinant()), saving.read(weights).about
    mean, scale = torch.tensor(about["mean"]), torch.tensor(about["scale"])
    generator = torch.Generator().manual_seed(0)
    proposal = torch.distributions.Normal(mean, 3 * scale)
    row = mean + 3 * scale * torch.randn(20_000, 2, generator=generator)
    with torch.no_grad():
        log_p = flow.log_prob((row - mean) / scale) - scale.log().sum()
    weight = (log_p - proposal.log_prob(row).sum(1)).exp()
    z = (weight.mean() - 1) / (weight.std() / len(row) ** 0.5)
    assert abs(z) < 4
    assert weight.std() / len(row) ** 0.5 < 0.03
