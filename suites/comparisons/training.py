"""Time and memory of a training step against normflows, with the same weights and gradients.

    python -m suites.comparisons.training

Needs the `peers` extra. A step is the loss, its gradient, Adam (fused, for both) and the update of
the norms, in one loop for both. normflows runs in its memory-saving mode and updates each layer by
five power iterations; ours certifies every norm as well.

"The same gradient" is (sum_k w_k (-J)^k v)^T dJ v, k = 0 ... N - 1, with the same weights w. Ours
forms N + 2 products with J for it: N for the value of the log-likelihood, whose powers the gradient
shares, and one from either side for dJ. normflows forms N, since it returns the gradient's sum,
v^T (sum_k w_k (-J)^k) J v, instead of the log-likelihood. So `Fixed(N)` corresponds to
n_power_series = N - 1. The roulette of normflows, geometric(0.5) after "two exact terms", always
takes J^0 ... J^3, and corresponds to `Roulette(Geometric(0.5), n_exact=4, per="batch")`. Both draw
Gaussian probes.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from resflow_bench.flows import MultiScale, ResidualFlow, image_flow
from resflow_bench.layers import SpectralLinear
from resflow_bench.logdet import (
    Estimator,
    Fixed,
    Gaussian,
    Geometric,
    LogDetEstimator,
    Roulette,
    Truncation,
)
from resflow_bench.peers.normflows import (
    normflows_flow,
    normflows_nets,
    normflows_seeded,
    normflows_update,
)
from resflow_bench.speed.benchmark import described
from resflow_bench.speed.timing import peak_bytes
from suites.comparisons.pairs import (
    N_REPEATS,
    N_WARM_UP,
    TimeRatio,
    flow_and_points,
    median_in_words,
    need_normflows,
    say,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

N_TERMS = 20
LEARNING_RATE = 1e-3
KINK = 1e-5

THEIR_ROULETTE = Roulette(Geometric(0.5), n_exact=4, per="batch")
"""Our roulette with the gradient of the default of normflows."""


@dataclass(frozen=True)
class Learner:
    """A flow in training, ours or of normflows.

    flow: its parameters are trained in place.
    loss: -mean log p(x), nats, with a graph; x is (B, *event).
    update: updates the norms after an optimiser step.
    """

    flow: nn.Module
    loss: Callable[[Tensor], Tensor]
    update: Callable[[], None]


def ours(flow: ResidualFlow, estimator: Estimator, seed: int = 0) -> Learner:
    """A learner of a copy of our flow; `seed` is of the estimator's draws."""
    flow = copy.deepcopy(flow).requires_grad_(True).with_estimator(estimator)
    generator = torch.Generator().manual_seed(seed)
    return Learner(flow, lambda x: -flow.log_prob(x, generator).mean(), flow.update)


def same_gradient(truncation: Truncation) -> LogDetEstimator:
    """Our estimator whose gradient has the distribution of the gradient of normflows."""
    return LogDetEstimator(Gaussian(), truncation)


def theirs(flow: ResidualFlow, truncation: Truncation) -> Learner:
    """A learner of the same flow in normflows, in memory-saving mode, with the same gradient.

    Raises:
        ValueError: if the truncation has no counterpart in normflows.
    """
    if isinstance(truncation, Fixed):
        peer = normflows_flow(flow, reduce_memory=True, n_power_series=truncation.n_terms - 1)
    elif truncation == THEIR_ROULETTE:
        peer = normflows_flow(flow, reduce_memory=True)
    else:
        raise ValueError(
            f"normflows supports the gradients of Fixed and of {THEIR_ROULETTE}; got {truncation}. "
            "Compare one of these."
        )
    return Learner(peer, peer.forward_kld, lambda: normflows_update(peer))


def main() -> None:
    """Print ratios of times, shares of the updates, and peaks of memory."""
    need_normflows()
    say(f"a training step, ours / normflows {version('normflows')}, float32 on the CPU")
    mlp, x = flow_and_points("trained")
    report(
        "MLP flow, d = 64, 8 blocks of 128-128, trained", mlp, x, (Fixed(N_TERMS), THEIR_ROULETTE)
    )
    conv, x = conv_flow_and_points()
    report(
        "convolutional flow, 1 x 8 x 8, 6 blocks of 3-1-3 with 32 channels",
        conv,
        x,
        (Fixed(N_TERMS),),
    )


