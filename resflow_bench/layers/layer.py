"""What a residual branch is made of, besides activations: maps with a promised constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from resflow_bench.jacobian import Stage
from resflow_bench.layers.orders import Order


class Certificate(NamedTuple):
    """An upper bound, by theorem, on the Lipschitz constant of the map that `forward` applies.

    norm: the bound, computed in float64.
    method: how it was had, for example "svd".
    """

    norm: float
    method: str


@runtime_checkable
class Layer(Protocol):
    """A map whose Lipschitz constant ||.||_domain -> ||.||_codomain is at most `coefficient`.

    The promise is kept right after `update` or `align`; between an optimiser step and the next
    update it is not.
    """

    coefficient: float
    n_in: int
    n_out: int
    domain: Order
    codomain: Order

    def normalised(self) -> Callable[[Tensor], Tensor]:
        """The map with its weights normalised once, for many evaluations."""
        ...

    def linearise(self, x: Tensor) -> tuple[Tensor, Stage]:
        """y, and J there: v^T J is (..., B, *event_out) -> (..., B, *event_in)."""
        ...

    def update(self) -> None:
        """Follow the weights after an optimiser step: afterwards the promise is kept."""
        ...

    def align(self) -> None:
        """Follow the weights exactly, at the cost of a factorisation."""
        ...

    def certificate(self) -> Certificate:
        """The tightest bound that is affordable."""
        ...
