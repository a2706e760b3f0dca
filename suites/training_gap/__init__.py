"""The gap between a training objective and the exact likelihood."""

from __future__ import annotations

from typing import Any

from resflow_bench.lab import Grid, Preset, Suite
from resflow_bench.speed.benchmark import SuiteBenchmark, described
from suites.grids import ESTIMATOR_AXES, Axes, everywhere
from suites.training_gap.claims import CLAIMS
from suites.training_gap.measure import measure_training_gap, prepare_gaps

COMMON: Axes = {
    **{"probe": ("rademacher",), "n_probes": (1,), "dtype": ("float64",), "device": ("cpu",)}
}
ROULETTE: Axes = {"roulette": ("geometric(0.3)",), "n_exact": (4,)}


def _grids(
    datasets: tuple[str, ...],
    constants: tuple[float, ...],
    n_terms: tuple[int, ...],
    steps: tuple[int, ...],
    near_one: tuple[float, ...] = (),
) -> tuple[Grid, ...]:
    """Flows trained with N terms, and with a roulette; near K = 1 its variance may be infinite."""
    flows: Axes = {"dataset": datasets, "architecture": ("mlp",), "step": steps}
    every: Axes = {"lipschitz": (*constants, *near_one), "n_terms": n_terms}
    return (
        Grid({**flows, **every, **COMMON}, {"truncation": "fixed"}),
        Grid({**flows, "lipschitz": constants, **ROULETTE, **COMMON}, {"truncation": "roulette"}),
    )


SUITE = Suite(
    name="training_gap",
    title="Training objective and likelihood",
    question="By how much does a truncated training objective overstate the likelihood, and does "
    "roulette's?",
    axes=("dataset", "architecture", "lipschitz", *ESTIMATOR_AXES, "step", "dtype", "device"),
    presets={
        "smoke": Preset(
            _grids(("checkerboard",), (0.9,), (1, 5), (20,)),
            {
                **{"n_points": 8, "max_draws": 4000, "half_width": 0.05},
                **{"n_copies": 0, "n_times": 0},
            },
        ),
        "quick": Preset(
            everywhere(_grids(("digits-logit",), (0.7, 0.97), (1, 5), (100, 200))),
            {
                **{"n_points": 8, "max_draws": 8000, "half_width": 0.01},
                **{"n_copies": 8, "n_times": 50},
            },
        ),
        "full": Preset(
            everywhere(
                _grids(
                    ("digits-logit", "digits", "checkerboard", "pinwheel"),
                    (0.5, 0.7, 0.9, 0.97),
                    (1, 2, 3, 5, 10),
                    (100, 300, 1000, 2000),
                    near_one=(0.99, 0.999),
                )
            ),
            {
                "n_points": 32,
                "max_draws": 64_000,
                "half_width": 0.002,
                "n_copies": 32,
                "n_times": 50,
            },
        ),
    },
    measure=measure_training_gap,
    prepare=prepare_gaps,
    prepared_by=(
        *("dataset", "architecture", "lipschitz"),
        *("truncation", "n_terms", "roulette", "n_exact"),
    ),
    claims=CLAIMS,
    table=(
        *("log_prob_objective", "log_prob_unbiased", "log_prob_exact"),
        *("gap", "gap_expected", "gap_bound", "spectral_radius"),
        "curve_cost",
    ),
    figures="suites.training_gap.figures",
)


class TrainingGap(SuiteBenchmark):
    """Time of the measure on a flow trained for ten steps with one term, and its gap."""

    suite = SUITE
    effort = {"n_points": 2, "max_draws": 1000, "half_width": 0.1}
    cells = {
        "checkerboard-mlp-K0.9-N1-step10": {
            **{"dataset": "checkerboard", "architecture": "mlp", "lipschitz": 0.9, "step": 10},
            **{"truncation": "fixed", "n_terms": 1, "probe": "rademacher", "n_probes": 1},
            **{"dtype": "float64", "device": "cpu"},
        }
    }

    def time_measure(self, name: str) -> None:
        self.call()

    @described(unit="bit/dim")
    def track_gap(self, name: str) -> dict[str, Any]:
        return self.track("gap")
