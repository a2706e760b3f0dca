"""Derivatives of a flow's inverse by the implicit function theorem, without a graph of its solver.

A block's x = z - g(x) has dx = (I + J_g(x))^-1 (dz - dg), with dg the derivative of g at a fixed x,
in its parameters alone. A gradient v in x is therefore w in z and -w in g, with (I + J)^T w = v.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from resflow_bench.fixed_point import Auto, solve
from resflow_bench.flows.bijection import ClosedForm
from resflow_bench.flows.composition import AnyBijection, Chain, FactorOut
from resflow_bench.flows.residual import ResidualBlock
from resflow_bench.jacobian import Jacobian, dense, linearise
from resflow_bench.layers import AnyBranch

MAX_STEPS = 2000
"""Cap on the steps of a block's backward solve."""


ROUNDING = 30.0
"""Units in the last place, relative to w, to which a backward solve goes."""


def attached(bijection: AnyBijection, z: Tensor, x: Tensor) -> Tensor:
    """x, differentiable in z and in the parameters as the inverse of z.

    Args:
        z: (B, ...), the latents, with or without a graph.
        x: (B, *event), f^-1(z) without a graph: the derivatives are those at this x.

    Properties: each block is evaluated twice; in the backward pass it takes as many products with J
        as a fixed-point iteration takes steps to rounding. The derivative has none itself: under
        `create_graph=True` the backward pass raises a ValueError.

    Raises:
        TypeError: a bijection that is iterated and no `ResidualBlock`.
        ArithmeticError: in the backward pass, if a solve does not converge.
    """
    again = _inverse(bijection, z, x)  # x to rounding
    return x + (again - again.detach())


def _inverse(bijection: AnyBijection, z: Tensor, x: Tensor) -> Tensor:
    match bijection:
        case Chain():
            return _chain(bijection, z, x)
        case FactorOut():
            n_latents = bijection.n_kept * math.prod(bijection.event[1:])
            kept = z[:, :n_latents].unflatten(1, (bijection.n_kept, *bijection.event[1:]))
            inner = _inverse(bijection.inner, z[:, n_latents:], x[:, bijection.n_kept :])
            return torch.cat([kept, inner], dim=1)
        case ResidualBlock():
            return block_inverse(bijection.g, z, x)
        case ClosedForm():
            return bijection.inverse(z)
    raise TypeError(
        f"Samples have no gradient through {type(bijection).__name__}, whose inverse is iterated. "
        "Use `sample`, or make it of residual blocks."
    )


def _chain(chain: Chain, z: Tensor, x: Tensor) -> Tensor:
    inputs = []
    with torch.no_grad():
        for layer in chain.bijections:
            inputs.append(x)
            x = layer(x)
    for layer, h in zip(reversed(chain.bijections), reversed(inputs), strict=True):
        z = _inverse(layer, z, h)
    return z


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
