"""Constant tensors, made once for each dtype and device: off the CPU each would be a launch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._guards import detect_fake_mode

Make = Callable[[torch.dtype, torch.device], Tensor]

_MADE: dict[tuple[Make, torch.dtype, torch.device], Tensor] = {}


def constant(make: Make, dtype: torch.dtype, device: torch.device) -> Tensor:
    """make(dtype, device), or what it returned before; nobody may write to it.

    While torch traces a function, or records a CUDA graph, nothing is kept: such a tensor has no
    numbers, or none before a replay.
    """
    if torch.compiler.is_compiling() or _is_fake():
        return make(dtype, device)
    key = make, dtype, device
    if key not in _MADE:
        with torch.inference_mode(False):
            made = make(dtype, device)
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return made
        _MADE[key] = made
    return _MADE[key]


def _is_fake() -> bool:
    """True inside a mode of tensors without numbers; at once where there is no mode at all."""
    n_modes = torch._C._len_torch_dispatch_stack()  # noqa: SLF001 - there is no public question
    return n_modes > 0 and detect_fake_mode() is not None
