"""The same flow in torchflows: its residual blocks with our branches as g.

The linear layers of torchflows cannot hold our weights: each forward pass divides by a norm from a
power iteration that starts at a random vector, and does not multiply by the requested constant.
"""

from __future__ import annotations

import copy
import math
from importlib import import_module
from typing import Any, final

import numpy as np
import torch
from scipy import linalg
from torch import Tensor, nn

from resflow_bench.flows import ActNorm, ResidualBlock, ResidualFlow
from resflow_bench.lab import Skip
from resflow_bench.layers import Linear
from resflow_bench.logdet import Fixed
from resflow_bench.peers.peer import (
    Peer,
    Request,
    check_convertible,
    installed_version,
    linear_layers,
    roulette_after,
)
from resflow_bench.seeds import torch_seeded


def make(flow: ResidualFlow, request: Request) -> Peer:
    """`InvertibleResNetBlock` for the series, `ResFlowBlock` with its default p = 0.5 otherwise.

    ActNorm and the base density are ours: those of torchflows index by a list instead of a tuple,
    which torch deprecates.

    Raises:
        Skip: torchflows is not installed, does not support the request, or cannot hold the flow.
    """
    version = installed_version("torchflows")
    check_convertible(flow)
    if request.mode == "memory-saving":
        raise Skip(f"{version} has no mode that takes gradients in the forward pass")
    if request.fixed is not None and request.fixed.n_terms < 2:
        raise Skip(f"{version} takes two terms or more")
    if request.mode != "series" and request.n_probes > 1:
        raise Skip(f"the roulette of {version} takes one probe")
    with torch.random.fork_rng(devices=[]):  # their layers draw initial weights
        bijection = _bijection(flow, request)
        own = [_own_layer(layer) for layer in linear_layers(flow)]
    bijection.to(next(flow.parameters())).train(request.mode != "evaluation")
    branches = [layer.g for layer in bijection.layers if not isinstance(layer, _OurAffine)]

    def map_(x: Tensor) -> Tensor:
        for layer in bijection.layers:
            x = layer(x)[0] if isinstance(layer, _OurAffine) else x + layer.g(x)
        return x

    def inverse(z: Tensor) -> tuple[Tensor, None]:
        for layer in reversed(bijection.layers):
            given = {} if isinstance(layer, _OurAffine) else {"skip_log_det": True}
            z = layer.inverse(z, **given)[0]
        return z.detach(), None

    def log_prob(x: Tensor) -> Tensor:
        z, log_det = bijection.forward(x)
        return -0.5 * (z.square().sum(1) + flow.dim * math.log(2 * math.pi)) + log_det

    # Their roulette evaluates J v, then N products more, N >= 1.
    truncation = request.fixed or roulette_after(2)
    bias = truncation.bias if isinstance(truncation, Fixed) else roulette_bias
    return Peer(
        version=version,
        map=map_,
        log_det=lambda x: bijection.forward(x)[1],
        log_prob=log_prob,
        inverse=inverse,
        tolerance=None,  # always 25 iterations
        branches=branches,
        weights=lambda: [(layer.w.normalized(), layer.w.c) for layer in own],
        # With several samples, the sample axis is last in a tensor that is then viewed as if it
        # were first: g is evaluated at rearrangements of x.
        bias=bias if request.n_probes == 1 else None,
        truncation=truncation,
        update=None,
        seeded=torch_seeded,
    )


def roulette_bias(jacobian: np.ndarray) -> np.ndarray:
    """tr(J - J log(I + J)) - ln|det(I + J)|, (P, d, d) -> (P,).

    torchflows returns v^T (I + sum_k (-1)^k/(k P(N >= k)) J^k) J v: the coefficients (-1)^k/k of
    the logarithm in place of those of the Neumann series, (-1)^k.
    """
    identity = np.eye(jacobian.shape[-1])
    logarithms = np.asarray([linalg.logm(identity + matrix).real for matrix in jacobian])
    means = np.trace(jacobian - jacobian @ logarithms, axis1=-2, axis2=-1)
    return np.asarray(means - np.linalg.slogdet(identity + jacobian).logabsdet)


@final
class _OurAffine(nn.Module):
    """Our ActNorm behind the interface of the bijections of torchflows."""

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


def _bijection(flow: ResidualFlow, request: Request) -> Any:
    base = import_module("torchflows.bijections.base")
    blocks = import_module("torchflows.bijections.finite.residual.iterative")
    block, settings = blocks.ResFlowBlock, {}
    if request.mode == "series":
        block = blocks.InvertibleResNetBlock
        settings["n_power_series_iterations"] = request.n_terms
        settings["n_hutchinson_samples"] = request.n_probes
    layers: list[nn.Module] = []
    for layer in flow.bijections:
        if isinstance(layer, ActNorm):
            layers.append(_OurAffine(layer))
            continue
        assert isinstance(layer, ResidualBlock)  # by `check_convertible`
        g = copy.deepcopy(layer.branch).requires_grad_(True)
        layers.append(block(flow.event, g=g, **settings))
    return base.BijectiveComposition(layers)


def _own_layer(layer: Linear) -> Any:
    """A linear layer of torchflows with our weight and the same requested constant."""
    blocks = import_module("torchflows.bijections.finite.residual.iterative")
    peer = blocks.SpectralLinear(layer.n_in, layer.n_out, c=layer.coefficient).to(layer.weight)
    peer.w.data.data.copy_(layer.weight.data)
    return peer
