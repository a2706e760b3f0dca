"""The variance, bias and seconds of an estimate of a flow's log-determinant."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from resflow_bench import logdet
from resflow_bench.advise.settings import BIAS_SHARE
from resflow_bench.flows import ResidualFlow
from resflow_bench.intervals import Interval, median_interval
from resflow_bench.lab import Cell, Context, Observation, exactly, observe
from resflow_bench.models import build_points, build_problem, realised
from resflow_bench.speed.timing import elapsed
from resflow_bench.theory import seconds_to_target
from suites.efficiency.gradients import observe_gradient
from suites.efficiency.sampler import MOST_PILOTS, N_FIRST, Sampler, build_sampler
from suites.margins import TARGET
from suites.sampling import (
    rounding_of,
    sample_mean,
    sample_variance,
    widened,
    without_logit,
)

YARDSTICK = logdet.LogDetEstimator(logdet.Rademacher(), logdet.Fixed(10))
"""The estimator timed in turn with every other: cells are compared by their ratios to it."""

N_WARM_UP = 2

PRICED_AT = 64
"""The d whose draws a preset's numbers of calls, pairs and gradients are meant for."""

N_LEAST = 36
"""The calls, pairs or gradients that are made at any d, if the preset has so many."""


def measure_efficiency(cell: Cell, context: Context) -> Iterable[Observation]:
    """Variance, bias and seconds of a draw, and the seconds that they add up to.

    * `variance`, `bias`: per example, from `n_calls` independent calls at `n_points` points, each
      with `n_copies` of every point, `batch_size` examples at most, if their errors are independent
      of each other. A draw without randomness is made twice. The interval of `bias` is Student's,
      Chebyshev's where a high moment is infinite, and none where the variance is.
    * `seconds_per_example`: median over `n_pairs` calls of `batch_size` examples.
    * `relative_time`: the same over that of ten plain terms with one Rademacher probe, timed in
      turn with it: what compares with another cell's, whatever else the machine does.
    * `variance_time`: variance x seconds_per_example, nat^2 s: what remains when as many draws are
      averaged as a second has room for.
    * `seconds_to_target`: seconds per example to a root mean square error of `TARGET` by averaging
      draws. It is infinite if the variance is, or if the bias may be above a tenth of `TARGET`:
      where no formula gives the bias, the farther end of its interval counts.
    * `gradient_*`: see `observe_gradient`; from `n_gradients` draws on a batch of `batch_size`
      points, if the preset asks for any and the estimate has a gradient. Of an implementation in
      its memory-saving mode nothing else is measured, as only its gradient is the log-det's.

    Above d = `PRICED_AT` fewer calls, pairs and gradients are made, as 1/d, down to `N_LEAST`: at
    d = 768 a thousand calls of a tuned draw would take an hour.

    The log-determinant is that of the residual blocks and affine layers: a logit in front, which
    has a closed form and no counterpart elsewhere, is left out.
    """
    problem = build_problem(cell, context.results, int(context.effort["n_points"]))
    flow, x, known = without_logit(problem.flow, problem.x)
    sampler = build_sampler(cell, problem, flow, context.results)
    if cell.get("mode") != "memory-saving":
        yield from _of_value(sampler, flow, x, problem.log_det - known, cell, context)
    yield exactly("variance_is_finite", float(sampler.finite), "1")
    if n_draws := _number("n_gradients", flow, context):
        batch = build_points(cell, N_FIRST + MOST_PILOTS + int(cell["batch_size"]), context.results)
        _, batch, _ = without_logit(problem.flow, batch[N_FIRST + MOST_PILOTS :])
        seed = context.generator_seed(cell, "gradient")
        yield from observe_gradient(sampler, flow, batch.contiguous(), n_draws, seed, YARDSTICK)
    yield from realised(problem.norm, problem.spectral_radius)


def _of_value(
    sampler: Sampler,
    flow: ResidualFlow,
    x: Tensor,
    exact: np.ndarray,
    cell: Cell,
    context: Context,
) -> Iterator[Observation]:
    rounding = rounding_of(x, exact)
    n_calls = _number("n_calls", flow, context) if sampler.random else 2
    errors = _errors(sampler, x, exact, n_calls, cell, context)  # (n_calls, R, P)
    n, bias = errors.size, widened(_bias(sampler, errors), rounding)
    variance = Interval(0.0, 0.0, 0.0, 0.0, n)  # without random draws, what is left is rounding
    if sampler.random:
        variance = sample_variance(errors.reshape(-1, len(x)), sampler.is_normal, rounding)
    note = "; ".join(filter(None, [sampler.note, f"mean over {len(x)} points"]))
    yield observe("variance", variance, "nat^2", n, note)
    yield observe("bias", bias, "nat", n, note)
    if sampler.variance is not None:
        yield exactly("variance_expected", sampler.variance.mean(), "nat^2")
    if sampler.bias is not None:
        yield exactly("bias_expected", sampler.bias.mean(), "nat")
    seconds, relative, n_products = _costs(sampler, flow, x, cell, context)
    yield observe("seconds_per_example", seconds, "s", seconds.n)
    yield observe("relative_time", relative, "1", relative.n, "to ten plain terms, in turns")
    if not math.isnan(n_products):
        yield exactly("n_products", n_products, "1")
    yield from _together(sampler, variance, bias, seconds)


