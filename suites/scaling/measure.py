"""The growth of a log-prob's seconds with its terms, probes and examples, and its FLOP rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from resflow_bench.flows import ResidualFlow
from resflow_bench.intervals import median_interval
from resflow_bench.lab import Cell, Context, Observation, exactly, observe
from resflow_bench.logdet import Fixed, LogDetEstimator, Rademacher
from resflow_bench.models.catalogue import normal_points
from resflow_bench.speed.timing import Call, count_flops, elapsed, square_product, thread_counts
from suites.sampling import NORMAL_99

N_BLOCKS = 2
LIPSCHITZ = 0.9
"""The promised constant of all flows here: weights and K do not change the cost of fixed terms."""

FACTORS = (1, 2, 4, 8)
"""Sizes of a ladder's rungs, over the first one's."""

N_WARM_UP = 2
N_PILOT = 3


def measure_scaling(cell: Cell, context: Context) -> Iterable[Observation]:
    """Exponent, straight line and share of the matmul rate, from a ladder of sizes.

    A rung is a log-prob at one of `FACTORS` times the cell's value n of the axis that `grows`. In
    each of `n_rounds` rounds all rungs and a large square matrix product are timed in turn, so that
    what the machine does in the meantime is in all of them. Each round gives one of each number;
    the value is their median, with its 99 % interval from order statistics. On a CPU one thread is
    used, or all: whichever does the last rung faster beforehand.

    * `wall_s_1`, `wall_s_2`, ...: seconds at that many times the cell's size.
    * `exponent`: e of seconds ~ n^e by `exponents`. Its standard error is that of a normal law with
      the same interval, which the median of so many is near: so it can be found to be too large.
    * `exponent_flops`: the same of the FLOPs of the matrix products, which are counted: no error.
    * `overhead_s`, `marginal_s`: a and b of seconds = a + b n by `straight_lines`. What a call does
      whatever its size, a, is why an exponent is below 1.
    * `flops_fraction`: FLOPs a second at the last rung, over those of the square product.
    """
    grows, device = cell["grows"], cell["device"]
    rungs = [Cell(cell.suite, {**cell.axes, grows: cell[grows] * factor}) for factor in FACTORS]
    sizes = np.asarray([rung[grows] for rung in rungs], float)
    flow = build_sized_flow(cell)
    calls = [build_log_prob(flow, rung, context.generator_seed(cell)) for rung in rungs]
    flops = [count_flops(call) for call in calls]
    product, n_flops = square_product(device, cell["dtype"])
    n_rounds = N_WARM_UP + int(context.effort["n_rounds"])
    with fastest_threads(calls[-1], device) as n_threads:
        rounds = [[elapsed(call, device) for call in (*calls, product)] for _ in range(n_rounds)]
    taken = np.asarray(rounds[N_WARM_UP:])  # (R, rungs + 1)
    seconds, reference, n = taken[:, :-1], taken[:, -1], len(taken)
    threads = f"threads: {n_threads}" if torch.device(device).type == "cpu" else ""
    for factor, size, column in zip(FACTORS, sizes, seconds.T, strict=True):
        said = f"{grows}={size:g}"
        yield observe(f"wall_s_{factor}", median_interval(column), "s", n, said)
    exponent = median_interval(exponents(sizes, seconds))
    if math.isfinite(reach := exponent.high - exponent.low):
        exponent = exponent._replace(standard_error=reach / (2 * NORMAL_99))
    yield observe("exponent", exponent, "1", n, threads)
    yield exactly("exponent_flops", exponents(sizes, np.asarray([flops], float))[0], "1")
    overhead, marginal = straight_lines(sizes, seconds).T
    yield observe("overhead_s", median_interval(overhead), "s", n)
    yield observe("marginal_s", median_interval(marginal), "s", n, f"for each of {grows}")
    share = (flops[-1] / seconds[:, -1]) / (n_flops / reference)
    said = f"{flops[-1]:.4g} FLOP at {grows}={sizes[-1]:g}, in turn with a product of {n_flops:.4g}"
    yield observe("flops_fraction", median_interval(share), "1", n, said)


@contextmanager
def fastest_threads(call: Call, device: str) -> Iterator[int]:
    """One thread or all, by the median of `N_PILOT` calls each; as many as there were afterwards.

    Two threads that other work keeps apart can cost a call a hundred times its work.
    """
    before = torch.get_num_threads()
    taken = {}
    try:
        for n_threads in thread_counts(device):
            torch.set_num_threads(n_threads)
            taken[n_threads] = float(np.median([elapsed(call, device) for _ in range(N_PILOT)]))
        fastest = min(taken, key=taken.__getitem__)
        torch.set_num_threads(fastest)
        yield fastest
    finally:
        torch.set_num_threads(before)


def exponents(sizes: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """e of the least squares ln s = e ln n + c in each round: sizes (n,), seconds (R, n) -> (R,).

    >>> exponents(np.array([1.0, 2.0, 4.0]), np.array([[3.0, 12.0, 48.0]])).round(6)
    array([2.])
    """
    return np.asarray(np.polyfit(np.log(sizes), np.log(seconds).T, 1)[0])


def straight_lines(sizes: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """(a, b) of the least squares (a + b n)/s = 1 in each round: seconds (R, n) -> (R, 2).

    Errors are relative to the seconds, as those of a timing are: no rung outweighs the others.

    >>> straight_lines(np.array([1.0, 2.0, 4.0]), np.array([[5.0, 7.0, 11.0]])).round(6)
    array([[3., 2.]])
    """
    columns = np.stack([np.ones_like(sizes), sizes], axis=1)  # (n, 2)
    fits = [np.linalg.lstsq(columns / s[:, None], np.ones_like(s), rcond=None)[0] for s in seconds]
    return np.stack(fits)


def build_sized_flow(cell: Cell) -> ResidualFlow:
    """Two untrained blocks W-phi-W of the cell's dim and width, in its dtype, on its device."""
    flow = ResidualFlow.mlp(cell["dim"], (cell["width"],), N_BLOCKS, LIPSCHITZ)
    return flow.to(cell["device"], getattr(torch, cell["dtype"])).requires_grad_(False)


def build_log_prob(flow: ResidualFlow, cell: Cell, seed: int) -> Call:
    """log-prob of `batch_size` points with `n_terms` and `n_probes`, without a graph."""
    estimator = LogDetEstimator(Rademacher(), Fixed(cell["n_terms"]), cell["n_probes"])
    points = normal_points(cell["batch_size"], cell["dim"])
    x = points.to(cell["device"], getattr(torch, cell["dtype"]))
    generator = torch.Generator(x.device).manual_seed(seed)
    view = flow.with_estimator(estimator)
    return torch.no_grad()(lambda: view.log_prob(x, generator))
