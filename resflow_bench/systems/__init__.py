"""The systems beside residual flows, each a bijection of a `ResidualFlow`."""

from resflow_bench.flows.saving import PARTS
from resflow_bench.systems.continuous import Continuous
from resflow_bench.systems.coupling import AffineCoupling, CubeRoot
from resflow_bench.systems.discrete import Discrete
from resflow_bench.systems.euler import residual_flow
from resflow_bench.systems.fields import VelocityField, score
from resflow_bench.systems.made import SYSTEMS, exactness, n_parameters

PARTS.update({one.__name__: one for one in (AffineCoupling, Continuous, CubeRoot, Discrete)})

__all__ = [
    "SYSTEMS",
    "AffineCoupling",
    "Continuous",
    "CubeRoot",
    "Discrete",
    "VelocityField",
    "exactness",
    "n_parameters",
    "residual_flow",
    "score",
]
