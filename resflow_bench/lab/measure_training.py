"""What is observed of trained flows: what their objective hid, and how good their density is."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from resflow_bench.data import DENSITIES, Dataset, density_named
from resflow_bench.flows import ResidualFlow, sample_grid, tiled
from resflow_bench.intervals import Interval, mean_interval
from resflow_bench.lab.cells import Cell, Context, Observation, Skip, silent
from resflow_bench.lab.measure import (
    EXAMPLES_PER_CALL,
    exactly,
    observe,
    realised,
    sample_errors,
)
from resflow_bench.lab.pictures import pack
from resflow_bench.logdet import Exact, LogDetEstimator
from resflow_bench.models.build import Problem, build_estimator, dense_truth, sizes
from resflow_bench.models.catalogue import held_out
from resflow_bench.training.trainer import Diverged, Training
from resflow_bench.training.weights import Recipe, dataset, tame, trained

GAP_TRAINING = Training(n_steps=2000, batch_size=64, learning_rate=2e-3)
"""Of `training_gap`, whatever the objective: its cells look at one training on the way."""

DENSITY_BATCH = 128
DENSITY_RATE = 0.04
"""Times 1/sqrt(d), the learning rate of `density`: in the plane, of the rates between 0.005 and
0.04 the larger ones had learnt more after a few hundred steps."""

MAX_EXACT_DIM = 1024
"""Beyond this d, an exact log-det's d products and d^3 operations take minutes an example."""

N_JACOBIANS = 16
"""Held-out points at which a density's realised constant is looked up."""

N_ROWS, N_COLUMNS = 4, 6
"""Of the images in a picture."""


def measure_training_gap(cell: Cell, context: Context) -> Iterable[Observation]:
    """Held-out ln p(x) / (d ln 2): as the training's objective has it, and as it is.

    `gap` is their difference, mean over points and draws, so that an objective that overstates the
    likelihood has a positive one. It is taken with the probes' own noise removed, as `bias_paired`
    is in `measure.measure_bias`, and drawn until its unpaired interval is `half_width` bit/dim to
    either side, or `max_draws` examples have been spent.
    """
    flow = _flow(gap_recipe(cell), cell, context)
    x = _points(cell, int(context.effort["n_points"]))
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
            ("unbiased", tame(problem.spectral_radius)),
        )
    }
    for stream, errors in draws.items():
        interval = _affine(errors.plain, bits, bits * exact)
        yield observe(f"log_prob_{stream}", interval, "bit/dim", errors.n, errors.message)
    yield exactly("log_prob_exact", bits * exact, "bit/dim")
    errors = draws["objective"]
    yield observe("gap", _affine(errors.paired, bits), "bit/dim", errors.n, errors.message)
    expected = problem.over_blocks(truncation.bias).mean()
    bound = problem.over_dims(lambda dim: truncation.bias_bound(cell["lipschitz"], dim))
    yield exactly("gap_expected", bits * expected, "bit/dim")
    yield exactly("gap_bound", bits * bound, "bit/dim")
    yield exactly("lipschitz_certified", _certified(flow), "1")
    yield from realised(problem.norm, problem.spectral_radius)


def measure_density(cell: Cell, context: Context) -> Iterable[Observation]:
    """Mean of ln p(x) over held-out x, against the true density's where that is known.

    `divergence` is the mean of ln p_true(x) - ln p(x) over the same x, an estimate of KL(p_true||p)
    >= 0. Intervals are over examples; the log-det is exact up to d = `MAX_EXACT_DIM`.
    """
    recipe = density_recipe(cell)
    flow, data = _flow(recipe, cell, context), dataset(recipe.dataset)
    n = min(int(context.effort["n_points"]), len(data.test))
    x = _points(cell, n)
    seed = context.generator_seed(cell)
    log_prob, how = _log_prob(flow, x, cell["lipschitz"], seed)
    interval = mean_interval(log_prob)
    picture = _picture(flow, data, context.effort, seed)
    yield observe("log_prob", interval, "nat", n, how, picture)
    yield observe("bits_per_dim", _in_bits_per_dim(interval, data), "bit/dim", n, how)
    if recipe.dataset in DENSITIES:
        true = density_named(recipe.dataset).log_prob(held_out(recipe.dataset, n).double()).numpy()
        yield observe("log_prob_true", mean_interval(true), "nat", n)
        yield observe("divergence", mean_interval(true - log_prob), "nat", n)
    yield exactly("lipschitz_certified", _certified(flow), "1")
    if flow.dim <= MAX_EXACT_DIM:
        jacobians, _ = dense_truth(flow, x[:N_JACOBIANS])
        yield from realised(*sizes(jacobians))


