"""Trainings in processes, and what a comparison prints."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.util import find_spec
from typing import TypeVar

import click
import torch

T = TypeVar("T")
S = TypeVar("S")

BATCH_SIZE = 256


def need_normflows() -> None:
    """End the program, naming the remedy, if normflows is not installed."""
    if find_spec("normflows") is None:
        remedy = ".venv/bin/pip install -e '.[peers]' installs it"
        raise SystemExit(f"normflows is not installed; {remedy}")


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


def say(line: str) -> None:
    """Print a line on standard output."""
    print(line, flush=True)  # noqa: T201
