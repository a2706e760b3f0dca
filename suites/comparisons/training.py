"""Time and memory of a training step, ours over normflows', with the same weights and gradients.

    python -m suites.comparisons.training

Needs the `peers` extra. A step is the loss, its gradient, Adam (fused, for both) and the update of
the norms, in one loop for both. Theirs runs in its memory-saving mode and updates by five power
iterations per layer; ours also certifies every norm.

"The same gradient" is (sum_k w_k (-J)^k v)^T dJ v, k = 0 ... N - 1, with the same weights w. Ours
forms N + 2 products with J: N for the value of the log-likelihood, whose powers the gradient
shares, and one from either side for dJ. Theirs forms N, since it does not return an estimate of the
log-likelihood, but the sum v^T (sum_k w_k (-J)^k) J v whose gradient is taken. So `Fixed(N)`
corresponds to n_power_series = N - 1. Their roulette, geometric(0.5) after "two exact terms",
always takes J^0 ... J^3 and corresponds to `Roulette(Geometric(0.5), n_exact=4, per="batch")`.
Both draw Gaussian probes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.metadata import version
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resflow_bench.flows import MultiScale, ResidualFlow, image_flow
from resflow_bench.layers import Linear
from resflow_bench.layers.norms.operators import Matrix
from resflow_bench.layers.norms.spectral import SpectralNorm
from resflow_bench.logdet import Fixed, Truncation
from resflow_bench.peers.normflows import normflows_seeded
from resflow_bench.speed.benchmark import described
from resflow_bench.speed.timing import peak_bytes
from suites.comparisons.learners import (
    THEIR_ROULETTE,
    Learner,
    branch_gradients,
    ours,
    same_gradient,
    theirs,
)
from suites.comparisons.pairs import (
    N_TERMS,
    TimeRatio,
    flow_and_points,
    interleaved,
    need_normflows,
    of_their_time,
    say,
)

LEARNING_RATE = 1e-3
KINK = 1e-5


def main() -> None:
    """Print the ratios of times, the shares of the updates, and the memory peaks."""
    need_normflows()
    say(f"a training step, ours / normflows {version('normflows')}, float32 on the CPU")
    same = Fixed(N_TERMS)
    mlp, x = flow_and_points("trained")
    report("MLP flow, d = 64, 8 blocks of 128-128, trained", mlp, x, (same, THEIR_ROULETTE))
    conv, x = conv_flow_and_points()
    report("convolutional flow, 1 x 8 x 8, 6 blocks of 3-1-3 with 32 channels", conv, x, (same,))


def report(what: str, flow: ResidualFlow, x: Tensor, truncations: tuple[Truncation, ...]) -> None:
    """Print the comparison on one flow."""
    difference = gradient_difference(flow, x)
    say(f"{what}, B = {len(x)}; largest relative difference of a gradient: {difference:.1e}")
    all_threads = torch.get_num_threads()
    try:
        for truncation, n_threads in product(truncations, sorted({1, all_threads})):
            torch.set_num_threads(n_threads)
            say(f"  {truncation}, threads: {n_threads}: {times(compare(flow, x, truncation))}")
    finally:
        torch.set_num_threads(all_threads)
    say(f"  peak of a step beyond parameters and Adam's moments: {peaks(flow, x)}")


def times(seconds: np.ndarray) -> str:
    """The result of `compare` in words."""
    totals = seconds.sum(2)  # (n, 2)
    share = np.median(seconds[:, :, 1] / totals, axis=0)
    words = of_their_time(totals[:, 0] / totals[:, 1], f"; ours {np.median(totals[:, 0]):.3g} s")
    return f"{words}; updates take {share[0]:.0%} of ours, {share[1]:.0%} of theirs"


def peaks(flow: ResidualFlow, x: Tensor) -> str:
    """Peak memory of a step of each, in words."""
    few, some, many = (peak(ours(flow, same_gradient(Fixed(n))), x) for n in (5, N_TERMS, 50))
    peer = peak(theirs(flow, Fixed(N_TERMS)), x)
    return (
        f"at {N_TERMS} terms ours {some / 2**20:.1f} MiB, theirs {peer / 2**20:.1f} MiB "
        f"(ratio {some / peer:.2f}); ours at 50 terms / at 5 terms: {many / few:.3f}"
    )


def compare(flow: ResidualFlow, x: Tensor, truncation: Truncation) -> np.ndarray:
    """Seconds of interleaved steps, (n, [ours, theirs], [gradient and Adam, update])."""
    with normflows_seeded(0):
        mine = steps(ours(flow, same_gradient(truncation)), x)
        its = steps(theirs(flow, truncation), x)
        return np.asarray(interleaved([lambda: next(mine), lambda: next(its)]))


def steps(learner: Learner, x: Tensor) -> Iterator[tuple[float, float]]:
    """Seconds of the two parts of each training step, always on the same batch."""
    optimiser = torch.optim.Adam(learner.flow.parameters(), lr=LEARNING_RATE, fused=True)
    while True:
        start = time.perf_counter()
        optimiser.zero_grad()
        learner.loss(x).backward()
        optimiser.step()
        middle = time.perf_counter()
        learner.update()
        yield middle - start, time.perf_counter() - middle


def peak(learner: Learner, x: Tensor) -> int:
    """Peak bytes of a step, beyond the parameters and Adam's moments."""
    with normflows_seeded(0):
        one_after_another = steps(learner, x)
        next(one_after_another)  # allocates the moments
        learner.flow.zero_grad()
        return peak_bytes(lambda: next(one_after_another), "cpu")


