"""What is asked of an implementation of residual flows, and the verbs that it answers with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from resflow_bench.flows import ActNorm, Flatten, ResidualBlock
from resflow_bench.lab.suite import Skip
from resflow_bench.layers import Branch, Conv2d, Linear, LipSwish
from resflow_bench.layers.norms.spectral import SpectralNorm
from resflow_bench.logdet import Geometric, Roulette

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from resflow_bench.flows import ResidualFlow

MODES = ("roulette", "series", "memory-saving", "evaluation")
"""roulette: a training's estimate from a random number of terms; series: from a fixed one;
memory-saving: a training's estimate by the Neumann series, whose chain of products keeps no graph;
evaluation: what is asked for once the training is over."""

TRAINING = MODES[:3]
"""Those whose estimate has a gradient."""


@dataclass(frozen=True)
class Asked:
    """What is asked of an implementation.

    mode: one of `MODES`.
    n_terms: of the fixed series; the other modes do not read it.
    n_probes: by how many probes, or by what reads like them there, an estimate is averaged.
    """

    mode: str
    n_terms: int = 1
    n_probes: int = 1


@dataclass(frozen=True, eq=False)
class Peer:
    """One implementation of one flow in one mode. All hold copies of the same weights.

    version: of the package.
    map: z = f(x), (B, d) -> (B, d), without a draw.
    log_det: one draw of its estimate of ln|det df/dx|, (B,), nats; differentiable in `TRAINING`.
    log_prob: one draw of its estimate of log p(x), (B,), nats.
    inverse: x near f^-1(z), as it is asked for where samples are drawn, and a certified bound on
        each ||x - f^-1(z)||, (B,), None where none is given.
    tolerance: what `inverse` is asked for; None where nothing can be asked.
    branches: g of each block, from data to latent, whose parameters are in one order for all.
    weights: (W, c) of each linear layer of its own kind, evaluated afresh: the matrix that it
        multiplies with when it holds our weights, and the bound on ||W||_2 that it was asked for.
    bias: E[estimate] - ln|det(I + J)| of a block, from J (P, d, d) to (P,), as its formula has it;
        None where the estimate is not one of these J's.
    decay: lim P(N > k) / P(N >= k) of its number of terms; 0 where that is fixed.
    seeded: makes all of its draws inside the context follow from a seed.
    """

    version: str
    map: Callable[[Tensor], Tensor]
    log_det: Callable[[Tensor], Tensor]
    log_prob: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    tolerance: float | None
    branches: list[nn.Module]
    weights: Callable[[], list[tuple[Tensor, float]]]
    bias: Callable[[np.ndarray], np.ndarray] | None
    decay: float
    seeded: Callable[[int], AbstractContextManager[None]]

    @property
    def parameters(self) -> list[Tensor]:
        """Of all branches, from data to latent."""
        return [p for branch in self.branches for p in branch.parameters()]


def installed_version(package: str) -> str:
    """The package's version.

    Raises:
        Skip: it is not installed.
    """
    if find_spec(package) is None:
        raise Skip(f"{package} is not installed; .venv/bin/pip install -e '.[peers]' brings it")
    return f"{package} {version(package)}"


def check_convertible(flow: ResidualFlow, convolutions: bool = False) -> None:
    """Refuse a flow of anything but ActNorm and blocks of LipSwish and Linear with a spectral norm.

    Args:
        flow: ours.
        convolutions: whether Conv2d, and a Flatten at the end, are held as well.

    Raises:
        Skip: another layer.
    """
    held = (Linear, LipSwish, *((Conv2d,) if convolutions else ()))
    for layer in flow.bijections:
        if isinstance(layer, ActNorm) or (convolutions and isinstance(layer, Flatten)):
            continue
        stages = (
            list(layer.branch.stages)
            if isinstance(layer, ResidualBlock) and isinstance(layer.branch, Branch)
            else [layer]
        )
        for stage in stages:
            is_spectral = not isinstance(stage, Linear | Conv2d) or isinstance(
                stage.norm, SpectralNorm
            )
            if not isinstance(stage, held) or not is_spectral:
                raise Skip(
                    f"this peer holds flows of ActNorm, {', '.join(h.__name__ for h in held)}; "
                    f"got {type(stage).__name__}. Take model=trained or model=init"
                )


def linear_layers(flow: ResidualFlow) -> list[Linear]:
    """Those of all branches, from data to latent."""
    return [
        layer
        for block in flow.blocks
        if isinstance(block.branch, Branch)
        for layer in block.branch.layers
        if isinstance(layer, Linear)
    ]


def roulette_after(n_exact: int) -> Roulette:
    """The public law, geometric(0.5) and one N a batch, after `n_exact` terms of weight one."""
    return Roulette(Geometric(0.5), n_exact, per="batch")


@contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """Draws from torch's global generator on the CPU, seeded; it is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(torch.Generator().manual_seed(seed).get_state())
        yield
