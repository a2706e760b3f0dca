"""Truncations of the series of ln|det(I + J)|: the number of terms, and their weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from resflow_bench import theory
from resflow_bench.arguments import check_count
from resflow_bench.constants import constant
from resflow_bench.theory import RESIDUAL, Coefficients, Law


class Terms(NamedTuple):
    """The terms of the series that are evaluated, and their weights.

    weights: w_k of terms k = 1..max N for each example, (max N, B), 0 beyond its own N.
    n_terms: N of each example, (B,), int64, on the host, which schedules the work.
    coefficients: the c_k of the series, whose r_k are in the weights.

    Of n blocks as one (`jacobian.blocks`) they are (max N, B, n) and (B, n), with the coefficients
    of the first: what joins blocks reads the weights alone.
    """

    weights: Tensor
    n_terms: np.ndarray
    coefficients: Coefficients = RESIDUAL

    def broadcast(self, v: Tensor) -> Tensor:
        """The weights with axes of 1 for what else v has, (m, B, *event): (max N, B, 1, ...)."""
        return self.weights.view(*self.weights.shape, *[1] * (v.ndim - self.weights.ndim))

    def weighted(self, coefficients: Coefficients) -> Terms:
        """The weights r_k w_k, with which Taylor's series becomes that of the coefficients."""
        k = torch.arange(1, len(self.weights) + 1, device=self.weights.device)
        odd, even = (self.weights.new_full((), coefficients.ratio(k)) for k in (1, 2))
        ratios = torch.where(k % 2 == 1, odd, even)
        return self._replace(weights=self.weights * ratios[:, None], coefficients=coefficients)

    @classmethod
    def of_blocks(cls, each: Sequence[Terms]) -> Terms:
        """The terms of several blocks, joined into those of one block-diagonal J."""
        n_terms = np.stack([terms.n_terms for terms in each], axis=-1)
        weights = [terms.weights for terms in each]
        longest, batch_size = max(map(len, weights)), weights[0].shape[1]
        if all(len(w) == longest for w in weights):
            weights = list(torch.broadcast_tensors(*map(_unrepeated, weights)))
        else:
            weights = [functional.pad(w, (0, 0, 0, longest - len(w))) for w in weights]
        stacked = torch.stack(weights).movedim(0, -1)
        coefficients = each[0].coefficients
        return cls(stacked.expand(longest, batch_size, -1), n_terms, coefficients)


