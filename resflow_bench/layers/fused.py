"""Linear layers and LipSwish linearised together, with the gradient written out.

At a few hundred features a product takes no longer than the many small operations around it, and
autograd doubles these: it adds a node and a tensor for each, and a sum where two gradients meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from resflow_bench.jacobian import MatrixStage, SlopeStage, Stage
from resflow_bench.layers.activations import LipSwish, SwishAndSlope, swish_backward
from resflow_bench.layers.linear import Linear
from resflow_bench.layers.norms.operators import Matrix
from resflow_bench.layers.norms.spectral import SpectralNorm

Stages = list[Linear | LipSwish]


def fusable(stages: Sequence[object]) -> Stages | None:
    """The stages, if they are linear layers with a spectral norm and LipSwish, nothing else."""
    accepted = [
        stage
        for stage in stages
        if type(stage) is LipSwish
        or (type(stage) is Linear and isinstance(stage.norm, SpectralNorm))
    ]
    return accepted if len(accepted) == len(stages) else None


def pays(stages: Stages, x: Tensor) -> bool:
    """True with gradients on, for vectors x of the weights' dtype, float32 or float64."""
    last = stages[-1]
    assert isinstance(last, Linear)  # a branch ends with a layer
    dtype = last.weight.dtype
    return (
        torch.is_grad_enabled()
        and x.shape[1:] == (last.n_out,)  # which is what the first layer takes
        and x.dtype == dtype
        and dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled(x.device.type)
    )


def linearise(stages: Stages, x: Tensor) -> tuple[Tensor, list[Stage]]:
    """g(x), (B, d), and the Jacobian of each stage, as `Composition.linearise` computes them.

    Values agree to the last bit, gradients to rounding; differentiable twice.
    """
    tensors: list[Tensor | None] = []
    for stage in stages:
        if isinstance(stage, LipSwish):
            tensors.append(stage.raw_beta)
        else:
            assert isinstance(stage.norm, SpectralNorm)  # see `fusable`
            constants = stage.norm.constants(Matrix(stage.weight))
            tensors += [stage.weight, stage.bias, *constants]
    kinds = tuple(isinstance(stage, LipSwish) for stage in stages)
    y, *numbers = _Linearised.apply(x, kinds, *tensors)
    return y, [
        SlopeStage(number) if is_swish else MatrixStage(number)
        for number, is_swish in zip(numbers, kinds, strict=True)
    ]


def _forward(
    x: Tensor, kinds: tuple[bool, ...], tensors: Sequence[Any]
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """y, (B, d); W_c or phi'(z) of each stage; the input of each; scales.

    `tensors` has a LipSwish's raw beta, and a layer's W, b, u, v, share.
    W_c = W / max(1, ratio) with ratio = share u^T W v, share = inflation / c', see `SpectralNorm`.
    The scales are those two, ratio and maximum, of each layer, and the beta of each LipSwish.
    """
    numbers, inputs, scales = [], [], []
    rest = iter(tensors)
    for is_swish in kinds:
        inputs.append(x)
        if is_swish:
            scales.append(functional.softplus(next(rest)))
            x, number = SwishAndSlope.apply(x, scales[-1])
        else:
            weight, bias, u, v, share = islice(rest, 5)
            ratio = torch.dot(u, torch.mv(weight, v)) * share
            scales += [ratio, ratio.clamp(min=1.0)]
            number = weight / scales[-1]
            x = functional.linear(x, number, bias)
        numbers.append(number)
    return x, numbers, inputs, scales


class _Linearised(torch.autograd.Function):
    """(x, parameters) -> (y, W_c or phi'(z) of each stage), both attached."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kinds: tuple[bool, ...], *tensors: Tensor) -> Any:
        y, numbers, inputs, scales = _forward(x, kinds, tensors)
        ctx.kinds = kinds
        ctx.save_for_backward(*tensors, *inputs, *numbers, *scales)
        return y, *numbers

    @staticmethod
    def backward(ctx: Any, d_y: Tensor, *d_numbers: Tensor) -> Any:
        kinds, n = ctx.kinds, len(ctx.needs_input_grad) - 2
        saved = ctx.saved_tensors
        tensors, inputs = saved[:n], saved[n : n + len(kinds)]
        if torch.is_grad_enabled():  # a derivative of this one was requested
            return _differentiable(ctx, inputs[0], tensors, (d_y, *d_numbers))
        numbers = saved[n + len(kinds) : n + 2 * len(kinds)]
        scales = list(saved[n + 2 * len(kinds) :])
        gradients: list[Tensor | None] = []  # from the last of the tensors to the first
        for j in reversed(range(len(kinds))):
            if kinds[j]:
                raw_beta = tensors[n - len(gradients) - 1]
                beta = raw_beta, scales.pop()
                d_y, d_beta = swish_backward(inputs[j], *beta, numbers[j], d_y, d_numbers[j])
                gradients.append(d_beta)
            else:
                u, v, share = tensors[n - len(gradients) - 3 : n - len(gradients)]
                divisor, ratio = scales.pop(), scales.pop()
                share = share * (ratio >= 1.0)
                d_w = torch.addmm(d_numbers[j], d_y.mT, inputs[j])
                d_b = d_y.sum(0) if tensors[n - len(gradients) - 4] is not None else None
                d_y = d_y @ numbers[j] if j > 0 or ctx.needs_input_grad[0] else d_y
                d_w = _weight_back(d_w, numbers[j], u, v, share).div_(divisor)
                gradients += [None, None, None, d_b, d_w]
        return d_y, None, *reversed(gradients)


def _weight_back(d_w: Tensor, normalised: Tensor, u: Tensor, v: Tensor, share: Tensor) -> Tensor:
    """D d/dW of W_c = W / D from G = d/dW_c: G - share <G, W_c> u v^T, share 0 where D is the 1."""
    inner = torch.dot(d_w.flatten(), normalised.flatten())
    return torch.addr(d_w, u * (inner * share), v, alpha=-1)


def _differentiable(
    ctx: Any, x: Tensor, tensors: Sequence[Tensor | None], upstream: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """The gradient by autograd, with a graph."""
    x, fresh = x.view_as(x), [t if t is None else t.view_as(t) for t in tensors]
    y, numbers, _, _ = _forward(x, ctx.kinds, fresh)
    wanted = [ctx.needs_input_grad[0], *ctx.needs_input_grad[2:]]
    inputs = [t for t, want in zip([x, *fresh], wanted, strict=True) if want and t is not None]
    gradients = torch.autograd.grad((y, *numbers), inputs, upstream, create_graph=True)
    rest = iter(gradients)
    d_x, *d_tensors = (next(rest) if want else None for want in wanted)
    return d_x, None, *d_tensors
