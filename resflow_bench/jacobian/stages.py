"""v -> v^T J of a branch, stage by stage: what can be cut, cast, transposed and traced.

With J = S_L ... S_1 the product v^T J meets S_L first. A stage that is linear is a matrix or a
kernel, the same for all examples; an activation is the diagonal of its slopes, one for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

# With the channels last in memory a branch's product takes two thirds of the time on a CPU (3-1-3
# kernels, 32 channels on 8 x 8 or 64 on 16 x 16): a 1 x 1 kernel becomes a matrix product.
FAST = torch.channels_last

Examples = slice | Tensor
"""Which examples of a batch: a slice, or their indices (n,)."""


class Pull(Protocol):
    """The Jacobian S of one stage at a batch of points, as a linear map.

    Vectors have any leading axes, then (B, *event). A graph is recorded if and only if gradients
    are enabled; if they are not, that of an activation may overwrite its argument. All others
    return a new tensor.
    """

    def __call__(self, v: Tensor) -> Tensor:
        """v^T S, (..., B, *event_out) -> (..., B, *event_in)."""
        ...

    def push(self, v: Tensor) -> Tensor:
        """S v, (..., B, *event_in) -> (..., B, *event_out), a new tensor."""
        ...

    def select(self, examples: Examples) -> Pull:
        """The same at some of the points."""
        ...

    def to(self, dtype: torch.dtype) -> Pull:
        """The same with its numbers rounded to another type."""
        ...

    def mean(self) -> Pull:
        """At one point, with the batch's mean slopes in the place of each example's."""
        ...


@dataclass(frozen=True, eq=False)
class ByMatrix:
    """S = W, (n_out, n_in)."""

    weight: Tensor

    def __call__(self, v: Tensor) -> Tensor:
        return v @ self.weight

    def push(self, v: Tensor) -> Tensor:
        return v @ self.weight.mT

    def select(self, examples: Examples) -> ByMatrix:
        return self

    def to(self, dtype: torch.dtype) -> ByMatrix:
        return ByMatrix(self.weight.to(dtype))

    def mean(self) -> ByMatrix:
        return self


@dataclass(frozen=True, eq=False)
class ByKernel:
    """S: x -> W * x with stride 1 and zero padding, W (C_out, C_in, kh, kw), channels last."""

    weight: Tensor

    def __call__(self, v: Tensor) -> Tensor:
        return self._apply(functional.conv_transpose2d, v)

    def push(self, v: Tensor) -> Tensor:
        return self._apply(functional.conv2d, v)

    def select(self, examples: Examples) -> ByKernel:
        return self

    def to(self, dtype: torch.dtype) -> ByKernel:
        return ByKernel(self.weight.to(dtype))

    def mean(self) -> ByKernel:
        return self

    def _apply(self, convolve: object, v: Tensor) -> Tensor:
        flat = v.flatten(0, -4).to(memory_format=FAST)  # one batch of all probes and examples
        image: Tensor = convolve(flat, self.weight, padding=padding(self.weight))  # type: ignore[operator]
        return image.reshape(*v.shape[:-3], *image.shape[1:])


@dataclass(frozen=True, eq=False)
class BySlope:
    """S = diag(phi'(z)), or as many such diagonals below each other as phi has outputs an input.

    slope: (B, expansion * C, ...).
    """

    slope: Tensor
    expansion: int = 1

    def __call__(self, v: Tensor) -> Tensor:
        one = v.shape[-self.slope.ndim] < len(self.slope)  # the same v for all examples
        v = v * self.slope if one or torch.is_grad_enabled() else v.mul_(self.slope)
        if self.expansion == 1:
            return v
        axis = 1 - self.slope.ndim
        return v.unflatten(axis, (self.expansion, -1)).sum(axis - 1)

    def push(self, v: Tensor) -> Tensor:
        if self.expansion > 1:
            v = torch.cat([v] * self.expansion, dim=1 - self.slope.ndim)
        return v * self.slope

    def select(self, examples: Examples) -> BySlope:
        return BySlope(self.slope[examples], self.expansion)

    def to(self, dtype: torch.dtype) -> BySlope:
        return BySlope(self.slope.to(dtype), self.expansion)

    def mean(self) -> BySlope:
        return BySlope(self.slope.mean(0, keepdim=True), self.expansion)


@dataclass(frozen=True, eq=False)
class ByConcatenation:
    """S = [a I; b T] with T the Jacobian of what is computed beside what is kept.

    a, b: (). kept: features kept. rank: of x, its batch axis included.
    """

    a: Tensor
    b: Tensor
    kept: int
    rank: int
    computed: Pull

    def __call__(self, v: Tensor) -> Tensor:
        axis = 1 - self.rank
        kept, computed = v.split([self.kept, v.shape[axis] - self.kept], dim=axis)
        # b * computed is new, so that an activation may overwrite it.
        return torch.addcmul(self.computed(self.b * computed), self.a, kept)

    def push(self, v: Tensor) -> Tensor:
        return torch.cat([self.a * v, self.b * self.computed.push(v)], dim=1 - self.rank)

    def select(self, examples: Examples) -> ByConcatenation:
        return ByConcatenation(self.a, self.b, self.kept, self.rank, self.computed.select(examples))

    def to(self, dtype: torch.dtype) -> ByConcatenation:
        a, b = self.a.to(dtype), self.b.to(dtype)
        return ByConcatenation(a, b, self.kept, self.rank, self.computed.to(dtype))

    def mean(self) -> ByConcatenation:
        return ByConcatenation(self.a, self.b, self.kept, self.rank, self.computed.mean())


def padding(weight: Tensor) -> tuple[int, int]:
    """Zeros on each side that keep the grid as it is."""
    return weight.shape[2] // 2, weight.shape[3] // 2