def report(what: str, flow: ResidualFlow, x: Tensor, truncations: tuple[Truncation, ...]) -> None:
    """Print the lines about one flow."""
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
    return (
        f"{median_in_words(totals[:, 0] / totals[:, 1])} of normflows' time; ours "
        f"{np.median(totals[:, 0]):.3g} s; updates take {share[0]:.0%} of ours, {share[1]:.0%} of "
        "theirs"
    )


def peaks(flow: ResidualFlow, x: Tensor) -> str:
    """The peak memory of a step of either, in words."""
    few, some, many = (peak(ours(flow, same_gradient(Fixed(n))), x) for n in (5, N_TERMS, 50))
    peer = peak(theirs(flow, Fixed(N_TERMS)), x)
    return (
        f"at {N_TERMS} terms ours {some / 2**20:.1f} MiB, theirs {peer / 2**20:.1f} MiB "
        f"(ratio {some / peer:.2f}); ours at 50 terms / at 5 terms: {many / few:.3f}"
    )


def compare(flow: ResidualFlow, x: Tensor, truncation: Truncation) -> np.ndarray:
    """Seconds of interleaved steps, (n, [ours, theirs], [gradient and Adam, update])."""
    with normflows_seeded(0):
        pair = [steps(ours(flow, same_gradient(truncation)), x), steps(theirs(flow, truncation), x)]
        seconds = [[next(learner) for learner in pair] for _ in range(N_WARM_UP + N_REPEATS)]
    return np.asarray(seconds[N_WARM_UP:])


def steps(learner: Learner, x: Tensor) -> Iterator[tuple[float, float]]:
    """Take training steps on one batch; the seconds of the two parts of each."""
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
    """Bytes that a step holds at most, beyond the parameters and Adam's moments."""
    with normflows_seeded(0):
        one_after_another = steps(learner, x)
        next(one_after_another)  # allocates the moments
        learner.flow.zero_grad()
        return peak_bytes(lambda: next(one_after_another), "cpu")


def gradient_difference(flow: ResidualFlow, x: Tensor) -> float:
    """max over parameters of g of ||ours - theirs|| / ||ours||, from the same probes.

    The gradient of max(1, .) jumps where the normalisation of a weight begins. Ours begins 1e-6 of
    the norm earlier, so weights whose norm is within `KINK` of that point are left out.
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
    """For each parameter of each g: True for a weight that `gradient_difference` leaves out."""
    weights = {
        layer.weight
        for layer in flow.modules()
        if isinstance(layer, SpectralLinear) and abs(1 - _ratio(layer)) < KINK
    }
    return [p in weights for block in flow.blocks for p in block.branch.parameters()]


def _ratio(layer: SpectralLinear) -> float:
    u, v, share = layer.norm.constants(layer.weight)
    return float(torch.dot(u, torch.mv(layer.weight.detach(), v)) * share)


def branch_gradients(learner: Learner) -> list[Tensor]:
    """The gradients of the parameters of each g, from data to latent, in one order for both."""
    if isinstance(learner.flow, ResidualFlow):
        branches: list[Any] = [block.branch for block in learner.flow.blocks]
    else:
        branches = normflows_nets(learner.flow)
    return [p.grad.flatten() for branch in branches for p in branch.parameters()]


def conv_flow_and_points() -> tuple[ResidualFlow, Tensor]:
    """A flow of six untrained blocks on one scale, without a logit, and a batch.

    All convolutions act on the same grid.
    """
    x = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    flow = image_flow((1, 8, 8), MultiScale(1, 6, (32, 32), n_tail=0, margin=None))
    flow.initialise(x)
    return flow, x


class TrainingAgainstNormflows(TimeRatio):
    """The ratio of times of a training step."""

    version = "2"

    @described(name="training_against_normflows.TrainingAgainstNormflows.track_time_ratio")
    def track_time_ratio(self) -> dict[str, Any]:
        seconds = compare(self.flow, self.x, Fixed(N_TERMS)).sum(2)
        return self.samples(seconds[:, 0] / seconds[:, 1])


if __name__ == "__main__":
    main()
