"""Seconds of a call on a CUDA GPU, cold and replayed, and the state of the card that gave them.

The two differ by up to four times on small work. Cold, a call finds nothing in the L2 cache and its
kernels are launched one by one; replayed, they are one CUDA graph and find what the replay before
left in the cache.
"""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import torch

from resflow_bench.speed.timing import Call

N_WARM_UP = 3
"""Calls before a recording, in which libraries choose their kernels and allocate."""


def cold_seconds(call: Call, device: str, n_calls: int) -> np.ndarray:
    """Seconds between events before and after each call, the L2 cache flushed before it: (n,)."""
    n_bytes = 2 * torch.cuda.get_device_properties(device).L2_cache_size
    flush = torch.empty(n_bytes, dtype=torch.uint8, device=device)
    pairs = []
    with torch.cuda.device(device):
        call()
        for _ in range(n_calls):
            flush.zero_()
            pairs.append(_timed(call))
        return _seconds(pairs)


def replayed_seconds(call: Call, device: str, n_calls: int) -> np.ndarray:
    """Seconds of each replay of the call as one CUDA graph, (n,).

    The call draws from torch's default generator, or from none.

    Raises:
        RuntimeError: the call makes the host wait, and so cannot be recorded. It is tried first, as
            a recording that fails would leave the default generator unusable.
    """
    with torch.cuda.device(device):
        stream, main = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            for _ in range(N_WARM_UP):
                call()
            before = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("error")
            try:
                call()
            finally:
                torch.cuda.set_sync_debug_mode(before)
        main.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        graph.replay()
        return _seconds([_timed(graph.replay) for _ in range(n_calls)])


def _timed(call: Call) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    return start, end


def _seconds(pairs: list[tuple[torch.cuda.Event, torch.cuda.Event]]) -> np.ndarray:
    torch.cuda.synchronize()
    return np.array([start.elapsed_time(end) / 1e3 for start, end in pairs])


def described(device: str) -> str:
    """The card, whether TF32 is allowed, and driver and clocks where `nvidia-smi` tells them."""
    uuid = torch.cuda.get_device_properties(device).uuid
    precision = torch.get_float32_matmul_precision()
    tf32 = "TF32 off" if precision == "highest" else f"TF32 on ({precision})"
    return ", ".join([torch.cuda.get_device_name(device), *_driver_and_clocks(f"GPU-{uuid}"), tf32])


def _driver_and_clocks(card: str) -> list[str]:
    """["driver 570.86", "SM clock 1980 of 1980 MHz"], or nothing where they cannot be read."""
    if shutil.which("nvidia-smi") is None:
        return []
    asked = "--query-gpu=driver_version,clocks.sm,clocks.max.sm"
    command = ["nvidia-smi", f"--id={card}", asked, "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        driver, clock, most = (part.strip() for part in answer.stdout.split(","))
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
    return [f"driver {driver}", f"SM clock {clock} of {most} MHz"]
