"""A flow of normflows as one of ours, with its own networks as branches."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from resflow_bench.flows import ActNorm, ResidualBlock, ResidualFlow
from resflow_bench.layers import Uncertified


def is_normflows(flow: object) -> bool:
    """True for a `NormalizingFlow` of normflows, which need not be installed."""
    return f"{type(flow).__module__}.{type(flow).__name__}" == "normflows.core.NormalizingFlow"


def from_normflows(flow: Any) -> ResidualFlow:
    """The same map, from data to latent, of a flow of `Residual` and `ActNorm` layers.

    g of each block is a copy of the flow's own network in evaluation mode. normflows estimates its
    norms by power iteration, from below, so that no constant is certified.

    Args:
        flow: a `NormalizingFlow` of vectors (B, d), whose base density is ignored.

    Raises:
        ValueError: another layer, or an ActNorm that has seen no data yet.
    """
    from normflows.flows import ActNorm as TheirActNorm
    from normflows.flows import Residual

    layers: list[nn.Module] = []
    for layer in reversed(flow.flows):  # theirs are ordered from latent to data
        if isinstance(layer, Residual):
            layers.append(ResidualBlock(Uncertified(copy.deepcopy(layer.iresblock.nnet).eval())))
        elif isinstance(layer, TheirActNorm) and layer.data_dep_init_done:
            ours = ActNorm(layer.s.numel()).to(layer.s)
            # Theirs: x = (z - t) exp(-s). Ours: z = (x + shift) exp(log_scale).
            ours.log_scale.data.copy_(-layer.s.data.flatten())
            ours.shift.data.copy_(-layer.t.data.flatten())
            layers.append(ours)
        else:
            raise ValueError(
                "a flow of normflows is converted if its layers are Residual and ActNorm, the "
                f"latter after a first batch; got {type(layer).__name__}. Give its networks as "
                "a list of modules g, one for each block."
            )
    return ResidualFlow(layers, flow.q0.shape)
