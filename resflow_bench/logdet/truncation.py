"""How many terms of the series of ln|det(I + J)| are evaluated, and with which weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from resflow_bench import theory
from resflow_bench.logdet.probes import Probe


class Terms(NamedTuple):
    """Which terms of the series are evaluated, with which weights.

    weights: w_k of terms k = 1..max N for each example, (max N, B), 0 beyond its own N.
    n_terms: N of each example, (B,), int64 and on the host: how much work there is must be known
        there.
    """

    weights: Tensor
    n_terms: np.ndarray


class Truncation(Protocol):
    """Draws N and says what that does to the mean and to the variance of the estimate.

    `variance` and `variance_bound` are for m probes shared by all terms after the first `n_traced`,
    whose traces are exact; `jacobian` is a float64 array (..., d, d), and one number comes back for
    each matrix.
    """

    def draw(self, batch_size: int, like: Tensor, generator: torch.Generator | None) -> Terms:
        """Weights on `like`'s device, in its dtype."""
        ...

    def bias(self, jacobian: np.ndarray) -> np.ndarray:
        """E[estimate] - ln|det(I + J)|, in nats, without sampling."""
        ...

    def bias_bound(self, lipschitz: float, dim: int) -> float:
        """The largest |bias| over all J with ||J||_2 <= lipschitz, in nats."""
        ...

    def variance(
        self, jacobian: np.ndarray, probe: Probe, n_probes: int, n_traced: int = 0
    ) -> np.ndarray:
        """Var(estimate), in nats^2; inf where it is infinite."""
        ...

    def variance_bound(self, jacobian: np.ndarray, n_probes: int, n_traced: int = 0) -> np.ndarray:
        """The variance with each Var(v^T A v) replaced by Avron and Toledo's 2 ||A||_F^2."""
        ...

    def variance_bound_lipschitz(
        self, lipschitz: float, dim: int, n_probes: int, n_traced: int = 0
    ) -> float:
        """The largest variance over all J with ||J||_2 <= lipschitz and Gaussian probes."""
        ...

    def moment_is_finite(self, spectral_radius: float, order: int) -> bool:
        """Whether E|estimate|^order is finite for a J of this spectral radius."""
        ...


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
        if self.n_terms < 1:
            raise ValueError(
                f"Fixed needs n_terms of at least 1; got {self.n_terms}. Raise `n_terms`."
            )

    def __str__(self) -> str:
        return f"fixed({self.n_terms})"

    def draw(self, batch_size: int, like: Tensor, generator: torch.Generator | None) -> Terms:
        """Ones, (n_terms, B); the generator is not used."""
        one = torch.ones(1, 1, dtype=like.dtype, device=like.device)
        n_terms = np.full(batch_size, self.n_terms)
        return Terms(one.expand(self.n_terms, batch_size), n_terms)

    def bias(self, jacobian: np.ndarray) -> np.ndarray:
        """tr S_N - ln|det(I + J)|."""
        return theory.truncation_bias(jacobian, self.n_terms)

    def bias_bound(self, lipschitz: float, dim: int) -> float:
        """d sum_{k>N} K^k/k."""
        return float(theory.truncation_bias_bound(lipschitz, dim, self.n_terms))

    def variance(
        self, jacobian: np.ndarray, probe: Probe, n_probes: int, n_traced: int = 0
    ) -> np.ndarray:
        """Var((1/m) sum_j v_j^T (S_N - S_L) v_j), L = `n_traced`."""
        probed = theory.series(jacobian, self.n_terms, n_traced)
        return theory.hutchinson_variance(probed, probe, n_probes)

    def variance_bound(self, jacobian: np.ndarray, n_probes: int, n_traced: int = 0) -> np.ndarray:
        """(2/m) ||S_N - S_L||_F^2."""
        probed = theory.series(jacobian, self.n_terms, n_traced)
        return theory.avron_toledo_bound(probed, n_probes)

    def variance_bound_lipschitz(
        self, lipschitz: float, dim: int, n_probes: int, n_traced: int = 0
    ) -> float:
        """(2d/m) (sum_{L<k<=N} K^k/k)^2."""
        return float(theory.series_variance_bound(lipschitz, dim, self.n_terms, n_probes, n_traced))

    def moment_is_finite(self, spectral_radius: float, order: int) -> bool:
        """Always."""
        return True


