"""Residual layers of Lipschitz constant 1 that a semidefinite program gives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resflow_bench.arguments import check_batch, check_count
from resflow_bench.jacobian import SkipStage
from resflow_bench.layers.activations import Activation, Curved, Sloped, check_activation
from resflow_bench.layers.linear import drawn
from resflow_bench.layers.maps import Affine, Composition, Elementwise
from resflow_bench.layers.norms.norm import (
    Certificate,
    checked_coefficient,
    cushion,
    finite,
    full_precision,
    not_finite,
)
from resflow_bench.layers.norms.operators import Matrix
from resflow_bench.layers.norms.spectral import spectral_bound
from resflow_bench.layers.orders import Order


class SLL(nn.Module):
    """h(x) = c (x - 2 V^T T^(-1) phi(V x + b)), T_kk = sum_j |V V^T|_kj q_j / q_k, q > 0 learnt.

    With slopes phi' in [0, 1] and D = diag(phi'), J = c (I - 2 V^T T^(-1) D V) is symmetric, and

        0 <= V^T T^(-1) D V <= V^T T^(-1) V <= I,

    as T - V V^T is positive semidefinite (diagonally dominant after scaling by q). So the
    eigenvalues of J are in [-c, c], whatever V, b and q are: the promise holds at all weights,
    between updates too. Where all slopes are 0, J = c I: the constant is attained.

    c is the coefficient less what rounding may add: `cushion`, and (4 n + 2 h) eps for V^T T^(-1).

    Args:
        n_in: n, the features of x and of h(x).
        width: h, the rows of V.
        coefficient: the promised Lipschitz constant, above 0.
        activation: phi, with one output for each input and slopes known to be within [0, 1].
        generator: draws V and b, both uniform in +-1/sqrt(n); None as in `Linear`.

    Raises:
        ValueError: a phi with other slopes, a coefficient that is not positive and finite, or a
            size below 1.

    Source: Araujo, Havens, Delattre, Allauzen and Hu (2023), A unified algebraic perspective on
        Lipschitz neural networks, theorem 3, in which V is called W^T.

    >>> from resflow_bench.layers.activations import Softplus
    >>> layer = SLL(4, 8, 0.9, Softplus())
    >>> layer(torch.zeros(2, 4)).shape, 0.899 < layer.certificate().norm <= 0.9
    (torch.Size([2, 4]), True)
    """

    domain: Order = 2.0
    codomain: Order = 2.0

    def __init__(
        self,
        n_in: int,
        width: int,
        coefficient: float,
        activation: Activation,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_activation(activation)
        low, high = activation.slopes if isinstance(activation, Sloped) else (-math.inf, math.inf)
        if activation.expansion != 1 or not 0 <= low <= high <= 1:
            raise ValueError(
                "SLL needs an activation with one output for each input and with `slopes` within "
                f"[0, 1], on which its bound rests; got {type(activation).__name__} with slopes in "
                f"[{low:.4g}, {high:.4g}]. Take Softplus, ELU, Tanh or ReLU."
            )
        self.n_in = self.n_out = check_count("SLL", "n_in", n_in)
        self.width = check_count("SLL", "width", width)
        self.coefficient = checked_coefficient(coefficient)
        self.activation = activation
        self.weight, self.bias = drawn((self.width, n_in), n_in, True, generator)
        self.raw_q = nn.Parameter(torch.zeros(self.width, device=self.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """(B, n) -> (B, n)."""
        check_batch("SLL", x, (self.n_in,), self.weight.dtype)
        return self.normalised()(x)

    def normalised(self) -> Skipped:
        inward, outward = Affine(self.weight, self.bias), Affine(self._outward())
        inner = Composition([inward, Elementwise(self.activation), outward])
        return Skipped(self._scale(), inner)

    def update(self) -> None:
        """Refuse weights on the CPU that are not finite; the promise holds at all others."""
        if self.weight.is_cpu:
            finite(self.weight)
            finite(self.raw_q)

    def align(self) -> None:
        """As `update`."""
        self.update()

    def certificate(self) -> Certificate:
        """`bound` on the host."""
        check_activation(self.activation)
        bound = float(self.bound())
        if not math.isfinite(bound):
            raise not_finite()
        return Certificate(bound, "sll")

    def bound(self) -> Tensor:
        """c max(1, 2 rho - 1) + sum_k ||e_k|| ||v_k||, () float64, of the numbers in `forward`.

        U = -2 c V^T T^(-1), as rounded, is -2 c V^T S^(-1) + E with the diagonal S closest to it,
        rho = ||V^T S^(-1) V||, and e_k the columns of E. The rest of J has eigenvalues in
        [c (1 - 2 rho), c].
        """
        size, rest = self._sizes()
        scale = self._scale() * (1 + torch.finfo(self.weight.dtype).eps)  # `forward` rounds it
        return scale * (2 * size - 1).clamp(min=1.0) + rest

    def curvature(self) -> float:
        """Lip(J) <= max_k ||v_k|| Lip(phi') (2 c rho + sum_k ||e_k|| ||v_k||); inf if unknown."""
        if not isinstance(self.activation, Curved):
            return math.inf
        size, rest = map(float, self._sizes())
        longest = float(torch.linalg.vector_norm(self.weight.detach().double(), dim=1).amax())
        return longest * self.activation.curvature() * (2 * self.coefficient * size + rest)

    @torch.no_grad()
    def _sizes(self) -> tuple[Tensor, Tensor]:
        """rho and sum_k ||e_k|| ||v_k|| of `bound`."""
        v, u = self.weight.double(), -self._outward().mT.double()
        squares, products = v.square().sum(1), (u * v).sum(1)
        share = torch.where(squares > 0, products / squares, 0.0)  # 2 c / S_kk, of v_k in u_k
        norm = spectral_bound(Matrix(v * (share / (2 * self._scale())).sqrt()[:, None]))
        errors = torch.linalg.vector_norm(u - share[:, None] * v, dim=1)
        return norm.square(), torch.dot(errors, torch.linalg.vector_norm(v, dim=1))

    def _outward(self) -> Tensor:
        """-2 c V^T T^(-1), (n, h), differentiable in V and q."""
        weight = self.weight
        with full_precision(weight):
            exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
            raw_q = self.raw_q.to(exact)
            ratios = torch.exp(raw_q - raw_q[:, None])  # q_j / q_k at [k, j]
            sums = ((exact @ exact.mT).abs() * ratios).sum(1)
            # A row of zeros has no share in the output.
            sums = torch.where(sums > torch.finfo(exact.dtype).tiny, sums, torch.inf)
            return (exact.mT * (-2 * self._scale() / sums)).to(weight.dtype)

    def _scale(self) -> float:
        """c less what rounding may add."""
        dtype = self.weight.dtype
        eps, finer = (
            torch.finfo(t).eps for t in (dtype, torch.promote_types(dtype, torch.float32))
        )
        more = 2 * self.n_in * eps + 2 * (self.n_in + self.width) * finer
        return self.coefficient * (1 - cushion(dtype, self.n_in, more))

    def extra_repr(self) -> str:
        return f"{self.n_in}, {self.width}, coefficient={self.coefficient:.6g}"


@dataclass(frozen=True, eq=False)
class Skipped:
    """a x + h(x)."""

    a: float
    h: Composition

    def __call__(self, x: Tensor) -> Tensor:
        return torch.add(self.h(x), x, alpha=self.a)

    def linearise(self, x: Tensor) -> tuple[Tensor, SkipStage]:
        y, jacobian = self.h.linearise(x)
        return torch.add(y, x, alpha=self.a), SkipStage(self.a, jacobian)
