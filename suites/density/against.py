"""Held-out density of ours and of another implementation, trained alike from several seeds.

Both train the same blocks from the same weights, with ActNorms set from the same rows, on the same
batches, with the same Adam and schedule. normflows trains in its usual mode: roulette
geometric(0.5) after two exact terms, Gaussian probes, the memory-saving Neumann gradient, five
power iterations a layer after each step. Ours takes Rademacher probes and the roulette whose
gradient has the same law, with 5 terms on average (6 products with J, theirs 5), and certifies each
update.

Images are dequantised anew in every batch and pass a logit before either flow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from resflow_bench.data import Dataset
from resflow_bench.flows import Logit, ResidualFlow
from resflow_bench.intervals import mean_interval
from resflow_bench.lab import Cell, Context, Failure, Observation, Skip, exactly, observe
from resflow_bench.logdet import LogDetEstimator, Rademacher
from resflow_bench.peers.normflows import normflows_seeded
from resflow_bench.peers.peer import installed_version
from resflow_bench.threads import one_thread
from resflow_bench.training.recipe import dataset
from suites.density.learners import (
    THEIR_ROULETTE,
    Learner,
    certified,
    exact_log_prob,
    ours,
    theirs,
)

OUR_ESTIMATOR = LogDetEstimator(Rademacher(), THEIR_ROULETTE)
N_BLOCKS = 8
BATCH_SIZE = 256
CLIP_NORM = 10.0
N_LOOKS = 20
"""Looks at a training on the way, at equal distances in steps."""

HELD = {"implementation": "normflows", "architecture": "mlp", "dtype": "float32", "device": "cpu"}
"""The values of the axes for which there is a comparison."""


@dataclass(frozen=True, eq=False)
class TrainingEnd:
    """A training at its end.

    held_out, fitted: mean exact log p of held-out and of as many training examples, nats.
    certified: the largest bound on the Lipschitz constant of a block, at any look.
    looks: (step, held-out log p) on the way, and at the end.
    """

    held_out: float
    fitted: float
    certified: float
    looks: tuple[tuple[int, float], ...]


def measure_against(cell: Cell, context: Context) -> Iterable[Observation]:
    """Their log p less ours, with Student's interval over trainings from `n_seeds` seeds.

    * `log_prob_minus_ours`, `fitted_minus_ours`: held out, and of as many training examples.
      Either flow overfits the 1,437 digits within a hundred epochs; the faster one does so first.
    * `steps_to_match`: the share of their steps after which ours first has their final held-out
      log p; infinite if it does not within as many with some seed.
    * `lipschitz_certified`, `lipschitz_certified_ours`: the largest over blocks, looks and seeds.
    """
    for axis, value in HELD.items():
        if cell[axis] != value:
            raise Skip(f"flows are trained alike for {axis}={value} alone; got {cell[axis]}")
    version, data = installed_version("normflows"), dataset(cell["dataset"])
    n_seeds, n_points = (int(context.effort[name]) for name in ("n_seeds", "n_points"))
    with one_thread():
        pairs = [
            [
                train(data, cell["lipschitz"], cell["step"], is_ours, seed, n_points)
                for is_ours in (True, False)
            ]
            for seed in range(n_seeds)
        ]
    message = f"{version}; {n_seeds} trainings of each, over which the interval is"

    def difference(metric: str, values: list[float]) -> Observation:
        each = tuple(values)
        return observe(metric, mean_interval(each), "nat", n_seeds, message, replicates=each)

    level = mean_interval([mine.held_out for mine, _ in pairs])
    yield observe("log_prob_ours", level, "nat", n_seeds, message)
    yield difference("log_prob_minus_ours", [its.held_out - mine.held_out for mine, its in pairs])
    yield difference("fitted_minus_ours", [its.fitted - mine.fitted for mine, its in pairs])
    yield _share(cell["step"], pairs, message)
    for i, metric in enumerate(("lipschitz_certified_ours", "lipschitz_certified")):
        yield exactly(metric, max(pair[i].certified for pair in pairs), "1")


def _share(n_steps: int, pairs: list[list[TrainingEnd]], message: str) -> Observation:
    """`steps_to_match` of pairs of ours and theirs."""
    shares = [
        next((step / n_steps for step, value in mine.looks if value >= its.held_out), math.inf)
        for mine, its in pairs
    ]
    if lost := shares.count(math.inf):
        message = f"not reached in as many steps with {lost} of {len(shares)} seeds; {message}"
        return Observation("steps_to_match", math.inf, "1", n=len(shares), message=message)
    return observe("steps_to_match", mean_interval(shares), "1", len(shares), message)


def train(
    data: Dataset, lipschitz: float, n_steps: int, is_ours: bool, seed: int, n_points: int
) -> TrainingEnd:
    """Train a flow of ours or theirs, whose weights at first depend on the seed alone.

    Raises:
        Failure: a loss that is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    flow = initial_flow(math.prod(data.event), lipschitz, generator)
    flow.initialise(vectors(data, data.train[:BATCH_SIZE], generator))
    held_out, fitted = (
        vectors(data, rows[:n_points], torch.Generator().manual_seed(0))
        for rows in (data.test, data.train[: len(data.test)])
    )
    at = {max(1, round(n_steps * i / N_LOOKS)) for i in range(1, N_LOOKS + 1)}
    looks, largest = [], 0.0
    with normflows_seeded(seed):
        learner = ours(flow, OUR_ESTIMATOR, seed) if is_ours else theirs(flow)
        for step in fit(learner, batches(data, n_steps, generator), n_steps):
            if step not in at:
                continue
            largest = max(largest, certified(learner.flow))
            if is_ours or step == n_steps:
                looks.append((step, float(exact_log_prob(learner.flow, held_out).mean())))
    reached = float(exact_log_prob(learner.flow, fitted).mean())
    return TrainingEnd(looks[-1][1], reached, largest, tuple(looks))


