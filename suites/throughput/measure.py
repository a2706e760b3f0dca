"""Seconds, bytes and share of the matrix-product rate of one call."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from resflow_bench.data import Dataset
from resflow_bench.intervals import Interval, median_interval
from resflow_bench.lab import Cell, Context, Observation, Skip, observe
from resflow_bench.models import build_estimator, build_flow, build_points, build_problem, realised
from resflow_bench.speed import gpu
from resflow_bench.speed.timing import Call, count_flops, matmul_rate, peak_bytes, timings
from resflow_bench.training.trainer import Trainer, Training

N_EVENTS = 100
"""Calls timed on a GPU, cold and again replayed."""

N_POINTS = 4
"""At which the realised constant is looked up: a timing needs no more."""


def measure_throughput(cell: Cell, context: Context) -> Iterable[Observation]:
    """Median seconds of a call, its examples per second, peak bytes and share of the matmul rate.

    The 99 % interval of the median is from order statistics. On a CPU the call is timed on one
    thread and on all, and the faster counts: threads that wait for one that the machine has taken
    away can cost a call a hundred times its work, for seconds on end and with hardly any scatter.
    On a GPU the clock is read with the device idle, before and after; `cold_s` and `replayed_s` are
    seconds on the device alone (see `speed.gpu`), the second for calls that can be recorded.
    """
    call = build_call(cell, context.results)
    device, batch_size = cell["device"], cell["batch_size"]
    flops = count_flops(call)
    peak = peak_bytes(call, device)
    before = matmul_rate(device, cell["dtype"])
    threads = timings(call, device, float(context.effort["seconds"]))
    rate = max(before, matmul_rate(device, cell["dtype"]))  # the machine may be busy at one of them
    best = min(threads, key=lambda n_threads: float(np.median(threads[n_threads])))
    interval = median_interval(threads[best])
    value, _, low, high, n = interval

    def share(metric: str, numerator: float, unit: str, message: str = "") -> Observation:
        """numerator / seconds, with the ends of the interval exchanged."""
        found = Interval(numerator / value, math.nan, numerator / high, numerator / low, n)
        return observe(metric, found, unit, n, message)

    medians = (f"{np.median(times):.3g} s on {n_threads}" for n_threads, times in threads.items())
    said = f"threads: {best}, the fastest of {', '.join(medians)}"
    if torch.device(device).type == "cuda":
        said = gpu.described(device)
        cold = gpu.cold_seconds(call, device, N_EVENTS)
        yield observe("cold_s", median_interval(cold), "s", N_EVENTS, f"{said}, L2 flushed")
        if cell["operation"] == "log_prob" and cell["truncation"] == "fixed":  # nothing else can
            found = median_interval(gpu.replayed_seconds(call, device, N_EVENTS))
            yield observe("replayed_s", found, "s", N_EVENTS, f"{said}, one CUDA graph, L2 warm")
    yield observe("wall_s", interval, "s", n, said)
    yield share("examples_per_s", batch_size, "1/s")
    yield Observation("peak_bytes", float(peak), "B")
    message = f"{flops:.4g} FLOP a call; a matrix product runs at {rate:.4g} FLOP/s"
    yield share("flops_fraction", flops / rate, "1", message)
    with suppress(Skip):  # a flow without residual blocks
        problem = build_problem(cell, context.results, N_POINTS)
        yield from realised(problem.norm, problem.spectral_radius)


def build_call(cell: Cell, results: Path) -> Call:
    """The cell's operation on its batch, as a function without arguments.

    log_prob: the estimated log-likelihood, without a graph; train_step: loss, gradient, Adam and
    the update of the norms; sample: draws from the model by fixed-point inversion.

    Raises:
        Skip: for any other operation.
    """
    flow = build_flow(cell, results).with_estimator(build_estimator(cell))
    x = build_points(cell, cell["batch_size"], results)
    # Elsewhere the default one, which a CUDA graph knows.
    generator = torch.Generator().manual_seed(0) if x.is_cpu else None
    if cell["operation"] == "log_prob":
        return torch.no_grad()(lambda: flow.log_prob(x, generator))
    if cell["operation"] == "sample":
        return lambda: flow.sample(len(x), generator)
    if cell["operation"] != "train_step":
        raise Skip(f"log_prob, train_step and sample are timed; got {cell['operation']}")
    data = Dataset("points", train=x, test=x)
    trained = copy.deepcopy(flow).requires_grad_(True)
    return Trainer(trained, data, Training(10**6, batch_size=len(x))).step
