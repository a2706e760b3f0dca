"""Convolutions: a norm of the operator, on the grid it acts on, is at most a coefficient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from resflow_bench.arguments import check_batch, check_count
from resflow_bench.jacobian.stages import FAST
from resflow_bench.layers.linear import drawn
from resflow_bench.layers.maps import AffineConvolution
from resflow_bench.layers.norms.induced import Induced
from resflow_bench.layers.norms.norm import Certificate, Norm
from resflow_bench.layers.norms.operators import Convolution
from resflow_bench.layers.norms.spectral import Spectral
from resflow_bench.layers.orders import Order


class Conv2d(nn.Module):
    """y = W_c * x + b, stride 1, zero padding, with ||x -> W_c * x|| <= coefficient.

    The norm is that of the operator R^(C_in H W) -> R^(C_out H W) on its grid, borders included.
    The kernel reshaped to a matrix (C_out, C_in kh kw) has a spectral norm up to sqrt(kh kw) times
    smaller, so a bound on that promises nothing. The promise is a theorem right after `update` and
    `align`, see `SpectralNorm` and `InducedNorm`. Between a step and its update it is not: the
    spectral norm exceeded it by up to 2.3 % at a learning rate of 1e-2. With `AOL` it is one at
    all weights.

    Args:
        n_in, n_out: channels C_in, C_out.
        kernel_size: odd, one number or (kh, kw).
        grid: (H, W) of x; other sizes are refused, as the norm is of this grid's operator.
        coefficient: the promised bound, above 0.
        norm, bias: as in `Linear`; `SemiOrthogonal()` is refused.
        generator: draws W and b, both uniform in +-1/sqrt(C_in kh kw); None as in `Linear`.

    Raises:
        ValueError: an even kernel, a size below 1, or a coefficient that is not positive and
            finite; later, an x of another shape.

    Source: Gouk et al. (2018) and Behrmann et al. (2019), Invertible Residual Networks, iterate on
    the operator; neither bounds it from above.

    >>> layer = Conv2d(3, 8, 3, grid=(8, 8), coefficient=0.9)
    >>> y, jacobian = layer.normalised().linearise(torch.zeros(5, 3, 8, 8))
    >>> jacobian.vjp(torch.ones(2, 5, 8, 8, 8)).shape, layer.certificate().norm <= 0.9
    (torch.Size([2, 5, 3, 8, 8]), True)
    >>> Conv2d(2, 3, 3, (4, 4), 0.9, Induced(math.inf, math.inf)).certificate().method
    'rows'
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel_size: int | tuple[int, int],
        grid: tuple[int, int],
        coefficient: float,
        norm: Norm = Spectral(),
        *,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        for name, pair in (("kernel_size", kernel), ("grid", grid)):
            if len(pair) != 2:
                raise ValueError(f"Conv2d needs two numbers as `{name}`; got {pair!r}.")
        kernel_h, kernel_w = (check_count("Conv2d", "kernel_size", size) for size in kernel)
        height, width = (check_count("Conv2d", "grid", size) for size in grid)
        if kernel_h % 2 == 0 or kernel_w % 2 == 0:
            raise ValueError(
                "Conv2d needs an odd `kernel_size`, so that the grid stays as it is; "
                f"got {kernel_size}."
            )
        self.n_in = check_count("Conv2d", "n_in", n_in)
        self.n_out = check_count("Conv2d", "n_out", n_out)
        self.grid = (height, width)
        self.domain, self.codomain = norm.domain, norm.codomain
        shape = (self.n_out, self.n_in, kernel_h, kernel_w)
        self.weight, self.bias = drawn(shape, math.prod(shape[1:]), bias, generator)
        self.norm = norm.normaliser(self.operator, coefficient)
        self.coefficient = self.norm.coefficient

    @property
    def kernel_size(self) -> tuple[int, int]:
        """(kh, kw)."""
        height, width = self.weight.shape[2:]
        return height, width

    @property
    def operator(self) -> Convolution:
        """A(W), of the weight before it is normalised."""
        return Convolution(self.weight, self.grid)

    def weight_normalised(self) -> Tensor:
        """W_c, (C_out, C_in, kh, kw), differentiable in W and in learnable orders."""
        return self.norm.normalised(self.operator)

    def operator_normalised(self) -> Convolution:
        """A(W_c), whose norm is at most the coefficient."""
        return Convolution(self.weight_normalised(), self.grid)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)."""
        check_batch("Conv2d", x, (self.n_in, ...), self.weight.dtype)
        return self.normalised()(x)

    def normalised(self) -> AffineConvolution:
        weight = self.weight_normalised().to(memory_format=FAST)
        return AffineConvolution(weight, self.bias, self.grid)

    def update(self) -> None:
        self.norm.update(self.operator)

    def align(self) -> None:
        self.norm.align(self.operator)

    def certificate(self) -> Certificate:
        """An upper bound on the norm of the operator that `forward` applies."""
        return self.norm.certificate(self.operator_normalised())

    def extra_repr(self) -> str:
        kernel, bias = tuple(self.weight.shape[2:]), self.bias is not None
        return f"{self.n_in}, {self.n_out}, kernel_size={kernel}, grid={self.grid}, bias={bias}"


SpectralConv2d = Conv2d  # an older name


def InducedConv2d(  # noqa: N802 -- an older name
    n_in: int,
    n_out: int,
    kernel_size: int | tuple[int, int],
    grid: tuple[int, int],
    coefficient: float,
    domain: Order,
    codomain: Order,
    **options: Any,
) -> Conv2d:
    """`Conv2d` with the norm `Induced(domain, codomain)`."""
    norm = Induced(domain, codomain)
    return Conv2d(n_in, n_out, kernel_size, grid, coefficient, norm, **options)
