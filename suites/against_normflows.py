"""Is log-prob as fast as in normflows, with the same weights, probes and terms, in one run?

    python -m suites.against_normflows

Needs the `peers` extra. Theirs is the plain series without the memory-saving mode, which would
compute gradients that nobody asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from resflow_bench.intervals import median_interval
from resflow_bench.lab.build import build_flow, build_points
from resflow_bench.lab.cells import Cell
from resflow_bench.logdet import Fixed, LogDetEstimator, Rademacher

if TYPE_CHECKING:
    from torch import Tensor, nn

    from resflow_bench.flows import ResidualFlow
    from resflow_bench.layers import Branch, LinearBranch

N_TERMS = 20
N_REPEATS = 30
BATCH_SIZE = 256


def main() -> None:
    """Print the median of the paired ratios ours/theirs, with its 99 % interval."""
    if find_spec("normflows") is None:
        raise SystemExit(
            "normflows is not installed; .venv/bin/pip install -e '.[peers]' brings it"
        )
    cell = Cell(
        "throughput",
        {"model": "trained", "dim": 64, "lipschitz": 0.9, "dtype": "float32", "device": "cpu"},
    )
    flow = build_flow(cell, Path("results"))
    x = build_points(cell, BATCH_SIZE)
    difference, ratios = compare(flow, x)
    interval = median_interval(ratios)
    print(  # noqa: T201
        f"log-prob at {N_TERMS} terms takes {interval.value:.3f} [{interval.low:.3f}, "
        f"{interval.high:.3f}] of normflows' time (median and 99 % interval, n = {len(ratios)} "
        f"interleaved pairs, {torch.get_num_threads()} threads; largest difference of a g(x): "
        f"{difference:.1e})"
    )


def compare(flow: ResidualFlow, x: Tensor) -> tuple[float, np.ndarray]:
    """(max |g_ours - g_theirs| over blocks, seconds ours / seconds theirs in interleaved pairs)."""
    ours_flow = flow.with_estimator(LogDetEstimator(Rademacher(), Fixed(N_TERMS)))
    blocks = [normflows_block(block.branch) for block in flow.blocks]
    with torch.no_grad():
        difference = max(
            float((block.branch(x) - peer.nnet(x)).abs().max())
            for block, peer in zip(flow.blocks, blocks, strict=True)
        )
    generator = torch.Generator().manual_seed(0)
    ours = torch.no_grad()(lambda: ours_flow.log_prob(x, generator))
    theirs = torch.no_grad()(lambda: normflows_log_prob(flow, blocks, x))
    ratios = [_seconds(ours) / _seconds(theirs) for _ in range(N_REPEATS + 3)]
    return difference, np.asarray(ratios[3:])  # the first pairs warm up


def normflows_block(branch: Branch | LinearBranch) -> Any:
    """normflows' residual block with the branch's weights, taking `N_TERMS` terms."""
    from normflows.flows.residual import iResBlock
    from normflows.nets.lipschitz import InducedNormLinear, Swish

    layers: list[nn.Module] = []
    linears: Any = branch.linears  # of the MLP flows alone, which are all that is compared here
    activations: Any = branch.activations
    for i, linear in enumerate(linears):
        n_out, n_in = linear.weight.shape
        peer = InducedNormLinear(n_in, n_out, coeff=linear.coefficient, n_iterations=5)
        with torch.no_grad():
            peer.weight.copy_(linear.weight)
            peer.bias.copy_(linear.bias)
            peer.u.copy_(linear.u)
            peer.v.copy_(linear.v)
        layers.append(peer)
        if i < len(activations):
            activation = Swish()
            with torch.no_grad():
                activation.beta.fill_(activations[i].raw_beta)
            layers.append(activation)
    block = iResBlock(
        torch.nn.Sequential(*layers),
        n_power_series=N_TERMS,
        neumann_grad=False,
        grad_in_forward=False,
    )
    return block.requires_grad_(False).train()  # in evaluation mode the terms asked for are ignored


def normflows_log_prob(flow: ResidualFlow, blocks: list[Any], x: Tensor) -> Tensor:
    """The flow's log-density with every residual block replaced by theirs."""
    log_det = x.new_zeros(len(x))
    peers = iter(blocks)
    for layer in flow.bijections:
        if hasattr(layer, "branch"):
            x, log_px = next(peers)(x, torch.zeros_like(x[:, :1]))
            log_det = log_det - log_px[:, 0]
        else:
            x, change = layer.forward_and_log_det(x, flow.estimator)
            log_det = log_det + change
    return -0.5 * (x.square().sum(-1) + flow.dim * np.log(2 * np.pi)) + log_det


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
        cell = Cell(
            "throughput",
            {"model": "init", "dim": 64, "lipschitz": 0.9, "dtype": "float32", "device": "cpu"},
        )
        self.flow = build_flow(cell, Path("results"))
        self.x = build_points(cell, BATCH_SIZE)

    def track_log_prob(self) -> dict[str, Any]:
        ratios = compare(self.flow, self.x)[1]
        return {"samples": ratios.tolist(), "number": 1}


if __name__ == "__main__":
    main()
