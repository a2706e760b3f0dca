"""g(x) and J_g(x) of any g: by autograd, or from a branch's cached derivatives."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from resflow_bench.jacobian.operator import FunctionJacobian, Jacobian, Linearisation, Map


@runtime_checkable
class Linearisable(Protocol):
    """A g that computes its own Jacobian."""

    def linearise(self, x: Tensor) -> tuple[Tensor, Jacobian]:
        """g(x), (B, *event), and J_g(x)."""


def linearise(g: Map, x: Tensor) -> Linearisation:
    """`cached(g, x)` if g has a `linearise` of its own, else `autograd(g, x)`."""
    return _own(g, x) or autograd(g, x)


def cached(g: Map, x: Tensor) -> Linearisation:
    """g's own `linearise`: weights normalised once, activation derivatives once per point.

    Raises:
        TypeError: if g has no `linearise`.
    """
    own = _own(g, x)
    if own is None:
        raise TypeError(
            f"cached products need a g with a `linearise` method; got {type(g).__name__}. "
            "Use `autograd`, which takes any g."
        )
    return own


def autograd(g: Map, x: Tensor) -> Linearisation:
    """v^T J_g(x) by reverse-mode differentiation of g, all m probes in one vectorised pass.

    A g that hides its dependence on x from autograd (`detach`, `no_grad` inside it) counts as
    constant: nothing distinguishes the two.

    Raises:
        ValueError: if g(x) is not shaped like x.
    """
    differentiate = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        # A fresh node in the graph, so that only g's dependence on its argument counts, whatever x
        # is; and a copy for g, which may work in place.
        attached = differentiate and x.requires_grad
        source = x.view_as(x) if attached else x.detach().clone().requires_grad_()
        value = same_shape(g(source.clone()), x)

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

    return Linearisation(value if differentiate else value.detach(), FunctionJacobian(vjp))


def _own(g: object, x: Tensor) -> Linearisation | None:
    if not isinstance(g, Linearisable):
        return None
    value, jacobian = g.linearise(x)
    return Linearisation(same_shape(value, x), jacobian)


def same_shape(value: Any, x: Tensor) -> Tensor:
    """`value`, which is g(x).

    Raises:
        TypeError: it is no tensor.
        ValueError: it is not shaped like x.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"g must return a tensor; got {type(value).__name__}.")
    if value.shape != x.shape:
        raise ValueError(
            f"g must map (B, *event) to the same shape; got {tuple(value.shape)} from "
            f"{tuple(x.shape)}. A residual branch keeps the shape of its input."
        )
    return value
