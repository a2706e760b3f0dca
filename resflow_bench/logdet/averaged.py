"""The mean of several independent estimates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from resflow_bench.jacobian import Map
from resflow_bench.logdet.estimator import Estimate, Estimator
from resflow_bench.theory.checks import check_at_least


@dataclass(frozen=True)
class Averaged:
    """(1/n) sum_i q_i,  q_i independent draws of `estimator`: its bias, 1/n of its variance.

    Args:
        estimator: with a finite variance, or the error does not fall as 1/sqrt(n).
        n_draws: n, at least 1.

    Properties: n times the work. More probes of one draw are cheaper, since g is linearised once,
        but do not reduce the roulette's own variance, as averaging does.

    Raises:
        ValueError: if `n_draws` is below 1.

    >>> from resflow_bench.logdet import Fixed, LogDetEstimator, Rademacher
    >>> one = LogDetEstimator(Rademacher(), Fixed(50))
    >>> Averaged(one, n_draws=3)(lambda x: 0.5 * x, torch.zeros(1, 4)).value.exp()
    tensor([5.0625])
    """

    estimator: Estimator
    n_draws: int

    def __post_init__(self) -> None:
        check_at_least("Averaged", "n_draws", self.n_draws, 1)

    def __call__(self, g: Map, x: Tensor, generator: torch.Generator | None = None) -> Estimate:
        draws = [self.estimator(g, x, generator) for _ in range(self.n_draws)]
        value = torch.stack([draw.value for draw in draws]).mean(0)
        return Estimate(draws[0].g, value, sum(draw.n_products for draw in draws))
