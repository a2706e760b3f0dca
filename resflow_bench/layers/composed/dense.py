"""Dense layers: the input is concatenated with features that are computed from it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from resflow_bench.arguments import check_batch
from resflow_bench.layers.activations import Activation, check_activation
from resflow_bench.layers.layer import Layer
from resflow_bench.layers.maps import Composition, Concatenation, Elementwise
from resflow_bench.layers.norms.norm import Certificate
from resflow_bench.layers.orders import Order


class DenseLayer(nn.Module):
    """h(x) = [a x, b phi(W x)] with learnable a, b > 0, a^2 + b^2 = 1.

    ||h(x) - h(y)||^2 <= (a^2 + b^2 L^2) ||x - y||^2 with L = Lip(phi) ||W||_2, hence Lip(h) <= 1
    for every a, b if L <= 1.

    Args:
        layer: W, with a coefficient of at most 1 / Lip(phi), in the Euclidean norm.
        activation: phi.

    Raises:
        ValueError: L above 1, or a layer bounded in another norm.

    Source: Perugachi-Diaz, Tomczak and Bhulai (2021), Invertible DenseNets: learnable
        concatenation, (a, b) = softplus(raw) / ||softplus(raw)||.
    """

    coefficient: float = 1.0
    domain: Order = 2.0
    codomain: Order = 2.0

    def __init__(self, layer: Layer, activation: Activation) -> None:
        super().__init__()
        check_activation(activation)
        steepness = layer.coefficient * activation.lipschitz
        if steepness > 1 + 1e-6:
            raise ValueError(
                "DenseLayer needs a layer and an activation whose constants multiply to at most "
                f"1; got {steepness:.6g}. Lower the layer's `coefficient`."
            )
        if layer.domain != 2.0 or layer.codomain != 2.0:
            raise ValueError(
                "DenseLayer needs a layer bounded in the Euclidean norm, in which concatenation "
                f"adds squares; got orders {layer.domain} -> {layer.codomain}."
            )
        self.layer = layer
        self.activation = activation
        self.raw_mix = nn.Parameter(torch.zeros(2))
        self.n_in = layer.n_in
        self.n_out = layer.n_in + layer.n_out * activation.expansion

    def mix(self) -> tuple[Tensor, Tensor]:
        """a and b, less what rounding them to the parameters' type could add."""
        dtype = self.raw_mix.dtype
        weights = functional.softplus(self.raw_mix.to(torch.promote_types(dtype, torch.float32)))
        cushion = 1 - 2 * torch.finfo(dtype).eps
        a, b = (weights / torch.linalg.vector_norm(weights) * cushion).to(dtype)
        return a, b

    def forward(self, x: Tensor) -> Tensor:
        check_batch("DenseLayer", x, (self.n_in, ...), self.raw_mix.dtype)
        return self.normalised()(x)

    def normalised(self) -> Concatenation:
        h = Composition([self.layer.normalised(), Elementwise(self.activation)])
        return Concatenation(*self.mix(), h)

    def update(self) -> None:
        self.layer.update()

    def align(self) -> None:
        self.layer.align()

    def constant(self, bound: Tensor) -> Tensor:
        """sqrt(a^2 + b^2 L^2), () float64, with ||W||_2 <= `bound` in L."""
        a, b = (part.double() for part in self.mix())
        return torch.hypot(a, b * bound * self.activation.lipschitz)

    @torch.no_grad()
    def certificate(self) -> Certificate:
        """sqrt(a^2 + b^2 L^2), with the layer's certificate in L."""
        check_activation(self.activation)
        inner = self.layer.certificate()
        a, b = (float(part) for part in self.mix())
        return Certificate(math.hypot(a, b * inner.norm * self.activation.lipschitz), inner.method)
