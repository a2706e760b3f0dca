"""Seconds, bytes and FLOPs of one call, and the rate that this machine can do them at."""

from __future__ import annotations

import copy
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from resflow_bench.data import Dataset
from resflow_bench.intervals import median_interval
from resflow_bench.lab.cells import Cell, Context, Observation
from resflow_bench.lab.measure import realised
from resflow_bench.models.build import build_estimator, build_flow, build_points, build_problem
from resflow_bench.training.trainer import Trainer, Training

Call = Callable[[], object]

MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}
"""Large enough that a square matrix product runs at the rate the hardware has."""

N_POINTS = 4
"""At which the realised constant is looked up: a timing needs no more."""

MIN_TIMES = 10
"""With fewer than eight, no interval of the median reaches 99 %."""


def measure_throughput(cell: Cell, context: Context) -> Iterable[Observation]:
    """Median seconds of a call, its examples per second, peak bytes and share of the matmul rate.

    The 99 % interval of the median is from order statistics. On a GPU the clock is read with the
    device idle, before and after. On a CPU the call is timed on one thread and on all, and the
    faster counts: threads that wait for one that the machine has taken away can cost a call a
    hundred times its work, for seconds on end and with hardly any scatter.
    """
    call = build_call(cell, context.results)
    device, batch_size = cell["device"], cell["batch_size"]
    flops = count_flops(call)
    peak = peak_bytes(call, device)
    before = matmul_rate(device, cell["dtype"])
    threads = timings(call, device, float(context.effort["seconds"]))
    rate = max(before, matmul_rate(device, cell["dtype"]))  # a busy moment is not the hardware
    best = min(threads, key=lambda n_threads: float(np.median(threads[n_threads])))
    interval = median_interval(threads[best])
    value, low, high, n = interval.value, interval.low, interval.high, interval.n
    medians = (f"{np.median(times):.3g} s on {n_threads}" for n_threads, times in threads.items())
    said = f"threads: {best}, the fastest of {', '.join(medians)}"
    yield Observation("wall_s", value, "s", interval.standard_error, low, high, n, said)
    yield _inverted("examples_per_s", batch_size, value, low, high, n, "1/s")
    yield Observation("peak_bytes", float(peak), "B")
    message = f"{flops:.4g} FLOP a call; a matrix product runs at {rate:.4g} FLOP/s"
    yield _inverted("flops_fraction", flops / rate, value, low, high, n, "1", message)
    problem = build_problem(cell, context.results, N_POINTS)
    yield from realised(problem.norm, problem.spectral_radius)


def build_call(cell: Cell, results: Path) -> Call:
    """The cell's operation on its batch, as a function of nothing.

    log_prob: the estimated log-likelihood, without a graph; train_step: loss, gradient, Adam and
    the update of the norms; sample: draws from the model by fixed-point inversion.
    """
    flow = build_flow(cell, results).with_estimator(build_estimator(cell))
    x = build_points(cell, cell["batch_size"])
    generator = torch.Generator(x.device).manual_seed(0)
    if cell["operation"] == "log_prob":
        return torch.no_grad()(lambda: flow.log_prob(x, generator))
    if cell["operation"] == "sample":
        return lambda: flow.sample(len(x), generator)
    data = Dataset("points", train=x, test=x)
    trained = copy.deepcopy(flow).requires_grad_(True)
    return Trainer(trained, data, Training(10**6, batch_size=len(x))).step


def timings(call: Call, device: str, min_run_time: float) -> dict[int, np.ndarray]:
    """Seconds of the call by number of threads: one and all on a CPU, all on anything else."""
    all_threads = torch.get_num_threads()
    counts = thread_counts(device)
    taken = {}
    try:
        for n_threads in counts:
            torch.set_num_threads(n_threads)
            taken[n_threads] = seconds(call, min_run_time / len(counts))
    finally:
        torch.set_num_threads(all_threads)
    return taken


def thread_counts(device: str) -> list[int]:
    """On how many threads a call may be fastest: one or all on a CPU, all on anything else."""
    all_threads = torch.get_num_threads()
    return sorted({1, all_threads}) if torch.device(device).type == "cpu" else [all_threads]


def elapsed(call: Call, device: str | torch.device = "cpu") -> float:
    """Wall-clock seconds of one call, the device idle before and after."""
    if cuda := torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def seconds(call: Call, min_run_time: float) -> np.ndarray:
    """Seconds of a call, after a warm-up: `MIN_TIMES` or more, over `min_run_time` or longer."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    times = timer.blocked_autorange(min_run_time=min_run_time).times
    while len(times) < MIN_TIMES:
        times += timer.timeit(1).times
    return np.asarray(times)


def count_flops(call: Call) -> int:
    """Floating-point operations of the matrix products of one call, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def peak_bytes(call: Call, device: str) -> int:
    """The most that one call held at a time, beyond what was there before, in bytes.

    On a GPU from the allocator. On a CPU, which keeps no such record, the tensors that operations
    return are counted until they are freed; what an operation needs inside itself is not.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveTensors() as live:
        call()
    return live.peak


class _LiveTensors(TorchDispatchMode):
    """Bytes of the storages that operations have made and nobody has let go."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for tensor in _tensors((args, kwargs)):
            self.known.add(tensor.untyped_storage())  # there before, or counted when it was made
        made = func(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            storage = tensor.untyped_storage()
            if storage not in self.known:
                self.known.add(storage)
                self.held += storage.nbytes()
                weakref.finalize(storage, self._let_go, storage.nbytes())
        self.peak = max(self.peak, self.held)
        return made

    def _let_go(self, n_bytes: int) -> None:
        self.held -= n_bytes


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))


def matmul_rate(device: str, dtype: str) -> float:
    """FLOP/s of a large square matrix product, the best of several, on this device and now."""
    product, n_flops = square_product(device, dtype)
    return n_flops / float(seconds(product, 0.5).min())


def square_product(device: str, dtype: str) -> tuple[Call, float]:
    """(a large square matrix product in this type and on this device, its FLOPs)."""
    n = MATMUL_SIZE.get(torch.device(device).type, MATMUL_SIZE["cpu"])
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn(n, n, generator=generator, device=device).to(getattr(torch, dtype))
    return lambda: a @ a, 2.0 * n**3


def _inverted(
    metric: str, numerator: float, value: float, low: float, high: float, n: int, unit: str,
    message: str = "",
) -> Observation:  # fmt: skip
    """numerator / seconds: the interval's ends change places."""
    return Observation(
        metric, numerator / value, unit, ci_low=numerator / high, ci_high=numerator / low, n=n,
        message=message,
    )  # fmt: skip
