"""Seconds, bytes and FLOPs of one call, and the FLOP rate of this machine."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

Call = Callable[[], object]

MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}  # rows of a square product that runs at the full rate
MIN_TIMES = 10  # with fewer than eight, no interval of the median reaches 99 %


def timings(call: Call, device: str, min_run_time: float) -> dict[int, np.ndarray]:
    """Number of threads -> seconds of the call, for each of `thread_counts`."""
    all_threads = torch.get_num_threads()
    counts = thread_counts(device)
    times = {}
    try:
        for n_threads in counts:
            torch.set_num_threads(n_threads)
            times[n_threads] = seconds(call, min_run_time / len(counts))
    finally:
        torch.set_num_threads(all_threads)
    return times


def thread_counts(device: str) -> list[int]:
    """Numbers of threads to time: one and all on a CPU, all of them on any other device."""
    all_threads = torch.get_num_threads()
    return sorted({1, all_threads}) if torch.device(device).type == "cpu" else [all_threads]


def elapsed(call: Call, device: str | torch.device = "cpu") -> float:
    """Wall-clock seconds of one call, from an idle device to an idle device."""
    if cuda := torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def seconds(call: Call, min_run_time: float) -> np.ndarray:
    """Seconds of n >= `MIN_TIMES` calls over at least `min_run_time`, after a warm-up: (n,)."""
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
    """The largest number of bytes that one call holds at a time, beyond those held before it.

    On a GPU, the allocator's record. A CPU has none, so the tensors that operations return are
    counted until they are freed; the workspace inside an operation is not counted.
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
    """Bytes of the storages that operations have made and that are not freed yet."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for tensor in _tensors((args, kwargs)):
            self.known.add(tensor.untyped_storage())  # older than the call, or counted already
        made = func(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            storage = tensor.untyped_storage()
            if storage not in self.known:
                self.known.add(storage)
                self.held += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.held)
        return made

    def _free(self, n_bytes: int) -> None:
        self.held -= n_bytes


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))


def matmul_rate(device: str, dtype: str) -> float:
    """FLOP/s of a large square matrix product on this device, the fastest of several."""
    product, n_flops = square_product(device, dtype)
    return n_flops / float(seconds(product, 0.5).min())


def square_product(device: str, dtype: str) -> tuple[Call, float]:
    """A large square matrix product of this dtype on this device, and its number of FLOPs."""
    n = MATMUL_SIZE.get(torch.device(device).type, MATMUL_SIZE["cpu"])
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn(n, n, generator=generator, device=device).to(getattr(torch, dtype))
    return lambda: a @ a, 2.0 * n**3
