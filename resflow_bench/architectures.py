"""The flows that suites measure: linear ones with a known Jacobian, untrained and trainable ones.

The linear families attain their promised constant: ||J||_2 = K exactly. Between them they hold the
worst case of every bound (-K I), its best case for Rademacher probes (K I, -K I), eigenvalues on a
circle (orthogonal), real ones (symmetric), a generic spectrum (gaussian) and no eigenvalue but 0
(triangular: nilpotent, so the log-det is exactly 0 at every truncation, and all else is noise).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import cycle

import torch
from torch import Tensor, nn

from resflow_bench.flows import (
    ActNorm,
    AffineCoupling,
    FactorOut,
    Flatten,
    InverseBlock,
    Logit,
    Mixing,
    MonotoneBlock,
    MultiScale,
    ResidualBlock,
    ResidualFlow,
    Squeeze,
    image_flow,
)
from resflow_bench.layers import (
    AOL,
    Branch,
    Linear,
    LinearBranch,
    SemiOrthogonal,
    dense_branch,
    mlp_branch,
    sll_branch,
)
from resflow_bench.spelling import suggestion
from resflow_bench.systems import SYSTEMS
from resflow_bench.systems.made import MIN_WIDTH, as_vectors, hidden_width

LINEAR_FAMILIES = (
    "minus-identity",
    "plus-identity",
    "orthogonal",
    "symmetric",
    "gaussian",
    "triangular",
)

MLP_BLOCKS = 8
DEEP_BLOCKS = 24
"""Each block stretches by at most 1 + K: sharp edges of a density need many."""
WIDTH = 1024
GLOW_STEPS = 4
"""Steps of Glow at each scale of an image; vectors have twice as many on their one scale."""

STEEP = 1.5
"""The z at which LipSwish has about its largest slope."""


def family_matrix(name: str, dim: int, lipschitz: float, seed: int = 0) -> Tensor:
    """A, (d, d), float64, with ||A||_2 = lipschitz, of one of `LINEAR_FAMILIES`.

    Args:
        name: minus-identity -K I; plus-identity K I; orthogonal K Q; symmetric K Q diag(t) Q^T
            with t uniform on [-1, 1] and scaled to max |t| = 1; gaussian, independent normal
            entries, scaled; triangular, the same strictly above the diagonal, scaled.
        dim: d; at least 2 for the triangular family, which is zero at d = 1.
        lipschitz: K.
        seed: seeds the random families.

    Raises:
        ValueError: `name` is not one of them, or it is the triangular one with d = 1.

    >>> family_matrix("plus-identity", 2, 0.5).tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    if name not in LINEAR_FAMILIES:
        raise ValueError(f"A linear family is one of {', '.join(LINEAR_FAMILIES)}; got {name!r}.")
    if name == "triangular" and dim < 2:
        raise ValueError(f"The triangular family needs dim of at least 2; got {dim}.")
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(dim, dim, dtype=torch.float64, generator=generator)
    identity = torch.eye(dim, dtype=torch.float64)
    if name in ("minus-identity", "plus-identity"):
        matrix = identity if name == "plus-identity" else -identity
    elif name == "orthogonal":
        matrix = _orthogonal(normal)
    elif name == "symmetric":
        eigenvalues = 2 * torch.rand(dim, dtype=torch.float64, generator=generator) - 1
        basis = _orthogonal(normal)
        matrix = (basis * eigenvalues) @ basis.T
        matrix = 0.5 * (matrix + matrix.T)
    elif name == "gaussian":
        matrix = normal
    else:
        matrix = normal.triu(diagonal=1)
    return lipschitz * matrix / torch.linalg.matrix_norm(matrix, 2)


def linear_flow(name: str, dim: int, lipschitz: float) -> ResidualFlow:
    """One residual block with g(x) = x A^T, A from `family_matrix`; float64."""
    branch = LinearBranch(family_matrix(name, dim, lipschitz), lipschitz)
    return ResidualFlow([ResidualBlock(branch)], dim).double()


