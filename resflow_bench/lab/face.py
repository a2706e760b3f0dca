"""What asv sees of a suite: the same measure, on a few permanent cells, timed and tracked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils.benchmark.utils.timer import timer

from resflow_bench.lab.cells import Cell, Context, Suite


class Face:
    """Base of a suite's asv class; `params` are short strings that never change their meaning.

    A subclass names its `suite`, its `cells` (the axes behind each string) and what the measure may
    spend, and has one-line methods `time_*` and `track_*`. Models are built once per process, since
    asv calls `setup` before every timed call. The clock waits for the accelerator.
    """

    suite: ClassVar[Suite]
    cells: ClassVar[dict[str, dict[str, Any]]]
    effort: ClassVar[dict[str, int | float]]
    n_replicates: ClassVar[int] = 8
    """Seeds of a tracked accuracy, each a sample of what asv stores; 1 where nothing is random."""
    param_names = ("cell",)
    version = "1"
    timer = staticmethod(timer)
    rounds, repeat, number, warmup_time = 4, 6, 1, 0.5
    timeout = 600
    _built: ClassVar[set[Cell]] = set()

    def setup(self, name: str) -> None:
        """Skip a cell whose device is not here, the only skip there is; build its model."""
        axes = self.cells[name]
        if torch.device(axes.get("device", "cpu")).type == "cuda" and not torch.cuda.is_available():
            raise NotImplementedError(f"{name} needs a CUDA device")
        self.cell = Cell(self.suite.name, axes)
        if self.cell not in self._built:
            self.measure()
            self._built.add(self.cell)

    def measure(self, seed: int = 0) -> dict[str, float]:
        """Metric -> value, of this cell at this seed."""
        context = Context(seed=seed, effort=self.effort, results=Path("results"))
        return {o.metric: o.value for o in self.suite.measure(self.cell, context)}

    def track(self, metric: str) -> dict[str, Any]:
        """One sample a seed, in the form that makes asv keep their median, interval and all.

        Raises:
            ArithmeticError: if a sample is not finite, which asv would file as skipped.
        """
        samples = [self.measure(seed)[metric] for seed in range(self.n_replicates)]
        if not all(map(math.isfinite, samples)):
            raise ArithmeticError(f"{metric} of {self.cell} is not finite: {samples}.")
        return {"samples": samples, "number": 1}
