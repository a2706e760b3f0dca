"""The sweep: every cell of a plan is measured, until all are done or a signal comes.

A cell's numbers depend on its axes, the seed, the dtype and the device, never on what else runs. So
every cell draws from seeds derived from its own id and runs on one thread, unless its suite times.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from math import nan
from pathlib import Path

from resflow_bench.lab.cluster import Cluster
from resflow_bench.lab.interrupt import Interrupted, Interrupts
from resflow_bench.lab.observe import Result
from resflow_bench.lab.plan import Plan, conclude
from resflow_bench.lab.progress import Listener, Progress, ignore
from resflow_bench.lab.store import WHOLE, Run, Shard, StoreError
from resflow_bench.lab.suite import Context, Suite
from resflow_bench.lab.workers import (
    Answer,
    Job,
    Task,
    by_workers,
    in_turn,
    preparations,
    shared,
)
from resflow_bench.threads import one_thread


@dataclass
class _Pace:
    n_workers: int
    n_left: int = 0
    n_done: int = 0
    wall_s: float = 0.0


@dataclass
class Tally:
    """The state of a sweep.

    n_total, n_done, n_kept: cells of the plan, those that have rows, those that had them before.
    failed, skipped: the results of cells without numbers.
    signal: the number of the signal that ended the sweep early.
    """

    n_total: int = 0
    n_done: int = 0
    n_kept: int = 0
    failed: list[Result] = field(default_factory=list)
    skipped: list[Result] = field(default_factory=list)
    signal: int | None = None
    paces: dict[str, _Pace] = field(default_factory=dict)

    @property
    def seconds_left(self) -> float:
        """Sum of each suite's cells left times their mean time so far (all suites' mean where it
        has none) over the workers that share them; NaN before the first cell.
        """
        paces = self.paces.values()
        if not (n_done := sum(pace.n_done for pace in paces)):
            return nan
        mean = sum(pace.wall_s for pace in paces) / n_done
        return sum(
            pace.n_left * (pace.wall_s / pace.n_done if pace.n_done else mean) / pace.n_workers
            for pace in paces
        )

    def progress(self, message: str) -> Progress:
        failed = f" ({len(self.failed)} failed)" if self.failed else ""
        return Progress(self.n_done, self.n_total, self.seconds_left, message + failed)

    def add(self, answer: Answer) -> None:
        result, pace = answer.result, self.paces[answer.task.suite.name]
        self.n_done += 1
        pace.n_done += 1
        pace.n_left -= 1
        pace.wall_s += answer.wall_s
        if result.status != "ok":
            (self.failed if result.status == "failed" else self.skipped).append(result)


def sweep(
    plan: Plan,
    run: Run,
    jobs: int = 1,
    listen: Listener = ignore,
    finished: Callable[[Suite], None] = lambda _: None,
    shard: Shard = WHOLE,
    cluster: Cluster | None = None,
) -> Tally:
    """Measure every cell of the plan's shard that the run lacks; the last marks it as finished.

    Args:
        run: receives the rows. Its own rows stay, but failed cells are measured again.
        jobs: processes that share the cells; exclusive suites come last, alone, in this one.
        listen: is called after every cell, and with the messages of preparations.
        finished: is called after the last cell of each suite, whose rows are then on disk.
        shard: the cells to measure; other processes may measure others into the same run.
        cluster: measures the cells in the place of this machine.

    Returns:
        The tally. Where SIGINT or SIGTERM ended the sweep, every finished cell is on disk.

    Raises:
        ClusterError: the cluster cannot be used, or went away; what was measured is stored.
        HeldError: another process measures some of these cells.
        StoreError: if the run cannot be read or written.
    """
    with Interrupts() as interrupts:
        run.begin_writing(shard)
        try:
            done = run.done()
        except StoreError:
            run.end_writing()
            raise
        tally = Tally()
        tasks = list(_tasks(plan, run.path.parents[1], tally, done, shard))
        exclusive = [task for task in tasks if task.suite.exclusive]
        common = list(_in_order([task for task in tasks if not task.suite.exclusive], exclusive))
        jobs = max(1, min(cluster.n_workers if cluster else jobs, len(common)))
        for task in tasks:
            workers = 1 if task.suite.exclusive else jobs
            tally.paces.setdefault(task.suite.name, _Pace(workers)).n_left += 1
        is_over = False
        try:
            say = _saying(tally, listen)
            source = _answers(common, exclusive, jobs, interrupts, say)
            if cluster is not None:
                source = cluster.answers(common, exclusive, interrupts, say)
            with closing(source) as answers:
                for answer in answers:
                    if answer is None:
                        run.flush()
                        continue
                    run.append(answer.task.suite, answer.result)
                    tally.add(answer)
                    listen(tally.progress(str(answer.task.cell)))
                    if not tally.paces[answer.task.suite.name].n_left:
                        run.flush()
                        finished(answer.task.suite)
            run.flush()
            run.drop_superseded()
            is_over = True
        except Interrupted:
            tally.signal = interrupts.received
        finally:
            others = run.end_writing()
            conclude(plan, run, not is_over, others)
    return tally


def _tasks(plan: Plan, results: Path, tally: Tally, done: set[str], shard: Shard) -> Iterator[Task]:
    """The cells that are left to measure; the others are counted as kept."""
    for suite in plan.suites:
        context = Context(plan.seed, suite.presets[plan.preset].effort, results)
        for cell in (cell for cell in plan.cells(suite) if shard.has(cell.id)):
            tally.n_total += 1
            if cell.id in done:
                tally.n_done += 1
                tally.n_kept += 1
            else:
                yield Task(suite, cell, context)


def _in_order(tasks: list[Task], exclusive: list[Task]) -> Iterator[Job]:
    """Suite by suite, the preparations before the cells; those of exclusive suites at the end.

    What several suites prepare is prepared once, for the first of them.
    """
    left = {shared(job): job for job in preparations([*tasks, *exclusive])}
    for _, several in groupby(tasks, key=lambda task: task.suite.name):
        cells = list(several)
        for cell in cells:
            if (job := left.pop(shared(cell), None)) is not None:
                yield job
        yield from cells
    yield from left.values()


def _saying(tally: Tally, listen: Listener) -> Callable[[str], None]:
    return lambda message: listen(tally.progress(message))


def _answers(
    common: list[Job],
    exclusive: list[Task],
    jobs: int,
    interrupts: Interrupts,
    say: Callable[[str], None],
) -> Generator[Answer | None, None, None]:
    """Answers in the order of completion; None while there is none."""
    if jobs > 1:
        yield from by_workers(common, jobs, interrupts, say)
    else:
        with one_thread():
            yield from in_turn(common, interrupts, say)
    yield from in_turn(exclusive, interrupts, say)
