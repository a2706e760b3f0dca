"""What makes a residual branch contractive: activations, spectral norms, branches."""

from resflow_bench.layers.activations import ELU, Activation, LipSwish, ReLU, Tanh
from resflow_bench.layers.branches import Branch, LinearBranch, mlp_branch
from resflow_bench.layers.spectral import SpectralLinear

__all__ = [
    "ELU",
    "Activation",
    "Branch",
    "LinearBranch",
    "LipSwish",
    "ReLU",
    "SpectralLinear",
    "Tanh",
    "mlp_branch",
]
