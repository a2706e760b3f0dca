"""What a layer of a flow is: an invertible map, its log-det and its certified inverse."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from resflow_bench.fixed_point import Outcome, Solution
from resflow_bench.flows.residual import Inversion
from resflow_bench.logdet.estimator import Estimator


class Bijection(Protocol):
    """A layer of a flow: x -> z with its log-det, and z -> x with its error bound."""

    def __call__(self, x: Tensor) -> Tensor:
        """z, (B, *event)."""
        ...

    def forward_and_log_det(
        self, x: Tensor, estimator: Estimator, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """(z, ln|det dz/dx|): (B, *event), (B,) nats."""
        ...

    def inverse(
        self, z: Tensor, inversion: Inversion, error: Tensor | None = None, certify: bool = True
    ) -> Solution:
        """x, and a bound on its distance from the x of a z that is off by at most `error`.

        Distances are 2-norms over the event, (B,) in float64; no graph is recorded.
        """
        ...


def closed_form(x: Tensor, error_bound: Tensor | None) -> Solution:
    """The `Solution` of a bijection whose inverse is a formula: no steps, no residual.

    Args:
        x: (B, *event).
        error_bound: (B,), or None if it was not asked for.
    """
    zeros = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    return Solution(
        value=x,
        residual=zeros,
        n_steps=zeros.long(),
        outcome=torch.full_like(zeros, Outcome.CONVERGED, dtype=torch.int8),
        error_bound=error_bound,
    )


def carried(error: Tensor | None, like: Tensor) -> Tensor:
    """The error that a layer is handed, (B,) float64: zero where there is none."""
    if error is None:
        return torch.zeros(len(like), dtype=torch.float64, device=like.device)
    return error
