"""The cost of a validation curve by difference, against independent draws of the same error."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from resflow_bench.intervals import Interval, mean_interval
from resflow_bench.lab import Cell, Context, Observation, observe, silent
from resflow_bench.logdet import Determinant
from resflow_bench.models.catalogue import held_out
from resflow_bench.training import Trainer, Training, ValidationCurve
from resflow_bench.training.recipe import Recipe, dataset
from resflow_bench.training.weights import trained
from suites import margins

SPACING = 5
"""Optimiser steps between two points of the curve."""

GOES_ON = Training(n_steps=10_000, batch_size=64, ema=0.99)
"""The training that the curve follows, from the cell's weights on: its averaged weights are those
that `resflow-bench train` validates too."""

BURN_IN = 100
"""Steps before the first point, in which the average forgets the weights that it began with."""

N_DRAWS, N_FIRST = 4, 128
"""Draws of each point, and of the first one, in the proportion that suits SPACING."""


def measure_curve(recipe: Recipe, cell: Cell, context: Context) -> Iterator[Observation]:
    """`curve_cost`: products of a curve over those of independent draws with its error.

    That is its calls times its mean square error, over the same for one draw at each point: the
    means are over the curve, the held-out points and `n_copies` curves, against the exact
    log-likelihood, and a call costs the same products in both. The interval is Student's over the
    curves.
    """
    n_copies, n_times = (int(context.effort[name]) for name in ("n_copies", "n_times"))
    if not n_times:  # of no interest where a preset looks for errors alone
        return
    flow = trained(recipe, context.results, silent, cell["step"])
    x = held_out(cell["dataset"], int(context.effort["n_points"]))
    copies = x.repeat(n_copies, *[1] * (x.ndim - 1))
    flow = flow.with_estimator(recipe.objective)
    trainer = Trainer(flow, dataset(cell["dataset"]), GOES_ON, initialise=False)
    generator = torch.Generator().manual_seed(context.generator_seed(cell, "curve"))
    curve = ValidationCurve(copies, recipe.objective, N_DRAWS, N_FIRST)
    squares, n_calls = [], 0
    for time in range(n_times):
        for _ in range(SPACING if time else BURN_IN):
            trainer.step()
        now = trainer.averaged()
        point = curve.update(now, generator)
        n_calls += point.n_calls
        with torch.no_grad():
            exact = now.with_estimator(Determinant()).log_prob(x).double()
            alone = now.with_estimator(recipe.objective).log_prob(copies, generator).double()
        both = torch.stack([point.log_prob, alone]).view(2, n_copies, len(x))
        squares.append((both - exact).square().mean(2).numpy())
    by_difference, one_draw = np.mean(squares, axis=0)  # of each copy
    cost = ratio(n_calls * by_difference, n_times * one_draw)
    needed = n_calls * by_difference.mean() / margins.TARGET**2
    what = f"{n_times} points {SPACING} steps apart: {needed:.2g} calls to {margins.TARGET} nat"
    yield observe("curve_cost", cost, "1", n_copies, what)


def ratio(above: np.ndarray, below: np.ndarray) -> Interval:
    """E above / E below from n i.i.d. pairs: Student's interval of the linearised ratio."""
    value = above.mean() / below.mean()
    found = mean_interval((above - value * below) / below.mean())
    return found._replace(value=value, low=max(0.0, value + found.low), high=value + found.high)
