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

import click
import numpy as np
import torch
from torch import Tensor

from resflow_bench.data import dataset_named
from resflow_bench.flows import ResidualFlow
from resflow_bench.intervals import mean_interval, median_interval
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
from suites.comparisons.density import batches, vectors
from suites.comparisons.learners import THEIR_ROULETTE, Learner, exact_log_prob, ours, theirs
from suites.comparisons.pairs import BATCH_SIZE, flow_and_points, need_normflows, say

LIPSCHITZ = 0.9
N_BLOCKS = 8
RATE = 1e-3
EVALUATED_EVERY = 5

BY_BATCH = Roulette(Geometric(0.3), 3, per="batch")
STRATIFIED = Roulette(Geometric(0.3), 3, per="stratified")
CANDIDATES: dict[str, Estimator] = {
    "their law": LogDetEstimator(Gaussian(), THEIR_ROULETTE),
    "two exact traces": LogDetEstimator(Rademacher(), BY_BATCH, n_traced=2),
    "and stratified N": LogDetEstimator(Rademacher(), STRATIFIED, n_traced=2),
    "and 16 Hadamard probes": LogDetEstimator(Hadamard(), STRATIFIED, 16, n_traced=2),
}
OFTEN_STOPPED = Roulette(Geometric(0.5), 3, per="batch")
TRAINED_WITH: dict[str, Estimator] = {
    "two exact traces": LogDetEstimator(Rademacher(), OFTEN_STOPPED, n_traced=2),
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
    flow, x = flow_and_points("shallow")
    say("variance x time of the gradient, theirs over ours [99 %]:")
    for name, found in noise(flow, x, n_draws=40).items():
        say(f"  {name}: {found}")
    say(f"seconds to their held-out log-likelihood after {steps} steps, ours over theirs:")
    races = [race(seed, steps) for seed in range(seeds)]
    for name in TRAINED_WITH:
        say(f"  {name}: {outcome([one[name] for one in races if name in one])}")


def outcome(ratios: list[TimeToMatch]) -> str:
    """Results of the races of one candidate, in words."""
    seconds = [ratio.seconds for ratio in ratios]
    if lost := seconds.count(math.inf):
        return f"not reached in as many steps with {lost} of {len(ratios)} seeds"
    limits = ""
    if len(seconds) > 1:
        interval = mean_interval(seconds)
        limits = f" [{interval.low:.3f}, {interval.high:.3f}] (99 % by t)"
    steps = np.mean([ratio.steps for ratio in ratios])
    return f"{np.mean(seconds):.3f}{limits}, in {steps:.3f} of their steps; seeds: {len(ratios)}"


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
                drawn[name].append(flat_gradient(learner, x))
                seconds[name].append(time.perf_counter() - start)
    variances = {
        name: float(torch.stack(gradients).double().var(0).sum())
        for name, gradients in drawn.items()
    }
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
    flow = ResidualFlow.mlp(64, (128,), N_BLOCKS, LIPSCHITZ, generator=generator)
    flow.initialise(vectors(data, data.train[:BATCH_SIZE], generator))
    held_out = vectors(data, data.test, torch.Generator().manual_seed(0))
    names = list(TRAINED_WITH) if seed == 0 else list(TRAINED_WITH)[:1]
    learners = {name: ours(flow, TRAINED_WITH[name], seed) for name in names}
    learners["normflows"] = theirs(flow, THEIR_ROULETTE)
    optimisers = {
        name: torch.optim.Adam(one.flow.parameters(), lr=RATE) for name, one in learners.items()
    }
    seconds = dict.fromkeys(learners, 0.0)
    evaluations: dict[str, list[tuple[int, float, float]]] = {name: [] for name in names}
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
                for name in names:
                    likelihood = float(exact_log_prob(learners[name].flow, held_out).mean())
                    evaluations[name].append((step, seconds[name], likelihood))
                click.echo(f"seed {seed}: step {step}/{n_steps}", err=True)
    target = float(exact_log_prob(learners["normflows"].flow, held_out).mean())
    lost = math.inf, math.inf
    matched = {
        name: next(((step, spent) for step, spent, value in looks if value >= target), lost)
        for name, looks in evaluations.items()
    }
    return {
        name: TimeToMatch(spent / seconds["normflows"], step / n_steps)
        for name, (step, spent) in matched.items()
    }


if __name__ == "__main__":
    main()
