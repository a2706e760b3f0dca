"""Preparing and measuring cells on the workers of a Dask cluster, for the one process that writes.

A worker that leaves is the scheduler's affair: it gives what the worker had to others. What it had
measured and nobody had fetched yet is measured again. A cell whose workers die more often than the
scheduler allows (`distributed.scheduler.allowed-failures`) fails.
"""

from __future__ import annotations

import logging
import pickle
import threading
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from resflow_bench import __version__
from resflow_bench.lab.discovery import names
from resflow_bench.lab.interrupt import Interrupts
from resflow_bench.lab.observe import Result
from resflow_bench.lab.workers import Answer, Job, Preparation, Task, measure, prepare, shared
from resflow_bench.threads import one_thread

if TYPE_CHECKING:
    from distributed import Client, Future

TOPIC = "resflow_bench"
"""Under which workers log the messages of preparations."""

WINDOW = 1000
"""Jobs that the scheduler holds at a time, so that a sweep of any size costs it little memory."""

SECONDS_TO_ANSWER = 20.0
SECONDS_BETWEEN_WARNINGS = 30.0

DONE_AGAIN = ("finished", "lost", "pending")
"""The status of a future whose result died with a worker: the scheduler has it computed again. Of
a finished one, the result did not come in time."""

_ONE_AT_A_TIME = threading.Lock()
_NUMBERS = count()


class ClusterError(Exception):
    """A cluster that cannot be used; the message has the cause and the remedy."""


