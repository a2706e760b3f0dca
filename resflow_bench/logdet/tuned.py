"""One estimator for each branch of a flow, chosen from a pilot run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from resflow_bench.jacobian import Map
from resflow_bench.logdet.estimator import Estimate, LogDetEstimator
from resflow_bench.logdet.optimal import MAX_TAILS, Pilot, pilot
from resflow_bench.logdet.truncation import Roulette

N_PROBES = (1, 2, 4, 8, 16, 32)
"""The numbers of probes that are tried for each branch."""

N_PRICES = 64
"""The number of exchange rates of variance for products that are tried, evenly in the logarithm."""


class ContractiveMap(Protocol):
    """A branch g with the Lipschitz constant that it promises, in (0, 1)."""

    @property
    def lipschitz(self) -> float: ...

    def __call__(self, x: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class PerBranch:
    """The estimator chosen for each branch.

    Args:
        estimators: by branch, compared by identity.

    Properties: unbiased if each of them is. A branch that was trained on after the choice keeps
        its estimator: the choice may then cost variance, never bias.

    Raises:
        ValueError: when called with another branch.
    """

    estimators: Mapping[Map, LogDetEstimator]

    def __call__(self, g: Map, x: Tensor, generator: torch.Generator | None = None) -> Estimate:
        return self.of(g)(g, x, generator)

    def of(self, g: Map) -> LogDetEstimator:
        """The estimator of this branch."""
        if g not in self.estimators:
            raise ValueError(
                f"PerBranch has estimators for {len(self.estimators)} branches, and not for this "
                f"{type(g).__name__}. Choose them with `tuned` on the flow that is evaluated."
            )
        return self.estimators[g]


def tuned(
    branches: Sequence[tuple[ContractiveMap, Tensor]],
    base: LogDetEstimator,
    n_besides: float = 8.0,
    generator: torch.Generator | None = None,
    n_draws: int = 16,
) -> PerBranch:
    """Choose a roulette and a number of probes for each branch, to the least variance times work.

    1. One pilot at the points gives the moments of the series' tails; from them, for each number of
       probes, the roulette of `pilot_roulette`, finite at the branch's promised constant, with its
       variance and its mean number of products.
    2. The variances of the blocks add, and so do their products. At each of `N_PRICES` exchange
       rates every branch takes its option of least variance plus price times products; of these
       choices the one of least total variance times total products is returned.

    Args:
        branches: each g with its own inputs, (B, *event), some ten points.
        base: the estimator whose probe, products, gradient, n_traced and expansion all branches
            use; its truncation and n_probes are replaced.
        n_besides: the cost of a branch besides its probes, in products: value, slopes, traces.
        n_draws: of the pilot, with `PROBES_A_DRAW` probes each, at every point; with 32 probes
            each if the probe has no closed form of its variance.

    Properties: costs 64 products for each of the pilot's probes, points and branches, once. The
        moments are those of ln|det(I + J)|, of a monotone block's branch too: there the choice may
        cost variance, never bias.

    Raises:
        ValueError: a branch promises no constant below 1.
    """
    for g, _ in branches:
        if not 0.0 < g.lipschitz < 1.0:
            raise ValueError(
                "tuned needs branches that promise a constant below 1, where the variance is to "
                f"be finite; got {g.lipschitz:g} of a {type(g).__name__}. Choose a law by hand."
            )
    options = [
        _options(pilot(base, g, x, n_draws, N_PROBES, generator), base, g.lipschitz)
        for g, x in branches
    ]
    choices = [
        [min(some, key=lambda o: o.variance + price * o.n_products) for some in options]
        for price in torch.logspace(-8, 8, N_PRICES, dtype=torch.float64).tolist()
    ]

    def variance_times_work(chosen: list[_Option]) -> float:
        return sum(o.variance for o in chosen) * sum(o.n_products + n_besides for o in chosen)

    best = min(choices, key=variance_times_work)
    return PerBranch({g: o.estimator for (g, _), o in zip(branches, best, strict=True)})


class _Option(NamedTuple):
    """An estimator, its variance (nat^2, mean over points) and its products per example."""

    estimator: LogDetEstimator
    variance: float
    n_products: float


def _options(moments: Pilot, base: LogDetEstimator, lipschitz: float) -> list[_Option]:
    options = []
    for m in N_PROBES:
        roulette = replace(moments.roulette(m, lipschitz), per="stratified")
        estimator = replace(base, n_probes=m, truncation=roulette)
        variance = moments.variance(roulette, m)
        options.append(_Option(estimator, variance, m * mean_terms(roulette)))
    return options


def mean_terms(roulette: Roulette) -> float:
    """E[N] of a law that is geometric beyond a table of at most `MAX_TAILS` entries."""
    survival = roulette.survival(np.arange(1, MAX_TAILS))
    decay = roulette.law.decay
    return float(survival.sum() + survival[-1] * decay / (1.0 - decay))
