"""Maximum likelihood as a run of its own: rows as it goes, weights at its end, on after a kill."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from time import monotonic
from typing import TYPE_CHECKING

import torch

from resflow_bench.data import Dataset
from resflow_bench.flows import ResidualFlow
from resflow_bench.intervals import mean_interval
from resflow_bench.lab.cells import Cell
from resflow_bench.lab.interrupt import Interrupted, Interrupts
from resflow_bench.lab.observe import Observation, Result, exactly, observe
from resflow_bench.lab.plan import now
from resflow_bench.lab.store import Run, StoreError
from resflow_bench.lab.suite import Context
from resflow_bench.lab.workers import FAILURES, explain
from resflow_bench.threads import one_thread
from resflow_bench.training.plan import TRAINING, Course
from resflow_bench.training.recipe import finite_moments_estimator
from resflow_bench.training.trainer import Diverged, Trainer
from resflow_bench.training.weights import SECONDS_BETWEEN_CHECKPOINTS, save_whole

if TYPE_CHECKING:
    from torch import Tensor

SAVING = 0.05
"""The share of the time that may go into checkpoints, where they are large."""

N_SHOWN = 20
"""Steps that the loss on the screen is a mean of."""


@dataclass
class Standing:
    """How far a training is, for whoever watches it.

    loss: nats, mean over the last few steps; bits_per_dim: the same per dimension.
    certified: largest constant of a block at the last row.
    doing: what else, where it takes time.
    """

    n_steps: int
    n_done: int = 0
    seconds_left: float = math.nan
    loss: float = math.nan
    bits_per_dim: float = math.nan
    certified: float = math.nan
    doing: str = ""


Listener = Callable[[Standing], None]


def _nobody(standing: Standing) -> None:
    """Listens to nothing."""


@dataclass(frozen=True)
class Ending:
    """How a training ended: after all its steps, by a signal (its number), or failed (why).

    n_done: steps that count: of an interrupted training, those that its checkpoint holds.
    """

    n_done: int = 0
    signal: int | None = None
    failure: str = ""


@dataclass(frozen=True)
class Files:
    """Where a run keeps its weights: `weights` at its end, `checkpoint` on the way."""

    run: Run

    @property
    def weights(self) -> Path:
        return self.run.path.parents[1] / "models" / f"{self.run.name}.pt"

    @property
    def checkpoint(self) -> Path:
        return self.weights.with_suffix(".checkpoint")


def train(course: Course, data: Dataset, run: Run, listen: Listener = _nobody) -> Ending:
    """Trains from the run's checkpoint, or from the beginning, to the end, and keeps what comes.

    A training that was interrupted and goes on ends, on a CPU, with the same bits and rows as one
    that was not; only `examples_per_s` differs.

    Args:
        course: what to do.
        data: the course's dataset.
        run: where the rows go; its weights lie in `Files(run)`.
        listen: hears of every step.

    Raises:
        StoreError: if the run or its checkpoint cannot be read or written.
        ValueError: if the data are not those that the course began with, or there is no room for
            them or the flow.
    """
    if data.digest != course.digest:
        raise ValueError(
            f"run `{run.name}` was begun on other {data.name} (digest {course.digest}; got "
            f"{data.digest}). Name the folder of those with --data."
        )
    files, n_steps = Files(run), course.recipe.training.n_steps
    if run.about["status"] == "finished" and files.weights.exists():
        return Ending(n_done=n_steps)
    status, ending = "interrupted", Ending()
    session: _Session | None = None
    with Interrupts() as interrupts, one_thread():
        try:
            with interrupts.allowed():
                session = _Session(course, data, run, listen)
            session.go_on(interrupts)
            run.flush()
            run.drop_superseded()
            session.save_weights()
            status, ending = "finished", Ending(n_done=n_steps)
        except Interrupted:
            ending = Ending(session.n_saved if session else 0, interrupts.received)
        except FAILURES as error:
            if session is None:
                raise ValueError(explain(error)) from error
            status, ending = "failed", session.failed(error)
        finally:
            run.flush()
            run.write_about(run.about | {"status": status, "end": now()})
    if status == "finished":  # not before run.json says so: a kill in between must find it
        files.checkpoint.unlink(missing_ok=True)
    return ending


class _Session:
    """A trainer, what no row holds yet, and the clock."""

    def __init__(self, course: Course, data: Dataset, run: Run, listen: Listener) -> None:
        device, settings = course.device, course.recipe.training
        # The first test images may differ from the rest, as MNIST's do.
        chosen = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))
        test = data.test[chosen[: course.n_test]]
        self.course, self.run, self.listen = course, run, listen
        self.data = replace(data, train=data.train.to(device), test=test.to(device))
        self.trainer = Trainer(course.flow().to(device), self.data, settings)
        self.losses: list[float] = []  # of the steps that no row holds yet, and their seconds
        self.step_s = 0.0
        self.excess: float | None = None  # of a step whose row is due
        self.standing = Standing(settings.n_steps)
        self.context = Context(settings.seed, {}, run.path.parents[1])
        self.files = Files(run)
        self.failures = self._load()
        self.first = self.n_saved = self.n_done
        self.at = self.n_done
        self.start = self.saved = monotonic()
        self.save_s = 0.0

    @property
    def n_done(self) -> int:
        """Steps done."""
        return self.trainer.n_steps_done

    def go_on(self, interrupts: Interrupts) -> None:
        """Step after step. A signal waits for the end of a step, since half of one is nothing."""
        while self.n_done < self.standing.n_steps or self.excess is not None:
            if self.excess is None:
                self._step()
            if self.excess is not None:
                self._log(self.excess, interrupts)
            waited = monotonic() - self.saved
            due = waited > max(SECONDS_BETWEEN_CHECKPOINTS, self.save_s / SAVING)
            if interrupts.received is not None or due:
                self._save()
            interrupts.check()

    def failed(self, error: BaseException) -> Ending:
        """A row that says so; before it what a divergence has left whole, as rows and weights."""
        finite = all(p.isfinite().all() for p in self.trainer.flow.parameters())
        if isinstance(error, Diverged) and self.n_done and finite:
            if self.losses and self.n_done > self.first:
                self.run.append(TRAINING, self._row(self.trainer.excess()))
            self.save_weights()
        message = explain(error)
        self.run.append(TRAINING, Result(self.course.cell(self.at), "failed", message=message))
        return Ending(self.n_done, failure=f"step {self.at} of {self.course.recipe}: {message}")

    def save_weights(self) -> None:
        """The average of the parameters, its norms at their promise, on the CPU."""
        self._keep(self.trainer.averaged().cpu().state_dict(), self.files.weights)

    def _step(self) -> None:
        self.at = self.n_done + 1
        before = monotonic()
        self.losses.append(self.trainer.step())
        self.step_s += monotonic() - before
        self._tell("")
        if self.course.is_logged(self.n_done) or self.n_done in self.failures:
            self.excess = self.trainer.excess()

    def _log(self, excess: float, interrupts: Interrupts) -> None:
        """The row that is due. It may take long: one that is interrupted is due on resume."""
        self._tell("held-out points")
        try:
            with interrupts.allowed():
                row = self._row(excess)
        except Interrupted:
            self._save()
            raise
        self.run.append(TRAINING, row)
        self.losses, self.step_s, self.excess = [], 0.0, None

    def _tell(self, doing: str) -> None:
        standing = self.standing
        each = (monotonic() - self.start) / max(1, self.n_done - self.first)
        standing.n_done = self.n_done
        standing.seconds_left = each * (standing.n_steps - self.n_done)
        standing.loss = fmean(self.losses[-N_SHOWN:])
        standing.bits_per_dim = self._bits(-standing.loss)
        standing.doing = doing
        self.listen(standing)

    def _row(self, excess: float) -> Result:
        """What is to be known of the step that was just taken."""
        cell, trainer = self.course.cell(self.n_done), self.trainer
        settings = self.course.recipe.training
        certified = max(block.branch.lipschitz_certified() for block in trainer.flow.blocks)
        self.standing.certified = certified
        batch = min(settings.batch_size, len(self.data.train))
        rate = trainer.optimiser.param_groups[0]["lr"]
        return Result(
            cell,
            "ok",
            (
                self._loss(),
                *self._held_out(cell),
                exactly("lipschitz_certified", certified, "1"),
                exactly("lipschitz_excess", excess, "1"),
                exactly("learning_rate", rate, "1"),
                Observation("examples_per_s", len(self.losses) * batch / self.step_s, "1/s"),
            ),
        )

    def _loss(self) -> Observation:
        """Mean over the steps since the last row; its interval is of their scatter."""
        n = len(self.losses)
        if n == 1:
            return Observation("loss", self.losses[0], "nat")
        return observe("loss", mean_interval(self.losses), "nat", n)

    def _held_out(self, cell: Cell) -> Iterable[Observation]:
        """log p of the test points by the averaged weights, if all are finite; else how many."""
        generator = torch.Generator(self.course.device)
        generator.manual_seed(self.context.generator_seed(cell, "test"))
        flow = self.trainer.averaged().with_estimator(
            finite_moments_estimator(self.course.recipe.lipschitz)
        )
        log_prob = _log_prob(flow, self.data, generator)
        n, n_lost = len(log_prob), sum(not math.isfinite(value) for value in log_prob)
        if n_lost:
            why = "held-out points without a finite log p, so that log_prob_test is left out"
            yield Observation("n_not_finite", n_lost, "1", n=n, message=why)
            return
        interval = mean_interval(log_prob)
        yield observe("log_prob_test", interval, "nat", n)
        bits = interval._replace(
            value=self._bits(interval.value),
            standard_error=abs(self._bits(interval.standard_error) - self._bits(0.0)),
            low=self._bits(interval.high),
            high=self._bits(interval.low),
        )
        yield observe("bits_per_dim", bits, "bit/dim", n)

    def _bits(self, log_prob: float) -> float:
        return float(self.data.bits_per_dim(torch.tensor(log_prob, dtype=torch.float64)))

    def _save(self) -> None:
        """Rows first: what the checkpoint has left behind must be on disk."""
        before = monotonic()
        self.run.flush()
        due = {"losses": self.losses, "step_s": self.step_s, "excess": self.excess}
        state = {"trainer": self.trainer.state_dict()} | due
        self._keep(state, self.files.checkpoint)
        self.n_saved, self.saved = self.n_done, monotonic()
        self.save_s = self.saved - before

    def _keep(self, state: object, file: Path) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_whole(state, file)
        except OSError as error:
            raise StoreError(
                f"`{file.parent}` takes no more weights ({error.strerror}); make room, then "
                f"`resflow-bench train --resume {self.run.name} --results {file.parents[1]}`."
            ) from error

    def _load(self) -> set[int]:
        """Goes to the checkpoint, if there is one; the steps that failed before come back."""
        file = self.files.checkpoint
        if file.exists():
            try:
                state = torch.load(file, map_location=self.course.device, weights_only=True)
                self.trainer.load_state_dict(state["trainer"])
                self.losses, self.step_s = list(state["losses"]), state["step_s"]
                self.excess = state["excess"]
            except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
                raise StoreError(
                    f"checkpoint `{file}` does not fit ({explain(error)}); take the code that it "
                    "was made with, or move it away to begin again."
                ) from error
        if TRAINING.name not in self.run.suites:
            return set()
        frame = self.run.frame(TRAINING.name)
        return set(frame["step"][frame["status"] == "failed"])


@torch.no_grad()
def _log_prob(flow: ResidualFlow, data: Dataset, generator: torch.Generator) -> list[float]:
    """Of all test points, by the flow's unbiased estimator, batch by batch."""
    found: list[Tensor] = [
        flow.log_prob(data.prepare(batch, generator), generator) for batch in data.test.split(256)
    ]
    return torch.cat(found).double().tolist()
