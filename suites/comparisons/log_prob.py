"""Time of log-prob against normflows, with the same weights, probes and terms.

    python -m suites.comparisons.log_prob

Needs the `peers` extra. normflows runs its plain series, without the memory-saving mode, which
would compute gradients that log-prob does not need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from resflow_bench.logdet import Fixed, LogDetEstimator, Rademacher
from resflow_bench.peers.normflows import normflows_flow, normflows_nets, normflows_seeded
from resflow_bench.speed.benchmark import described
from suites.comparisons.pairs import (
    TimeRatio,
    flow_and_points,
    median_in_words,
    need_normflows,
    ratios,
    say,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from resflow_bench.flows import ResidualFlow

N_TERMS = 20


def main() -> None:
    """Print the median of the paired ratios ours/theirs, with its 99 % interval."""
    need_normflows()
    difference, pairs = compare(*flow_and_points("trained"))
    say(
        f"log-prob at {N_TERMS} terms, ours / normflows: {median_in_words(pairs)}, "
        f"{torch.get_num_threads()} threads; largest difference of a g(x): {difference:.1e}"
    )


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
    # normflows marks its input as differentiated, hence the detached copy.
    theirs = torch.no_grad()(lambda: peer.log_prob(x.detach()))
    with normflows_seeded(0):
        return difference, ratios(ours, theirs)


class AgainstNormflows(TimeRatio):
    """The ratio of times of log-prob."""

    version = "1"

    @described(name="against_normflows.AgainstNormflows.track_time_ratio")
    def track_time_ratio(self) -> dict[str, Any]:
        return self.samples(compare(self.flow, self.x)[1])


if __name__ == "__main__":
    main()
