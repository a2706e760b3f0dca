"""The branches that residual flows are built from, with the promise split evenly over layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch

from resflow_bench.layers.activations import (
    Activation,
    CLipSwish,
    LipSwish,
    Tanh,
    check_activation,
)
from resflow_bench.layers.branches import Branch, contractive
from resflow_bench.layers.composed.dense import DenseLayer
from resflow_bench.layers.composed.sll import SLL
from resflow_bench.layers.conv import Conv2d
from resflow_bench.layers.layer import Layer
from resflow_bench.layers.linear import Linear
from resflow_bench.layers.norms.norm import Norm
from resflow_bench.layers.norms.spectral import Spectral

MakeLayer = Callable[[int, int, float], Layer]
"""(n_in, n_out, coefficient) -> a layer."""


def mlp_branch(
    dim: int,
    hidden: Sequence[int],
    lipschitz: float,
    activation: Callable[[], Activation] = LipSwish,
    generator: torch.Generator | None = None,
    norm: Norm = Spectral(),
) -> Branch:
    """W_L phi ... phi W_1 with every layer's c = (K / Lip(phi)^(L-1))^(1/L), so Lip(g) <= K.

    Args:
        dim: d, the features of x and of g(x).
        hidden: widths between the linear layers; (128, 128) makes three layers, () one.
        lipschitz: K, the constant promised for the branch (not for each layer), in (0, 1).
        activation: makes one phi; called once per gap, so each has its own parameters.
        generator: draws the weights; None is a fresh one with seed 0.
        norm: how each layer keeps its c, as in `Linear`.

    Raises:
        ValueError: K outside (0, 1), or a size below 1.

    >>> g = mlp_branch(64, (128, 128), lipschitz=0.9)
    >>> y, jacobian = g.linearise(torch.zeros(5, 64))
    >>> jacobian.vjp(torch.ones(3, 5, 64)).shape, g.lipschitz_certified() <= g.lipschitz == 0.9
    (torch.Size([3, 5, 64]), True)
    """
    make = partial(Linear, norm=norm, generator=_or_fresh(generator))
    return _alternating([make] * (len(hidden) + 1), [dim, *hidden, dim], lipschitz, activation)


def sll_branch(
    dim: int,
    hidden: Sequence[int],
    lipschitz: float,
    activation: Callable[[], Activation] = Tanh,
    generator: torch.Generator | None = None,
) -> Branch:
    """W_2 h_m(... h_1(W_1 x)) with SLL layers h_j between two matrices of sqrt(K): Lip(g) <= K.

    Args:
        dim: d, the features of x and of g(x).
        hidden: the features between the matrices, which all h_j have, and then the width of each.
        lipschitz, activation, generator: as in `mlp_branch`; the slopes of phi are within [0, 1].
            Those of Tanh are 1 at 0, so that J can reach -I; flows with Softplus, whose slopes are
            1/2 there, learnt less.

    Raises:
        ValueError: K outside (0, 1), a size below 1, or an activation that `SLL` refuses.

    >>> g = sll_branch(2, (64, 32, 32), lipschitz=0.9)
    >>> g(torch.zeros(5, 2)).shape, g.lipschitz_certified() <= 0.9
    (torch.Size([5, 2]), True)
    """
    contractive(lipschitz, "A branch")
    generator, (features, *widths) = _or_fresh(generator), hidden
    c = math.sqrt(lipschitz)
    first = Linear(dim, features, c, generator=generator)
    middle = [SLL(features, width, 1.0, activation(), generator=generator) for width in widths]
    last = Linear(features, dim, c, generator=generator)
    return Branch(first, *middle, last, lipschitz=lipschitz)


def conv_branch(
    channels: int,
    grid: tuple[int, int],
    kernel_sizes: Sequence[int],
    hidden: Sequence[int],
    lipschitz: float,
    activation: Callable[[], Activation] = LipSwish,
    generator: torch.Generator | None = None,
    leading_activation: bool = False,
) -> Branch:
    """W_L * phi ... phi(W_1 * x), convolutions with zero padding on a grid: Lip(g) <= K.

    Args:
        channels: C; x is (B, C, H, W).
        grid: (H, W), on which the operators' norms are taken.
        kernel_sizes: one odd size for each convolution.
        hidden: channels between the convolutions, one fewer than these.
        lipschitz, activation, generator: as in `mlp_branch`.
        leading_activation: whether an activation comes before the first convolution too.

    Raises:
        ValueError: K outside (0, 1), kernels and channels that do not fit, or a size that a
            convolution refuses.

    Source: Chen et al. (2019), Residual Flows, whose image models take kernels 3-1-3.

    >>> g = conv_branch(3, (8, 8), (3, 1, 3), (16, 16), lipschitz=0.9)
    >>> g(torch.zeros(2, 3, 8, 8)).shape, g.lipschitz_certified() <= 0.9
    (torch.Size([2, 3, 8, 8]), True)
    """
    if len(kernel_sizes) != len(hidden) + 1:
        raise ValueError(
            "conv_branch needs one kernel size more than hidden channels; got "
            f"kernel_sizes={tuple(kernel_sizes)} and hidden={tuple(hidden)}."
        )
    generator = _or_fresh(generator)
    sizes = [channels, *hidden, channels]
    makers = [_conv(size, grid, generator) for size in kernel_sizes]
    return _alternating(makers, sizes, lipschitz, activation, leading_activation)


def dense_branch(
    dim: int,
    growth: int,
    depth: int,
    lipschitz: float,
    activation: Callable[[], Activation] = CLipSwish,
    generator: torch.Generator | None = None,
) -> Branch:
    """W h_depth(... h_1(x)) with dense layers h_j, each adding features: Lip(g) <= ||W||_2 <= K.

    Args:
        dim: d, the features of x and of g(x).
        growth: outputs of the linear map in each dense layer (an activation may double them).
        depth: number of dense layers.
        lipschitz, activation, generator: as in `mlp_branch`.

    Raises:
        ValueError: K outside (0, 1), or a size below 1.

    Source: Perugachi-Diaz, Tomczak and Bhulai (2021), Invertible DenseNets.

    >>> g = dense_branch(4, growth=8, depth=2, lipschitz=0.9)
    >>> [layer.n_in for layer in g.layers], g(torch.zeros(2, 4)).shape
    ([4, 20, 36], torch.Size([2, 4]))
    """
    make = partial(Linear, generator=_or_fresh(generator))
    return _densely_connected(make, make, (dim, growth, depth), lipschitz, activation)


def dense_conv_branch(
    channels: int,
    grid: tuple[int, int],
    growth: int,
    depth: int,
    lipschitz: float,
    kernel_size: int = 3,
    activation: Callable[[], Activation] = CLipSwish,
    generator: torch.Generator | None = None,
) -> Branch:
    """`dense_branch` on images: dense layers of convolutions, and a 1 x 1 convolution at the end.

    Args: those of `dense_branch` and `conv_branch`; `kernel_size` is of the dense layers.

    Raises:
        ValueError: K outside (0, 1), or a size that a convolution refuses.
    """
    generator = _or_fresh(generator)
    make, make_last = (_conv(size, grid, generator) for size in (kernel_size, 1))
    return _densely_connected(make, make_last, (channels, growth, depth), lipschitz, activation)


def _or_fresh(generator: torch.Generator | None) -> torch.Generator:
    return torch.Generator().manual_seed(0) if generator is None else generator


def _conv(kernel_size: int, grid: tuple[int, int], generator: torch.Generator) -> MakeLayer:
    return lambda n_in, n_out, coefficient: Conv2d(
        n_in, n_out, kernel_size, grid, coefficient, generator=generator
    )


def _alternating(
    makers: Sequence[MakeLayer],
    sizes: Sequence[int],
    lipschitz: float,
    activation: Callable[[], Activation],
    leading: bool = False,
) -> Branch:
    """layer phi layer ... phi layer, with a phi in front if `leading`."""
    contractive(lipschitz, "A branch")
    gaps = [activation() for _ in makers[0 if leading else 1 :]]
    for gap in gaps:
        check_activation(gap)
    steepness = math.prod([phi.lipschitz for phi in gaps])
    coefficient = (lipschitz / steepness) ** (1 / len(makers))
    before: list[Activation | None] = [*gaps] if leading else [None, *gaps]
    stages: list[Layer | Activation] = []
    for make, phi, (n_in, n_out) in zip(makers, before, pairwise(sizes), strict=True):
        if phi is not None:
            stages.append(phi)
        expansion = 1 if phi is None else phi.expansion
        stages.append(make(n_in * expansion, n_out, coefficient))
    return Branch(*stages, lipschitz=lipschitz)


def _densely_connected(
    make: MakeLayer,
    make_last: MakeLayer,
    sizes: tuple[int, int, int],
    lipschitz: float,
    activation: Callable[[], Activation],
) -> Branch:
    """Dense layers, then a layer that restores the number of features."""
    contractive(lipschitz, "A branch")
    n_features, growth, depth = sizes
    stages: list[Layer] = []
    width = n_features
    for _ in range(depth):
        phi = activation()
        check_activation(phi)
        stages.append(DenseLayer(make(width, growth, 1 / phi.lipschitz), phi))
        width = stages[-1].n_out
    return Branch(*stages, make_last(width, n_features, lipschitz), lipschitz=lipschitz)
