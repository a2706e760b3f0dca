"""Seconds, bytes and FLOPs of one call, and the rate that this machine can do them at."""

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


MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}
"""Large enough that a square matrix product runs at the rate the hardware has."""


MIN_TIMES = 10
"""With fewer than eight, no interval of the median reaches 99 %."""


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
