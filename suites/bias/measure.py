"""The bias of an estimate of the log-determinant."""

from __future__ import annotations

import math
from collections.abc import Iterable

from resflow_bench.lab import Cell, Context, Observation, exactly, observe
from resflow_bench.models import build_estimator, build_problem, convergent, realised
from suites.sampling import sample_errors
from suites.weights import observe_weight_bias


def measure_bias(cell: Cell, context: Context) -> Iterable[Observation]:
    """Mean over points and draws of estimate - exact, against the value computed from J.

    `bias` is that mean. `bias_paired` is the mean of estimate - (1/m) sum_j v_j^T log(I + J) v_j
    with the estimate's own probes: the same mean, for any probe with E v v^T = I, but without the
    noise of the probes, which hides a small bias. `weight_bias` is ln E[exp(estimate - exact)], the
    bias of an importance weight, from the draws of `bias`.

    Draws are made until the 99 % interval of `bias` is `half_width` nat to either side, or
    `max_draws` examples are spent. Their number follows from the closed-form variance: it is fixed
    before any draw is made.
    """
    problem = convergent(build_problem(cell, context.results, int(context.effort["n_points"])))
    estimator = build_estimator(cell)
    sampled = sample_errors(
        problem,
        estimator,
        max_draws=int(context.effort["max_draws"]),
        half_width=context.effort["half_width"],
        seed=context.generator_seed(cell),
    )
    expected = problem.over_blocks(estimator.truncation.bias)  # (P,)
    bound = math.inf  # none is claimed for a flow without a promise
    if problem.is_promised:
        k = cell["lipschitz"]
        bound = problem.over_dims(lambda dim, c: estimator.truncation.bias_bound(k, dim, c))
    intervals = (sampled.plain, sampled.paired)
    for metric, interval, shares in zip(
        ("bias", "bias_paired"), intervals, sampled.shares, strict=True
    ):
        yield observe(metric, interval, "nat", sampled.n, sampled.message, replicates=shares)
    yield exactly("bias_expected", expected.mean(), "nat")
    yield exactly("bias_bound", bound, "nat")
    yield exactly("log_det_exact", problem.log_det.mean(), "nat")
    yield from observe_weight_bias(problem, estimator, sampled.draws)
    yield from realised(problem.norm, problem.spectral_radius)
