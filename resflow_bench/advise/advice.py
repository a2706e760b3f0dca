"""The estimator that reaches a target error on a flow in the least time, by measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from resflow_bench.advise.budget import Budget
from resflow_bench.advise.candidates import Search
from resflow_bench.advise.contest import Contender, Contest, Measured, fastest
from resflow_bench.advise.inspection import inspect
from resflow_bench.arguments import finite_rows
from resflow_bench.flows import ResidualFlow
from resflow_bench.lab.progress import Listener, ignore
from resflow_bench.theory import error_of_ess

if TYPE_CHECKING:
    import pandas as pd


DEFAULT_ERROR = 0.01
"""Nats: the target error where none is given."""


@dataclass(frozen=True)
class Advice:
    """The best estimator, the runners-up, and the candidates that were not measured.

    target_error: nats; that of `target_ess`, where it was given.
    measured: the best estimator first, then the others by their seconds to the target.
    left_out: a message for each candidate that was not measured.
    """

    target_error: float
    measured: tuple[Measured, ...]
    left_out: tuple[str, ...] = ()

    @property
    def best(self) -> Measured:
        """The estimator to take."""
        return self.measured[0]

    @property
    def table(self) -> pd.DataFrame:
        """One row for each measured estimator, the best first."""
        import pandas as pd  # not above: its threads do not survive asv's forks

        return pd.DataFrame(
            {
                "estimator": one.name,
                "bias": one.bias,
                "variance": one.variance,
                "n_products": one.n_products,
                "n_draws": one.n_draws,
                "seconds_per_example": one.seconds,
                "seconds_to_target": one.seconds_to_target,
                "n_examples": one.n_examples,
            }
            for one in self.measured
        )

    @property
    def code(self) -> str:
        """Python that reaches the target, see `Measured.code`."""
        return self.best.code


def advise(
    flow: ResidualFlow,
    x: Tensor,
    target_error: float | None = None,
    seconds: float = 5.0,
    unbiased: bool = False,
    gradient: bool = False,
    listen: Listener = ignore,
    target_ess: float | None = None,
) -> Advice:
    """The estimator of least n t with bias^2 + variance/n <= target_error^2; |bias| <= a tenth.

    n is the number of draws that are averaged and t the seconds of one. Variance and seconds are
    measured in turns, on whole batches x: the variance over calls, averaged over examples. The bias
    is computed. For a fixed number of terms it follows from the eigenvalues of J at a few points if
    d <= 256, otherwise from the certified constants; for a roulette it is zero. Only laws whose
    variance is finite for every J that the certified constants admit are tried. Candidates are the
    determinant, fixed terms, geometric roulettes, and roulettes tuned to each branch; with the
    exact traces that the branches support, more probes where one is not enough, and control
    variates.

    Args:
        flow: its parameters stay unchanged.
        x: (B, *event), a batch of typical points, of the size that will be used.
        target_error: root mean square error over examples, nats, of the whole flow's log-det; 0.01
            if neither it nor `target_ess` is given.
        seconds: for everything, including inspection and tuning. Candidates for which there is no
            time, the most expensive ones, are named in `left_out`. A few calls of the cheapest
            candidate and the Jacobians at two points are computed in any case.
        unbiased: leave out fixed numbers of terms.
        gradient: time and count the backward pass too; the error is that of the value.
        listen: called before each step, with its name and the seconds left.
        target_ess: in place of `target_error`, ESS/n of importance weights exp(error): the share
            of n samples that the error leaves, exp(-(bias^2 + variance/n)) or more if it is normal,
            as the mean of many draws nearly is. In (0, 1); `target_error` is sqrt(-ln target_ess).

    Properties: a result may differ from call to call where timings are close. All draws come from
        generators of their own.

    Raises:
        ValueError: `target_error` or `seconds` is not positive; `target_ess` is outside (0, 1), or
            given with `target_error`; x is not a batch of the flow's
            events; the flow has no residual block; with `gradient`, it has no parameter that
            requires a gradient; or the target is below what x's dtype resolves.
    """
    target_error = error_of(target_error, target_ess)
    _check(flow, x, target_error, seconds, gradient)
    budget = Budget(seconds, listen)
    search = Search(inspect(flow, x, target_error, budget), target_error, budget)
    candidates, left_out = search.candidates(unbiased)
    contest = Contest(budget, torch.Generator(x.device).manual_seed(2))
    entered = contest.run([Contender(one, flow, x, target_error, gradient) for one in candidates])
    measured = [contender.measured for contender in entered]
    best = measured.pop(fastest(measured))
    rest = sorted(measured, key=lambda one: one.seconds_to_target)
    return Advice(target_error, (best, *rest), (*left_out, *contest.left_out))


def error_of(target_error: float | None, target_ess: float | None) -> float:
    """The root mean square error, nats, of the one target that is given; else `DEFAULT_ERROR`.

    Raises:
        ValueError: both are given, or `target_ess` is outside (0, 1).
    """
    if target_ess is None:
        return DEFAULT_ERROR if target_error is None else target_error
    if target_error is not None:
        raise ValueError(
            f"advise needs one target; got target_error={target_error} and "
            f"target_ess={target_ess}. Leave one of them out."
        )
    return error_of_ess(target_ess)


def _check(
    flow: ResidualFlow, x: Tensor, target_error: float, seconds: float, gradient: bool
) -> None:
    for name, value in (("target_error", target_error), ("seconds", seconds)):
        if not 0.0 < value < math.inf:
            raise ValueError(
                f"advise needs a positive {name}; got {value}. Give for example {name}=0.01."
            )
    if x.shape[1:] != flow.event or len(x) == 0:
        raise ValueError(
            f"advise needs x of shape (B, {', '.join(map(str, flow.event))}), B >= 1; got "
            f"{tuple(x.shape)}. Give a batch of typical points of the flow."
        )
    if n_bad := int((~finite_rows(x)).sum()):
        raise ValueError(f"advise needs finite x; got {n_bad} of {len(x)} rows that are not.")
    if not flow.blocks:
        raise ValueError(
            "advise needs a flow with a residual block; got none. The log-det of this flow is "
            "exact: no estimator is needed."
        )
    if gradient and not any(p.requires_grad for p in flow.parameters()):
        raise ValueError(
            "advise with gradient=True needs a flow with a parameter that requires a gradient; got "
            "none. Call `flow.requires_grad_(True)`."
        )
