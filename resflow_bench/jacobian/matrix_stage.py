"""The Jacobian of a linear stage as a matrix, plain or packed for many products on a CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

from resflow_bench.jacobian.stages import Stage, TensorMap

PACKED_FROM = 2**20
"""The least numbers of a matrix at which packing pays: 4 MiB, more than the cache next to a core.
With (512, 512) numbers nothing was gained, with fewer some of the time lost."""

# torch's own, with which its compiler multiplies frozen weights; None if torch is without MKL.
_pack = getattr(torch.ops.mkl, "_mkl_reorder_linear_weight", None)
_multiply = getattr(torch.ops.mkl, "_mkl_linear", None)


@dataclass(frozen=True, eq=False)
class MatrixStage(Stage):
    """S = W, (n_out, n_in), or block diagonal with a W for each of n blocks, (n, n_out, n_in).

    The vectors of the second have events (n, n_out) and (n, n_in); see `jacobian.blocks`.
    """

    weight: Tensor

    def vjp(self, v: Tensor) -> Tensor:
        return v @ self.weight if self.weight.ndim == 2 else _of_blocks(v, self.weight)

    def push(self, v: Tensor) -> Tensor:
        if self.weight.ndim == 2:
            return functional.linear(v, self.weight)
        return _of_blocks(v, self.weight.mT)

    def mapped(self, common: TensorMap, each: TensorMap) -> MatrixStage:
        return MatrixStage(common(self.weight))

    def gradient(self, b: Tensor, a: Tensor) -> Tensor:
        """d/dW of sum b^T W a, shaped like W, from b (..., n_out) and a (..., n_in)."""
        if self.weight.ndim == 3:
            return _of_each_block(b).mT @ _of_each_block(a)
        return b.flatten(0, -2).mT @ a.flatten(0, -2)

    def packed(self, n_rows: int) -> Stage:
        """A `PackedMatrixStage` where torch supports it and the matrix is large enough."""
        weight = self.weight
        pays = weight.is_cpu and weight.dtype == torch.float32 and weight.numel() >= PACKED_FROM
        if _pack is None or not pays or weight.ndim == 3:
            return self
        transposed = weight.mT.contiguous()
        return PackedMatrixStage(transposed, _pack(transposed, n_rows), n_rows)


@dataclass(frozen=True, eq=False)
class PackedMatrixStage(Stage):
    """S = W on a CPU, float32, its numbers also in the order in which MKL's products read them.

    MKL puts them into that order at every product, which for one of 512 vectors and (1024, 1024)
    numbers is 6 % of its time, for one of 64 a quarter. No graph is recorded.

    transposed: W^T, (n_in, n_out), contiguous. block: W for `n_rows` vectors; other numbers of
    vectors are multiplied with `transposed`.
    """

    transposed: Tensor
    block: Tensor
    n_rows: int

    def vjp(self, v: Tensor) -> Tensor:
        assert _multiply is not None  # or `MatrixStage.packed` had not made this
        product: Tensor = _multiply(v.contiguous(), self.block, self.transposed, None, self.n_rows)
        return product

    def push(self, v: Tensor) -> Tensor:
        return v @ self.transposed

    def mapped(self, common: TensorMap, each: TensorMap) -> MatrixStage:
        """The plain stage: the packed order is of these numbers alone."""
        return MatrixStage(common(self.transposed.mT))


def _of_blocks(v: Tensor, weight: Tensor) -> Tensor:
    """v^T W of each block."""
    product = torch.bmm(_of_each_block(v), weight)
    return product.transpose(0, 1).unflatten(0, v.shape[:-2])


def _of_each_block(v: Tensor) -> Tensor:
    """(..., n, d) -> (n, ..., d), with one axis for the dots: no copy if the blocks come first in
    memory.
    """
    return v.flatten(0, -3).transpose(0, 1)


def _flops(
    v: tuple[int, ...], _: object, transposed: tuple[int, int], *__: object, **___: object
) -> int:
    """Floating-point operations of a packed product, which torch's own table leaves out."""
    return 2 * math.prod(v) * transposed[0]


if _multiply is not None:
    register_flop_formula(_multiply)(_flops)
