"""The asv classes whose samples are times of ours over those of normflows, on one thread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from resflow_bench.lab import Cell, Skip
from resflow_bench.models import build_flow, build_points
from resflow_bench.peers import PEERS, Peer, Request
from resflow_bench.speed.benchmark import described, skip
from resflow_bench.threads import one_thread
from suites.grids import Point
from suites.peers.measure import inverse_seconds, log_prob_seconds, step_seconds

N_TERMS = 20
N_PAIRS = 30
BATCH_SIZE = 256

Seconds = Callable[[Peer, Peer, Tensor, int, int], np.ndarray]


class PairedRatio:
    """Base of the classes: the untrained flow, held by normflows and by ours, at `N_TERMS` terms.

    asv skips it where normflows is not installed.
    """

    mode: str
    unit = "ours/theirs"
    timeout = 600

    def setup(self) -> None:
        axes: Point = {
            "model": "init",
            "dim": 64,
            "lipschitz": 0.9,
            "dtype": "float32",
            "device": "cpu",
        }
        cell, results = Cell("peers", axes), Path("results")
        flow, request = build_flow(cell, results), Request(self.mode, N_TERMS)
        try:
            self.theirs, self.ours = (PEERS[name](flow, request) for name in ("normflows", "ours"))
        except Skip as reason:
            skip(type(self).__name__, str(reason))
        self.x = build_points(cell, BATCH_SIZE, results)

    def samples(self, measured: Seconds) -> dict[str, Any]:
        """Ours over theirs in interleaved pairs, in the form in which asv stores samples."""
        with one_thread():
            seconds = measured(self.theirs, self.ours, self.x, N_PAIRS, 0)
        totals = seconds.reshape(len(seconds), 2, -1).sum(2)
        return {"samples": (totals[:, 1] / totals[:, 0]).tolist(), "number": 1}


class AgainstNormflows(PairedRatio):
    """Time of log-prob, ours over theirs."""

    mode = "series"
    version = "2"

    @described(name="against_normflows.AgainstNormflows.track_time_ratio")
    def track_time_ratio(self) -> dict[str, Any]:
        return self.samples(log_prob_seconds)


class InverseAgainstNormflows(PairedRatio):
    """Time of the inverse, ours with its certificate over theirs."""

    mode = "evaluation"
    version = "2"

    @described(name="inverse_against_normflows.InverseAgainstNormflows.track_time_ratio")
    def track_time_ratio(self) -> dict[str, Any]:
        return self.samples(inverse_seconds)


class TrainingAgainstNormflows(PairedRatio):
    """Time of a training step, ours over theirs, by gradients of one law."""

    mode = "memory-saving"
    version = "3"

    @described(name="training_against_normflows.TrainingAgainstNormflows.track_time_ratio")
    def track_time_ratio(self) -> dict[str, Any]:
        return self.samples(step_seconds)
