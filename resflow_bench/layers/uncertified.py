"""A branch of the user's own: any map, of which no Lipschitz constant is certified."""

from __future__ import annotations

import math

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


AnyBranch = Branch | LinearBranch | GivenBranch | Uncertified
"""The g of a residual block."""
