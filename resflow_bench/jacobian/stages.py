"""The Jacobian of a stage of a branch as a kernel, as slopes, and as a concatenation.

A branch has J = S_L ... S_1, and the product v^T J meets S_L first. A linear stage is a matrix or a
kernel, the same for all examples; an activation is a diagonal of slopes for each example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from resflow_bench.jacobian.operator import Examples, Jacobian, unchanged

# With the channels last in memory a branch's product takes two thirds of the time on a CPU (3-1-3
# kernels, 32 channels on 8 x 8 or 64 on 16 x 16): a 1 x 1 kernel becomes a matrix product.
FAST = torch.channels_last

TensorMap = Callable[[Tensor], Tensor]


class Stage(Jacobian, Protocol):
    """A Jacobian made of tensors, some common to all examples, some with a batch axis.

    Its vectors may have any leading axes, and a batch axis of 1 that stands for all examples.
    """

    def mapped(self, common: TensorMap, each: TensorMap) -> Stage:
        """The stage with `common` applied to tensors without a batch axis, `each` to the others."""

    @property
    def shrinks(self) -> bool:
        return True

    def vjp_of_each(self, v: Tensor, batch_size: int) -> Tensor:
        return self.vjp(v)

    def packed(self, n_rows: int) -> Stage:
        return self

    def select(self, examples: Examples) -> Stage:
        return self.mapped(unchanged, lambda t: rows(t, examples))

    def to(self, dtype: torch.dtype) -> Stage:
        return self.mapped(lambda t: t.to(dtype), lambda t: t.to(dtype))

    def mean(self) -> Stage:
        # An example that is not finite spoils no other.
        return self.mapped(unchanged, lambda t: t.nan_to_num(0.0, 0.0, 0.0).mean(0, keepdim=True))


@dataclass(frozen=True, eq=False)
class KernelStage(Stage):
    """S: x -> W * x with stride 1 and zero padding, W (C_out, C_in, kh, kw), channels last."""

    weight: Tensor

    def vjp(self, v: Tensor) -> Tensor:
        return self._apply(functional.conv_transpose2d, v)

    def push(self, v: Tensor) -> Tensor:
        return self._apply(functional.conv2d, v)

    def reach(self) -> tuple[int, int]:
        return padding(self.weight)

    def mapped(self, common: TensorMap, each: TensorMap) -> KernelStage:
        return KernelStage(common(self.weight))

    def _apply(self, convolve: Callable[..., Tensor], v: Tensor) -> Tensor:
        flat = v.flatten(0, -4).to(memory_format=FAST)  # one batch of all probes and examples
        image = convolve(flat, self.weight, padding=padding(self.weight))
        return image.reshape(*v.shape[:-3], *image.shape[1:])


@dataclass(frozen=True, eq=False)
class SlopeStage(Stage):
    """S = diag(phi'(z)), or as many such diagonals below each other as phi has outputs an input.

    slope: (B, expansion * C, ...).
    """

    slope: Tensor
    expansion: int = 1

    def vjp(self, v: Tensor) -> Tensor:
        one = v.shape[-self.slope.ndim] < len(self.slope)  # the same v for all examples
        v = v * self.slope if one or torch.is_grad_enabled() else v.mul_(self.slope)
        if self.expansion == 1:
            return v
        axis = 1 - self.slope.ndim
        return v.unflatten(axis, (self.expansion, -1)).sum(axis - 1)

    def push(self, v: Tensor) -> Tensor:
        return self._repeated(v) * self.slope

    def reach(self) -> tuple[int, int]:
        return 0, 0

    def mapped(self, common: TensorMap, each: TensorMap) -> SlopeStage:
        return SlopeStage(each(self.slope), self.expansion)

    def gradient(self, b: Tensor, a: Tensor) -> Tensor:
        """d/dslope of sum b^T S a, (B, ...), from b and a, (B, ...) or (m, B, ...)."""
        product = b * self._repeated(a)
        return product if b.ndim == self.slope.ndim else product.sum(0)

    def _repeated(self, v: Tensor) -> Tensor:
        return torch.cat([v] * self.expansion, 1 - self.slope.ndim) if self.expansion > 1 else v


@dataclass(frozen=True, eq=False)
class ConcatenationStage(Stage):
    """S = [a I; b T] for outputs [a x, b h(x)], T the Jacobian of h.

    a, b: (). n_copied: features of a x. rank: of x, its batch axis included.
    """

    a: Tensor
    b: Tensor
    n_copied: int
    rank: int
    computed: Stage

    def vjp(self, v: Tensor) -> Tensor:
        axis = 1 - self.rank
        copied, computed = v.split([self.n_copied, v.shape[axis] - self.n_copied], dim=axis)
        # b * computed is new, so that an activation may overwrite it.
        return torch.addcmul(self.computed.vjp(self.b * computed), self.a, copied)

    def push(self, v: Tensor) -> Tensor:
        return torch.cat([self.a * v, self.b * self.computed.push(v)], dim=1 - self.rank)

    def reach(self) -> tuple[int, int] | None:
        return self.computed.reach()

    def mapped(self, common: TensorMap, each: TensorMap) -> ConcatenationStage:
        a, b, computed = common(self.a), common(self.b), self.computed.mapped(common, each)
        return ConcatenationStage(a, b, self.n_copied, self.rank, computed)


@dataclass(frozen=True, eq=False)
class SkipStage(Stage):
    """S = a I + T for outputs a x + h(x), T the Jacobian of h.

    computed: T, whose last stage is linear, so that no product overwrites its vector.
    """

    a: float
    computed: Stage

    def vjp(self, v: Tensor) -> Tensor:
        return torch.add(self.computed.vjp(v), v, alpha=self.a)

    def push(self, v: Tensor) -> Tensor:
        return torch.add(self.computed.push(v), v, alpha=self.a)

    def mapped(self, common: TensorMap, each: TensorMap) -> SkipStage:
        return SkipStage(self.a, self.computed.mapped(common, each))


def rows(t: Tensor, examples: Examples, axis: int = 0) -> Tensor:
    """Some of the examples, which are along `axis`; see `Examples`."""
    if isinstance(examples, slice):
        return t[(slice(None),) * axis + (examples,)]
    if examples.ndim == 1:  # faster for vectors; slopes keep their order in memory
        return t.index_select(axis, examples) if axis else t[examples]
    blocks_first = t.movedim(axis + 1, 0)
    index = examples.mT.view(len(blocks_first), *[1] * axis, -1, *[1] * (t.ndim - axis - 2))
    return blocks_first.take_along_dim(index, axis + 1).movedim(0, axis + 1)


def padding(weight: Tensor) -> tuple[int, int]:
    """Zeros on each side that keep the grid as it is."""
    return weight.shape[2] // 2, weight.shape[3] // 2
