"""Flows on images: scales of convolutional blocks, a fully connected tail, and a contact sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resflow_bench.arguments import check_count
from resflow_bench.flows.bases import BaseDensity
from resflow_bench.flows.composition import FactorOut, mlp_layers
from resflow_bench.flows.flow import DEFAULT_ESTIMATOR, ResidualFlow
from resflow_bench.flows.forms import ActNorm, Flatten, Logit, Mixing, Squeeze
from resflow_bench.flows.residual import ResidualBlock
from resflow_bench.layers import Activation, LipSwish, conditional, conv_branch
from resflow_bench.logdet.estimator import Estimator


@dataclass(frozen=True)
class MultiScale:
    """The architecture of an image flow.

    n_scales: number of grids, each half as fine as the one before, at half of its latents.
    n_blocks: convolutional residual blocks at each scale.
    hidden: channels between the convolutions of a branch.
    kernel_sizes: of its convolutions, one more than `hidden`.
    n_tail: fully connected residual blocks on the flattened last scale.
    tail_hidden: widths between the linear maps of their branches.
    lipschitz: the constant promised for every branch, in (0, 1).
    activation: makes one phi.
    leading_activation: whether one comes before the first convolution of each block but the first.
    mixing: whether channels are mixed before each convolutional block.
    margin: of the logit transform that comes first; None leaves it out, for data on R^d.
    context: the size of c, for a conditional flow; c is a vector, also for images.

    Raises:
        ValueError: a count below its minimum, or kernels that do not fit `hidden`.
    """

    n_scales: int = 2
    n_blocks: int = 4
    hidden: tuple[int, ...] = (64, 64)
    kernel_sizes: tuple[int, ...] = (3, 1, 3)
    n_tail: int = 2
    tail_hidden: tuple[int, ...] = (128, 128)
    lipschitz: float = 0.9
    activation: Callable[[], Activation] = LipSwish
    leading_activation: bool = False
    mixing: bool = False
    margin: float | None = 0.05
    context: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("n_scales", 1), ("n_blocks", 1), ("n_tail", 0)):
            check_count("MultiScale", name, getattr(self, name), least)
        if len(self.kernel_sizes) != len(self.hidden) + 1:
            raise ValueError(
                "MultiScale needs one kernel size more than hidden channels; got "
                f"kernel_sizes={self.kernel_sizes} and hidden={self.hidden}."
            )


def image_flow(
    event: Sequence[int],
    architecture: MultiScale = MultiScale(),
    estimator: Estimator = DEFAULT_ESTIMATOR,
    generator: torch.Generator | None = None,
    base: BaseDensity | None = None,
) -> ResidualFlow:
    """Logit, then scale by scale: blocks, Squeeze, FactorOut(the next scale ... tail).

    Each scale is `n_blocks` times ActNorm, Mixing if requested, and a residual block; the last
    scale is flattened and followed by `n_tail` times ActNorm and a fully connected block.

    Args:
        event: (C, H, W) of the images; H and W have to be multiples of 2^(n_scales - 1).
        generator: draws the initial weights; None is a fresh one with seed 0. The flow is made on
            its device.
        base: the density of the latents, by default the standard normal.

    Raises:
        ValueError: an event that is not (C, H, W), or sizes that cannot be halved so often.

    >>> flow = image_flow((1, 8, 8), MultiScale(n_blocks=1, hidden=(4, 4), tail_hidden=(8,)))
    >>> flow.sample(2, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 1, 8, 8])
    """
    coarsest = 2 ** (architecture.n_scales - 1)
    if len(event) != 3 or any(size % coarsest for size in event[1:]):
        raise ValueError(
            "image_flow needs an event (C, H, W) with H and W multiples of 2^(n_scales - 1) = "
            f"{coarsest}; got {tuple(event)}. Lower `n_scales` or pad the images."
        )
    generator = generator or torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    if architecture.margin is not None:
        layers.append(Logit(architecture.margin))
    layers += _scale(tuple(event), 0, architecture, generator)
    return ResidualFlow(layers, event, estimator, base).to(generator.device)


def sample_grid(
    flow: ResidualFlow, n_rows: int, n_columns: int, generator: torch.Generator | None = None
) -> Tensor:
    """n_rows x n_columns samples side by side: (C, n_rows H, n_columns W), clipped to [0, 1].

    Raises:
        ValueError: the flow is not one of images (C, H, W).
        ArithmeticError: an inverse failed.
    """
    if len(flow.event) != 3:
        raise ValueError(f"sample_grid needs a flow of images (C, H, W); got event {flow.event}.")
    return tiled(flow.sample(n_rows * n_columns, generator).clamp(0, 1), n_columns)


def tiled(images: Tensor, n_columns: int) -> Tensor:
    """(n_rows n_columns, C, H, W), row by row -> (C, n_rows H, n_columns W)."""
    grid = images.unflatten(0, (-1, n_columns)).permute(2, 0, 3, 1, 4)  # (C, rows, H, columns, W)
    return grid.flatten(3, 4).flatten(1, 2)


def _scale(
    event: tuple[int, ...], scale: int, architecture: MultiScale, generator: torch.Generator
) -> list[nn.Module]:
    """The layers from the scale's input, of shape `event`, to the latents; 0 is the finest."""
    channels, height, width = event
    layers: list[nn.Module] = []
    for index in range(architecture.n_blocks):
        layers.append(ActNorm(channels))
        if architecture.mixing:
            layers.append(Mixing(channels, generator))
        branch = conv_branch(
            channels,
            (height, width),
            architecture.kernel_sizes,
            architecture.hidden,
            architecture.lipschitz,
            architecture.activation,
            generator,
            leading_activation=architecture.leading_activation and (scale, index) != (0, 0),
        )
        if architecture.context is not None:
            branch = conditional(branch, architecture.context, generator=generator)
        layers.append(ResidualBlock(branch))
    if scale == architecture.n_scales - 1:
        tail = mlp_layers(
            math.prod(event),
            architecture.tail_hidden,
            architecture.n_tail,
            architecture.lipschitz,
            architecture.activation,
            generator,
            architecture.context,
        )
        return [*layers, Flatten(event), *tail]
    squeezed = (4 * channels, height // 2, width // 2)
    rest = (2 * channels, height // 2, width // 2)
    inner = _scale(rest, scale + 1, architecture, generator)
    return [*layers, Squeeze(), FactorOut(*inner, event=squeezed)]
