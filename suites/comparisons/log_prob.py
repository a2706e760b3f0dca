"""Time of log-prob, ours over normflows', with the same weights, probes and number of terms.

    python -m suites.comparisons.log_prob

Needs the `peers` extra. Theirs is the plain series without the memory-saving mode, which would
compute gradients that are not needed here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from resflow_bench.flows import ResidualFlow
from resflow_bench.logdet import Fixed, LogDetEstimator, Rademacher
from resflow_bench.peers.normflows import normflows_flow, normflows_nets, normflows_seeded
from resflow_bench.speed.benchmark import described
from suites.comparisons.pairs import (
    N_TERMS,
    TimeRatio,
    flow_and_points,
    need_normflows,
    of_their_time,
    ratios,
    say,
)


def main() -> None:
    """Print the median of the paired ratios ours/theirs, with its 99 % interval."""
    need_normflows()
    flow, x = flow_and_points("trained")
    difference, pairs = compare(flow, x)
    words = f", {torch.get_num_threads()} threads; largest difference of a g(x): {difference:.1e}"
    say(f"log-prob at {N_TERMS} terms takes {of_their_time(pairs, words)}")


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
    theirs = torch.no_grad()(lambda: peer.log_prob(x.detach()))  # their call marks x for gradients
    with normflows_seeded(0):
        return difference, ratios(ours, theirs)


class AgainstNormflows(TimeRatio):
    """Time of log-prob, ours over theirs."""

    @described(name="against_normflows.AgainstNormflows.track_time_ratio")
    def track_time_ratio(self) -> dict[str, Any]:
        return {"samples": compare(self.flow, self.x)[1].tolist(), "number": 1}


if __name__ == "__main__":
    main()