def _number(name: str, flow: ResidualFlow, context: Context) -> int:
    """The preset's number of that name, less where a draw costs more."""
    number = int(context.effort.get(name, 0))
    return min(number, max(N_LEAST, number * PRICED_AT // flow.dim))


def _bias(sampler: Sampler, errors: np.ndarray) -> Interval:
    """The bias of the mean over copies and points; one call is one sample."""
    variance = None
    if not (sampler.is_normal or sampler.variance is None):
        # For errors in common only Var(mean) <= mean of Var is known.
        n = errors[0].size if sampler.independent else 1
        variance = float(sampler.variance.mean()) / n
    return sample_mean(errors.mean((1, 2)), sampler.finite, variance)


def build_draw(cell: Cell, results: Path) -> Callable[[], object]:
    """The call that `seconds_per_example` times: a draw of `batch_size` examples."""
    problem = build_problem(cell, results, n_points=2)
    flow, x, _ = without_logit(problem.flow, problem.x)
    sampler = build_sampler(cell, problem, flow, results)
    batch = repeated(x, int(cell["batch_size"]))

    def draw() -> None:
        with torch.no_grad(), sampler.seeded(0):
            sampler.draw(batch.clone())

    return draw


@torch.no_grad()
def _errors(
    sampler: Sampler, x: Tensor, exact: np.ndarray, n_calls: int, cell: Cell, context: Context
) -> np.ndarray:
    """estimate - exact, (n_calls, R, P), nats, float64."""
    most = max(1, cell["batch_size"] // len(x))
    several = sampler.independent and sampler.random
    n_copies = min(int(context.effort["n_copies"]), most) if several else 1
    copies = repeated(x, n_copies * len(x))
    with sampler.seeded(context.generator_seed(cell)):
        draws = [sampler.draw(copies.clone()).double().cpu().numpy() for _ in range(n_calls)]
    return np.stack(draws).reshape(n_calls, n_copies, len(x)) - exact


@torch.no_grad()
def _costs(
    sampler: Sampler, flow: ResidualFlow, x: Tensor, cell: Cell, context: Context
) -> tuple[Interval, Interval, float]:
    """(seconds per example, ratio of a call to the yardstick's, products per example)."""
    batch = repeated(x, int(cell["batch_size"]))
    generator = torch.Generator(x.device).manual_seed(0)
    yardstick = flow.with_estimator(YARDSTICK)
    pairs = []
    n_pairs = N_WARM_UP + _number("n_pairs", flow, context)
    if sampler.counted is not None:
        sampler.counted.n_products = 0.0
    with sampler.seeded(context.generator_seed(cell, "time")):
        for _ in range(n_pairs):
            ours = elapsed(lambda: sampler.draw(batch.clone()), x.device)
            theirs = elapsed(lambda: yardstick.forward_and_log_det(batch, generator), x.device)
            pairs.append((ours, theirs))
    taken = np.asarray(pairs[N_WARM_UP:])
    n_products = math.nan if sampler.counted is None else sampler.counted.n_products / n_pairs
    per_example = median_interval(taken[:, 0] / len(batch))
    return per_example, median_interval(taken[:, 0] / taken[:, 1]), n_products


def repeated(x: Tensor, n: int) -> Tensor:
    """n points: the given ones repeated, contiguous in memory, as other packages require."""
    return x[torch.arange(n, device=x.device) % len(x)].contiguous()


def _together(
    sampler: Sampler, variance: Interval, bias: Interval, seconds: Interval
) -> Iterator[Observation]:
    """`variance_time` and `seconds_to_target`, with limits that are products of limits."""
    said = "of the sample"
    if sampler.variance is not None and sampler.finite:
        value = float(sampler.variance.mean())
        variance, said = Interval(value, 0.0, value, value, variance.n), "of the closed form"
    said += "" if sampler.finite else "; infinite variance: at least this"
    off = max(abs(bias.low), abs(bias.high))
    if sampler.bias is not None:
        off = float(np.abs(sampler.bias).max())

    def to_target(spread: float, each: float) -> float:
        spread = spread if sampler.finite else math.inf
        return float(seconds_to_target(each, spread, off, TARGET, BIAS_SHARE))

    ends = [(getattr(variance, end), getattr(seconds, end)) for end in ("value", "low", "high")]
    value, low, high = (max(0.0, spread) * each for spread, each in ends)
    yield Observation("variance_time", value, "nat^2 s", math.nan, low, high, variance.n, said)
    value, low, high = (to_target(max(0.0, spread), each) for spread, each in ends)
    said += f"; to {TARGET} nat, |bias| {off:.1e} nat"
    yield Observation("seconds_to_target", value, "s", math.nan, low, high, variance.n, said)