def vectors(data: Dataset, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Input of both flows for some rows, (B, d): images are dequantised, then in logit space."""
    x = data.prepare(rows, generator)
    return x.flatten(1) if data.n_levels is None else Logit()(x).flatten(1)


def initial_flow(dim: int, lipschitz: float, generator: torch.Generator) -> ResidualFlow:
    """The architecture `mlp`, its weights drawn from the generator."""
    width = max(2 * dim, 64)
    return ResidualFlow.mlp(dim, (width, width), N_BLOCKS, lipschitz, generator=generator)


def batches(data: Dataset, n: int, generator: torch.Generator) -> Iterator[Tensor]:
    """n batches, drawn without replacement within an epoch."""
    rows = torch.empty(0, dtype=torch.long)
    for _ in range(n):
        if len(rows) < BATCH_SIZE:
            rows = torch.randperm(len(data.train), generator=generator)
        yield vectors(data, data.train[rows[:BATCH_SIZE]], generator)
        rows = rows[BATCH_SIZE:]


def fit(learner: Learner, x_of_steps: Iterator[Tensor], n_steps: int) -> Iterator[int]:
    """Train by Adam with a cosine decay to a tenth and clipped gradients; yield each step's number.

    The rate is the 1e-3 of the Residual Flows scripts, and 2e-2 in the plane, where the model would
    still be near a Gaussian after a thousand steps at 1e-3.
    """
    optimiser = torch.optim.Adam(learner.flow.parameters())
    for step, x in enumerate(x_of_steps, start=1):
        rate = 2e-2 if x.shape[1] == 2 else 1e-3
        cosine = 0.5 * (1 + math.cos(math.pi * (step - 1) / n_steps))
        for group in optimiser.param_groups:
            group["lr"] = rate * (0.1 + 0.9 * cosine)
        optimiser.zero_grad()
        loss = learner.loss(x)
        if not torch.isfinite(loss):
            whose = "ours" if isinstance(learner.flow, ResidualFlow) else "theirs"
            raise Failure(f"the loss of {whose} is {loss.item()} at step {step}; take fewer steps")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.flow.parameters(), CLIP_NORM)
        optimiser.step()
        learner.update()
        yield step