class Cluster:
    """The workers of a Dask scheduler.

    Args:
        address: tcp://HOST:PORT, or tls:// with the certificates of Dask's own configuration.

    Raises:
        ClusterError: `distributed` is not installed, the address is none, or no scheduler answers.
    """

    def __init__(self, address: str) -> None:
        try:
            from distributed import Client
        except ImportError:
            raise ClusterError(
                "a cluster needs the package `distributed`; "
                "pip install 'resflow_bench[distributed]' brings it."
            ) from None
        try:
            is_whole = urlsplit(address).port is not None
        except ValueError:
            is_whole = False
        if "://" not in address or not is_whole:
            raise ClusterError(
                f"`{address}` is no address; give tcp://HOST:PORT or tls://HOST:PORT."
            )
        try:
            self.client: Client = Client(
                address, timeout=SECONDS_TO_ANSWER, set_as_default=False, name="resflow-bench"
            )
        except (OSError, ValueError, TypeError) as error:
            raise ClusterError(
                f"no Dask scheduler answers at `{address}` ({' '.join(str(error).split())}); "
                "start one with `dask scheduler`, and give the address that it prints."
            ) from None
        # Dask's messages would repeat, with a traceback, what a `ClusterError` says.
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
        self.address = address

    def close(self) -> None:
        """Leave the cluster, which goes on; what it has of ours is cancelled."""
        self.client.close()

    @property
    def n_workers(self) -> int:
        """Threads of all workers; 1 while there is none."""
        return max(1, sum(self.client.nthreads().values()))

    def answers(
        self,
        common: Sequence[Job],
        exclusive: Sequence[Task],
        interrupts: Interrupts,
        say: Callable[[str], None],
    ) -> Generator[Answer | None, None, None]:
        """Do the jobs, then the exclusive tasks, one at a time on each host; None while none ends.

        Raises:
            ClusterError: the scheduler went away, or a worker has another version of this package.
            RuntimeError: a mistake of this code in a cell.
        """
        self._check_versions()
        heard: SimpleQueue[Future[Any] | str] = SimpleQueue()
        self.client.subscribe_topic(TOPIC, lambda event: heard.put(str(event[1])))
        try:
            yield from self._anywhere(deque(common), heard, interrupts, say)
            yield from self._alone(deque(exclusive), heard, interrupts, say)
        finally:
            self.client.unsubscribe_topic(TOPIC)

    def _anywhere(
        self,
        waiting: deque[Job],
        heard: SimpleQueue[Future[Any] | str],
        interrupts: Interrupts,
        say: Callable[[str], None],
    ) -> Iterator[Answer | None]:
        prepared: dict[tuple[object, ...], Future[Any]] = {}
        # With the futures, as Dask forgets one that nobody holds.
        given: dict[Hashable, tuple[Job, Future[Any]]] = {}
        while waiting or given:
            while waiting and len(given) < WINDOW:
                job = waiting.popleft()
                future = self._submit(job, prepared.get(shared(job)))
                if isinstance(job, Preparation):
                    prepared[shared(job)] = future
                given[future.key] = (job, future)
                future.add_done_callback(heard.put)
            one = self._next(heard, interrupts, say)
            if one is None:
                yield None
                continue
            ended, returned = one
            job, _ = given.pop(ended.key)
            if (answer := self._answer(ended, returned, job, say)) is not None:
                yield answer

    def _alone(
        self,
        waiting: deque[Task],
        heard: SimpleQueue[Future[Any] | str],
        interrupts: Interrupts,
        say: Callable[[str], None],
    ) -> Iterator[Answer | None]:
        """Tasks that time something: one at a time on each host."""
        given: dict[Hashable, tuple[Task, str, Future[Any]]] = {}
        while waiting or given:
            hosts = self._hosts()
            for key, (task, host, future) in list(given.items()):
                if host not in hosts:  # nobody else may take it
                    future.cancel()
                    waiting.append(task)
                    del given[key]
            free = hosts - {host for _, host, _ in given.values()}
            for host in sorted(free)[: len(waiting)]:
                task = waiting.popleft()
                future = self._submit(task, None, workers=[host], allow_other_workers=False)
                given[future.key] = (task, host, future)
                future.add_done_callback(heard.put)
            one = self._next(heard, interrupts, say)
            if one is None or one[0].key not in given:
                yield None
                continue
            ended, returned = one
            task, *_ = given.pop(ended.key)
            if (answer := self._answer(ended, returned, task, say)) is not None:
                yield answer

    def _next(
        self,
        heard: SimpleQueue[Future[Any] | str],
        interrupts: Interrupts,
        say: Callable[[str], None],
    ) -> tuple[Future[Any], Any | None] | None:
        """A future that ended, and what it returned, None if it failed.

        None in place of both after a while without one, after a message, or where what it returned
        died with a worker.
        """
        interrupts.check()
        try:
            one = heard.get(timeout=0.2)
        except Empty:
            self._warn_if_idle(say)
            return None
        if isinstance(one, str):
            say(one)
            return None
        returned = _fetched(one)
        if returned is None and one.status in DONE_AGAIN:
            _hear_later(heard, one)
            return None
        return one, returned

    def _submit(self, job: Job, after: Future[Any] | None, **where: Any) -> Future[Any]:
        what = job.cell.id if isinstance(job, Task) else f"prepare-{job.suite.name}"
        # A worker's working directory may be another. The suite is found by name there, once suites
        # can be imported.
        context = replace(job.context, results=job.context.results.resolve())
        payload = pickle.dumps(job._replace(context=context))
        key = f"{what}-{next(_NUMBERS)}"
        return self.client.submit(_do, payload, after, key=key, pure=False, **where)

    def _answer(
        self, future: Future[Any], returned: Any | None, job: Job, say: Callable[[str], None]
    ) -> Answer | None:
        """The answer of a task; None of a preparation, whose failure is said."""
        from distributed import KilledWorker

        if returned is not None:
            if isinstance(job, Task):
                return Answer(job, *returned)
            if returned:
                say(returned)
            return None
        error = future.exception() if future.status == "error" else None
        if isinstance(error, KilledWorker):
            who = (
                "its worker"
                if isinstance(job, Task) and error.task == future.key
                else ("the worker that prepared it")
            )
            message = (
                f"{who} died more often than the scheduler allows; a full memory or a crash is the "
                "usual reason"
            )
            if isinstance(job, Task):
                return Answer(job, Result(job.cell, "failed", message=message), 0.0)
            say(f"preparing {job.suite.name} failed: {message}")
            return None
        if error is None:
            raise ClusterError(
                f"the scheduler at `{self.address}` lost what it was given; is it still there? "
                "What was measured is stored."
            )
        if isinstance(error, OSError):  # a full disk and the like, which the user can mend
            raise error
        what = job.cell if isinstance(job, Task) else f"a preparation of {job.suite.name}"
        raise RuntimeError(f"a worker could not go on at {what}: {error!r}") from error

    def _hosts(self) -> set[str]:
        return {urlsplit(address).hostname or address for address in self.client.nthreads()}

    _warned = 0.0

    def _warn_if_idle(self, say: Callable[[str], None]) -> None:
        if self.client.status != "running":
            raise ClusterError(
                f"the scheduler at `{self.address}` went away. What was measured is stored."
            )
        if monotonic() - self._warned > SECONDS_BETWEEN_WARNINGS and not self.client.nthreads():
            self._warned = monotonic()
            say(f"waiting for workers at {self.address}")

    def _check_versions(self) -> None:
        """All workers that are there have our version; those that come later are asked by `_do`."""
        others = {
            worker: version
            for worker, version in self.client.run(_version).items()
            if version != __version__
        }
        if others:
            worker, version = next(iter(others.items()))
            raise ClusterError(
                f"worker `{worker}` has resflow_bench {version} and this is {__version__}; install "
                "the same version there."
            )


def _fetched(future: Future[Any]) -> Any | None:
    """What a finished job returned. None if it failed, or if a dead worker held the result."""
    try:
        return future.result(timeout=SECONDS_TO_ANSWER) if future.status == "finished" else None
    except TimeoutError:
        return None
    except Exception:
        if future.status == "finished":  # not a worker's death, but what it returned
            raise
        return None


def _hear_later(heard: SimpleQueue[Future[Any] | str], future: Future[Any]) -> None:
    """Look again in a second: Dask tells nobody that a lost result has come back."""
    timer = threading.Timer(1.0, heard.put, (future,))
    timer.daemon = True
    timer.start()


def _version() -> str:
    return __version__


def _do(payload: bytes, after: object) -> tuple[Result, float] | str:  # noqa: ARG001
    """On a worker: the result of a task and its seconds, or the failure of a preparation."""
    from distributed import get_worker

    names()  # so that a task finds our suites
    job: Job = pickle.loads(payload)
    with _ONE_AT_A_TIME:  # threads of a worker share torch's settings
        if isinstance(job, Preparation):
            worker = get_worker()
            return prepare(job, lambda message: worker.log_event(TOPIC, message)).failure
        with nullcontext() if job.suite.exclusive else one_thread():
            answer = measure(job)
        return answer.result, answer.wall_s