class Law(Protocol):
    """The law of M on {0, 1, 2, ...}, by its survival function."""

    @property
    def decay(self) -> float:
        """lim P(M >= j + 1) / P(M >= j): what decides which moments of an estimate are finite."""
        ...

    def survival(self, j: np.ndarray) -> np.ndarray:
        """P(M >= j) in float64, to full relative precision however far in the tail."""
        ...


@dataclass(frozen=True)
class Geometric:
    """P(M >= j) = (1 - stop)^j: after each term, stop with probability `stop`.

    Properties: mean (1 - stop)/stop; the roulette estimate has finite variance iff
    rho(J)^2 < 1 - stop.

    Raises:
        ValueError: unless 0 < stop < 1.

    Source: Chen et al. (2019), "Residual Flows", where the coin's p is `stop`.

    >>> Geometric(0.5).survival(np.array([0, 1, 2])).tolist()
    [1.0, 0.5, 0.25]
    """

    stop: float

    def __post_init__(self) -> None:
        if not 0.0 < self.stop < 1.0:
            raise ValueError(
                f"Geometric needs 0 < stop < 1; got {self.stop}. "
                "`stop` is the probability of stopping after each term."
            )

    def __str__(self) -> str:
        return f"geometric({self.stop:g})"

    @property
    def decay(self) -> float:
        """1 - stop."""
        return 1.0 - self.stop

    def survival(self, j: np.ndarray) -> np.ndarray:
        """(1 - stop)^j."""
        return (1.0 - self.stop) ** np.asarray(j, dtype=np.float64)


@dataclass(frozen=True)
class Poisson:
    """P(M >= j) = sum_{i>=j} e^-rate rate^i / i!.

    Properties: mean `rate`. The survival falls faster than any power, so the roulette estimate has
    INFINITE variance for every J that is not nilpotent. At a small spectral radius the part of it
    that anyone will ever meet is small: see `theory.roulette_variance` with `min_survival`.

    Raises:
        ValueError: unless rate > 0.

    Source: Chen et al. (2019), appendix on image models, which use rate 2.

    >>> Poisson(2.0).survival(np.array([0, 1])).round(4).tolist()
    [1.0, 0.8647]
    """

    rate: float

    def __post_init__(self) -> None:
        if not self.rate > 0.0 or not np.isfinite(self.rate):
            raise ValueError(
                f"Poisson needs a positive finite rate; got {self.rate}. "
                "`rate` is the mean number of extra terms."
            )

    def __str__(self) -> str:
        return f"poisson({self.rate:g})"

    @property
    def decay(self) -> float:
        """0: faster than geometric."""
        return 0.0

    def survival(self, j: np.ndarray) -> np.ndarray:
        """scipy's survival function: no 1 - sum, which cancels to 1e-16 in the far tail."""
        return np.asarray(stats.poisson.sf(np.asarray(j) - 1, self.rate), dtype=np.float64)


