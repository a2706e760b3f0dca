"""Derivatives of a flow's inverse by the implicit function theorem, without a graph of its solver.

Those of a block are derived in `preimage`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from resflow_bench.flows.bijection import ClosedForm
from resflow_bench.flows.composition import AnyBijection, Chain, FactorOut
from resflow_bench.flows.inverse import InverseBlock
from resflow_bench.flows.monotone import MonotoneBlock
from resflow_bench.flows.preimage import block_inverse
from resflow_bench.flows.residual import ResidualBlock


def attached(bijection: AnyBijection, z: Tensor, x: Tensor) -> Tensor:
    """x, differentiable in z and in the parameters as the inverse of z.

    Args:
        z: (B, ...), the latents, with or without a graph.
        x: (B, *event), f^-1(z) without a graph: the derivatives are those at this x.

    Properties: each block is evaluated twice; in the backward pass it takes as many products with J
        as a fixed-point iteration takes steps to rounding. The derivative has none itself: under
        `create_graph=True` the backward pass raises a ValueError.

    Raises:
        TypeError: a bijection that is iterated and no block of this package.
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
        case InverseBlock():
            return bijection.block(z)
        case MonotoneBlock():
            return bijection.reflected(z, (x + z.detach()) / 2)
        case ClosedForm():
            return bijection.inverse(z)
    raise TypeError(
        f"Samples have no gradient through {type(bijection).__name__}, whose inverse is iterated. "
        "Use `sample`, or make it of residual, inverse and monotone blocks."
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
