"""An implementation of residual flows behind one interface, and the request that it is made for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np
from torch import Tensor, nn

from resflow_bench.flows import ActNorm, Flatten, ResidualBlock, ResidualFlow, StandardNormal
from resflow_bench.lab import Skip
from resflow_bench.layers import Branch, Conv2d, Linear, LipSwish
from resflow_bench.layers.norms.spectral import SpectralNorm
from resflow_bench.logdet import Fixed, Geometric, Roulette

MODES = ("roulette", "series", "memory-saving", "evaluation")
"""Which log-determinant estimate is requested: one of the three for training, or the one after it.

roulette: with a random number of terms.
series: with a fixed number of terms.
memory-saving: its gradient is the Neumann series, so that the chain of products keeps no graph.
evaluation: the one used after training.
"""

TRAINING = MODES[:3]
"""The modes whose estimate is differentiable."""


@dataclass(frozen=True)
class Request:
    """The estimate requested of an implementation.

    mode: one of `MODES`.
    n_terms: number of terms of the series, which one in `memory-saving` may have too: so many
        powers of J, from J^0 on, in the gradient. Where it is None the number is random.
    n_probes: number of probes over which an estimate is averaged; where an implementation has none,
        its setting that comes closest.
    """

    mode: str
    n_terms: int | None = None
    n_probes: int = 1

    @property
    def fixed(self) -> Fixed | None:
        """The series of `n_terms` terms; None where the number is random, or none was given."""
        has_series = self.mode in ("series", "memory-saving")
        return Fixed(self.n_terms) if has_series and self.n_terms is not None else None

    def __post_init__(self) -> None:
        if self.mode == "series" and self.n_terms is None:
            raise ValueError("a series needs its number of terms; pass n_terms, such as 5.")


@dataclass(frozen=True, eq=False)
class Peer:
    """One implementation of one flow in one mode. All peers of a flow hold copies of its weights.

    version: name and version of the package.
    map: z = f(x), (B, d) -> (B, d); involves no random draw.
    log_det: one draw of the estimate of ln|det df/dx|, (B,), nats; differentiable in `TRAINING`.
    log_prob: one draw of the estimate of log p(x), (B,), nats.
    inverse: x near f^-1(z), by the iteration with which the implementation draws samples, without
        the log-det that some compute beside it; and a certified bound on each ||x - f^-1(z)||,
        (B,), or None if the implementation gives none.
    tolerance: tolerance that `inverse` requests; None if the implementation accepts none.
    branches: g of each block, from data to latent; the order of their parameters is the same in
        all peers.
    weights: (W, c) of each of the implementation's own fully connected layers, evaluated afresh:
        the matrix used in the product when the layer holds our weights, and the requested bound on
        ||W||_2.
    bias: E[estimate] - ln|det(I + J)| of a block, from J (P, d, d) to (P,), by the formula of the
        implementation; None if the estimate does not depend on these J alone.
    truncation: law of the number of terms; says which moments of the estimate are finite.
    update: makes the layers keep their norms after an optimiser step; None if every forward pass
        does.
    seeded: context in which all draws are determined by a seed.
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
    truncation: Fixed | Roulette
    update: Callable[[], object] | None
    seeded: Callable[[int], AbstractContextManager[None]]

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters of all branches, from data to latent."""
        return [p for branch in self.branches for p in branch.parameters()]


def installed_version(package: str) -> str:
    """Name and version of a package.

    Raises:
        Skip: the package is not installed.
    """
    if find_spec(package) is None:
        raise Skip(f"{package} is not installed; .venv/bin/pip install -e '.[peers]' brings it")
    return f"{package} {version(package)}"


def check_convertible(flow: ResidualFlow, convolutions: bool = False) -> None:
    """Refuse a flow of anything but ActNorm and blocks of LipSwish and Linear with a spectral norm.

    Args:
        convolutions: whether Conv2d, and a Flatten at the end, are accepted as well.

    Raises:
        Skip: the flow has another layer, a context, or a base density that is not standard normal.
    """
    if flow.n_context is not None or not isinstance(flow.base, StandardNormal):
        raise Skip(
            "this peer holds flows without a context, of a standard normal base density; got "
            f"n_context={flow.n_context} and {type(flow.base).__name__}. Take another model"
        )
    held = (Linear, LipSwish, *((Conv2d,) if convolutions else ()))
    for layer in flow.bijections:
        if isinstance(layer, ActNorm) or (convolutions and isinstance(layer, Flatten)):
            continue
        branch = layer.branch if isinstance(layer, ResidualBlock) else None
        for stage in branch.stages if isinstance(branch, Branch) else [layer]:
            norm = stage.norm if isinstance(stage, Linear | Conv2d) else None
            if not isinstance(stage, held) or not isinstance(norm, SpectralNorm | None):
                raise Skip(
                    f"this peer holds flows of ActNorm, {', '.join(h.__name__ for h in held)}; "
                    f"got {type(stage).__name__}. Take model=trained or model=init"
                )


def linear_layers(flow: ResidualFlow) -> list[Linear]:
    """The linear layers of all branches, from data to latent."""
    return [layer for layer in flow.modules() if isinstance(layer, Linear)]


def roulette_after(n_exact: int) -> Roulette:
    """The law of the public code: `n_exact` terms of weight one, then geometric(0.5), per batch."""
    return Roulette(Geometric(0.5), n_exact, per="batch")
