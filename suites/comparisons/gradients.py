"""Noise of a training's gradient per time against normflows, and the training time it saves.

    python -m suites.comparisons.gradients [--steps N] [--seeds 3]

Needs the `peers` extra. Two measurements on flows of eight blocks with one hidden layer each:

* On the trained flow: the variance over draws of the gradient of mean -log p(x), summed over
  parameters, times seconds; normflows, in its memory-saving mode, over ours.
* On the digits, from the same initial weights, on the same batches, with the same Adam: the seconds
  until ours reaches the final held-out log-likelihood of normflows, over the seconds of normflows.
  For one seed also with a gradient without noise (`Determinant`), whose number of steps no
  estimator can undercut.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import click
import numpy as np
import torch

from resflow_bench.data import dataset_named
from resflow_bench.flows import ActNorm, ResidualBlock, ResidualFlow
from resflow_bench.intervals import mean_interval, median_interval
from resflow_bench.layers import mlp_branch
from resflow_bench.logdet import (
    Determinant,
    Estimator,
    Fixed,
    Gaussian,
    Geometric,
    Hadamard,
    LogDetEstimator,
    Rademacher,
    Roulette,
    tuned,
)
from resflow_bench.peers.normflows import normflows_seeded
from suites.comparisons.density import batches, exact_log_prob, vectors
from suites.comparisons.pairs import BATCH_SIZE, flow_and_points, need_normflows, say
from suites.comparisons.training import THEIR_ROULETTE, Learner, ours, theirs

if TYPE_CHECKING:
    from torch import Tensor

LIPSCHITZ = 0.9
N_BLOCKS = 8
RATE = 1e-3
EVALUATED_EVERY = 5

CANDIDATES: dict[str, Estimator] = {
    "their law": LogDetEstimator(Gaussian(), THEIR_ROULETTE),
    "two exact traces": LogDetEstimator(
        Rademacher(), Roulette(Geometric(0.3), 3, per="batch"), n_traced=2
    ),
    "and stratified N": LogDetEstimator(
        Rademacher(), Roulette(Geometric(0.3), 3, per="stratified"), n_traced=2
    ),
    "and 16 Hadamard probes": LogDetEstimator(
        Hadamard(), Roulette(Geometric(0.3), 3, per="stratified"), 16, n_traced=2
    ),
}
TRAINED_WITH: dict[str, Estimator] = {
    "two exact traces": LogDetEstimator(
        Rademacher(), Roulette(Geometric(0.5), 3, per="batch"), n_traced=2
    ),
    "no noise at all": Determinant(),
}


@click.command()
@click.option("--steps", default=200, show_default=True, help="Optimiser steps of normflows.")
@click.option("--seeds", default=3, show_default=True, help="Trainings of each estimator.")
def main(steps: int, seeds: int) -> None:
    """Print both measurements."""
    need_normflows()
    torch.set_num_threads(1)
    say(f"against normflows {version('normflows')}, memory-saving; one thread, B = {BATCH_SIZE}")
    flow, x = flow_and_points("shallow")
    say("variance x time of the gradient, theirs over ours [99 %]:")
    for name, words in noise(flow, x, n_draws=40).items():
        say(f"  {name}: {words}")
    say(f"seconds to their held-out log-likelihood after {steps} steps, ours over theirs:")
    races = [race(seed, steps) for seed in range(seeds)]
    for name in TRAINED_WITH:
        say(f"  {name}: {in_words([costs[name] for costs in races if name in costs])}")


def in_words(costs: list[RelativeCost]) -> str:
    """The costs of one estimator over the seeds, in words."""
    if n_missed := sum(math.isinf(cost.seconds) for cost in costs):
        return f"not reached in as many steps with {n_missed} of {len(costs)} seeds"
    seconds = [cost.seconds for cost in costs]
    limits = ""
    if len(seconds) > 1:
        interval = mean_interval(seconds)
        limits = f" [{interval.low:.3f}, {interval.high:.3f}] (99 % by t)"
    steps = np.mean([cost.steps for cost in costs])
    return f"{np.mean(seconds):.3f}{limits}, in {steps:.3f} of their steps; seeds: {len(costs)}"


def noise(flow: ResidualFlow, x: Tensor, n_draws: int) -> dict[str, str]:
    """Estimator -> variance, median time, and the ratio of their products, in words."""
    learners = {name: ours(flow, estimator) for name, estimator in CANDIDATES.items()}
    learners["tuned to each branch"] = tuned_learner(flow, x)
    learners["normflows"] = theirs(flow, THEIR_ROULETTE)
    drawn: dict[str, list[Tensor]] = {name: [] for name in learners}
    seconds: dict[str, list[float]] = {name: [] for name in learners}
    with normflows_seeded(0):
        for _ in range(n_draws + 2):
            for name, learner in learners.items():
                start = time.perf_counter()
                gradient = flat_gradient(learner, x)
                seconds[name].append(time.perf_counter() - start)
                drawn[name].append(gradient)
    variances = {name: total_variance(torch.stack(g)) for name, g in drawn.items()}
    taken = {name: np.asarray(s[2:]) for name, s in seconds.items()}
    words = {}
    for name in learners:
        ratio = variances["normflows"] / variances[name]
        time_ratio = median_interval(taken["normflows"] / taken[name])
        words[name] = (
            f"variance {variances[name]:.4g}, {1e3 * np.median(taken[name]):.1f} ms; "
            f"{ratio * time_ratio.value:.3g} [{ratio * time_ratio.low:.3g}, "
            f"{ratio * time_ratio.high:.3g}] (of the times; n = {n_draws})"
        )
    return words


def tuned_learner(flow: ResidualFlow, x: Tensor) -> Learner:
    """A learner whose estimators are tuned to the branches of its own copy of the flow."""
    learner = ours(flow, Determinant())
    copied = learner.flow
    assert isinstance(copied, ResidualFlow)  # ours
    with torch.no_grad():
        branches = copied.branches(x[:32])
    base = LogDetEstimator(Hadamard(), Fixed(3), n_traced=2)
    copied.estimator = tuned(branches, base, generator=torch.Generator().manual_seed(0))
    return learner


def flat_gradient(learner: Learner, x: Tensor) -> Tensor:
    """d loss / d parameters as one vector, (p,)."""
    parameters = [p for p in learner.flow.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(learner.loss(x), parameters, materialize_grads=True)
    return torch.cat([g.flatten() for g in gradients])


def total_variance(draws: Tensor) -> float:
    """The variance over the draws, (n, p), summed over coordinates."""
    return float(draws.double().var(0).sum())


@dataclass(frozen=True)
class RelativeCost:
    """Cost of reaching the final likelihood of normflows, as shares of its seconds and its steps.

    Both are infinite if it was not reached in as many steps.
    """

    seconds: float
    steps: float


def race(seed: int, n_steps: int) -> dict[str, RelativeCost]:
    """Estimator -> its cost. All take steps in turn, and evaluations are not timed."""
    data = dataset_named("digits")
    generator = torch.Generator().manual_seed(seed)
    flow = initial_flow(generator)
    flow.initialise(vectors(data, data.train[:BATCH_SIZE], generator))
    held_out = vectors(data, data.test, torch.Generator().manual_seed(0))
    names = list(TRAINED_WITH) if seed == 0 else list(TRAINED_WITH)[:1]
    learners = {name: ours(flow, TRAINED_WITH[name], seed) for name in names}
    learners["normflows"] = theirs(flow, THEIR_ROULETTE)
    optimisers = {
        name: torch.optim.Adam(learner.flow.parameters(), lr=RATE)
        for name, learner in learners.items()
    }
    seconds = dict.fromkeys(learners, 0.0)
    curves: dict[str, list[tuple[int, float, float]]] = {name: [] for name in learners}
    with normflows_seeded(seed):
        for step, x in enumerate(batches(data, n_steps, generator), start=1):
            for name, learner in learners.items():
                start = time.perf_counter()
                optimisers[name].zero_grad()
                learner.loss(x).backward()
                optimisers[name].step()
                learner.update()
                seconds[name] += time.perf_counter() - start
            if step % EVALUATED_EVERY == 0 or step == n_steps:
                for name, learner in learners.items():
                    if name == "normflows" and step < n_steps:
                        continue
                    likelihood = float(exact_log_prob(learner.flow, held_out).mean())
                    curves[name].append((step, seconds[name], likelihood))
                click.echo(f"seed {seed}: step {step}/{n_steps}", err=True)
    target = curves["normflows"][-1][2]
    return {
        name: next(
            (
                RelativeCost(spent / seconds["normflows"], step / n_steps)
                for step, spent, likelihood in curves[name]
                if likelihood >= target
            ),
            RelativeCost(math.inf, math.inf),
        )
        for name in names
    }


def initial_flow(generator: torch.Generator) -> ResidualFlow:
    """Eight pairs of ActNorm and a block with one hidden layer of 128 LipSwish units."""
    layers: list[torch.nn.Module] = []
    for _ in range(N_BLOCKS):
        branch = mlp_branch(64, (128,), LIPSCHITZ, generator=generator)
        layers += [ActNorm(64), ResidualBlock(branch)]
    return ResidualFlow(layers, 64)


if __name__ == "__main__":
    main()
