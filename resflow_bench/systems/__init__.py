"""The systems beside residual flows, each a bijection of a `ResidualFlow`."""

from resflow_bench.flows.saving import PARTS
from resflow_bench.systems.continuous import Continuous
from resflow_bench.systems.discrete import Discrete
from resflow_bench.systems.euler import residual_flow
from resflow_bench.systems.fields import VelocityField, score
from resflow_bench.systems.made import SYSTEMS, exactness, n_parameters

PARTS.update({one.__name__: one for one in (Continuous, Discrete)})

__all__ = [
    "SYSTEMS",
    "Continuous",
    "Discrete",
    "VelocityField",
    "exactness",
    "n_parameters",
    "residual_flow",
    "score",
]
