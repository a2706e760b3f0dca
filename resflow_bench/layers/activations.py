"""Activations with their true Lipschitz constants and derivatives.

A branch multiplies the constants of its activations into its bound, and the slopes phi'(z) into
its Jacobian, so both belong to the activation. The constant is sup |phi'|, not a convenient bound.
"""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from resflow_bench.constants import constant

# The maximum over t of sigmoid(t) (1 + t (1 - sigmoid(t))), at the root t = 2.3993... of
# t tanh(t / 2) = 2; swish is t sigmoid(t) in units of its sharpness, so beta does not enter.
SWISH_LIPSCHITZ = 1.0998393201288669

# The divisors of Residual Flows and of i-DenseNets: the constants, rounded up.
LIPSWISH_SCALE = 1.1
CLIPSWISH_SCALE = 1.004


@runtime_checkable
class Activation(Protocol):
    """phi, a module, with its Lipschitz constant and a derivative that autograd can differentiate.

    Each input z_i makes `expansion` outputs: output j of (B, expansion h, ...) belongs to input
    j mod h along axis 1.
    """

    lipschitz: float
    expansion: int

    def __call__(self, z: Tensor) -> Tensor: ...

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """phi(z) and phi'(z), one shape."""


@runtime_checkable
class Sloped(Protocol):
    """An activation with one output for each input: (inf phi', sup phi')."""

    slopes: tuple[float, float]


@runtime_checkable
class Curved(Protocol):
    """An activation whose derivative has a known Lipschitz constant."""

    def curvature(self) -> float:
        """c with ||phi'(y) - phi'(z)||_2 <= c |y - z| for each input; inf where phi' jumps."""


REACH, N_PLACES = 20.0, 4001
"""`check_activation` looks at so many z from -20 to 20, a hundredth apart."""

STEEPER = 1e-3
"""The share by which a slope may seem too large there: rounding of an activation that computes in
float32."""


@torch.no_grad()
def check_activation(phi: Any) -> None:
    """Refuse a module that is no activation, or one that breaks its `lipschitz` or `slopes`.

    The slopes of chords, and phi', are compared with them at `N_PLACES` points. A broken promise
    that shows there is refused; that is no proof of a promise that is kept.

    Raises:
        TypeError: a member of `Activation` is missing.
        ValueError: a slope beyond them, or values that are not those of `forward`.
    """
    if not isinstance(phi, nn.Module) or not isinstance(phi, Activation):
        raise TypeError(
            f"An activation is a module with `lipschitz`, `expansion` and `value_and_derivative`, "
            f"from which a branch has its bound and its Jacobian; got {type(phi).__name__}. Give "
            "it these, or make the branch `Uncertified`."
        )
    device = next((p.device for p in phi.parameters()), None)
    z = torch.linspace(-REACH, REACH, N_PLACES, dtype=torch.float64, device=device)[:, None]
    values, (y, slopes) = phi(z), phi.value_and_derivative(z)
    chords = values.diff(dim=0) / z.diff(dim=0)
    of_one = [part.unflatten(1, (phi.expansion, -1)) for part in (chords, slopes)]
    steepest = max(float(torch.linalg.vector_norm(part, dim=1).amax()) for part in of_one)
    name = type(phi).__name__
    if not steepest <= phi.lipschitz * (1 + STEEPER):
        raise ValueError(
            f"{name} promises lipschitz={phi.lipschitz:.6g}, but has a slope of {steepest:.4g}. "
            "Set `lipschitz` to the largest |phi'|."
        )
    low, high = phi.slopes if isinstance(phi, Sloped) else (-math.inf, math.inf)
    least, most = (float(f(torch.stack([f(p) for p in of_one]))) for f in (torch.amin, torch.amax))
    if not low - STEEPER <= least <= most <= high + STEEPER:
        raise ValueError(
            f"{name} promises slopes in [{low:.4g}, {high:.4g}], but has them in [{least:.4g}, "
            f"{most:.4g}]. Set `slopes` to (inf phi', sup phi')."
        )
    if not torch.allclose(values, y, rtol=STEEPER, atol=STEEPER):
        raise ValueError(
            f"{name} has values in `value_and_derivative` that are not those of `forward`. Return "
            "the same phi(z) in both."
        )


