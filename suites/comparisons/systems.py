"""Held-out likelihood of each system as the suite `flows` trains it, and as its library's example.

    python -m suites.comparisons.systems [--steps N] [--seeds 3] [--dataset NAME]... [SYSTEM]...

Needs the `peers` and `baselines` extras. Both train on the same dataset for as many steps of as
many examples. Ours has the suite's settings: about the parameters of the residual flow, ActNorm
first, Adam at the suite's rate, warm-up and decay. Theirs has the optimiser and the rate of the
example, on data that are standardised beforehand unless they are images, with two networks: one
with as many transforms of as many units as ours, and the example's own.

Both are evaluated on held-out data by the exact density in float64, with the weights after the last
update. Glow is trained on the images of the digits, all others on their vectors.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from itertools import product

import click
import numpy as np
import torch
from torch import Tensor

from resflow_bench.architectures import architecture_named
from resflow_bench.data import DENSITIES, Dataset
from resflow_bench.intervals import mean_interval
from resflow_bench.lab import Cell, Value
from resflow_bench.seeds import torch_seeded
from resflow_bench.systems import n_parameters
from resflow_bench.training.recipe import dataset
from resflow_bench.training.trainer import Trainer, Training
from suites.comparisons.examples import EXAMPLES, size_of
from suites.comparisons.pairs import in_processes, need_normflows, say
from suites.density.measure import exact_log_prob
from suites.flows.measure import BATCH, LIPSCHITZ, flows_recipe

N_HELD_OUT = 2000

OURS, OUR_SIZE, OWN_SIZE = TRAINERS = ("ours", "the example, our size", "the example, its size")


@dataclass(frozen=True)
class Spec:
    """A training of a system, by one of `TRAINERS`."""

    dataset: str
    system: str
    whose: str
    seed: int
    n_steps: int

    def __str__(self) -> str:
        return f"{self.system} on {self.dataset}, {self.whose}, seed {self.seed}"


@dataclass(frozen=True)
class Reached:
    """The mean exact log p of held-out examples, nats, and the flow's parameters."""

    log_prob: float
    n_parameters: int


@click.command()
@click.argument("systems", nargs=-1, type=click.Choice(list(EXAMPLES)))
@click.option("--dataset", "names", multiple=True, type=click.Choice([*DENSITIES, "digits"]))
@click.option("--steps", default=1000, show_default=True, type=click.IntRange(min=1))
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(min=2))
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, type=click.IntRange(min=1))
def main(
    systems: tuple[str, ...], names: tuple[str, ...], steps: int, seeds: int, jobs: int
) -> None:
    """Print the difference of the held-out log-likelihoods of each system and its example."""
    need_normflows()
    pairs = list(product(names or ("eight-gaussians", "digits"), systems or EXAMPLES))
    specs = [
        Spec(name, system, whose, seed, steps)
        for seed, (name, system), whose in product(range(seeds), pairs, TRAINERS)
    ]
    trained = in_processes(train, specs, jobs)
    say(
        f"held-out log-likelihood after {steps} steps of {BATCH}, ours - the library's example of "
        f"that size, nats an example: mean over {seeds} seeds [99 % by t]"
    )
    for name, system in pairs:
        ours, our_size, own_size = (
            [trained[Spec(name, system, whose, seed, steps)] for seed in range(seeds)]
            for whose in TRAINERS
        )
        level, n = np.mean([one.log_prob for one in ours]), ours[0].n_parameters
        against = "; ".join(verdict(ours, theirs) for theirs in (our_size, own_size))
        say(f"{name:16} {system:17} {level:.3f} with {n} parameters; {against}")


def verdict(ours: list[Reached], theirs: list[Reached]) -> str:
    """The difference, its interval, and the example's number of parameters."""
    pairs = zip(ours, theirs, strict=True)
    interval = mean_interval([a.log_prob - b.log_prob for a, b in pairs])
    low, high = f"{interval.low:+.3f}", f"{interval.high:+.3f}"
    return f"{interval.value:+.3f} [{low}, {high}] ({theirs[0].n_parameters})"


def train(spec: Spec) -> Reached:
    """Train, and evaluate on held-out examples."""
    name = spec.dataset
    if name == "digits" and spec.system != "glow":
        name = "digits-logit"
    data = dataset(name)
    held_out = data.prepare(data.test[:N_HELD_OUT], torch.Generator().manual_seed(0))
    with torch_seeded(spec.seed):
        if spec.whose == OURS:
            return _ours(spec, data, held_out)
        return _theirs(spec, data, held_out)


def _ours(spec: Spec, data: Dataset, held_out: Tensor) -> Reached:
    axes: dict[str, Value] = {"dataset": data.name, "architecture": spec.system}
    axes["step"] = spec.n_steps
    recipe = flows_recipe(Cell("flows", axes))
    rate = recipe.training.learning_rate
    settings = Training(spec.n_steps, BATCH, learning_rate=rate, seed=spec.seed)
    flow = recipe.flow().with_estimator(recipe.objective)
    trainer = Trainer(flow, data, settings)
    for _ in range(spec.n_steps):
        trainer.step()
    return Reached(float(exact_log_prob(flow, held_out).mean()), n_parameters(flow))


def _theirs(spec: Spec, data: Dataset, held_out: Tensor) -> Reached:
    our_size = size_of(architecture_named(spec.system)(data.event, LIPSCHITZ))
    example = EXAMPLES[spec.system](data.event, our_size if spec.whose == OUR_SIZE else None)
    mean, scale = torch.zeros(()), torch.ones(())
    if len(data.event) == 1:
        mean, scale = data.train.mean(0), data.train.std(0)
    generator, order = torch.Generator().manual_seed(spec.seed), torch.empty(0, dtype=torch.long)
    for _ in range(spec.n_steps):
        if len(order) < BATCH:
            order = torch.randperm(len(data.train), generator=generator)
        x = data.prepare(data.train[order[:BATCH]], generator)
        order = order[BATCH:]
        example.optimiser.zero_grad()
        loss = example.loss((x - mean) / scale, generator)
        loss.backward()
        example.optimiser.step()
        if not math.isfinite(loss.item()):
            raise ArithmeticError(f"The loss of {spec} is {loss.item()}. Take another seed.")
    log_prob = example.log_prob((held_out - mean) / scale).mean() - scale.log().sum()
    return Reached(float(log_prob), n_parameters(example.flow))


if __name__ == "__main__":
    main()
