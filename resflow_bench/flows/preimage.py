"""The solution of x + g(x) = z with its derivatives, by the implicit function theorem.

A block's x = z - g(x) has dx = (I + J_g(x))^-1 (dz - dg), with dg the derivative of g at a fixed x,
in its parameters alone. A gradient v in x is therefore w in z and -w in g, with (I + J)^T w = v.
No graph of the solver is kept.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from resflow_bench.arguments import check_batch
from resflow_bench.fixed_point import Auto, solve
from resflow_bench.flows.inversion import ToTolerance
from resflow_bench.flows.residual import ResidualBlock
from resflow_bench.jacobian import Jacobian, dense, linearise
from resflow_bench.layers import AnyBranch

MAX_STEPS = 2000
"""Cap on the steps of a block's backward solve."""


ROUNDING = 30.0
"""Units in the last place, relative to w, to which a backward solve goes."""


def preimage(block: ResidualBlock, z: Tensor) -> Tensor:
    """x with x + g(x) = z, (B, *event), to rounding, differentiable in z and in g's parameters.

    Properties: a backward pass solves one linear system, and has no derivative itself.

    Raises:
        ArithmeticError: x was not found; also in the backward pass, if its system is not solved.
    """
    check_batch("The inverse of a block", z, (...,))
    with torch.no_grad():
        solution = block.inverse(z.detach(), ToTolerance(Auto()), certify=False)
        x = solution.raise_if_failed().value
    again = block_inverse(block.g, z, x)
    return x + (again - again.detach())


def block_inverse(branch: AnyBranch, z: Tensor, x: Tensor) -> Tensor:
    """z - g(x), which is x to rounding, with the derivatives of the block's inverse at x."""
    again = z - branch(x)  # with the derivative dz - dg
    if again.requires_grad:
        again.register_hook(partial(_solved, branch, x))
    return again


def _solved(branch: AnyBranch, x: Tensor, v: Tensor) -> Tensor:
    """w with (I + J)^T w = v, from w = v - J^T w."""
    if torch.is_grad_enabled():
        raise ValueError(
            "the gradient of samples has no derivative itself. Leave out `create_graph=True`."
        )

    def step(w: Tensor, v: Tensor, jacobian: Jacobian) -> Tensor:
        return v - jacobian.vjp(w[None])[0]

    with torch.no_grad():
        jacobian = linearise(branch, x).jacobian
        if not jacobian.shrinks:  # the solver drops the examples that are done
            jacobian = dense(branch, x).jacobian
        rtol = ROUNDING * torch.finfo(v.dtype).eps
        args = (v, jacobian)
        return (
            solve(step, v, Auto(), rtol=rtol, atol=0.0, max_steps=MAX_STEPS, args=args)
            .raise_if_failed()
            .value
        )