def _one(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.ones(1, 1, dtype=dtype, device=device)


def _unrepeated(t: Tensor) -> Tensor:
    """One of the numbers along each axis along which all share a place in memory."""
    for axis, (stride, n) in enumerate(zip(t.stride(), t.shape, strict=True)):
        if stride == 0 and n:
            t = t.narrow(axis, 0, 1)
    return t


class Truncation(Protocol):
    """A law of N, with the bias and the variance that it gives the estimate.

    `variance` and `variance_bound` are for m probes shared by all terms after the first `n_traced`,
    whose traces are exact; `jacobian` is a float64 array (..., d, d), and one number comes back for
    each matrix. All but `draw` are of the series with `coefficients`, those of ln|det(I + J)| or of
    another block's log-det.
    """

    def draw(self, batch_size: int, like: Tensor, generator: torch.Generator | None) -> Terms:
        """Weights on `like`'s device, in its dtype."""

    def bias(self, jacobian: np.ndarray, coefficients: Coefficients = RESIDUAL) -> np.ndarray:
        """E[estimate] - ln|det(I + J)|, in nats, without sampling."""

    def bias_bound(
        self, lipschitz: float, dim: int, coefficients: Coefficients = RESIDUAL
    ) -> float:
        """The largest |bias| over all J with ||J||_2 <= lipschitz, in nats."""

    def variance(
        self,
        jacobian: np.ndarray,
        probe: theory.ProbeVariance,
        n_probes: int,
        n_traced: int = 0,
        coefficients: Coefficients = RESIDUAL,
    ) -> np.ndarray:
        """Var(estimate), in nats^2; inf where it is infinite."""

    def variance_bound(
        self,
        jacobian: np.ndarray,
        n_probes: int,
        n_traced: int = 0,
        coefficients: Coefficients = RESIDUAL,
    ) -> np.ndarray:
        """The variance with each Var(v^T A v) replaced by Avron and Toledo's 2 ||A||_F^2."""

    def variance_bound_lipschitz(
        self,
        lipschitz: float,
        dim: int,
        n_probes: int,
        n_traced: int = 0,
        coefficients: Coefficients = RESIDUAL,
    ) -> float:
        """The largest variance over all J with ||J||_2 <= lipschitz and Gaussian probes."""

    def moment_is_finite(self, spectral_radius: float, order: int) -> bool:
        """True if E|estimate|^order is finite for a J of this spectral radius."""


@dataclass(frozen=True)
class Fixed:
    """sum_{k=1}^{n_terms} (-1)^(k+1)/k v^T J^k v: the first `n_terms` terms, each with weight one.

    Properties: biased by tr S_N - ln|det(I + J)|, at most d sum_{k>N} K^k/k; every moment finite;
    n_terms vector-Jacobian products a probe.

    Raises:
        ValueError: if `n_terms` is below 1.

    Source: Behrmann et al. (2019), "Invertible Residual Networks", Theorem 3 (the bias).

    >>> str(Fixed(10))
    'fixed(10)'
    """

    n_terms: int

    def __post_init__(self) -> None:
        check_count("Fixed", "n_terms", self.n_terms)

    def __str__(self) -> str:
        return f"fixed({self.n_terms})"

    def draw(self, batch_size: int, like: Tensor, generator: torch.Generator | None) -> Terms:
        """Ones, (n_terms, B); draws no random number."""
        one = constant(_one, like.dtype, like.device)
        return Terms(one.expand(self.n_terms, batch_size), np.full(batch_size, self.n_terms))

    def bias(self, jacobian: np.ndarray, coefficients: Coefficients = RESIDUAL) -> np.ndarray:
        return theory.truncation_bias(jacobian, self.n_terms, coefficients)

    def bias_bound(
        self, lipschitz: float, dim: int, coefficients: Coefficients = RESIDUAL
    ) -> float:
        return float(theory.truncation_bias_bound(lipschitz, dim, self.n_terms, coefficients))

    def variance(
        self,
        jacobian: np.ndarray,
        probe: theory.ProbeVariance,
        n_probes: int,
        n_traced: int = 0,
        coefficients: Coefficients = RESIDUAL,
    ) -> np.ndarray:
        """Var((1/m) sum_j v_j^T (S_N - S_L) v_j), L = `n_traced`."""
        probed = theory.series(jacobian, self.n_terms, n_traced, coefficients)
        return theory.hutchinson_variance(probed, probe, n_probes)

    def variance_bound(
        self,
        jacobian: np.ndarray,
        n_probes: int,
        n_traced: int = 0,
        coefficients: Coefficients = RESIDUAL,
    ) -> np.ndarray:
        """(2/m) ||S_N - S_L||_F^2."""
        probed = theory.series(jacobian, self.n_terms, n_traced, coefficients)
        return theory.avron_toledo_bound(probed, n_probes)

    def variance_bound_lipschitz(
        self,
        lipschitz: float,
        dim: int,
        n_probes: int,
        n_traced: int = 0,
        coefficients: Coefficients = RESIDUAL,
    ) -> float:
        """(2d/m) (sum_{L<k<=N} K^k/k)^2."""
        of = (lipschitz, dim, self.n_terms, n_probes, n_traced, coefficients)
        return float(theory.series_variance_bound(*of))

    def moment_is_finite(self, spectral_radius: float, order: int) -> bool:
        return True


@dataclass(frozen=True)
class Roulette:
    """sum_{k=1}^{N} (-1)^(k+1)/(k P(N >= k)) v^T J^k v,  N = n_exact + M,  M ~ law.

    The first `n_exact` terms are always evaluated and have weight one; term k > n_exact is
    evaluated if M >= k - n_exact and has weight 1 / P(M >= k - n_exact).

    Args:
        per: draw N for each "example" (independent errors, so a batch mean's variance falls as
            1/B), once for the "batch" (as the public implementations do: the roulette part of
            the error is then common to the batch, and its mean does not improve with B), or
            "stratified": one uniform number in common, and a stratum for each example, assigned at
            random. Each example's N has the same law; the work of a batch hardly varies, and where
            the variance is finite the roulette's error of a batch mean falls faster than
            1/sqrt(B): to a seventh of that of "example" for J = -0.6 I, d = 4, Geometric(0.5) and
            B = 64.
        spectral_radius: rho(J), or a bound on it such as the Lipschitz constant of g: if given, a
            law under which the variance is infinite there is refused; else every law is accepted.
            It is no part of the law: roulettes that differ in it alone are equal and print alike.

    Properties: unbiased for every J with rho(J) < 1; the variance may be infinite, see
    `moment_is_finite`. A batch costs the sum of its N in products where J can be restricted to
    parts of the batch (`Jacobian.shrinks`), and B times the largest where it cannot.

    Raises:
        ValueError: if `n_exact` is negative or `per` is another word; if `spectral_radius` is given
            and outside [0, 1), or rho^2 >= decay there.

    Source: Kahn (1955); Chen et al. (2019), Theorem 1.

    >>> from resflow_bench.logdet import Geometric
    >>> Roulette(Geometric(0.5), n_exact=3).survival(np.arange(1, 6)).tolist()
    [1.0, 1.0, 1.0, 0.5, 0.25]
    """

    law: Law
    n_exact: int
    per: Literal["example", "batch", "stratified"] = "example"
    spectral_radius: float | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_count("Roulette", "n_exact", self.n_exact, 0)
        if self.per not in ("example", "batch", "stratified"):
            raise ValueError(
                "Roulette draws N per 'example', per 'batch' or 'stratified'; "
                f"got {self.per!r}. Use one of them."
            )
        rho = self.spectral_radius
        if rho is not None and not 0.0 <= rho < 1.0:
            raise ValueError(
                f"Roulette needs 0 <= spectral_radius < 1; got {rho}. The series diverges at 1 and "
                "beyond: lower the Lipschitz constant of g."
            )
        if rho is not None and not self.moment_is_finite(rho, 2):
            raise ValueError(
                f"Roulette has infinite variance unless spectral_radius^2 < decay; got {self.law}, "
                f"which decays by {self.law.decay:g}, and {rho:g}^2 = {rho**2:.3g}. Take "
                f"Geometric(stop) with stop < {1 - rho**2:.3g} (about {1 - rho:.2g} is best), or "
                "leave out `spectral_radius` to accept the infinite variance."
            )

    def __str__(self) -> str:
        shared = {"example": "", "batch": ", per batch", "stratified": ", stratified"}[self.per]
        return f"{self.law}, n_exact={self.n_exact}{shared}"

    def survival(self, k: np.ndarray) -> np.ndarray:
        return self.law.survival(np.maximum(np.asarray(k) - self.n_exact, 0))

    def draw(self, batch_size: int, like: Tensor, generator: torch.Generator | None) -> Terms:
        """1[N_b >= k] / P(N >= k), with N drawn on the host, which waits for no device."""
        generator = _on_host(generator)
        n_draws = {"example": batch_size, "batch": 1, "stratified": 1 + batch_size}[self.per]
        uniform = torch.rand(n_draws, generator=generator, dtype=torch.float64, device="cpu")
        level = 1.0 - uniform.numpy()  # in (0, 1]
        if self.per == "stratified":
            stratum = np.argsort(level[1:])  # a random order
            level = (stratum + level[0]) / max(1, batch_size)
        n_terms = self.n_exact + self._quantile(level)  # (n_draws,) or (B,)
        k = np.arange(1, n_terms.max(initial=self.n_exact) + 1)[:, None]
        survival = np.ones((len(k), 1))
        survival[self.n_exact :, 0] = _survival(self.law, max(0, len(k) - self.n_exact))
        weights = torch.from_numpy((n_terms >= k) / survival)
        weights = weights.to(like.device, like.dtype, non_blocking=True).expand(-1, batch_size)
        return Terms(weights, np.broadcast_to(n_terms, batch_size))

    def _quantile(self, level: np.ndarray) -> np.ndarray:
        """The number of j >= 1 with P(M >= j) >= level, for level in (0, 1]."""
        n = 64
        while (table := _survival(self.law, n))[-1] >= level.min(initial=1.0):
            n *= 2
        return np.asarray(np.searchsorted(-table, -level, side="right"))

    def bias(self, jacobian: np.ndarray, coefficients: Coefficients = RESIDUAL) -> np.ndarray:
        return np.zeros(np.shape(jacobian)[:-2])

    def bias_bound(
        self, lipschitz: float, dim: int, coefficients: Coefficients = RESIDUAL
    ) -> float:
        return 0.0

    def variance(
        self,
        jacobian: np.ndarray,
        probe: theory.ProbeVariance,
        n_probes: int,
        n_traced: int = 0,
        coefficients: Coefficients = RESIDUAL,
    ) -> np.ndarray:
        of = (jacobian, self, probe, n_probes, 0.0, n_traced, coefficients)
        return theory.roulette_variance(*of)

    def variance_bound(
        self,
        jacobian: np.ndarray,
        n_probes: int,
        n_traced: int = 0,
        coefficients: Coefficients = RESIDUAL,
    ) -> np.ndarray:
        return theory.roulette_variance_bound(jacobian, self, n_probes, n_traced, coefficients)

    def variance_bound_lipschitz(
        self,
        lipschitz: float,
        dim: int,
        n_probes: int,
        n_traced: int = 0,
        coefficients: Coefficients = RESIDUAL,
    ) -> float:
        of = (lipschitz, dim, self, n_probes, n_traced, coefficients)
        return theory.roulette_variance_bound_lipschitz(*of)

    def moment_is_finite(self, spectral_radius: float, order: int) -> bool:
        """rho^order < decay^(order - 1), or J nilpotent."""
        return bool(theory.roulette_moment_is_finite(spectral_radius, self, order))


def _on_host(generator: torch.Generator | None) -> torch.Generator | None:
    """A generator on the CPU: the given one, or for one of an accelerator one that follows it.

    An accelerator's generator keeps its state on the host, so that a seed made of it is known
    without a wait. A number is drawn, so that the next seed is another. None is torch's own.
    """
    if generator is None or generator.device.type == "cpu":
        return generator
    state = generator.get_state().numpy().tobytes()
    torch.empty(1, device=generator.device).uniform_(generator=generator)
    seed = int.from_bytes(hashlib.blake2b(state, digest_size=8).digest(), "big", signed=True)
    return torch.Generator().manual_seed(seed)


@lru_cache(maxsize=64)
def _survival(law: Law, n: int) -> np.ndarray:
    """P(M >= j), j = 1..n, cached, since a training needs it at every step."""
    table = law.survival(np.arange(1, n + 1))
    table.setflags(write=False)
    return table
