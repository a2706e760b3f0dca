"""The held-out likelihood of a trained system, and what its training, density and samples cost."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from resflow_bench.data import DENSITIES, Dataset
from resflow_bench.flows import ResidualFlow
from resflow_bench.intervals import mean_interval, median_interval
from resflow_bench.lab import Cell, Context, Observation, exactly, observe
from resflow_bench.speed.timing import Call, seconds
from resflow_bench.systems import exactness, n_parameters
from resflow_bench.training.recipe import Recipe, dataset, finite_moments_estimator
from resflow_bench.training.trainer import Trainer, Training
from suites.density.measure import bits_per_dim, exact_log_prob, picture_of, true_log_prob
from suites.flows.against import measure_example
from suites.trained import held_out_points, recipe_for, train_all, trained_flow

LIPSCHITZ = 0.9
"""The constant that residual flows promise here; the suite `density` sweeps it."""

BATCH = 256

RATES = {
    **{"nice": (1e-2, 1e-3), "realnvp": (1e-2, 5e-4), "maf": (1e-2, 1e-3)},
    **{"nsf": (1e-2, 2e-3), "glow": (1e-2, 4e-3)},
    **dict.fromkeys(("neural-ode", "ffjord"), (5e-3, 1e-3)),
    "certified-flow-matching": (1e-2, 1e-3),
    **dict.fromkeys(("flow-matching", "ot-flow-matching", "diffusion"), (5e-3, 1e-3)),
}
"""Adam's rates of each system, in the plane and on images.

In the plane: on the eight Gaussians the discrete ones had the least left to learn after 1,000 steps
at 1e-2, of 1e-3 (that of zuko's examples), 3e-3 and 1e-2; flow matching was within 0.003 nat of its
best after 5,000 steps at 5e-3, of 2e-3, 5e-3 and 1e-2, where diffusion lost a nat. On images: the
best of 5e-4, 1e-3, 2e-3 and 4e-3 after 300 to 400 steps on the digits, which all but NSF and Glow
begin to learn by heart after 50 to 150; at 1e-2 most lost everything."""

RESIDUAL_RATE = 0.04
"""Times 1/sqrt(d), as in the suite `density`."""

N_TIMED = 64
"""Examples of a call that is timed."""


def measure_flows(cell: Cell, context: Context) -> Iterable[Observation]:
    """Likelihood in float64 with the exact log-det or trace; seconds of the flow as it is trained.

    * `log_prob`, `bits_per_dim`, `divergence`: as in the suite `density`.
    * `mass_error`: |integral of p - 1| by a grid, in the plane. `sample_gap`: the mean of ln p over
      samples less the integral of p ln p over the grid: zero if the samples are from p.
    * `round_trip_error`: the largest ||x - f^-1(f(x))|| of held-out x.
    * `train_step_s`, `log_prob_s`, `sample_s`: the first a step's, the others an example's, medians
      on one thread.

    With an `implementation` the cell is a comparison of trainings, `against.measure_example`.
    """
    recipe = flows_recipe(cell)
    if cell.get("implementation") is not None:
        yield from measure_example(cell, context, recipe)
        return
    flow, data = trained_flow(recipe, cell, context), dataset(recipe.dataset)
    n = min(int(context.effort["n_points"]), len(data.test))
    x, seed = held_out_points(cell, n), context.generator_seed(cell)
    log_prob = exact_log_prob(flow, x)
    interval, how = mean_interval(log_prob), exactness(flow)
    yield observe("log_prob", interval, "nat", n, how, picture_of(flow, data, context.effort, seed))
    yield observe("bits_per_dim", bits_per_dim(interval, data), "bit/dim", n, how)
    if recipe.dataset in DENSITIES:
        true = true_log_prob(recipe.dataset, n)
        yield observe("divergence", mean_interval(true - log_prob), "nat", n)
    if flow.event == (2,):
        yield from _plane(flow, data, context, seed)
    with torch.no_grad():
        error = (flow.inverse(flow(x), certify=False).value - x).flatten(1).norm(dim=1)
    yield Observation("round_trip_error", float(error.max()), "1", n=n)
    yield exactly("n_parameters", n_parameters(flow), "1")
    for name, call, per in _calls(flow, recipe, data, x):
        times = median_interval(seconds(call, float(context.effort["seconds"])) / per)
        yield observe(name, times, "s", times.n)


def flows_recipe(cell: Cell) -> Recipe:
    """The recipe of the weights of a cell.

    Raises:
        Skip: the training cannot begin.
    """
    objective = finite_moments_estimator(LIPSCHITZ, per="batch")
    of_flow = Cell(cell.suite, {**cell.axes, "lipschitz": LIPSCHITZ})
    recipe = recipe_for(of_flow, Training(cell["step"]), objective)
    dim = math.prod(dataset(recipe.dataset).event)
    in_plane = on_images = RESIDUAL_RATE / math.sqrt(dim)
    in_plane, on_images = RATES.get(cell["architecture"], (in_plane, on_images))
    rate = in_plane if dim == 2 else on_images
    return replace(recipe, training=Training(cell["step"], BATCH, learning_rate=rate))


def prepare_flows(cells: list[Cell], context: Context) -> None:
    """Train each flow once."""
    own = [cell for cell in cells if cell.get("implementation") is None]
    train_all(own, context, flows_recipe)


def _plane(flow: ResidualFlow, data: Dataset, context: Context, seed: int) -> Iterable[Observation]:
    """The rows that need an integral over the plane, by midpoints of a square about the data."""
    n = int(context.effort["n_mass"])
    reach = 1.5 * float(data.test.abs().max())
    ticks = reach * (2 * torch.arange(n, dtype=torch.float64) + 1 - n) / n
    log_p = exact_log_prob(flow, torch.cartesian_prod(ticks, ticks))
    p = np.exp(log_p) * (2 * reach / n) ** 2
    yield exactly("mass_error", abs(float(p.sum()) - 1), "1")
    generator = torch.Generator().manual_seed(seed)
    samples = flow.sample(int(context.effort["n_samples"]), generator)
    gap = exact_log_prob(flow, samples) - float((p * log_p).sum() / p.sum())
    yield observe("sample_gap", mean_interval(gap), "nat", len(samples))


def _calls(
    flow: ResidualFlow, recipe: Recipe, data: Dataset, x: Tensor
) -> Iterable[tuple[str, Call, int]]:
    """(metric, the call that is timed, the number of examples or steps in it)."""
    generator = torch.Generator().manual_seed(0)
    batch = x[torch.arange(N_TIMED) % len(x)]
    estimated = flow.with_estimator(recipe.objective)
    trained = copy.deepcopy(estimated).requires_grad_(True)
    trainer = Trainer(trained, data, Training(10**6, BATCH), initialise=False)
    yield "train_step_s", trainer.step, 1
    yield "log_prob_s", torch.no_grad()(lambda: estimated.log_prob(batch, generator)), N_TIMED
    yield "sample_s", lambda: flow.sample(N_TIMED, generator), N_TIMED
