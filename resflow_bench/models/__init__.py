"""The axis `model`: flows by name, the points they are measured at, and their exact values."""

from resflow_bench.models.build import (
    PREPARED_BY,
    build_estimator,
    build_expansion,
    build_flow,
    build_points,
    model_named,
    prepare_models,
)
from resflow_bench.models.catalogue import MODELS
from resflow_bench.models.problem import (
    Problem,
    build_problem,
    convergent,
    dense_truth,
    realised,
    sizes,
)

__all__ = [
    "MODELS",
    "PREPARED_BY",
    "Problem",
    "build_estimator",
    "build_expansion",
    "build_flow",
    "build_points",
    "build_problem",
    "convergent",
    "dense_truth",
    "model_named",
    "prepare_models",
    "realised",
    "sizes",
]
