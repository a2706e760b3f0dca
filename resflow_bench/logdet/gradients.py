"""Gradients of the estimated log-determinant, which differ in variance and in memory.

A new gradient is a new class with the verb `estimate`, given to `LogDetEstimator` as `gradient`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from resflow_bench.jacobian import Jacobian
from resflow_bench.jacobian.operator import inner, recomputed
from resflow_bench.logdet.expansions.expansion import Expansion, series_sign
from resflow_bench.logdet.expansions.taylor import Taylor
from resflow_bench.logdet.truncation import Terms


class Attached(NamedTuple):
    """A differentiable value, (B,), nats, and its vector-Jacobian products a probe.

    forms: the expansion's, (m, B).
    """

    value: Tensor
    n_products: float
    forms: Tensor | None = None


class Gradient(Protocol):
    """A derivative of the estimate. The value is the expansion's, to the last bit."""

    def estimate(
        self, expansion: Expansion, jacobian: Jacobian, v: Tensor, terms: Terms, n_traced: int
    ) -> Attached:
        """The expansion's value, differentiable.

        Args: those of `Expansion.expand`. J's graph is attached to x and to g's parameters; v and
            the terms are constant.
        """


@dataclass(frozen=True)
class Neumann:
    """(1/m) sum_j < s_j^T dJ , v_j > + d trace,    s_j the expansion's adjoint, held constant.

    For Taylor's expansion s_j^T = sum_k (-1)^(k-1) w_k v_j^T J^(k-1), whose mean gives
    tr((I + J)^-1 dJ) = d ln|det(I + J)| if E w_k = 1. It is *not* the derivative of the estimate:
    of the k + 1 places of the probe in tr(J^k dJ), all equal in the mean, it takes one. `trace` is
    what a control variate has taken off s_j, exactly (`Expanded`); without one it is zero.

    Properties: unbiased if the truncation is; the weight of J^(k-1) is that of term k, whose
    survival P(N >= k) it therefore shares. The chain of N products records no graph; the last
    product is evaluated in the backward pass, for which only s is stored. Memory: s, v and g's
    linearisation, whatever N. Cost: N + 2 products a probe and, for the gradient in J's matrices,
    about one more. For a J of matrices and slopes the two are s^T J and J v; for any other J
    s^T J twice, and its backward pass by autograd.

    The derivative of the sum is not a second derivative of the log-det, since s_j depends on x too:
    under `create_graph=True` the backward pass raises a ValueError. `Series` has that derivative.

    Source: Chen et al. (2019), "Residual Flows for Invertible Generative Modeling", Theorem 2.

    >>> from resflow_bench.logdet import Fixed, LogDetEstimator, Rademacher
    >>> a = torch.tensor(0.5, requires_grad=True)
    >>> estimator = LogDetEstimator(Rademacher(), Fixed(40), gradient=Neumann())
    >>> estimator(lambda x: a * x, torch.zeros(1, 3)).value.backward()
    >>> round(a.grad.item(), 4)  # d/da 3 ln(1 + a) = 3 / 1.5
    2.0
    """

    def __str__(self) -> str:
        return "neumann"

    def estimate(
        self, expansion: Expansion, jacobian: Jacobian, v: Tensor, terms: Terms, n_traced: int
    ) -> Attached:
        expanded = expansion.expand(jacobian, v, terms, n_traced, adjoint=True)
        value, adjoint, n_products, forms, trace = expanded
        assert adjoint is not None  # as requested
        surrogate = jacobian.bilinear_gradient(adjoint, v)
        if trace is not None:
            surrogate = surrogate + (trace - trace.detach())
        if surrogate.requires_grad:
            surrogate.register_hook(_refuse_a_graph)
        return Attached(value + surrogate, n_products + 2, forms)


def _refuse_a_graph(_: Tensor) -> None:
    """Raise a ValueError in a backward pass that records a graph."""
    if torch.is_grad_enabled():
        raise ValueError(
            "the gradient `Neumann` has no second derivatives: that of its sum is not the "
            "log-det's. Leave out `create_graph=True`, or use `gradient=Series()`, "
            "`Determinant()` or `Exact()`."
        )


@dataclass(frozen=True)
class Series:
    """(1/m) sum_j sum_k w_k (-1)^(k+1)/k d(v_j^T J^k v_j): the derivative of the estimate itself.

    Since d(v^T J^k v) = sum_{i<k} v^T J^i dJ J^(k-1-i) v, it averages over the k places of the
    probe of which `Neumann` takes one; their variances differ by a few percent on small branches.

    Properties: unbiased if the truncation is. Memory: apart from the weights, (N, B), the memory
        between the passes does not depend on N, and the backward pass adds 2 sqrt(N) vectors
        shaped like v and the graph of one product: it evaluates the chain again in sqrt(N)
        segments, and each of them once more term by term. Cost: 5 N products a probe, less one a
        segment (N for the value, N for the graph, the rest in a backward pass; `n_products` counts
        them all), and the backward passes of N products.

    Source: Chen et al. (2019), whose "basic" gradient this is, at the memory of their Neumann
        gradient; segments after Chen, Xu, Zhang and Guestrin (2016), "Training Deep Nets with
        Sublinear Memory Cost".

    >>> from resflow_bench.logdet import Fixed, LogDetEstimator, Rademacher
    >>> a = torch.tensor(0.5, requires_grad=True)
    >>> estimator = LogDetEstimator(Rademacher(), Fixed(40), gradient=Series())
    >>> estimator(lambda x: a * x, torch.zeros(1, 3)).value.backward()
    >>> round(a.grad.item(), 4)
    2.0
    """

    def __str__(self) -> str:
        return "series"

    def estimate(
        self, expansion: Expansion, jacobian: Jacobian, v: Tensor, terms: Terms, n_traced: int
    ) -> Attached:
        if not isinstance(expansion, Taylor):
            raise TypeError(
                f"the gradient `Series` is that of Taylor's series; got {expansion}. Use "
                "`gradient=Neumann()`, which differentiates any expansion."
            )
        n_terms = len(terms.weights)
        if n_terms <= n_traced:  # zero, but with a graph
            zero = inner(jacobian.vjp(torch.zeros_like(v)), v)
            return Attached(zero, 1.0)
        expanded = expansion.expand(jacobian, v, terms, n_traced, adjoint=False)
        value, _, n_products, forms = expanded[:4]
        weights = terms.broadcast(v)
        length = math.isqrt(n_terms - 1) + 1  # ceil(sqrt(N))
        starts = range(n_terms, 0, -length)

        # Horner's rule, so that a single vector goes from term to term:
        # r <- (r + c_k v)^T J for k = N..1, from r = 0, ends as (sum_k c_k v^T J^k)^T.
        def term(r: Tensor, k: int) -> Tensor:
            if k > n_traced:
                r = r.addcmul(v, weights[k - 1], value=series_sign(k) / k)
            return jacobian.vjp(r)

        def segment(r: Tensor, last: int) -> Tensor:
            for k in range(last, max(last - length, 0), -1):
                r = recomputed(term, r, k)
            return r

        def chain(r: Tensor) -> Tensor:
            for last in starts:
                r = recomputed(segment, r, last)
            return inner(r, v)

        surrogate = recomputed(chain, torch.zeros_like(v))
        n_products += 4 * n_terms - len(starts)
        return Attached(value + (surrogate - surrogate.detach()), n_products, forms)