def mlp_flow(dim: int, lipschitz: float, seed: int = 0) -> ResidualFlow:
    """Eight blocks of two hidden layers of 2d LipSwish units, untrained; float32.

    At d = 64 this is the architecture of the trained flow.
    """
    generator = torch.Generator().manual_seed(seed)
    return ResidualFlow.mlp(dim, (2 * dim, 2 * dim), MLP_BLOCKS, lipschitz, generator=generator)


BlockMaker = Callable[[Branch], nn.Module]
"""A branch -> the block that it makes."""

RESIDUAL_BLOCKS: tuple[BlockMaker, ...] = (ResidualBlock,)
MONOTONE_BLOCKS: tuple[BlockMaker, ...] = (MonotoneBlock,)
IMPLICIT_BLOCKS: tuple[BlockMaker, ...] = (ResidualBlock, lambda g: InverseBlock(ResidualBlock(g)))
"""Kinds of blocks that a flow has in turn."""


def steep_flow(
    dim: int, lipschitz: float, seed: int = 0, blocks: tuple[BlockMaker, ...] = RESIDUAL_BLOCKS
) -> ResidualFlow:
    """Eight blocks of one hidden layer of 2d LipSwish units, untrained and steep; float32.

    Every singular value of every layer is at its limit, and the biases shift the activations to
    their steepest point: the norms and spectral radii of a trained flow, at every d.
    """
    generator = torch.Generator().manual_seed(seed)
    make_branch = partial(mlp_branch, hidden=(2 * dim,), lipschitz=lipschitz)
    flow = ResidualFlow(_in_turn(dim, make_branch, MLP_BLOCKS, blocks, generator), dim)
    with torch.no_grad():
        for layer in (m for m in flow.modules() if isinstance(m, Linear)):
            left, _, right = torch.linalg.svd(layer.weight, full_matrices=False)
            layer.weight.copy_(2.0 * left @ right)  # above the coefficient of any layer
            if layer.bias is not None:
                layer.bias.add_(STEEP)
    flow.align()
    return flow


Event = tuple[int, ...]
Architecture = Callable[[Event, float], ResidualFlow]
"""(shape of one example, promised constant) -> a flow before training, the same at every call."""


def mlp_architecture(event: Event, lipschitz: float) -> ResidualFlow:
    """Eight blocks of two hidden layers of max(2d, 64) LipSwish units."""
    return _mlp_blocks(event, lipschitz, n_hidden=2)


def shallow_architecture(event: Event, lipschitz: float) -> ResidualFlow:
    """Eight blocks of one hidden layer of max(2d, 64) LipSwish units: two exact leading traces."""
    return _mlp_blocks(event, lipschitz, n_hidden=1)


def wide_architecture(event: Event, lipschitz: float) -> ResidualFlow:
    """Four blocks of one hidden layer of `WIDTH` units, at any d: `shallow` for images."""
    make_branch = partial(mlp_branch, hidden=(WIDTH,), lipschitz=lipschitz)
    return _fully_connected(event, make_branch, n_blocks=4)


def deep_architecture(event: Event, lipschitz: float) -> ResidualFlow:
    """Twenty-four blocks of two hidden layers of max(2d, 64) LipSwish units."""
    return _mlp_blocks(event, lipschitz, n_hidden=2, n_blocks=DEEP_BLOCKS)


