"""Variance times seconds of a training's gradient, and the speed of training, against normflows.

    python -m suites.comparisons.gradients [--steps N] [--seeds 3]

Needs the `peers` extra. Two measurements, on flows of eight blocks with one hidden layer each:

* On the trained flow: the variance over draws of the gradient of mean -log p(x), summed over
  parameters, times seconds, theirs over ours. Theirs is in the memory-saving mode, the usual one
  for training.
* On the digits, from the same initial weights, on the same batches, with the same Adam: seconds
  until ours reaches the final held-out log-likelihood of theirs, over the seconds of theirs. For
  one seed also with a gradient without noise (`Determinant`): no estimator needs fewer steps.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import torch

from resflow_bench.data import dataset_named
from resflow_bench.flows import ActNorm, ResidualBlock, ResidualFlow
from resflow_bench.intervals import mean_interval, median_interval
from resflow_bench.lab import Cell
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
from resflow_bench.models import build_flow, build_points
from resflow_bench.peers.normflows import normflows_seeded
from suites.comparisons.density import batches, vectors
from suites.comparisons.learners import THEIR_ROULETTE, Learner, exact_log_prob, ours, theirs
from suites.comparisons.pairs import need_normflows, say

if TYPE_CHECKING:
    from torch import Tensor

BATCH_SIZE = 256
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
@click.option("--steps", default=200, show_default=True, help="Optimiser steps of theirs.")
@click.option("--seeds", default=3, show_default=True, help="Trainings of each kind.")
def main(steps: int, seeds: int) -> None:
    """Print both measurements."""
    need_normflows()
    torch.set_num_threads(1)
    say(f"against normflows {version('normflows')}, memory-saving; one thread, B = {BATCH_SIZE}")
    flow, x = flow_and_points()
    say("variance x time of the gradient, theirs over ours [99 %]:")
    for name, found in noise(flow, x, n_draws=40).items():
        say(f"  {name}: {found}")
    say(f"seconds to their held-out log-likelihood after {steps} steps, ours over theirs:")
    races = [race(seed, steps) for seed in range(seeds)]
    for name in TRAINED_WITH:
        say(f"  {name}: {outcome([one[name] for one in races if name in one])}")


def outcome(ratios: list[TimeToMatch]) -> str:
    """Results of the races of one candidate, in words."""
    there = [ratio for ratio in ratios if ratio.seconds < math.inf]
    if len(there) < len(ratios):
        return (
            f"not reached in as many steps with {len(ratios) - len(there)} of {len(ratios)} seeds"
        )
    seconds = [ratio.seconds for ratio in ratios]
    limits = ""
    if len(seconds) > 1:
        interval = mean_interval(seconds)
        limits = f" [{interval.low:.3f}, {interval.high:.3f}] (99 % by t)"
    steps = np.mean([ratio.steps for ratio in ratios])
    return f"{np.mean(seconds):.3f}{limits}, in {steps:.3f} of their steps; seeds: {len(ratios)}"


def flow_and_points() -> tuple[ResidualFlow, Tensor]:
    """The trained shallow flow, and a batch."""
    axes: dict[str, int | float | str] = {"model": "shallow", "dim": 64, "lipschitz": LIPSCHITZ}
    cell = Cell("efficiency", {**axes, "dtype": "float32", "device": "cpu"})
    return build_flow(cell, Path("results")), build_points(cell, BATCH_SIZE)


def noise(flow: ResidualFlow, x: Tensor, n_draws: int) -> dict[str, str]:
    """Variance, time and their product for each candidate, in words; medians of paired times."""
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
    said = {}
    for name in learners:
        ratio = variances["normflows"] / variances[name]
        time_ratio = median_interval(taken["normflows"] / taken[name])
        said[name] = (
            f"variance {variances[name]:.4g}, {1e3 * np.median(taken[name]):.1f} ms; "
            f"{ratio * time_ratio.value:.3g} [{ratio * time_ratio.low:.3g}, "
            f"{ratio * time_ratio.high:.3g}] (of the times; n = {n_draws})"
        )
    return said


def tuned_learner(flow: ResidualFlow, x: Tensor) -> Learner:
    """Ours with estimators tuned to its own branches."""
    learner = ours(flow, Determinant())
    copied = learner.flow
    assert isinstance(copied, ResidualFlow)  # ours
    with torch.no_grad():
        branches = copied.branches(x[:32])
    base = LogDetEstimator(Hadamard(), Fixed(3), n_traced=2)
    copied.estimator = tuned(branches, base, generator=torch.Generator().manual_seed(0))
    return learner


def flat_gradient(learner: Learner, x: Tensor) -> Tensor:
    """d loss / d parameters as one vector."""
    parameters = [p for p in learner.flow.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(learner.loss(x), parameters, materialize_grads=True)
    return torch.cat([g.flatten() for g in gradients])


def total_variance(draws: Tensor) -> float:
    """Sum over coordinates of the variance of draws (n, p)."""
    return float(draws.double().var(0).sum())


@dataclass(frozen=True)
class TimeToMatch:
    """Seconds and steps until ours matched the final likelihood of theirs, as shares of theirs."""

    seconds: float
    steps: float


def race(seed: int, n_steps: int) -> dict[str, TimeToMatch]:
    """Train all in turn, step by step, on the same machine; evaluations are not timed.

    A candidate that does not match theirs within as many steps has infinite shares.
    """
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
    evaluations: dict[str, list[tuple[int, float, float]]] = {name: [] for name in learners}
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
                    evaluations[name].append((step, seconds[name], likelihood))
                click.echo(f"seed {seed}: step {step}/{n_steps}", err=True)
    target = evaluations["normflows"][-1][2]
    reached = {}
    for name in names:
        there = [
            TimeToMatch(spent / seconds["normflows"], step / n_steps)
            for step, spent, likelihood in evaluations[name]
            if likelihood >= target
        ]
        reached[name] = there[0] if there else TimeToMatch(math.inf, math.inf)
    return reached


def initial_flow(generator: torch.Generator) -> ResidualFlow:
    """`N_BLOCKS` times ActNorm and a block of one hidden layer of 128 LipSwish units."""
    layers: list[torch.nn.Module] = []
    for _ in range(N_BLOCKS):
        branch = mlp_branch(64, (128,), LIPSCHITZ, generator=generator)
        layers += [ActNorm(64), ResidualBlock(branch)]
    return ResidualFlow(layers, 64)


if __name__ == "__main__":
    main()
