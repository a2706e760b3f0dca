"""Several blocks as one: the block-diagonal J of residual blocks whose stages have the same shapes.

ln|det(I + J)| of the whole is the sum over the blocks, and so is each term v^T J^k v. With
n blocks a vector is (m, B, n, d), an example's event being (n, d). One product then takes the place
of n, which is what small products cost: the time to start them.

In memory the blocks come first, (n, m, B, d), so that a product of all blocks is one `bmm`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from resflow_bench.jacobian.chain import JacobianChain
from resflow_bench.jacobian.matrix_stage import MatrixStage
from resflow_bench.jacobian.operator import Jacobian
from resflow_bench.jacobian.stages import SlopeStage, Stage


def block_diagonal(jacobians: Sequence[Jacobian]) -> JacobianChain:
    """The J of all blocks, which are of one `kind`; attached to theirs."""
    chains = [jacobian for jacobian in jacobians if isinstance(jacobian, JacobianChain)]
    columns = zip(*(_numbers(chain) for chain in chains), strict=True)
    stages: list[Stage] = []
    for example, column in zip(chains[0].stages, columns, strict=True):
        if isinstance(example, MatrixStage):
            stages.append(MatrixStage(torch.stack(column)))
        else:
            stages.append(SlopeStage(side_by_side(column)))
    return JacobianChain(stages)


def kind(jacobian: Jacobian) -> object:
    """Equal for J that are alike: matrices, and slopes with one output an input, of the same shapes
    and dtypes. No other J is like another.
    """
    if math.isinf(size(jacobian).vector):
        return jacobian
    assert isinstance(jacobian, JacobianChain)  # as its size is finite
    return tuple(
        (type(stage), number.shape, number.dtype)
        for stage, number in zip(jacobian.stages, _numbers(jacobian), strict=True)
    )


class BlockSize(NamedTuple):
    """The most numbers of a vector of one probe on its way through J, and of a matrix of J.

    Both are infinite if J has no like.
    """

    vector: float
    matrix: float


def size(jacobian: Jacobian) -> BlockSize:
    """The size of J at its batch."""
    if not isinstance(jacobian, JacobianChain) or len(_numbers(jacobian)) < len(jacobian.stages):
        return BlockSize(math.inf, math.inf)
    slopes = [stage.slope for stage in jacobian.stages if isinstance(stage, SlopeStage)]
    matrices = [stage.weight for stage in jacobian.stages if isinstance(stage, MatrixStage)]
    if not slopes or not matrices:
        return BlockSize(math.inf, math.inf)
    width = max(n for weight in matrices for n in weight.shape)
    return BlockSize(len(slopes[0]) * width, max(weight.numel() for weight in matrices))


def side_by_side(each: Sequence[Tensor]) -> Tensor:
    """n tensors (..., d) as one (..., n, d), in memory one after the other."""
    return torch.stack(list(each)).movedim(0, -2)


def _numbers(chain: JacobianChain) -> list[Tensor]:
    """The tensor of each stage, up to the first that is neither a matrix nor slopes of vectors."""
    numbers = []
    for stage in chain.stages:
        if type(stage) is MatrixStage and stage.weight.ndim == 2:
            numbers.append(stage.weight)
        elif type(stage) is SlopeStage and stage.expansion == 1 and stage.slope.ndim == 2:
            numbers.append(stage.slope)
        else:
            break
    return numbers
