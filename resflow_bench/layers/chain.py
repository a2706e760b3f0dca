"""J_g(x) of a branch as a linear map: v^T J, J v, parts of the batch, other types, exact traces."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from resflow_bench.layers.pulls import Examples, Pull
from resflow_bench.layers.traces import traces


class Chain:
    """J = S_L ... S_1 at a batch of points, from the pulls of its stages.

    Args:
        pulls: of S_1 ... S_L, in the order in which x meets the stages.
    """

    def __init__(self, pulls: Sequence[Pull]) -> None:
        self.pulls = tuple(pulls)

    def __call__(self, v: Tensor) -> Tensor:
        """v^T J, (..., B, *event) -> (..., B, *event), see `Branch.linearise`."""
        for pull in reversed(self.pulls):
            v = pull(v)
        return v

    def push(self, v: Tensor) -> Tensor:
        """J v, (..., B, *event) -> (..., B, *event)."""
        for pull in self.pulls:
            v = pull.push(v)
        return v

    def select(self, examples: Examples) -> Chain:
        """J at some of the points."""
        return Chain([pull.select(examples) for pull in self.pulls])

    def to(self, dtype: torch.dtype) -> Chain:
        """J with its stages rounded to another type."""
        return Chain([pull.to(dtype) for pull in self.pulls])

    def traces(self, n: int) -> list[Tensor]:
        """tr J, ..., tr J^n of each example, (B,) or (), see `layers.traces.traces`."""
        return traces(self.pulls, n)
