"""Trained alike, which learns the better density, ours or normflows, and who keeps the promise?

    python -m suites.comparisons.density [--steps N] [--seeds 3] [DATASET...]

Needs the `peers` extra. Both train the same blocks from the same weights, their ActNorms set from
the same rows, on the same batches, with the same Adam and schedule. Theirs trains as its users do:
roulette geometric(0.5) after two exact terms, Gaussian probes, the memory-saving Neumann gradient,
five power iterations a layer after each step. Ours takes Rademacher probes and the roulette whose
gradient has the same law, of 5 terms in the mean (6 products with J, theirs 5; see
`training_against_normflows`), and certifies each update.

Digits are dequantised afresh in every batch and taken through the logit, before either flow.

Both are judged by their exact log-determinant in float64, with the weights as the last update left
them, on held-out data and on training data: the 1,437 digits are few enough to be overfitted within
a hundred epochs, first by the flow that fits them faster.
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
from suites.comparisons.log_prob import need_normflows, say
from suites.comparisons.training import THEIR_ROULETTE, Learner, ours, theirs

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor, nn

    from resflow_bench.data import Dataset

DATASETS = ("checkerboard", "moons", "digits")
OUR_ESTIMATOR = LogDetEstimator(Rademacher(), THEIR_ROULETTE)
LIPSCHITZ = 0.9
N_BLOCKS = 8
BATCH_SIZE = 256
CLIP_NORM = 10.0
LOOKS = (1 / 8, 1 / 4, 1 / 2, 1)
"""When both are judged, as shares of the training."""


@dataclass(frozen=True)
class Course:
    """One training: of whom (ours or theirs), on what, from which seed, for how many steps."""

    dataset: str
    seed: int
    whose: str
    n_steps: int


@dataclass(frozen=True)
class Look:
    """What a training has led to after some of its steps.

    log_prob: exact, of each held-out example, nats, float64, (n,).
    fitted: the mean of the same over as many training examples.
    certified: the largest bound on the Lipschitz constant of a block.
    """

    step: int
    log_prob: np.ndarray
    fitted: float
    certified: float


Pair = tuple[list[Look], list[Look]]
"""The looks at ours and at theirs, from one seed."""


@click.command()
@click.argument("datasets", nargs=-1, type=click.Choice([*DENSITIES, "digits"]))
@click.option("--steps", default=1000, show_default=True, type=click.IntRange(min=1))
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(min=2))
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, type=click.IntRange(min=1))
def main(datasets: tuple[str, ...], steps: int, seeds: int, jobs: int) -> None:
    """Print the difference of the held-out log-likelihoods, and both certified constants."""
    need_normflows()
    names = datasets or DATASETS
    courses = [
        Course(name, seed, whose, steps)
        for seed, name, whose in product(range(seeds), names, ("ours", "theirs"))
    ]
    looks = train_all(courses, jobs)
    say(
        f"log-likelihood, ours - normflows {version('normflows')}, nats an example: mean over "
        f"{seeds} seeds [99 % by t]"
    )
    for name in names:
        pairs: list[Pair] = [
            (looks[Course(name, seed, "ours", steps)], looks[Course(name, seed, "theirs", steps)])
            for seed in range(seeds)
        ]
        for line in verdict(name, pairs):
            say(line)


def verdict(name: str, pairs: list[Pair]) -> Iterator[str]:
    """The lines about one dataset."""
    yield name
    for i in range(len(pairs[0][0])):
        looks = [(mine[i], its[i]) for mine, its in pairs]
        held_out = [a.log_prob.mean() - b.log_prob.mean() for a, b in looks]
        fitted = [a.fitted - b.fitted for a, b in looks]
        level = np.mean([a.log_prob.mean() for a, _ in looks])
        yield (
            f"  after {looks[0][0].step} steps: held-out {_interval(held_out)} (ours {level:.3f}), "
            f"training {_interval(fitted)}"
        )
    for seed, (mine, its) in enumerate(pairs):
        paired = mine[-1].log_prob - its[-1].log_prob
        yield f"  seed {seed}, held-out, over its {len(paired)} examples: {_interval(paired)}"
    for i, whose in enumerate(("ours", "theirs")):
        largest = max(look.certified for pair in pairs for look in pair[i])
        last = max(pair[i][-1].certified for pair in pairs)
        yield (
            f"  largest certified constant of a block, {whose}: {last:.4f} at the end, "
            f"{largest:.4f} at any look, {'at or below' if largest <= LIPSCHITZ else 'ABOVE'} the "
            f"promised {LIPSCHITZ}"
        )


def _interval(samples: ArrayLike) -> str:
    interval = mean_interval(samples)
    return f"{interval.value:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def train_all(courses: list[Course], jobs: int) -> dict[Course, list[Look]]:
    """Every course, in as many processes of one thread each; says how much time is left."""
    looks = {}
    start = time.monotonic()
    # CUDA and threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(jobs, len(courses)), context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        running = {pool.submit(train, course): course for course in courses}
        for future in as_completed(running):
            course = running[future]
            looks[course] = future.result()
            left = (time.monotonic() - start) * (len(courses) / len(looks) - 1)
            click.echo(
                f"{len(looks)}/{len(courses)} trainings, {course.dataset} seed {course.seed} "
                f"{course.whose} done, about {left:.0f} s left",
                err=True,
            )
    return looks


def train(course: Course) -> list[Look]:
    """The training, looked at on the way.

    Raises:
        ArithmeticError: a loss that is not finite.
    """
    data = dataset_named(course.dataset)
    generator = torch.Generator().manual_seed(course.seed)
    flow = initial_flow(math.prod(data.event), generator)
    flow.initialise(vectors(data, data.train[:BATCH_SIZE], generator))
    is_ours = course.whose == "ours"
    looks = {max(1, round(share * course.n_steps)) for share in LOOKS}
    with normflows_seeded(course.seed):
        learner = (
            ours(flow, OUR_ESTIMATOR, course.seed) if is_ours else theirs(flow, THEIR_ROULETTE)
        )
        steps = fit(learner, batches(data, course.n_steps, generator), course)
        return [look(learner.flow, data, step) for step in steps if step in looks]


def look(flow: nn.Module, data: Dataset, step: int) -> Look:
    """How good a flow is after a step."""
    held_out, fitted = (
        exact_log_prob(flow, vectors(data, rows, torch.Generator().manual_seed(0)))
        for rows in (data.test, data.train[: len(data.test)])
    )
    return Look(step, held_out.numpy(), float(fitted.mean()), certified(flow))


def vectors(data: Dataset, rows: Tensor, generator: torch.Generator) -> Tensor:
    """What both flows see of some rows, (B, d): images dequantised, in logit space."""
    x = data.prepare(rows, generator)
    return x if data.n_levels is None else Logit()(x).flatten(1)


def initial_flow(dim: int, generator: torch.Generator) -> ResidualFlow:
    """Eight times ActNorm and a block of two hidden layers of max(2d, 64) LipSwish units."""
    width = max(2 * dim, 64)
    return ResidualFlow.mlp(dim, (width, width), N_BLOCKS, LIPSCHITZ, generator=generator)


def batches(data: Dataset, n: int, generator: torch.Generator) -> Iterator[Tensor]:
    """n batches, without replacement within an epoch."""
    rows = torch.empty(0, dtype=torch.long)
    for _ in range(n):
        if len(rows) < BATCH_SIZE:
            rows = torch.randperm(len(data.train), generator=generator)
        yield vectors(data, data.train[rows[:BATCH_SIZE]], generator)
        rows = rows[BATCH_SIZE:]


def fit(learner: Learner, x_of_steps: Iterator[Tensor], course: Course) -> Iterator[int]:
    """Adam with a cosine down to a tenth, and clipped gradients; each step when it is done.

    The rate is the 1e-3 of the Residual Flows scripts, and 2e-2 in the plane, where a thousand
    steps at that rate would leave a Gaussian.
    """
    optimiser = torch.optim.Adam(learner.flow.parameters())
    for step, x in enumerate(x_of_steps, start=1):
        rate = 2e-2 if x.shape[1] == 2 else 1e-3
        cosine = 0.5 * (1 + math.cos(math.pi * (step - 1) / course.n_steps))
        for group in optimiser.param_groups:
            group["lr"] = rate * (0.1 + 0.9 * cosine)
        optimiser.zero_grad()
        loss = learner.loss(x)
        if not torch.isfinite(loss):
            raise ArithmeticError(
                f"The loss of {course} is {loss.item()} at step {step}. Take other seeds or fewer "
                "steps."
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.flow.parameters(), CLIP_NORM)
        optimiser.step()
        learner.update()
        yield step


@torch.no_grad()
def exact_log_prob(flow: Any, x: Tensor) -> Tensor:
    """log p(x), (n,), nats, of ours or theirs, by dense Jacobians in float64."""
    flow, x = copy.deepcopy(flow).double(), x.double()
    if isinstance(flow, ResidualFlow):
        return flow.with_estimator(Exact()).log_prob(x)
    log_det = x.new_zeros(len(x))
    for layer in reversed(flow.flows):
        if hasattr(layer, "iresblock"):
            net = layer.iresblock.nnet
            log_det += exact_log_det(net, x)
            x = x + net(x)
        else:
            x, change = layer.inverse(x)
            log_det += change
    return flow.q0.log_prob(x) + log_det


@torch.no_grad()
def certified(flow: nn.Module) -> float:
    """The largest bound on the Lipschitz constant of a block, in ours or theirs."""
    if isinstance(flow, ResidualFlow):
        return max(block.branch.lipschitz_certified() for block in flow.blocks)
    return max(math.prod(map(_norm, net)) for net in normflows_nets(flow))


def _norm(stage: Any) -> float:
    """||W|| of the weight that their layer multiplies with, or the slope of their Swish."""
    if not hasattr(stage, "compute_weight"):
        return LipSwish.lipschitz
    weight = stage.compute_weight(update=False)
    return float(torch.linalg.matrix_norm(weight.double(), 2))


if __name__ == "__main__":
    main()
