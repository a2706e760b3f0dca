"""The time that each estimator of a log-determinant takes to an error.

The baseline of each model is what the public implementations do in a training: a Gaussian probe
and geometric(0.5) terms after three, one number for the whole batch. It is compared with one remedy
at a time, all of them together, the whole Jacobian, and normflows in a training and in evaluation.
A few of these are also measured on the steep flow, which exists at every d.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from resflow_bench.lab import Grid, Preset, Suite
from resflow_bench.models import PREPARED_BY, prepare_models
from resflow_bench.speed.benchmark import SuiteBenchmark, described
from suites.efficiency.claims import CLAIMS
from suites.efficiency.measure import build_draw, measure_efficiency
from suites.grids import ESTIMATOR_AXES, MODEL_AXES, Axes, Point, everywhere

OURS: Point = {"implementation": "ours", "estimator": "hutchinson", "truncation": "roulette"}
BASELINE: Point = {
    **OURS,
    **{"roulette": "geometric(0.5)", "n_exact": 3, "per": "batch", "probe": "gaussian"},
    **{"n_probes": 1, "n_traced": 0, "expansion": "taylor"},
}
TUNED: Point = {"implementation": "ours", "estimator": "tuned", "expansion": "taylor"}
DETERMINANT: Point = {"implementation": "ours", "estimator": "determinant"}


def remedies(n_traced: int, stop: float) -> Point:
    """The baseline with every remedy that costs nothing.

    stop: of a geometric law that keeps the variance finite.
    """
    return {
        **BASELINE,
        **{"roulette": f"geometric({stop})", "per": "stratified"},
        **{"probe": "rademacher", "n_traced": n_traced},
    }


def candidates(n_traced: int, stop: float, control: str = "controlled") -> tuple[Point, ...]:
    """The estimators that are compared on a model whose branches support `n_traced` exact traces.

    control: the expansion with a control variate that suits the model.
    """
    finite: Point = {"roulette": f"geometric({stop})"}
    best = remedies(n_traced, stop)
    tuned: Point = {**TUNED, "probe": "hadamard", "n_traced": n_traced}
    fixed: Point = {
        **{**OURS, "truncation": "fixed", "n_terms": 10},
        **{"probe": "rademacher", "n_probes": 1, "expansion": "taylor"},
    }
    return (
        BASELINE,
        {**BASELINE, "probe": "rademacher"},
        {**BASELINE, "probe": "hadamard", "n_probes": 16},
        {**BASELINE, **finite},
        {**BASELINE, **finite, "per": "example"},
        {**BASELINE, **finite, "per": "stratified"},
        *({**BASELINE, "n_traced": n} for n in range(1, n_traced + 1)),
        {**fixed, "n_traced": 0},
        {**fixed, "n_traced": n_traced},
        {**fixed, "n_traced": n_traced, "expansion": "arnoldi"},
        best,
        {**best, "expansion": "taylor(bfloat16)"},
        {**best, "probe": "hadamard", "n_probes": 16},
        {**tuned, "probe": "rademacher"},
        tuned,
        {**best, "expansion": control},
        {**tuned, "expansion": control},
        {**best, "estimator": "xtrace", "probe": "sphere", "n_probes": 8},
        DETERMINANT,
        {"implementation": "normflows", "mode": "roulette", "n_probes": 1},
        {"implementation": "normflows", "mode": "evaluation", "n_probes": 1},
        {"implementation": "normflows", "mode": "memory-saving", "n_probes": 1},
    )


def grids(
    model: str, dim: int, lipschitz: float, batch_size: int, compared: Iterable[Point]
) -> tuple[Grid, ...]:
    """A grid for each of the estimators compared."""
    where: Point = {"model": model, "lipschitz": lipschitz}
    free: Axes = {
        "dim": (dim,), "dtype": ("float32",), "device": ("cpu",), "batch_size": (batch_size,),
    }  # fmt: skip
    return tuple(Grid(free, {**where, **one}) for one in compared)


def at_several_dims(batch_sizes: dict[int, int]) -> tuple[Grid, ...]:
    """The candidates that win at some d, on the steep flow; batch_sizes: d to B."""
    compared = (
        remedies(2, 0.3),
        {**TUNED, "probe": "rademacher", "n_traced": 2},
        {**TUNED, "probe": "hadamard", "n_traced": 2},
        DETERMINANT,
    )
    return tuple(
        grid
        for dim, batch_size in batch_sizes.items()
        for grid in grids("steep", dim, 0.9, batch_size, compared)
    )


def near_one(constants: Iterable[float], models: tuple[str, ...]) -> tuple[Grid, ...]:
    """Series and laws at constants near one, where the baseline has an infinite variance."""

    def compared(k: float) -> tuple[Point, ...]:
        plain = remedies(0, float(f"{1 - k:.6g}"))  # stop = 1 - K
        fixed = {axis: plain[axis] for axis in plain if axis not in ("roulette", "n_exact", "per")}
        fixed = {**fixed, "truncation": "fixed", "n_terms": 20}
        return (
            BASELINE,
            plain,
            fixed,
            {**fixed, "expansion": "arnoldi"},
            {**TUNED, "probe": "hadamard", "n_traced": 0},
            DETERMINANT,
        )

    return tuple(
        grid for k in constants for name in models for grid in grids(name, 64, k, 64, compared(k))
    )


SHALLOW = grids("shallow", 64, 0.9, 256, candidates(2, 0.3))
TRAINED = grids("trained", 64, 0.9, 256, candidates(1, 0.3))
HIERARCHICAL: Point = {**TUNED, "probe": "hierarchical", "expansion": "circulant"}
IMAGES = (
    *candidates(2, 0.3, control="circulant"),
    *({**HIERARCHICAL, "n_traced": n_traced} for n_traced in (0, 1, 2)),
)
PATCHES = (
    *grids("patches", 768, 0.9, 32, IMAGES),
    *grids("patches-wide", 768, 0.9, 32, candidates(2, 0.3)),
)


SUITE = Suite(
    name="efficiency",
    title="Time to a required error",
    question="Which estimator reaches the error that I need in the least time?",
    axes=(
        *(*MODEL_AXES, "implementation", "mode", "estimator"),
        *(*ESTIMATOR_AXES, "per", "n_traced", "expansion", "batch_size"),
    ),
    presets={
        "smoke": Preset(
            grids("init", 16, 0.5, 64, candidates(1, 0.5)),
            {"n_points": 4, "n_calls": 16, "n_copies": 8, "n_pairs": 8, "n_gradients": 8},
        ),
        "quick": Preset(
            everywhere(
                SHALLOW + at_several_dims({256: 16}) + near_one((0.99,), ("steep",)),
            ),
            {"n_points": 16, "n_calls": 36, "n_copies": 4, "n_pairs": 12, "n_gradients": 16},
        ),
        "full": Preset(
            everywhere(
                SHALLOW
                + TRAINED
                + PATCHES
                + at_several_dims({16: 256, 64: 256, 256: 64, 1024: 8})
                + near_one((0.99, 0.999), ("minus-identity", "orthogonal", "symmetric", "steep"))
            ),
            {"n_points": 8, "n_calls": 1000, "n_copies": 32, "n_pairs": 100, "n_gradients": 100},
        ),
    },
    measure=measure_efficiency,
    exclusive=True,
    prepare=prepare_models,
    prepared_by=PREPARED_BY,
    claims=CLAIMS,
    table=(
        *("variance", "variance_expected", "variance_is_finite", "bias", "bias_expected"),
        *("n_products", "seconds_per_example", "relative_time"),
        *("variance_time", "seconds_to_target"),
        *("gradient_variance", "gradient_bias", "gradient_seconds", "gradient_relative_time"),
        "gradient_variance_time",
    ),
    figures="suites.efficiency.figures",
)


class Efficiency(SuiteBenchmark):
    """Time of a draw, and variance x time: the baseline and all remedies, on the untrained flow."""

    suite = SUITE
    effort = {"n_points": 2, "n_calls": 16, "n_copies": 16, "n_pairs": 8}
    n_replicates = 3
    cells = {
        name: {
            **{"model": "init", "dim": 64, "lipschitz": 0.9, "dtype": "float32", "device": "cpu"},
            **{"batch_size": 256, **candidate},
        }
        for name, candidate in (
            ("baseline", BASELINE),
            ("remedies", remedies(1, 0.3)),
            ("determinant", DETERMINANT),
        )
    }

    def build(self) -> Callable[[], object]:
        return build_draw(self.cell, Path("results"))

    def time_draw(self, name: str) -> None:
        self.call()

    @described(unit="nat^2 s")
    def track_variance_time(self, name: str) -> dict[str, Any]:
        return self.track("variance_time")
