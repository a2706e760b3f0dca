"""Who draws the probe v of Hutchinson's estimator tr A = E[v^T A v]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from resflow_bench import theory


class Probe(Protocol):
    """A law of m vectors v_j, each with E v = 0 and E v v^T = I, for which E[v^T A v] = tr A."""

    def sample(self, n_probes: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw probes shaped like x: (m, B, *event), in x's dtype and device."""
        ...

    def variance(self, moments: theory.Moments, n_probes: int) -> np.ndarray:
        """Var((1/m) sum_j v_j^T A v_j), from the moments of A."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """v ~ N(0, I):  Var(v^T A v) = 2 ||sym A||_F^2  (at most 2 ||A||_F^2, equal iff A = A^T).

    Properties: unbiased for every A. The variance is attained at its Avron-Toledo bound by every
    symmetric A, scaled identities among them.

    Source: Hutchinson (1990); Avron and Toledo (2011), for symmetric A, often quoted without the
    square of the Frobenius norm.

    >>> Gaussian().fourth_moment
    3.0
    """

    fourth_moment = 3.0

    def __str__(self) -> str:
        return "gaussian"

    def sample(self, n_probes: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw (m, B, *event) standard normal numbers."""
        shape = (n_probes, *x.shape)
        return torch.randn(shape, generator=generator, dtype=x.dtype, device=x.device)

    def variance(self, moments: theory.Moments, n_probes: int) -> np.ndarray:
        """(2/m) ||sym A||_F^2."""
        return theory.iid_variance(moments, self.fourth_moment) / n_probes


@dataclass(frozen=True)
class Rademacher:
    """v_i = +1 or -1 with probability 1/2:  Var(v^T A v) = 2 (||sym A||_F^2 - sum_i A_ii^2).

    Properties: unbiased for every A; never more variance than `Gaussian`, and none at all for a
    diagonal A.

    Source: Hutchinson (1990).

    >>> Rademacher().fourth_moment
    1.0
    """

    fourth_moment = 1.0

    def __str__(self) -> str:
        return "rademacher"

    def sample(self, n_probes: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw (m, B, *event) independent signs."""
        shape = (n_probes, *x.shape)
        bits = torch.empty(shape, dtype=x.dtype, device=x.device)
        return bits.bernoulli_(0.5, generator=generator).mul_(2.0).sub_(1.0)

    def variance(self, moments: theory.Moments, n_probes: int) -> np.ndarray:
        """(2/m) (||sym A||_F^2 - sum_i A_ii^2)."""
        return theory.iid_variance(moments, self.fourth_moment) / n_probes
