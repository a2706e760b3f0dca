"""The held-out likelihood of a trained flow, and a picture of its density or its samples."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from resflow_bench.data import DENSITIES, Dataset, density_named
from resflow_bench.flows import ResidualFlow, sample_grid, tiled
from resflow_bench.intervals import Interval, mean_interval
from resflow_bench.lab import Cell, Context, Observation, exactly, observe, pack
from resflow_bench.logdet import Exact
from resflow_bench.memory import at_once
from resflow_bench.models import dense_truth, realised, sizes
from resflow_bench.models.catalogue import held_out
from resflow_bench.training.recipe import (
    Recipe,
    dataset,
    finite_moments_estimator,
    unbiased_objective,
)
from resflow_bench.training.trainer import Training
from suites.density.against import measure_against
from suites.sampling import EXAMPLES_PER_CALL
from suites.trained import held_out_points, largest_certified, recipe_for, train_all, trained_flow

DENSITY_BATCH = 128


DENSITY_RATE = 0.04
"""Times 1/sqrt(d), the learning rate of `density`: in the plane, of the rates between 0.005 and
0.04 the larger ones had learnt more after a few hundred steps."""


MAX_EXACT_DIM = 1024
"""Beyond this d, an exact log-det's d products and d^3 operations take minutes an example."""


N_JACOBIANS = 16
"""Held-out points at which a density's realised constant is looked up."""


N_ROWS, N_COLUMNS = 4, 6
"""Samples in a picture, side by side."""


def measure_density(cell: Cell, context: Context) -> Iterable[Observation]:
    """Mean of ln p(x) over held-out x, against the true density's where that is known.

    `divergence` is the mean of ln p_true(x) - ln p(x) over the same x, an estimate of KL(p_true||p)
    >= 0. Intervals are over examples; the log-det is exact up to d = `MAX_EXACT_DIM`. With an
    `implementation` the cell is a comparison with its trainings, `against.measure_against`.
    """
    if cell.get("implementation") is not None:
        yield from measure_against(cell, context)
        return
    recipe = density_recipe(cell)
    flow, data = trained_flow(recipe, cell, context), dataset(recipe.dataset)
    n = min(int(context.effort["n_points"]), len(data.test))
    x = held_out_points(cell, n)
    seed = context.generator_seed(cell)
    log_prob, how = _log_prob(flow, x, cell["lipschitz"], seed)
    interval = mean_interval(log_prob)
    drawn = picture_of(flow, data, context.effort, seed)
    yield observe("log_prob", interval, "nat", n, how, drawn)
    yield observe("bits_per_dim", bits_per_dim(interval, data), "bit/dim", n, how)
    if recipe.dataset in DENSITIES:
        true = true_log_prob(recipe.dataset, n)
        yield observe("log_prob_true", mean_interval(true), "nat", n)
        yield observe("divergence", mean_interval(true - log_prob), "nat", n)
    if flow.blocks:
        yield exactly("lipschitz_certified", largest_certified(flow), "1")
    if flow.blocks and flow.dim <= MAX_EXACT_DIM:
        jacobians, _ = dense_truth(flow, x[:N_JACOBIANS])
        yield from realised(*sizes(jacobians))


def density_recipe(cell: Cell) -> Recipe:
    """The recipe of the weights of a cell.

    Raises:
        Skip: the training cannot begin.
    """
    k = cell["lipschitz"]
    recipe = recipe_for(cell, Training(cell["step"]), finite_moments_estimator(k, per="batch"))
    event = dataset(recipe.dataset).event
    rate = DENSITY_RATE / math.sqrt(math.prod(event))
    training = Training(cell["step"], batch_size=DENSITY_BATCH, learning_rate=rate)
    return replace(recipe, training=training, objective=unbiased_objective(k, event, "batch"))


def prepare_densities(cells: list[Cell], context: Context) -> None:
    """Train each flow once."""
    own = [cell for cell in cells if cell.get("implementation") is None]
    train_all(own, context, density_recipe)


def true_log_prob(name: str, n: int) -> np.ndarray:
    """ln p_true of n held-out points of a density in the plane, (n,), nats."""
    return density_named(name).log_prob(held_out(name, n).double()).numpy()


def exact_log_prob(flow: ResidualFlow, x: Tensor) -> np.ndarray:
    """ln p(x) in float64 with the exact log-det, (P,), nats."""
    promoted = copy.deepcopy(flow).double().with_estimator(Exact())
    with torch.no_grad():
        return promoted.log_prob(x.double()).cpu().numpy()


def _log_prob(flow: ResidualFlow, x: Tensor, lipschitz: float, seed: int) -> tuple[np.ndarray, str]:
    """ln p(x), (P,), float64, and how it was computed."""
    if flow.dim <= MAX_EXACT_DIM:
        return exact_log_prob(flow, x), "exact log-det"
    estimator = finite_moments_estimator(lipschitz)
    estimated, generator = flow.with_estimator(estimator), torch.Generator(x.device)
    generator.manual_seed(seed)
    with torch.no_grad():
        parts = [
            estimated.log_prob(part, generator) for part in x.split(at_once(EXAMPLES_PER_CALL))
        ]
    how = f"d above {MAX_EXACT_DIM}: unbiased estimate of the log-det, {estimator.truncation}"
    return torch.cat(parts).double().cpu().numpy(), how


def bits_per_dim(interval: Interval, data: Dataset) -> Interval:
    """The interval in `Dataset.bits_per_dim`, which falls as the likelihood rises."""
    value, error, low, high, n = interval
    ends = torch.tensor([value, high, low, value + error], dtype=torch.float64)
    value, low, high, raised = data.bits_per_dim(ends).tolist()
    return Interval(value, value - raised, low, high, n)


def picture_of(
    flow: ResidualFlow, data: Dataset, effort: Mapping[str, int | float], seed: int
) -> bytes | None:
    """A picture of the flow: its density in the plane, or images; None for other data."""
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
    """Learned and true p on a grid over [-reach, reach]^2, (n, n), rows upwards; samples, (m, 2).

    Where the true density is unknown, data, (m, 2), take its place.
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
