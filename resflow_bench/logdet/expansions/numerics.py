"""Number formats for the powers of J: fewer bits, TF32, and the range of float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from resflow_bench.jacobian import Examples, Jacobian

Precision = torch.dtype | Literal["tf32"]

HEADROOM = 2.0**60
"""The factor of v in float32, which changes no digit: J^k v may then be 1e-56 before its numbers
are subnormal, which a CPU multiplies at a tenth of its speed or less."""

CHECK_EVERY = 8
"""Terms after which a CPU checks whether J^k v is below what float32 can represent."""


def lowered(jacobian: Jacobian, precision: Precision) -> Jacobian:
    """J with its products formed in `precision`."""
    return _InTf32(jacobian) if precision == "tf32" else jacobian.to(precision)


@dataclass(frozen=True, eq=False)
class _InTf32(Jacobian):
    """J with products whose factors a GPU's tensor cores may round to ten bits of mantissa."""

    jacobian: Jacobian

    def vjp(self, v: Tensor) -> Tensor:
        with tf32():
            return self.jacobian.vjp(v)

    @property
    def shrinks(self) -> bool:
        return self.jacobian.shrinks

    def select(self, examples: Examples) -> Jacobian:
        return _InTf32(self.jacobian.select(examples))


@contextmanager
def tf32() -> Iterator[None]:
    """Allow TF32 by torch's global settings, and restore them afterwards."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def check_tf32(v: Tensor) -> None:
    """Raise a ValueError unless products with v can be formed in TF32."""
    capable = v.is_cuda and torch.cuda.get_device_capability(v.device) >= (8, 0)
    if not capable or v.dtype != torch.float32:
        raise ValueError(
            "Taylor(tail=tf32) needs float32 on a CUDA GPU of compute capability 8.0 or more; got "
            f"{str(v.dtype).removeprefix('torch.')} on {v.device}. Set `tail=None`."
        )


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
