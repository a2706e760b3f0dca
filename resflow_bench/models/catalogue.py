"""The values of the axis `model`: flows by name, and the points they are measured at."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from resflow_bench.architectures import (
    IMPLICIT_BLOCKS,
    LINEAR_FAMILIES,
    MONOTONE_BLOCKS,
    linear_flow,
    mlp_flow,
    steep_flow,
)
from resflow_bench.data import Reading
from resflow_bench.flows import ResidualFlow
from resflow_bench.lab import Skip
from resflow_bench.models.published import published
from resflow_bench.systems import SYSTEMS, residual_flow
from resflow_bench.training.recipe import Recipe, dataset, unbiased_objective
from resflow_bench.training.trainer import Training
from resflow_bench.training.weights import trained

Say = Callable[[str], None]


class Model(Protocol):
    """A flow for each dim and promised constant, and the inputs that it is measured at."""

    @property
    def name(self) -> str:
        """The value of the axis."""

    @property
    def n_distinct_points(self) -> int | None:
        """The number of points with different Jacobians; None if all differ."""

    def flow(self, dim: int, lipschitz: float, results: Path, say: Say) -> ResidualFlow:
        """The flow, on the CPU. Trained weights are cached under `results`, and made if missing.

        Raises:
            Skip: where the model does not exist at this dim.
        """

    def points(self, n: int, dim: int) -> Tensor:
        """n inputs, (n, *event)."""


@dataclass(frozen=True)
class LinearMap:
    """One block with g(x) = x A^T of one of the linear families; the same J everywhere."""

    name: str
    n_distinct_points = 1

    def flow(self, dim: int, lipschitz: float, results: Path, say: Say) -> ResidualFlow:
        if self.name == "triangular" and dim == 1:
            raise Skip("the triangular family is zero at dim=1; take dim=2 or more")
        return linear_flow(self.name, dim, lipschitz)

    def points(self, n: int, dim: int) -> Tensor:
        return normal_points(n, dim)


@dataclass(frozen=True)
class Untrained:
    """Eight untrained blocks at standard normal points, which exist at every d."""

    name: str
    make: Callable[[int, float], ResidualFlow]
    n_distinct_points = None

    def flow(self, dim: int, lipschitz: float, results: Path, say: Say) -> ResidualFlow:
        flow = self.make(dim, lipschitz)
        flow.initialise(normal_points(256, dim))
        return flow

    def points(self, n: int, dim: int) -> Tensor:
        return normal_points(n, dim)


@dataclass(frozen=True)
class Trained:
    """A flow after maximum likelihood, at held-out examples.

    published: the promised constants whose weights come with the package; others are trained.
    n_traced: exact leading traces in the objective, as many as the branches admit or fewer.
    """

    name: str
    architecture: str
    dataset: str
    training: Training
    published: tuple[float, ...] = ()
    n_traced: int = 0
    n_distinct_points = None

    def flow(self, dim: int, lipschitz: float, results: Path, say: Say) -> ResidualFlow:
        if dim != (needed := math.prod(dataset(self.dataset).event)):
            raise Skip(f"the {self.name} flow has data of dim={needed}; got dim={dim}")
        return published(self.name, lipschitz) or self.train(lipschitz, results, say)

    def train(self, lipschitz: float, results: Path, say: Say) -> ResidualFlow:
        """The flow of a training, which is cached under `results`."""
        return trained(self.recipe(lipschitz), results, say)

    def recipe(self, lipschitz: float) -> Recipe:
        """The recipe of the flow's weights."""
        event = dataset(self.dataset).event
        objective = unbiased_objective(lipschitz, event, "batch", self.n_traced)
        return Recipe(self.architecture, self.dataset, lipschitz, self.training, objective)

    def points(self, n: int, dim: int) -> Tensor:
        return held_out(self.dataset, n)


@dataclass(frozen=True)
class Stepped:
    """The Euler steps of a trained continuous flow as residual blocks, without a promise.

    One term of the series of I - h du/dx is -h tr(du/dx): with `n_terms=1` the suites `bias` and
    `variance` measure FFJORD's trace estimator along the path.
    """

    name: str
    continuous: Trained
    n_steps: int
    n_distinct_points = None

    def flow(self, dim: int, lipschitz: float, results: Path, say: Say) -> ResidualFlow:
        return residual_flow(self.continuous.flow(dim, lipschitz, results, say), self.n_steps)

    def points(self, n: int, dim: int) -> Tensor:
        return self.continuous.points(n, dim)


FEW_IMAGES = Training(600, learning_rate=2e-3)
"""An MLP of 270,000 parameters begins to learn 1,437 images by heart soon after so many steps."""

IMAGES = Training(3000, batch_size=64, learning_rate=5e-3)
SYSTEM = Training(2000, learning_rate=5e-3)
LAYERS = replace(SYSTEM, n_steps=1000)
PLANE = Training(5000, batch_size=512, learning_rate=4e-3, warm_up=100)

LAYERED = ("mlp-orthogonal", "mlp-aol", "mlp-sll")
"""Flows of other Lipschitz layers, by the names of their architectures."""

OTHERS = ("monotone", "implicit", "glow", *SYSTEMS)
"""Flows of other bijections, by the names of their architectures."""

_MODELS: tuple[Model, ...] = (
    *map(LinearMap, LINEAR_FAMILIES),
    Untrained("init", mlp_flow),
    Untrained("steep", steep_flow),
    Untrained("monotone-steep", partial(steep_flow, blocks=MONOTONE_BLOCKS)),
    Untrained("implicit-steep", partial(steep_flow, blocks=IMPLICIT_BLOCKS)),
    Trained("trained", "mlp", "digits-logit", FEW_IMAGES, (0.7, 0.9, 0.97)),
    Trained("shallow", "shallow", "digits-logit", replace(FEW_IMAGES, n_steps=400), (0.9,), 2),
    Trained("conv", "conv", "digits", IMAGES, (0.9,)),
    Trained("multiscale", "multiscale", "digits", IMAGES, (0.9,)),
    Trained("patches", "conv", "patches", replace(IMAGES, n_steps=1500), (0.9,), 1),
    Trained("patches-wide", "wide", "patches", replace(IMAGES, n_steps=1500), n_traced=2),
    Trained("checkerboard", "deep", "checkerboard", PLANE, (0.9,)),
    *(Trained(name, name, "eight-gaussians", SYSTEM) for name in OTHERS),
    *(Trained(name, name, "eight-gaussians", LAYERS, (0.9,)) for name in LAYERED),
    *(
        Stepped(f"{name}-{n}-steps", Trained(name, name, "eight-gaussians", SYSTEM), n)
        for name in ("ffjord", "flow-matching")
        for n in (16, 64)
    ),
    Trained("eight-gaussians", "mlp", "eight-gaussians", replace(PLANE, n_steps=2000), (0.9,)),
)
MODELS = {model.name: model for model in _MODELS}
"""The values of the axis `model`."""


def normal_points(n: int, dim: int) -> Tensor:
    """n standard normal points, (n, d), the same at every call."""
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(0))


def held_out(name: str, n: int, reading: Reading = Reading()) -> Tensor:
    """n prepared test examples of a dataset, the same at every call; repeated if it has fewer.

    They are taken in a random order with a fixed seed, since the first examples of a file may
    differ from the rest, as MNIST's do.
    """
    data, generator = dataset(name, reading), torch.Generator().manual_seed(0)
    order = torch.randperm(len(data.test), generator=generator)
    return data.prepare(data.test[order[torch.arange(n) % len(order)]], generator)
