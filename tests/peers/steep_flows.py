"""Small flows with Jacobians of some size, which tests hold against other implementations."""

from __future__ import annotations

import torch
from torch import Tensor

from resflow_bench.flows import MultiScale, ResidualFlow, image_flow


def points(*event: int) -> Tensor:
    """32 standard normal points in float64, the same at every call."""
    return torch.randn(32, *event, generator=torch.Generator().manual_seed(1), dtype=torch.double)


def mlp() -> tuple[ResidualFlow, Tensor]:
    """Two fully connected blocks on four numbers, and points."""
    return with_large_jacobians(ResidualFlow.mlp(4, (8, 8), 2, 0.9), points(4))


def conv() -> tuple[ResidualFlow, Tensor]:
    """Two convolutional blocks on images of 2 x 4 x 4, and points."""
    flow = image_flow((2, 4, 4), MultiScale(1, 2, (4, 4), n_tail=0, margin=None))
    return with_large_jacobians(flow, points(2, 4, 4))


def with_large_jacobians(flow: ResidualFlow, x: Tensor) -> tuple[ResidualFlow, Tensor]:
    """Aligned, in float64, with ||J|| near 1/2: weights near the identity, sharp activations."""
    flow.double().initialise(x)
    with torch.no_grad():
        for block in flow.blocks:
            for layer in block.branch.layers:
                centre = [size // 2 for size in layer.weight.shape[2:]]
                layer.weight[:, :, *centre] += 2 * torch.eye(*layer.weight.shape[:2])
                layer.bias += 1
            for phi in block.branch.activations:
                phi.raw_beta.fill_(3.0)
    flow.align()
    return flow, x
