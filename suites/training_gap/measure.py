"""The gap between a training's objective and the exact likelihood."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from resflow_bench.flows import ResidualFlow
from resflow_bench.intervals import Interval
from resflow_bench.lab import Cell, Context, Observation, Skip, exactly, observe
from resflow_bench.logdet import Roulette
from resflow_bench.models import Problem, build_estimator, dense_truth, realised, sizes
from resflow_bench.training.recipe import Recipe, finite_moments_estimator
from resflow_bench.training.trainer import Training
from suites.sampling import sample_errors
from suites.trained import held_out_points, largest_certified, recipe_for, train_all, trained_flow
from suites.training_gap.curve import measure_curve

GAP_TRAINING = Training(n_steps=2000, batch_size=64, learning_rate=2e-3)
"""The training of every cell, whatever its objective: cells measure it after different steps."""


def measure_training_gap(cell: Cell, context: Context) -> Iterable[Observation]:
    """Held-out ln p(x) / (d ln 2), by the training's objective and exactly.

    `gap` is their difference, mean over points and draws, so that an objective that overstates the
    likelihood has a positive one. The noise of the probes is removed, as in the metric
    `bias_paired` of the suite `bias`. Draws are made until the unpaired interval is `half_width`
    bit/dim to either side, or `max_draws` examples are spent. A training by roulette also has
    `curve_cost`, see `measure_curve`.
    """
    recipe = gap_recipe(cell)
    flow = trained_flow(recipe, cell, context)
    x = held_out_points(cell, int(context.effort["n_points"]))
    jacobians, log_det = dense_truth(flow, x)
    problem = Problem(flow, x, jacobians, log_det, *sizes(jacobians))
    exact = float((_log_base(flow, x) + log_det).mean())
    bits = 1 / (flow.dim * math.log(2))  # bit/dim in a nat
    objective = build_estimator(cell)
    truncation = objective.truncation
    draws = {
        stream: sample_errors(
            problem,
            estimator,
            max_draws=int(context.effort["max_draws"]),
            half_width=context.effort["half_width"] / bits,
            seed=context.generator_seed(cell, stream),
        )
        for stream, estimator in (
            ("objective", objective),
            ("unbiased", finite_moments_estimator(problem.spectral_radius)),
        )
    }
    for stream, errors in draws.items():
        interval = _affine(errors.plain, bits, bits * exact)
        yield observe(f"log_prob_{stream}", interval, "bit/dim", errors.n, errors.message)
    yield exactly("log_prob_exact", bits * exact, "bit/dim")
    errors = draws["objective"]
    yield observe("gap", _affine(errors.paired, bits), "bit/dim", errors.n, errors.message)
    expected = problem.over_blocks(truncation.bias).mean()
    bound = problem.over_dims(lambda dim, c: truncation.bias_bound(cell["lipschitz"], dim, c))
    yield exactly("gap_expected", bits * expected, "bit/dim")
    yield exactly("gap_bound", bits * bound, "bit/dim")
    yield exactly("lipschitz_certified", largest_certified(flow), "1")
    yield from realised(problem.norm, problem.spectral_radius)
    if isinstance(truncation, Roulette):
        yield from measure_curve(recipe, cell, context)


def gap_recipe(cell: Cell) -> Recipe:
    """The recipe of the weights of a cell, up to its `step`.

    Raises:
        Skip: the training ends before that step, or cannot begin.
    """
    if cell["step"] > GAP_TRAINING.n_steps:
        raise Skip(f"this training ends at step={GAP_TRAINING.n_steps}; got step={cell['step']}")
    return recipe_for(cell, GAP_TRAINING, build_estimator(cell))


def prepare_gaps(cells: list[Cell], context: Context) -> None:
    """Train with each objective once, up to its last step."""
    train_all(cells, context, gap_recipe)


def _log_base(flow: ResidualFlow, x: Tensor) -> np.ndarray:
    """ln N(f(x); 0, I) in float64, (P,)."""
    with torch.no_grad():
        z = copy.deepcopy(flow).double()(x.double())
    return (-0.5 * (z.square().sum(-1) + flow.dim * math.log(2 * math.pi))).cpu().numpy()


def _affine(interval: Interval, scale: float, shift: float = 0.0) -> Interval:
    """The interval of scale y + shift, scale > 0, from that of y."""
    value, error, low, high, n = interval
    value, low, high = (scale * end + shift for end in (value, low, high))
    return Interval(value, scale * error, low, high, n)
