"""The error of the fixed-point inverse, and of its certificate."""

from __future__ import annotations

from typing import Any

from resflow_bench.architectures import LINEAR_FAMILIES
from resflow_bench.lab import Grid, Preset, Suite
from resflow_bench.models import PREPARED_BY, prepare_models
from resflow_bench.speed.benchmark import SuiteBenchmark
from suites.grids import MODEL_AXES, TRAINED_FLOWS, Axes, everywhere, model_grids
from suites.inverse.claims import CLAIMS
from suites.inverse.measure import measure_inverse


def _grids(
    models: tuple[str, ...],
    constants: tuple[float, ...],
    trained: tuple[float, ...],
    tolerances: tuple[float, ...],
    steps: tuple[int, ...],
    flows: tuple[str, ...] = ("trained",),
) -> tuple[Grid, ...]:
    """Inverses to a tolerance in any number of steps, and after fixed numbers of steps."""
    dtypes = ("float32", "float64")
    to_tolerance: Axes = {"tolerance": tolerances, "max_steps": (5000,), "dtype": dtypes}
    after_steps: Axes = {"max_steps": steps, "dtype": dtypes}
    return (
        *model_grids(models, constants, trained, to_tolerance, flows),
        *(
            Grid(grid.axes, {**grid.pinned, "tolerance": 0.0})
            for grid in model_grids(models, constants, trained, after_steps, flows)
        ),
    )


def _certified(
    models: tuple[str, ...],
    constants: tuple[float, ...],
    errors: tuple[float, ...],
    trained: tuple[float, ...] = (),
) -> tuple[Grid, ...]:
    """Inverses that certify an error, near K = 1."""
    axes: Axes = {"error": errors, "dtype": ("float32", "float64")}
    return model_grids(models, constants, trained, axes)


SUITE = Suite(
    name="inverse",
    title="Error of the inverse",
    question="How far is the fixed-point inverse from the true one, and what does it certify?",
    axes=(*MODEL_AXES, "tolerance", "max_steps", "error"),
    presets={
        "smoke": Preset(
            _grids(("minus-identity", "init"), (0.5,), (), (1e-3,), (5, 20)), {"n_points": 16}
        ),
        "quick": Preset(
            everywhere(
                _grids(
                    ("minus-identity", "gaussian"),
                    (0.5, 0.9),
                    (0.9,),
                    (1e-2, 1e-4, 1e-6),
                    (1, 2, 5, 10, 20, 50, 100, 200),
                )
                + _grids((), (), (0.9,), (1e-4,), (20,), ("conv", "checkerboard"))
                + _certified(("minus-identity", "orthogonal", "steep"), (0.99, 0.9999), (1e-6,))
            ),
            {"n_points": 32},
        ),
        "full": Preset(
            everywhere(
                _grids(
                    (*LINEAR_FAMILIES, "init"),
                    (0.3, 0.5, 0.7, 0.9, 0.97, 0.99),
                    (0.7, 0.9, 0.97),
                    (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-9),
                    (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000),
                    TRAINED_FLOWS,
                )
                + _certified(
                    (*LINEAR_FAMILIES, "steep"),
                    (0.97, 0.99, 0.999, 0.9999),
                    (1e-6, 1e-9),
                    trained=(0.9, 0.97, 0.99),
                )
            ),
            {"n_points": 256},
        ),
    },
    measure=measure_inverse,
    prepare=prepare_models,
    prepared_by=PREPARED_BY,
    claims=CLAIMS,
    table=(
        *("inverse_error", "inverse_error_bound", "inverse_error_banach"),
        *("n_steps", "n_steps_bound", "outcome", "uncertified_share", "n_evaluations"),
    ),
    figures="suites.inverse.figures",
)


class Inverse(SuiteBenchmark):
    """Time of the certified inverse with its truth, and the error itself."""

    suite = SUITE
    n_replicates = 1
    effort = {"n_points": 4}
    cells = {
        f"{model}-K0.5-tol1e-4": {
            **{"model": model, "dim": 64, "lipschitz": 0.5, "dtype": "float32", "device": "cpu"},
            **{"tolerance": 1e-4, "max_steps": 5000},
        }
        for model in ("minus-identity", "init")
    }

    def time_measure(self, name: str) -> None:
        self.call()

    def track_inverse_error(self, name: str) -> dict[str, Any]:
        return self.track("inverse_error")
