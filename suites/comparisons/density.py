"""Held-out likelihood and certified constants of ours and of normflows, trained alike.

    python -m suites.comparisons.density [--steps N] [--seeds 3] [DATASET...]

Needs the `peers` extra. Both train the same blocks from the same weights, with ActNorms set from
the same rows, on the same batches, with the same Adam and schedule. Theirs trains in its usual
mode: roulette geometric(0.5) after two exact terms, Gaussian probes, the memory-saving Neumann
gradient, five power iterations per layer after each step. Ours takes Rademacher probes and the
roulette whose gradient has the same law, with 5 terms on average (6 products with J, theirs 5), and
certifies each update.

Digits are dequantised anew in every batch and pass a logit before either flow.

Both are evaluated with the exact log-determinant in float64 and the weights after the last update,
on held-out data and on training data: either flow overfits the 1,437 digits within a hundred
epochs, and the one that fits them faster does so first.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product

import click
import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from resflow_bench.data import DENSITIES, Dataset, dataset_named
from resflow_bench.flows import Logit, ResidualFlow
from resflow_bench.intervals import mean_interval
from resflow_bench.logdet import LogDetEstimator, Rademacher
from resflow_bench.peers.normflows import normflows_seeded
from suites.comparisons.learners import (
    THEIR_ROULETTE,
    Learner,
    certified,
    exact_log_prob,
    ours,
    theirs,
)
from suites.comparisons.pairs import in_processes, need_normflows, say

DATASETS = ("checkerboard", "moons", "digits")
OUR_ESTIMATOR = LogDetEstimator(Rademacher(), THEIR_ROULETTE)
LIPSCHITZ = 0.9
N_BLOCKS = 8
BATCH_SIZE = 256
CLIP_NORM = 10.0
EVALUATED_AT = (1 / 8, 1 / 4, 1 / 2, 1)
"""Shares of the training after which both are evaluated."""


@dataclass(frozen=True)
class TrainingSpec:
    """A training of `whose` flow, "ours" or "theirs", on a dataset, from a seed, for some steps."""

    dataset: str
    seed: int
    whose: str
    n_steps: int

    def __str__(self) -> str:
        return f"{self.dataset} seed {self.seed} {self.whose}"


@dataclass(frozen=True)
class Evaluation:
    """The state of a training after `step` steps.

    log_prob: exact log p of each held-out example, nats, float64, (n,).
    fitted: mean log p of as many training examples, nats.
    certified: the largest bound on the Lipschitz constant of a block.
    """

    step: int
    log_prob: np.ndarray
    fitted: float
    certified: float


Pair = tuple[list[Evaluation], list[Evaluation]]
"""Evaluations of ours and of theirs, trained from one seed."""


@click.command()
@click.argument("datasets", nargs=-1, type=click.Choice([*DENSITIES, "digits"]))
@click.option("--steps", default=1000, show_default=True, type=click.IntRange(min=1))
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(min=2))
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, type=click.IntRange(min=1))
def main(datasets: tuple[str, ...], steps: int, seeds: int, jobs: int) -> None:
    """Print the difference of the held-out log-likelihoods and both certified constants."""
    need_normflows()
    names = datasets or DATASETS
    specs = [
        TrainingSpec(name, seed, whose, steps)
        for seed, name, whose in product(range(seeds), names, ("ours", "theirs"))
    ]
    evaluations = in_processes(train, specs, jobs)
    say(
        f"log-likelihood, ours - normflows {version('normflows')}, nats an example: mean over "
        f"{seeds} seeds [99 % by t]"
    )
    for name in names:
        mine, its = (
            [evaluations[TrainingSpec(name, seed, whose, steps)] for seed in range(seeds)]
            for whose in ("ours", "theirs")
        )
        for line in verdict(name, list(zip(mine, its, strict=True))):
            say(line)


def verdict(name: str, pairs: list[Pair]) -> Iterator[str]:
    """Lines of text about one dataset."""
    yield name
    for i in range(len(pairs[0][0])):
        evaluations = [(mine[i], its[i]) for mine, its in pairs]
        held_out = [a.log_prob.mean() - b.log_prob.mean() for a, b in evaluations]
        fitted = [a.fitted - b.fitted for a, b in evaluations]
        level = np.mean([a.log_prob.mean() for a, _ in evaluations])
        yield (
            f"  after {evaluations[0][0].step} steps: held-out {_interval(held_out)} "
            f"(ours {level:.3f}), training {_interval(fitted)}"
        )
    for seed, (mine, its) in enumerate(pairs):
        paired = mine[-1].log_prob - its[-1].log_prob
        yield f"  seed {seed}, held-out, over its {len(paired)} examples: {_interval(paired)}"
    for i, whose in enumerate(("ours", "theirs")):
        largest = max(evaluation.certified for pair in pairs for evaluation in pair[i])
        last = max(pair[i][-1].certified for pair in pairs)
        yield (
            f"  largest certified constant of a block, {whose}: {last:.4f} at the end, "
            f"{largest:.4f} at any look, {'at or below' if largest <= LIPSCHITZ else 'ABOVE'} the "
            f"promised {LIPSCHITZ}"
        )


def _interval(samples: ArrayLike) -> str:
    interval = mean_interval(samples)
    return f"{interval.value:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def train(spec: TrainingSpec) -> list[Evaluation]:
    """Evaluations of a training at `EVALUATED_AT`.

    Raises:
        ArithmeticError: a loss that is not finite.
    """
    data = dataset_named(spec.dataset)
    generator = torch.Generator().manual_seed(spec.seed)
    flow = initial_flow(math.prod(data.event), generator)
    flow.initialise(vectors(data, data.train[:BATCH_SIZE], generator))
    is_ours = spec.whose == "ours"
    evaluated = {max(1, round(share * spec.n_steps)) for share in EVALUATED_AT}
    with normflows_seeded(spec.seed):
        learner = ours(flow, OUR_ESTIMATOR, spec.seed) if is_ours else theirs(flow)
        steps = fit(learner, batches(data, spec.n_steps, generator), spec)
        return [evaluate(learner.flow, data, step) for step in steps if step in evaluated]


def evaluate(flow: nn.Module, data: Dataset, step: int) -> Evaluation:
    """The evaluation of a flow after a step."""
    held_out, fitted = (
        exact_log_prob(flow, vectors(data, rows, torch.Generator().manual_seed(0)))
        for rows in (data.test, data.train[: len(data.test)])
    )
    return Evaluation(step, held_out.numpy(), float(fitted.mean()), certified(flow))


def vectors(data: Dataset, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Input of both flows for some rows, (B, d): images are dequantised, then in logit space."""
    x = data.prepare(rows, generator)
    return x if data.n_levels is None else Logit()(x).flatten(1)


