"""A training as a run: rows while it runs, weights at its end, checkpoints to resume from."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from statistics import fmean
from time import monotonic

import torch

from resflow_bench.data import Dataset
from resflow_bench.flows import ResidualFlow
from resflow_bench.intervals import mean_interval
from resflow_bench.lab import Cell, Context, Observation, Result, exactly, observe
from resflow_bench.lab.interrupt import Interrupted, Interrupts
from resflow_bench.lab.plan import now
from resflow_bench.lab.progress import Listener, Progress, ignore
from resflow_bench.lab.store import Run, StoreError
from resflow_bench.lab.workers import FAILURES, explain
from resflow_bench.threads import one_thread
from resflow_bench.training.plan import TRAINING, TrainingPlan
from resflow_bench.training.recipe import finite_moments_estimator
from resflow_bench.training.trainer import Diverged, Trainer
from resflow_bench.training.weights import SECONDS_BETWEEN_CHECKPOINTS, save_whole

CHECKPOINT_SHARE = 0.05
"""Largest share of the wall time that writing checkpoints may take."""

N_SHOWN = 20
"""Number of the last steps whose mean loss is displayed."""


@dataclass(frozen=True)
class TrainingResult:
    """The end of a training: after all steps, by a signal, or by a failure.

    n_done: steps taken; after a signal, the steps that the checkpoint holds.
    signal: the number of the signal that interrupted it.
    failure: the reason why it failed.
    """

    n_done: int = 0
    signal: int | None = None
    failure: str = ""


@dataclass(frozen=True)
class TrainingFiles:
    """The files of a run outside its folder: `weights` at its end, `checkpoint` until then."""

    run: Run

    @property
    def weights(self) -> Path:
        return self.run.path.parents[1] / "models" / f"{self.run.name}.pt"

    @property
    def checkpoint(self) -> Path:
        return self.weights.with_suffix(".checkpoint")


def train(plan: TrainingPlan, data: Dataset, run: Run, listen: Listener = ignore) -> TrainingResult:
    """Train to the last step, from the run's checkpoint if there is one; save rows and weights.

    On a CPU, an interrupted and resumed training gives the same bits and rows as an uninterrupted
    one, except for `examples_per_s`.

    Args:
        run: receives the rows; the weights are saved in `TrainingFiles(run)`.
        listen: is called after every step, and before the held-out points are evaluated.

    Raises:
        StoreError: if the run or its checkpoint cannot be read or written.
        ValueError: if `data` has another digest than the plan's, or the data or the flow do not
            fit in memory.
    """
    if data.digest != plan.digest:
        raise ValueError(
            f"run `{run.name}` was begun on other {data.name} (digest {plan.digest}; got "
            f"{data.digest}). Give the folder of the original files with --data."
        )
    files, n_steps = TrainingFiles(run), plan.recipe.training.n_steps
    if run.about["status"] == "finished" and files.weights.exists():
        return TrainingResult(n_done=n_steps)
    status, result = "interrupted", TrainingResult()
    session: _Session | None = None
    with Interrupts() as interrupts, one_thread():
        try:
            with interrupts.allowed():
                session = _Session(plan, data, run, listen)
            session.train(interrupts)
            run.flush()
            run.drop_superseded()
            session.save_weights()
            status, result = "finished", TrainingResult(n_done=n_steps)
        except Interrupted:
            result = TrainingResult(session.n_saved if session else 0, interrupts.received)
        except FAILURES as error:
            if session is None:
                raise ValueError(explain(error)) from error
            status, result = "failed", session.record_failure(error)
        finally:
            run.flush()
            run.write_about(run.about | {"status": status, "end": now()})
    if status == "finished":  # after run.json says so, in case the process is killed in between
        files.checkpoint.unlink(missing_ok=True)
    return result


class _Session:
    """A trainer with the measurements that no row holds yet, and the times of its checkpoints."""

    def __init__(self, plan: TrainingPlan, data: Dataset, run: Run, listen: Listener) -> None:
        device, settings = plan.device, plan.recipe.training
        # The first test images may differ from the rest, as MNIST's do.
        chosen = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))
        test = data.test[chosen[: plan.n_test]]
        self.plan, self.run, self.listen = plan, run, listen
        self.data = replace(data, train=data.train.to(device), test=test.to(device))
        self.trainer = Trainer(plan.flow().to(device), self.data, settings)
        self.losses: list[float] = []  # of the steps since the last row, and their seconds
        self.step_s = 0.0
        self.excess: float | None = None  # of the step whose row is due, if one is
        self.certified = math.nan  # the largest constant of a block at the last row
        self.context = Context(settings.seed, {}, run.path.parents[1])
        self.files = TrainingFiles(run)
        self.failed_steps = self._resume()
        self.n_before = self.n_saved = self.n_done
        self.step = self.n_done  # the last step that was begun
        self.started_at = self.saved_at = monotonic()
        self.save_s = 0.0

    @property
    def n_done(self) -> int:
        return self.trainer.n_steps_done

    def train(self, interrupts: Interrupts) -> None:
        """Take the steps that are left. A signal takes effect at the end of a step."""
        while self.n_done < self.plan.recipe.training.n_steps or self.excess is not None:
            if self.excess is None:
                self._take_step()
            if self.excess is not None:
                self._append_row(self.excess, interrupts)
            waited = monotonic() - self.saved_at
            due = waited > max(SECONDS_BETWEEN_CHECKPOINTS, self.save_s / CHECKPOINT_SHARE)
            if interrupts.received is not None or due:
                self._save_checkpoint()
            interrupts.check()

    def record_failure(self, error: BaseException) -> TrainingResult:
        """Append a failed row; after a divergence, first the row and weights of the step before."""
        finite = all(p.isfinite().all() for p in self.trainer.flow.parameters())
        if isinstance(error, Diverged) and self.n_done and finite:
            if self.losses and self.n_done > self.n_before:
                self.run.append(TRAINING, self._row(self.trainer.excess()))
            self.save_weights()
        message = explain(error)
        self.run.append(TRAINING, Result(self.plan.cell(self.step), "failed", message=message))
        failure = f"step {self.step} of {self.plan.recipe}: {message}"
        return TrainingResult(self.n_done, failure=failure)

    def save_weights(self) -> None:
        """Save the flow with the average of its parameters, aligned."""
        about = {
            **self.plan.weights_about(),
            "steps": self.n_done,
            "mean": list(self.data.mean),
            "scale": list(self.data.scale),
        }
        flow = self.trainer.averaged()
        self._write(self.files.weights, lambda file: flow.save(file, about))

    def _take_step(self) -> None:
        self.step = self.n_done + 1
        before = monotonic()
        self.losses.append(self.trainer.step())
        self.step_s += monotonic() - before
        self._report()
        if self.plan.is_logged(self.n_done) or self.n_done in self.failed_steps:
            self.excess = self.trainer.excess()

    def _append_row(self, excess: float, interrupts: Interrupts) -> None:
        """Append the row that is due. It may be interrupted, and is then due after a resume."""
        self._report("held-out points")
        try:
            with interrupts.allowed():
                row = self._row(excess)
        except Interrupted:
            self._save_checkpoint()
            raise
        self.run.append(TRAINING, row)
        self.losses, self.step_s, self.excess = [], 0.0, None

    def _report(self, activity: str = "") -> None:
        """Tell the listener the loss, and the `activity` if it is other than a step."""
        n_steps, loss = self.plan.recipe.training.n_steps, fmean(self.losses[-N_SHOWN:])
        message = f"loss {loss:.4g} nat"
        if activity:
            message += f"; {activity}"
        else:
            message += f", {self._bits(-loss):.3g} bits/dim"
            if not math.isnan(self.certified):
                message += f", Lip(g) ≤ {self.certified:.3g}"
        step_s = (monotonic() - self.started_at) / max(1, self.n_done - self.n_before)
        left = step_s * (n_steps - self.n_done)
        self.listen(Progress(self.n_done, n_steps, left, message))

    def _row(self, excess: float) -> Result:
        cell, trainer = self.plan.cell(self.n_done), self.trainer
        settings = self.plan.recipe.training
        self.certified = max(block.branch.lipschitz_certified() for block in trainer.flow.blocks)
        batch = min(settings.batch_size, len(self.data.train))
        rate = trainer.optimiser.param_groups[0]["lr"]
        return Result(
            cell,
            "ok",
            (
                self._loss(),
                *self._held_out(cell),
                exactly("lipschitz_certified", self.certified, "1"),
                exactly("lipschitz_excess", excess, "1"),
                exactly("learning_rate", rate, "1"),
                Observation("examples_per_s", len(self.losses) * batch / self.step_s, "1/s"),
            ),
        )

    def _loss(self) -> Observation:
        """Mean loss over the steps since the last row, with an interval from their scatter."""
        n = len(self.losses)
        if n == 1:
            return Observation("loss", self.losses[0], "nat")
        return observe("loss", mean_interval(self.losses), "nat", n)

    def _held_out(self, cell: Cell) -> Iterable[Observation]:
        """Mean log p of the test points under the averaged weights.

        If some are not finite, their number instead.
        """
        generator = torch.Generator().manual_seed(self.context.generator_seed(cell, "test"))
        estimator = finite_moments_estimator(self.plan.recipe.lipschitz)
        flow = self.trainer.averaged().with_estimator(estimator)
        log_prob = _log_prob(flow, self.data, generator)
        n, n_lost = len(log_prob), sum(not math.isfinite(value) for value in log_prob)
        if n_lost:
            why = "held-out points without a finite log p, so that log_prob_test is left out"
            yield Observation("n_not_finite", n_lost, "1", n=n, message=why)
            return
        interval = mean_interval(log_prob)
        units = f"in the units of the file {-self.data.log_scale:+.6g} nat"
        message = f"of standardised columns; {units}" if self.data.scale else ""
        yield observe("log_prob_test", interval, "nat", n, message)
        bits = interval._replace(
            value=self._bits(interval.value),
            standard_error=abs(self._bits(interval.standard_error) - self._bits(0.0)),
            low=self._bits(interval.high),
            high=self._bits(interval.low),
        )
        yield observe("bits_per_dim", bits, "bit/dim", n)

    def _bits(self, log_prob: float) -> float:
        return float(self.data.bits_per_dim(torch.tensor(log_prob, dtype=torch.float64)))

    def _save_checkpoint(self) -> None:
        """Save the state of the training, after the rows that precede it."""
        before = monotonic()
        self.run.flush()
        due = {"losses": self.losses, "step_s": self.step_s, "excess": self.excess}
        state = {"trainer": self.trainer.state_dict()} | due
        self._write(self.files.checkpoint, lambda file: save_whole(state, file))
        self.n_saved, self.saved_at = self.n_done, monotonic()
        self.save_s = self.saved_at - before

    def _write(self, file: Path, write: Callable[[Path], None]) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write(file)
        except OSError as error:
            raise StoreError(
                f"weights cannot be written to `{file.parent}` ({error.strerror}); make room, then "
                f"`resflow-bench train --resume {self.run.name} "
                f"--results {quote(str(file.parents[1]))}`."
            ) from error

    def _resume(self) -> set[int]:
        """Load the checkpoint, if there is one; return the steps that the run marks as failed."""
        file = self.files.checkpoint
        if file.exists():
            try:
                state = torch.load(file, map_location=self.plan.device, weights_only=True)
                self.trainer.load_state_dict(state["trainer"])
                self.losses, self.step_s = list(state["losses"]), state["step_s"]
                self.excess = state["excess"]
            except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
                raise StoreError(
                    f"checkpoint `{file}` does not fit ({explain(error)}); use the code that wrote "
                    "it, or move the file away to begin again."
                ) from error
        if TRAINING.name not in self.run.suites:
            return set()
        frame = self.run.frame(TRAINING.name)
        return set(frame["step"][frame["status"] == "failed"])


@torch.no_grad()
def _log_prob(flow: ResidualFlow, data: Dataset, generator: torch.Generator) -> list[float]:
    """log p of each test point by the flow's unbiased estimator, in batches; nats."""
    parts = [flow.log_prob(data.prepare(x, generator), generator) for x in data.test.split(256)]
    return torch.cat(parts).double().tolist()
