"""Held-out likelihood and certified constants of ours and normflows after the same training.

    python -m suites.comparisons.density [--steps N] [--seeds 3] [DATASET...]

Needs the `peers` extra. Both train the same blocks from the same weights, with ActNorms initialised
from the same rows, on the same batches, with the same Adam and schedule. normflows uses its
defaults: roulette geometric(0.5) after two exact terms, Gaussian probes, the memory-saving Neumann
gradient, five power iterations per layer after each step. Ours uses Rademacher probes and the
roulette whose gradient has the same law, of 5 terms on average (6 products with J, normflows 5; see
`suites.comparisons.training`), and certifies each update.

Digits are dequantised afresh in every batch and mapped by the logit before either flow.

Both are evaluated by their exact log-determinant in float64, with the weights after the last
update, on held-out and on training data: the 1,437 digits are few enough to be overfitted within a
hundred epochs, and the flow that fits them faster overfits first.
"""

from __future__ import annotations

import copy
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch

from resflow_bench.data import DENSITIES, dataset_named
from resflow_bench.flows import Logit, ResidualFlow
from resflow_bench.intervals import mean_interval
from resflow_bench.layers import LipSwish
from resflow_bench.logdet import Exact, LogDetEstimator, Rademacher, exact_log_det
from resflow_bench.peers.normflows import normflows_nets, normflows_seeded
from suites.comparisons.pairs import BATCH_SIZE, need_normflows, say
from suites.comparisons.training import THEIR_ROULETTE, Learner, ours, theirs

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor, nn

    from resflow_bench.data import Dataset

DATASETS = ("checkerboard", "moons", "digits")
OUR_ESTIMATOR = LogDetEstimator(Rademacher(), THEIR_ROULETTE)
LIPSCHITZ = 0.9
N_BLOCKS = 8
CLIP_NORM = 10.0
EVALUATED_AT = (1 / 8, 1 / 4, 1 / 2, 1)
"""Shares of the training after which both are evaluated."""


@dataclass(frozen=True)
class TrainingJob:
    """One training of an implementation, "ours" or "theirs"."""

    dataset: str
    seed: int
    implementation: str
    n_steps: int


@dataclass(frozen=True)
class Evaluation:
    """The flow of a training after some of its steps.

    log_prob: exact log-likelihood of each held-out example, nats, float64, (n,).
    fitted: mean exact log-likelihood of as many training examples.
    certified: the largest bound on the Lipschitz constant of a block.
    """

    step: int
    log_prob: np.ndarray
    fitted: float
    certified: float


EvaluationsOfBoth = tuple[list[Evaluation], list[Evaluation]]
"""The evaluations of ours and of theirs, from one seed."""


@click.command()
@click.argument("datasets", nargs=-1, type=click.Choice([*DENSITIES, "digits"]))
@click.option("--steps", default=1000, show_default=True, type=click.IntRange(min=1))
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(min=2))
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, type=click.IntRange(min=1))
def main(datasets: tuple[str, ...], steps: int, seeds: int, jobs: int) -> None:
    """Print the difference of the held-out log-likelihoods, and both certified constants."""
    need_normflows()
    names = datasets or DATASETS
    trainings = [
        TrainingJob(name, seed, implementation, steps)
        for seed, name, implementation in product(range(seeds), names, ("ours", "theirs"))
    ]
    evaluations = train_all(trainings, jobs)
    say(
        f"log-likelihood, ours - normflows {version('normflows')}, nats per example: mean over "
        f"{seeds} seeds [99 % by t]"
    )
    for name in names:
        pairs: list[EvaluationsOfBoth] = [
            (
                evaluations[TrainingJob(name, seed, "ours", steps)],
                evaluations[TrainingJob(name, seed, "theirs", steps)],
            )
            for seed in range(seeds)
        ]
        for line in summary(name, pairs):
            say(line)


def summary(name: str, pairs: list[EvaluationsOfBoth]) -> Iterator[str]:
    """The lines about one dataset."""
    yield name
    for both in zip(*(zip(*pair, strict=True) for pair in pairs), strict=True):
        held_out = [ours.log_prob.mean() - theirs.log_prob.mean() for ours, theirs in both]
        fitted = [ours.fitted - theirs.fitted for ours, theirs in both]
        level = np.mean([ours.log_prob.mean() for ours, _ in both])
        yield (
            f"  after {both[0][0].step} steps: held-out {_interval(held_out)} (ours {level:.3f}), "
            f"training {_interval(fitted)}"
        )
    for seed, (our_run, their_run) in enumerate(pairs):
        paired = our_run[-1].log_prob - their_run[-1].log_prob
        yield f"  seed {seed}, held-out, over its {len(paired)} examples: {_interval(paired)}"
    for i, implementation in enumerate(("ours", "theirs")):
        largest = max(evaluation.certified for pair in pairs for evaluation in pair[i])
        last = max(pair[i][-1].certified for pair in pairs)
        yield (
            f"  largest certified constant of a block, {implementation}: {last:.4f} at the end, "
            f"{largest:.4f} at any evaluation, "
            f"{'at or below' if largest <= LIPSCHITZ else 'ABOVE'} the promised {LIPSCHITZ}"
        )


