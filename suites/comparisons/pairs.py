"""Interleaved calls of two implementations, calls in processes, and the flow that is shared."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import click
import numpy as np
import torch
from torch import Tensor

from resflow_bench.flows import ResidualFlow
from resflow_bench.intervals import median_interval
from resflow_bench.lab import Cell, Value
from resflow_bench.models import build_flow, build_points
from resflow_bench.speed.timing import elapsed

T = TypeVar("T")
S = TypeVar("S")

N_TERMS = 20
N_REPEATS = 30
N_WARM_UP = 3
BATCH_SIZE = 256


def need_normflows() -> None:
    """End the program, naming the remedy, if normflows is not installed."""
    if find_spec("normflows") is None:
        remedy = ".venv/bin/pip install -e '.[peers]' installs it"
        raise SystemExit(f"normflows is not installed; {remedy}")


def flow_and_points(model: str) -> tuple[ResidualFlow, Tensor]:
    """The flow of that name, d = 64, K = 0.9, float32, such as "trained", and a batch."""
    axes: dict[str, Value] = {"model": model, "dim": 64, "lipschitz": 0.9}
    cell = Cell("throughput", {**axes, "dtype": "float32", "device": "cpu"})
    results = Path("results")
    return build_flow(cell, results), build_points(cell, BATCH_SIZE, results)


def interleaved(calls: Sequence[Callable[[], T]]) -> list[list[T]]:
    """Results of the calls in turn, `N_REPEATS` rounds of them after `N_WARM_UP` unused ones."""
    return [[call() for call in calls] for _ in range(N_WARM_UP + N_REPEATS)][N_WARM_UP:]


def in_processes(call: Callable[[S], T], arguments: Sequence[S], n_jobs: int) -> dict[S, T]:
    """Argument -> result, each in a process of one thread; prints the time left."""
    results: dict[S, T] = {}
    start = time.monotonic()
    # Neither CUDA nor threads survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(n_jobs, len(arguments)), context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        running = {pool.submit(call, argument): argument for argument in arguments}
        for future in as_completed(running):
            argument = running[future]
            results[argument] = future.result()
            left = (time.monotonic() - start) * (len(arguments) / len(results) - 1)
            click.echo(
                f"{len(results)}/{len(arguments)} trainings, {argument} done, about {left:.0f} s "
                "left",
                err=True,
            )
    return results


def ratios(one: Callable[[], object], other: Callable[[], object]) -> np.ndarray:
    """Seconds of one / seconds of the other in interleaved pairs, (n,)."""
    seconds: np.ndarray = np.asarray(interleaved([lambda: elapsed(one), lambda: elapsed(other)]))
    return seconds[:, 0] / seconds[:, 1]


def in_words(pairs: np.ndarray, what: str = "", besides: str = "") -> str:
    """The median ratio of the pairs, its 99 % interval and their number."""
    ratio = median_interval(pairs)
    return (
        f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]{what} (median and 99 % interval, "
        f"n = {ratio.n} interleaved pairs{besides})"
    )


def of_their_time(pairs: np.ndarray, besides: str = "") -> str:
    """The same as a share of normflows' time."""
    return in_words(pairs, " of normflows' time", besides)


def say(line: str) -> None:
    """Print a line on standard output."""
    print(line, flush=True)  # noqa: T201


class TimeRatio:
    """Base of an asv class whose samples are ratios of times, on the untrained flow.

    asv skips it where normflows is not installed.
    """

    version = "1"
    unit = "ours/theirs"
    timeout = 600

    def setup(self) -> None:
        if find_spec("normflows") is None:
            from resflow_bench.speed.benchmark import skip  # here: an older BASE does not have it

            skip(type(self).__name__, "normflows is not installed; the `peers` extra brings it")
        self.flow, self.x = flow_and_points("init")
