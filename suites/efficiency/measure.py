"""The variance, bias and seconds of an estimate of a flow's log-determinant."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from resflow_bench import logdet
from resflow_bench.advise.settings import BIAS_SHARE
from resflow_bench.flows import Logit, ResidualFlow
from resflow_bench.intervals import Interval, median_interval
from resflow_bench.jacobian import Map
from resflow_bench.lab import Cell, Context, Observation, exactly, observe
from resflow_bench.logdet.expansions.expansion import Incremental
from resflow_bench.models import (
    Problem,
    build_estimator,
    build_expansion,
    build_points,
    build_problem,
    realised,
)
from resflow_bench.peers import PEERS, Request
from resflow_bench.speed.timing import elapsed
from resflow_bench.theory import seconds_to_target
from suites.margins import TARGET
from suites.sampling import NORMAL_ORDER, rounding_of, sample_mean, sample_variance, widened

YARDSTICK = logdet.LogDetEstimator(logdet.Rademacher(), logdet.Fixed(10))
"""The estimator timed in turn with every other: cells are compared by their ratios to it."""

_Random = logdet.LogDetEstimator | logdet.XTrace

N_WARM_UP = 2

PILOT = 512
"""d times the number of points that an estimator is tuned at, 2 to 16 of them, none of which is
measured at: at a large d a form differs less from point to point, and costs more."""

N_FIRST = 32
"""The model's first points, which are left to the measurements."""

MAX_DENSE = 128
"""The largest d at which the closed form of the variance, which takes powers of J, is computed."""


class Sampler(NamedTuple):
    """An estimate of the log-determinant of a flow, drawn in one call for a batch.

    draw: (B, *event) -> (B,), nats.
    seeded: makes the draws inside the context follow from a seed.
    random: whether two calls differ.
    independent: whether the examples of one call have errors of their own.
    is_normal: whether the moment of order `NORMAL_ORDER` is finite.
    finite: whether the variance is finite.
    variance: the closed form, (P,), nat^2; None where there is none.
    bias: the closed form, (P,), nats; None where there is none.
    note: the message of its rows.
    counted: the counter of its products; None if they are not known.
    """

    draw: Callable[[Tensor], Tensor]
    seeded: Callable[[int], AbstractContextManager[None]]
    random: bool
    independent: bool
    is_normal: bool
    finite: bool
    variance: np.ndarray | None
    bias: np.ndarray | None
    note: str
    counted: _Counting | None = None


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

    The log-determinant is that of the residual blocks and affine layers: a logit in front, which
    has a closed form and no counterpart elsewhere, is left out.
    """
    problem = build_problem(cell, context.results, int(context.effort["n_points"]))
    flow, x, exact = without_logit(problem)
    sampler = _sampler(cell, problem, flow, context.results)
    rounding = rounding_of(x, exact)
    errors = _errors(sampler, x, exact, cell, context)  # (n_calls, R, P)
    n, bias = errors.size, widened(_bias(sampler, errors), rounding)
    variance = Interval(0.0, 0.0, 0.0, 0.0, n)  # without random draws, what is left is rounding
    if sampler.random:
        variance = sample_variance(errors.reshape(-1, len(x)), sampler.is_normal, rounding)
    note = "; ".join(filter(None, [sampler.note, f"mean over {len(x)} points"]))
    yield observe("variance", variance, "nat^2", n, note)
    yield observe("bias", bias, "nat", n, note)
    if sampler.variance is not None:
        yield exactly("variance_expected", sampler.variance.mean(), "nat^2")
    yield exactly("variance_is_finite", float(sampler.finite), "1")
    if sampler.bias is not None:
        yield exactly("bias_expected", sampler.bias.mean(), "nat")
    seconds, relative, n_products = _costs(sampler, flow, x, cell, context)
    yield observe("seconds_per_example", seconds, "s", seconds.n)
    yield observe("relative_time", relative, "1", relative.n, "to ten plain terms, in turns")
    if not math.isnan(n_products):
        yield exactly("n_products", n_products, "1")
    yield from _together(sampler, variance, bias, seconds)
    yield from realised(problem.norm, problem.spectral_radius)


def _bias(sampler: Sampler, errors: np.ndarray) -> Interval:
    """The bias of the mean over copies and points; one call is one sample."""
    variance = None
    if not (sampler.is_normal or sampler.variance is None):
        # For errors in common only Var(mean) <= mean of Var is known.
        n = errors[0].size if sampler.independent else 1
        variance = float(sampler.variance.mean()) / n
    return sample_mean(errors.mean((1, 2)), sampler.finite, variance)


def without_logit(problem: Problem) -> tuple[ResidualFlow, Tensor, np.ndarray]:
    """The problem's flow behind its logit, the points there, and the exact log-det: (P,), nats."""
    first, *rest = problem.flow.bijections
    if not isinstance(first, Logit):
        return problem.flow, problem.x, problem.log_det
    with torch.no_grad():
        x, log_det = first.forward_and_log_det(problem.x.double())
    flow = ResidualFlow(cast("list[nn.Module]", rest), problem.flow.event)
    return flow, x.to(problem.x), problem.log_det - log_det.cpu().numpy()


