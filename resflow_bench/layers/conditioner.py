"""The network that turns a context into shifts inside a branch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from resflow_bench.arguments import check_batch, check_count
from resflow_bench.layers.linear import drawn


class Conditioner(nn.Module):
    """s(c) = V silu(U c + a), (B, n_context) -> (B, n_out): the shifts of all layers of a branch.

    A shift does not depend on x, so it changes no Lipschitz constant in x, whatever U and V are:
    they are free of any bound. V starts at 0, and a new flow ignores its context.

    Args:
        n_context: the size of c.
        n_out: the sum of the layers' outputs.
        width: of the hidden layer.
        generator: draws U and a, both uniform in +-1/sqrt(n_context); None as in `Linear`.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(
        self,
        n_context: int,
        n_out: int,
        width: int = 64,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.n_context = check_count("Conditioner", "n_context", n_context)
        self.n_out = check_count("Conditioner", "n_out", n_out)
        self.width = check_count("Conditioner", "width", width)
        self.weight, self.bias = drawn(
            (width, n_context), n_context, bias=True, generator=generator
        )
        self.out = nn.Parameter(torch.zeros(n_out, width, device=self.weight.device))

    def forward(self, context: Tensor) -> Tensor:
        check_batch("Conditioner", context, (self.n_context,), name="context")
        hidden = functional.linear(context.to(self.weight.dtype), self.weight, self.bias)
        return functional.linear(functional.silu(hidden), self.out)

    def extra_repr(self) -> str:
        return f"{self.n_context}, {self.n_out}, width={self.width}"
