"""Residual flows beside the other systems: likelihood, seconds, parameters, samples."""

from __future__ import annotations

from typing import Any

from resflow_bench.data import DENSITIES
from resflow_bench.lab import Grid, Preset, Suite
from resflow_bench.speed.benchmark import SuiteBenchmark, described
from resflow_bench.systems import SYSTEMS
from suites.flows.against import EXAMPLE_SIZES
from suites.flows.claims import CLAIMS
from suites.flows.examples import EXAMPLES
from suites.flows.measure import measure_flows, prepare_flows
from suites.grids import LAYERED_FLOWS, Axes


def _grid(
    datasets: tuple[str, ...], architectures: tuple[str, ...], steps: tuple[int, ...]
) -> Grid:
    axes: Axes = {"dataset": datasets, "architecture": architectures, "step": steps}
    return Grid({**axes, "dtype": ("float32",), "device": ("cpu",)})


def _examples(
    datasets: tuple[str, ...],
    systems: tuple[str, ...],
    steps: int,
    sizes: tuple[str, ...] = EXAMPLE_SIZES,
) -> Grid:
    """Examples of libraries beside our trainings."""
    alone = _grid(datasets, systems, (steps,))
    return Grid({**alone.axes, "implementation": sizes})


EVERY = ("mlp", "monotone", "implicit", "glow", *SYSTEMS)
WITHOUT_SOLVER = tuple(name for name in EVERY if name not in ("neural-ode", "ffjord"))
"""Systems whose training solves no differential equation, which takes fifty times as long."""

SUITE = Suite(
    name="flows",
    title="Other kinds of flow",
    question="What does each kind of flow reach, and for which cost?",
    axes=("dataset", "architecture", "step", "implementation", "dtype", "device"),
    presets={
        "smoke": Preset(
            (
                _grid(("eight-gaussians",), ("nsf", "flow-matching"), (20,)),
                _examples(("eight-gaussians",), ("realnvp",), 5, EXAMPLE_SIZES[:1]),
            ),
            {
                **{"n_points": 100, "n_grid": 16, "n_mass": 32, "n_samples": 100},
                **{"seconds": 0.05, "n_seeds": 2},
            },
        ),
        "quick": Preset(
            # For about as many seconds of training each.
            tuple(
                _grid(("eight-gaussians",), (architecture,), (step,))
                for architecture, step in (
                    *(("mlp", 300), ("realnvp", 1000)),
                    *(("nsf", 500), ("flow-matching", 2000)),
                )
            ),
            {
                **{"n_points": 2000, "n_grid": 80, "n_mass": 100, "n_samples": 1000},
                **{"seconds": 0.2, "n_seeds": 3},
            },
        ),
        "full": Preset(
            (
                _grid(tuple(DENSITIES), EVERY, (1000, 5000)),
                _grid(("checkerboard", "eight-gaussians"), LAYERED_FLOWS, (1000,)),
                # Most begin to learn the 1,437 digits by heart after so many steps.
                _grid(("digits",), WITHOUT_SOLVER, (150, 300)),
                _grid(("patches",), WITHOUT_SOLVER, (1000,)),
                _examples(("eight-gaussians",), tuple(EXAMPLES), 1000),
                _examples(("digits-logit",), ("nice", "realnvp", "maf", "nsf"), 300),
                _examples(("digits",), ("glow",), 300),
            ),
            {
                **{"n_points": 5000, "n_grid": 120, "n_mass": 400, "n_samples": 5000},
                **{"seconds": 2.0, "n_seeds": 3},
            },
        ),
    },
    measure=measure_flows,
    exclusive=True,
    prepare=prepare_flows,
    prepared_by=("dataset", "architecture"),
    has_pictures=True,
    claims=CLAIMS,
    table=(
        *("log_prob", "bits_per_dim", "divergence", "n_parameters"),
        *("log_prob_ours", "log_prob_minus_ours", "n_parameters_ours"),
        *("train_step_s", "log_prob_s", "sample_s", "round_trip_error"),
    ),
    figures="suites.flows.figures",
)


class Flows(SuiteBenchmark):
    """Time of the measure on a flow fitted for ten steps, and its log-likelihood."""

    suite = SUITE
    n_replicates = 1
    effort = {"n_points": 100, "n_grid": 8, "n_mass": 16, "n_samples": 100, "seconds": 0.01}
    cells = {
        "eight-gaussians-flow-matching-step10": {
            **{"dataset": "eight-gaussians", "architecture": "flow-matching", "step": 10},
            **{"dtype": "float32", "device": "cpu"},
        }
    }

    def time_measure(self, name: str) -> None:
        self.call()

    @described(unit="nat")
    def track_log_prob(self, name: str) -> dict[str, Any]:
        return self.track("log_prob")
