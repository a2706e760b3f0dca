"""Preparing and measuring cells, in this process or in several workers, any of which may die."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from heapq import heappop, heappush
from multiprocessing import connection, resource_tracker
from time import perf_counter
from typing import Any, NamedTuple

from resflow_bench.lab.cells import Cell
from resflow_bench.lab.discovery import load, names
from resflow_bench.lab.interrupt import NUMBERS, Interrupts
from resflow_bench.lab.observe import Result
from resflow_bench.lab.suite import Context, Failure, Skip, Suite
from resflow_bench.memory import share_of_memory
from resflow_bench.threads import one_thread

# Failures of a cell, not of the program: ArithmeticError is a solve that did not converge or a
# value that is not finite; RuntimeError is torch's for a lack of memory, a failed factorisation or
# an operation that a dtype lacks; ValueError refuses a combination of axes; MemoryError is numpy's.
# A TypeError, a KeyError and the like are mistakes of this code, and end the run.
FAILURES = (Failure, ArithmeticError, RuntimeError, ValueError, MemoryError)
LEAST_SHARE = 1 / 256
"""The smallest share of the usual chunks; a cell for which it is too large fails."""

_SPAWN = multiprocessing.get_context("spawn")  # CUDA does not survive a fork, nor do threads
_LONGEST_MESSAGE = 500  # torch's may hold a stack trace of C++


class Task(NamedTuple):
    """One cell to measure, with its suite and its context."""

    suite: Suite
    cell: Cell
    context: Context

    def __reduce__(self) -> tuple[Callable[..., Task], tuple[object, ...]]:
        return _task, (_by_reference(self.suite), self.cell, self.context)


class Preparation(NamedTuple):
    """A job that some cells share and wait for, such as the training of a flow."""

    suite: Suite
    cells: list[Cell]
    context: Context

    def __reduce__(self) -> tuple[Callable[..., Preparation], tuple[object, ...]]:
        return _preparation, (_by_reference(self.suite), self.cells, self.context)


Job = Task | Preparation


def shared(job: Job) -> tuple[object, ...]:
    """`prepare` and the cell's values of `prepared_by`: equal for cells that share a preparation.

    So are those of cells of several suites that prepare the same.
    """
    cell = job.cell if isinstance(job, Task) else job.cells[0]
    return (job.suite.prepare, *(cell.get(axis) for axis in job.suite.prepared_by))


def preparations(tasks: Iterable[Task]) -> list[Preparation]:
    """The preparations of the tasks' suites, each once."""
    groups: dict[tuple[object, ...], Preparation] = {}
    for task in tasks:
        if task.suite.prepare is not None:
            group = groups.setdefault(shared(task), Preparation(task.suite, [], task.context))
            group.cells.append(task.cell)
    return list(groups.values())


def _by_reference(suite: Suite) -> str | bytes:
    """A suite in a folder is pickled as its reference: its modules are on no import path."""
    return suite.reference or pickle.dumps(suite)


@cache
def _suite(reference: str | bytes) -> Suite:
    """The suite, made once for all jobs of a process: it may be larger than they are."""
    suite: Suite = load(reference) if isinstance(reference, str) else pickle.loads(reference)
    return suite


def _task(suite: str | bytes, cell: Cell, context: Context) -> Task:
    return Task(_suite(suite), cell, context)


def _preparation(suite: str | bytes, cells: list[Cell], context: Context) -> Preparation:
    return Preparation(_suite(suite), cells, context)


class _Prepared(NamedTuple):
    """The end of a preparation; where it failed, with the reason: its cells will fail, too."""

    failure: str = ""


class Answer(NamedTuple):
    """The result of a task, and its seconds."""

    task: Task
    result: Result
    wall_s: float


