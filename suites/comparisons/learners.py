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
    Fixed,
    Gaussian,
    Geometric,
    LogDetEstimator,
    Roulette,
    Truncation,
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


def same_gradient(truncation: Truncation) -> LogDetEstimator:
    """Our estimator whose gradient has the law of theirs: with Gaussian probes."""
    return LogDetEstimator(Gaussian(), truncation)


def theirs(flow: ResidualFlow, truncation: Truncation) -> Learner:
    """The same flow in normflows, in memory-saving mode, with the same gradient.

    Raises:
        ValueError: a truncation that normflows does not offer.
    """
    if isinstance(truncation, Fixed):
        peer = normflows_flow(flow, reduce_memory=True, n_power_series=truncation.n_terms - 1)
    elif truncation == THEIR_ROULETTE:
        peer = normflows_flow(flow, reduce_memory=True)
    else:
        raise ValueError(
            f"normflows has the gradient of Fixed and of {THEIR_ROULETTE}; got {truncation}. "
            "Compare one of them."
        )
    return Learner(peer, peer.forward_kld, lambda: normflows_update(peer))


def branch_gradients(learner: Learner) -> list[Tensor]:
    """Gradients of the parameters of each g, from data to latent, in one order for both."""
    if isinstance(learner.flow, ResidualFlow):
        branches: list[Any] = [block.branch for block in learner.flow.blocks]
    else:
        branches = normflows_nets(learner.flow)
    return [p.grad.flatten() for branch in branches for p in branch.parameters()]


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
