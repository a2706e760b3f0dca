"""What asv sees of a suite: the same measure, on a few permanent cells, timed and tracked."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch.utils.benchmark.utils.timer import timer

from resflow_bench.lab.cells import Cell
from resflow_bench.lab.suite import Context, Skip, Suite

Method = TypeVar("Method", bound=Callable[..., object])

YARDSTICK_S = 5e-3
"""About what the yardstick takes on the machine that this was written on; any number would do."""


class SteadyClock:
    """Seconds of a machine whose speed does not change.

    A shared machine is faster in one second than in the next, for whole processes at a time: its
    clock moves, its neighbours come and go. `pace` times a fixed piece of work, small products and
    an interpreter's loop, and from then on a second counts `YARDSTICK_S` over that. Medians of 10
    calls differed from process to process by 4 to 7 % by this clock, and by 14 to 23 % by the
    wall's (standard deviations, four cells, 12 processes each, two shared cores).
    """

    rate = 1.0

    @cached_property
    def _rotation(self) -> torch.Tensor:
        """Not before it is used: torch's threads do not survive asv's forks."""
        start = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
        return torch.linalg.qr(start).Q

    def __call__(self) -> float:
        return self.rate * timer()

    def pace(self, device: torch.device) -> None:
        """How fast is the machine just now? A GPU's speed is its own: there a second is one."""
        self.rate = 1.0
        if device.type != "cpu":
            return
        x, total = self._rotation, 0
        start = timer()
        for i in range(100):
            x = torch.cos(x @ self._rotation)
            total += sum(range(100 + i))
        self.rate = YARDSTICK_S / (timer() - start)


class Face:
    """Base of a suite's asv class; `params` are short strings that never change their meaning.

    A subclass names its `suite`, its `cells` (the axes behind each string) and what the measure may
    spend, and has one-line methods `time_*` and `track_*`; its own `build` returns what is timed
    where that is not the whole measure. It is built once per process, since asv calls `setup`
    before every timed call. The clock waits for the accelerator, and on a CPU it is a steady one.
    """

    suite: ClassVar[Suite]
    cells: ClassVar[dict[str, dict[str, Any]]]
    effort: ClassVar[dict[str, int | float]]
    n_replicates: ClassVar[int] = 8
    """Seeds of a tracked accuracy, each a sample of what asv stores; 1 where nothing is random."""
    param_names = ("cell",)
    version = "2"
    """Of what is measured and how: samples of other `rounds` or `repeat` are another version's."""
    clock: ClassVar[SteadyClock] = SteadyClock()
    timer = staticmethod(clock)
    rounds, repeat, number, warmup_time = 8, 10, 1, 0.0
    timeout = 600
    calls: ClassVar[dict[Cell, Callable[[], object]]] = {}
    """What is timed of each cell, ready to be called."""

    def setup(self, name: str) -> None:
        """Skip a cell whose device or library is not here, the only skips there are; build it."""
        axes = self.cells[name]
        device = torch.device(axes.get("device", "cpu"))
        if device.type == "cuda" and not torch.cuda.is_available():
            raise NotImplementedError(f"{name} needs a CUDA device")
        self.cell = Cell(self.suite.name, axes)
        if self.cell not in self.calls:
            try:
                self.calls[self.cell] = self.build()
            except Skip as reason:
                raise NotImplementedError(str(reason)) from None
            self.call()  # what is only done the first time
        self.clock.pace(device)

    def build(self) -> Callable[[], object]:
        """What is timed of this cell: the whole measure, unless a suite has better."""
        return partial(self.measure, self.cell)

    def call(self) -> None:
        """Do what is timed."""
        self.calls[self.cell]()

    @classmethod
    def measure(cls, cell: Cell, seed: int = 0) -> dict[str, float]:
        """Metric -> value, of a cell at a seed."""
        context = Context(seed=seed, effort=cls.effort, results=Path("results"))
        return {o.metric: o.value for o in cls.suite.measure(cell, context)}

    def track(self, metric: str) -> dict[str, Any]:
        """One sample a seed, in the form that makes asv keep their median, interval and all.

        Raises:
            ArithmeticError: if a sample is not finite, which asv would file as skipped.
        """
        samples = [self.measure(self.cell, seed)[metric] for seed in range(self.n_replicates)]
        if not all(map(math.isfinite, samples)):
            raise ArithmeticError(f"{metric} of {self.cell} is not finite: {samples}.")
        return {"samples": samples, "number": 1}


def described(unit: str = "", name: str = "") -> Callable[[Method], Method]:
    """A decorator that gives a `track_` method what asv reads from it.

    unit: of the samples.
    name: `module.Class.method` in asv's history, for a benchmark whose file has moved since.
    """

    def describe(method: Method) -> Method:
        for attribute, value in (("unit", unit), ("benchmark_name", name)):
            if value:
                setattr(method, attribute, value)
        return method

    return describe