def _sampler(cell: Cell, problem: Problem, flow: ResidualFlow, results: Path) -> Sampler:
    implementation = cell.get("implementation", "ours")
    if implementation != "ours":
        peer = PEERS[implementation](flow, Request(cell["mode"]))
        rho, truncation, of_j = problem.spectral_radius, peer.truncation, peer.bias
        return Sampler(
            draw=peer.log_det,
            seeded=peer.seeded,
            random=True,
            independent=False,
            is_normal=truncation.moment_is_finite(rho, NORMAL_ORDER),
            finite=truncation.moment_is_finite(rho, 2),
            variance=None,
            bias=None if of_j is None else problem.over_blocks(lambda j, _: of_j(j)),
            note=peer.version,
        )
    estimator = build_candidate(cell, problem, results)
    generator = torch.Generator(problem.x.device)

    @contextmanager
    def seeded(seed: int) -> Iterator[None]:
        generator.manual_seed(seed)
        yield

    counted = _Counting(estimator)
    running = flow.with_estimator(counted)
    each = _of_each_block(estimator, problem)
    truncations, rho = [one.truncation for one in each], problem.spectral_radius
    shared = [t for t in truncations if isinstance(t, logdet.Roulette) and t.per == "batch"]
    variance, bias = _closed_forms(each, problem)
    return Sampler(
        draw=lambda x: running.forward_and_log_det(x, generator)[1],
        seeded=seeded,
        random=bool(each),
        independent=not shared,
        is_normal=all(t.moment_is_finite(rho, NORMAL_ORDER) for t in truncations),
        finite=all(t.moment_is_finite(rho, 2) for t in truncations),
        variance=variance,
        bias=bias,
        note="",
        counted=counted,
    )


def build_draw(cell: Cell, results: Path) -> Callable[[], object]:
    """The call that `seconds_per_example` times: a draw of `batch_size` examples."""
    problem = build_problem(cell, results, n_points=2)
    flow, x, _ = without_logit(problem)
    sampler = _sampler(cell, problem, flow, results)
    batch = repeated(x, int(cell["batch_size"]))

    def draw() -> None:
        with torch.no_grad(), sampler.seeded(0):
            sampler.draw(batch.clone())

    return draw


def _of_each_block(estimator: logdet.Estimator, problem: Problem) -> list[_Random]:
    """The random estimator of each block's log-det; none for a determinant."""
    if isinstance(estimator, _Random):
        return [estimator] * len(problem.jacobians)
    if isinstance(estimator, logdet.PerBranch):
        return [estimator.estimators[block.branch] for block in problem.flow.blocks]
    return []


def _closed_forms(
    each: list[_Random], problem: Problem
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Variance and bias, (P,) each, where they are known and affordable."""
    variance, bias = np.zeros(len(problem.x)), np.zeros(len(problem.x))
    variance_is_known = bias_is_known = True
    for one, matrices, c in zip(each, problem.jacobians, problem.coefficients, strict=bool(each)):
        affordable = matrices.shape[-1] <= MAX_DENSE
        plain = isinstance(one, logdet.LogDetEstimator) and one.expansion == logdet.Taylor()
        variance_is_known &= affordable and plain
        bias_is_known &= _series_of(one) == logdet.Taylor()
        bias_is_known &= affordable or isinstance(one.truncation, logdet.Roulette)
        if variance_is_known and isinstance(one, logdet.LogDetEstimator):
            variance += one.truncation.variance(matrices, one.probe, one.n_probes, one.n_traced, c)
        if bias_is_known:
            bias += one.truncation.bias(matrices, c)
    return variance if variance_is_known else None, bias if bias_is_known else None


def _series(expansion: logdet.Expansion) -> logdet.Expansion:
    """The expansion without its control, whose mean is zero."""
    controls = logdet.Controlled | logdet.CirculantControlled
    return expansion.expansion if isinstance(expansion, controls) else expansion


def _series_of(one: _Random) -> logdet.Expansion:
    return logdet.Taylor() if isinstance(one, logdet.XTrace) else _series(one.expansion)


def build_candidate(cell: Cell, problem: Problem, results: Path) -> logdet.Estimator:
    """The axis `estimator`: probed, tuned to each branch, deflated, or the determinant of J.

    A tuned estimator is tuned at other points than those it is measured at, which are the model's
    first. A control without increments is added after the tuning of the series that it controls.
    """
    if cell["estimator"] == "determinant":
        return logdet.Determinant()
    if cell["estimator"] == "hutchinson":
        return build_estimator(cell)
    if cell["estimator"] == "xtrace":
        vectors = min(cell["n_probes"], cell["dim"])
        return logdet.XTrace(vectors, build_estimator(cell).truncation, cell["n_traced"])
    expansion = build_expansion(cell)
    base = logdet.LogDetEstimator(
        logdet.PROBES[cell["probe"]],
        logdet.Fixed(cell["n_traced"] + 1),  # to be replaced
        n_traced=cell["n_traced"],
        expansion=expansion if isinstance(expansion, Incremental) else _series(expansion),
    )
    n_pilot = min(16, max(2, PILOT // cell["dim"]))
    points = build_points(cell, N_FIRST + n_pilot, results)[N_FIRST:]
    generator = torch.Generator(points.device).manual_seed(0)
    branches = problem.flow.branches(points)
    each = logdet.tuned(branches, base, generator=generator, n_draws=16).estimators
    return logdet.PerBranch({g: replace(one, expansion=expansion) for g, one in each.items()})


@dataclass
class _Counting:
    """An estimator that adds up the products per example of its calls."""

    estimator: logdet.Estimator
    n_products: float = 0.0

    def __call__(
        self, g: Map, x: Tensor, generator: torch.Generator | None = None
    ) -> logdet.Estimate:
        estimate = self.estimator(g, x, generator)
        self.n_products += estimate.n_products
        return estimate


@torch.no_grad()
def _errors(
    sampler: Sampler, x: Tensor, exact: np.ndarray, cell: Cell, context: Context
) -> np.ndarray:
    """estimate - exact, (n_calls, R, P), nats, float64."""
    n_calls = int(context.effort["n_calls"]) if sampler.random else 2
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
    n_pairs = N_WARM_UP + int(context.effort["n_pairs"])
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