class LipSwish(nn.Module):
    """phi(z) = z sigmoid(beta z) / 1.1 with a learnable beta = softplus(raw_beta) > 0.

    phi'(z) = s (1 + t (1 - s)) / 1.1 with t = beta z and s = sigmoid(t).

    Properties: smooth; sup |phi'| = 1.0998393... / 1.1 = 0.99985 for every beta; nothing is divided
    by z, so value and derivatives are finite at 0.
    Source: Chen, Behrmann, Duvenaud and Jacobsen (2019), Residual Flows, section 3.3, which rounds
    the maximum slope of swish up to 1.1.
    """

    lipschitz: float = SWISH_LIPSCHITZ / LIPSWISH_SCALE
    expansion: int = 1
    # phi'(z) + phi'(-z) = 1 / 1.1.
    slopes: tuple[float, float] = (
        (1 - SWISH_LIPSCHITZ) / LIPSWISH_SCALE,
        SWISH_LIPSCHITZ / LIPSWISH_SCALE,
    )

    def __init__(self) -> None:
        super().__init__()
        self.raw_beta = nn.Parameter(torch.tensor(0.5))

    def forward(self, z: Tensor) -> Tensor:
        beta = functional.softplus(self.raw_beta)
        if torch.is_grad_enabled():
            return z * torch.sigmoid(z * beta) * (1 / LIPSWISH_SCALE)
        return (z * beta).sigmoid_().mul_(z).mul_(1 / LIPSWISH_SCALE)

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, Tensor]:
        beta = functional.softplus(self.raw_beta)
        if not torch.is_grad_enabled():
            return _swish_and_slope(z, beta)
        both: tuple[Tensor, Tensor] = SwishAndSlope.apply(z, beta)
        return both

    def curvature(self) -> float:
        """beta / 2.2: |phi''| = beta c |2 - t tanh(t / 2)| / 1.1 is largest at t = 0, c = 1/4."""
        beta = functional.softplus(self.raw_beta.detach().double())
        return float(beta) / (2 * LIPSWISH_SCALE)


class SwishAndSlope(torch.autograd.Function):
    """(z s, s (1 + t (1 - s))) / 1.1 with t = beta z, s = sigmoid(t); only z is saved.

    With c = s (1 - s) and e = d_slope c (2 + t (1 - 2 s)), all over 1.1:

        d_z = slope d_value + beta e,    d_beta = sum_i z_i (z_i c_i d_value_i + e_i).

    Autograd would save six tensors like z, which are most of the memory of a training step.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(z, beta)
        return _swish_and_slope(z, beta)

    @staticmethod
    def backward(ctx: Any, d_value: Tensor, d_slope: Tensor) -> tuple[Tensor, Tensor]:
        z, beta = ctx.saved_tensors
        t = z * beta
        s = torch.sigmoid(t)
        c = s * (1 - s)
        e = d_slope * c * (2 + t * (1 - 2 * s))
        d_z = d_value * torch.addcmul(s, t, c) + e * beta
        d_beta = torch.addcmul(e, d_value * c, z) * z
        return d_z * (1 / LIPSWISH_SCALE), d_beta.sum() * (1 / LIPSWISH_SCALE)


def _swish_and_slope(z: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """As `SwishAndSlope`, without a graph."""
    t = z * beta
    s = torch.sigmoid(t)
    # s + t s (1 - s) is s moved towards 1 by the fraction t s: one fused kernel.
    slope = torch.lerp(s, constant(_one, s.dtype, s.device), t.mul_(s)).mul_(1 / LIPSWISH_SCALE)
    return s.mul_(z).mul_(1 / LIPSWISH_SCALE), slope


def _one(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.ones((), dtype=dtype, device=device)


def swish_backward(
    z: Tensor, raw_beta: Tensor, beta: Tensor, slope: Tensor, d_value: Tensor, d_slope: Tensor
) -> tuple[Tensor, Tensor]:
    """d_z of `SwishAndSlope` and d/d(raw beta), its formulas without a graph and in place.

    `SwishAndSlope.backward` computes them apart, since it has to be differentiable and has no slope
    at hand; the two agree to rounding.
    """
    t = z * beta
    s = torch.sigmoid(t)
    c = torch.addcmul(s, s, s, value=-1)
    e = t.addcmul_(t, s, value=-2).add_(2.0).mul_(c).mul_(d_slope)
    d_z = torch.mul(slope, d_value, out=s).addcmul_(e, beta, value=1 / LIPSWISH_SCALE)
    d_beta = c.mul_(d_value).mul_(z).add_(e).mul_(z).sum() * (1 / LIPSWISH_SCALE)
    return d_z, d_beta * torch.sigmoid(raw_beta)


class CLipSwish(nn.Module):
    """Phi(z) = [phi(z), phi(-z)] / 1.004, phi the LipSwish: twice as many outputs as inputs.

    The second half is phi(z) - z/1.1, because z sigmoid(t) + z sigmoid(-t) = z.

    Properties: ||Phi'(z)||_2 = sqrt(a^2 + (1 - a)^2) / (1.1 * 1.004) with a the slope of swish, at
    most 1.0039650... / 1.004 = 0.99997 where a is largest. The constant is for the Euclidean norm.
    Source: Perugachi-Diaz, Tomczak and Bhulai (2021), Invertible DenseNets.
    """

    lipschitz: float = math.hypot(SWISH_LIPSCHITZ, SWISH_LIPSCHITZ - 1) / (
        LIPSWISH_SCALE * CLIPSWISH_SCALE
    )
    expansion: int = 2

    def __init__(self) -> None:
        super().__init__()
        self.swish = LipSwish()

    def forward(self, z: Tensor) -> Tensor:
        y = self.swish(z)
        return torch.cat([y, y - z * (1 / LIPSWISH_SCALE)], dim=1) * (1 / CLIPSWISH_SCALE)

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, Tensor]:
        y, slope = self.swish.value_and_derivative(z)
        both = torch.cat([y, y - z * (1 / LIPSWISH_SCALE)], dim=1)
        slopes = torch.cat([slope, slope - 1 / LIPSWISH_SCALE], dim=1)
        return both * (1 / CLIPSWISH_SCALE), slopes * (1 / CLIPSWISH_SCALE)

    def curvature(self) -> float:
        """sqrt(2) / 1.004 times the LipSwish's: both halves have the same phi''."""
        return math.sqrt(2) * self.swish.curvature() / CLIPSWISH_SCALE


