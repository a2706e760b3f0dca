"""v^T W of a large matrix that many products share, its numbers laid out once for all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from resflow_bench.jacobian.stages import ByMatrix, Examples, Pull

PACKED_FROM = 2**20
"""Numbers of a matrix from which packing it pays: 4 MiB, more than the cache next to a core holds.
With (512, 512) numbers nothing was gained, with fewer some of the time lost."""

# torch's own, with which its compiler multiplies frozen weights; None if torch is without MKL.
_pack = getattr(torch.ops.mkl, "_mkl_reorder_linear_weight", None)
_multiply = getattr(torch.ops.mkl, "_mkl_linear", None)


@dataclass(frozen=True, eq=False)
class ByPackedMatrix:
    """S = W on a CPU, float32, its numbers also in the order in which MKL's products read them.

    MKL puts them there at every product, which for one of 512 vectors and (1024, 1024) numbers is
    6 % of its time, for one of 64 a quarter. No graph is recorded.

    transposed: W^T, (n_in, n_out), contiguous. block: W for `n_rows` vectors; other numbers of
    them are multiplied with `transposed`.
    """

    transposed: Tensor
    block: Tensor
    n_rows: int

    def __call__(self, v: Tensor) -> Tensor:
        assert _multiply is not None  # or `packed` had not made this
        product: Tensor = _multiply(v.contiguous(), self.block, self.transposed, None, self.n_rows)
        return product

    def push(self, v: Tensor) -> Tensor:
        return v @ self.transposed

    def select(self, examples: Examples) -> ByMatrix:
        return ByMatrix(self.transposed.mT)

    def to(self, dtype: torch.dtype) -> ByMatrix:
        return ByMatrix(self.transposed.mT.to(dtype))

    def mean(self) -> ByMatrix:
        return ByMatrix(self.transposed.mT)


def packed(pull: Pull, n_rows: int) -> Pull:
    """The same, faster for many products of n_rows vectors each, where torch has a way."""
    if (
        _pack is None
        or not isinstance(pull, ByMatrix)
        or not pull.weight.is_cpu
        or pull.weight.dtype != torch.float32
        or pull.weight.numel() < PACKED_FROM
    ):
        return pull
    transposed = pull.weight.mT.contiguous()
    return ByPackedMatrix(transposed, _pack(transposed, n_rows), n_rows)


def _flops(
    v: tuple[int, ...], _: object, transposed: tuple[int, int], *__: object, **___: object
) -> int:
    """Floating-point operations of a packed product, which torch's own table leaves out."""
    return 2 * math.prod(v) * transposed[0]


if _multiply is not None:
    register_flop_formula(_multiply)(_flops)
