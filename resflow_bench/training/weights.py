"""Trained weights: files of a training, weights to begin with, and a cache by fingerprint."""

from __future__ import annotations

import glob
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from resflow_bench.files import written_whole
from resflow_bench.flows import ResidualFlow, saving
from resflow_bench.threads import one_thread
from resflow_bench.training.recipe import Recipe, dataset
from resflow_bench.training.trainer import Trainer

if TYPE_CHECKING:
    from resflow_bench.lab.store import Run

SECONDS_BETWEEN_CHECKPOINTS = 5.0


RUN = "run:"
"""The prefix of a name that stands for the weights of a training, `run:RUN`."""


@dataclass(frozen=True)
class TrainingFiles:
    """The files of a run outside its folder.

    weights: at its end. best: of the row with the largest held-out log-likelihood.
    checkpoint: the state to go on from, also after the end.
    """

    run: Run

    @property
    def weights(self) -> Path:
        return weights_file(f"{RUN}{self.run.name}", self.run.path.parents[1])

    @property
    def best(self) -> Path:
        return weights_file(f"{RUN}{self.run.name}-best", self.run.path.parents[1])

    @property
    def checkpoint(self) -> Path:
        return self.weights.with_suffix(".checkpoint")


def weights_file(name: str, results: Path) -> Path:
    """The weights of the training `run:RUN`, or the file of another name."""
    is_run = name.startswith(RUN)
    return results / "models" / f"{name.removeprefix(RUN)}.pt" if is_run else Path(name)


def weights_digest(name: str, results: Path) -> str:
    """First 16 hex digits of the SHA-256 of `weights_file`.

    Raises:
        ValueError: it cannot be read.
    """
    file = weights_file(name, results)
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise ValueError(f"`{file}` cannot be read ({error.strerror}).") from error


def load_weights(flow: ResidualFlow, name: str, results: Path) -> None:
    """Give the flow the numbers of a saved flow, rescaled where they break the flow's promises.

    Raises:
        ValueError: the file is no saved flow, or of another architecture.
    """
    state, wanted = saving.read(weights_file(name, results)).state, flow.state_dict()
    differ = [
        key
        for key in dict.fromkeys((*wanted, *state))
        if key not in state or key not in wanted or state[key].shape != wanted[key].shape
    ]
    if differ:
        raise ValueError(
            f"the weights {name} are of another architecture: `{differ[0]}` and {len(differ) - 1} "
            "more tensors differ. Give the architecture that they were trained with."
        )
    flow.load_state_dict(state)  # the layers rescale what exceeds their coefficients


def trained(
    recipe: Recipe, results: Path, say: Callable[[str], None], step: int | None = None
) -> ResidualFlow:
    """The recipe's flow after `step` optimiser steps, on the CPU, with the norms of its last step.

    Args:
        results: the folder whose `models/` caches the weights. A training continues, to the same
            numbers, from a checkpoint or from the weights after fewer steps.
        say: receives a progress message every few seconds.
        step: at most the recipe's `n_steps`, which is the default.
    """
    step = recipe.training.n_steps if step is None else step
    flow = recipe.flow().with_estimator(recipe.objective)
    trainer = Trainer(flow, dataset(recipe.dataset), recipe.training)
    cache = _WeightsCache(results / "models", f"{recipe}-{recipe.fingerprint}")
    if (state := cache.nearest(step)) is not None:
        trainer.load_state_dict(state)
    if trainer.n_steps_done < step:
        cache.folder.mkdir(parents=True, exist_ok=True)
        with one_thread():  # the weights must not depend on how many cores this machine has
            _train(trainer, step, cache, f"training {recipe}", say)
    return trainer.flow


@dataclass(frozen=True)
class _WeightsCache:
    """A recipe's files: snapshots at the requested steps, and the checkpoint of a training."""

    folder: Path
    stem: str

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.stem}.checkpoint"

    def snapshot(self, step: int) -> Path:
        return self.folder / f"{self.stem}-step{step}.pt"

    def checkpoint_step(self) -> int:
        """The number of steps that the checkpoint holds; 0 without a checkpoint."""
        state = self._load(self.checkpoint)
        return 0 if state is None else int(state["n_steps_done"])

    def nearest(self, step: int) -> dict[str, Any] | None:
        """The saved state with the most steps, at most `step`; None if there is none."""
        snapshots = self.folder.glob(f"{glob.escape(self.stem)}-step*.pt")
        saved = {int(file.stem.rpartition("-step")[2]): file for file in snapshots}
        best = max((s for s in saved if s <= step), default=0)
        state = self._load(self.checkpoint)
        if state is not None and best < state["n_steps_done"] <= step:
            return state
        return self._load(saved[best]) if best else None

    def _load(self, file: Path) -> dict[str, Any] | None:
        """The state in a file; None if there is none, or another process has just removed it."""
        try:
            return dict(torch.load(file, weights_only=True))
        except FileNotFoundError:
            return None


def _train(
    trainer: Trainer, step: int, cache: _WeightsCache, what: str, say: Callable[[str], None]
) -> None:
    """Train up to `step`, and save checkpoints on the way.

    A checkpoint with more than `step` steps belongs to a longer training and is left alone.
    """
    ahead = cache.checkpoint_step() > step
    first, start = trainer.n_steps_done, time.monotonic()
    saved_at = start
    while trainer.n_steps_done < step:
        loss = trainer.step()
        now = time.monotonic()
        if now - saved_at > SECONDS_BETWEEN_CHECKPOINTS:
            if not ahead:
                save_whole(trainer.state_dict(), cache.checkpoint)
            saved_at = now
            rate = (now - start) / (trainer.n_steps_done - first)
            left = rate * (step - trainer.n_steps_done)
            say(f"{what}: step {trainer.n_steps_done}/{step}, {loss:.1f} nat, {left:.0f} s left")
    save_whole(trainer.state_dict(), cache.snapshot(step))
    if not ahead:
        cache.checkpoint.unlink(missing_ok=True)


def save_whole(state: object, file: Path) -> None:
    """`torch.save`, whole or not at all."""
    with written_whole(file) as stream:
        torch.save(state, stream)