def initial_flow(dim: int, generator: torch.Generator) -> ResidualFlow:
    """`N_BLOCKS` times ActNorm and a block of two hidden layers of max(2d, 64) LipSwish units."""
    width = max(2 * dim, 64)
    return ResidualFlow.mlp(dim, (width, width), N_BLOCKS, LIPSCHITZ, generator=generator)


def batches(data: Dataset, n: int, generator: torch.Generator) -> Iterator[Tensor]:
    """n batches, drawn without replacement within an epoch."""
    rows = torch.empty(0, dtype=torch.long)
    for _ in range(n):
        if len(rows) < BATCH_SIZE:
            rows = torch.randperm(len(data.train), generator=generator)
        yield vectors(data, data.train[rows[:BATCH_SIZE]], generator)
        rows = rows[BATCH_SIZE:]


def fit(learner: Learner, x_of_steps: Iterator[Tensor], spec: TrainingSpec) -> Iterator[int]:
    """Train by Adam with a cosine decay to a tenth and clipped gradients; yield each step's number.

    The rate is the 1e-3 of the Residual Flows scripts, and 2e-2 in the plane, where the model would
    still be near a Gaussian after a thousand steps at 1e-3.
    """
    optimiser = torch.optim.Adam(learner.flow.parameters())
    for step, x in enumerate(x_of_steps, start=1):
        rate = 2e-2 if x.shape[1] == 2 else 1e-3
        cosine = 0.5 * (1 + math.cos(math.pi * (step - 1) / spec.n_steps))
        for group in optimiser.param_groups:
            group["lr"] = rate * (0.1 + 0.9 * cosine)
        optimiser.zero_grad()
        loss = learner.loss(x)
        if not torch.isfinite(loss):
            found = f"The loss of {spec} is {loss.item()} at step {step}"
            raise ArithmeticError(f"{found}. Take other seeds or fewer steps.")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.flow.parameters(), CLIP_NORM)
        optimiser.step()
        learner.update()
        yield step


if __name__ == "__main__":
    main()
