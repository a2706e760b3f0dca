"""Branches of any map, without or with a Lipschitz constant; only autograd knows their Jacobian."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from resflow_bench.jacobian import Examples
from resflow_bench.layers.branches import Branch, LinearBranch
from resflow_bench.layers.given import GivenBranch
from resflow_bench.layers.orders import Order


class Uncertified(nn.Module):
    """Any g, (B, *event) -> (B, *event), with no promise: Lip(g) <= infinity is all that is known.

    x + g(x) has an inverse, and the series of its log-det converges, where Lip(g) < 1; neither is
    checked here. Estimates, samples and gradients are computed as for any branch, their products
    with J by autograd; bounds from a constant, and the `error_bound` of an inverse, are infinite.

    Args:
        g: treats the examples of a batch independently. Batch normalisation does so in evaluation
            mode alone; suites measure a copy in that mode.
    """

    order: Order = 2.0
    lipschitz: float = math.inf

    def __init__(self, g: nn.Module) -> None:
        super().__init__()
        self.g = g

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.g(x)
        return y

    def normalised(self) -> Uncertified:
        """g itself: there is nothing to normalise."""
        return self

    def select(self, examples: Examples) -> Uncertified:
        """The map of some of the examples, which is the same."""
        return self

    def update(self) -> None:
        """Nothing to do: nothing is promised."""

    def align(self) -> None:
        """Nothing to do: nothing is promised."""

    def magnitude(self, x: Tensor) -> Tensor:
        """Infinity, (B,): the rounding inside g is not known."""
        return x.new_full((len(x),), math.inf)

    def lipschitz_certified(self) -> float:
        """Infinity, for the want of a certificate."""
        return math.inf

    def lipschitz_bound(self) -> Tensor:
        """`lipschitz_certified` on the device, () float64."""
        device = next((p.device for p in self.parameters()), None)
        return torch.full((), math.inf, dtype=torch.float64, device=device)


class Bounded(Protocol):
    """A map, (B, *event) -> (B, *event), with a Lipschitz constant in the Euclidean norm.

    lipschitz: promised.
    """

    lipschitz: float

    def __call__(self, x: Tensor) -> Tensor: ...

    def lipschitz_bound(self) -> Tensor:
        """A certified bound on the constant, at the weights as they are: () float64."""

    def magnitude(self, x: Tensor) -> Tensor:
        """The sizes that rounding is relative to, (B,), see `Branch.magnitude`."""


class BoundedMap(nn.Module):
    """A g that knows its own Lipschitz constant; products with J are computed by autograd.

    From `lipschitz` < 1 on x + g(x) has an inverse, whose `error_bound` is finite if the certified
    constant is below 1 too.

    Args:
        g: a module with the members of `Bounded`. What it holds of this package's branches is
            updated with the flow.
    """

    order: Order = 2.0

    def __init__(self, g: Bounded) -> None:
        super().__init__()
        self.g = g
        self.lipschitz = g.lipschitz

    def forward(self, x: Tensor) -> Tensor:
        return self.g(x)

    def normalised(self) -> BoundedMap:
        """g itself: there is nothing to normalise."""
        return self

    def select(self, examples: Examples) -> BoundedMap:
        """The map of some of the examples, which is the same."""
        return self

    def update(self) -> None:
        """Nothing to do beside the update of the branches inside."""

    def align(self) -> None:
        """Nothing to do beside the alignment of the branches inside."""

    def magnitude(self, x: Tensor) -> Tensor:
        """That of g."""
        return self.g.magnitude(x)

    def lipschitz_certified(self) -> float:
        """`lipschitz_bound` as a number."""
        return float(self.lipschitz_bound())

    def lipschitz_bound(self) -> Tensor:
        """That of g."""
        return self.g.lipschitz_bound()


Opaque = Uncertified | BoundedMap
"""The branches that have no Jacobian of their own."""

AnyBranch = Branch | LinearBranch | GivenBranch | Opaque
"""The g of a residual block."""
