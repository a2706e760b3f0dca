"""A candidate of `efficiency` as one call: its draws, and what is known of them in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from resflow_bench import logdet, theory
from resflow_bench.flows import ResidualFlow
from resflow_bench.jacobian import Map
from resflow_bench.lab import Cell
from resflow_bench.logdet.expansions.expansion import Incremental
from resflow_bench.models import Problem, build_estimator, build_expansion, build_points
from resflow_bench.peers import PEERS, TRAINING, Request
from suites.sampling import NORMAL_ORDER

_Random = logdet.LogDetEstimator | logdet.XTrace

PILOT = 512
"""d times the number of points that an estimator is tuned at, 2 to 16 of them, none of which is
measured at: at a large d a form differs less from point to point, and costs more."""

MOST_PILOTS = 16

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
    parameters: those of all g, in which a draw is differentiable; none if it is not.
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
    parameters: list[Tensor]
    counted: _Counting | None = None


def build_sampler(cell: Cell, problem: Problem, flow: ResidualFlow, results: Path) -> Sampler:
    """The cell's candidate on the problem's flow without its logit."""
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
            parameters=peer.parameters if cell["mode"] in TRAINING else [],
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
    variance, bias = closed_forms(each, problem)
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
        parameters=[] if isinstance(estimator, logdet.XTrace) else branch_parameters(flow),
        counted=counted,
    )


def _of_each_block(estimator: logdet.Estimator, problem: Problem) -> list[_Random]:
    """The random estimator of each block's log-det; none for a determinant."""
    if isinstance(estimator, _Random):
        return [estimator] * len(problem.jacobians)
    if isinstance(estimator, logdet.PerBranch):
        return [estimator.estimators[block.branch] for block in problem.flow.blocks]
    return []


def branch_parameters(flow: ResidualFlow) -> list[Tensor]:
    """The parameters of all g, from data to latent."""
    return [p for block in flow.blocks for p in block.branch.parameters()]


def closed_forms(
    each: list[_Random], problem: Problem
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Variance and bias, (P,) each, where they are known and affordable."""
    variance, bias = np.zeros(len(problem.x)), np.zeros(len(problem.x))
    variance_is_known = bias_is_known = True
    for one, matrices, c in zip(each, problem.jacobians, problem.coefficients, strict=bool(each)):
        affordable = matrices.shape[-1] <= MAX_DENSE
        bias_is_known &= _series_of(one) == logdet.Taylor()
        bias_is_known &= affordable or isinstance(one.truncation, logdet.Roulette)
        match one:
            case logdet.LogDetEstimator(probe=theory.ProbeVariance() as probe) if (
                affordable and one.expansion == logdet.Taylor()
            ):
                variance += one.truncation.variance(matrices, probe, one.n_probes, one.n_traced, c)
            case _:
                variance_is_known = False
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
    n_pilot = min(MOST_PILOTS, max(2, PILOT // cell["dim"]))
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
