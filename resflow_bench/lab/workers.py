"""Measuring cells, in this process or in several worker processes, any of which may die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing import connection, resource_tracker
from time import perf_counter
from typing import Any, NamedTuple

from resflow_bench.lab.cells import Cell
from resflow_bench.lab.discovery import load, names
from resflow_bench.lab.interrupt import NUMBERS, Interrupts
from resflow_bench.lab.observe import Result
from resflow_bench.lab.suite import Context, Failure, Skip, Suite
from resflow_bench.threads import one_thread

# Failures of a cell, not of the program: ArithmeticError is a solve that did not converge or a
# value that is not finite; RuntimeError is torch's for a lack of memory, a failed factorisation or
# an operation that a dtype lacks; ValueError refuses a combination of axes; MemoryError is numpy's.
# A TypeError, a KeyError and the like are mistakes of this code, and end the run.
FAILURES = (Failure, ArithmeticError, RuntimeError, ValueError, MemoryError)
_SPAWN = multiprocessing.get_context("spawn")  # CUDA does not survive a fork, nor do threads
_LONGEST_MESSAGE = 500  # torch's may hold a stack trace of C++


class Task(NamedTuple):
    """One cell to measure, with its suite and its context."""

    suite: Suite
    cell: Cell
    context: Context

    def __reduce__(self) -> tuple[Callable[..., Task], tuple[object, ...]]:
        """A suite in a folder is pickled as its reference: its modules are on no import path."""
        return _task, (self.suite.reference or self.suite, self.cell, self.context)


def _task(suite: Suite | str, cell: Cell, context: Context) -> Task:
    return Task(load(suite) if isinstance(suite, str) else suite, cell, context)


class Answer(NamedTuple):
    """The result of a task, and its seconds."""

    task: Task
    result: Result
    wall_s: float


def measure(task: Task) -> Answer:
    """The result of a task: its observations, or the failure that its measure raised."""
    cell, start = task.cell, perf_counter()
    try:
        observations = tuple(task.suite.measure(cell, task.context) or ())
        result = Result(cell, "ok", observations)
        if not observations:
            result = Result(cell, "failed", message="the measure observed nothing")
    except Skip as reason:
        result = Result(cell, "skipped", message=str(reason))
    except FAILURES as error:
        result = Result(cell, "failed", message=explain(error))
    return Answer(task, result, perf_counter() - start)


def explain(error: BaseException) -> str:
    """The error as one line."""
    text = " ".join(str(error).split())[:_LONGEST_MESSAGE]
    return text if isinstance(error, Failure) else f"{type(error).__name__}: {text}"


def in_turn(tasks: Iterable[Task], interrupts: Interrupts) -> Iterator[Answer]:
    """Measure the tasks in this process, one after the other."""
    for task in tasks:
        with interrupts.allowed():
            answer = measure(task)
        yield answer


def by_workers(
    tasks: Iterable[Task], n_workers: int, interrupts: Interrupts
) -> Iterator[Answer | None]:
    """Measure the tasks in worker processes; yield None now and then while no answer is ready.

    A worker that is killed (out of memory, a crash in C) costs the cell that it held; a new worker
    replaces it.
    """
    waiting = deque(tasks)
    busy: dict[Any, _Worker] = {}  # by their pipe

    def employ(worker: _Worker) -> None:
        worker.start(waiting.popleft())
        busy[worker.pipe] = worker

    try:
        while waiting and len(busy) < n_workers:
            employ(_Worker())
        while busy:
            ready = connection.wait(list(busy), timeout=0.2)
            if not ready:
                interrupts.check()
                yield None
            for pipe in ready:
                worker = busy.pop(pipe)
                answer = worker.finish()
                if not waiting or interrupts.received is not None:
                    worker.kill()
                else:
                    employ(worker if worker.process.is_alive() else _Worker())
                yield answer
        interrupts.check()
    finally:
        for worker in busy.values():
            worker.kill()


class _Worker:
    """A process that measures one task at a time, and its current task."""

    def __init__(self) -> None:
        self.pipe, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(theirs,), daemon=True)
        # Ctrl-C reaches every process of a terminal. A signal that is blocked here stays blocked in
        # the child and pending in this process, which decides. The tracker is started first, since
        # its start would unblock the signal.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()

    def start(self, task: Task) -> None:
        self.task = task
        with suppress(BrokenPipeError):  # the process died; `finish` will notice
            self.pipe.send(task)

    def finish(self) -> Answer:
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
        number = -(self.process.exitcode or 0)
        if number <= 0:
            raise RuntimeError(f"a worker could not go on at {self.task.cell}; see above why.")
        name = signal.Signals(number).name
        message = f"its process was killed by {name}; SIGKILL is what a full memory brings"
        return Answer(self.task, Result(self.task.cell, "failed", message=message), 0.0)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: connection.Connection) -> None:
    """Measure each task that the pipe brings, until its other end is closed."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    names()  # so that a task finds our suites, whatever folder it is unpickled in
    try:
        task = pipe.recv()  # imports the suite, and with it every library that one_thread limits
        with one_thread():
            while True:
                pipe.send(measure(task))
                task = pipe.recv()
    except (EOFError, BrokenPipeError):
        return


def _die_with_parent() -> None:
    """Exit with the parent process, which cannot stop its workers if it is killed."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
    os._exit(1)
