"""v^T J_g(x) for any g: by autograd, by a branch's cached derivatives, or from a dense J.

Each of `autograd`, `cached` and `dense` maps (g, x) to a `Linearisation`; they agree to rounding,
and `linearise` takes the fastest that g admits. A new way to form products is a new function with
this signature, given to `LogDetEstimator` as `products`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]
"""A g: (B, *event) -> (B, *event) that treats the examples of a batch independently."""

CHUNK_NUMBERS = 2**24
"""How many numbers one batched product may hold: 128 MiB in float64, well inside a cache-less
laptop's memory, and far more than a call needs to hide its overhead."""


Vjp = Callable[[Tensor], Tensor]
"""v -> v^T J, (m, B, *event) to the same; it records a graph iff gradients are enabled.

It may also offer, as `layers.Chain` does, `select` (J at some of the points), `to` (J in another
type), `mean` (J at the mean slopes), `push` (J v) and `traces` (tr J, tr J^2, ...); who needs one
of these says so.
"""


class Linearisation(NamedTuple):
    """g near x: its value, and v -> v^T J_g(x).

    `vjp` takes and returns (m, B, *event). It records the autograd graph (in x and in g's
    parameters) if and only if gradients are enabled when it is called, and may be called any
    number of times.
    """

    value: Tensor
    vjp: Vjp


Products = Callable[[Map, Tensor], Linearisation]


def linearise(g: Map, x: Tensor) -> Linearisation:
    """`cached(g, x)` if g has a `linearise` of its own, else `autograd(g, x)`."""
    return cached(g, x) if hasattr(g, "linearise") else autograd(g, x)


def cached(g: Map, x: Tensor) -> Linearisation:
    """g's own `linearise`: weights normalised once, activation derivatives once per point.

    Raises:
        TypeError: if g has no `linearise`.
    """
    own = getattr(g, "linearise", None)
    if own is None:
        raise TypeError(
            f"cached products need a g with a `linearise` method; got {type(g).__name__}. "
            "Use `autograd`, which takes any g."
        )
    value, vjp = own(x)
    return Linearisation(_same_shape(value, x), vjp)


def autograd(g: Map, x: Tensor) -> Linearisation:
    """v^T J_g(x) by reverse-mode differentiation of g, all m probes in one vectorised pass.

    A g that hides its dependence on x from autograd (`detach`, `no_grad` inside it) counts as
    constant: nothing tells the two apart.

    Raises:
        ValueError: if g(x) is not shaped like x.
    """
    differentiate = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        # A fresh node in the graph, so that only g's dependence on its argument counts, whatever x
        # is; and a copy for g, which may work in place.
        keep = differentiate and x.requires_grad
        source = x.view_as(x) if keep else x.detach().clone().requires_grad_()
        value = _same_shape(g(source.clone()), x)

    def vjp(v: Tensor) -> Tensor:
        if not value.requires_grad:  # g is constant
            return torch.zeros_like(v)
        one, create_graph = v.shape[0] == 1, torch.is_grad_enabled()
        with torch.inference_mode(False):
            (product,) = torch.autograd.grad(
                value,
                source,
                v[0] if one else v,
                is_grads_batched=not one,
                retain_graph=True,
                create_graph=create_graph,
                allow_unused=True,
            )
        if product is None:  # of g's value, nothing depends on x
            return torch.zeros_like(v)  # type: ignore[unreachable]
        return product.unsqueeze(0) if one else product

    return Linearisation(value if differentiate else value.detach(), vjp)


def dense(g: Map, x: Tensor) -> Linearisation:
    """v^T J with J formed once: d products, then matrix products of O(d^2) per probe and term."""
    value, vjp = linearise(g, x)
    return Linearisation(value, DenseJacobian(dense_jacobian(vjp, x)))


@dataclass(frozen=True, eq=False)
class DenseJacobian:
    """v -> v^T J with J (B, d, d) at hand; see `Vjp` for what else it does."""

    matrix: Tensor

    def __call__(self, v: Tensor) -> Tensor:
        return self._flat("mbi,bij->mbj", v)

    def push(self, v: Tensor) -> Tensor:
        """J v."""
        return self._flat("mbj,bij->mbi", v)

    def select(self, examples: slice | Tensor) -> DenseJacobian:
        """J at some of the points."""
        return DenseJacobian(self.matrix[examples])

    def to(self, dtype: torch.dtype) -> DenseJacobian:
        """J in another type."""
        return DenseJacobian(self.matrix.to(dtype))

    def mean(self) -> DenseJacobian:
        """The batch's mean J, as of one point."""
        return DenseJacobian(self.matrix.mean(0, keepdim=True))

    def traces(self, n: int) -> list[Tensor]:
        """tr J, ..., tr J^n, (B,) each."""
        power, found = self.matrix, [self.matrix.diagonal(dim1=1, dim2=2).sum(1)]
        for _ in range(n - 1):
            found.append((power * self.matrix.mT).sum((1, 2)))  # tr(J^k J)
            power = power @ self.matrix
        return found

    def _flat(self, formula: str, v: Tensor) -> Tensor:
        flat = v.reshape(*v.shape[:2], self.matrix.shape[-1])
        return torch.einsum(formula, flat, self.matrix).view_as(v)


def dense_jacobian(vjp: Vjp, x: Tensor) -> Tensor:
    """J, (B, d, d), row i from v = e_i; in chunks of rows that bound the memory of one product.

    Products that meet the linear maps one by one (those with `push`) are given each e_i once for
    all examples: up to the first slopes that is all there is to compute.
    """
    batch_size, dim = x.shape[0], math.prod(x.shape[1:])
    rows = max(1, CHUNK_NUMBERS // max(1, batch_size * dim))
    identity = torch.eye(dim, dtype=x.dtype, device=x.device).view(dim, 1, *x.shape[1:])
    each = not hasattr(vjp, "push")
    chunks = [
        vjp(basis.expand(-1, *x.shape).contiguous() if each else basis)
        .reshape(len(basis), -1, dim)
        .expand(-1, batch_size, -1)
        for basis in identity.split(rows)
    ]
    return torch.cat(chunks).transpose(0, 1)  # (B, d, d)


def _same_shape(value: Tensor, x: Tensor) -> Tensor:
    if value.shape != x.shape:
        raise ValueError(
            f"g must map (B, *event) to the same shape; got {tuple(value.shape)} from "
            f"{tuple(x.shape)}. A residual branch keeps the shape of its input."
        )
    return value
