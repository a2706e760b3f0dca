"""Linear maps whose spectral norm is at most a coefficient, by certificate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from resflow_bench.jacobian import MatrixStage
from resflow_bench.layers.layer import Certificate
from resflow_bench.layers.norms.spectral import Pair, SpectralNorm, leading
from resflow_bench.layers.orders import Order


@dataclass(frozen=True)
class Matrix:
    """A(W) = W, (n_out, n_in): the operator of a linear layer and of a convolution with one tap."""

    n_in: int
    n_out: int

    @property
    def shape_in(self) -> tuple[int, ...]:
        return (self.n_in,)

    @property
    def shape_out(self) -> tuple[int, ...]:
        return (self.n_out,)

    def apply(self, weight: Tensor, v: Tensor) -> Tensor:
        return torch.mv(weight, v)

    def follow(self, weight: Tensor, u: Tensor) -> Pair:
        return self.solve(weight)

    def solve(self, weight: Tensor) -> Pair:
        """By the smaller Gram matrix; the vector of the other side follows from A or A^T."""
        back = weight.mT
        if self.n_out <= self.n_in:
            u, norm = leading(torch.mm(weight, back))
            return Pair(u, _unit(torch.mv(back, u), norm), norm)
        v, norm = leading(torch.mm(back, weight))
        return Pair(_unit(torch.mv(weight, v), norm), v, norm)

    def certificate(self, weight: Tensor) -> Certificate:
        return Certificate(float(self.solve(weight).bound), "svd")


class SpectralLinear(nn.Module):
    """y = x W_c^T + b with W_c = W / max(1, sigma_hat inflation / c') and ||W_c||_2 <= coefficient.

    The bound is a theorem right after `update` and `align`, see `SpectralNorm`. Between a step and
    its update it is not: it was exceeded by up to 2 % at a learning rate of 1e-2.

    Args:
        in_features, out_features: sizes of x and y.
        coefficient: the promised bound on ||W_c||_2, above 0.
        bias: whether b is added.
        generator: where W and b are drawn from, both uniform in +-1/sqrt(in_features). None stands
            for a fresh generator with seed 0, never for the global one.

    Raises:
        ValueError: a coefficient that is not positive and finite, or a size below 1.

    Source: Miyato et al. (2018), Spectral normalization; Gouk et al. (2018) for the maximum with 1.
    Neither certifies. Gradients go through sigma_hat with u, v constant, which at convergence is
    the gradient of the norm itself, d sigma_1 = u^T dW v.

    >>> layer = SpectralLinear(64, 128, coefficient=0.9)
    >>> layer.certificate().norm <= 0.9
    True
    """

    domain: Order = 2.0
    codomain: Order = 2.0

    def __init__(
        self,
        in_features: int,
        out_features: int,
        coefficient: float,
        *,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(
                "SpectralLinear needs sizes of at least 1; "
                f"got in_features={in_features}, out_features={out_features}."
            )
        self.n_in, self.n_out = in_features, out_features
        if generator is None:
            generator = torch.Generator().manual_seed(0)
        self.weight = uniform((out_features, in_features), in_features, generator)
        self.bias = uniform((out_features,), in_features, generator) if bias else None
        self.norm = SpectralNorm(Matrix(in_features, out_features), coefficient, self.weight)
        self.coefficient = self.norm.coefficient

    def weight_normalised(self) -> Tensor:
        """W_c, shape (out_features, in_features), differentiable in W."""
        return self.weight / self.norm.divisor(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight_normalised(), self.bias)

    def normalised(self) -> Callable[[Tensor], Tensor]:
        """The map with its weight normalised once, (..., n_in) -> (..., n_out)."""
        weight = self.weight_normalised()
        return lambda x: functional.linear(x, weight, self.bias)

    def linearise(self, x: Tensor) -> tuple[Tensor, MatrixStage]:
        """y, (..., n_out), and v -> v^T W_c, (..., n_out) -> (..., n_in), one product each."""
        weight = self.weight_normalised()
        return functional.linear(x, weight, self.bias), MatrixStage(weight)

    def update(self) -> None:
        """The leading singular pair of W; afterwards ||W_c||_2 <= coefficient.

        Properties: O(n^3) with n the smaller size; on one core 0.3 ms at 64 x 128, 0.7 ms at
        128 x 128 and 45 ms at 784 x 1024. Two power steps take 0.06 ms at 128, but followed by an
        exact bound they left the training loss of a flow of 24 such layers 15 nat higher after 300
        steps: the vectors lag behind, and sigma_hat has the wrong gradient.
        """
        self.norm.update(self.weight)

    def align(self) -> None:
        """As `update`: that is exact already."""
        self.norm.align(self.weight)

    def certificate(self) -> Certificate:
        """sigma_1(W_c) of the weight that `forward` multiplies with, to rounding in float64."""
        return self.norm.certificate(self.weight_normalised())

    def extra_repr(self) -> str:
        return f"{self.n_in}, {self.n_out}, bias={self.bias is not None}"


def _unit(x: Tensor, norm: Tensor) -> Tensor:
    """x / ||x||, or x where it is zero; `norm` is ||x|| to rounding."""
    return x / norm.clamp(min=torch.finfo(x.dtype).tiny)


def uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> nn.Parameter:
    """A parameter drawn from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), on the generator's device."""
    bound = 1 / math.sqrt(fan_in)
    empty = torch.empty(shape, device=generator.device)
    return nn.Parameter(empty.uniform_(-bound, bound, generator=generator))
