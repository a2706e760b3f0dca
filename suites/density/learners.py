"""A flow of ours and its copy in normflows that are trained, certified and evaluated alike."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resflow_bench.flows import ResidualFlow
from resflow_bench.layers import LipSwish
from resflow_bench.logdet import (
    Estimator,
    Exact,
    Geometric,
    Roulette,
    exact_log_det,
)
from resflow_bench.peers.normflows import normflows_flow, normflows_nets, normflows_update
from suites.trained import largest_certified

THEIR_ROULETTE = Roulette(Geometric(0.5), n_exact=4, per="batch")
"""Our roulette whose gradient has the law of normflows' default."""


@dataclass(frozen=True)
class Learner:
    """A flow in training, ours or theirs.

    flow: trained in place.
    loss: -mean log p(x), nats, with a graph; x is (B, *event).
    update: the update of the norms after an optimiser step.
    """

    flow: nn.Module
    loss: Callable[[Tensor], Tensor]
    update: Callable[[], None]


def ours(flow: ResidualFlow, estimator: Estimator, seed: int = 0) -> Learner:
    """A copy of the flow with the estimator, whose draws follow from `seed`."""
    flow = copy.deepcopy(flow).requires_grad_(True).with_estimator(estimator)
    generator = torch.Generator().manual_seed(seed)
    return Learner(flow, lambda x: -flow.log_prob(x, generator).mean(), flow.update)


def theirs(flow: ResidualFlow) -> Learner:
    """The same flow in normflows, in memory-saving mode with its default roulette."""
    peer = normflows_flow(flow, reduce_memory=True)
    return Learner(peer, peer.forward_kld, lambda: normflows_update(peer))


@torch.no_grad()
def exact_log_prob(flow: Any, x: Tensor) -> Tensor:
    """log p(x), (n,), nats, of a flow of ours or theirs, by dense Jacobians in float64."""
    flow, x = copy.deepcopy(flow).double(), x.double()
    if isinstance(flow, ResidualFlow):
        return flow.with_estimator(Exact()).log_prob(x)
    from normflows.flows import Residual

    log_det = x.new_zeros(len(x))
    for layer in reversed(flow.flows):
        if isinstance(layer, Residual):
            net = layer.iresblock.nnet
            log_det += exact_log_det(net, x)
            x = x + net(x)
        else:
            x, change = layer.inverse(x)
            log_det += change
    return flow.q0.log_prob(x) + log_det


@torch.no_grad()
def certified(flow: nn.Module) -> float:
    """The largest bound on the Lipschitz constant of a block, in a flow of ours or theirs."""
    if isinstance(flow, ResidualFlow):
        return largest_certified(flow)
    return max(math.prod(map(_norm, net)) for net in normflows_nets(flow))


def _norm(stage: Any) -> float:
    """||W||_2 of the weight that their layer multiplies with, or the slope of their Swish."""
    from normflows.nets.lipschitz import Swish

    if isinstance(stage, Swish):
        return LipSwish.lipschitz
    weight = stage.compute_weight(update=False)
    return float(torch.linalg.matrix_norm(weight.double(), 2))
