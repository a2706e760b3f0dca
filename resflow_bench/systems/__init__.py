"""The systems beside residual flows, each a bijection of a `ResidualFlow`."""

from resflow_bench.flows.saving import PARTS
from resflow_bench.systems.continuous import Continuous
from resflow_bench.systems.discrete import Discrete
from resflow_bench.systems.fields import VelocityField, score
from resflow_bench.systems.made import SYSTEMS, n_parameters

PARTS.update({one.__name__: one for one in (Continuous, Discrete)})

__all__ = ["SYSTEMS", "Continuous", "Discrete", "VelocityField", "n_parameters", "score"]
