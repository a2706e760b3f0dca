"""Bijections in closed form: their log-determinants and inverses are formulas."""

from resflow_bench.flows.forms.actnorm import ActNorm
from resflow_bench.flows.forms.coupling import AffineCoupling
from resflow_bench.flows.forms.cube import Cube
from resflow_bench.flows.forms.logit import Logit
from resflow_bench.flows.forms.mixing import Mixing
from resflow_bench.flows.forms.squeeze import Flatten, Squeeze

__all__ = ["ActNorm", "AffineCoupling", "Cube", "Flatten", "Logit", "Mixing", "Squeeze"]
