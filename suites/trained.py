"""Flows that a suite trains for its cells: recipes, weights and held-out points."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from resflow_bench.flows import ResidualFlow
from resflow_bench.lab import Cell, Context, Skip, silent
from resflow_bench.logdet import Estimator, LogDetEstimator
from resflow_bench.models.catalogue import held_out
from resflow_bench.training.recipe import Recipe
from resflow_bench.training.trainer import Diverged, Training
from resflow_bench.training.weights import trained


def largest_certified(flow: ResidualFlow) -> float:
    """The largest certified Lipschitz constant of a block."""
    return max(block.branch.lipschitz_certified() for block in flow.blocks)


def recipe_for(cell: Cell, training: Training, objective: Estimator) -> Recipe:
    """The recipe of the cell's flow.

    Raises:
        Skip: files are missing, or the architecture is not for such examples.
    """
    recipe = Recipe(cell["architecture"], cell["dataset"], cell["lipschitz"], training, objective)
    try:
        recipe.flow()
    except ValueError as reason:
        raise Skip(str(reason)) from None
    return recipe


def train_all(cells: list[Cell], context: Context, recipe_of: Callable[[Cell], Recipe]) -> None:
    """Train the flow of each cell, once for all cells that share a training.

    In ascending order of steps, so that a training saves its weights at each step that is asked.
    """
    for cell in sorted(cells, key=lambda cell: int(cell["step"])):
        with suppress(Skip, Diverged):  # the cell's own row says so
            recipe = recipe_of(cell)
            trained(recipe, context.results, _naming(recipe, context.say), cell["step"])


def _naming(recipe: Recipe, say: Callable[[str], None]) -> Callable[[str], None]:
    """`say` with the truncation of the objective, by which trainings of one recipe may differ."""
    objective = recipe.objective
    by = "the determinant"
    if isinstance(objective, LogDetEstimator):
        by = str(objective.truncation)
    return lambda message: say(f"{message}, by {by}")


def trained_flow(recipe: Recipe, cell: Cell, context: Context) -> ResidualFlow:
    """The flow after the cell's `step`, its norms aligned, in its dtype and on its device."""
    flow = trained(recipe, context.results, silent, cell["step"])
    flow.align()
    return flow.to(cell["device"], getattr(torch, cell["dtype"])).requires_grad_(False)


def held_out_points(cell: Cell, n: int) -> Tensor:
    """n held-out examples of the cell's dataset, in its dtype and on its device: (n, *event)."""
    return held_out(cell["dataset"], n).to(cell["device"], getattr(torch, cell["dtype"]))
