"""Almost-orthogonal layers: a scale for each input keeps the spectral norm below a constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from resflow_bench.layers.norms.norm import (
    Certificate,
    checked_coefficient,
    cushion,
    finite,
    full_precision,
)
from resflow_bench.layers.norms.operators import Operator
from resflow_bench.layers.norms.spectral import spectral_certificate
from resflow_bench.layers.orders import Order


@dataclass(frozen=True)
class AOL:
    """||A||_2 by W_c = c W D with D_ii = (sum_j |W^T W|_ij)^(-1/2), see `AOLNorm`.

    >>> from resflow_bench.layers.norms.operators import Matrix
    >>> norm = AOL().normaliser(Matrix(torch.eye(3)), 0.5)
    >>> norm.normalised(Matrix(torch.eye(3)))[0]
    tensor([0.5000, 0.0000, 0.0000])
    """

    domain: ClassVar[Order] = 2.0
    codomain: ClassVar[Order] = 2.0

    def normaliser(self, operator: Operator, coefficient: float) -> AOLNorm:
        return AOLNorm(operator, coefficient)


class AOLNorm(nn.Module):
    """W_c = c' W D with D_ii = (sum_j |W^T W|_ij)^(-1/2), a scale for each input.

    D W^T W D is at most I, since D^(-2) - W^T W has on its diagonal at least the sum of what is
    beside it. Of a convolution D has a scale for each input channel, and the sum is over channels
    and offsets of the correlation of the kernel with itself:

        D_ii = (sum_{j, t} |sum_{a, s} W[a, i, s] W[a, j, s + t]|)^(-1/2).

    That bounds the convolution on an infinite grid; with zero padding it is a compression of that
    one, of no larger norm, and D is the same at all positions.

    Nothing is carried from step to step: the promise holds at all weights, between updates too.
    W_c does not change with the size of a column of W, and a column of zeros stays zero. The norm
    is c' where the columns are orthogonal, and less elsewhere; what is lost is in the certificate,
    which is ||A||, not the bound.

    c' = c (1 - `cushion` - n eps / 2) leaves room for rounding, n the terms of a sum and of its
    summands. On random, scaled and nearly dependent columns up to 1024 x 1024 at most 6 % of that
    room was needed.

    The arguments are those of `Norm.normaliser`.

    Source: Prach and Lampert (2022), Almost-orthogonal layers for efficient general-purpose
        Lipschitz networks, theorems 1 and 2.
    """

    def __init__(self, operator: Operator, coefficient: float) -> None:
        super().__init__()
        self.coefficient = checked_coefficient(coefficient)
        self._target(operator)  # refuses a type that is too coarse

    def normalised(self, operator: Operator) -> Tensor:
        """W_c, shaped like W, differentiable in W."""
        weight = operator.weight
        with full_precision(weight):
            exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
            sums = _absolute_sums(exact)
            # A column of zeros has no length to divide by, and no gradient.
            tiny = torch.finfo(exact.dtype).tiny
            scale = self._target(operator) * torch.where(sums > tiny, sums, torch.inf).rsqrt()
            return (exact * scale.view(-1, *[1] * (weight.ndim - 2))).to(weight.dtype)

    def update(self, operator: Operator) -> None:
        """Refuse weights on the CPU that are not finite; the promise holds at all others."""
        if operator.weight.is_cpu:
            finite(operator.weight)

    def align(self, operator: Operator) -> None:
        """As `update`."""
        self.update(operator)

    def certificate(self, operator: Operator) -> Certificate:
        """See `spectral_certificate`."""
        return spectral_certificate(operator)

    def _target(self, operator: Operator) -> float:
        """c'."""
        weight = operator.weight
        n_terms = weight[:, 0].numel() + weight[0].numel() * (1 if weight.ndim == 2 else 4)
        n = min(weight.shape[:2]) * weight[0, 0].numel()
        return self.coefficient * (1 - cushion(weight.dtype, n, n_terms * _eps(weight) / 2))

    def extra_repr(self) -> str:
        return f"coefficient={self.coefficient:.6g}"


def _eps(weight: Tensor) -> float:
    """The eps of the type in which sums are taken."""
    return torch.finfo(torch.promote_types(weight.dtype, torch.float32)).eps


def _absolute_sums(weight: Tensor) -> Tensor:
    """sum_j |W^T W|_ij, (n_in,); of a kernel over channels and offsets."""
    if weight.ndim == 2:
        return (weight.mT @ weight).abs().sum(1)
    kernel, (height, width) = weight.transpose(0, 1), weight.shape[2:]
    products = conv2d(kernel, kernel, padding=(height - 1, width - 1))
    return products.abs().sum((1, 2, 3))
