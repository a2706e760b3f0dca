"""Recursions over the terms of a series, for a batch that shrinks as its examples finish."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from resflow_bench.jacobian import Jacobian
from resflow_bench.jacobian.stages import rows
from resflow_bench.logdet.expansions.expansion import Expanded
from resflow_bench.logdet.truncation import Terms

COMPACT_AT = 0.8
"""Finished examples leave the batch once a fifth of it has finished: to cut a batch takes about as
long as a small product."""


class State(NamedTuple):
    """The operators and vectors, (m, n, *event), that a recursion passes from term to term."""

    jacobians: tuple[Jacobian, ...]
    vectors: tuple[Tensor, ...]

    def first(self, n: int) -> State:
        return State(
            tuple(jacobian.select(slice(n)) for jacobian in self.jacobians),
            tuple(_dense(vector[:, :n]) for vector in self.vectors),
        )


class Work(NamedTuple):
    """A batch with the examples of most terms first.

    jacobian: J of the examples in this order.
    v: (m, B, *event). weights: (N, B, 1, ...), or (N, B, n, 1) for n blocks as one.
    n_active: for k = 1..N, the number of examples, the first ones, that term k is evaluated for.
    order: the examples' places in the batch as given, (B,), or (B, n) in an order for each block;
        None if they are in that order.
    """

    jacobian: Jacobian
    v: Tensor
    weights: Tensor
    n_active: list[int]
    order: Tensor | None

    def recur(self, state: State, step: Callable[[int, State], State]) -> None:
        """state <- step(k, state) for k = 1..N.

        `step` gets the state of the `n_active[k - 1]` examples of term k: the others are cut off
        before it.
        """
        n_state = self.v.shape[1]
        for k, n in enumerate(self.n_active, start=1):
            if n < n_state:
                state, n_state = state.first(n), n
            state = step(k, state)

    def zero(self, adjoint: bool) -> Expanded:
        """The result of zero terms."""
        v = self.v
        return Expanded(v.new_zeros(v.shape[1]), torch.zeros_like(v) if adjoint else None, 0.0)

    def forms(self, s: Tensor) -> Tensor:
        """s_j^T v_j, (m, B), or (m, B, n) for n blocks as one."""
        several = self.weights.ndim == 4 and self.weights.shape[2] > 1
        product = s * self.v
        if several or product.ndim == 2:
            return product.sum(-1) if several else product
        return product.flatten(2).sum(-1)

    def expanded(
        self, value: Tensor, adjoint: Tensor | None, forms: Tensor | None = None
    ) -> Expanded:
        """The results in the order of the batch as given; the value summed over blocks.

        `forms` are left out where the order differs, as each example then has an N of its own.
        """
        if self.order is not None:
            back = torch.argsort(self.order, dim=0)
            value = rows(value.unsqueeze(-1), back).squeeze(-1)
            adjoint = adjoint if adjoint is None else rows(adjoint, back, axis=1)
        value = value.sum(-1) if value.ndim == 2 else value
        n_products = sum(self.n_active) / max(1, self.v.shape[1])
        return Expanded(value, adjoint, n_products, None if self.order is not None else forms)


def longest_first(jacobian: Jacobian, v: Tensor, terms: Terms) -> Work:
    """The batch in the order of falling N if `jacobian` shrinks and it pays; else as it is."""
    weights = terms.broadcast(v)
    n = v.shape[1]
    n_active = [n] * len(weights)
    if jacobian.shrinks and n > 0:
        k = np.arange(len(weights)).reshape(-1, *[1] * terms.n_terms.ndim)
        needed = (terms.n_terms > k).sum(1)  # (N,), or (N, n_blocks)
        needed = needed.max(1) if needed.ndim == 2 else needed
        for place, count in enumerate(needed.tolist()):
            n = count if count <= COMPACT_AT * n else n
            n_active[place] = n
    if n == v.shape[1]:
        return Work(jacobian, v, weights, n_active, None)
    order = torch.from_numpy(np.argsort(-terms.n_terms, axis=0, kind="stable"))
    order = order.to(v.device, non_blocking=True)
    v, weights = rows(v, order, axis=1), rows(weights, order, axis=1)
    return Work(jacobian.select(order), v, weights, n_active, order)


def _dense(v: Tensor) -> Tensor:
    """A part of a vector without gaps in memory; blocks that came first still do."""
    if v.ndim == 4 and v.stride(2) > v.stride(1):
        return v.movedim(2, 0).contiguous().movedim(0, 2)
    return v.contiguous()
