"""The same flow in normflows: its layers, copies of our parameters, and its draws, seeded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import torch

from resflow_bench.flows import ActNorm, Flatten, ResidualBlock
from resflow_bench.layers import Conv2d, Linear, LipSwish
from resflow_bench.layers.norms.spectral import SpectralNorm
from resflow_bench.logdet import Fixed
from resflow_bench.peers.peer import (
    Asked,
    Peer,
    check_convertible,
    installed_version,
    roulette_after,
    torch_seeded,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from resflow_bench.flows import ResidualFlow

N_POWER_STEPS = 5
"""Of each of their layers after an optimiser step, as in the Residual Flows scripts."""

TOLERANCE = 1e-5
"""atol and rtol of their fixed-point inverse; `Residual.forward` offers no other."""


def make(flow: ResidualFlow, asked: Asked) -> Peer:
    """Their `NormalizingFlow`; `n_probes` is what they call `n_samples`.

    Raises:
        Skip: normflows is not installed, or the flow is not one that it can hold.
    """
    version = installed_version("normflows")
    check_convertible(flow, convolutions=True)
    peer = normflows_flow(
        flow,
        reduce_memory=asked.mode == "memory-saving",
        n_power_series=asked.n_terms if asked.mode == "series" else None,
        n_samples=asked.n_probes,
    ).train(asked.mode != "evaluation")
    nets = normflows_nets(peer)
    layers = [layer for net in nets for layer in net if hasattr(layer, "compute_weight")]

    def map_(x: Tensor) -> Tensor:
        for layer in reversed(peer.flows):
            x = layer.iresblock(x) if hasattr(layer, "iresblock") else layer.inverse(x)[0]
        return x

    def log_det(x: Tensor) -> Tensor:
        total = x.new_zeros(len(x))
        for layer in reversed(peer.flows):
            x, change = layer.inverse(x)
            total = total + change
        return total

    truncation = Fixed(asked.n_terms) if asked.mode == "series" else roulette_after(3)
    return Peer(
        version=version,
        map=map_,
        log_det=log_det,
        log_prob=lambda x: peer.log_prob(x.detach()),  # which they mark as differentiated
        inverse=lambda z: (peer.forward(z).detach(), None),
        tolerance=TOLERANCE,
        branches=nets,
        weights=lambda: [(w.compute_weight(update=False), w.coeff) for w in layers],
        bias=neumann_bias if asked.mode == "memory-saving" else truncation.bias,
        decay=0.0 if asked.mode == "series" else 0.5,
        seeded=normflows_seeded,
    )


def neumann_bias(jacobian: np.ndarray) -> np.ndarray:
    """tr(J (I + J)^-1) - ln|det(I + J)|, (P, d, d) -> (P,).

    With reduce_memory=True the value returned is v^T (sum_k (-1)^k w_k J^k) J v, the sum whose
    gradient is the log-determinant's; the sum itself is another number.
    """
    identity = np.eye(jacobian.shape[-1])
    ratio = np.linalg.solve(identity + jacobian, jacobian)  # it commutes with its factors
    trace = np.trace(ratio, axis1=-2, axis2=-1)
    return np.asarray(trace - np.linalg.slogdet(identity + jacobian).logabsdet)


def normflows_flow(
    flow: ResidualFlow,
    *,
    reduce_memory: bool,
    n_power_series: int | None = None,
    n_samples: int = 1,
) -> Any:
    """Their flow with the same layers and a copy of their parameters and power iterations.

    Args:
        flow: of ActNorm, residual blocks on fully connected or convolutional branches with
            LipSwish between the layers, and Flatten.
        reduce_memory: as they mean it: gradients by the Neumann series, taken in the forward pass.
        n_power_series: terms; None is their roulette, geometric(0.5) after two exact terms.
        n_samples: as they mean it: draws of that roulette's number of terms.

    Returns:
        Their `NormalizingFlow`, in training mode: in evaluation the terms asked for are ignored.

    Raises:
        ValueError: a layer that has no counterpart here.
    """
    from normflows import NormalizingFlow
    from normflows.distributions import DiagGaussian
    from normflows.flows import Residual

    told = {
        "reduce_memory": reduce_memory,
        "n_power_series": n_power_series,
        "n_samples": n_samples,
    }
    layers: list[Any] = []
    for layer in flow.bijections:
        if isinstance(layer, ActNorm):
            layers.append(_actnorm(layer, (1,) * (len(flow.event) - 1)))
        elif isinstance(layer, ResidualBlock):
            layers.append(Residual(_net(layer.branch), **told))
        elif not isinstance(layer, Flatten):  # which their base density does without
            raise _without_counterpart(layer)
    # Theirs go from latent to data; a density is asked for in the other direction.
    peer = NormalizingFlow(DiagGaussian(flow.event, trainable=False), layers[::-1])
    return peer.to(next(flow.parameters())).train()


def normflows_nets(peer: Any) -> list[Any]:
    """g of each residual block of their flow, from data to latent."""
    return [layer.iresblock.nnet for layer in reversed(peer.flows) if hasattr(layer, "iresblock")]


def normflows_update(peer: Any) -> None:
    """What follows an optimiser step in theirs: power iterations, certified by nothing."""
    from normflows.utils.optim import update_lipschitz

    update_lipschitz(peer, N_POWER_STEPS)


@contextmanager
def normflows_seeded(seed: int) -> Iterator[None]:
    """Their draws, seeded. They come from global generators, which are left as they were."""
    from normflows.flows import residual

    rng = np.random.default_rng(seed)
    with torch_seeded(seed), patch.object(residual, "geometric_sample", rng.geometric):
        yield


def _net(branch: Any) -> Any:
    """The branch in their layers; the activation that usually comes first in theirs does not."""
    with torch.random.fork_rng(devices=[]):  # their layers draw weights before they are given some
        return torch.nn.Sequential(*map(_stage, branch.stages))


def _stage(stage: nn.Module) -> Any:
    from normflows.nets.lipschitz import InducedNormConv2d, InducedNormLinear, Swish

    peer: Any
    if isinstance(stage, LipSwish):
        peer = Swish()
        peer.beta.data.fill_(stage.raw_beta.item())
        return peer
    if not isinstance(stage, Linear | Conv2d) or not isinstance(stage.norm, SpectralNorm):
        raise _without_counterpart(stage)
    told = {
        "coeff": stage.coefficient,
        "n_iterations": N_POWER_STEPS,
        "bias": stage.bias is not None,
    }
    if isinstance(stage, Linear):
        peer = InducedNormLinear(stage.n_in, stage.n_out, **told)
    else:
        kernel = tuple(stage.weight.shape[2:])
        padding = tuple(size // 2 for size in kernel)
        peer = InducedNormConv2d(stage.n_in, stage.n_out, kernel, 1, padding, **told)
        peer.spatial_dims.copy_(torch.tensor(stage.grid))
        peer.initialized.fill_(1)
    for name, parameter in stage.named_parameters():
        getattr(peer, name).data.copy_(parameter.data)
    peer.u, peer.v = stage.norm.u.flatten().clone(), stage.norm.v.flatten().clone()
    return peer


def _actnorm(layer: ActNorm, grid: tuple[int, ...]) -> Any:
    """x = (z - t) exp(-s), with ours z = (x + shift) exp(log_scale)."""
    from normflows.flows import ActNorm as TheirActNorm

    peer = TheirActNorm((len(layer.shift), *grid))
    peer.s.data.copy_(-layer.log_scale.data.view_as(peer.s))
    peer.t.data.copy_(-layer.shift.data.view_as(peer.t))
    peer.data_dep_init_done = torch.tensor(1.0)
    return peer


def _without_counterpart(layer: object) -> ValueError:
    return ValueError(
        "normflows_flow converts ActNorm, Flatten, and residual blocks of LipSwish, and of Linear "
        f"and Conv2d with spectral norms; got {type(layer).__name__}. Compare a flow of these."
    )