def gap_recipe(cell: Cell) -> Recipe:
    """What makes the weights that a cell of `training_gap` looks at, at its `step`.

    Raises:
        Skip: where the training ends before, or cannot begin.
    """
    if cell["step"] > GAP_TRAINING.n_steps:
        raise Skip(f"this training ends at step={GAP_TRAINING.n_steps}; got step={cell['step']}")
    return _recipe(cell, GAP_TRAINING, build_estimator(cell))


def density_recipe(cell: Cell) -> Recipe:
    """What makes the weights of a cell of `density`.

    Raises:
        Skip: where the training cannot begin.
    """
    recipe = _recipe(cell, Training(cell["step"]), tame(cell["lipschitz"], per="batch"))
    rate = DENSITY_RATE / math.sqrt(math.prod(dataset(recipe.dataset).event))
    training = Training(cell["step"], batch_size=DENSITY_BATCH, learning_rate=rate)
    return replace(recipe, training=training)


def prepare_gaps(cells: list[Cell], context: Context) -> None:
    """Train with each objective once, up to its last step."""
    _train(cells, context, gap_recipe)


def prepare_densities(cells: list[Cell], context: Context) -> None:
    """Train each flow once."""
    _train(cells, context, density_recipe)


def exact_log_prob(flow: ResidualFlow, x: Tensor) -> np.ndarray:
    """ln p(x) in float64 with the exact log-det, (P,), nats."""
    promoted = copy.deepcopy(flow).double().with_estimator(Exact())
    with torch.no_grad():
        return promoted.log_prob(x.double()).cpu().numpy()


def _log_prob(flow: ResidualFlow, x: Tensor, lipschitz: float, seed: int) -> tuple[np.ndarray, str]:
    """ln p(x), (P,), float64, and how it was computed."""
    if flow.dim <= MAX_EXACT_DIM:
        return exact_log_prob(flow, x), "exact log-det"
    estimator = tame(lipschitz)
    estimated, generator = flow.with_estimator(estimator), torch.Generator(x.device)
    generator.manual_seed(seed)
    with torch.no_grad():
        parts = [estimated.log_prob(part, generator) for part in x.split(EXAMPLES_PER_CALL)]
    how = f"d above {MAX_EXACT_DIM}: unbiased estimate of the log-det, {estimator.truncation}"
    return torch.cat(parts).double().cpu().numpy(), how


def _log_base(flow: ResidualFlow, x: Tensor) -> np.ndarray:
    """ln N(f(x); 0, I) in float64, (P,)."""
    with torch.no_grad():
        z = copy.deepcopy(flow).double()(x.double())
    return (-0.5 * (z.square().sum(-1) + flow.dim * math.log(2 * math.pi))).cpu().numpy()


def _certified(flow: ResidualFlow) -> float:
    return max(block.branch.lipschitz_certified() for block in flow.blocks)


def _affine(interval: Interval, scale: float, shift: float = 0.0) -> Interval:
    """Of scale y + shift, scale > 0, from the interval of y."""
    value, error, low, high, n = interval
    value, low, high = (scale * end + shift for end in (value, low, high))
    return Interval(value, scale * error, low, high, n)


def _in_bits_per_dim(interval: Interval, data: Dataset) -> Interval:
    """The same in `Dataset.bits_per_dim`, which falls as the likelihood rises."""
    value, error, low, high, n = interval
    ends = torch.tensor([value, high, low, value + error], dtype=torch.float64)
    value, low, high, raised = data.bits_per_dim(ends).tolist()
    return Interval(value, value - raised, low, high, n)


