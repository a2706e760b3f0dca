"""The asv class of a suite: its measure on a few permanent cells, timed and tracked."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

import torch

from resflow_bench.lab import Cell, Context, Skip, Suite
from resflow_bench.speed.asv_results import SKIPPED
from resflow_bench.speed.clock import SteadyClock

Method = TypeVar("Method", bound=Callable[..., object])


class SuiteBenchmark:
    """Base of a suite's asv class; `params` are short strings that never change their meaning.

    A subclass sets its `suite`, its `cells` (the axes of each string in `params`) and the `effort`
    of its measure, and has one-line methods `time_*` and `track_*`. It overrides `build` if the
    timed call is not the whole measure. asv calls `setup` before every timed call, so the call of a
    cell is built once per process. The clock waits for an accelerator; on a CPU it is steady.
    """

    suite: ClassVar[Suite]
    cells: ClassVar[dict[str, dict[str, Any]]]
    effort: ClassVar[dict[str, int | float]]
    n_replicates: ClassVar[int] = 8  # seeds of a tracked accuracy; 1 if nothing is random
    param_names = ("cell",)
    params: ClassVar[list[str]]
    version = "2"  # of the measurement; another `rounds` or `repeat` needs another version
    clock: ClassVar[SteadyClock] = SteadyClock()
    timer = staticmethod(clock)
    rounds, repeat, number, warmup_time = 8, 10, 1, 0.0
    timeout = 600
    calls: ClassVar[dict[Cell, Callable[[], object]]] = {}  # cell -> its timed call

    def __init_subclass__(cls) -> None:
        cls.params = list(cls.cells)

    def setup(self, name: str) -> None:
        """Build the call of a cell; skip the cell if its device or library is missing."""
        axes = self.cells[name]
        device = torch.device(axes.get("device", "cpu"))
        self.cell = Cell(self.suite.name, axes)
        benchmark = f"{type(self).__name__}({name})"
        if device.type == "cuda" and not torch.cuda.is_available():
            skip(benchmark, f"{name} needs a CUDA device")
        if self.cell not in self.calls:
            try:
                self.calls[self.cell] = self.build()
            except Skip as reason:
                skip(benchmark, str(reason))
            self.call()  # warm-up
        self.clock.calibrate(device)

    def build(self) -> Callable[[], object]:
        return partial(self.measure, self.cell)

    def call(self) -> None:
        self.calls[self.cell]()

    @classmethod
    def measure(cls, cell: Cell, seed: int = 0) -> dict[str, float]:
        """Metric -> value of the suite's measure of a cell at a seed."""
        context = Context(seed=seed, effort=cls.effort, results=Path("results"))
        return {o.metric: o.value for o in cls.suite.measure(cell, context)}

    def track(self, metric: str) -> dict[str, Any]:
        """One sample of the metric for each seed, in the form in which asv stores samples.

        Raises:
            ArithmeticError: if a sample is not finite; asv would record it as skipped.
        """
        samples = [self.measure(self.cell, seed)[metric] for seed in range(self.n_replicates)]
        if not all(map(math.isfinite, samples)):
            raise ArithmeticError(f"{metric} of {self.cell} is not finite: {samples}.")
        return {"samples": samples, "number": 1}


def skip(benchmark: str, reason: str) -> NoReturn:
    """Skip a benchmark, `Class(cell)`, and write down why, since asv keeps no reason.

    A line [commit, benchmark, reason] of results/asv/skipped.jsonl, where asv measures a commit.

    Raises:
        NotImplementedError: always; by it asv knows that a benchmark is skipped.
    """
    home, commit = (os.environ.get(name) for name in ("ASV_CONF_DIR", "ASV_COMMIT"))
    if home and commit:
        line = json.dumps([commit, benchmark, reason]) + "\n"
        file = Path(home, "results", "asv", SKIPPED)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a+") as stream:
            stream.seek(0)
            if line not in stream:
                stream.write(line)
    raise NotImplementedError(reason) from None


def described(unit: str = "", name: str = "") -> Callable[[Method], Method]:
    """A decorator that sets the attributes that asv reads from a `track_` method.

    unit: of the samples.
    name: `module.Class.method` in asv's history, for a benchmark whose file has moved.
    """

    def describe(method: Method) -> Method:
        for attribute, value in (("unit", unit), ("benchmark_name", name)):
            if value:
                setattr(method, attribute, value)
        return method

    return describe
