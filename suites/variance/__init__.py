"""The variance of an estimated log-determinant, against closed forms and bounds."""

from __future__ import annotations

from typing import Any

from resflow_bench.architectures import LINEAR_FAMILIES
from resflow_bench.lab import Preset, Suite
from resflow_bench.models import PREPARED_BY, prepare_models
from resflow_bench.speed.benchmark import SuiteBenchmark, described
from suites import grids
from suites.variance.claims import CLAIMS
from suites.variance.measure import measure_variance

COMMON: grids.Axes = {
    "probe": ("gaussian", "rademacher"),
    "n_probes": (1, 4),
    "dtype": ("float64",),
}

SUITE = Suite(
    name="variance",
    title="Variance of the log-determinant",
    question="How noisy is an estimate of the log-determinant, and what do the bounds say of it?",
    axes=(*grids.MODEL_AXES, *grids.ESTIMATOR_AXES),
    presets={
        "smoke": Preset(
            grids.estimator_grids(
                models=("minus-identity", "init"),
                constants=(0.5,),
                fixed={"n_terms": (10,)},
                roulette={"roulette": ("geometric(0.5)",), "n_exact": (3,)},
                common={**COMMON, "n_probes": (1,)},
            ),
            {"n_points": 4, "max_draws": 4000},
        ),
        "quick": Preset(
            grids.estimator_grids(
                models=("minus-identity", "gaussian", "triangular"),
                constants=(0.5, 0.9),
                trained=(0.9,),
                fixed={"n_terms": (5, 10)},
                roulette={"roulette": grids.LAWS, "n_exact": (3,)},
                common=COMMON,
            )
            + grids.estimator_grids(
                trained=(0.9,),
                fixed={"n_terms": (10,)},
                roulette={"roulette": ("geometric(0.3)",), "n_exact": (3,)},
                common={**COMMON, "n_probes": (1,)},
                flows=("conv", *grids.PLANE_FLOWS),
            )
            + grids.estimator_grids(
                trained=(0.5,),
                fixed={"n_terms": (5,)},
                common={**COMMON, "probe": ("gaussian",), "n_probes": (1,)},
                flows=grids.OTHER_BLOCKS[:1],
            )
            + grids.estimator_grids(
                models=("minus-identity", "orthogonal"),
                constants=(0.99, 0.9999),
                fixed={"n_terms": (10,)},
                roulette={"roulette": ("geometric(0.01)",), "n_exact": (3,)},
                common={**COMMON, "probe": ("gaussian",), "n_probes": (1,)},
            ),
            {"n_points": 8, "max_draws": 4_000},
        ),
        "full": Preset(
            grids.estimator_grids(
                models=(*LINEAR_FAMILIES, "init"),
                constants=(0.3, 0.5, 0.7, 0.9, 0.97),
                trained=(0.7, 0.9, 0.97),
                fixed={"n_terms": (1, 2, 5, 10, 20, 50)},
                roulette={"roulette": grids.LAWS, "n_exact": (0, 3, 10)},
                common={**COMMON, "n_probes": (1, 4, 16)},
                flows=grids.TRAINED_FLOWS,
            )
            + grids.estimator_grids(
                trained=(0.5, 0.9),
                fixed={"n_terms": (1, 2, 5, 10, 20)},
                roulette={"roulette": grids.LAWS, "n_exact": (3,)},
                common={**COMMON, "n_probes": (1,)},
                flows=grids.OTHER_BLOCKS,
            )
            + grids.estimator_grids(
                models=("minus-identity", "plus-identity", "orthogonal", "symmetric", "gaussian"),
                constants=grids.NEAR_ONE,
                fixed={"n_terms": (10, 100, 1000)},
                roulette={"roulette": grids.LAWS_NEAR_ONE, "n_exact": (3,)},
                common={**COMMON, "n_probes": (1,)},
            ),
            {"n_points": 16, "max_draws": 200_000},
        ),
    },
    measure=measure_variance,
    prepare=prepare_models,
    prepared_by=PREPARED_BY,
    claims=CLAIMS,
    table=(
        *("variance", "variance_expected", "variance_bound", "variance_bound_lipschitz"),
        *("variance_bound_printed", "variance_is_finite", "ess_loss", "ess_loss_expected"),
    ),
    figures="suites.variance.figures",
)


class Variance(SuiteBenchmark):
    """Time of the measure, and the variance itself."""

    suite = SUITE
    effort = {"n_points": 2, "max_draws": 1000}
    cells = {
        f"{model}-K0.5-geometric": {
            **{"model": model, "dim": 64, "lipschitz": 0.5, "truncation": "roulette"},
            **{"roulette": "geometric(0.5)", "n_exact": 3, "probe": "gaussian", "n_probes": 1},
            **{"dtype": "float64", "device": "cpu"},
        }
        for model in ("minus-identity", "init")
    }

    def time_measure(self, name: str) -> None:
        self.call()

    @described(unit="nat^2")
    def track_variance(self, name: str) -> dict[str, Any]:
        return self.track("variance")