@dataclass(frozen=True)
class Roulette:
    """sum_{k=1}^{N} (-1)^(k+1)/(k P(N >= k)) v^T J^k v,  N = n_exact + M,  M ~ law.

    The first `n_exact` terms are always evaluated and have weight one; term k > n_exact is
    evaluated if M >= k - n_exact and has weight 1 / P(M >= k - n_exact).

    Args:
        law: of M.
        n_exact: terms that are always evaluated, at least 0.
        per: draw N for each "example" (independent errors, so a batch mean's variance falls as
            1/B), once for the "batch" (as the public implementations do: the roulette part of
            the error is then common to the batch, and its mean does not improve with B), or
            "stratified": one uniform number in common, each example in a stratum of its own, dealt
            out at random. Each example's N has the same law; the work of a batch hardly varies,
            and the roulette's error of its mean all but cancels.

    Properties: unbiased for every J with rho(J) < 1 (only the mean: whether the variance is finite
    is `moment_is_finite`). A batch costs the sum of its N in products where g can be evaluated on
    parts of the batch, and B times the largest where it cannot.

    Raises:
        ValueError: if `n_exact` is negative or `per` is another word.

    Source: Kahn (1955); Chen et al. (2019), Theorem 1.

    >>> Roulette(Geometric(0.5), n_exact=3).survival(np.arange(1, 6)).tolist()
    [1.0, 1.0, 1.0, 0.5, 0.25]
    """

    law: Law
    n_exact: int
    per: Literal["example", "batch", "stratified"] = "example"

    def __post_init__(self) -> None:
        if self.n_exact < 0:
            raise ValueError(
                f"Roulette needs n_exact of at least 0; got {self.n_exact}. Raise `n_exact`."
            )
        if self.per not in ("example", "batch", "stratified"):
            raise ValueError(
                "Roulette draws N per 'example', per 'batch' or 'stratified'; "
                f"got {self.per!r}. Use one of them."
            )

    def __str__(self) -> str:
        shared = {"example": "", "batch": ", per batch", "stratified": ", stratified"}[self.per]
        return f"{self.law}, n_exact={self.n_exact}{shared}"

    def survival(self, k: np.ndarray) -> np.ndarray:
        """P(N >= k)."""
        return self.law.survival(np.maximum(np.asarray(k) - self.n_exact, 0))

    def draw(self, batch_size: int, like: Tensor, generator: torch.Generator | None) -> Terms:
        """1[N_b >= k] / P(N >= k); one device-to-host copy of the batch's uniforms."""
        device = generator.device if generator is not None else like.device
        n_draws = batch_size if self.per == "example" else 1
        uniform = torch.rand(n_draws, generator=generator, dtype=torch.float64, device=device)
        level = 1.0 - uniform.cpu().numpy()
        if self.per == "stratified":
            n_strata = batch_size
            shuffled = torch.randperm(n_strata, generator=generator, device=device).cpu().numpy()
            level = (shuffled + level) / n_strata
        n_terms = self.n_exact + self._quantile(level)  # (n_draws,) or (B,)
        k = np.arange(1, n_terms.max(initial=self.n_exact) + 1)[:, None]
        weights = torch.from_numpy((n_terms >= k) / self.survival(k))
        weights = weights.to(like.device, like.dtype, non_blocking=True).expand(-1, batch_size)
        return Terms(weights, np.broadcast_to(n_terms, batch_size))

    def _quantile(self, level: np.ndarray) -> np.ndarray:
        """The number of j >= 1 with P(M >= j) >= level, for level in (0, 1]."""
        n = 64
        while (table := self.law.survival(np.arange(1, n + 1)))[-1] >= level.min(initial=1.0):
            n *= 2
        return np.asarray(np.searchsorted(-table, -level, side="right"))

    def bias(self, jacobian: np.ndarray) -> np.ndarray:
        """Zero."""
        return np.zeros(np.shape(jacobian)[:-2])

    def bias_bound(self, lipschitz: float, dim: int) -> float:
        """Zero."""
        return 0.0

    def variance(
        self, jacobian: np.ndarray, probe: Probe, n_probes: int, n_traced: int = 0
    ) -> np.ndarray:
        """V_m(M_1) + sum_k [(tr M_k)^2 + V_m(M_k)] (1/P_k - 1/P_(k-1)), M_k the tail from k."""
        return theory.roulette_variance(jacobian, self, probe, n_probes, n_traced=n_traced)

    def variance_bound(self, jacobian: np.ndarray, n_probes: int, n_traced: int = 0) -> np.ndarray:
        """The same sum with (2/m) ||M_k||_F^2 in place of V_m(M_k)."""
        return theory.roulette_variance_bound(jacobian, self, n_probes, n_traced)

    def variance_bound_lipschitz(
        self, lipschitz: float, dim: int, n_probes: int, n_traced: int = 0
    ) -> float:
        """The same sum for J = -K I, which attains it with Gaussian probes."""
        return theory.roulette_variance_bound_lipschitz(lipschitz, dim, self, n_probes, n_traced)

    def moment_is_finite(self, spectral_radius: float, order: int) -> bool:
        """rho^order < decay^(order - 1), or J nilpotent."""
        return bool(theory.roulette_moment_is_finite(spectral_radius, self, order))
