"""Kernels that a call launches on an accelerator, and waits of the host for it: no GPU needed."""

from __future__ import annotations

from typing import Any

from resflow_bench.lab import Grid, Preset, Suite
from resflow_bench.peers import PEERS, TRAINING
from resflow_bench.speed.benchmark import SuiteBenchmark, described
from resflow_bench.speed.standin import standin
from resflow_bench.speed.timing import Call
from suites.grids import ESTIMATOR_AXES, Axes, Point
from suites.launches.claims import CLAIMS
from suites.launches.measure import build_call, check_supported, measure_launches

ESTIMATED = ("log_prob", "gradient", "train_step")
OTHERS = ("update", "sample", "inversion", "certified_inversion")

COMMON: Point = {"lipschitz": 0.9, "batch_size": 8}
OURS: Point = {**COMMON, "implementation": "ours"}
PROBES: Point = {"probe": "rademacher", "n_probes": 2}
FIXED: Point = {"truncation": "fixed", "n_terms": 10, **PROBES}
ROULETTE: Point = {
    **{"truncation": "roulette", "roulette": "geometric(0.3)", "n_exact": 3, "per": "example"},
    **PROBES,
}
SHORT: Point = {**FIXED, "n_terms": 6, "n_probes": 1}
ESTIMATORS: tuple[Point, ...] = (
    FIXED,
    ROULETTE,
    {**ROULETTE, "per": "stratified"},
    {**SHORT, "probe": "hadamard", "n_probes": 16},
    {**SHORT, "expansion": "arnoldi"},
    {**SHORT, "expansion": "controlled"},
    {**SHORT, "gradient": "series"},
    {"estimator": "determinant"},
)
TRACED: Point = {**SHORT, "n_traced": 1}  # which convolutions do not support


def _estimates(
    architectures: tuple[str, ...], operations: tuple[str, ...], estimators: tuple[Point, ...]
) -> tuple[Grid, ...]:
    """Grids of the operations that evaluate an estimator of the log-determinant."""
    free: Axes = {"architecture": architectures, "operation": operations}
    return tuple(Grid(free, {**OURS, **estimator}) for estimator in estimators)


def _others(architectures: tuple[str, ...]) -> tuple[Grid, ...]:
    """The grid of the operations that need no estimator."""
    return (Grid({"architecture": architectures, "operation": OTHERS}, OURS),)


def _peers(mode: str, operations: tuple[str, ...]) -> tuple[Grid, ...]:
    """The grid of every implementation in a mode, with one probe."""
    free: Axes = {"operation": operations, "implementation": tuple(PEERS)}
    n_terms: Point = {"n_terms": 10} if mode == "series" else {}
    return (Grid(free, {**COMMON, "architecture": "mlp", "mode": mode, "n_probes": 1, **n_terms}),)


def _every_call(architectures: tuple[str, ...], modes: tuple[str, ...]) -> tuple[Grid, ...]:
    """Every operation by every estimator, and every implementation in `modes` of a training."""
    return (
        *_estimates(architectures, ESTIMATED, ESTIMATORS),
        *_estimates(("mlp",), ESTIMATED, (TRACED,)),
        *_others(architectures),
        *(grid for mode in modes for grid in _peers(mode, ESTIMATED)),
        *_peers("evaluation", ("log_prob", "update", "inversion")),
    )


SUITE = Suite(
    name="launches",
    title="Kernel launches and waits",
    question="What does a call ask of an accelerator: how many launches, and how many waits?",
    axes=(
        *("architecture", "lipschitz", "batch_size", "implementation", "operation", "mode"),
        *("estimator", *ESTIMATOR_AXES, "per", "n_traced", "expansion", "gradient"),
    ),
    presets={
        "smoke": Preset(
            (
                *_estimates(("mlp",), ESTIMATED[:2], (*ESTIMATORS, TRACED)),
                *_estimates(("multiscale",), ESTIMATED[:2], (FIXED,)),
                *_estimates(("mlp", "multiscale"), ESTIMATED[2:], (FIXED,)),
                *_others(("mlp", "multiscale")),
                # Without peers, which not every machine has that is held to a baseline.
            )
        ),
        "quick": Preset(_every_call(("mlp",), ("roulette",))),
        "full": Preset(_every_call(("mlp", "shallow", "dense", "conv", "multiscale"), TRAINING)),
    },
    measure=measure_launches,
    claims=CLAIMS,
    table=("n_launches", "n_waits"),
    figures="suites.launches.figures",
)


class Launches(SuiteBenchmark):
    """Launches and waits of a call on the stand-in accelerator, and the host's time."""

    suite = SUITE
    effort = {}
    n_replicates = 1
    cells = {
        "log_prob-fixed": {**OURS, "architecture": "mlp", "operation": "log_prob", **FIXED},
        "log_prob-roulette": {**OURS, "architecture": "mlp", "operation": "log_prob", **ROULETTE},
        "train_step-fixed": {**OURS, "architecture": "mlp", "operation": "train_step", **FIXED},
        **{
            name: {**OURS, "architecture": "mlp", "operation": name}
            for name in ("update", "sample", "certified_inversion")
        },
    }

    def build(self) -> Call:
        """The call alone, whose time is that of the host: it queues kernels that do little."""
        check_supported()
        with standin():
            call = build_call(self.cell, seed=0)

        def inside() -> None:
            with standin():
                call()

        return inside

    def time_call(self, name: str) -> None:
        self.call()

    @described(unit="1")
    def track_n_launches(self, name: str) -> dict[str, Any]:
        return self.track("n_launches")

    @described(unit="1")
    def track_n_waits(self, name: str) -> dict[str, Any]:
        return self.track("n_waits")
