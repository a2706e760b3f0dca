"""Damaged weights: trained again to the same numbers, or refused with a sentence on them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from resflow_bench.files import HOST
from resflow_bench.flows import ResidualFlow
from resflow_bench.lab import Failure, silent
from resflow_bench.lab.store import Store, StoreError
from resflow_bench.training import Training
from resflow_bench.training.plan import TrainingPlan, begin
from resflow_bench.training.recipe import Recipe, finite_moments_estimator
from resflow_bench.training.run import train
from resflow_bench.training.weights import TrainingFiles, load_weights, trained

RECIPE = Recipe(
    "mlp",
    "digits-logit",
    0.8,
    Training(n_steps=2, batch_size=8),
    finite_moments_estimator(0.8, per="batch"),
)


class Evil:
    """A pickle that runs code where it is loaded without care."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (Path("evil"),))


def _altered(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def alter(file: Path) -> None:
        state = torch.load(file, weights_only=True)
        torch.save(change(state), file)

    return alter


def _renamed(state: dict[str, Any]) -> dict[str, Any]:
    inner = state.get("trainer", state)
    inner["flow"] = {f"x{name}": value for name, value in inner["flow"].items()}
    return state


def _grown(state: dict[str, Any]) -> dict[str, Any]:
    inner = state.get("trainer", state)
    inner["flow"] = {name: torch.zeros(7) for name in inner["flow"]}
    return state


def _without_step(state: dict[str, Any]) -> dict[str, Any]:
    inner = state.get("trainer", state)
    del inner["n_steps_done"]
    return state


def _cut(share: float, file: Path) -> None:
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


def _flip(share: float, file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[int(share * (len(content) - 1))] ^= 16
    file.write_bytes(content)


OTHERS: dict[str, Callable[[Path], None]] = {
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("weights") and None,
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)) and None,
    "pickle": lambda file: file.write_bytes(pickle.dumps({"flow": 1})) and None,
    "evil": lambda file: file.write_bytes(pickle.dumps(Evil())) and None,
    "evil zip": lambda file: torch.save({"flow": Evil()}, file),
    "list": _altered(lambda state: [1, 2]),
    "number": _altered(lambda state: 3),
    "nothing": _altered(lambda state: {}),
    "strings": _altered(lambda state: dict.fromkeys(state, "x")),
    "nulls": _altered(dict.fromkeys),
    "names": _altered(_renamed),
    "shapes": _altered(_grown),
    "no step": _altered(_without_step),
}
CUTS = {f"cut {i}": partial(_cut, i / 32) for i in range(32)}
FLIPS = {f"flip {i}": partial(_flip, i / 31) for i in range(32)}


def equal(a: ResidualFlow, b: ResidualFlow) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in a.state_dict().items())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ResidualFlow, Path]:
    folder = tmp_path_factory.mktemp("made")
    flow = trained(RECIPE, folder, silent)
    (file,) = (folder / "models").iterdir()
    return flow, file


