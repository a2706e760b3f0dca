"""The same flow in normflows: its layers with copies of our parameters, and its draws, seeded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from resflow_bench.flows import ActNorm, Flatten, ResidualBlock, ResidualFlow, StandardNormal
from resflow_bench.layers import Branch, Conv2d, Linear, LipSwish
from resflow_bench.layers.norms.spectral import SpectralNorm
from resflow_bench.logdet import Fixed
from resflow_bench.peers.peer import (
    Peer,
    Request,
    check_convertible,
    installed_version,
    roulette_after,
)
from resflow_bench.seeds import torch_seeded

N_POWER_STEPS = 5
"""Power iterations of each layer after an optimiser step, as in the Residual Flows scripts."""

TOLERANCE = 1e-5
"""atol and rtol of the fixed-point inverse of normflows; `Residual.forward` takes no other."""


def make(flow: ResidualFlow, request: Request) -> Peer:
    """The `NormalizingFlow` of normflows; `n_probes` becomes its `n_samples`.

    Raises:
        Skip: normflows is not installed, or cannot hold the flow.
    """
    version = installed_version("normflows")
    from normflows.flows import Residual
    from normflows.nets.lipschitz import InducedNormLinear

    check_convertible(flow, convolutions=True)
    is_neumann, n_power_series = request.mode == "memory-saving", None
    if request.fixed is not None:  # their Neumann series begins with a power that is not counted
        n_power_series = request.fixed.n_terms - is_neumann
    peer = normflows_flow(
        flow,
        reduce_memory=is_neumann,
        n_power_series=n_power_series,
        n_samples=request.n_probes,
    ).train(request.mode != "evaluation")
    nets = normflows_nets(peer)
    layers = [layer for net in nets for layer in net if isinstance(layer, InducedNormLinear)]

    def map_(x: Tensor) -> Tensor:
        for layer in reversed(peer.flows):
            x = layer.iresblock(x) if isinstance(layer, Residual) else layer.inverse(x)[0]
        return x

    def inverse(z: Tensor) -> tuple[Tensor, None]:
        for layer in peer.flows:
            z = layer.iresblock.inverse(z) if isinstance(layer, Residual) else layer.forward(z)[0]
        return z.detach(), None

    def log_det(x: Tensor) -> Tensor:
        total = x.new_zeros(len(x))
        for layer in reversed(peer.flows):
            x, change = layer.inverse(x)
            total = total + change
        return total

    n_exact = 21 if request.mode == "evaluation" else 3
    truncation = request.fixed or roulette_after(n_exact)

    def bias(jacobian: np.ndarray) -> np.ndarray:
        n_terms = truncation.n_terms if isinstance(truncation, Fixed) else None
        return neumann_bias(jacobian, n_terms) if is_neumann else truncation.bias(jacobian)

    return Peer(
        version=version,
        map=map_,
        log_det=log_det,
        log_prob=lambda x: peer.log_prob(x.detach()),  # it sets requires_grad on its argument
        inverse=inverse,
        tolerance=TOLERANCE,
        branches=nets,
        weights=lambda: [(w.compute_weight(update=False), w.coeff) for w in layers],
        bias=bias,
        truncation=truncation,
        update=lambda: normflows_update(peer),
        seeded=normflows_seeded,
    )


def neumann_bias(jacobian: np.ndarray, n_terms: int | None = None) -> np.ndarray:
    """tr(J (I + J)^-1) - ln|det(I + J)|, (P, d, d) -> (P,).

    With N powers of J in place of the inverse, the first factor is I - (-J)^N more.

    With reduce_memory=True normflows returns v^T (sum_k (-1)^k w_k J^k) J v. The gradient of this
    sum, its weights held constant, is the log-determinant's; its value is not.
    """
    identity = np.eye(jacobian.shape[-1])
    ratio = np.linalg.solve(identity + jacobian, jacobian)  # the factors commute
    if n_terms is not None:
        ratio = ratio - np.linalg.matrix_power(-jacobian, n_terms) @ ratio
    trace = np.trace(ratio, axis1=-2, axis2=-1)
    return np.asarray(trace - np.linalg.slogdet(identity + jacobian).logabsdet)


def normflows_flow(
    flow: ResidualFlow,
    *,
    reduce_memory: bool,
    n_power_series: int | None = None,
    n_samples: int = 1,
) -> Any:
    """A normflows flow with the same layers, parameters and vectors of the power iterations.

    Args:
        flow: a flow of ActNorm, Flatten, and residual blocks whose branches are fully connected or
            convolutional, with LipSwish between the layers.
        reduce_memory: compute gradients by the Neumann series in the forward pass.
        n_power_series: number of terms; None for the roulette of normflows, geometric(0.5) after
            two exact terms.
        n_samples: draws of that roulette's number of terms.

    Returns:
        A `NormalizingFlow` in training mode; in evaluation mode it ignores `n_power_series`.

    Raises:
        ValueError: a layer has no counterpart in normflows.
    """
    from normflows import NormalizingFlow
    from normflows.distributions import DiagGaussian
    from normflows.flows import Residual

    if not isinstance(flow.base, StandardNormal):
        raise _without_counterpart(flow.base)
    settings = {"n_power_series": n_power_series, "n_samples": n_samples}
    layers: list[Any] = []
    for layer in flow.bijections:
        if isinstance(layer, ActNorm):
            layers.append(_actnorm(layer, (1,) * (len(flow.event) - 1)))
        elif isinstance(layer, ResidualBlock):
            layers.append(Residual(_net(layer.branch), reduce_memory=reduce_memory, **settings))
        elif not isinstance(layer, Flatten):  # their base density takes any shape
            raise _without_counterpart(layer)
    # Their layers are ordered from latent to data.
    peer = NormalizingFlow(DiagGaussian(flow.event, trainable=False), layers[::-1])
    return peer.to(next(flow.parameters())).train()


def normflows_nets(peer: Any) -> list[Any]:
    """g of each residual block of a normflows flow, from data to latent."""
    from normflows.flows import Residual

    blocks = [layer for layer in reversed(peer.flows) if isinstance(layer, Residual)]
    return [block.iresblock.nnet for block in blocks]


def normflows_update(peer: Any) -> None:
    """The power iterations that normflows makes after an optimiser step; they certify nothing."""
    from normflows.utils.optim import update_lipschitz

    update_lipschitz(peer, N_POWER_STEPS)


@contextmanager
def normflows_seeded(seed: int) -> Iterator[None]:
    """Seed the global generators that normflows draws from inside the context, and restore them."""
    from normflows.flows import residual

    rng = np.random.default_rng(seed)
    with torch_seeded(seed), patch.object(residual, "geometric_sample", rng.geometric):
        yield


def _net(branch: Any) -> Any:
    """A branch as a `Sequential` of normflows layers; no activation precedes the first."""
    if not isinstance(branch, Branch):
        raise _without_counterpart(branch)
    if branch.conditioner is not None:
        raise _without_counterpart(branch.conditioner)
    with torch.random.fork_rng(devices=[]):  # their layers draw initial weights
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
    has_bias = stage.bias is not None
    settings = {"coeff": stage.coefficient, "n_iterations": N_POWER_STEPS, "bias": has_bias}
    if isinstance(stage, Linear):
        peer = InducedNormLinear(stage.n_in, stage.n_out, **settings)
    else:
        kernel = tuple(stage.weight.shape[2:])
        padding = tuple(size // 2 for size in kernel)
        peer = InducedNormConv2d(stage.n_in, stage.n_out, kernel, 1, padding, **settings)
        peer.spatial_dims.copy_(torch.tensor(stage.grid))
        peer.initialized.fill_(1)
    for name, parameter in stage.named_parameters():
        peer.get_parameter(name).data.copy_(parameter.data)
    peer.u, peer.v = stage.norm.u.flatten().clone(), stage.norm.v.flatten().clone()
    return peer


def _actnorm(layer: ActNorm, grid: tuple[int, ...]) -> Any:
    """Theirs: x = (z - t) exp(-s). Ours: z = (x + shift) exp(log_scale)."""
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