def measure(task: Task) -> Answer:
    """The result of a task: its observations, or the failure that its measure raised.

    A cell for which a GPU's memory is too small is measured again in chunks of half the size, down
    to `LEAST_SHARE`; its rows say so.
    """
    start, share = perf_counter(), 1.0
    while (result := _measured(task, share)) is None:
        share /= 2
    if share < 1.0:
        said = f"in chunks of 1/{round(1 / share)}, as the GPU's memory was full"
        observations = tuple(
            replace(one, message=f"{one.message}; {said}" if one.message else said)
            for one in result.observations
        )
        result = replace(result, observations=observations)
    return Answer(task, result, perf_counter() - start)


def _measured(task: Task, share: float) -> Result | None:
    """The result with a share of the usual chunks; None if the memory is full all the same."""
    import torch  # only now, as for axes

    cell = task.cell
    try:
        with share_of_memory(share):
            observations = tuple(task.suite.measure(cell, task.context) or ())
    except torch.OutOfMemoryError as error:
        if share > LEAST_SHARE:
            torch.cuda.empty_cache()
            return None
        return Result(cell, "failed", message=explain(error))
    except Skip as reason:
        return Result(cell, "skipped", message=str(reason))
    except FAILURES as error:
        return Result(cell, "failed", message=explain(error))
    if not observations:
        return Result(cell, "failed", message="the measure observed nothing")
    return Result(cell, "ok", observations)


def explain(error: BaseException) -> str:
    """The error as one line."""
    text = " ".join(str(error).split())[:_LONGEST_MESSAGE]
    return text if isinstance(error, Failure) else f"{type(error).__name__}: {text}"


def prepare(job: Preparation, say: Callable[[str], None]) -> _Prepared:
    """Prepare, on one thread; `say` receives the progress."""
    assert job.suite.prepare is not None  # or there would be no such job
    try:
        with one_thread():
            job.suite.prepare(job.cells, replace(job.context, say=say))
    except FAILURES as error:
        return _Prepared(f"preparing {job.suite.name} failed: {explain(error)}")
    return _Prepared()


def in_turn(
    jobs: Iterable[Job], interrupts: Interrupts, say: Callable[[str], None]
) -> Iterator[Answer]:
    """Do the jobs in this process, one after the other."""
    for job in jobs:
        with interrupts.allowed():
            answer = measure(job) if isinstance(job, Task) else prepare(job, say)
        if isinstance(answer, Answer):
            yield answer
        elif answer.failure:
            say(answer.failure)


def by_workers(
    jobs: Iterable[Job], n_workers: int, interrupts: Interrupts, say: Callable[[str], None]
) -> Iterator[Answer | None]:
    """Do the jobs in worker processes; yield None now and then while no answer is ready.

    A task waits for its preparation; others take its turn meanwhile. A worker that is killed (out
    of memory, a crash in C) costs the cell that it held; a new worker replaces it. On a machine
    with several GPUs each worker sees one of them, the same for as long as it lives.
    """
    agenda, idle = _Agenda(jobs), list[_Worker]()
    busy: dict[Any, _Worker] = {}  # by their pipe
    gpus = visible_gpus()
    try:
        while busy or (agenda.is_left and interrupts.received is None):
            while interrupts.received is None and len(busy) < n_workers:
                if (job := agenda.take()) is None:
                    break
                worker = idle.pop() if idle else _Worker(_rarest(gpus, busy.values()))
                worker.start(job)
                busy[worker.pipe] = worker
            ready = connection.wait(list(busy), timeout=0.2)
            if not ready:
                interrupts.check()
                yield None
            for pipe in ready:
                heard = busy[pipe].receive()
                if isinstance(heard, str):
                    say(heard)
                    continue
                worker = busy.pop(pipe)
                if worker.process.is_alive():
                    idle.append(worker)
                if isinstance(heard, Answer):
                    yield heard
                else:
                    agenda.prepared(worker.job)
                    if heard.failure:
                        say(heard.failure)
        interrupts.check()
    finally:
        for worker in (*busy.values(), *idle):
            worker.kill()


