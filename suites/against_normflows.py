"""Is log-prob as fast as in normflows, with the same weights, probes and terms, in one run?

    python -m suites.against_normflows

Needs the `peers` extra. Theirs is the plain series without the memory-saving mode, which would
compute gradients that nobody asked for. What turns our flows into theirs is here as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import torch

from resflow_bench.flows import ActNorm, Flatten, ResidualBlock
from resflow_bench.intervals import median_interval
from resflow_bench.lab.build import build_flow, build_points
from resflow_bench.lab.cells import Cell
from resflow_bench.layers import LipSwish, SpectralConv2d, SpectralLinear
from resflow_bench.logdet import Fixed, LogDetEstimator, Rademacher

if TYPE_CHECKING:
    from torch import Tensor, nn

    from resflow_bench.flows import ResidualFlow

N_TERMS = 20
N_REPEATS = 30
BATCH_SIZE = 256

N_POWER_STEPS = 5
"""Of each of their layers after an optimiser step, as in the Residual Flows scripts."""


def main() -> None:
    """Print the median of the paired ratios ours/theirs, with its 99 % interval."""
    need_normflows()
    flow, x = flow_and_points("trained")
    difference, ratios = compare(flow, x)
    interval = median_interval(ratios)
    print(  # noqa: T201
        f"log-prob at {N_TERMS} terms takes {interval.value:.3f} [{interval.low:.3f}, "
        f"{interval.high:.3f}] of normflows' time (median and 99 % interval, n = {len(ratios)} "
        f"interleaved pairs, {torch.get_num_threads()} threads; largest difference of a g(x): "
        f"{difference:.1e})"
    )


def need_normflows() -> None:
    """Ends the program with a remedy where normflows is not installed."""
    if find_spec("normflows") is None:
        raise SystemExit(
            "normflows is not installed; .venv/bin/pip install -e '.[peers]' brings it"
        )


def flow_and_points(model: str) -> tuple[ResidualFlow, Tensor]:
    """The MLP flow, d = 64, K = 0.9, float32, "trained" or as it is at "init", and a batch."""
    cell = Cell(
        "throughput",
        {"model": model, "dim": 64, "lipschitz": 0.9, "dtype": "float32", "device": "cpu"},
    )
    return build_flow(cell, Path("results")), build_points(cell, BATCH_SIZE)


def compare(flow: ResidualFlow, x: Tensor) -> tuple[float, np.ndarray]:
    """(max |g_ours - g_theirs| over blocks, seconds ours / seconds theirs in interleaved pairs)."""
    ours_flow = flow.with_estimator(LogDetEstimator(Rademacher(), Fixed(N_TERMS)))
    peer = normflows_flow(flow, reduce_memory=False, n_power_series=N_TERMS).requires_grad_(False)
    with torch.no_grad():
        difference = max(
            float((block.branch(x) - net(x)).abs().max())
            for block, net in zip(flow.blocks, normflows_nets(peer), strict=True)
        )
    generator = torch.Generator().manual_seed(0)
    ours = torch.no_grad()(lambda: ours_flow.log_prob(x, generator))
    theirs = torch.no_grad()(lambda: peer.log_prob(x.detach()))  # which they mark as differentiated
    with normflows_seeded(0):
        ratios = [_seconds(ours) / _seconds(theirs) for _ in range(N_REPEATS + 3)]
    return difference, np.asarray(ratios[3:])  # the first pairs warm up


def normflows_flow(
    flow: ResidualFlow, *, reduce_memory: bool, n_power_series: int | None = None
) -> Any:
    """Their flow with the same layers and a copy of their parameters and power iterations.

    Args:
        flow: of ActNorm, residual blocks on fully connected or convolutional branches with
            LipSwish between the layers, and Flatten.
        reduce_memory: as they mean it: gradients by the Neumann series, taken in the forward pass.
        n_power_series: terms; None is their roulette, geometric(0.5) after two exact terms.

    Returns:
        Their `NormalizingFlow`, in training mode: in evaluation the terms asked for are ignored.

    Raises:
        ValueError: a layer that has no counterpart here.
    """
    from normflows import NormalizingFlow
    from normflows.distributions import DiagGaussian
    from normflows.flows import Residual

    layers: list[Any] = []
    for layer in flow.bijections:
        if isinstance(layer, ActNorm):
            layers.append(_actnorm(layer, (1,) * (len(flow.event) - 1)))
        elif isinstance(layer, ResidualBlock):
            net = _net(layer.branch)
            layers.append(Residual(net, reduce_memory=reduce_memory, n_power_series=n_power_series))
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
    with (
        torch.random.fork_rng(devices=[]),
        patch.object(residual, "geometric_sample", rng.geometric),
    ):
        torch.default_generator.set_state(torch.Generator().manual_seed(seed).get_state())
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
    if not isinstance(stage, SpectralLinear | SpectralConv2d):
        raise _without_counterpart(stage)
    told = {
        "coeff": stage.coefficient,
        "n_iterations": N_POWER_STEPS,
        "bias": stage.bias is not None,
    }
    if isinstance(stage, SpectralLinear):
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
        "normflows_flow converts ActNorm, Flatten, and residual blocks of SpectralLinear, "
        f"SpectralConv2d and LipSwish; got {type(layer).__name__}. Compare a flow of these."
    )


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class AgainstNormflows:
    """The median ratio on the untrained flow, for asv; skipped where normflows is not installed."""

    version = "1"
    unit = "ours/theirs"
    timeout = 600

    def setup(self) -> None:
        if find_spec("normflows") is None:
            raise NotImplementedError("needs the `peers` extra")
        self.flow, self.x = flow_and_points("init")

    def track_log_prob(self) -> dict[str, Any]:
        ratios = compare(self.flow, self.x)[1]
        return {"samples": ratios.tolist(), "number": 1}


if __name__ == "__main__":
    main()
