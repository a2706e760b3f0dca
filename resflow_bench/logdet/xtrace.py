"""Deflation: the trace of a matrix function, exact on the space that its products span."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from resflow_bench.arguments import check_count
from resflow_bench.jacobian import Jacobian, Map, Products, linearise
from resflow_bench.logdet.estimator import Estimate, check_input, standard_error
from resflow_bench.logdet.expansions.expansion import WeightedSum, series_sign
from resflow_bench.logdet.probes import Sphere
from resflow_bench.logdet.truncation import Fixed, Terms, Truncation


@final
@dataclass(frozen=True)
class XTrace:
    """(1/k) sum_i tr(Q_i^T A Q_i) + u_i^T A u_i,  A = (S_N(J) - S_L(J))^T, S_n the first n terms.

    Q_i is an orthonormal basis of the span of all A w_j but A w_i, and u_i is w_i without its part
    there, stretched to ||u_i||^2 = d - k + 1, the dimension of the rest. The trace is exact on the
    span, and estimated from one vector beyond it; each of k vectors takes that part in turn. Behind
    L traces that are exact, what is left of log(I + J) is often nearly of low rank.

    1. Y = A W,  Q R = Y,  Z = A Q: 2 k products with A.
    2. I - Q_i Q_i^T = I - Q (I - s_i s_i^T) Q^T, s_i the i-th column of R^-T at length one: no
       second decomposition is needed.

    Args:
        n_vectors: k, from 1 to d, uniform on the sphere.
        n_traced: L, see `LogDetEstimator`.

    Properties: as unbiased as the truncation. `standard_error` is the spread of the k values, which
        share most of their vectors; on a trained flow (d = 64, eight blocks) its square was 0.9 of
        the variance. It is None with one vector, and with a roulette, whose N they share. Needs two
        exact traces to pay: at 16 products with f(J) the variance there, relative to Rademacher
        probes, was 1.3 behind none, 1.0 behind one and 0.5 behind two. No gradient. Cost: 2 k N
        products, N the largest of the batch, and a QR decomposition of (d, k) and products of
        4 d k^2 numbers an example.

    Raises:
        ValueError: if `n_vectors` is below 1 or `n_traced` below 0; when called, if it is above d,
            or a gradient would be needed.

    Source: Epperly, Tropp and Webber (2024), "XTrace: making the most of every sample in stochastic
        trace estimation", SIAM J. Matrix Anal. Appl. 45(1); arXiv 2301.07825.

    >>> from resflow_bench.logdet import Fixed
    >>> estimator = XTrace(n_vectors=2, truncation=Fixed(50))
    >>> with torch.no_grad():
    ...     estimator(lambda x: 0.5 * x, torch.zeros(1, 4)).value.exp()  # det(1.5 I) = 1.5^4
    tensor([5.0625])
    """

    n_vectors: int
    truncation: Truncation
    n_traced: int = 0
    products: Products = linearise

    def __post_init__(self) -> None:
        check_count("XTrace", "n_vectors", self.n_vectors)
        check_count("XTrace", "n_traced", self.n_traced, 0)

    def __call__(self, g: Map, x: Tensor, generator: torch.Generator | None = None) -> Estimate:
        check_input("XTrace", x)
        dim = math.prod(x.shape[1:])
        if self.n_vectors > dim:
            raise ValueError(
                f"XTrace needs n_vectors of at most d = {dim}; got {self.n_vectors}. Take "
                "`Determinant()`, which needs d products."
            )
        value, jacobian = self.products(g, x)
        if torch.is_grad_enabled() and value.requires_grad:
            raise ValueError(
                "XTrace has no gradient. Call it under `torch.no_grad()`, or train with a "
                "`LogDetEstimator`."
            )
        with torch.no_grad():
            traces = jacobian.traces(self.n_traced) if self.n_traced else []
            traced = sum(series_sign(k) * trace / k for k, trace in enumerate(traces, start=1))
            w = Sphere().sample(self.n_vectors, x, generator)
            terms = self.truncation.draw(len(x), x, generator)
            each = self._values(jacobian, w, terms)  # (B, k)
        error = None
        if self.n_vectors >= 2 and isinstance(self.truncation, Fixed):
            error = standard_error(each.mT)
        n_products = 2 * self.n_vectors * len(terms.weights)
        return Estimate(value, each.mean(1) + traced, n_products, error)

    def _values(self, jacobian: Jacobian, w: Tensor, terms: Terms) -> Tensor:
        """The k values of each example, (B, k)."""

        def applied(columns: Tensor) -> Tensor:  # (B, d, k) -> A of them
            vectors = columns.permute(2, 0, 1).reshape(w.shape).contiguous()
            return _columns(_series(jacobian, vectors, terms, self.n_traced))

        ones = _columns(w)
        y = applied(ones)
        q, r = torch.linalg.qr(y)
        z = applied(q)
        s = _last_directions(r)
        h = q.mT @ z  # (B, k, k)
        inside = q.mT @ ones
        inside = inside - s * (s * inside).sum(1, keepdim=True)  # (I - s_i s_i^T) Q^T w_i
        rest, image = ones - q @ inside, y - z @ inside  # u_i but for its length, and A u_i
        squares = rest.square().sum(1)
        form = (rest * image).sum(1) * ((w[0, 0].numel() - w.shape[0] + 1) / squares)
        trace = h.diagonal(dim1=1, dim2=2).sum(1, keepdim=True) - (s * (h @ s)).sum(1)
        return trace + form


def _columns(v: Tensor) -> Tensor:
    """(k, B, *event) -> (B, d, k)."""
    return v.flatten(2).permute(1, 2, 0)


def _series(jacobian: Jacobian, v: Tensor, terms: Terms, n_traced: int) -> Tensor:
    """sum_{k>L} w_k (-1)^(k+1)/k v^T J^k, shaped like v."""
    total, power = WeightedSum(terms.broadcast(v), n_traced), v
    for k in range(1, len(terms.weights) + 1):
        power = jacobian.vjp(power)
        total.add(k, series_sign(k) / k, power)
    return total.over(1.0)


def _last_directions(r: Tensor) -> Tensor:
    """The columns of R^-T at length one, (B, k, k): s_i is orthogonal to all columns of R but i."""
    diagonal = r.diagonal(dim1=1, dim2=2)
    least = torch.finfo(r.dtype).eps * r.abs().amax((1, 2))[:, None]
    least = least.clamp(min=torch.finfo(r.dtype).tiny)
    # Of a Y of lower rank any direction will do.
    r = r + torch.diag_embed(torch.where(diagonal.abs() < least, least, 0.0))
    identity = torch.eye(r.shape[-1], dtype=r.dtype, device=r.device)
    # The inverse may overflow before it is normalised, so R is scaled first.
    r = r / r.abs().amax((1, 2), keepdim=True)
    return torch.nn.functional.normalize(
        torch.linalg.solve_triangular(r.mT, identity.expand_as(r), upper=False), dim=1
    )
