"""The bias of truncated and rouletted log-determinants."""

from __future__ import annotations

from typing import Any

from resflow_bench.architectures import LINEAR_FAMILIES
from resflow_bench.lab import Preset, Suite
from resflow_bench.models import PREPARED_BY, prepare_models
from resflow_bench.speed.benchmark import SuiteBenchmark, described
from suites import grids
from suites.bias.claims import CLAIMS
from suites.bias.measure import measure_bias

COMMON: grids.Axes = {"probe": ("rademacher",), "n_probes": (1,), "dtype": ("float64",)}

SUITE = Suite(
    name="bias",
    title="Bias of the log-determinant",
    question="How biased is a truncated log-determinant, and is the roulette estimate unbiased?",
    axes=(*grids.MODEL_AXES, *grids.ESTIMATOR_AXES),
    presets={
        "smoke": Preset(
            grids.estimator_grids(
                models=("minus-identity", "init"),
                constants=(0.5,),
                fixed={"n_terms": (2, 10)},
                roulette={"roulette": ("geometric(0.5)",), "n_exact": (3,)},
                common=COMMON,
            ),
            {"n_points": 4, "max_draws": 4000, "half_width": 0.05},
        ),
        "quick": Preset(
            grids.estimator_grids(
                models=("minus-identity", "plus-identity", "gaussian", "triangular"),
                constants=(0.5, 0.9),
                trained=(0.9,),
                fixed={"n_terms": (1, 2, 5, 10, 20)},
                roulette={"roulette": grids.LAWS, "n_exact": (3,)},
                common=COMMON,
            )
            + grids.estimator_grids(
                trained=(0.9,),
                fixed={"n_terms": (2, 10)},
                roulette={"roulette": ("geometric(0.3)",), "n_exact": (3,)},
                common=COMMON,
                flows=("conv", *grids.PLANE_FLOWS),
            )
            + grids.estimator_grids(
                trained=(0.5,), fixed={"n_terms": (2,)}, common=COMMON, flows=grids.OTHER_BLOCKS
            )
            + grids.estimator_grids(
                models=("minus-identity", "orthogonal"),
                constants=(0.99, 0.9999),
                fixed={"n_terms": (10,)},
                roulette={"roulette": ("geometric(0.01)",), "n_exact": (3,)},
                common=COMMON,
            ),
            {"n_points": 8, "max_draws": 10_000, "half_width": 0.03},
        ),
        "full": Preset(
            grids.estimator_grids(
                models=(*LINEAR_FAMILIES, "init"),
                constants=(0.3, 0.5, 0.7, 0.9, 0.97),
                trained=(0.7, 0.9, 0.97),
                fixed={"n_terms": (1, 2, 3, 5, 10, 20, 50)},
                roulette={"roulette": grids.LAWS, "n_exact": (0, 3, 10)},
                common={**COMMON, "dtype": ("float32", "float64")},
                flows=grids.TRAINED_FLOWS,
            )
            + grids.estimator_grids(
                trained=(0.5, 0.9),
                fixed={"n_terms": (1, 2, 5, 10, 20)},
                roulette={"roulette": grids.LAWS, "n_exact": (3,)},
                common=COMMON,
                flows=grids.OTHER_BLOCKS,
            )
            + grids.estimator_grids(
                models=("minus-identity", "plus-identity", "orthogonal", "symmetric", "gaussian"),
                constants=grids.NEAR_ONE,
                fixed={"n_terms": (10, 100, 1000)},
                roulette={"roulette": grids.LAWS_NEAR_ONE, "n_exact": (3,)},
                common=COMMON,
            ),
            {"n_points": 16, "max_draws": 200_000, "half_width": 0.01},
        ),
    },
    measure=measure_bias,
    prepare=prepare_models,
    prepared_by=PREPARED_BY,
    claims=CLAIMS,
    table=("bias", "bias_paired", "bias_expected", "bias_bound", "weight_bias", "log_det_exact"),
    figures="suites.bias.figures",
)


class Bias(SuiteBenchmark):
    """Time of the measure, and the bias itself."""

    suite = SUITE
    effort = {"n_points": 2, "max_draws": 1000, "half_width": 0.1}
    cells = {
        f"{model}-K0.5-N5": {
            **{"model": model, "dim": 64, "lipschitz": 0.5, "truncation": "fixed", "n_terms": 5},
            **{"probe": "rademacher", "n_probes": 1, "dtype": "float64", "device": "cpu"},
        }
        for model in ("minus-identity", "init")
    }

    def time_measure(self, name: str) -> None:
        self.call()

    @described(unit="nat")
    def track_bias(self, name: str) -> dict[str, Any]:
        return self.track("bias")
