"""At what share of the matrix-product rate do the products of a log-prob run, and how do they grow?

    python -m suites.product_rate

Fixed terms, Rademacher probes, float32. The share is the FLOPs of a log-prob's matrix products
over its seconds, against a large square matrix product timed in turn with it. The exponents are
those of seconds ~ n^a in the number of terms, of probes and of examples, from ladders whose rungs
are timed in turn: one least-squares fit for each round, and the median of the rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from resflow_bench.flows import ResidualFlow
from resflow_bench.intervals import Interval, median_interval
from resflow_bench.lab.timing import MATMUL_SIZE, count_flops, elapsed
from resflow_bench.logdet import Fixed, LogDetEstimator, Rademacher
from suites.against_normflows import say

if TYPE_CHECKING:
    from torch import Tensor

N_ROUNDS = 12
N_WARM_UP = 2
WIDE = {"dim": 784, "hidden": (1024,), "n_blocks": 2}
NARROW = {"dim": 64, "hidden": (128,), "n_blocks": 2}
LADDERS = {
    "terms": [(n, 1, 256) for n in (20, 40, 80, 160)],
    "probes": [(20, n, 256) for n in (4, 8, 16, 32)],
    "examples": [(20, 1, n) for n in (512, 1024, 2048, 4096)],
}
"""(terms, probes, examples) of each rung; the first is large enough to hide what is done once."""


def main() -> None:
    """Print the share and the three exponents."""
    share = rate_share(WIDE, n_terms=20, n_probes=8, batch_size=64)
    say(
        f"fixed(20), 8 probes, d = 784, h = 1024, B = 64: {_percent(share)} of the rate of a "
        f"matrix product in the same run ({torch.get_num_threads()} threads, n = {share.n} rounds)"
    )
    for name, rungs in LADDERS.items():
        found = exponent(NARROW, rungs)
        say(
            f"seconds ~ {name}^a: a = {found.value:.3f} [{found.low:.3f}, {found.high:.3f}] "
            f"(d = 64, h = 128, {_sizes(rungs, name)}, n = {found.n} rounds)"
        )


def call(flow: ResidualFlow, n_terms: int, n_probes: int, batch_size: int) -> Callable[[], Tensor]:
    """log-prob of a batch of standard normal points."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch_size, flow.dim, generator=generator)
    view = flow.with_estimator(LogDetEstimator(Rademacher(), Fixed(n_terms), n_probes))
    return torch.no_grad()(lambda: view.log_prob(x, generator))


def flow_of(sizes: dict[str, object]) -> ResidualFlow:
    """Untrained, K = 0.9."""
    return ResidualFlow.mlp(lipschitz=0.9, **sizes)  # type: ignore[arg-type]


def rate_share(sizes: dict[str, object], n_terms: int, n_probes: int, batch_size: int) -> Interval:
    """FLOP/s of log-prob over that of a square matrix product, rounds in turn."""
    run = call(flow_of(sizes), n_terms, n_probes, batch_size)
    flops = count_flops(run)
    n = MATMUL_SIZE["cpu"]
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(0))
    shares = [
        (flops / elapsed(run)) / (2 * n**3 / elapsed(lambda: a @ a))
        for _ in range(N_ROUNDS + N_WARM_UP)
    ]
    return median_interval(shares[N_WARM_UP:])


def exponent(sizes: dict[str, object], rungs: list[tuple[int, int, int]]) -> Interval:
    """a of seconds ~ n^a, n the size that the rungs differ in."""
    flow = flow_of(sizes)
    calls = [call(flow, *rung) for rung in rungs]
    size = np.log([float(np.prod(rung)) for rung in rungs])
    slopes = []
    for _ in range(N_ROUNDS + N_WARM_UP):
        taken = np.log([elapsed(run) for run in calls])
        slopes.append(float(np.polyfit(size, taken, 1)[0]))
    return median_interval(slopes[N_WARM_UP:])


def _percent(share: Interval) -> str:
    return f"{100 * share.value:.0f} % [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def _sizes(rungs: list[tuple[int, int, int]], name: str) -> str:
    place = list(LADDERS).index(name)
    return ", ".join(str(rung[place]) for rung in rungs)


class ProductRate:
    """The share and the exponents, for asv."""

    version = "1"
    timeout = 600
    params = ("terms", "probes", "examples")
    param_names = ("along",)

    def track_exponent(self, along: str) -> float:
        return exponent(NARROW, LADDERS[along]).value

    track_exponent.unit = "1"  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
