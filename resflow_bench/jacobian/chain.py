"""The Jacobian of a branch as the product of those of its stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from resflow_bench.jacobian.bilinear import bilinear_gradient
from resflow_bench.jacobian.matrix_stage import MatrixStage
from resflow_bench.jacobian.operator import Jacobian, VectorMap, refusal
from resflow_bench.jacobian.stages import SlopeStage, Stage, TensorMap
from resflow_bench.jacobian.traces import exact_traces, factors_of

WORTHWHILE = 0.9
"""The share of the numbers below which replacing two matrices by their product saves more than the
product costs."""


@dataclass(frozen=True, eq=False)
class JacobianChain(Stage):
    """J = S_L ... S_1 at a batch of points.

    stages: S_1, ..., S_L, in the order in which x meets them.
    """

    stages: Sequence[Stage]

    def vjp(self, v: Tensor) -> Tensor:
        for stage in reversed(self.stages):
            v = stage.vjp(v)
        return v

    def push(self, v: Tensor) -> Tensor:
        for stage in self.stages:
            v = stage.push(v)
        return v

    def mapped(self, common: TensorMap, each: TensorMap) -> JacobianChain:
        return JacobianChain([stage.mapped(common, each) for stage in self.stages])

    def reach(self) -> tuple[int, int] | None:
        """The sum of those of the stages."""
        reaches = [stage.reach() for stage in self.stages]
        known = [reach for reach in reaches if reach is not None]
        if len(known) < len(reaches):
            return None
        return sum(rows for rows, _ in known), sum(columns for _, columns in known)

    def cycle(self) -> tuple[Jacobian, Jacobian, VectorMap]:
        """Between hidden layers the two outer matrices become one.

        J = W_L ... W_1 has v^T J^k = v^T W_L D_(L-1) ... (loop)^(k-1) W_1 with
        loop = W_1 W_L D_(L-1) ... D_1: h_1 h_(L-1) products in place of d (h_1 + h_(L-1)), fewer if
        the hidden layers are narrower than 2 d. Else, and where an outer stage is no matrix, enter
        and loop are J itself.
        """
        if len(self.stages) < 3:
            return super().cycle()
        first, *inner, last = self.stages
        if isinstance(first, MatrixStage) and isinstance(last, MatrixStage):
            (h_first, d), h_last = first.weight.shape[-2:], last.weight.shape[-1]
            if h_first * h_last < WORTHWHILE * d * (h_first + h_last):
                # Transposed, as `packed` needs it.
                outer = MatrixStage((last.weight.mT @ first.weight.mT).mT)
                return JacobianChain([*inner, last]), JacobianChain([*inner, outer]), first.vjp
        return super().cycle()

    def packed(self, n_rows: int) -> JacobianChain:
        return JacobianChain([stage.packed(n_rows) for stage in self.stages])

    def bilinear_gradient(self, s: Tensor, v: Tensor) -> Tensor:
        """As `Jacobian`; of matrices and slopes alone without a product s^T J."""
        simple = [stage for stage in self.stages if isinstance(stage, MatrixStage | SlopeStage)]
        if len(simple) < len(self.stages):
            return super().bilinear_gradient(s, v)
        return bilinear_gradient(simple, s, v)

    def traces(self, n: int) -> list[Tensor]:
        """tr J, ..., tr J^n, (B,) or (), see `exact_traces`.

        Raises:
            ValueError: if the stages do not support so many.
        """
        factors = factors_of(self.stages)
        if n > factors.n_most:
            most = factors.n_most
            raise refusal(
                f"this branch ({', '.join(type(stage).__name__ for stage in self.stages)})",
                f"exact traces up to J^{most}" if most else "no exact traces",
                f"n = {n}",
                f"set `n_traced={most}` or `products=dense` (W-phi-W, and convolutions with at "
                "most a 1 x 1 kernel between the outer ones, support J^2, W-phi-W-phi-W J^1, "
                "others none)",
            )
        return exact_traces(factors, n)
