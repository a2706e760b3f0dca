"""J_g(x) of a branch as a linear map: v^T J, J v, parts of the batch, other types, exact traces."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from resflow_bench.jacobian.packed import packed
from resflow_bench.jacobian.stages import ByMatrix, Examples, Pull
from resflow_bench.jacobian.traces import traces

WORTHWHILE = 0.9
"""Share of the numbers below which two matrices in one save more than their product costs."""


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

    def mean(self) -> Chain:
        """J at the batch's mean slopes, as of one point."""
        return Chain([pull.mean() for pull in self.pulls])

    def cycle(self) -> tuple[Chain, Chain, Pull]:
        """(enter, loop, leave) with v^T J^k = leave(loop^(k-1)(enter(v))).

        J = W_L ... W_1 between hidden layers: loop is D_1 ... D_(L-1) (W_1 W_L), in which the two
        outer matrices have become one. That has h_1 h_(L-1) products in place of d (h_1 + h_(L-1)),
        fewer if the hidden layers are narrower than 2 d; else, and where the outer maps are no
        matrices, loop and enter are J itself.
        """
        first, *inner, last = self.pulls if len(self.pulls) > 2 else (None, None)
        if isinstance(first, ByMatrix) and isinstance(last, ByMatrix):
            (h_first, d), h_last = first.weight.shape, last.weight.shape[1]
            if h_first * h_last < WORTHWHILE * d * (h_first + h_last):
                # Transposed, as `packed` wants it.
                meeting = ByMatrix((last.weight.mT @ first.weight.mT).mT)
                return Chain([*inner, last]), Chain([*inner, meeting]), first
        return self, self, Chain([])

    def packed(self, n_rows: int) -> Chain:
        """J for many products of n_rows vectors each, without a graph."""
        return Chain([packed(pull, n_rows) for pull in self.pulls])

    def traces(self, n: int) -> list[Tensor]:
        """tr J, ..., tr J^n of each example, (B,) or (), see `layers.traces.traces`."""
        return traces(self.pulls, n)
