"""Seconds until ours has learnt what normflows learns in a number of steps.

    python -m suites.comparisons.race [--steps N] [--seeds 3]

Needs the `peers` extra. Both train on the digits, from the same initial weights, on the same
batches, with the same Adam, step by step in turn: seconds until ours reaches the final held-out
log-likelihood of theirs, over the seconds of theirs. For one seed also with a gradient without
noise (`Determinant`): no estimator needs fewer steps. It is no suite because a sample is a pair of
trainings in one process, minutes long.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from importlib.metadata import version

import click
import numpy as np
import torch

from resflow_bench.data import dataset_named
from resflow_bench.flows import ResidualFlow
from resflow_bench.intervals import mean_interval
from resflow_bench.logdet import (
    Determinant,
    Estimator,
    Geometric,
    LogDetEstimator,
    Rademacher,
    Roulette,
)
from resflow_bench.peers.normflows import normflows_seeded
from suites.comparisons.density import batches, vectors
from suites.comparisons.learners import THEIR_ROULETTE, exact_log_prob, ours, theirs
from suites.comparisons.pairs import BATCH_SIZE, need_normflows, say

LIPSCHITZ = 0.9
N_BLOCKS = 8
RATE = 1e-3
EVALUATED_EVERY = 5

OFTEN_STOPPED = Roulette(Geometric(0.5), 3, per="batch")
TRAINED_WITH: dict[str, Estimator] = {
    "two exact traces": LogDetEstimator(Rademacher(), OFTEN_STOPPED, n_traced=2),
    "no noise at all": Determinant(),
}


@click.command()
@click.option("--steps", default=200, show_default=True, help="Optimiser steps of theirs.")
@click.option("--seeds", default=3, show_default=True, help="Trainings of each kind.")
def main(steps: int, seeds: int) -> None:
    """Print the seconds to match theirs, with an interval over seeds."""
    need_normflows()
    torch.set_num_threads(1)
    say(f"against normflows {version('normflows')}, memory-saving; one thread, B = {BATCH_SIZE}")
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
