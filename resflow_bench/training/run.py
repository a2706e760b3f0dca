"""A training as a run: rows and the best weights while it runs, checkpoints to resume from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shlex import quote
from statistics import fmean
from time import monotonic

import torch

from resflow_bench.data import Dataset
from resflow_bench.files import remove_leftovers
from resflow_bench.flows import ResidualFlow
from resflow_bench.intervals import mean_interval
from resflow_bench.lab import Context, Observation, Result, exactly, observe
from resflow_bench.lab.interrupt import Interrupted, Interrupts
from resflow_bench.lab.plan import now
from resflow_bench.lab.progress import Listener, Progress, ignore
from resflow_bench.lab.store import Run, StoreError
from resflow_bench.lab.workers import FAILURES, explain
from resflow_bench.threads import one_thread
from resflow_bench.training.best import BestHeldOut
from resflow_bench.training.plan import TRAINING, TrainingPlan
from resflow_bench.training.recipe import unbiased_objective
from resflow_bench.training.trainer import Diverged, Trainer
from resflow_bench.training.weights import (
    DAMAGE,
    SECONDS_BETWEEN_CHECKPOINTS,
    TrainingFiles,
    first_line,
    load_weights,
    load_whole,
    save_whole,
    weights_digest,
)

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


RowListener = Callable[[int, dict[str, float]], object]
"""Called with the step and the metrics of each logged row, after the row is appended."""


def train(
    plan: TrainingPlan,
    data: Dataset,
    run: Run,
    listen: Listener = ignore,
    on_row: RowListener | None = None,
) -> TrainingResult:
    """Train to the last step, from the run's checkpoint if there is one; save rows and weights.

    On a CPU, an interrupted and resumed training gives the same bits and rows as an uninterrupted
    one, except for `examples_per_s`.

    Args:
        run: receives the rows; the weights are saved in `TrainingFiles(run)`.
        listen: is called after every step, and before the held-out points are evaluated.
        on_row: such as `lambda step, row: print(step, row["loss"])`. After a kill, rows that no
            checkpoint holds come again.

    Raises:
        HeldError: another process carries out this training.
        StoreError: if the run or its checkpoint cannot be read or written.
        ValueError: if `data` or the initial weights have another digest than the plan's, or the
            data or the flow do not fit in memory.
    """
    if data.digest != plan.digest:
        raise ValueError(
            f"run `{run.name}` was begun on other {data.name} (digest {plan.digest}; got "
            f"{data.digest}). Put the original files back."
        )
    files, n_steps, about = TrainingFiles(run), plan.recipe.training.n_steps, run.about
    is_longer = plan.is_longer_than(run)
    if about.get("status") == "finished" and not is_longer and files.weights.exists():
        return TrainingResult(n_done=about.get("n_steps_done", n_steps))
    if plan.init and not files.checkpoint.exists():
        found = weights_digest(plan.init, run.path.parents[1])
        if found != plan.init_digest:
            raise ValueError(
                f"run `{run.name}` was begun from other weights {plan.init} (digest "
                f"{plan.init_digest}; got {found}). Put the file back, or begin another run."
            )
    if run.begin_writing():
        remove_leftovers(files.weights.parent, f".{run.name}*.tmp")
    if is_longer:
        run.write_about(about | plan.record() | {"status": "running", "end": None})
    status, result = "interrupted", TrainingResult()
    session: _Session | None = None
    with Interrupts() as interrupts, one_thread():
        try:
            with interrupts.allowed():
                session = _Session(plan, data, run, listen, on_row)
            session.train(interrupts)
            run.flush()
            run.drop_superseded()
            session.finish()
            status, result = "finished", TrainingResult(n_done=session.n_done)
        except Interrupted:
            result = TrainingResult(session.n_saved if session else 0, interrupts.received)
        except FAILURES as error:
            if session is None:
                raise ValueError(explain(error)) from error
            status, result = "failed", session.record_failure(error)
        finally:
            run.end_writing()
            ended = {"status": status, "end": now(), "n_steps_done": result.n_done}
            run.revise(lambda _: ended)
    return result


class _Session:
    """A trainer with the measurements that no row holds yet, and the times of its checkpoints."""

    def __init__(
        self,
        plan: TrainingPlan,
        data: Dataset,
        run: Run,
        listen: Listener,
        on_row: RowListener | None,
    ) -> None:
        device, settings = plan.device, plan.recipe.training
        # The first test images may differ from the rest, as MNIST's do.
        chosen = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))
        test = data.test[chosen[: plan.n_test]]
        self.plan, self.run, self.listen, self.on_row = plan, run, listen, on_row
        self.data = replace(data, train=data.train.to(device), test=test.to(device))
        self.files, results = TrainingFiles(run), run.path.parents[1]
        flow = plan.flow()
        if plan.init and not self.files.checkpoint.exists():
            load_weights(flow, plan.init, results)
        self.trainer = Trainer(flow.to(device), self.data, settings, initialise=not plan.init)
        self.best = BestHeldOut()
        self.losses: list[float] = []  # of the steps since the last row, and their seconds
        self.step_s = 0.0
        self.excess: float | None = None  # of the step whose row is due, if one is
        self.certified = math.nan  # the largest constant of a block at the last row
        self.context = Context(settings.seed, {}, results)
        self.failed_steps = self._resume()
        self.n_before = self.n_saved = self.n_done
        self.step = self.n_done  # the last step that was begun
        self.started_at = self.saved_at = monotonic()
        self.save_s = 0.0

    @property
    def n_done(self) -> int:
        return self.trainer.n_steps_done

    @property
    def is_over(self) -> bool:
        """True after the last step, and once the patience is spent."""
        is_spent = 0 < self.plan.patience <= self.best.n_without
        return is_spent or self.n_done >= self.plan.recipe.training.n_steps

    def train(self, interrupts: Interrupts) -> None:
        """Take the steps that are left. A signal takes effect at the end of a step."""
        while not self.is_over or self.excess is not None:
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
                self._keep(*self._evaluated(self.trainer.excess()))
            self._save_flow(self.trainer.averaged(), self.files.weights)
        message = explain(error)
        self.run.append(TRAINING, Result(self.plan.cell(self.step), "failed", message=message))
        failure = f"step {self.step} of {self.plan.recipe}: {message}"
        return TrainingResult(self.n_done, failure=failure)

    def finish(self) -> None:
        """Save the state, for more steps, and the flow with the average of its parameters."""
        self._save_checkpoint()
        self._save_flow(self.trainer.averaged(), self.files.weights)

    def _save_flow(self, flow: ResidualFlow, file: Path) -> None:
        about = {
            **self.plan.weights_about(),
            "steps": self.n_done,
            "mean": list(self.data.mean),
            "scale": list(self.data.scale),
        }
        self._write(file, lambda file: flow.save(file, about))

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
                evaluated = self._evaluated(excess)
        except Interrupted:
            self._save_checkpoint()
            raise
        self._keep(*evaluated)
        self.losses, self.step_s, self.excess = [], 0.0, None

    def _keep(self, row: Result, flow: ResidualFlow, log_prob: list[float]) -> None:
        """Append a row, save the flow if it is the best so far, and tell the listener."""
        self.run.append(TRAINING, row)
        if self.best.note(self.n_done, log_prob):
            self._save_flow(flow, self.files.best)
        if self.on_row is not None:
            self.on_row(self.n_done, {o.metric: o.value for o in row.observations})

    def _report(self, activity: str = "") -> None:
        """Tell the listener the loss, and the `activity` if it is other than a step."""
        n_steps, loss = self.plan.recipe.training.n_steps, fmean(self.losses[-N_SHOWN:])
        message = f"loss {loss:.4g} nat"
        if activity:
            message += f"; {activity}"
        else:
            message += f", {self._bits(-loss):.3g} bits/dim"
            if self.certified > 0:  # not before the first row, nor without residual blocks
                message += f", Lip(g) ≤ {self.certified:.3g}"
        step_s = (monotonic() - self.started_at) / max(1, self.n_done - self.n_before)
        left = step_s * (n_steps - self.n_done)
        self.listen(Progress(self.n_done, n_steps, left, message))

    def _evaluated(self, excess: float) -> tuple[Result, ResidualFlow, list[float]]:
        """The row, the averaged flow and its log p of each held-out point."""
        cell, trainer = self.plan.cell(self.n_done), self.trainer
        settings = self.plan.recipe.training
        constants = [block.branch.lipschitz_certified() for block in trainer.flow.blocks]
        self.certified = max(constants, default=0.0)
        batch = min(settings.batch_size, len(self.data.train))
        rate = trainer.optimiser.param_groups[0]["lr"]
        generator = torch.Generator().manual_seed(self.context.generator_seed(cell, "test"))
        estimator = unbiased_objective(self.plan.recipe.lipschitz, self.plan.event)
        flow = trainer.averaged().with_estimator(estimator)
        log_prob = _log_prob(flow, self.data, generator)
        row = Result(
            cell,
            "ok",
            (
                self._loss(),
                *self._held_out(log_prob),
                *self._constants(excess),
                exactly("learning_rate", rate, "1"),
                Observation("examples_per_s", len(self.losses) * batch / self.step_s, "1/s"),
            ),
        )
        return row, flow, log_prob

    def _constants(self, excess: float) -> Iterable[Observation]:
        """The rows of the Lipschitz constants, if there are residual blocks."""
        if self.trainer.flow.blocks:
            yield exactly("lipschitz_certified", self.certified, "1")
            yield exactly("lipschitz_excess", excess, "1")

    def _loss(self) -> Observation:
        """Mean loss over the steps since the last row, with an interval from their scatter."""
        n = len(self.losses)
        if n == 1:
            return Observation("loss", self.losses[0], "nat")
        return observe("loss", mean_interval(self.losses), "nat", n)

    def _held_out(self, log_prob: list[float]) -> Iterable[Observation]:
        """Mean log p of the test points; if some are not finite, their number instead."""
        n, n_lost = len(log_prob), sum(not math.isfinite(value) for value in log_prob)
        if n_lost:
            why = "held-out points without a finite log p, so that log_prob_test is left out"
            yield Observation("n_not_finite", n_lost, "1", n=n, message=why)
            return
        interval = mean_interval(log_prob)
        units = f"in the units of the file add {-self.data.log_scale:.6g} nat"
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
        state = {"trainer": self.trainer.state_dict(), "best": asdict(self.best)} | due
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
                state = load_whole(file, self.plan.device)
                self.trainer.load_state_dict(state["trainer"])
                self.losses, self.step_s = list(state["losses"]), state["step_s"]
                self.excess = state["excess"]
                self.best = BestHeldOut(**state.get("best", {}))  # none in an older checkpoint
            except (OSError, *DAMAGE) as error:
                raise StoreError(
                    f"checkpoint `{file}` does not fit or is damaged ({first_line(error)}); use "
                    "the code that wrote it, put back a copy, or move the file away to begin again."
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