def dense_architecture(event: Event, lipschitz: float) -> ResidualFlow:
    """Eight blocks of three dense layers, each adding max(d, 32) CLipSwish units."""
    growth = max(math.prod(event) // 2, 16)
    make_branch = partial(dense_branch, growth=growth, depth=3, lipschitz=lipschitz)
    return _fully_connected(event, make_branch)


def conv_architecture(event: Event, lipschitz: float) -> ResidualFlow:
    """Four blocks of convolutions 3-1-3 with 16 channels between, on one scale.

    Raises:
        ValueError: the event is no image.
    """
    _require_images(event, "conv")
    return image_flow(event, MultiScale(1, 4, (16, 16), n_tail=0, lipschitz=lipschitz))


def multiscale_architecture(event: Event, lipschitz: float) -> ResidualFlow:
    """Two blocks 3-1-3 of 16 channels a scale, two scales (three from 16 x 16 on), two MLP blocks.

    Raises:
        ValueError: the event is no image.
    """
    _require_images(event, "multiscale")
    n_scales = 3 if min(event[-2:]) >= 16 else 2
    scales = MultiScale(n_scales, 2, (16, 16), n_tail=2, lipschitz=lipschitz, mixing=True)
    return image_flow(event, scales)


def glow_architecture(event: Event, lipschitz: float) -> ResidualFlow:  # noqa: ARG001
    """Glow: steps of ActNorm, Mixing and an affine coupling; no residual block, no estimate.

    Images go through the logit; each of two scales (three from 16 x 16 on) is Squeeze and four
    steps with convolutions 3-1-3 of 64 channels, and half of its channels become latents. Vectors
    have eight steps with two hidden layers of max(2d, 64) units.

    Args:
        lipschitz: ignored, as nothing here is a contraction.

    Raises:
        ValueError: the event is one number, or an image with sides that cannot be halved so often.

    Source: Kingma and Dhariwal (2018), "Glow", whose scale is a sigmoid and not bounded below.
    """
    generator = torch.Generator().manual_seed(0)
    if len(event) != 3:
        dim = math.prod(event)
        flat = [Flatten(event)] if len(event) > 1 else []
        steps = _glow_steps(dim, 2 * GLOW_STEPS, hidden_width(dim), 1, generator)
        return ResidualFlow([*flat, *steps], event)
    n_scales = 3 if min(event[1:]) >= 16 else 2
    if any(size % 2**n_scales for size in event[1:]):
        raise ValueError(
            "The architecture glow needs images with H and W that are multiples of "
            f"{2**n_scales}; got {event}. Pad the images, or take conv."
        )
    return ResidualFlow([Logit(), *_glow_scales(event, n_scales, generator)], event)


def monotone_architecture(event: Event, lipschitz: float) -> ResidualFlow:
    """Eight monotone blocks of two hidden layers of max(2d, 64) LipSwish units."""
    return _mlp_blocks(event, lipschitz, n_hidden=2, blocks=MONOTONE_BLOCKS)


def implicit_architecture(event: Event, lipschitz: float) -> ResidualFlow:
    """Four implicit blocks: eight branches of two hidden layers of max(2d, 64) LipSwish units, a
    residual block and the inverse of another in turn.
    """
    return _mlp_blocks(event, lipschitz, n_hidden=2, blocks=IMPLICIT_BLOCKS)


def mlp_orthogonal_architecture(event: Event, lipschitz: float) -> ResidualFlow:
    """`mlp_architecture` with orthogonal matrices in place of a spectral norm."""
    return _with_layers(event, partial(mlp_branch, norm=SemiOrthogonal(), lipschitz=lipschitz))


def mlp_aol_architecture(event: Event, lipschitz: float) -> ResidualFlow:
    """`mlp_architecture` with almost-orthogonal matrices in place of a spectral norm."""
    return _with_layers(event, partial(mlp_branch, norm=AOL(), lipschitz=lipschitz))


def mlp_sll_architecture(event: Event, lipschitz: float) -> ResidualFlow:
    """`mlp_architecture` with an SLL layer of Tanh in place of its activations and the matrix
    between them, of as many parameters.
    """
    return _with_layers(event, partial(sll_branch, lipschitz=lipschitz))


ARCHITECTURES: dict[str, Architecture] = {
    "mlp": mlp_architecture,
    "shallow": shallow_architecture,
    "wide": wide_architecture,
    "deep": deep_architecture,
    "dense": dense_architecture,
    "conv": conv_architecture,
    "multiscale": multiscale_architecture,
    "glow": glow_architecture,
    "monotone": monotone_architecture,
    "implicit": implicit_architecture,
    "mlp-orthogonal": mlp_orthogonal_architecture,
    "mlp-aol": mlp_aol_architecture,
    "mlp-sll": mlp_sll_architecture,
    **SYSTEMS,
}
"""The trainable architectures, by name: residual flows, and the other systems."""


def architecture_named(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        ValueError: `name` is not one of them.
    """
    if name not in ARCHITECTURES:
        near = suggestion(name, ARCHITECTURES)
        names = ", ".join(ARCHITECTURES)
        raise ValueError(f"An architecture is one of {names}; got {name!r}.{near}")
    return ARCHITECTURES[name]


def _require_images(event: Event, name: str) -> None:
    if len(event) != 3:
        raise ValueError(
            f"The architecture {name} is for images (C, H, W); got examples of shape {event}. "
            "Take mlp, shallow or dense."
        )


def _glow_steps(
    n_channels: int, n_steps: int, width: int, kernel_size: int, generator: torch.Generator
) -> list[nn.Module]:
    steps: list[nn.Module] = []
    for _ in range(n_steps):
        coupling = AffineCoupling(n_channels, width, kernel_size, generator=generator)
        steps += [ActNorm(n_channels), Mixing(n_channels, generator), coupling]
    return steps


def _glow_scales(event: Event, n_scales: int, generator: torch.Generator) -> list[nn.Module]:
    """The layers from an image of shape `event` to its latents."""
    channels, height, width = 4 * event[0], event[1] // 2, event[2] // 2
    layers = [Squeeze(), *_glow_steps(channels, GLOW_STEPS, MIN_WIDTH, 3, generator)]
    if n_scales == 1:
        return [*layers, Flatten((channels, height, width))]
    inner = _glow_scales((channels // 2, height, width), n_scales - 1, generator)
    return [*layers, FactorOut(*inner, event=(channels, height, width))]


def _mlp_blocks(
    event: Event,
    lipschitz: float,
    n_hidden: int,
    n_blocks: int = MLP_BLOCKS,
    blocks: tuple[BlockMaker, ...] = RESIDUAL_BLOCKS,
) -> ResidualFlow:
    hidden = (hidden_width(math.prod(event)),) * n_hidden
    make_branch = partial(mlp_branch, hidden=hidden, lipschitz=lipschitz)
    return _fully_connected(event, make_branch, n_blocks, blocks)


def _with_layers(event: Event, make_branch: Callable[..., Branch]) -> ResidualFlow:
    """Eight blocks of two hidden layers of max(2d, 64) features."""
    hidden = (hidden_width(math.prod(event)),) * 2
    return _fully_connected(event, partial(make_branch, hidden=hidden))


def _fully_connected(
    event: Event,
    make_branch: Callable[..., Branch],
    n_blocks: int = MLP_BLOCKS,
    blocks: tuple[BlockMaker, ...] = RESIDUAL_BLOCKS,
) -> ResidualFlow:
    """Pairs of ActNorm and a block; images go through the logit and are flattened first."""
    generator = torch.Generator().manual_seed(0)
    layers = _in_turn(math.prod(event), make_branch, n_blocks, blocks, generator)
    return ResidualFlow([*as_vectors(event), *layers], event)


def _in_turn(
    dim: int,
    make_branch: Callable[..., Branch],
    n_blocks: int,
    blocks: tuple[BlockMaker, ...],
    generator: torch.Generator,
) -> list[nn.Module]:
    """`n_blocks` pairs of ActNorm and a block, of the given kinds in turn."""
    layers: list[nn.Module] = []
    for block, _ in zip(cycle(blocks), range(n_blocks), strict=False):
        layers += [ActNorm(dim), block(make_branch(dim, generator=generator))]
    return layers


def _orthogonal(normal: Tensor) -> Tensor:
    """Haar-distributed Q from the QR decomposition, its signs fixed."""
    q, r = torch.linalg.qr(normal)
    return q * torch.sign(r.diagonal())
