"""Two small flows and seeded numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from resflow_bench.flows import MultiScale, ResidualFlow, image_flow


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def vectors() -> ResidualFlow:
    return ResidualFlow.mlp(3, (16,), 2, 0.9)


def images() -> ResidualFlow:
    scales = MultiScale(n_blocks=1, hidden=(4, 4), tail_hidden=(8,), mixing=True)
    return image_flow((2, 4, 4), scales)
