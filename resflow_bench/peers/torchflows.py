"""The same flow in torchflows: its blocks, on our branches as the g that they can be given.

Its own layers cannot hold our weights: each forward pass divides by a norm from a power iteration
that starts at a random vector, and the constant asked for is not multiplied in.
"""

from __future__ import annotations

import copy
import math
from importlib import import_module
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from scipy import linalg
from torch import nn

from resflow_bench.flows import ActNorm, ResidualBlock
from resflow_bench.lab.suite import Skip
from resflow_bench.logdet import Fixed
from resflow_bench.peers.peer import (
    Asked,
    Peer,
    check_convertible,
    installed_version,
    linear_layers,
    torch_seeded,
)

if TYPE_CHECKING:
    from torch import Tensor

    from resflow_bench.flows import ResidualFlow
    from resflow_bench.layers import Linear


def make(flow: ResidualFlow, asked: Asked) -> Peer:
    """`InvertibleResNetBlock` for the series, else `ResFlowBlock`, each at its p = 0.5.

    ActNorm between them and the base density are ours: theirs index by a list in the place of a
    tuple, which torch deprecates.

    Raises:
        Skip: torchflows is not installed, has not what is asked for, or cannot hold the flow.
    """
    version = installed_version("torchflows")
    check_convertible(flow)
    if asked.mode == "memory-saving":
        raise Skip(f"{version} has no mode that takes gradients in the forward pass")
    if asked.mode == "series" and asked.n_terms < 2:
        raise Skip(f"{version} takes two terms or more")
    if asked.mode != "series" and asked.n_probes > 1:
        raise Skip(f"the roulette of {version} takes one probe")
    return _make(flow, asked, version)


def _make(flow: ResidualFlow, asked: Asked, version: str) -> Peer:
    with torch.random.fork_rng(devices=[]):  # their layers draw weights before they are given some
        bijection = _bijection(flow, asked)
        own = [_own_layer(layer) for layer in linear_layers(flow)]
    bijection.to(next(flow.parameters())).train(asked.mode != "evaluation")
    branches = [layer.g for layer in bijection.layers if hasattr(layer, "g")]

    def map_(x: Tensor) -> Tensor:
        for layer in bijection.layers:
            x = x + layer.g(x) if hasattr(layer, "g") else layer.forward(x)[0]
        return x

    def log_prob(x: Tensor) -> Tensor:
        z, log_det = bijection.forward(x)
        return -0.5 * (z.square().sum(1) + flow.dim * math.log(2 * math.pi)) + log_det

    is_series = asked.mode == "series"
    bias = Fixed(asked.n_terms).bias if is_series else roulette_bias
    return Peer(
        version=version,
        map=map_,
        log_det=lambda x: bijection.forward(x)[1],
        log_prob=log_prob,
        inverse=lambda z: (bijection.inverse(z)[0].detach(), None),
        tolerance=None,  # 25 iterations, whatever the residual
        branches=branches,
        weights=lambda: [(layer.w.normalized(), layer.w.c) for layer in own],
        # Several samples stand last in a tensor that is then viewed as if they stood first: the
        # rows of x that g is given are rearrangements of x.
        bias=bias if asked.n_probes == 1 else None,
        decay=0.0 if is_series else 0.5,
        seeded=torch_seeded,
    )


def roulette_bias(jacobian: np.ndarray) -> np.ndarray:
    """tr(J - J log(I + J)) - ln|det(I + J)|, (P, d, d) -> (P,).

    The coefficients (-1)^k/k of the logarithm stand where those of the Neumann series, (-1)^k,
    belong: v^T (I + sum_k (-1)^k/(k P(N >= k)) J^k) J v.
    """
    identity = np.eye(jacobian.shape[-1])
    logarithms = np.asarray([linalg.logm(identity + matrix).real for matrix in jacobian])
    means = np.trace(jacobian - jacobian @ logarithms, axis1=-2, axis2=-1)
    return np.asarray(means - np.linalg.slogdet(identity + jacobian).logabsdet)


@final
class _Between(nn.Module):
    """Our ActNorm with the verbs of their bijections."""

    context_shape = None

    def __init__(self, layer: ActNorm) -> None:
        super().__init__()
        self.layer = copy.deepcopy(layer).requires_grad_(True)
        self.event_shape = (len(layer.shift),)

    def forward(self, x: Tensor, context: None = None) -> tuple[Tensor, Tensor]:
        return self.layer.forward_and_log_det(x)

    def inverse(self, z: Tensor, context: None = None) -> tuple[Tensor, Tensor]:
        x = self.layer.inverse(z)
        return x, -self.layer.forward_and_log_det(x)[1]


def _bijection(flow: ResidualFlow, asked: Asked) -> Any:
    base = import_module("torchflows.bijections.base")
    blocks = import_module("torchflows.bijections.finite.residual.iterative")

    layers: list[nn.Module] = []
    for layer in flow.bijections:
        if isinstance(layer, ActNorm):
            layers.append(_Between(layer))
            continue
        assert isinstance(layer, ResidualBlock)  # checked before
        g = copy.deepcopy(layer.branch).requires_grad_(True)
        if asked.mode == "series":
            told = {"n_power_series_iterations": asked.n_terms}
            layers.append(
                blocks.InvertibleResNetBlock(
                    flow.event, g=g, n_hutchinson_samples=asked.n_probes, **told
                )
            )
        else:
            layers.append(blocks.ResFlowBlock(flow.event, g=g))
    return base.BijectiveComposition(layers)


def _own_layer(layer: Linear) -> Any:
    """Their linear layer with our weight, asked for the same constant."""
    blocks = import_module("torchflows.bijections.finite.residual.iterative")
    peer = blocks.SpectralLinear(layer.n_in, layer.n_out, c=layer.coefficient).to(layer.weight)
    peer.w.data.data.copy_(layer.weight.data)
    return peer
