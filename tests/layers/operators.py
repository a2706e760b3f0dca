"""Linear maps as dense float64 NumPy matrices, built from their definition entry by entry."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]


def convolution(kernel: Array, grid: tuple[int, int]) -> Array:
    """(C_out H W, C_in H W): y[o, p] = sum_{i, t} kernel[o, i, t] x[i, p + t - mid], zeros outside.

    kernel: (C_out, C_in, kh, kw), odd sizes.
    """
    n_out, n_in, kh, kw = kernel.shape
    height, width = grid
    dense = np.zeros((n_out, height, width, n_in, height, width))
    for row, column, a, b in np.ndindex(height, width, kh, kw):
        y, x = row + a - kh // 2, column + b - kw // 2
        if 0 <= y < height and 0 <= x < width:
            dense[:, row, column, :, y, x] = kernel[:, :, a, b]
    return dense.reshape(n_out * height * width, n_in * height * width)


def norm_after(layer: nn.Module) -> float:
    """The operator norm of what `forward` multiplies with, by SVD in float64."""
    weight = layer.weight_normalised().detach().double().numpy()
    dense = weight if weight.ndim == 2 else convolution(weight, layer.grid)
    return float(np.linalg.norm(dense, 2))


def hostile_training(
    layer: nn.Module, update: Callable[[], None], n_steps: int
) -> tuple[float, float]:
    """Largest norm / coefficient after each update, and between a step and its update.

    Adam at 1e-2 pushes the output along a random direction that is drawn anew every ten steps, so
    that the leading singular vectors keep turning away.
    """
    optimiser = torch.optim.Adam(layer.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(7)
    shape = (32, layer.n_in, *getattr(layer, "grid", ()))
    x = torch.randn(shape, generator=generator)
    with torch.no_grad():
        like = layer(x)
    after = between = 0.0
    for step in range(n_steps):
        if step % 10 == 0:
            target: Tensor = torch.randn(like.shape, generator=generator)
        optimiser.zero_grad()
        (-(layer(x) * target).sum()).backward()
        optimiser.step()
        between = max(between, norm_after(layer) / layer.coefficient)
        update()
        after = max(after, norm_after(layer) / layer.coefficient)
    return after, between


def power_steps_alone(layer: nn.Module, n_steps: int = 5) -> None:
    """The twin: what most implementations call an update, without any bound from above."""
    norm = layer.norm
    weight = layer.weight.detach().double().numpy()
    grid = norm.u.shape[1:] or (1, 1)  # a kernel with one tap is a matrix
    dense = weight if weight.ndim == 2 else convolution(weight, grid)
    matrix, u = torch.from_numpy(dense).to(norm.u), norm.u.flatten()
    for _ in range(n_steps):
        v = nn.functional.normalize(matrix.mT @ u, dim=0)
        u = nn.functional.normalize(matrix @ v, dim=0)
    norm.u, norm.v = u.reshape(norm.u.shape), v.reshape(norm.v.shape)
    norm.inflation = torch.ones_like(norm.inflation)
