"""Interleaved timings of ours and normflows, their summary in words, and their asv class."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resflow_bench.intervals import median_interval
from resflow_bench.lab.cells import Cell
from resflow_bench.models.build import build_flow, build_points
from resflow_bench.speed.timing import elapsed

if TYPE_CHECKING:
    from torch import Tensor

    from resflow_bench.flows import ResidualFlow

N_REPEATS = 30
N_WARM_UP = 3
BATCH_SIZE = 256


def need_normflows() -> None:
    """Exit with a remedy if normflows is not installed."""
    if find_spec("normflows") is None:
        raise SystemExit(
            "normflows is not installed; .venv/bin/pip install -e '.[peers]' installs it"
        )


def say(line: str) -> None:
    """Print a line on standard output."""
    print(line, flush=True)  # noqa: T201


def flow_and_points(model: str) -> tuple[ResidualFlow, Tensor]:
    """The flow of a value of the axis `model`, d = 64, K = 0.9, float32, and a batch."""
    cell = Cell(
        "throughput",
        {"model": model, "dim": 64, "lipschitz": 0.9, "dtype": "float32", "device": "cpu"},
    )
    return build_flow(cell, Path("results")), build_points(cell, BATCH_SIZE)


def ratios(one: Callable[[], object], other: Callable[[], object]) -> np.ndarray:
    """Seconds of `one` / seconds of `other` in interleaved pairs, after a warm-up: (n,)."""
    pairs = [elapsed(one) / elapsed(other) for _ in range(N_WARM_UP + N_REPEATS)]
    return np.asarray(pairs[N_WARM_UP:])


def median_in_words(pairs: np.ndarray) -> str:
    """The median of the ratios, with its 99 % interval."""
    median = median_interval(pairs)
    return (
        f"{median.value:.3f} [{median.low:.3f}, {median.high:.3f}] (median and 99 % interval, "
        f"n = {median.n} interleaved pairs)"
    )


class TimeRatio:
    """Base of an asv class that tracks ours/theirs on the untrained flow.

    asv skips it if normflows is not installed.
    """

    unit = "ours/theirs"
    timeout = 600

    def setup(self) -> None:
        if find_spec("normflows") is None:
            raise NotImplementedError("needs the `peers` extra")
        self.flow, self.x = flow_and_points("init")

    @staticmethod
    def samples(pairs: np.ndarray) -> dict[str, Any]:
        """The ratios in the form in which asv stores samples."""
        return {"samples": pairs.tolist(), "number": 1}
