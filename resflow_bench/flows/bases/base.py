"""The contract of a base density, and the standard normal."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from resflow_bench.arguments import check_batch, check_count
from resflow_bench.logdet.probes import drawn_on


@runtime_checkable
class BaseDensity(Protocol):
    """A density p(z) on R^d; one that is a module is trained, moved and saved with its flow."""

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z), (B, d) -> (B,), nats."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws, (n, d), differentiable in the parameters where the density supports it.

        In the dtype and on the device of the flow; the numbers are drawn on the generator's device.
        """


@runtime_checkable
class Tempered(Protocol):
    """A base density that can be sampled at a temperature T: p_T(z) proportional to p(z)^(1/T^2).

    That of a normal is the normal with T times its standard deviations.
    """

    def sample_at(
        self, temperature: float, n: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """n draws of p_T, (n, d); at T = 1 those of `sample`."""


class StandardNormal(nn.Module):
    """N(0, I) on R^d, without parameters.

    Args:
        dim: d.
        like: a tensor with the dtype and device of its draws; by default those of `torch.empty`.
            They follow the flow's `to`, and are not saved.

    Raises:
        ValueError: a `dim` below 1.
    """

    def __init__(self, dim: int, like: Tensor | None = None) -> None:
        super().__init__()
        self.dim = check_count("StandardNormal", "dim", dim)
        self.like: Tensor
        empty = torch.empty(0) if like is None else like.detach().new_empty(0)
        self.register_buffer("like", empty, persistent=False)

    def log_prob(self, z: Tensor) -> Tensor:
        check_batch("StandardNormal", z, (self.dim,), name="z")
        return -0.5 * (z.square().sum(-1) + self.dim * math.log(2 * math.pi))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return normal(n, self.dim, self.like, generator)

    def sample_at(
        self, temperature: float, n: int, generator: torch.Generator | None = None
    ) -> Tensor:
        return temperature * self.sample(n, generator)

    def extra_repr(self) -> str:
        return f"{self.dim}"


def drawn(
    base: BaseDensity, n: int, generator: torch.Generator | None, temperature: float
) -> Tensor:
    """n draws of a base at a temperature, (n, d).

    Raises:
        ValueError: see `ResidualFlow.sample`.
    """
    check_count("sample", "n", n, 0)
    if not 0 < temperature < math.inf:
        raise ValueError(f"sample needs a positive, finite temperature; got {temperature}.")
    if temperature == 1:
        return base.sample(n, generator)
    if isinstance(base, Tempered):
        return base.sample_at(temperature, n, generator)
    raise ValueError(
        f"The base density {type(base).__name__} has no temperature, a method `sample_at`; got "
        f"temperature={temperature}. Leave it out."
    )


def log_density(base: BaseDensity, z: Tensor) -> Tensor:
    """log p(z), (B,), nats.

    Raises:
        ValueError: the base's is not of that shape.
    """
    log_prob = base.log_prob(z)
    if log_prob.shape != z.shape[:1]:
        raise ValueError(
            f"A base density needs a log_prob of shape (B,); {type(base).__name__} gave "
            f"{tuple(log_prob.shape)} for z of {tuple(z.shape)}. Sum it over the dimensions."
        )
    return log_prob


def check_gradient(base: BaseDensity, z: Tensor) -> None:
    """Refuse draws z without a graph of a base whose parameters are trained.

    Raises:
        TypeError: see `ResidualFlow.rsample`.
    """
    parameters = base.parameters() if isinstance(base, nn.Module) else ()
    is_trained = torch.is_grad_enabled() and any(p.requires_grad for p in parameters)
    if is_trained and not z.requires_grad:
        raise TypeError(
            f"Samples have no gradient in the parameters of {type(base).__name__}, their base "
            "density. Use `sample`, or `flow.base.requires_grad_(False)`."
        )


def normal(n: int, dim: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """n draws of N(0, I), (n, dim), drawn on the generator's device, like a tensor."""
    device = drawn_on(like, generator)
    z = torch.randn(n, dim, generator=generator, dtype=like.dtype, device=device)
    return z.to(like.device, non_blocking=True)
