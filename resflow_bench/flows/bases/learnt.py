"""Base densities with parameters that are trained along."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from resflow_bench.arguments import check_batch, check_count
from resflow_bench.flows.bases.base import normal
from resflow_bench.logdet.probes import drawn_on


class DiagonalNormal(nn.Module):
    """N(mean, diag(exp(log_scale))^2) on R^d, at first standard normal.

    Samples are differentiable in both parameters.

    Raises:
        ValueError: a `dim` below 1.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = check_count("DiagonalNormal", "dim", dim)
        self.mean = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(dim))

    def log_prob(self, z: Tensor) -> Tensor:
        check_batch("DiagonalNormal", z, (self.dim,), name="z")
        return _log_normal(z, self.mean, self.log_scale)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.sample_at(1.0, n, generator)

    def sample_at(
        self, temperature: float, n: int, generator: torch.Generator | None = None
    ) -> Tensor:
        noise = normal(n, self.dim, self.mean, generator)
        return self.mean + temperature * self.log_scale.exp() * noise

    def extra_repr(self) -> str:
        return f"{self.dim}"


class NormalMixture(nn.Module):
    """sum_k w_k N(mean_k, diag(exp(log_scale_k))^2) on R^d, w = softmax(logits).

    Samples have no gradient in the parameters, because the choice of a component has none, so a
    flow with this base trains by its likelihood and has no `rsample`. There is no temperature
    either: p^(1/T^2) is no mixture.

    Args:
        dim: d.
        n_components: the number of components, at first of equal weight.
        spread: the standard deviation of the first means; the first scales are 1.
        generator: draws the first means; None is a fresh one with seed 0.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(
        self,
        dim: int,
        n_components: int,
        spread: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.dim = check_count("NormalMixture", "dim", dim)
        self.n_components = check_count("NormalMixture", "n_components", n_components)
        self.spread = spread
        generator = generator or torch.Generator().manual_seed(0)
        like = torch.empty(0, device=generator.device)
        self.means = nn.Parameter(spread * normal(n_components, dim, like, generator))
        self.log_scales = nn.Parameter(torch.zeros_like(self.means))
        self.logits = nn.Parameter(torch.zeros(n_components, device=generator.device))

    def log_prob(self, z: Tensor) -> Tensor:
        check_batch("NormalMixture", z, (self.dim,), name="z")
        each = _log_normal(z[:, None], self.means, self.log_scales)  # (B, n_components)
        return (self.logits.log_softmax(0) + each).logsumexp(1)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        uniform = torch.rand(n, generator=generator, device=drawn_on(self.logits, generator))
        up_to = self.logits.softmax(0).float().cumsum(0)[:-1]
        k = torch.searchsorted(up_to, uniform.to(up_to.device))
        noise = normal(n, self.dim, self.means, generator)
        return self.means[k] + self.log_scales[k].exp() * noise

    def extra_repr(self) -> str:
        return f"{self.dim}, n_components={self.n_components}, spread={self.spread:g}"


def _log_normal(z: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log N(z; mean, diag(exp(log_scale))^2), summed over the last axis."""
    squares = ((z - mean) * (-log_scale).exp()).square()
    dim = z.shape[-1]
    return -0.5 * (squares.sum(-1) + dim * math.log(2 * math.pi)) - log_scale.sum(-1)
