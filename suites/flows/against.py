"""Held-out likelihood of a system as the suite trains it, and as its library's example does.

Both train on the same dataset for as many steps of as many examples. Ours has the suite's settings:
about the parameters of the residual flow, ActNorm first, Adam at the suite's rate, warm-up and
decay. Theirs has the optimiser and the rate of the example, on data that are standardised
beforehand unless they are images. Both are evaluated on held-out data by the exact density in
float64, with the weights after the last update.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec

import torch
from torch import Tensor

from resflow_bench.data import Dataset
from resflow_bench.intervals import mean_interval
from resflow_bench.lab import Cell, Context, Failure, Observation, Skip, exactly, observe
from resflow_bench.seeds import torch_seeded
from resflow_bench.systems import n_parameters
from resflow_bench.threads import one_thread
from resflow_bench.training.recipe import Recipe
from resflow_bench.training.recipe import dataset as dataset_of
from resflow_bench.training.trainer import Trainer
from suites.density.measure import exact_log_prob
from suites.flows.examples import EXAMPLES, Example, size_of

OUR_SIZE, OWN_SIZE = EXAMPLE_SIZES = ("example", "example-own-size")
"""Values of `implementation`: the example's network with as many transforms of as many units as
ours, and its own."""

HELD = {"dtype": "float32", "device": "cpu"}


@dataclass(frozen=True)
class Reached:
    """The mean exact log p of held-out examples, nats, and the flow's parameters."""

    log_prob: float
    n_parameters: int


def measure_example(cell: Cell, context: Context, recipe: Recipe) -> Iterable[Observation]:
    """The example's held-out log p less ours, with Student's interval over `n_seeds` seeds.

    * `log_prob_ours`: the mean of ours; `n_parameters`, `n_parameters_ours`: of both flows.

    Args:
        recipe: of ours.
    """
    message = _check(cell)
    data, n_seeds = dataset_of(cell["dataset"]), int(context.effort["n_seeds"])
    rows = data.test[: int(context.effort["n_points"])]
    held_out = data.prepare(rows, torch.Generator().manual_seed(0))
    with one_thread():
        pairs = [
            (ours(recipe, data, held_out, seed), theirs(cell, recipe, data, held_out, seed))
            for seed in range(n_seeds)
        ]
    each = tuple(its.log_prob - mine.log_prob for mine, its in pairs)
    level = mean_interval([mine.log_prob for mine, _ in pairs])
    message = f"{message}; {n_seeds} trainings of each, over which the interval is"
    yield observe("log_prob_ours", level, "nat", n_seeds, message)
    difference = mean_interval(each)
    yield observe("log_prob_minus_ours", difference, "nat", n_seeds, message, replicates=each)
    mine, its = pairs[0]
    yield exactly("n_parameters", its.n_parameters, "1")
    yield exactly("n_parameters_ours", mine.n_parameters, "1")


def _check(cell: Cell) -> str:
    """The library's name and version.

    Raises:
        Skip: there is no example of such a flow, or its library is not installed.
    """
    system, size = cell["architecture"], cell["implementation"]
    is_image = len(dataset_of(cell["dataset"]).event) == 3
    if size not in EXAMPLE_SIZES or system not in EXAMPLES or (is_image and system != "glow"):
        raise Skip(
            f"compared are {', '.join(EXAMPLES)}, images by glow alone, with `implementation` "
            f"{' and '.join(EXAMPLE_SIZES)}; got {system} on {cell['dataset']}, {size}"
        )
    for axis, value in HELD.items():
        if cell[axis] != value:
            raise Skip(f"examples train with {axis}={value}; got {cell[axis]}")
    library, extra = ("normflows", "peers") if system == "glow" else ("zuko", "baselines")
    if find_spec(library) is None:
        raise Skip(f"{library} is not installed; .venv/bin/pip install -e '.[{extra}]' brings it")
    return f"{library} {version(library)}"


def ours(recipe: Recipe, data: Dataset, held_out: Tensor, seed: int) -> Reached:
    """Train by the suite's recipe from a seed, and evaluate."""
    with torch_seeded(seed):
        flow = recipe.flow().with_estimator(recipe.objective)
        trainer = Trainer(flow, data, replace(recipe.training, seed=seed))
        for _ in range(recipe.training.n_steps):
            trainer.step()
    return Reached(float(exact_log_prob(flow, held_out).mean()), n_parameters(flow))


def theirs(cell: Cell, recipe: Recipe, data: Dataset, held_out: Tensor, seed: int) -> Reached:
    """Train by the library's example from a seed, and evaluate.

    Raises:
        Failure: a loss that is not finite.
    """
    size = recipe.training.batch_size
    mean, scale = torch.zeros(()), torch.ones(())
    if len(data.event) == 1:
        mean, scale = data.train.mean(0), data.train.std(0)
    with torch_seeded(seed):
        example = example_of(cell, recipe, data.event)
        generator, order = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
        for step in range(1, cell["step"] + 1):
            if len(order) < size:
                order = torch.randperm(len(data.train), generator=generator)
            x = data.prepare(data.train[order[:size]], generator)
            order = order[size:]
            example.optimiser.zero_grad()
            loss = example.loss((x - mean) / scale, generator)
            loss.backward()
            example.optimiser.step()
            if not math.isfinite(loss.item()):
                raise Failure(f"the loss of the example is {loss.item()} at step {step}")
        log_prob = example.log_prob((held_out - mean) / scale).mean() - scale.log().sum()
    return Reached(float(log_prob), n_parameters(example.flow))


def example_of(cell: Cell, recipe: Recipe, event: tuple[int, ...]) -> Example:
    """The untrained example of the cell's system and size."""
    size = None if cell["implementation"] == OWN_SIZE else size_of(recipe.flow())
    return EXAMPLES[cell["architecture"]](event, size)
