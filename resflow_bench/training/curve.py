"""Validation curves: held-out log-likelihoods as the weights change, each from the one before."""

from __future__ import annotations

import copy
from typing import NamedTuple, final

import torch
from scipy import stats
from torch import Tensor

from resflow_bench.flows import ResidualFlow
from resflow_bench.intervals import LEVEL, Interval
from resflow_bench.logdet.estimator import Estimator

N_HALVES = 2
"""Each half of the draws is weighted by what the other half measured, so that no weight depends on
the errors that it multiplies."""


class CurvePoint(NamedTuple):
    """Log-likelihoods at one point of a validation curve.

    log_prob: log p(x) of each held-out example, (P,), nats, float64.
    standard_error: of each, (P,), nats, float64, over the estimator's draws.
    mean: the mean over the examples, with Student's interval over the draws; the examples are
        fixed, so their spread is no part of it.
    n_calls: calls of `log_prob` that the point took, of today's and yesterday's weights together.
    """

    log_prob: Tensor
    standard_error: Tensor
    mean: Interval
    n_calls: int


@final
class ValidationCurve:
    """s_t = b_t s_(t-1) + (1/n) sum_i (h_t(w_i) - b_t h_(t-1)(w_i)),  0 <= b_t <= 1.

    h_t(w) is the estimate of log p(x) by the weights of time t and the random numbers w: probes and
    numbers of terms. Both h of a pair have the same w, and where the weights have changed little
    their difference has little variance. Each is taken at its own inputs to the blocks.

    1. The error e_t of s_t is b_t e_(t-1) plus that of n draws, so that s_t is unbiased for any b_t
       that does not depend on it, and the variance is

           V_t = b_t^2 V_(t-1) + Var(h_t - b_t h_(t-1))/n.

    2. b_t minimises it:  b_t = Cov(h_t, h_(t-1)) / (Var(h_(t-1)) + n V_(t-1)). Unchanged weights
       give the mean of all draws so far, and unrelated ones n fresh draws.
    3. The draws are two halves with a recursion each. Variances and covariances in the b_t of one
       half, mean over the examples, are those of the other half's draws: no b_t depends on the
       errors that it multiplies. s_t is the mean of both.

    Args:
        x: the held-out examples, (P, *event).
        estimator: of the log-det, with a finite variance, one for all branches (`PerBranch` knows
            branches by identity, and not those of a copy).
        n_draws: n, of each point but the first, even, at least 4.
        n_first: draws of the first point, to whose error the others hold on; even, at least 4.

    Properties: as unbiased as the estimator, and so are the variances V_t. The draws of a point are
        independent calls, so that the errors are right for any law of probes (orthogonal ones too)
        and of terms (one N for the batch too). A point costs 2 n calls of `log_prob` and the memory
        of a copy of the flow. With r = Var(h_t - h_(t-1)) / Var(h_t) small and constant, it costs
        2 sqrt(r) of as many independent draws as have the same variance.

    Raises:
        ValueError: if a number of draws is odd or below 4.

    Source: Dharangutte and Musco (2021), "Dynamic Trace Estimation", algorithm 2 (DeltaShift), with
        1 - b_t for their gamma. The halves, roulette and whole flows are ours.

    >>> from resflow_bench.logdet import Fixed, LogDetEstimator, Rademacher
    >>> flow = ResidualFlow.mlp(dim=2, hidden=(4,), n_blocks=1, lipschitz=0.5)
    >>> curve = ValidationCurve(torch.zeros(3, 2), LogDetEstimator(Rademacher(), Fixed(20)))
    >>> noise = torch.Generator().manual_seed(0)
    >>> [curve.update(flow, noise).n_calls for _ in range(2)]
    [64, 16]
    """

    def __init__(
        self, x: Tensor, estimator: Estimator, n_draws: int = 8, n_first: int = 64
    ) -> None:
        for name, n in (("n_draws", n_draws), ("n_first", n_first)):
            if n < 2 * N_HALVES or n % N_HALVES:
                raise ValueError(
                    f"ValidationCurve needs an even {name} of at least {2 * N_HALVES}; got {n}. "
                    "An error bar needs two draws in each half."
                )
        self.x = x
        self.estimator = estimator
        self.n_draws = n_draws
        self.n_first = n_first
        self._before: ResidualFlow | None = None
        # Of each half, for the P examples and their mean: (2, P + 1).
        self._value = torch.zeros(N_HALVES, len(x) + 1, dtype=torch.float64)
        self._variance = torch.zeros_like(self._value)
        self._squares = torch.zeros(N_HALVES, dtype=torch.float64)
        self._planned = torch.zeros(N_HALVES, dtype=torch.float64)

    @torch.no_grad()
    def update(self, flow: ResidualFlow, generator: torch.Generator) -> CurvePoint:
        """The next point of the curve, for the weights that `flow` has now.

        Args:
            flow: as after an optimiser step and `update()`, or the average of a training
                (`Trainer.averaged`); it is copied. The architecture must stay the same.
            generator: draws a point's random numbers, each used twice.
        """
        now, before = self._draws(flow, generator)
        n = now.shape[1]
        weight = self._weights(now, before)[:, None]  # (2, 1)
        steps = now - weight[:, None] * before
        spread = steps.var(1) / n
        self._value = weight * self._value + steps.mean(1)
        self._variance = weight**2 * self._variance + spread
        # The variance of the estimated variance, up to a factor of 2, for Welch's degrees.
        self._squares = weight[:, 0] ** 4 * self._squares + spread[:, -1] ** 2 / (n - 1)
        n_calls = N_HALVES * n * (1 if self._before is None else 2)
        self._before = copy.deepcopy(flow)
        return self._point(n_calls)

    def _draws(self, flow: ResidualFlow, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """h_t and h_(t-1) of the draws, (2, n/2, P + 1) each; h_(t-1) = 0 at the first point."""
        first = self._before is None
        flows = [f.with_estimator(self.estimator) for f in (flow, self._before) if f is not None]
        draws = []
        for _ in range(self.n_first if first else self.n_draws):
            state = generator.get_state()
            for one in flows:
                generator.set_state(state)
                log_prob = one.log_prob(self.x, generator).double().cpu()
                draws.append(torch.cat([log_prob, log_prob.mean(0, keepdim=True)]))
        pairs = torch.stack(draws).view(N_HALVES, -1, len(flows), len(self.x) + 1)
        now = pairs[:, :, 0]
        return now, torch.zeros_like(now) if first else pairs[:, :, 1]

    def _weights(self, now: Tensor, before: Tensor) -> Tensor:
        """b_t of each half, (2,), from the draws of the other."""
        n = now.shape[1]
        of_now, of_before = ((h - h.mean(1, keepdim=True))[..., :-1].flip(0) for h in (now, before))

        def covariance(a: Tensor, b: Tensor) -> Tensor:
            return (a * b).mean(2).sum(1) / (n - 1)

        both, old = covariance(of_now, of_before), covariance(of_before, of_before)
        weight = (both / (old + n * self._planned)).nan_to_num(0.0).clamp(0.0, 1.0)
        step = of_now - weight[:, None, None] * of_before
        self._planned = weight**2 * self._planned + covariance(step, step) / n
        return weight

    def _point(self, n_calls: int) -> CurvePoint:
        value = self._value.mean(0)
        error = (self._variance.sum(0) / N_HALVES**2).sqrt()
        mean, spread = float(value[-1]), float(error[-1])
        squares = float(self._squares.sum()) / N_HALVES**4
        half_width = 0.0
        if spread > 0.0:
            half_width = spread * float(stats.t.isf((1.0 - LEVEL) / 2.0, spread**4 / squares))
        interval = Interval(mean, spread, mean - half_width, mean + half_width, n_calls)
        return CurvePoint(value[:-1], error[:-1], interval, n_calls)
