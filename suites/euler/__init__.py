"""The Euler steps of a continuous flow as a residual flow."""

from __future__ import annotations

from typing import Any

from resflow_bench.lab import Grid, Preset, Suite
from resflow_bench.speed.benchmark import SuiteBenchmark, described
from suites.euler.claims import CLAIMS
from suites.euler.measure import measure_euler
from suites.flows.measure import prepare_flows
from suites.grids import Axes, Point


def _grid(
    datasets: tuple[str, ...],
    architectures: tuple[str, ...],
    step: int,
    counts: tuple[int, ...],
    methods: tuple[str, ...] = ("euler", "midpoint"),
) -> Grid:
    axes: Axes = {"dataset": datasets, "architecture": architectures, "step": (step,)}
    return Grid({**axes, "method": methods, "n_solver_steps": counts})


def _audit(step: int, methods: tuple[str, ...], tolerances: tuple[float, ...]) -> list[Grid]:
    """Paths of zuko's solver, with the method pinned: `--set method=euler` leaves them out."""
    field: Point = {"dataset": "eight-gaussians", "architecture": "flow-matching", "step": step}
    return [Grid({"tolerance": tolerances}, {**field, "method": method}) for method in methods]


SUITE = Suite(
    name="euler",
    title="Euler steps as a residual flow",
    question="When are the Euler steps of a continuous flow a residual flow, and how far off?",
    axes=("dataset", "architecture", "step", "method", "n_solver_steps", "tolerance"),
    presets={
        "smoke": Preset(
            (_grid(("eight-gaussians",), ("flow-matching",), 20, (16,)),),
            {"n_points": 8, "n_draws": 8},
        ),
        "quick": Preset(
            (
                _grid(("eight-gaussians",), ("flow-matching",), 2000, (4, 16, 64)),
                _grid(("eight-gaussians",), ("certified-flow-matching",), 100, (16,), ("euler",)),
                *_audit(2000, ("zuko", "zuko-unscaled"), (1e-4,)),
            ),
            {"n_points": 32, "n_draws": 16},
        ),
        "full": Preset(
            (
                _grid(
                    ("eight-gaussians", "checkerboard", "moons"),
                    (
                        *("flow-matching", "ot-flow-matching", "diffusion", "ffjord"),
                        "certified-flow-matching",
                    ),
                    5000,
                    (2, 4, 8, 16, 32, 64, 128, 256, 512),
                ),
                *_audit(5000, ("zuko", "zuko-unscaled", "zuko-hutchinson"), (1e-4, 1e-6, 1e-8)),
            ),
            {"n_points": 256, "n_draws": 64},
        ),
    },
    measure=measure_euler,
    prepare=prepare_flows,
    prepared_by=("dataset", "architecture"),
    claims=CLAIMS,
    table=(
        *("step_norm", "step_norm_certified", "log_prob_rms", "order"),
        *("fixed_point_error", "backward_error"),
        *("z_error_over_tolerance", "trace_error_over_tolerance", "n_evaluations"),
    ),
    figures="suites.euler.figures",
)


class Euler(SuiteBenchmark):
    """Time of the measure on a flow fitted for ten steps, and the steps' norm."""

    suite = SUITE
    effort = {"n_points": 4, "n_draws": 4}
    cells = {
        "eight-gaussians-T16": {
            **{"dataset": "eight-gaussians", "architecture": "flow-matching", "step": 10},
            **{"method": "euler", "n_solver_steps": 16},
        }
    }

    def time_measure(self, name: str) -> None:
        self.call()

    @described(unit="1")
    def track_step_norm(self, name: str) -> dict[str, Any]:
        return self.track("step_norm")
