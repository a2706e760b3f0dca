"""The interface of a series in J whose terms a probe evaluates, and the sums it accumulates."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from resflow_bench.jacobian import DenseJacobian, Jacobian
from resflow_bench.jacobian.circulant import Circulant
from resflow_bench.jacobian.weighted_trace import weighted_trace
from resflow_bench.logdet.truncation import Terms


class Expanded(NamedTuple):
    """A weighted sum `value`, (B,), nats, constant, of `n_products` a probe, per example.

    adjoint: s_j, (m, B, *event), constant, for which d value = (1/m) sum_j s_j^T dJ v_j + d trace
        in the mean over probes; None unless requested.
    forms: the sum of each probe, (m, B), of which `value` is the mean; None where the expansion
        does not tell, or each example has another number of terms.
    trace: (B,), differentiable, of which the gradient alone counts; None if it is zero.
    """

    value: Tensor
    adjoint: Tensor | None
    n_products: float
    forms: Tensor | None = None
    trace: Tensor | None = None

    def controlled(self, t: DenseJacobian | Circulant, jacobian: Jacobian, v: Tensor) -> Expanded:
        """The same mean from s_j - T^T v_j and tr(T J), where `weighted_trace` has that trace.

        E[v^T T dJ v] = tr(T dJ) with any probe, for a constant T that does not depend on v.
        """
        with torch.enable_grad():
            trace = weighted_trace(t, jacobian)
        if self.adjoint is None or trace is None:
            return self
        return self._replace(adjoint=self.adjoint - t.vjp(v), trace=trace)


class Expansion(Protocol):
    """sum_k w_k Delta_k, where Delta_1 + Delta_2 + ... = (1/m) sum_j v_j^T log(I + J) v_j.

    A new expansion is a new class with this verb, given to `LogDetEstimator` as `expansion`.
    """

    def expand(
        self, jacobian: Jacobian, v: Tensor, terms: Terms, n_traced: int, adjoint: bool
    ) -> Expanded:
        """The weighted sum, without the parts of degree 1 to `n_traced` in J.

        Args:
            v: (m, B, *event).
            terms: w_k and N.
            n_traced: number of powers of J left out, because their traces are exact.
            adjoint: whether to compute it.
        """


@runtime_checkable
class Incremental(Protocol):
    """An expansion that returns its increments term by term, as a pilot run needs them."""

    def increments(self, jacobian: Jacobian, v: Tensor, n_terms: int, n_traced: int = 0) -> Tensor:
        """Delta_1, ..., Delta_N of each probe, (N, m, B), zero up to `n_traced`; in v's dtype."""


class WeightedSum:
    """sum_{k>L} w_k c_k u_k, (m, B, *event), of vectors u_k of the first n <= B examples.

    L is `n_traced`, and w_k is `weights[k - 1]`, (B, 1, ...).
    """

    def __init__(self, weights: Tensor, n_traced: int) -> None:
        self.weights = weights
        self.n_traced = n_traced
        self._total: Tensor | None = None

    def add(self, k: int, c: float, u: Tensor) -> None:
        """Add term k, with u (m, n, *event)."""
        if self._total is None:
            whole = u.shape[1] == self.weights.shape[1]
            shape = (len(u), self.weights.shape[1], *u.shape[2:])
            # As u lies in memory, where the two are of one size.
            zeros = torch.zeros_like(u) if whole else self.weights.new_zeros(shape)
            self._total = zeros.to(self.weights.dtype)
        if k > self.n_traced:
            n = u.shape[1]
            self._total[:, :n].addcmul_(u, self.weights[k - 1, :n], value=c)

    def over(self, scale: float) -> Tensor:
        """The sum divided by `scale`, in place."""
        assert self._total is not None  # of at least one term
        return self._total.div_(scale)


def series_sign(k: int) -> float:
    """(-1)^(k+1)."""
    return 1.0 if k % 2 else -1.0


def series_signs(weights: Tensor, n_traced: int) -> Tensor:
    """(-1)^(k+1) of the terms k = 1, 2, ... of these weights, zero up to `n_traced`: (n, 1...).

    Made where the weights are, as a copy from the host would have it wait.
    """
    k = torch.arange(1, len(weights) + 1, dtype=weights.dtype, device=weights.device)
    signs = torch.where(k > n_traced, 2 * (k % 2) - 1, 0)
    return signs.view(-1, *[1] * (weights.ndim - 1))
