"""Trained weights: files of a training, weights to begin with, and a cache by fingerprint."""

from __future__ import annotations

import glob
import hashlib
import pickle
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile, ZipFile

import torch
from filelock import FileLock, Timeout

from resflow_bench.files import remove_leftovers, written_whole
from resflow_bench.flows import ResidualFlow, saving
from resflow_bench.lab.suite import Failure
from resflow_bench.threads import one_thread
from resflow_bench.training.recipe import Recipe, dataset
from resflow_bench.training.trainer import Trainer

if TYPE_CHECKING:
    from resflow_bench.lab.store import Run

SECONDS_BETWEEN_CHECKPOINTS = 5.0

DAMAGE = (
    *(ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError),
    *(BadZipFile, EOFError, MemoryError, pickle.UnpicklingError, struct.error, zlib.error),
)
"""Errors that a damaged file, or the state in one, causes while it is read or used."""


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
    cache = _WeightsCache(results / "models", f"{recipe}-{recipe.fingerprint}")
    try:
        with suppress(FileNotFoundError, *DAMAGE):
            return cache.trainer(recipe, cache.snapshot(step), step).flow
        with cache.alone(say):
            trainer = cache.restored(recipe, step)
            if trainer.n_steps_done < step:
                with one_thread():  # the weights must not depend on how many cores there are
                    _train(trainer, step, cache, f"training {recipe}", say)
    except OSError as error:
        raise Failure(
            f"weights cannot be kept in `{cache.folder}` ({error.strerror}); make room there, "
            "or make it writable."
        ) from error
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
        """The number of steps that the checkpoint holds; 0 without one that can be read."""
        try:
            return int(load_whole(self.checkpoint)["n_steps_done"])
        except (FileNotFoundError, *DAMAGE):
            return 0

    def restored(self, recipe: Recipe, step: int) -> Trainer:
        """A trainer in the saved state with the most steps, at most `step`; else a new one.

        Files that are damaged are named on standard error and passed over.
        """
        snapshots = self.folder.glob(f"{glob.escape(self.stem)}-step*.pt")
        numbers = {file: file.stem.rpartition("-step")[2] for file in snapshots}
        saved = {file: int(number) for file, number in numbers.items() if number.isdecimal()}
        if self.checkpoint.exists():
            saved[self.checkpoint] = self.checkpoint_step() or step
        for file in sorted(saved, key=lambda file: saved[file], reverse=True):
            if not 0 < saved[file] <= step:
                continue
            try:
                return self.trainer(recipe, file, saved[file])
            except FileNotFoundError:  # another process has just removed it
                continue
            except DAMAGE as error:
                why = first_line(error)
            note = f"note: weights `{file}` are damaged ({why}); they are trained again"
            print(note, file=sys.stderr, flush=True)  # noqa: T201
        return _new_trainer(recipe)

    def trainer(self, recipe: Recipe, file: Path, step: int) -> Trainer:
        """A trainer in the state of a file, after `step` steps.

        Raises:
            FileNotFoundError: the file is not there.
            ValueError: or another of `DAMAGE`, if it is damaged.
        """
        state, trainer = load_whole(file), _new_trainer(recipe)
        trainer.load_state_dict(state)
        if trainer.n_steps_done != step:
            raise ValueError(f"it holds step {trainer.n_steps_done}")
        return trainer

    @contextmanager
    def alone(self, say: Callable[[str], None]) -> Iterator[None]:
        """A context that one process at a time is in, so that weights are trained once.

        Where the file system has no locks, several train at once, to the same numbers.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / f".{self.stem}.lock", fallback_to_soft=False)
        try:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                say(f"waiting for another process that trains {self.stem}")
                lock.acquire()
        except OSError:
            yield
            return
        try:
            remove_leftovers(self.folder, f".{glob.escape(self.stem)}*.tmp")
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def _new_trainer(recipe: Recipe) -> Trainer:
    flow = recipe.flow().with_estimator(recipe.objective)
    return Trainer(flow, dataset(recipe.dataset), recipe.training)


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


def check_whole(file: Path) -> None:
    """Compare each part of a file of `torch.save` with its checksum, which torch does not.

    Raises:
        OSError: it cannot be read.
        BadZipFile: or another of `DAMAGE`, if it is damaged.
    """
    with file.open("rb") as stream, ZipFile(stream) as archive:
        if (bad := archive.testzip()) is not None:
            raise BadZipFile(f"the checksum of {bad} is wrong")


def load_whole(file: Path, device: str = "cpu") -> dict[str, Any]:
    """The state in a file of `torch.save`, from which no code is run.

    Raises:
        OSError: it cannot be read.
        BadZipFile: or another of `DAMAGE`, if it is damaged.
    """
    check_whole(file)
    return dict(torch.load(file, map_location=device, weights_only=True))


def first_line(error: BaseException) -> str:
    """The error's type and its message, as one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
