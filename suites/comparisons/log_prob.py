"""Is log-prob as fast as in normflows, with the same weights, probes and terms, in one run?

    python -m suites.comparisons.log_prob

Needs the `peers` extra. Theirs is the plain series without the memory-saving mode, which would
compute gradients that nobody asked for. What turns our flows into theirs is here as well.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from resflow_bench.intervals import median_interval
from resflow_bench.lab.cells import Cell
from resflow_bench.logdet import Fixed, LogDetEstimator, Rademacher
from resflow_bench.models.build import build_flow, build_points
from resflow_bench.peers.normflows import normflows_flow, normflows_nets, normflows_seeded
from resflow_bench.speed.benchmark import described
from resflow_bench.speed.timing import elapsed

if TYPE_CHECKING:
    from torch import Tensor

    from resflow_bench.flows import ResidualFlow

N_TERMS = 20
N_REPEATS = 30
N_WARM_UP = 3
BATCH_SIZE = 256


def main() -> None:
    """Print the median of the paired ratios ours/theirs, with its 99 % interval."""
    need_normflows()
    flow, x = flow_and_points("trained")
    difference, pairs = compare(flow, x)
    interval = median_interval(pairs)
    say(
        f"log-prob at {N_TERMS} terms takes {interval.value:.3f} [{interval.low:.3f}, "
        f"{interval.high:.3f}] of normflows' time (median and 99 % interval, n = {len(pairs)} "
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
        return difference, ratios(ours, theirs)


def ratios(one: Callable[[], object], other: Callable[[], object]) -> np.ndarray:
    """Seconds of one / seconds of the other in interleaved pairs, after a warm-up: (n,)."""
    pairs = [elapsed(one) / elapsed(other) for _ in range(N_WARM_UP + N_REPEATS)]
    return np.asarray(pairs[N_WARM_UP:])


def say(line: str) -> None:
    """On standard output."""
    print(line, flush=True)  # noqa: T201


def skip_without_normflows() -> None:
    """In the `setup` of an asv class: what is not installed is not measured."""
    if find_spec("normflows") is None:
        raise NotImplementedError("needs the `peers` extra")


class AgainstNormflows:
    """The median ratio on the untrained flow, for asv; skipped where normflows is not installed."""

    version = "1"
    unit = "ours/theirs"
    timeout = 600

    def setup(self) -> None:
        skip_without_normflows()
        self.flow, self.x = flow_and_points("init")

    @described(name="against_normflows.AgainstNormflows.track_time_ratio")
    def track_time_ratio(self) -> dict[str, Any]:
        return {"samples": compare(self.flow, self.x)[1].tolist(), "number": 1}


if __name__ == "__main__":
    main()
