"""Each branch of a flow by an estimator of its own, chosen from what a pilot run saw of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from resflow_bench.jacobian.products import Map
from resflow_bench.logdet.estimator import Estimate, LogDetEstimator
from resflow_bench.logdet.optimal import MAX_TAILS, pilot
from resflow_bench.logdet.truncation import Roulette

N_PROBES = (1, 2, 4, 8, 16, 32)
"""What each branch is tried with."""

PROBES_A_DRAW = 8
"""Of the pilot: 16 draws of them at ten points know the variances of the tails to a few percent."""

N_PRICES = 64
"""Exchange rates of variance for products that are tried, evenly in their logarithm."""


@dataclass(frozen=True)
class PerBranch:
    """The estimator that was chosen for the branch it is called with.

    Args:
        estimators: by the branch itself, not by what it equals.

    Properties: unbiased if each of them is. A branch that was trained on after the choice keeps
        its estimator: the choice may then cost variance, never bias.

    Raises:
        ValueError: when called with a branch that it has no estimator for.
    """

    estimators: Mapping[Map, LogDetEstimator]

    def __call__(self, g: Map, x: Tensor, generator: torch.Generator | None = None) -> Estimate:
        """Estimate ln|det(I + J)| as was chosen for g."""
        if g not in self.estimators:
            raise ValueError(
                f"PerBranch has estimators for {len(self.estimators)} branches, and not for this "
                f"{type(g).__name__}. Choose them with `tuned` on the flow that is evaluated."
            )
        return self.estimators[g](g, x, generator)


def tuned(
    branches: Sequence[tuple[Map, Tensor]],
    base: LogDetEstimator,
    n_besides: float = 8.0,
    generator: torch.Generator | None = None,
    n_draws: int = 16,
) -> PerBranch:
    """For each branch a roulette of its own, and as many probes as its variance is worth.

    1. One pilot at the points gives the moments of the series' tails; from them, for each number of
       probes, the roulette of `pilot_roulette`, finite at the branch's promised constant, with its
       variance and its mean number of products.
    2. The variances of the blocks add, and so do their products. Of all choices the one of least
       sum of variances times sum of products is taken: with each exchange rate of one for the
       other every branch chooses by itself, and the best rate wins.

    Args:
        branches: each g with inputs of its own, (B, *event), some ten points.
        base: probe, products, gradient, n_traced and expansion for all; its truncation and n_probes
            are replaced.
        n_besides: what a branch costs besides its probes' products, in products: its value, its
            slopes, its traces.
        generator: of the pilot's draws.
        n_draws: of `PROBES_A_DRAW` probes each, at every point.

    Properties: costs 64 products of each of the pilot's probes, a point and branch, once.
    """
    options = [_options(g, x, base, generator, n_draws) for g, x in branches]
    best: tuple[float, list[_Option]] | None = None
    for price in torch.logspace(-8, 8, N_PRICES, dtype=torch.float64).tolist():
        chosen = [min(some, key=lambda o: o.variance + price * o.n_products) for some in options]
        total = sum(o.variance for o in chosen)
        total *= sum(o.n_products + n_besides for o in chosen)
        if best is None or total < best[0]:
            best = total, chosen
    assert best is not None  # there are prices
    return PerBranch({g: o.estimator for (g, _), o in zip(branches, best[1], strict=True)})


class _Option(NamedTuple):
    """variance: nat^2, mean over points; n_products: per example."""

    estimator: LogDetEstimator
    variance: float
    n_products: float


def _options(
    g: Map,
    x: Tensor,
    base: LogDetEstimator,
    generator: torch.Generator | None,
    n_draws: int,
) -> list[_Option]:
    rho = float(g.lipschitz)  # type: ignore[attr-defined]
    seen = pilot(base, g, x, PROBES_A_DRAW * n_draws, generator)
    found = []
    for m in N_PROBES:
        roulette = replace(seen.roulette(m, rho), per="stratified")
        estimator = replace(base, n_probes=m, truncation=roulette)
        variance = seen.variance(roulette, m)
        found.append(_Option(estimator, variance, m * mean_terms(roulette)))
    return found


def mean_terms(roulette: Roulette) -> float:
    """E[N] of a law that is geometric beyond its table, which is shorter than this."""
    survival = roulette.survival(np.arange(1, MAX_TAILS))
    decay = roulette.law.decay
    return float(survival.sum() + survival[-1] * decay / (1.0 - decay))