def _recipe(cell: Cell, training: Training, objective: LogDetEstimator) -> Recipe:
    recipe = Recipe(cell["architecture"], cell["dataset"], cell["lipschitz"], training, objective)
    try:
        recipe.flow()
    except ValueError as reason:  # files that are not there, or an architecture for other events
        raise Skip(str(reason)) from None
    return recipe


def _train(cells: list[Cell], context: Context, recipe_of: Callable[[Cell], Recipe]) -> None:
    """In ascending order of steps, so that a training leaves its weights at each on its way."""
    for cell in sorted(cells, key=lambda cell: int(cell["step"])):
        with suppress(Skip, Diverged):  # the cell will say so
            recipe = recipe_of(cell)
            trained(recipe, context.results, _naming(recipe, context.say), cell["step"])


def _naming(recipe: Recipe, say: Callable[[str], None]) -> Callable[[str], None]:
    """Tells trainings apart that differ in their objective alone."""
    return lambda message: say(f"{message}, by {recipe.objective.truncation}")


def _flow(recipe: Recipe, cell: Cell, context: Context) -> ResidualFlow:
    """After `step` steps, aligned, in the cell's dtype and on its device."""
    flow = trained(recipe, context.results, silent, cell["step"])
    flow.align()
    return flow.to(cell["device"], getattr(torch, cell["dtype"])).requires_grad_(False)


def _points(cell: Cell, n: int) -> Tensor:
    return held_out(cell["dataset"], n).to(cell["device"], getattr(torch, cell["dtype"]))


def _picture(
    flow: ResidualFlow, data: Dataset, effort: Mapping[str, int | float], seed: int
) -> bytes | None:
    """What there is to see of the flow: a density in the plane, or images."""
    like = next(iter(flow.state_dict().values()))
    generator = torch.Generator(like.device).manual_seed(seed)
    if flow.event == (2,):
        return _plane(flow, data, effort, generator)
    if len(flow.event) == 3:
        return _images(flow, data, generator)
    return None


def _plane(
    flow: ResidualFlow, data: Dataset, effort: Mapping[str, int | float], generator: torch.Generator
) -> bytes:
    """Over [-reach, reach]^2: learned and true p on a grid, (n, n), rows upwards; samples, (m, 2).

    Where no true density is known, data, (m, 2), in its place.
    """
    n, n_samples = int(effort["n_grid"]), int(effort["n_samples"])
    reach = 1.1 * float(data.test.abs().max())
    ticks = reach * (2 * torch.arange(n, dtype=torch.float64) + 1 - n) / n
    grid = torch.cartesian_prod(ticks, ticks).flip(1)  # (n^2, 2), x fastest
    arrays = {
        "learned": np.exp(exact_log_prob(flow, grid.to(generator.device))).reshape(n, n),
        "samples": flow.sample(n_samples, generator).cpu().numpy(),
        "reach": np.asarray(reach),
    }
    if data.name in DENSITIES:
        arrays["true"] = density_named(data.name).log_prob(grid).exp().numpy().reshape(n, n)
    else:
        arrays["data"] = data.test[:n_samples].numpy()
    return pack(**{k: v.astype(np.float32) for k, v in arrays.items()})


def _images(flow: ResidualFlow, data: Dataset, generator: torch.Generator) -> bytes:
    """samples, data: (C, N_ROWS H, N_COLUMNS W) in 0..255; the data are test examples.

    tiles: (N_ROWS, N_COLUMNS).
    """
    shown = held_out(data.name, N_ROWS * N_COLUMNS)
    grids = {
        "samples": sample_grid(flow, N_ROWS, N_COLUMNS, generator),
        "data": tiled(shown, N_COLUMNS),
    }
    pixels = {k: (255 * v).round().byte().cpu().numpy() for k, v in grids.items()}
    return pack(tiles=np.array([N_ROWS, N_COLUMNS]), **pixels)
