"""The gradient of s^T J v in the numbers of J, for a J of matrices and slopes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from resflow_bench.jacobian.matrix_stage import MatrixStage
from resflow_bench.jacobian.stages import SlopeStage

Simple = MatrixStage | SlopeStage


def bilinear_gradient(stages: Sequence[Simple], s: Tensor, v: Tensor) -> Tensor:
    """Zero, (B,), with the gradient of f = (1/m) sum_j s_j^T J v_j, J = S_L ... S_1.

    Of a stage, f sees b^T S a with a = S_(l-1) ... S_1 v and b^T = s^T S_L ... S_(l+1), so that the
    gradient in a matrix is b a^T and in slopes b * a. Nothing is evaluated before the backward
    pass, and s^T J itself never is.
    """
    numbers = [stage.weight if isinstance(stage, MatrixStage) else stage.slope for stage in stages]
    expansions = [0 if isinstance(stage, MatrixStage) else stage.expansion for stage in stages]
    zero: Tensor = _Bilinear.apply(s, v, expansions, *numbers)
    return zero


class _Bilinear(torch.autograd.Function):
    """`bilinear_gradient`; a stage's expansion is 0 if it is a matrix."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, v: Tensor, expansions: list[int], *numbers: Tensor) -> Tensor:
        ctx.save_for_backward(s, v, *numbers)
        ctx.expansions = expansions
        return s.new_zeros(s.shape[1])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        s, v, *numbers = ctx.saved_tensors
        wanted = ctx.needs_input_grad[3:]
        b = s * (upstream / len(s)).view(-1, *[1] * (s.ndim - 2))
        if torch.is_grad_enabled():  # and so a derivative of this one is requested
            numbers = [number.view_as(number) for number in numbers]  # not through each other
            product = b
            for stage in reversed(_stages(numbers, ctx.expansions)):
                product = stage.vjp(product)
            asked = [number for number, want in zip(numbers, wanted, strict=True) if want]
            found = iter(torch.autograd.grad((product * v).sum(), asked, create_graph=True))
        else:
            found = iter(_outer_products(_stages(numbers, ctx.expansions), b, v, wanted))
        return None, None, None, *(next(found) if want else None for want in wanted)


def _stages(numbers: Sequence[Tensor], expansions: Sequence[int]) -> list[Simple]:
    return [
        SlopeStage(number, expansion) if expansion else MatrixStage(number)
        for number, expansion in zip(numbers, expansions, strict=True)
    ]


def _outer_products(
    stages: Sequence[Simple], b: Tensor, v: Tensor, wanted: Sequence[bool]
) -> list[Tensor]:
    """d/dS_j of sum b^T S_L ... S_1 v, for each j in `wanted`; b and v are (m, B, *event).

    v is pushed from the right, S_(j-1) ... S_1 v, then b meets it from the left.
    """
    if len(b) == 1:
        b, v = b[0], v[0]
    right = [v]
    for stage in stages[:-1]:
        right.append(stage.push(right[-1]))
    found: list[Tensor] = []
    for j, stage in reversed(list(enumerate(stages))):
        a = right.pop()
        if wanted[j]:
            found.append(stage.gradient(b, a))
        if j > 0:
            b = stage.vjp(b)
    return found[::-1]
