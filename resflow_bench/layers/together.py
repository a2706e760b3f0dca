"""Norms of many layers at once, for devices on which each launch and each wait costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeGuard

import torch
from torch import Tensor

from resflow_bench.layers.composed.dense import DenseLayer
from resflow_bench.layers.composed.sll import SLL
from resflow_bench.layers.conv import Conv2d
from resflow_bench.layers.layer import Layer
from resflow_bench.layers.linear import Linear
from resflow_bench.layers.norms.aol import AOLNorm
from resflow_bench.layers.norms.induced import InducedNorm
from resflow_bench.layers.norms.orthogonal import SemiOrthogonalNorm
from resflow_bench.layers.norms.spectral import SpectralNorm, bounds_together, follow_together

BY_SPECTRUM = (SpectralNorm, AOLNorm, SemiOrthogonalNorm)
"""The norms whose certificate is the spectral norm of the weight that is multiplied with."""


def follow(layers: Iterable[Layer], *, align: bool = False) -> None:
    """Update, or align, each layer; those with a spectral norm of weights off the CPU together."""
    todo, norms = list(layers), []
    for layer in todo:
        if isinstance(layer, DenseLayer):
            todo.append(layer.layer)
        elif _is_batched(layer, (SpectralNorm,)) and isinstance(layer.norm, SpectralNorm):
            norms.append((layer.norm, layer.operator))
        elif align:
            layer.align()
        else:
            layer.update()
    if norms:
        follow_together(norms, align=align)


@torch.no_grad()
def bounds(layers: Sequence[Layer]) -> list[Tensor]:
    """An upper bound on the Lipschitz constant of each layer, () float64.

    It lies on the device of the layer's weight, for layers that are neither `Linear` nor `Conv2d`
    on the CPU. For spectral norms of weights off the CPU the host does not wait, and the bound is
    NaN where a weight is not finite.
    """
    inner = [layer.layer if isinstance(layer, DenseLayer) else layer for layer in layers]
    operators = [layer.operator_normalised() for layer in inner if _is_batched(layer, BY_SPECTRUM)]
    batched = iter(bounds_together(operators))
    found = []
    for layer, held in zip(layers, inner, strict=True):
        if _is_batched(held, BY_SPECTRUM):
            bound = next(batched)
        elif isinstance(held, Linear | Conv2d) and isinstance(held.norm, InducedNorm):
            bound = held.norm.bound(held.operator_normalised())
        elif isinstance(held, SLL):
            bound = held.bound()
        else:
            bound = torch.tensor(held.certificate().norm, dtype=torch.float64)
        found.append(layer.constant(bound) if isinstance(layer, DenseLayer) else bound)
    return found


def _is_batched(layer: Layer, kinds: tuple[type, ...]) -> TypeGuard[Linear | Conv2d]:
    if not isinstance(layer, Linear | Conv2d) or layer.weight.is_cpu:
        return False
    return isinstance(layer.norm, kinds)