def gradient_difference(flow: ResidualFlow, x: Tensor) -> float:
    """max over parameters of g of ||ours - theirs|| / ||ours||, from the same probes.

    Weights whose norm is within `KINK` of the normalisation threshold are left out: the gradient of
    max(1, .) jumps there, and ours normalises from 1e-6 of the norm earlier, to keep its promise.
    """
    seed = 0
    with normflows_seeded(seed):
        pair = [ours(flow, same_gradient(Fixed(N_TERMS)), seed), theirs(flow, Fixed(N_TERMS))]
        for learner in pair:
            learner.loss(x).backward()
    return max(
        float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(a))
        for a, b, is_kink in zip(*map(branch_gradients, pair), _at_the_kink(flow), strict=True)
        if not is_kink
    )


def _at_the_kink(flow: ResidualFlow) -> list[bool]:
    """For each parameter of each g: whether it is such a weight."""
    weights = {
        layer.weight
        for layer in flow.modules()
        if isinstance(layer, Linear) and abs(1 - _ratio(layer)) < KINK
    }
    return [p in weights for block in flow.blocks for p in block.branch.parameters()]


def _ratio(layer: Linear) -> float:
    assert isinstance(layer.norm, SpectralNorm)  # of every flow that normflows can hold
    u, v, share = layer.norm.constants(Matrix(layer.weight))
    return float(torch.dot(u, torch.mv(layer.weight.detach(), v)) * share)


def conv_flow_and_points() -> tuple[ResidualFlow, Tensor]:
    """Six untrained blocks on one scale without a logit, and a batch; both have the same grid."""
    x = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    flow = image_flow((1, 8, 8), MultiScale(1, 6, (32, 32), n_tail=0, margin=None))
    flow.initialise(x)
    return flow, x


class TrainingAgainstNormflows(TimeRatio):
    """Time of a training step, ours over theirs."""

    version = "2"

    @described(name="training_against_normflows.TrainingAgainstNormflows.track_time_ratio")
    def track_time_ratio(self) -> dict[str, Any]:
        seconds = compare(self.flow, self.x, Fixed(N_TERMS)).sum(2)
        return {"samples": (seconds[:, 0] / seconds[:, 1]).tolist(), "number": 1}


if __name__ == "__main__":
    main()