class Tanh(nn.Module):
    """phi(z) = tanh z; phi'(z) = 1 - tanh(z)^2 in (0, 1]."""

    lipschitz: float = 1.0
    expansion: int = 1
    slopes: tuple[float, float] = (0.0, 1.0)

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(z)

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.tanh(z)
        return y, 1 - y * y

    def curvature(self) -> float:
        """2 |t| (1 - t^2) at t = tanh z = 1 / sqrt(3)."""
        return 4 / (3 * math.sqrt(3))


class ELU(nn.Module):
    """phi(z) = z for z > 0, e^z - 1 otherwise; phi'(z) = e^min(z, 0) in (0, 1]."""

    lipschitz: float = 1.0
    expansion: int = 1
    slopes: tuple[float, float] = (0.0, 1.0)

    def forward(self, z: Tensor) -> Tensor:
        return functional.elu(z)

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return functional.elu(z), torch.exp(z.clamp(max=0.0))

    def curvature(self) -> float:
        """e^z for z < 0, 0 for z > 0; phi' itself is continuous."""
        return 1.0


def softplus(z: Tensor) -> Tensor:
    """ln(1 + e^z) to rounding.

    By default torch returns z from z = 20 on, a jump of 2e-9, which has no Lipschitz constant; from
    z = 40 on the two are one number, in float64 too.
    """
    return functional.softplus(z, threshold=40.0)


class Softplus(nn.Module):
    """phi(z) = ln(1 + e^z); phi'(z) = sigmoid(z) in (0, 1), whose supremum 1 is not attained."""

    lipschitz: float = 1.0
    expansion: int = 1
    slopes: tuple[float, float] = (0.0, 1.0)

    def forward(self, z: Tensor) -> Tensor:
        return softplus(z)

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return softplus(z), torch.sigmoid(z)

    def curvature(self) -> float:
        """sigmoid' at 0."""
        return 0.25


class Sine(nn.Module):
    """phi(z) = sin z; phi'(z) = cos z in [-1, 1]."""

    lipschitz: float = 1.0
    expansion: int = 1
    slopes: tuple[float, float] = (-1.0, 1.0)

    def forward(self, z: Tensor) -> Tensor:
        return torch.sin(z)

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sin(z), torch.cos(z)

    def curvature(self) -> float:
        """|sin z| at most."""
        return 1.0


class ReLU(nn.Module):
    """phi(z) = max(z, 0); phi'(z) = 1 for z > 0, 0 otherwise (at the kink too, as in autograd).

    The derivative's own gradient is zero wherever it exists.
    """

    lipschitz: float = 1.0
    expansion: int = 1
    slopes: tuple[float, float] = (0.0, 1.0)

    def forward(self, z: Tensor) -> Tensor:
        return torch.relu(z)

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(z)
        # sign, not a comparison: it stays in the graph with gradient zero, so that a gradient with
        # respect to z is never an error.
        return y, torch.sign(y)

    def curvature(self) -> float:
        """phi' jumps at 0."""
        return math.inf
