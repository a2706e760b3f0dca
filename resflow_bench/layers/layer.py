"""The contract of a layer: a map with a promised Lipschitz constant."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from resflow_bench.jacobian import Stage
from resflow_bench.layers.norms.norm import Certificate
from resflow_bench.layers.orders import Order


class Normalised(Protocol):
    """A map with its weights normalised once, for many evaluations at the same parameters."""

    def __call__(self, x: Tensor) -> Tensor:
        """y, (B, *event_in) -> (B, *event_out)."""

    def linearise(self, x: Tensor) -> tuple[Tensor, Stage]:
        """y and its Jacobian: v -> v^T J, (..., B, *event_out) -> (..., B, *event_in)."""


@runtime_checkable
class Layer(Protocol):
    """A map whose Lipschitz constant ||.||_domain -> ||.||_codomain is at most `coefficient`.

    The promise holds right after `update` or `align`; between an optimiser step and the next update
    it may be broken.
    """

    coefficient: float
    n_in: int
    n_out: int
    domain: Order
    codomain: Order

    def normalised(self) -> Normalised:
        """The map at the present weights, differentiable in them."""

    def update(self) -> None:
        """Follow the weights after an optimiser step: afterwards the promise is kept."""

    def align(self) -> None:
        """Follow the weights exactly, at the cost of a factorisation."""

    def certificate(self) -> Certificate:
        """The tightest bound that is affordable."""
