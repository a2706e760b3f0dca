"""What the tests of `resflow-bench train` share: a tiny training, and the command itself."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch

from resflow_bench.cli import main
from resflow_bench.flows import ResidualFlow
from resflow_bench.lab.store import Run, Store
from resflow_bench.training.run import TrainingFiles
from resflow_bench.training.trainer import Training

STEPS = 12
TINY = f"train checkerboard --preset smoke --steps {STEPS} --batch-size 16"
SETTINGS = Training(STEPS, 16, 0.05, warm_up=1, ema=0.8)
"""What TINY stands for."""


@dataclass
class Outcome:
    """What a call printed, and how it ended."""

    code: int
    out: str
    err: str


Call = Callable[[str], Outcome]


@contextmanager
def calling(folder: Path) -> Iterator[Call]:
    """`call("train moons")` in that folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("RESFLOW_DATA", raising=False)

        def call(words: str) -> Outcome:
            out, err = io.StringIO(), io.StringIO()
            with pytest.MonkeyPatch.context() as own:
                own.setattr(sys, "argv", ["resflow-bench", *words.split()])
                own.setattr(sys, "stdout", out)
                own.setattr(sys, "stderr", err)
                with pytest.raises(SystemExit) as end:
                    main()
            return Outcome(int(end.value.code or 0), out.getvalue(), err.getvalue())

        yield call


@dataclass
class Whole:
    """A training that nobody disturbed."""

    folder: Path
    outcome: Outcome
    run: Run
    rows: pd.DataFrame
    weights: dict[str, torch.Tensor]


def undisturbed(folder: Path) -> Whole:
    """TINY, in that folder."""
    with calling(folder) as call:
        outcome = call(TINY)
    assert outcome.code == 0, outcome.err
    run = newest(folder)
    return Whole(folder, outcome, run, run.frame("training"), weights_of(run))


def newest(folder: Path) -> Run:
    """The newest run in the results there."""
    return Store(folder / "results").runs()[-1]


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    """What it has learnt."""
    return ResidualFlow.load(TrainingFiles(run).weights).state_dict()


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
