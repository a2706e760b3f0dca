"""v^T log(I + J) v by Arnoldi's method: a better use of the products of the series."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from resflow_bench.arguments import check_count
from resflow_bench.jacobian import Jacobian
from resflow_bench.logdet.expansions.compaction import State, Work, longest_first
from resflow_bench.logdet.expansions.expansion import Expanded
from resflow_bench.logdet.truncation import Fixed, Terms

BREAKDOWN = 10.0
"""The Krylov space is taken as invariant, and ends, where the remainder of a vector is below this
many sqrt(d) units in the last place of the vector: it is then rounding."""


@dataclass(frozen=True)
class Arnoldi:
    """Delta_k = q_k - q_(k-1),  q_k = ||v||^2 e_1^T f(H_k) e_1,  f(t) = log(1 + t) - sum_{j<=L}.

    H_k = V_k^T J^T V_k, V_k an orthonormal basis of the span of v, J^T v, ..., (J^T)^(k-1) v. The
    adjoint is s_k = ||v|| V_k f'(H_k) e_1, from the same basis. `n_traced` is L; the sum is of the
    first L terms of Taylor's series, and Delta_1 = ... = Delta_L = 0.

    f(H_k) is formed stably for any H_k with ||H_k|| < 1:

    1. f(t) = (-1)^L t^(L+1) int_0^1 s^L/(1 + s t) ds: no cancellation however small t is, and
       f'(t) = (-1)^L t^L/(1 + t). With s = 1 - u^5 the pole at t = -K is far from [0, 1], and
       Gauss and Legendre's rule with `n_nodes` nodes in u is wrong by a relative 3e-10 at K =
       0.999, 5e-8 at 0.9999 and 3e-5 at 1 - 1e-6.
    2. M_k = I + s H_k is M_(k-1) with a border. With c and r its new column and row, sigma the
       Schur complement and l_k^T = [-r^T M_(k-1)^-1, 1]/sigma the last row of M_k^-1, the first row
       grows by -(e_1^T M_(k-1)^-1 c) l_k. H_k is Hessenberg, so r has one entry, and of M_k^-1 two
       rows are enough: all q_k come from one pass over H_N, as differences that do not cancel.

    Properties: q_k is exact if f is a polynomial of degree k, as Taylor's sum of k terms is, or of
        degree 2k - 1 if J is symmetric; and exact from the first k at which the Krylov space is
        invariant (at most d) on. The roulette is therefore unbiased, and its sum ends: every moment
        of the estimate is finite for any law with P(N >= d) > 0. The gain over Taylor's series is
        large where J is near symmetric, none where its eigenvalues fill a circle. Needs the
        numerical range of J to lie right of -1, as it does if ||J||_2 < 1: a contraction in
        another norm than the Euclidean does not imply it. Cost: min(N, d) products a probe, and
        4 N^2 d operations to keep the basis orthogonal; memory: N vectors shaped like v. On a
        trained block (d = 64, rho 0.89, L = 2) four products on average gave the variance of ten
        of Taylor's: slower on a CPU with 128 hidden units, faster with 1024. For a
        symmetric J, Lanczos's method would save the orthogonalisation alone, without which the
        increments do not end at k = d.

    Raises:
        ValueError: if `n_nodes` is below 1.

    Source: Saad (1992), "Analysis of some Krylov subspace approximations to the matrix exponential
        operator"; Ubaru, Chen and Saad (2017), "Fast estimation of tr(f(A)) via stochastic Lanczos
        quadrature", for symmetric J. The increments under a roulette are ours.

    >>> from resflow_bench.logdet import Fixed, LogDetEstimator, Rademacher
    >>> estimator = LogDetEstimator(Rademacher(), Fixed(1), expansion=Arnoldi())
    >>> estimator(lambda x: 0.5 * x, torch.zeros(1, 4)).value.exp()  # one product is enough
    tensor([5.0625])
    """

    n_nodes: int = 32

    def __post_init__(self) -> None:
        check_count("Arnoldi", "n_nodes", self.n_nodes)

    def __str__(self) -> str:
        return "arnoldi"

    @torch.no_grad()
    def expand(
        self, jacobian: Jacobian, v: Tensor, terms: Terms, n_traced: int, adjoint: bool
    ) -> Expanded:
        work, basis, h, size = krylov(jacobian, v, terms, n_traced + 1)
        weights = work.weights.flatten(1)  # (N, B)
        forms = _increments(h, n_traced, *_nodes(self.n_nodes))  # (N, m, B)
        value = (size.square() * torch.einsum("nb,nmb->mb", weights, forms)).mean(0)
        s = None
        if adjoint:
            coordinates = size * _adjoint(h, weights, n_traced)  # (N, m, B)
            s = torch.einsum("nmb,nmbd->mbd", coordinates, basis).view_as(work.v)
        return work.expanded(value, s)

    @torch.no_grad()
    def increments(self, jacobian: Jacobian, v: Tensor, n_terms: int, n_traced: int = 0) -> Tensor:
        """Delta_1, ..., Delta_N of each probe, (N, m, B).

        The size of the last one estimates, and does not bound, the rest after N terms: where they
        fall by a factor r a term, the rest is about r/(1 - r) of it. They end at N = d.
        """
        terms = Fixed(n_terms).draw(v.shape[1], v, None)
        _, _, h, size = krylov(jacobian, v, terms, n_traced + 1)
        return size.square() * _increments(h, n_traced, *_nodes(self.n_nodes))


class Krylov(NamedTuple):
    """V (N, m, B, d), H = V J^T V^T (N, N, m, B) and ||v|| (m, B), in the order of `work`."""

    work: Work
    basis: Tensor
    hessenberg: Tensor
    size: Tensor


def krylov(jacobian: Jacobian, v: Tensor, terms: Terms, n_least: int = 1) -> Krylov:
    """The spaces of v, J^T v, ..., (J^T)^(N-1) v, at most d of them, or `n_least` if d is less.

    q_(L+1) is the first that is not zero, and the only one if d <= L: so L + 1 are needed.

    Gram and Schmidt's classical step, twice: orthogonal to rounding. Where the space turns out to
    be invariant the next vector is zero, and with it what follows in V and H: f(H_k) e_1 does not
    depend on it. Entries of examples that have left the batch stay zero too.

    Vectors are counted by the first axis: for short ones, sums over it take a quarter of the time
    of batched products of small matrices.
    """
    dim = math.prod(v.shape[2:])
    work = longest_first(jacobian, v, terms)
    most = max(dim, n_least)
    work = work._replace(weights=work.weights[:most], n_active=work.n_active[:most])
    (m, n_examples), event, n_steps = v.shape[:2], v.shape[2:], len(work.n_active)
    flat = work.v.reshape(m, n_examples, dim)
    size = torch.linalg.vector_norm(flat, dim=-1)
    basis = flat.new_zeros(n_steps, m, n_examples, dim)
    h = flat.new_zeros(n_steps, n_steps, m, n_examples)
    threshold = BREAKDOWN * math.sqrt(dim) * torch.finfo(flat.dtype).eps

    def step(k: int, state: State) -> State:
        (jacobian,), (vector,) = state
        n = vector.shape[1]
        basis[k - 1, :, :n] = vector
        known = basis[:k, :, :n]  # (k, m, n, d)
        rest = jacobian.vjp(vector.reshape(m, n, *event)).reshape(m, n, dim)
        length = torch.linalg.vector_norm(rest, dim=-1)
        for _ in range(2):
            components = (known * rest).sum(-1)  # (k, m, n)
            rest = rest - (known * components[..., None]).sum(0)
            h[:k, k - 1, :, :n] += components
        if k < n_steps:
            left = torch.linalg.vector_norm(rest, dim=-1)
            left = torch.where((left > threshold * length) & (k < dim), left, 0.0)
            h[k, k - 1, :, :n] = left
            vector = _over(rest, left)
        return State((jacobian,), (vector,))

    work.recur(State((work.jacobian,), (_over(flat, size),)), step)
    return Krylov(work, basis, h, size)


def _over(vector: Tensor, size: Tensor) -> Tensor:
    """vector/size, zero where size is zero."""
    return torch.where(size > 0, 1 / size, 0.0)[..., None] * vector


def _increments(h: Tensor, n_traced: int, nodes: np.ndarray, of_nodes: np.ndarray) -> Tensor:
    """e_1^T (f(H_k) - f(H_(k-1))) e_1 for k = 1..N, (N, m, B); step 2 of `Arnoldi`."""
    n_terms = len(h)
    s = torch.from_numpy(nodes).to(h, non_blocking=True)[:, None, None]  # (S, 1, 1)
    start = _first_column(h, n_traced + 1)[:, None]  # (N, 1, m, B)
    first, last = (h.new_zeros(n_terms, len(nodes), *h.shape[2:]) for _ in range(2))
    values = torch.zeros_like(first)
    grown = -torch.ones_like(s)
    for k in range(n_terms):
        pivot = 1 + s * h[k, k]  # (S, m, B)
        if k > 0:
            column, below = s * h[:k, k, None], s * h[k, k - 1]  # (k, S, m, B), (S, m, B)
            grown = (first[:k] * column).sum(0)
            pivot = pivot - below * (last[:k] * column).sum(0)
            last[:k] *= -below / pivot
        last[k] = 1 / pivot
        first[: k + 1] -= grown * last[: k + 1]
        if k == n_traced:
            values[k] = (first[: k + 1] * start[: k + 1]).sum(0)
        elif k > n_traced:  # H^(L+1) e_1 ends after L + 2 entries
            n = min(k + 1, n_traced + 2)
            values[k] = -grown * (last[:n] * start[:n]).sum(0)
    weights = torch.from_numpy((-nodes) ** n_traced * of_nodes).to(h, non_blocking=True)
    return torch.einsum("s,ksmb->kmb", weights, values)


def _adjoint(h: Tensor, weights: Tensor, n_traced: int) -> Tensor:
    """sum_k w_k (f'(H_k) - f'(H_(k-1))) e_1, (N, m, B), by bordered inverses of I + H_k."""
    start = (-1) ** n_traced * _first_column(h, n_traced)
    inverse, total = torch.zeros_like(h), torch.zeros_like(start)
    for k in range(len(h)):
        column, row = h.new_ones(2, k + 1, *h.shape[2:])
        pivot = 1 + h[k, k]
        if k > 0:
            column[:k] = -(inverse[:k, :k] * h[:k, k]).sum(1)
            row[:k] = -h[k, k - 1] * inverse[k - 1, :k]
            pivot = pivot + (row[:k] * h[:k, k]).sum(0)
        row = row / pivot
        inverse[: k + 1, : k + 1] += column[:, None] * row
        if k == n_traced:
            total[: k + 1] += weights[k] * (inverse[: k + 1, : k + 1] * start[: k + 1]).sum(1)
        elif k > n_traced:
            total[: k + 1] += weights[k] * column * (row * start[: k + 1]).sum(0)
    return total


def _first_column(h: Tensor, power: int) -> Tensor:
    """H^p e_1, (N, m, B); its first k entries are those of H_k^p e_1 if k >= p."""
    column = torch.zeros_like(h[:, 0]) if len(h) else h.new_zeros(0, *h.shape[2:])
    column[:1] = 1.0
    for _ in range(power):
        column = (h * column).sum(1)
    return column


@lru_cache
def _nodes(n: int) -> tuple[np.ndarray, np.ndarray]:
    """s_i and w_i: int_0^1 g(s) ds = sum_i w_i g(s_i), Gauss-Legendre in u, s = 1 - u^5."""
    node, weight = np.polynomial.legendre.leggauss(n)
    u = (1.0 + node) / 2.0
    return 1.0 - u**5, 2.5 * weight * u**4
