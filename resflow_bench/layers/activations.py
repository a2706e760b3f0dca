"""Elementwise activations with their true Lipschitz constants and derivatives.

A branch multiplies the constants of its activations into its bound, and the slopes phi'(z) into
its Jacobian, so both belong to the activation. The constant is sup |phi'|, not a convenient bound.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

# The maximum over t of sigmoid(t) (1 + t (1 - sigmoid(t))), at the root t = 2.3993... of
# t tanh(t / 2) = 2; swish is t sigmoid(t) in units of its sharpness, so beta does not enter.
SWISH_LIPSCHITZ = 1.0998393201288669


@runtime_checkable
class Activation(Protocol):
    """phi, an elementwise module: its constant, and a derivative that autograd can go through."""

    lipschitz: float

    def __call__(self, z: Tensor) -> Tensor: ...

    def derivative(self, z: Tensor) -> Tensor: ...

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, Tensor]: ...


class LipSwish(nn.Module):
    """phi(z) = z sigmoid(beta z) / 1.1 with a learnable beta = softplus(raw_beta) > 0.

    phi'(z) = s (1 + t (1 - s)) / 1.1 with t = beta z and s = sigmoid(t).

    Properties: smooth; sup |phi'| = 1.0998393... / 1.1 = 0.99985 for every beta; nothing is divided
    by z, so value and derivatives are finite at 0.
    Source: Chen, Behrmann, Duvenaud and Jacobsen (2019), Residual Flows, section 3.3, which rounds
    the maximum slope of swish up to 1.1.
    """

    lipschitz: float = SWISH_LIPSCHITZ / 1.1

    def __init__(self) -> None:
        super().__init__()
        self.raw_beta = nn.Parameter(torch.tensor(0.5))

    def forward(self, z: Tensor) -> Tensor:
        return z * torch.sigmoid(z * functional.softplus(self.raw_beta)) * (1 / 1.1)

    def derivative(self, z: Tensor) -> Tensor:
        return self.value_and_derivative(z)[1]

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, Tensor]:
        t = z * functional.softplus(self.raw_beta)
        s = torch.sigmoid(t)
        # s + t s (1 - s) is s moved towards 1 by the fraction t s: one fused kernel.
        slope = torch.lerp(s, s.new_ones(()), t * s)
        return z * s * (1 / 1.1), slope * (1 / 1.1)


class Tanh(nn.Module):
    """phi(z) = tanh z; phi'(z) = 1 - tanh(z)^2 in (0, 1]."""

    lipschitz: float = 1.0

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(z)

    def derivative(self, z: Tensor) -> Tensor:
        return self.value_and_derivative(z)[1]

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.tanh(z)
        return y, 1 - y * y


class ELU(nn.Module):
    """phi(z) = z for z > 0, e^z - 1 otherwise; phi'(z) = e^min(z, 0) in (0, 1]."""

    lipschitz: float = 1.0

    def forward(self, z: Tensor) -> Tensor:
        return functional.elu(z)

    def derivative(self, z: Tensor) -> Tensor:
        return torch.exp(z.clamp(max=0.0))

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return functional.elu(z), self.derivative(z)


class ReLU(nn.Module):
    """phi(z) = max(z, 0); phi'(z) = 1 for z > 0, 0 otherwise (at the kink too, as in autograd).

    The derivative's own gradient is zero wherever it exists.
    """

    lipschitz: float = 1.0

    def forward(self, z: Tensor) -> Tensor:
        return torch.relu(z)

    def derivative(self, z: Tensor) -> Tensor:
        return self.value_and_derivative(z)[1]

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(z)
        # sign, not a comparison: it stays in the graph with gradient zero, so that asking for a
        # gradient with respect to z is never an error.
        return y, torch.sign(y)