def _interval(samples: ArrayLike) -> str:
    interval = mean_interval(samples)
    return f"{interval.value:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def train_all(trainings: list[TrainingJob], jobs: int) -> dict[TrainingJob, list[Evaluation]]:
    """Run all trainings in `jobs` processes of one thread each, and print the time left."""
    evaluations = {}
    start = time.monotonic()
    # CUDA and threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(jobs, len(trainings)), context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        running = {pool.submit(train, training): training for training in trainings}
        for future in as_completed(running):
            training = running[future]
            evaluations[training] = future.result()
            left = (time.monotonic() - start) * (len(trainings) / len(evaluations) - 1)
            click.echo(
                f"{len(evaluations)}/{len(trainings)} trainings, {training.dataset} seed "
                f"{training.seed} {training.implementation} done, about {left:.0f} s left",
                err=True,
            )
    return evaluations


def train(training: TrainingJob) -> list[Evaluation]:
    """Train, and evaluate the flow after each share in `EVALUATED_AT`.

    Raises:
        ArithmeticError: if a loss is not finite.
    """
    data = dataset_named(training.dataset)
    generator = torch.Generator().manual_seed(training.seed)
    flow = initial_flow(math.prod(data.event), generator)
    flow.initialise(vectors(data, data.train[:BATCH_SIZE], generator))
    evaluated = {max(1, round(share * training.n_steps)) for share in EVALUATED_AT}
    with normflows_seeded(training.seed):
        if training.implementation == "ours":
            learner = ours(flow, OUR_ESTIMATOR, training.seed)
        else:
            learner = theirs(flow, THEIR_ROULETTE)
        steps = fit(learner, batches(data, training.n_steps, generator), training)
        return [evaluate(learner.flow, data, step) for step in steps if step in evaluated]


def evaluate(flow: nn.Module, data: Dataset, step: int) -> Evaluation:
    """The likelihoods and the certified constant of the flow after a step."""
    held_out, fitted = (
        exact_log_prob(flow, vectors(data, rows, torch.Generator().manual_seed(0)))
        for rows in (data.test, data.train[: len(data.test)])
    )
    return Evaluation(step, held_out.numpy(), float(fitted.mean()), certified(flow))


def vectors(data: Dataset, rows: Tensor, generator: torch.Generator) -> Tensor:
    """The input of both flows for some rows, (B, d): images are dequantised, in logit space."""
    x = data.prepare(rows, generator)
    return x if data.n_levels is None else Logit()(x).flatten(1)


def initial_flow(dim: int, generator: torch.Generator) -> ResidualFlow:
    """Eight pairs of ActNorm and a block with two hidden layers of max(2d, 64) LipSwish units."""
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


def fit(learner: Learner, x_of_steps: Iterator[Tensor], training: TrainingJob) -> Iterator[int]:
    """Train by Adam with clipped gradients and a cosine down to a tenth; yield each step's number.

    The rate is 1e-3, as in the Residual Flows scripts, and 2e-2 in the plane, where a thousand
    steps at 1e-3 would leave the density close to a Gaussian.
    """
    optimiser = torch.optim.Adam(learner.flow.parameters())
    for step, x in enumerate(x_of_steps, start=1):
        rate = 2e-2 if x.shape[1] == 2 else 1e-3
        cosine = 0.5 * (1 + math.cos(math.pi * (step - 1) / training.n_steps))
        for group in optimiser.param_groups:
            group["lr"] = rate * (0.1 + 0.9 * cosine)
        optimiser.zero_grad()
        loss = learner.loss(x)
        if not torch.isfinite(loss):
            raise ArithmeticError(
                f"The loss of {training} is {loss.item()} at step {step}. Use other seeds or fewer "
                "steps."
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.flow.parameters(), CLIP_NORM)
        optimiser.step()
        learner.update()
        yield step


@torch.no_grad()
def exact_log_prob(flow: Any, x: Tensor) -> Tensor:
    """log p(x) under a flow, ours or of normflows, by dense Jacobians in float64: (n,), nats."""
    flow, x = copy.deepcopy(flow).double(), x.double()
    if isinstance(flow, ResidualFlow):
        return flow.with_estimator(Exact()).log_prob(x)
    from normflows.flows import Residual

    log_det = x.new_zeros(len(x))
    for layer in reversed(flow.flows):
        if isinstance(layer, Residual):
            net = layer.iresblock.nnet
            log_det += exact_log_det(net, x)
            x = x + net(x)
        else:
            x, change = layer.inverse(x)
            log_det += change
    return flow.q0.log_prob(x) + log_det


@torch.no_grad()
def certified(flow: nn.Module) -> float:
    """The largest bound on the Lipschitz constant of a block of a flow, ours or of normflows."""
    if isinstance(flow, ResidualFlow):
        return max(block.branch.lipschitz_certified() for block in flow.blocks)
    return max(math.prod(map(_norm, net)) for net in normflows_nets(flow))


def _norm(stage: Any) -> float:
    """||W|| of the weight that a layer of normflows applies, or the largest slope of its Swish."""
    from normflows.nets.lipschitz import Swish

    if isinstance(stage, Swish):
        return LipSwish.lipschitz
    weight = stage.compute_weight(update=False)
    return float(torch.linalg.matrix_norm(weight.double(), 2))


if __name__ == "__main__":
    main()
