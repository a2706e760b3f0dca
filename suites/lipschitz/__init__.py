"""The Lipschitz constants promised, certified and realised on the data."""

from __future__ import annotations

from typing import Any

from resflow_bench.architectures import LINEAR_FAMILIES
from resflow_bench.lab import Preset, Suite
from resflow_bench.models import PREPARED_BY, prepare_models
from resflow_bench.speed.benchmark import SuiteBenchmark
from suites.grids import LAYERED_FLOWS, MODEL_AXES, PLANE_FLOWS, TRAINED_FLOWS, model_grids
from suites.lipschitz.claims import CLAIMS
from suites.lipschitz.measure import measure_lipschitz

DTYPES = {"dtype": ("float32",)}

SUITE = Suite(
    name="lipschitz",
    title="Lipschitz constants",
    question="Which Lipschitz constant is promised, which is certified, which do the data meet?",
    axes=MODEL_AXES,
    presets={
        "smoke": Preset(model_grids(("gaussian", "init"), (0.5,), (), DTYPES), {"n_points": 16}),
        "quick": Preset(
            model_grids(
                (*LINEAR_FAMILIES, "init"),
                (0.5, 0.9),
                (0.9,),
                DTYPES,
                (*TRAINED_FLOWS, "shallow", *PLANE_FLOWS, *LAYERED_FLOWS),
            ),
            {"n_points": 32},
        ),
        "full": Preset(
            model_grids(
                (*LINEAR_FAMILIES, "init"),
                (0.3, 0.5, 0.7, 0.9, 0.97, 0.99),
                (0.7, 0.9, 0.97),
                {"dtype": ("float32", "float64")},
                (*TRAINED_FLOWS, *LAYERED_FLOWS),
            ),
            {"n_points": 128},
        ),
    },
    measure=measure_lipschitz,
    prepare=prepare_models,
    prepared_by=PREPARED_BY,
    claims=CLAIMS,
    table=(
        *("lipschitz_promised", "lipschitz_certified", "lipschitz_power_iteration"),
        *("lipschitz_realised", "spectral_radius"),
    ),
    figures="suites.lipschitz.figures",
)


class Lipschitz(SuiteBenchmark):
    """Time of the certification and of the dense Jacobians, and the certified constant."""

    suite = SUITE
    n_replicates = 1
    effort = {"n_points": 4}
    cells = {
        "init-K0.9": {
            **{"model": "init", "dim": 64, "lipschitz": 0.9},
            **{"dtype": "float32", "device": "cpu"},
        }
    }

    def time_measure(self, name: str) -> None:
        self.call()

    def track_lipschitz_certified(self, name: str) -> dict[str, Any]:
        return self.track("lipschitz_certified")
