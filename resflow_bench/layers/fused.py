"""Linear layers and LipSwish linearised together, with the gradient written out.

At a few hundred features a product takes no longer than the many small operations around it, and
autograd doubles these: a node for each, a tensor for each, a sum where two gradients meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from resflow_bench.jacobian import MatrixStage, SlopeStage, Stage
from resflow_bench.layers.activations import LIPSWISH_SCALE, LipSwish, SwishAndSlope
from resflow_bench.layers.linear import SpectralLinear

Stages = Sequence[SpectralLinear | LipSwish]


def can_fuse(stages: Sequence[object]) -> bool:
    """Whether they are linear layers and LipSwish, nothing else."""
    return all(type(stage) in (SpectralLinear, LipSwish) for stage in stages)


def pays(stages: Stages, x: Tensor) -> bool:
    """Whether a gradient is wanted, of vectors, all in one type that products keep."""
    last = stages[-1]
    assert isinstance(last, SpectralLinear)  # as of every branch
    dtype = last.weight.dtype
    return (
        torch.is_grad_enabled()
        and x.ndim == 2
        and x.dtype == dtype
        and dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled(x.device.type)
    )


def linearise(stages: Stages, x: Tensor) -> tuple[Tensor, list[Stage]]:
    """g(x), (B, d), and the stages' Jacobians, as one stage after the other would give them.

    To the last bit their values, to rounding their gradients; differentiable twice.
    """
    tensors: list[Tensor | None] = []
    for stage in stages:
        if isinstance(stage, LipSwish):
            tensors.append(stage.raw_beta)
        else:
            tensors += [stage.weight, stage.bias, *stage.norm.constants(stage.weight)]
    kinds = tuple(isinstance(stage, LipSwish) for stage in stages)
    y, *numbers = _Linearised.apply(x, kinds, *tensors)
    jacobians: list[Stage] = [
        SlopeStage(number) if is_swish else MatrixStage(number)
        for number, is_swish in zip(numbers, kinds, strict=True)
    ]
    return y, jacobians


class _Run(NamedTuple):
    """y, (B, d); W_c or phi'(z) of each stage; what each stage sees; a ratio for each matrix."""

    y: Tensor
    numbers: list[Tensor]
    inputs: list[Tensor]
    ratios: list[Tensor]


def _run(x: Tensor, kinds: tuple[bool, ...], tensors: Sequence[Tensor]) -> _Run:
    """The stages on x. Of a LipSwish raw beta is given, of a layer W, b, u, v, inflation / c'.

    W_c = W / max(1, ratio) with ratio = u^T W v inflation / c', see `SpectralNorm`.
    """
    numbers, inputs, ratios = [], [], []
    rest = iter(tensors)
    for is_swish in kinds:
        inputs.append(x)
        if is_swish:
            x, number = SwishAndSlope.apply(x, functional.softplus(next(rest)))
        else:
            weight, bias, u, v, share = islice(rest, 5)
            ratio = torch.dot(u, torch.mv(weight, v)) * share
            number = weight / ratio.clamp(min=1.0)
            x = functional.linear(x, number, bias)
            ratios.append(ratio)
        numbers.append(number)
    return _Run(x, numbers, inputs, ratios)


class _Linearised(torch.autograd.Function):
    """(x, parameters) -> (y, W_c or phi'(z) of each stage), both attached."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kinds: tuple[bool, ...], *tensors: Tensor) -> Any:
        run = _run(x, kinds, tensors)
        ctx.kinds = kinds
        ctx.save_for_backward(*tensors, *run.inputs, *run.numbers, *run.ratios)
        return run.y, *run.numbers

    @staticmethod
    def backward(ctx: Any, d_y: Tensor, *d_numbers: Tensor) -> Any:
        kinds, n = ctx.kinds, len(ctx.needs_input_grad) - 2
        saved = ctx.saved_tensors
        tensors, inputs = saved[:n], saved[n : n + len(kinds)]
        if torch.is_grad_enabled():  # and so a derivative of this one is asked for
            return _differentiable(ctx, inputs[0], tensors, (d_y, *d_numbers))
        numbers = saved[n + len(kinds) : n + 2 * len(kinds)]
        ratios = list(saved[n + 2 * len(kinds) :])
        found: list[Tensor | None] = []  # from the last of the tensors to the first
        for j in reversed(range(len(kinds))):
            if kinds[j]:
                raw_beta = tensors[n - len(found) - 1]
                d_y, d_beta = _swish_back(inputs[j], raw_beta, numbers[j], d_y, d_numbers[j])
                found.append(d_beta)
            else:
                u, v, share = tensors[n - len(found) - 3 : n - len(found)]
                share = share * (ratios[-1] >= 1.0)
                d_w = torch.addmm(d_numbers[j], d_y.mT, inputs[j])
                d_b = d_y.sum(0) if tensors[n - len(found) - 4] is not None else None
                d_y = d_y @ numbers[j] if j > 0 or ctx.needs_input_grad[0] else d_y
                d_w = _weight_back(d_w, numbers[j], u, v, share).div_(ratios.pop().clamp(min=1.0))
                found += [None, None, None, d_b, d_w]
        return d_y, None, *reversed(found)


def _weight_back(d_w: Tensor, normalised: Tensor, u: Tensor, v: Tensor, share: Tensor) -> Tensor:
    """D d/dW of W_c = W / D from G = d/dW_c: G - share <G, W_c> u v^T, share 0 where D is the 1."""
    inner = torch.dot(d_w.flatten(), normalised.flatten())
    return torch.addr(d_w, u * (inner * share), v, alpha=-1)


def _swish_back(
    z: Tensor, raw_beta: Tensor, slope: Tensor, d_value: Tensor, d_slope: Tensor
) -> tuple[Tensor, Tensor]:
    """d/dz and d/d(raw beta) of `SwishAndSlope`, over in place: t = beta z, s = sigmoid(t).

    With c = s (1 - s) and e = d_slope c (2 + t (1 - 2 s)): slope d_value + beta e / 1.1, and the
    sum of z (z c d_value + e) / 1.1.
    """
    beta = functional.softplus(raw_beta)
    t = z * beta
    s = torch.sigmoid(t)
    c = torch.addcmul(s, s, s, value=-1)
    e = t.addcmul_(t, s, value=-2).add_(2.0).mul_(c).mul_(d_slope)
    d_z = torch.mul(slope, d_value, out=s).addcmul_(e, beta, value=1 / LIPSWISH_SCALE)
    d_beta = c.mul_(d_value).mul_(z).add_(e).mul_(z).sum() * (1 / LIPSWISH_SCALE)
    return d_z, d_beta * torch.sigmoid(raw_beta)


def _differentiable(
    ctx: Any, x: Tensor, tensors: Sequence[Tensor | None], upstream: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """The gradient by autograd, with a graph."""
    fresh = [t if t is None else t.view_as(t) for t in (x, *tensors)]
    run = _run(fresh[0], ctx.kinds, fresh[1:])  # type: ignore[arg-type]
    wanted = [ctx.needs_input_grad[0], *ctx.needs_input_grad[2:]]
    asked = [t for t, want in zip(fresh, wanted, strict=True) if want and t is not None]
    gradients = iter(torch.autograd.grad((run.y, *run.numbers), asked, upstream, create_graph=True))
    d_x, *found = (next(gradients) if want else None for want in wanted)
    return d_x, None, *found
