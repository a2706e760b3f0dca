"""The noise of a training's gradient, its bias, and the seconds that it takes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from resflow_bench.flows import ResidualFlow
from resflow_bench.intervals import Interval, median_interval
from resflow_bench.lab import Observation, observe
from resflow_bench.logdet import Determinant, Estimator
from resflow_bench.speed.timing import elapsed
from suites.efficiency.sampler import Sampler, branch_parameters
from suites.sampling import sample_mean, sample_variance, widened

N_WARM_UP = 2

MOST = 2**25
"""The largest number of entries of all gradients of a cell, which are kept in float64."""

ROUNDING = 1000.0
"""Units in the last place, relative to |G*|, that the interval of the bias allows for rounding."""


def observe_gradient(
    sampler: Sampler, flow: ResidualFlow, x: Tensor, n_draws: int, seed: int, yardstick: Estimator
) -> Iterator[Observation]:
    """Variance, bias and seconds of G, the gradient of the batch's mean log-determinant.

    G is taken in the parameters of all g, and G* is the determinant's in float64. The other parts
    of a log-likelihood have no noise.

    * `gradient_variance`: E |G - E G|^2 / |G*|^2 over draws, for the batch x.
    * `gradient_bias`: mean of <G - G*, G*> / |G*|^2.
    * `gradient_seconds`: median of a draw of G, forward and backward, on the whole batch.
    * `gradient_relative_time`: the same over that of `yardstick`, timed in turn with it.
    * `gradient_variance_time`: gradient_variance x gradient_seconds. Where examples have errors of
      their own it is that of one example too: B examples take B times as long, for 1/B of the
      variance.

    Nothing is yielded if the estimate has no gradient, or if all draws have more than `MOST`
    entries.
    """
    n_entries = sum(p.numel() for p in sampler.parameters)
    if not 0 < n_entries * n_draws <= MOST:
        return
    of_flow = branch_parameters(flow)
    exact = exact_gradient(flow, x)
    size = float(np.linalg.norm(exact))
    common = flow.with_estimator(yardstick)
    noise = torch.Generator(x.device).manual_seed(seed)
    draws: list[np.ndarray] = []
    with sampler.seeded(seed), requiring_grad(of_flow):

        def ours() -> None:
            draws.append(_gradient(sampler.draw(x.clone()), sampler.parameters))

        def theirs() -> None:
            _gradient(common.forward_and_log_det(x, noise)[1], of_flow)

        seconds = [
            (elapsed(ours, x.device), elapsed(theirs, x.device)) for _ in range(N_WARM_UP + n_draws)
        ]
    relative = np.stack(draws[N_WARM_UP:]) / size  # (n, D)
    taken = np.asarray(seconds[N_WARM_UP:])
    variance = Interval(0.0, 0.0, 0.0, 0.0, n_draws)  # without random draws
    if sampler.random:
        each = sample_variance(relative, sampler.is_normal)
        value, error, low, high = (n_entries * value for value in each[:4])
        variance = Interval(value, error, low, high, n_draws)
    along = (relative - exact / size) @ (exact / size)
    rounding = ROUNDING * torch.finfo(x.dtype).eps
    bias = widened(sample_mean(along, sampler.is_normal, None), rounding)
    time, over = median_interval(taken[:, 0]), median_interval(taken[:, 0] / taken[:, 1])
    note = f"{sampler.note}; " if sampler.note else ""
    note += f"{n_draws} draws of the mean over {len(x)} examples, in {n_entries} parameters"
    yield observe("gradient_variance", variance, "1", n_draws, note)
    yield observe("gradient_bias", bias, "1", n_draws, note)
    yield observe("gradient_seconds", time, "s", n_draws)
    yield observe("gradient_relative_time", over, "1", n_draws, "to ten plain terms, in turns")
    value, low, high = (
        getattr(variance, end) * getattr(time, end) for end in ("value", "low", "high")
    )
    said = "" if sampler.finite else "infinite variance: at least this"
    yield Observation("gradient_variance_time", value, "s", math.nan, low, high, n_draws, said)


def exact_gradient(flow: ResidualFlow, x: Tensor) -> np.ndarray:
    """d mean ln|det df/dx| / d the parameters of all g, (D,), float64."""
    double = copy.deepcopy(flow).double().with_estimator(Determinant())
    of_double = branch_parameters(double)
    with requiring_grad(of_double):
        return _gradient(double.forward_and_log_det(x.double())[1], of_double)


@contextmanager
def requiring_grad(tensors: list[Tensor]) -> Iterator[None]:
    """Make the tensors require a gradient inside the context."""
    before = [tensor.requires_grad for tensor in tensors]
    for tensor in tensors:
        tensor.requires_grad_(True)
    try:
        yield
    finally:
        for tensor, required in zip(tensors, before, strict=True):
            tensor.requires_grad_(required)


def _gradient(log_det: Tensor, of: list[Tensor]) -> np.ndarray:
    """d mean(log_det) / d parameters as one vector, float64."""
    parts = torch.autograd.grad(log_det.mean(), of, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts]).double().cpu().numpy()
