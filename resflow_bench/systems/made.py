"""The other systems as architectures, each with about the parameters of the residual `mlp`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from torch import nn

from resflow_bench.flows import ActNorm, Flatten, Logit, ResidualFlow
from resflow_bench.systems.adaptive import AdaptivePath
from resflow_bench.systems.continuous import EXACT_TRACE, Continuous
from resflow_bench.systems.discrete import Discrete

MIN_WIDTH = 64
"""The smallest hidden layer: a density in the plane needs more than 2d = 4 units."""

MOST_TRANSFORMS = 8
"""As many as the residual flow has blocks."""


def n_parameters(flow: nn.Module) -> int:
    """The numbers that a training changes, those of a regression's fixed ActNorm included."""
    return sum(parameter.numel() for parameter in flow.parameters())


def exactness(flow: ResidualFlow) -> str:
    """Words for how a flow's `log_prob` comes about: exactly, by an estimate, by an integral."""
    said = ["log-det by a series of traces, estimated unless with Determinant"]
    said = said if flow.blocks else []
    for part in flow.modules():
        if isinstance(part, Continuous):
            trace = "exact" if part.trace == EXACT_TRACE else "estimated unless with Determinant"
            said.append(f"trace {trace}, integrated in {part.n_steps} steps of {part.method}")
        if isinstance(part, AdaptivePath):
            said.append(f"trace estimated unless with Determinant, by zuko to {part.tolerance:g}")
    return "; ".join(said) or "log-det exact, in closed form"


def residual_parameters(dim: int) -> int:
    """About the number of the eight blocks of `mlp`: 8 (2 d w + w^2) with w = max(2d, 64)."""
    width = hidden_width(dim)
    return 8 * (2 * dim * width + width**2)


def discrete(kind: str, event: tuple[int, ...], lipschitz: float) -> ResidualFlow:  # noqa: ARG001
    """ActNorm and zuko's transforms, at most 8, for as many parameters as the residual flow has."""
    dim = math.prod(event)
    hidden = (hidden_width(dim),) * 2
    share = residual_parameters(dim) / n_parameters(Discrete(kind, dim, 1, hidden))
    n_transforms = min(max(1, round(share)), MOST_TRANSFORMS)
    return _on_vectors(event, Discrete(kind, dim, n_transforms, hidden))


def continuous(
    event: tuple[int, ...],
    lipschitz: float,  # noqa: ARG001
    trace: str = "estimated",
    objective: str = "likelihood",
    transport: bool = False,
) -> ResidualFlow:
    """ActNorm and a field of three hidden layers, of the width w for which 2 w^2 + 2 d w is the
    residual flow's number of parameters.
    """
    dim = math.prod(event)
    half = dim / 2
    width = round(math.sqrt(half**2 + residual_parameters(dim) / 2) - half)
    field = Continuous(dim, (width,) * 3, trace=trace, objective=objective, transport=transport)
    return _on_vectors(event, field)


def certified(event: tuple[int, ...], lipschitz: float) -> ResidualFlow:
    """Flow matching by a field whose 16 Euler steps each have the promised constant: L = 16 K.

    At K = 0.9 that is 14.4. Plain flow matching reaches norms of 5.85 on the eight Gaussians; with
    twice the L no more was learnt, and with half of it twice as much was left to learn.

    Its one hidden layer has the width w for which the layers' 3 d w numbers and the shifts' 65 w
    are as many as the residual flow's parameters.
    """
    dim, n_steps = math.prod(event), 16
    width = round(residual_parameters(dim) / (3 * dim + 65))
    constant = n_steps * lipschitz
    path = Continuous(dim, (width,), n_steps, objective="straight", lipschitz=constant)
    return _on_vectors(event, path)


SYSTEMS: Mapping[str, Callable[[tuple[int, ...], float], ResidualFlow]] = MappingProxyType(
    {
        **{kind: partial(discrete, kind) for kind in ("nice", "realnvp", "maf", "nsf")},
        "neural-ode": partial(continuous, trace="exact"),
        "ffjord": continuous,
        "flow-matching": partial(continuous, objective="straight"),
        "ot-flow-matching": partial(continuous, objective="straight", transport=True),
        "certified-flow-matching": certified,
        "diffusion": partial(continuous, objective="variance-preserving"),
    }
)
"""Name -> (shape of one example, a Lipschitz constant, which most do not need) -> a flow."""


def as_vectors(event: tuple[int, ...]) -> list[nn.Module]:
    """The layers that bring examples to vectors: none, or a logit and Flatten for images."""
    return [Logit(), Flatten(event)] if len(event) > 1 else []


def hidden_width(dim: int) -> int:
    """Units of a hidden layer for data of d dimensions."""
    return max(2 * dim, MIN_WIDTH)


def _on_vectors(event: tuple[int, ...], bijection: nn.Module) -> ResidualFlow:
    """ActNorm, which standardises the data, and the bijection; images become vectors first."""
    return ResidualFlow([*as_vectors(event), ActNorm(math.prod(event)), bijection], event)
