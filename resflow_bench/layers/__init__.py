"""Contractive residual branches: activations, layers with a bounded norm, and their composition."""

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
from resflow_bench.layers.builders import (
    conv_branch,
    dense_branch,
    dense_conv_branch,
    mlp_branch,
    sll_branch,
)
from resflow_bench.layers.composed.dense import DenseLayer
from resflow_bench.layers.composed.sll import SLL
from resflow_bench.layers.conditioner import Conditioner
from resflow_bench.layers.conv import Conv2d, InducedConv2d, SpectralConv2d
from resflow_bench.layers.given import GivenBranch, conditional
from resflow_bench.layers.layer import Layer
from resflow_bench.layers.linear import InducedLinear, Linear, SpectralLinear
from resflow_bench.layers.norms.aol import AOL
from resflow_bench.layers.norms.induced import Induced
from resflow_bench.layers.norms.norm import Certificate, Norm
from resflow_bench.layers.norms.orthogonal import SemiOrthogonal
from resflow_bench.layers.norms.spectral import Spectral
from resflow_bench.layers.orders import LearnableOrder, Order
from resflow_bench.layers.uncertified import AnyBranch, BoundedMap, Opaque, Uncertified

__all__ = [
    "AOL",
    "ELU",
    "SLL",
    "Activation",
    "AnyBranch",
    "BoundedMap",
    "Branch",
    "CLipSwish",
    "Certificate",
    "Conditioner",
    "Conv2d",
    "DenseLayer",
    "GivenBranch",
    "Induced",
    "InducedConv2d",
    "InducedLinear",
    "Layer",
    "LearnableOrder",
    "Linear",
    "LinearBranch",
    "LipSwish",
    "Norm",
    "Opaque",
    "Order",
    "ReLU",
    "SemiOrthogonal",
    "Sine",
    "Softplus",
    "Spectral",
    "SpectralConv2d",
    "SpectralLinear",
    "Tanh",
    "Uncertified",
    "conditional",
    "conv_branch",
    "dense_branch",
    "dense_conv_branch",
    "mlp_branch",
    "sll_branch",
]
