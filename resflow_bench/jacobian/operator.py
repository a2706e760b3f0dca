"""The Jacobian J of a map at a batch of points, as a linear operator on each example.

A new kind of J is a class with `vjp`; what else it can do it overrides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, ParamSpec, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

P = ParamSpec("P")
R = TypeVar("R")

Examples = slice | Tensor
"""A subset of a batch: a slice, or indices (n,); in the order of each block, indices (B, n_blocks)
(see `jacobian.blocks`)."""

Map = Callable[[Tensor], Tensor]
"""A g: (B, *event) -> (B, *event) that treats the examples of a batch independently."""


@runtime_checkable
class PerExampleMap(Protocol):
    """A `Map` with numbers of its own for each example of a batch, a context for instance."""

    def __call__(self, x: Tensor, /) -> Tensor: ...

    def select(self, examples: Examples) -> Map:
        """The map of some of the examples."""


VectorMap = Callable[[Tensor], Tensor]
"""v -> A v or v^T A for a linear A of each example: (m, B, *event) -> (m, B, *event)."""


class Jacobian(Protocol):
    """J, or the Jacobian of one stage of a map, at a batch of points.

    Vectors are (m, B, *event), one for each of m probes and B examples; the stages of a branch and
    their chain accept any leading axes in place of m. Only `vjp` has no default. `push`, `select`,
    `to`, `mean` and `traces` are not possible for every J: by default they raise a ValueError that
    names the operator and the remedy.
    """

    def vjp(self, v: Tensor) -> Tensor:
        """v^T J, (m, B, *event_out) -> (m, B, *event_in).

        Records a graph, in x and in the parameters, if and only if gradients are enabled during
        the call. If they are disabled, a stage of slopes may overwrite its argument; all other
        operators return a new tensor. May be called any number of times.
        """

    @property
    def shrinks(self) -> bool:
        """True if `select` is supported and products with fewer examples cost less."""
        return False

    def vjp_of_each(self, v: Tensor, batch_size: int) -> Tensor:
        """v^T J_b for every example b of the same v, (m, 1, *event) -> (m, B, *event).

        An operator that is the same at all points, or at one point only, returns (m, 1, *event).
        """
        return self.vjp(v.expand(-1, batch_size, *v.shape[2:]).contiguous())

    def reach(self) -> tuple[int, int] | None:
        """The rows and columns of a grid (C, H, W) within which an output depends on inputs.

        None if an output may depend on all.
        """
        return None

    def cycle(self) -> tuple[Jacobian, Jacobian, VectorMap]:
        """(enter, loop, leave) with v^T J^k = leave(v^T enter loop^(k-1)): the cheapest form."""
        return self, self, unchanged

    def packed(self, n_rows: int) -> Jacobian:
        """The operator, prepared for many products of `n_rows` vectors each, without a graph."""
        return self

    def bilinear_gradient(self, s: Tensor, v: Tensor) -> Tensor:
        """Zero, (B,), with the gradient of (1/m) sum_j s_j^T J v_j in x and the parameters.

        s and v, (m, B, *event), are constant. By default the form is computed twice, the second
        time in the backward pass, so that the graph keeps s alone.
        """
        form = recomputed(lambda s: inner(self.vjp(s), v), s)
        return form - form.detach()

    def push(self, v: Tensor) -> Tensor:
        """J v, (m, B, *event_in) -> (m, B, *event_out), a new tensor."""
        raise self._refusal("`push`, J v", f"use {REMEDY}")

    def select(self, examples: Examples) -> Jacobian:
        """J at some of the points."""
        raise self._refusal("`select`, a part of the batch", f"use {REMEDY}")

    def to(self, dtype: torch.dtype) -> Jacobian:
        """J with its numbers rounded to another dtype."""
        raise self._refusal(f"`to`, a copy in {dtype}", f"set `tail=None`, or use {REMEDY}")

    def mean(self) -> Jacobian:
        """J at one point, with the batch's mean slopes in place of each example's."""
        raise self._refusal("`mean`, J at the mean", f"leave out `Controlled`, or use {REMEDY}")

    def traces(self, n: int) -> list[Tensor]:
        """tr J, ..., tr J^n: n tensors, (B,), or () where J is the same at all points."""
        raise self._refusal(f"`traces`, n = {n}", f"set `n_traced=0`, or use {REMEDY}")

    def _refusal(self, requested: str, remedy: str) -> ValueError:
        return refusal(type(self).__name__, "products v^T J alone", requested, remedy)


REMEDY = "`products=dense`, or a branch with its own `linearise` (`products=cached`)"


def refusal(operator: str, supported: str, requested: str, remedy: str) -> ValueError:
    """The sentence in which an operator says what it supports, what was requested, and a remedy."""
    return ValueError(f"{operator} supports {supported}; got {requested}: {remedy}.")


@dataclass(frozen=True, eq=False)
class FunctionJacobian(Jacobian):
    """J given by a function v -> v^T J, (m, B, *event) -> (m, B, *event).

    >>> FunctionJacobian(lambda v: 0.5 * v).vjp(torch.ones(1, 1, 2))
    tensor([[[0.5000, 0.5000]]])
    """

    function: VectorMap

    def vjp(self, v: Tensor) -> Tensor:
        return self.function(v)


class Linearisation(NamedTuple):
    """g near x: its value g(x), (B, *event), and its Jacobian there."""

    value: Tensor
    jacobian: Jacobian


Products = Callable[[Map, Tensor], Linearisation]
"""(g, x) -> g(x) and J: a new way to form products is a new function with this signature, given to
`LogDetEstimator` as `products`."""


def inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> over the event, averaged over probes: (m, B, *event) x2 -> (B,)."""
    product = a * b
    return (product.flatten(2).sum(-1) if product.ndim > 2 else product).mean(0)


def recomputed(function: Callable[P, R], *arguments: P.args, **_: P.kwargs) -> R:
    """function(*arguments), whose graph keeps the arguments alone: the backward pass evaluates it
    again.

    Nothing in it may be random: no state of a generator is saved.
    """
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def unchanged(t: Tensor) -> Tensor:
    """The identity."""
    return t
