"""What makes a residual branch contractive: activations, bounded layers, branches."""

from resflow_bench.layers.activations import (
    ELU,
    Activation,
    CLipSwish,
    LipSwish,
    ReLU,
    Sine,
    Softplus,
    Tanh,
)
from resflow_bench.layers.branches import Branch, LinearBranch
from resflow_bench.layers.builders import conv_branch, dense_branch, dense_conv_branch, mlp_branch
from resflow_bench.layers.conv import SpectralConv2d
from resflow_bench.layers.dense import DenseLayer
from resflow_bench.layers.induced import InducedConv2d, InducedLinear
from resflow_bench.layers.layer import Certificate, Layer
from resflow_bench.layers.linear import SpectralLinear
from resflow_bench.layers.orders import LearnableOrder, Order

__all__ = [
    "ELU",
    "Activation",
    "Branch",
    "CLipSwish",
    "Certificate",
    "DenseLayer",
    "InducedConv2d",
    "InducedLinear",
    "Layer",
    "LearnableOrder",
    "LinearBranch",
    "LipSwish",
    "Order",
    "ReLU",
    "Sine",
    "Softplus",
    "SpectralConv2d",
    "SpectralLinear",
    "Tanh",
    "conv_branch",
    "dense_branch",
    "dense_conv_branch",
    "mlp_branch",
]
