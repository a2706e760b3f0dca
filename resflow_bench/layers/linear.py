"""Linear layers: a norm of the matrix is at most a coefficient, by certificate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from resflow_bench.arguments import check_batch, check_count
from resflow_bench.layers.maps import Affine
from resflow_bench.layers.norms.induced import Induced
from resflow_bench.layers.norms.norm import Certificate, Norm
from resflow_bench.layers.norms.operators import Matrix
from resflow_bench.layers.norms.spectral import Spectral
from resflow_bench.layers.orders import Order


class Linear(nn.Module):
    """y = x W_c^T + b with W_c made of W such that ||W_c|| <= coefficient.

    The bound is a theorem right after `update` and `align`, see `SpectralNorm` and `InducedNorm`,
    which divide W by a number. Between a step and its update it is not: the spectral norm exceeded
    it by up to 2 % at a learning rate of 1e-2. With `AOL` and `SemiOrthogonal` it is one at all
    weights.

    Args:
        n_in, n_out: sizes of x and y.
        coefficient: the promised bound on ||W_c||, above 0.
        norm: the norm, and how it is kept: `Spectral()`, `Induced(p, q)` from ||.||_p to ||.||_q,
            or `AOL()` and `SemiOrthogonal()`, which keep the spectral norm by the form of W_c.
        bias: whether b is added.
        generator: draws W and b, both uniform in +-1/sqrt(n_in). None stands for a fresh
            generator with seed 0, never for the global one.

    Raises:
        ValueError: a coefficient that is not positive and finite, or a size below 1.

    Source: Miyato et al. (2018), Spectral normalization; Gouk et al. (2018) for the maximum with 1.
    Neither certifies. Gradients go through sigma_hat with its vectors constant, which at
    convergence is the gradient of the norm itself, for the spectral norm d sigma_1 = u^T dW v.

    >>> layer = Linear(64, 128, coefficient=0.9)
    >>> layer.certificate().norm <= 0.9
    True
    >>> Linear(8, 8, 0.9, Induced(math.inf, 1.5)).certificate().norm <= 0.9
    True
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        coefficient: float,
        norm: Norm = Spectral(),
        *,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.n_in = check_count("Linear", "n_in", n_in)
        self.n_out = check_count("Linear", "n_out", n_out)
        self.domain, self.codomain = norm.domain, norm.codomain
        self.weight, self.bias = drawn((n_out, n_in), n_in, bias, generator)
        self.norm = norm.normaliser(self.operator, coefficient)
        self.coefficient = self.norm.coefficient

    @property
    def operator(self) -> Matrix:
        """A(W), of the weight before it is normalised."""
        return Matrix(self.weight)

    def weight_normalised(self) -> Tensor:
        """W_c, (n_out, n_in), differentiable in W and in learnable orders."""
        return self.norm.normalised(self.operator)

    def operator_normalised(self) -> Matrix:
        """A(W_c), whose norm is at most the coefficient."""
        return Matrix(self.weight_normalised())

    def forward(self, x: Tensor) -> Tensor:
        """(..., n_in) -> (..., n_out)."""
        check_batch("Linear", x, (...,), self.weight.dtype)
        return self.normalised()(x)

    def normalised(self) -> Affine:
        return Affine(self.weight_normalised(), self.bias)

    def update(self) -> None:
        self.norm.update(self.operator)

    def align(self) -> None:
        self.norm.align(self.operator)

    def certificate(self) -> Certificate:
        """An upper bound on the norm of the W_c that `forward` multiplies with."""
        return self.norm.certificate(self.operator_normalised())

    def extra_repr(self) -> str:
        return f"{self.n_in}, {self.n_out}, bias={self.bias is not None}"


SpectralLinear = Linear  # an older name


def InducedLinear(  # noqa: N802 -- an older name
    n_in: int, n_out: int, coefficient: float, domain: Order, codomain: Order, **options: Any
) -> Linear:
    """`Linear` with the norm `Induced(domain, codomain)`."""
    return Linear(n_in, n_out, coefficient, Induced(domain, codomain), **options)


def drawn(
    shape: tuple[int, ...], fan_in: int, bias: bool, generator: torch.Generator | None
) -> tuple[nn.Parameter, nn.Parameter | None]:
    """W of that shape and b, (shape[0],) or None, from U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    On the generator's device; None is a fresh generator with seed 0.
    """
    generator = generator or torch.Generator().manual_seed(0)

    def uniform(*sizes: int) -> nn.Parameter:
        empty = torch.empty(sizes, device=generator.device)
        return nn.Parameter(empty.uniform_(-limit, limit, generator=generator))

    limit = 1 / math.sqrt(fan_in)
    return uniform(*shape), uniform(shape[0]) if bias else None
