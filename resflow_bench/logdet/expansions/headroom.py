"""Powers of J in float32 that stay clear of subnormal numbers, which a CPU multiplies slowly."""

from __future__ import annotations

import torch
from torch import Tensor

HEADROOM = 2.0**60
"""The factor of v in float32, which changes no digit: J^k v may then be 1e-56 before its numbers
are subnormal, which a CPU multiplies at a tenth of its speed or less."""

CHECK_EVERY = 8
"""Terms after which a CPU checks whether J^k v is below what float32 can represent."""


def headroom(v: Tensor) -> float:
    """The factor by which v is multiplied before its powers are formed."""
    return HEADROOM if v.dtype == torch.float32 else 1.0


def flushed(power: Tensor, k: int) -> Tensor:
    """v^T J^k with its headroom, or zero where every number without headroom would be zero."""
    if k % CHECK_EVERY or not power.is_cpu or power.numel() == 0:
        return power
    smallest = torch.finfo(power.dtype).tiny * HEADROOM / 2**24
    low, high = torch.aminmax(power)  # max |p_i| in one pass
    return torch.zeros_like(power) if max(-float(low), float(high)) < smallest else power
