"""The gradient of a reverse Kullback-Leibler divergence through samples: its bias and its noise."""

from __future__ import annotations

from typing import Any

from resflow_bench.lab import Preset, Suite
from resflow_bench.models import PREPARED_BY, prepare_models
from resflow_bench.speed.benchmark import SuiteBenchmark, described
from suites import grids
from suites.path_gradient.claims import CLAIMS
from suites.path_gradient.measure import measure_path_gradient

TO_ROUNDING = 1e-12
COMMON: grids.Axes = {
    **{"probe": ("rademacher",), "n_probes": (1,), "dtype": ("float64",)},
    "tolerance": (TO_ROUNDING,),
}

SUITE = Suite(
    name="path_gradient",
    title="Gradient through samples",
    question="How biased and how noisy is the gradient of a reverse KL divergence through samples?",
    axes=(*grids.MODEL_AXES, *grids.ESTIMATOR_AXES, "tolerance"),
    presets={
        "smoke": Preset(
            grids.estimator_grids(
                models=("init",),
                constants=(0.5,),
                fixed={"n_terms": (2,)},
                roulette={"roulette": ("geometric(0.5)",), "n_exact": (3,)},
                common=COMMON,
                flows=(),
            ),
            {"n_points": 4, "n_draws": 32},
        ),
        "quick": Preset(
            grids.estimator_grids(
                trained=(0.9,),
                fixed={"n_terms": (1, 2, 5, 10)},
                roulette={"roulette": ("geometric(0.1)",), "n_exact": (3,)},
                common=COMMON,
            )
            + grids.estimator_grids(
                trained=(0.9,),
                fixed={"n_terms": (10,)},
                common={**COMMON, "tolerance": (1e-1, 1e-2, 1e-3)},
            ),
            {"n_points": 8, "n_draws": 32},
        ),
        "full": Preset(
            grids.estimator_grids(
                models=("init", "steep"),
                constants=(0.5, 0.9, 0.97),
                trained=(0.7, 0.9, 0.97),
                fixed={"n_terms": (1, 2, 3, 5, 10, 20, 50)},
                roulette={"roulette": grids.LAWS, "n_exact": (3, 10)},
                common={**COMMON, "n_probes": (1, 4), "tolerance": (1e-2, 1e-4, TO_ROUNDING)},
            ),
            {"n_points": 16, "n_draws": 512},
        ),
    },
    measure=measure_path_gradient,
    prepare=prepare_models,
    prepared_by=PREPARED_BY,
    claims=CLAIMS,
    table=(
        *("gradient_bias", "gradient_bias_expected", "gradient_variance"),
        *("sampling_variance", "path_variance"),
    ),
    figures="suites.path_gradient.figures",
)


class PathGradient(SuiteBenchmark):
    """Time of the measure, and the noise itself."""

    suite = SUITE
    effort = {"n_points": 2, "n_draws": 8}
    cells = {
        "init-K0.5-N5": {
            **{"model": "init", "dim": 64, "lipschitz": 0.5, "truncation": "fixed", "n_terms": 5},
            **{"probe": "rademacher", "n_probes": 1, "dtype": "float64", "device": "cpu"},
            "tolerance": TO_ROUNDING,
        }
    }

    def time_measure(self, name: str) -> None:
        self.call()

    @described(unit="1")
    def track_gradient_variance(self, name: str) -> dict[str, Any]:
        return self.track("gradient_variance")
