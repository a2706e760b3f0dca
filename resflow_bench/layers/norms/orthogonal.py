"""Orthogonal layers: all singular values of a matrix are one constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from resflow_bench.layers.norms.norm import (
    Certificate,
    checked_coefficient,
    cushion,
    finite,
    full_precision,
)
from resflow_bench.layers.norms.operators import Matrix, Operator
from resflow_bench.layers.norms.spectral import spectral_certificate
from resflow_bench.layers.orders import Order


@dataclass(frozen=True)
class SemiOrthogonal:
    """||A||_2 by W_c = c Q, Q of orthonormal columns, or rows if it is wide; matrices alone.

    >>> norm = SemiOrthogonal().normaliser(Matrix(torch.ones(1, 4)), 0.5)
    >>> norm.normalised(Matrix(torch.ones(1, 4)))
    tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """

    domain: ClassVar[Order] = 2.0
    codomain: ClassVar[Order] = 2.0

    def normaliser(self, operator: Operator, coefficient: float) -> SemiOrthogonalNorm:
        return SemiOrthogonalNorm(operator, coefficient)


class SemiOrthogonalNorm(nn.Module):
    """W_c = c' Q of W = Q R, R triangular with a positive diagonal; of W^T if W is wide.

    All singular values of W_c are c', so each layer preserves distances up to that factor, from
    the smaller of its two spaces. R has a positive diagonal, which makes Q a smooth function of
    W wherever the columns are independent. Householder's reflections give a Q that is orthonormal
    to rounding whatever W is: the promise holds at all weights, between updates too. Only the
    gradient suffers where columns of W become dependent.

    c' = c (1 - `cushion` - (m + n) eps) leaves room for rounding, (m, n) the shape of W. On random,
    scaled and nearly dependent columns up to 1024 x 1024 at most 4 % of that room was needed.

    The arguments are those of `Norm.normaliser`.

    Raises:
        TypeError: a convolution, as one with an orthogonal kernel is not orthogonal.

    Source: the QR decomposition of LAPACK; Anil, Lucas and Grosse (2019), Sorting out Lipschitz
        function approximation, for orthogonal weights in networks of a Lipschitz constant.
    """

    def __init__(self, operator: Operator, coefficient: float) -> None:
        super().__init__()
        if not isinstance(operator, Matrix):
            raise TypeError(
                "SemiOrthogonal is for matrices, since a convolution with an orthogonal kernel is "
                "not orthogonal; got a convolution. Take `AOL()` or `Spectral()`."
            )
        self.coefficient = checked_coefficient(coefficient)
        self._target(operator)  # refuses a type that is too coarse

    def normalised(self, operator: Operator) -> Tensor:
        """W_c, shaped like W, differentiable in W."""
        weight = operator.weight
        is_wide = weight.shape[0] < weight.shape[1]
        with full_precision(weight):
            exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
            q, r = torch.linalg.qr(exact.mT if is_wide else exact)
            signs = torch.where(r.diagonal() < 0, -1.0, 1.0).to(q)
            q = q * (signs * self._target(operator))
            return (q.mT if is_wide else q).to(weight.dtype)

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
        eps = torch.finfo(torch.promote_types(weight.dtype, torch.float32)).eps
        share = cushion(weight.dtype, min(weight.shape), sum(weight.shape) * eps)
        return self.coefficient * (1 - share)

    def extra_repr(self) -> str:
        return f"coefficient={self.coefficient:.6g}"
