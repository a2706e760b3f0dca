"""The systems beside residual flows, each a bijection of a `ResidualFlow`."""

from resflow_bench.flows.saving import PARTS
from resflow_bench.systems.adaptive import AdaptivePath
from resflow_bench.systems.continuous import Continuous
from resflow_bench.systems.discrete import Discrete
from resflow_bench.systems.euler import CertifiedStep, SolverStep, residual_flow
from resflow_bench.systems.fields import LipschitzField, VelocityField, score
from resflow_bench.systems.made import SYSTEMS, exactness, n_parameters

_CLASSES = (
    AdaptivePath,
    Continuous,
    Discrete,
    VelocityField,
    LipschitzField,
    SolverStep,
    CertifiedStep,
)
PARTS.update({one.__name__: one for one in _CLASSES})

__all__ = [
    "SYSTEMS",
    "AdaptivePath",
    "Continuous",
    "Discrete",
    "LipschitzField",
    "VelocityField",
    "exactness",
    "n_parameters",
    "residual_flow",
    "score",
]
