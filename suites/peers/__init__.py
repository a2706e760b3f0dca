"""Other implementations with the same weights: their values, speed and memory.

Needs the `peers` extra; an implementation that is not installed is a skipped row.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from resflow_bench.lab import Grid, Preset, Suite
from resflow_bench.models import PREPARED_BY, build_flow, build_points, prepare_models
from resflow_bench.peers import MODES, PEERS, Request
from resflow_bench.speed.benchmark import SuiteBenchmark, described
from suites.grids import MODEL_AXES, Axes, Point, everywhere
from suites.peers.claims import CLAIMS
from suites.peers.measure import measure_peers

SAVING = ("ours", "normflows")
"""The implementations that have a memory-saving mode."""

UNTERMED = tuple(mode for mode in MODES if mode != "series")


def _grids(
    model: str, dim: int, constants: tuple[float, ...], n_terms: tuple[int, ...]
) -> tuple[Grid, ...]:
    """Grids of each implementation in each mode, with one probe, and eight in a training's modes.

    The memory-saving mode has a random number of terms, and the largest of `n_terms`.

    Cells are ordered by mode, so that implementations stand beside each other.
    """
    common: Point = {**{"model": model, "dim": dim, "dtype": "float32", "batch_size": 256}}
    free: Axes = {"device": ("cpu",), "lipschitz": constants}
    peers: Axes = {"implementation": tuple(PEERS)}
    one, eight = {**common, "n_probes": 1}, {**common, "n_probes": 8}
    saving: Point = {**one, "mode": "memory-saving"}
    return (
        Grid({**free, "mode": UNTERMED, **peers}, one),
        Grid({**free, "n_terms": n_terms, **peers}, {**one, "mode": "series"}),
        Grid({**free, "implementation": SAVING}, {**saving, "n_terms": max(n_terms)}),
        Grid({**free, "mode": ("roulette",), **peers}, eight),
        Grid({**free, "n_terms": n_terms[:1], **peers}, {**eight, "mode": "series"}),
    )


SMALL: Point = {
    **{"model": "init", "dim": 16, "lipschitz": 0.9, "dtype": "float32"},
    **{"batch_size": 256, "n_probes": 1},
}

SUITE = Suite(
    name="peers",
    title="Other implementations",
    question="Given the same weights, what do other implementations return, how fast, in what "
    "memory?",
    axes=(*MODEL_AXES, "mode", "implementation", "n_terms", "n_probes", "batch_size"),
    presets={
        "smoke": Preset(
            (Grid({"device": ("cpu",), "mode": MODES[2:], "implementation": tuple(PEERS)}, SMALL),),
            {"n_points": 4, "n_calls": 16, "n_copies": 4, "n_gradients": 16, "n_pairs": 8},
        ),
        "quick": Preset(
            everywhere(_grids("trained", 64, (0.9,), (5, 20))),
            {"n_points": 4, "n_calls": 32, "n_copies": 16, "n_gradients": 12, "n_pairs": 10},
        ),
        "full": Preset(
            everywhere(
                _grids("init", 64, (0.9,), (5, 20))
                + _grids("trained", 64, (0.7, 0.9), (5, 20))
                + _grids("conv", 64, (0.9,), (5, 20))
            ),
            {"n_points": 8, "n_calls": 2000, "n_copies": 8, "n_gradients": 640, "n_pairs": 100},
        ),
    },
    measure=measure_peers,
    exclusive=True,
    prepare=prepare_models,
    prepared_by=PREPARED_BY,
    claims=CLAIMS,
    table=(
        *("bias", "bias_expected", "variance", "batch_correlation", "gradient_error"),
        *("inverse_error", "inverse_bound", "inverse_s", "inverse_over_ours"),
        *("inverse_batch_error", "inverse_batch_bound", "wall_s", "time_over_ours"),
        *("peak_over_ours",),
        *("step_s", "step_over_ours", "update_share", "gradient_peak_over_ours"),
        *("peak_bytes_gradient", "norm_over_asked", "weight_change", "map_difference"),
    ),
    figures="suites.peers.figures",
)


class Peers(SuiteBenchmark):
    """Log-prob in evaluation, and the bias of its value, on the untrained flow.

    Skipped where an implementation is not installed.
    """

    suite = SUITE
    effort = {"n_points": 4, "n_calls": 16, "n_copies": 4, "n_gradients": 2, "n_pairs": 2}
    cells = {
        f"{name}-evaluation": {
            **{**SMALL, "device": "cpu", "implementation": name, "mode": "evaluation"}
        }
        for name in PEERS
    }

    def build(self) -> Callable[[], object]:
        peer = PEERS[self.cell["implementation"]](
            build_flow(self.cell, Path("results")), Request("evaluation")
        )
        x = build_points(self.cell, self.cell["batch_size"], Path("results"))

        def log_prob() -> None:
            with torch.no_grad(), peer.seeded(0):
                peer.log_prob(x.clone())

        return log_prob

    def time_log_prob(self, name: str) -> None:
        self.call()

    @described(unit="nat")
    def track_bias(self, name: str) -> dict[str, Any]:
        return self.track("bias")
