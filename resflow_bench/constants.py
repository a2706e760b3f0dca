"""Constant tensors, made once for each dtype and device: off the CPU each would be a launch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

Make = Callable[[torch.dtype, torch.device], Tensor]

_MADE: dict[tuple[Make, torch.dtype, torch.device], Tensor] = {}


def constant(make: Make, dtype: torch.dtype, device: torch.device) -> Tensor:
    """make(dtype, device), or what it returned before; nobody may write to it.

    While torch traces a function nothing is kept, since a traced tensor has no numbers.
    """
    if torch.compiler.is_compiling():
        return make(dtype, device)
    key = make, dtype, device
    if key not in _MADE:
        with torch.inference_mode(False):
            made = make(dtype, device)
        if isinstance(made, FakeTensor):
            return made
        _MADE[key] = made
    return _MADE[key]
