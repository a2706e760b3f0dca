"""Suites that cost nothing, and misbehave on request; run as a script, the real command on them."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Iterable
from math import nan
from multiprocessing import parent_process
from pathlib import Path
from types import ModuleType

import torch

from resflow_bench.lab import (
    Cell,
    Context,
    Failure,
    Grid,
    Observation,
    Preset,
    Result,
    Skip,
    Suite,
)
from resflow_bench.memory import at_once
from resflow_bench.threads import one_thread


def measure_rows(cell: Cell, context: Context) -> Iterable[Observation]:
    """A mean whose last bits show the number of threads that summed it, and its seed."""
    generator = torch.Generator().manual_seed(context.generator_seed(cell))
    x = torch.randn(200, 200, generator=generator)
    yield Observation("threads", float(torch.get_num_threads()), "1")
    y = (x @ x).flatten()
    error = float(y.std()) / len(y) ** 0.5
    value = float(y.mean())
    yield Observation("mean", value, "nat", error, value - error, value + error, n=len(y))


def measure_mixed(cell: Cell, context: Context) -> Iterable[Observation]:
    """Numbers, or what the cell's number of terms stands for."""
    yield Observation("dim", float(cell["dim"]), "1")
    match cell.get("n_terms"):
        case 2:
            raise Skip("does not apply")
        case 3:
            raise Failure("did not converge")
        case 4:
            raise ValueError("two\nlines")
        case 5:
            yield Observation("nothing", nan, "1")
        case 6 if parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        case 7:
            raise KeyError("a mistake of ours")
        case 8:
            os.kill(os.getpid(), signal.SIGKILL)


def measure_slow(cell: Cell, context: Context) -> Iterable[Observation]:
    """The rows above, a tenth of a second later."""
    time.sleep(0.1)
    return measure_rows(cell, context)


def measure_gpu(cell: Cell, context: Context) -> Iterable[Observation]:
    """The number in `CUDA_VISIBLE_DEVICES`, a tenth of a second later; -1 if there is none."""
    time.sleep(0.1)
    yield Observation("gpu", float(os.environ.get("CUDA_VISIBLE_DEVICES", "-1")), "1")


def measure_second(cell: Cell, context: Context) -> Iterable[Observation]:
    """The rows above, a moment later; a failure where it is asked for the first time."""
    time.sleep(0.02)
    seen = context.results / f"seen-{cell.id}"
    if not seen.exists():
        seen.touch()
        raise Failure("asked for the first time")
    return measure_rows(cell, context)


def measure_memory(cell: Cell, context: Context) -> Iterable[Observation]:
    """What is computed at once in the place of 1,024 numbers, of which `256 / dim` fit."""
    if at_once(1024) > 256 / cell["dim"]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    yield Observation("at_once", float(at_once(1024)), "1", message="exact")


def measure_unwritable(cell: Cell, context: Context) -> Iterable[Observation]:
    """The disk is full where it writes."""
    raise OSError(errno.ENOSPC, "No space left on device", "there")


def measure_repaired(cell: Cell, context: Context) -> Iterable[Observation]:
    """Fails for as long as the results folder holds a file `broken`."""
    if (context.results / "broken").exists():
        raise Failure("broken")
    return measure_rows(cell, context)


def prepare(cells: list[Cell], context: Context) -> None:
    """Says so, and fails."""
    context.say(f"preparing {len(cells)} cells")
    raise ArithmeticError("loss is not finite")


def prepare_dim(cells: list[Cell], context: Context) -> None:
    """Says so, and leaves a file for the dim that all these cells have."""
    (dim,) = {cell["dim"] for cell in cells}
    context.say(f"preparing dim {dim}")
    time.sleep(0.2)
    with (context.results / f"prepared-{dim}").open("x") as file:  # a second time fails
        file.write(str(len(cells)))


def measure_prepared(cell: Cell, context: Context) -> Iterable[Observation]:
    """The number of cells that were prepared together with this one; fails where it was not."""
    number = (context.results / f"prepared-{cell['dim']}").read_text()
    yield Observation("n_together", float(number), "1")


def result(cell: Cell, suite: str = "rows") -> Result:
    """The result of a cell of a toy suite, with run seed 0."""
    with one_thread():
        observations = tuple(SUITES[suite].measure(cell, Context(0, {}, Path())))
    return Result(cell, "ok", observations)


def toy(name: str, dims: int, n_terms: tuple[int, ...] = (1,), **options: object) -> Suite:
    """A suite of `dims` times `n_terms` cells."""
    grid = Grid({"dim": tuple(range(1, dims + 1)), "n_terms": n_terms, "device": ("cpu",)})
    roulette = Grid({"n_exact": (3,)}, {"truncation": "roulette", "dim": 1})
    presets = {"smoke": Preset((grid,)), "quick": Preset((grid, roulette))}
    axes = ("dim", "n_terms", "n_exact", "truncation", "device")
    measure = globals()[f"measure_{name}"]
    return Suite(name, f"What of {name}?", axes, presets, measure, **options)  # type: ignore[arg-type]


ROWS = toy("rows", 6, prepare=prepare)
MIXED = toy("mixed", 1, (1, 2, 3, 4, 5))
CRASH = toy("mixed", 2, (1, 6))
DEADLY = toy("mixed", 2, (1, 8))
MISTAKE = toy("mixed", 1, (1, 7))
MEMORY = toy("memory", 2)
TOO_LARGE = toy("memory", 1024)
UNWRITABLE = toy("unwritable", 2)
SLOW = toy("slow", 32)
GPU = toy("gpu", 12)
SECOND = toy("second", 24)
REPAIRED = toy("repaired", 3)
PREPARED = toy("prepared", 3, (1, 2), prepare=prepare_dim, prepared_by=("dim",))
ALONE = toy("rows", 2, exclusive=True)
SUITES = {"rows": ROWS, "mixed": MIXED, "slow": SLOW, "repaired": REPAIRED, "second": SECOND}


def install() -> None:
    """Puts the toys where the command looks for suites."""
    import suites

    suites.NAMES = tuple(SUITES)
    for name, suite in SUITES.items():
        module = ModuleType(f"suites.{name}")
        module.SUITE = suite  # type: ignore[attr-defined]
        sys.modules[module.__name__] = module
