"""Trained weights: made once, cached under results/models by all that they depend on."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from resflow_bench.architectures import architecture_named
from resflow_bench.data import Dataset, dataset_named
from resflow_bench.flows import ResidualFlow
from resflow_bench.logdet import Geometric, LogDetEstimator, Rademacher, Roulette
from resflow_bench.threads import one_thread
from resflow_bench.training.trainer import Trainer, Training

MAKERS = (
    *("architectures", "data", "fixed_point", "flows", "jacobian", "layers", "logdet"),
    "training.trainer",
)
"""What the weights depend on: a change in any of these files makes new weights."""

SECONDS_BETWEEN_CHECKPOINTS = 5.0


@dataclass(frozen=True)
class Recipe:
    """What makes a flow's weights, besides the code.

    architecture: of `models.ARCHITECTURES`.
    dataset: of `data.DATASETS`.
    lipschitz: promised for each branch.
    training: how.
    objective: the estimator whose log-likelihood is maximised.

    The data count with all their bytes: other files under the same name are other weights.
    """

    architecture: str
    dataset: str
    lipschitz: float
    training: Training
    objective: LogDetEstimator

    def flow(self) -> ResidualFlow:
        """The flow before any training."""
        event = dataset(self.dataset).event
        return architecture_named(self.architecture)(event, self.lipschitz)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of the settings, the code and the torch that count."""
        estimator = self.objective
        made_by = {
            "architecture": self.architecture,
            "dataset": [self.dataset, dataset(self.dataset).digest],
            "lipschitz": self.lipschitz,
            "training": asdict(self.training),
            "objective": [
                str(estimator.probe),
                repr(estimator.truncation),
                estimator.n_probes,
                str(estimator.gradient),
                estimator.n_traced,
                str(estimator.expansion),
            ],
            "torch": torch.__version__.split("+")[0],
        }
        text = json.dumps(made_by, sort_keys=True) + _code()
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.dataset}-{self.architecture}-K{self.lipschitz:g}"


def tame(
    spectral_radius: float, per: Literal["example", "batch"] = "example", n_traced: int = 0
) -> LogDetEstimator:
    """An unbiased estimator all of whose moments are finite at this spectral radius or below.

    The p-th is if rho^p < (1 - stop)^(p-1); stop = 1 - rho leaves rho^p < rho^(p-1). An N for the
    whole batch costs its mean and not its maximum, which is what a training can use.
    """
    stop = min(max(1 - spectral_radius, 0.01), 0.9)
    roulette = Roulette(Geometric(stop), n_exact=4, per=per)
    return LogDetEstimator(Rademacher(), roulette, n_traced=n_traced)


def dataset(name: str) -> Dataset:
    """`data.dataset_named`, read once; what needs files is looked for where the user says.

    That is the folder in the environment variable RESFLOW_DATA, `data` if there is none.
    """
    return _dataset(name, Path(os.environ.get("RESFLOW_DATA", "data")))


_dataset = lru_cache(maxsize=4)(dataset_named)


def trained(
    recipe: Recipe, results: Path, say: Callable[[str], None], step: int | None = None
) -> ResidualFlow:
    """The recipe's flow after so many optimiser steps, on the CPU, its norms as training left them.

    Args:
        recipe: what to train.
        results: the folder whose `models/` holds the weights. What a training that is killed, or
            asked for fewer steps, has left there is where the next one goes on, to the same
            numbers.
        say: hears how far the training is, every few seconds.
        step: at most the recipe's `n_steps`, which is what None stands for.
    """
    step = recipe.training.n_steps if step is None else step
    trainer = Trainer(
        recipe.flow().with_estimator(recipe.objective), dataset(recipe.dataset), recipe.training
    )
    files = _Files(results / "models", f"{recipe}-{recipe.fingerprint}")
    if (state := files.nearest(step)) is not None:
        trainer.load_state_dict(state)
    if trainer.n_steps_done < step:
        files.folder.mkdir(parents=True, exist_ok=True)
        with one_thread():  # the weights must not depend on how many cores this machine has
            _train(trainer, step, files, f"training {recipe}", say)
    return trainer.flow


@dataclass(frozen=True)
class _Files:
    """A recipe's snapshots, at steps that were asked for, and the checkpoint of a training."""

    folder: Path
    stem: str

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.stem}.checkpoint"

    def snapshot(self, step: int) -> Path:
        return self.folder / f"{self.stem}-step{step}.pt"

    def checkpoint_step(self) -> int:
        """How far the checkpoint is, 0 where there is none."""
        if not self.checkpoint.exists():
            return 0
        return int(torch.load(self.checkpoint, weights_only=True)["n_steps_done"])

    def nearest(self, step: int) -> dict[str, Any] | None:
        """The state with the most steps done, `step` at most."""
        snapshots = self.folder.glob(f"{self.stem}-step*.pt")
        reached = [int(file.stem.rpartition("-step")[2]) for file in snapshots]
        best = max([s for s in reached if s <= step], default=None)
        if (best or 0) < self.checkpoint_step() <= step:
            return dict(torch.load(self.checkpoint, weights_only=True))
        return None if best is None else dict(torch.load(self.snapshot(best), weights_only=True))


def _train(
    trainer: Trainer, step: int, files: _Files, what: str, say: Callable[[str], None]
) -> None:
    """Up to `step`, with a checkpoint now and then for the one who is killed.

    A checkpoint that is further on is of a training that was asked for more steps, and stays.
    """
    ahead = files.checkpoint_step() > step
    first, start = trainer.n_steps_done, time.monotonic()
    saved = start
    while trainer.n_steps_done < step:
        loss = trainer.step()
        now = time.monotonic()
        if now - saved > SECONDS_BETWEEN_CHECKPOINTS:
            if not ahead:
                save_whole(trainer.state_dict(), files.checkpoint)
            saved = now
            rate = (now - start) / (trainer.n_steps_done - first)
            left = rate * (step - trainer.n_steps_done)
            say(f"{what}: step {trainer.n_steps_done}/{step}, {loss:.1f} nat, {left:.0f} s left")
    save_whole(trainer.state_dict(), files.snapshot(step))
    if not ahead:
        files.checkpoint.unlink(missing_ok=True)


def save_whole(state: object, file: Path) -> None:
    """Whole or not at all: two processes that make the same weights may both write them."""
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


@lru_cache(maxsize=1)
def _code() -> str:
    """A digest of the files that the weights depend on."""
    digest = hashlib.sha256()
    for name in MAKERS:
        origin = Path(inspect.getfile(importlib.import_module(f"resflow_bench.{name}")))
        files = sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]
        for file in files:
            digest.update(file.read_bytes())
    return digest.hexdigest()