@pytest.mark.parametrize("kinds", [CUTS, FLIPS, OTHERS], ids=["cut", "flipped", "other"])
def test_damaged_weights_are_trained_again_to_the_same_numbers(
    made: tuple[ResidualFlow, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kinds: dict[str, Callable[[Path], None]],
) -> None:
    """A flip may hit what no reader needs, such as padding; then the weights are read."""
    monkeypatch.chdir(tmp_path)
    flow, whole = made
    file = tmp_path / "models" / whole.name
    file.parent.mkdir()
    n_noticed = 0
    for kind, damage in kinds.items():
        file.write_bytes(whole.read_bytes())
        damage(file)
        again = trained(RECIPE, tmp_path, silent)
        assert equal(flow, again), kind
        said = capsys.readouterr().err
        n_noticed += bool(said)
        if said:
            assert said.startswith(f"note: weights `{file}` are damaged ("), kind
            assert said.endswith("they are trained again\n")
            assert len(said.splitlines()) == 1
        torch.load(file, weights_only=True)
    assert n_noticed >= len(kinds) - 3
    assert not (tmp_path / "evil").exists()
    assert [file.name for file in file.parent.iterdir()] == [whole.name]


def test_damaged_checkpoints_and_fewer_steps_are_passed_over(
    made: tuple[ResidualFlow, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flow, whole = made
    (tmp_path / "models").mkdir()
    stem = whole.name.removesuffix("-step2.pt")
    for name in (f"{stem}.checkpoint", f"{stem}-step1.pt", f"{stem}-stepx.pt"):
        (tmp_path / "models" / name).write_bytes(whole.read_bytes()[:-100])
    assert equal(flow, trained(RECIPE, tmp_path, silent))
    said = capsys.readouterr().err
    assert f"{stem}.checkpoint` are damaged" in said
    assert f"{stem}-step1.pt` are damaged" in said


def test_weights_of_another_step_under_this_name_are_damaged(
    made: tuple[ResidualFlow, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(RECIPE, tmp_path, silent, step=1)
    (early,) = (tmp_path / "models").iterdir()
    early.rename(early.with_name(made[1].name))
    assert equal(made[0], trained(RECIPE, tmp_path, silent))
    assert "it holds step 1" in capsys.readouterr().err


# --- two processes


def test_two_processes_train_the_same_weights_once(tmp_path: Path) -> None:
    """The second waits and takes them; the first says, by a file, that it has begun."""
    script = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_damaged_weights import RECIPE
from resflow_bench.training import trainer
from resflow_bench.training.weights import trained
step = trainer.Trainer.step
def slow(self):
    print("step", flush=True)
    time.sleep(1)
    return step(self)
trainer.Trainer.step = slow
trained(RECIPE, Path({str(tmp_path)!r}), lambda message: print(message, flush=True))
"""
    command = [sys.executable, "-c", script]
    path = os.pathsep.join(sys.path)
    both = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        for _ in range(2)
    ]
    said = sorted((process.communicate(timeout=60)[0] for process in both), key=len)
    assert sum(text.count("step\n") for text in said) == 2
    assert [process.returncode for process in both] == [0, 0]
    assert len(list((tmp_path / "models").iterdir())) == 1


def test_a_lock_and_halves_of_a_killed_process_do_not_stay(
    made: tuple[ResidualFlow, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    stem = made[1].name.removesuffix("-step2.pt")
    for name in (f".{stem}.lock", f".{stem}.checkpoint.{HOST}-12ab.tmp"):
        (folder / name).touch()
    (folder / f".another.pt.{HOST}-12ab.tmp").touch()
    trained(RECIPE, tmp_path, silent)
    names = sorted(file.name for file in folder.iterdir())
    assert names == [f".another.pt.{HOST}-12ab.tmp", made[1].name]


def test_without_locks_weights_are_trained_all_the_same(
    made: tuple[ResidualFlow, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert equal(made[0], trained(RECIPE, tmp_path, silent))


def test_a_folder_that_takes_no_weights_is_a_failure_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("in the way")
    with pytest.raises(Failure, match=r"cannot be kept in `.*models`"):
        trained(RECIPE, tmp_path, silent)


# --- the checkpoint of a training of the user's


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Any]:
    from resflow_bench.data import dataset_named

    data = dataset_named("checkerboard", Path("data"))
    options = {"preset": "smoke", "steps": 2, "batch_size": 8}
    plan = TrainingPlan.requested(data, options)
    run = begin(plan, Store(tmp_path_factory.mktemp("training")), {})
    train(plan, data, run)

    def go_on() -> Any:
        run.revise(lambda _: {"status": "interrupted"})
        return train(plan, data, run)

    go_on.files = TrainingFiles(run)  # type: ignore[attr-defined]
    return go_on


@pytest.mark.parametrize("kinds", [CUTS, FLIPS, OTHERS], ids=["cut", "flipped", "other"])
def test_a_damaged_checkpoint_is_named_with_the_remedy(
    training: Any, tmp_path: Path, monkeypatch, kinds: dict[str, Callable[[Path], None]]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = training.files.checkpoint
    content, n_noticed = file.read_bytes(), 0
    for kind, damage in kinds.items():
        damage(file)
        try:
            training()
        except StoreError as error:
            n_noticed += 1
            words = str(error)
            assert words.startswith(f"checkpoint `{file}` does not fit or is damaged (")
            assert words.endswith("or move the file away to begin again."), kind
        file.write_bytes(content)
    assert n_noticed >= len(kinds) - 6, "the rest hit padding"
    assert not (tmp_path / "evil").exists()


def test_damaged_weights_to_begin_with_are_refused(training: Any, tmp_path: Path) -> None:
    """Any flipped bit of a number, which torch does not notice."""
    file = tmp_path / "weights.pt"
    content = training.files.weights.read_bytes()
    flow = ResidualFlow.load(training.files.weights)
    n_refused = 0
    for place in np.linspace(0, len(content) - 1, 50).astype(int):
        flipped = bytearray(content)
        flipped[place] ^= 64
        file.write_bytes(flipped)
        try:
            load_weights(flow, str(file), tmp_path)
        except ValueError as error:
            n_refused += 1
            assert "`" in str(error)  # noqa: PT017
    assert n_refused >= 45
