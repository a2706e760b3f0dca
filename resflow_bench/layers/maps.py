"""Maps with normalised weights: evaluated, and linearised into the stages of a Jacobian."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from resflow_bench.jacobian import (
    ConcatenationStage,
    Examples,
    JacobianChain,
    KernelStage,
    MatrixStage,
    SlopeStage,
    Stage,
)
from resflow_bench.jacobian.stages import FAST, padding, rows
from resflow_bench.layers.activations import Activation
from resflow_bench.layers.layer import Normalised


@dataclass(frozen=True, eq=False)
class Affine:
    """x W^T + b, (..., n_in) -> (..., n_out).

    Raises:
        ValueError: vectors of another size.
    """

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.weight.shape[1]:
            raise ValueError(
                f"Linear needs x of shape (..., {self.weight.shape[1]}); got {tuple(x.shape)}."
            )
        return functional.linear(x, self.weight, self.bias)

    def linearise(self, x: Tensor) -> tuple[Tensor, MatrixStage]:
        return self(x), MatrixStage(self.weight)


@dataclass(frozen=True, eq=False)
class AffineConvolution:
    """W * x + b, stride 1, zero padding, (B, C_in, H, W) -> (B, C_out, H, W) on one grid.

    Raises:
        ValueError: images of another shape.
    """

    weight: Tensor
    bias: Tensor | None
    grid: tuple[int, int]

    def __call__(self, x: Tensor) -> Tensor:
        channels = self.weight.shape[1]
        if x.shape[1:] != (channels, *self.grid):
            raise ValueError(
                f"Conv2d needs x of shape (B, {channels}, {self.grid[0]}, {self.grid[1]}), as its "
                f"norm is promised on that grid; got {tuple(x.shape)}. Build the layer with the "
                "`grid` of its input."
            )
        x = x.to(memory_format=FAST)
        return functional.conv2d(x, self.weight, self.bias, padding=padding(self.weight))

    def linearise(self, x: Tensor) -> tuple[Tensor, KernelStage]:
        return self(x), KernelStage(self.weight)


@dataclass(frozen=True, eq=False)
class Elementwise:
    """phi(x); without gradients, the Jacobian may overwrite the vector that it multiplies."""

    activation: Activation

    def __call__(self, x: Tensor) -> Tensor:
        return self.activation(x)

    def linearise(self, x: Tensor) -> tuple[Tensor, SlopeStage]:
        y, slope = self.activation.value_and_derivative(x)
        return y, SlopeStage(slope, self.activation.expansion)


@dataclass(frozen=True, eq=False)
class Shifted:
    """s(x) + shift, with the Jacobian of s.

    shift: (B, n_out), of each example; the same at all positions of a grid.
    """

    stage: Normalised
    shift: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        y = self.stage(x)
        return y + self.along(y)

    def linearise(self, x: Tensor) -> tuple[Tensor, Stage]:
        y, jacobian = self.stage.linearise(x)
        return y + self.along(y), jacobian

    def along(self, y: Tensor) -> Tensor:
        """The shift as (B, n_out, 1...), to broadcast with y, (B, n_out, *grid)."""
        return self.shift.view(*self.shift.shape, *[1] * (y.ndim - 2))


@dataclass(frozen=True, eq=False)
class Composition:
    """s_L o ... o s_1, the stages in the order in which x meets them."""

    stages: Sequence[Normalised]

    def select(self, examples: Examples) -> Composition:
        """The map of some of the examples: another one only where a stage is shifted."""
        return Composition(
            [
                replace(stage, shift=rows(stage.shift, examples))
                if isinstance(stage, Shifted)
                else stage
                for stage in self.stages
            ]
        )

    def __call__(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return x

    def linearise(self, x: Tensor) -> tuple[Tensor, JacobianChain]:
        stages: list[Stage] = []
        for stage in self.stages:
            x, jacobian = stage.linearise(x)
            stages.append(jacobian)
        return x, JacobianChain(stages)


@dataclass(frozen=True, eq=False)
class Concatenation:
    """[a x, b h(x)] along axis 1, a and b of shape ()."""

    a: Tensor
    b: Tensor
    h: Composition

    def __call__(self, x: Tensor) -> Tensor:
        return self._joined(x, self.h(x))

    def linearise(self, x: Tensor) -> tuple[Tensor, ConcatenationStage]:
        y, jacobian = self.h.linearise(x)
        stage = ConcatenationStage(self.a, self.b, x.shape[1], x.ndim, jacobian)
        return self._joined(x, y), stage

    def _joined(self, x: Tensor, y: Tensor) -> Tensor:
        if y.shape[2:] != x.shape[2:]:
            raise ValueError(
                "DenseLayer needs x of shape (B, n_in), or (B, n_in, H, W) for a convolution; got "
                f"{tuple(x.shape)}."
            )
        return torch.cat([self.a * x, self.b * y], dim=1)