class _Agenda:
    """The jobs to do, in order; tasks wait for their preparation."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        jobs = list(jobs)
        unprepared = {shared(job) for job in jobs if isinstance(job, Preparation)}
        self._ready: list[tuple[int, Job]] = []  # a heap
        self._waiting: dict[tuple[object, ...], list[tuple[int, Job]]] = {}
        for place, job in enumerate(jobs):
            if isinstance(job, Preparation) or shared(job) not in unprepared:
                self._ready.append((place, job))
            else:
                self._waiting.setdefault(shared(job), []).append((place, job))

    @property
    def is_left(self) -> bool:
        return bool(self._ready or self._waiting)

    def take(self) -> Job | None:
        """The next job that can begin."""
        return heappop(self._ready)[1] if self._ready else None

    def prepared(self, job: Job) -> None:
        """Release the tasks that waited for this preparation."""
        for task in self._waiting.pop(shared(job), ()):
            heappush(self._ready, task)


def visible_gpus() -> list[str]:
    """A value of `CUDA_VISIBLE_DEVICES` for each GPU; empty with fewer than two GPUs."""
    import torch  # only now, as for axes

    n_gpus = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(i) for i in range(n_gpus)] if named is None else named.split(",")[:n_gpus]
    return gpus if len(gpus) > 1 else []


def _rarest(gpus: list[str], workers: Iterable[_Worker]) -> str | None:
    """The GPU that the fewest of the workers see; None if there is no choice."""
    taken = [worker.gpu for worker in workers]
    return min(gpus, key=taken.count, default=None)


class _Worker:
    """A process that does one job at a time, and its current job.

    gpu: the one that it sees; None sees what this process does.
    """

    def __init__(self, gpu: str | None = None) -> None:
        self.gpu = gpu
        self.pipe, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(theirs,), daemon=True)
        # Ctrl-C reaches every process of a terminal. A signal that is blocked here stays blocked in
        # the child and pending in this process, which decides. The tracker is started first, since
        # its start would unblock the signal.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
        try:
            with _environment("CUDA_VISIBLE_DEVICES", gpu):
                self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()

    def start(self, job: Job) -> None:
        self.job = job
        with suppress(BrokenPipeError):  # the process died; `receive` will notice
            self.pipe.send(job)

    def receive(self) -> Answer | _Prepared | str:
        """The job's result, or a message of its progress."""
        try:
            heard: Any = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
        else:
            if isinstance(heard, OSError):
                raise heard
            return Answer(self.job, *heard) if isinstance(self.job, Task) else heard
        number, job = -(self.process.exitcode or 0), self.job
        what = job.cell if isinstance(job, Task) else f"a preparation of {job.suite.name}"
        if number <= 0:
            raise RuntimeError(f"a worker could not go on at {what}; see above why.")
        name = signal.Signals(number).name
        message = f"its process was killed by {name}; SIGKILL is what a full memory brings"
        if isinstance(job, Preparation):
            return _Prepared(f"{what} failed: {message}")
        return Answer(job, Result(job.cell, "failed", message=message), 0.0)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


@contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    """A variable of the environment inside the context, for the processes begun there."""
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if value is not None:
            os.environ.pop(name)
            os.environ.update({} if before is None else {name: before})


def _serve(pipe: connection.Connection) -> None:
    """Do each job that the pipe brings, until its other end is closed."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    names()  # so that a task finds our suites, whatever folder it is unpickled in
    try:
        job = pipe.recv()  # imports the suite, and with it every library that one_thread limits
        with one_thread():
            while True:
                try:
                    is_task = isinstance(job, Task)
                    pipe.send(measure(job)[1:] if is_task else prepare(job, pipe.send))
                except BrokenPipeError:
                    raise
                except OSError as error:  # a full disk and the like, which the user can mend
                    pipe.send(error)
                job = pipe.recv()
    except (EOFError, BrokenPipeError):
        return


def _die_with_parent() -> None:
    """Exit with the parent process, which cannot stop its workers if it is killed."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
    os._exit(1)
