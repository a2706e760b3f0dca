"""Which estimator reaches the error that I need in the least time?

The baseline of each model is what the public implementations do in a training: a Gaussian probe
and geometric(0.5) terms after three, one number for the whole batch. Then one remedy at a time,
then all together; the whole Jacobian; and normflows, in a training and in evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from resflow_bench.lab.axes import Value
from resflow_bench.lab.build import prepare_models
from resflow_bench.lab.cells import Grid, Preset, Suite
from resflow_bench.lab.face import Face
from resflow_bench.lab.measure_efficiency import measure_efficiency
from suites.grids import ESTIMATOR_AXES, MODEL_AXES

OURS: Mapping[str, Value] = {
    "implementation": "ours",
    "estimator": "hutchinson",
    "truncation": "roulette",
}
BASELINE: Mapping[str, Value] = {
    **OURS,
    **{"roulette": "geometric(0.5)", "n_exact": 3, "per": "batch", "probe": "gaussian"},
    **{"n_probes": 1, "n_traced": 0, "expansion": "taylor"},
}
TUNED: Mapping[str, Value] = {
    **{"implementation": "ours", "estimator": "tuned", "expansion": "taylor"}
}
DETERMINANT: Mapping[str, Value] = {"implementation": "ours", "estimator": "determinant"}


def candidates(n_traced: int, stop: float) -> tuple[Mapping[str, Value], ...]:
    """What is compared on a model that admits so many exact traces.

    stop: of a geometric law that keeps the variance finite there.
    """
    finite: Mapping[str, Value] = {"roulette": f"geometric({stop})"}
    best: Mapping[str, Value] = {
        "per": "stratified",
        "probe": "rademacher",
        "n_traced": n_traced,
        **finite,
    }
    fixed: Mapping[str, Value] = {
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
        {**BASELINE, **best},
        {**BASELINE, **best, "expansion": "taylor(bfloat16)"},
        {**BASELINE, **best, "probe": "hadamard", "n_probes": 16},
        {**TUNED, "probe": "rademacher", "n_traced": n_traced},
        {**TUNED, "probe": "hadamard", "n_traced": n_traced},
        DETERMINANT,
        *(
            {"implementation": "normflows", "mode": mode, "n_probes": 1}
            for mode in ("roulette", "evaluation")
        ),
    )


def grids(
    model: str, dim: int, lipschitz: float, batch_size: int, n_traced: int, stop: float
) -> tuple[Grid, ...]:
    """One cell for each candidate."""
    where: Mapping[str, Value] = {"model": model, "lipschitz": lipschitz}
    free: Mapping[str, tuple[Value, ...]] = {
        "dim": (dim,), "dtype": ("float32",), "device": ("cpu",), "batch_size": (batch_size,),
    }  # fmt: skip
    return tuple(Grid(free, {**where, **one}) for one in candidates(n_traced, stop))


SUITE = Suite(
    name="efficiency",
    question="Which estimator reaches the error that I need in the least time?",
    axes=(
        *MODEL_AXES,
        "implementation",
        "mode",
        "estimator",
        *ESTIMATOR_AXES,
        "per",
        "n_traced",
        "expansion",
        "batch_size",
    ),
    presets={
        "smoke": Preset(
            grids("init", 16, 0.5, 64, 1, 0.5),
            {"n_points": 4, "n_calls": 16, "n_copies": 8, "n_pairs": 8},
        ),
        "quick": Preset(
            grids("shallow", 64, 0.9, 256, 2, 0.3) + grids("patches", 768, 0.9, 32, 1, 0.3),
            {"n_points": 4, "n_calls": 48, "n_copies": 32, "n_pairs": 16},
        ),
        "full": Preset(
            grids("shallow", 64, 0.9, 256, 2, 0.3)
            + grids("trained", 64, 0.9, 256, 1, 0.3)
            + grids("patches", 768, 0.9, 32, 1, 0.3),
            {"n_points": 8, "n_calls": 1000, "n_copies": 32, "n_pairs": 100},
        ),
    },
    measure=measure_efficiency,
    exclusive=True,
    prepare=prepare_models,
)


class Efficiency(Face):
    """Variance x time of the baseline and of all remedies together, on the untrained flow."""

    suite = SUITE
    effort: ClassVar[dict[str, int | float]] = {
        "n_points": 2, "n_calls": 16, "n_copies": 16, "n_pairs": 8,
    }  # fmt: skip
    n_replicates = 3
    cells: ClassVar[dict[str, dict[str, Any]]] = {
        name: {
            **{"model": "init", "dim": 64, "lipschitz": 0.9, "dtype": "float32", "device": "cpu"},
            **{"batch_size": 256, **candidate},
        }
        for name, candidate in (
            ("baseline", BASELINE),
            ("remedies", candidates(1, 0.3)[-7]),
            ("determinant", DETERMINANT),
        )
    }
    params: ClassVar[list[str]] = list(cells)

    def time_measure(self, name: str) -> None:
        self.measure()

    def track_variance_time(self, name: str) -> dict[str, Any]:
        return self.track("variance_time")

    track_variance_time.unit = "nat^2 s"  # type: ignore[attr-defined]
