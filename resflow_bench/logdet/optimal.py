"""The roulette of least variance times work, from Jacobians or from a pilot run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from resflow_bench import theory
from resflow_bench.arguments import check_count
from resflow_bench.jacobian import Map
from resflow_bench.logdet.estimator import LogDetEstimator
from resflow_bench.logdet.expansions.expansion import Incremental
from resflow_bench.logdet.laws import Tabulated
from resflow_bench.logdet.truncation import Roulette
from resflow_bench.theory import RESIDUAL, Coefficients

MAX_TAILS = 512
"""The largest number of entries of a table of probabilities; beyond it the law is geometric."""

PROBES_A_DRAW = 8
"""The most probes of a pilot's draw, where the variance has a closed form: 16 draws of them at ten
points give the variances of the tails to a few percent."""

MIN_DECAY = 0.1
"""The least ratio of successive probabilities beyond the table: a smaller one underflows to zero,
and a tail that decays more slowly than J^k costs next to nothing."""


def optimal_roulette(
    jacobian: np.ndarray,
    probe: theory.ProbeVariance,
    n_probes: int = 1,
    n_traced: int = 0,
    n_besides: float = 0.0,
    coefficients: Coefficients = RESIDUAL,
) -> Roulette:
    """P_k = sqrt(b_k/b_1),  b_k = E[T_k^2] - E[T_(k+1)^2]: see `theory.optimal_survival`.

    The roulette of least variance times products, for the mean variance over these Jacobians; N is
    drawn per example. Beyond the table P_(k+1)/P_k is the largest spectral radius, the limit of
    this ratio at the optimum.

    Args:
        jacobian: J, (..., d, d), float64: of one branch at several points, say.
        n_traced: L; the first L terms are then always evaluated, for the powers beyond them.
        n_besides: the cost of an estimate besides its terms, in products a probe: 2 with `Neumann`.
        coefficients: those of the block's series. Without even terms, b_k = 0 at even k, and each
            P_k at even k is pooled with one beside it.

    Raises:
        ValueError: if `jacobian` is not a finite (..., d, d) array, a spectral radius is 1 or more,
            or `n_probes` or `n_traced` is out of range.

    Source: Rhee and Glynn (2015), as in `theory.optimal_survival`.

    >>> from resflow_bench.logdet import Gaussian
    >>> roulette = optimal_roulette(-0.5 * np.eye(8), Gaussian())
    >>> str(roulette), roulette.survival(np.arange(1, 5)).round(3).tolist()
    ('tabulated(mean=1.17, decay=0.5), n_exact=1', [1.0, 0.745, 0.259, 0.1])
    """
    check_count("optimal_roulette", "n_probes", n_probes)
    check_count("optimal_roulette", "n_traced", n_traced, least=0)
    rho = float(theory.spectral_radius(jacobian).max())
    for n_tails in (32, 128, MAX_TAILS):
        tails = theory.tail_moments(jacobian, n_tails + n_traced, coefficients)
        squares = tails.trace**2 + probe.variance(tails, n_probes)  # E[T_k^2], (n_tails + L, ...)
        squares = squares.reshape(len(squares), -1).mean(axis=1)[n_traced:]
        if squares[-1] <= 1e-12 * squares[0]:
            break
    squares = np.r_[np.full(n_traced, squares[0]), squares]  # M_(L+1) for M_1, ..., M_L
    mean_square = float((tails.trace[n_traced] ** 2).mean())
    return _roulette(squares, mean_square, n_besides, max(rho, MIN_DECAY), rho)


@dataclass(frozen=True)
class Pilot:
    """Moments of the tails T_k = sum_{l>=k} Delta_l, k = 1..n, of one branch, from a few draws.

    The mean over m probes has E[T_k^2] = (E T_k)^2 + Var T_k.

    Args:
        mean_squares: (E T_k)^2, (n,), nat^2, mean over points.
        variances: Var T_k for each m, (n,), nat^2, mean over points.
    """

    mean_squares: np.ndarray
    variances: Mapping[int, np.ndarray]

    def squares(self, n_probes: int) -> np.ndarray:
        """E[T_k^2] of the mean of m probes, (n,), nat^2."""
        return self.mean_squares + self.variances[n_probes]

    def roulette(self, n_probes: int, spectral_radius: float, n_besides: float = 0.0) -> Roulette:
        """`optimal_roulette` of these moments; see `pilot_roulette`.

        From the first half of the tails, where the terms beyond the pilot's are negligible.
        """
        squares = self.squares(n_probes)[: len(self.mean_squares) // 2 + 1]
        mean_square = float(self.mean_squares[0])
        return _roulette(squares, mean_square, n_besides, spectral_radius, spectral_radius)

    def variance(self, roulette: Roulette, n_probes: int) -> float:
        """Var T_1 + sum_k E[T_k^2] (1/P_k - 1/P_(k-1)), nat^2, P_k those of `roulette`.

        Terms beyond the pilot's last one are left out.
        """
        squares = self.squares(n_probes)
        survival = roulette.survival(np.arange(1, len(squares) + 1))
        steps = np.diff(1.0 / survival, prepend=1.0)
        return float(squares[0] - self.mean_squares[0] + (squares * steps).sum())


def share(probe: theory.ProbeVariance, dim: int, n_probes: int) -> float:
    """c_m = Var((1/m) sum_j v_j^T A v_j) / Var(v^T A v), the same for every A with these probes.

    1/m for independent v_j; (D - m)/(m (D - 1)) for m <= D columns of a Hadamard matrix, and the
    same with d for orthogonal v_j.

    >>> from resflow_bench.logdet import Hadamard, Rademacher
    >>> share(Rademacher(), 64, 16), share(Hadamard(), 64, 64)
    (0.0625, 0.0)
    """
    zero, one = np.zeros(()), np.ones(())
    a = theory.Moments(dim, trace=zero, frobenius_sq=one, diagonal_sq=zero, off_diagonal_sq=one)
    whole = float(probe.variance(a, 1))
    return float(probe.variance(a, n_probes)) / whole if whole > 0.0 else 0.0


@torch.no_grad()
def pilot(
    estimator: LogDetEstimator,
    g: Map,
    x: Tensor,
    n_draws: int,
    n_probes: Sequence[int],
    generator: torch.Generator | None = None,
    n_terms: int = 64,
) -> Pilot:
    """The moments of the tails at x for means over m probes, for each m of `n_probes`.

    Delta_1, ..., Delta_n of each probe are the estimator's own; T_k is summed from the last.

    Where the probe has a closed form, one draw of R = `n_draws` x min(max m, `PROBES_A_DRAW`)
    vectors serves every m, with c the `share`:

    1. With s^2 their sample variance, any two of which have the same correlation
       r = (c_R R - 1)/(R - 1):  E s^2 = (1 - r) Var T_k of one probe, and c_m of that of m.
    2. E[mean^2] = (E T_k)^2 + c_R Var T_k, so that both are estimated without bias; where
       c_R = 0 the first is exact.

    Else the largest m is drawn `n_draws` times, and m vectors in a row of a draw count as one of m.

    Args:
        estimator: its probe, products, expansion and n_traced are used, its n_probes is not.
        x: (B, *event).
        n_draws: at least 2.
        n_probes: divisors of the largest of them.
        n_terms: n, products a probe, at least 4 and above 2 n_traced + 1.

    Properties: cost n products for each vector and point. Unbiased where Delta_k is a quadratic
        form in v or the probes are independent; else (`Arnoldi` with dependent probes) `share` is
        the limit for many terms.

    Raises:
        ValueError: if `n_draws` or `n_terms` is too small.
        TypeError: if the estimator's expansion has no `increments`.
    """
    n_traced, most = estimator.n_traced, max(n_probes)
    if n_terms < max(4, 2 * n_traced + 2) or n_draws < 2:
        raise ValueError(
            f"pilot needs n_terms >= 4 and above 2 n_traced + 1, and n_draws >= 2; got "
            f"n_terms={n_terms}, n_draws={n_draws} and n_traced={n_traced}. Raise them."
        )
    expansion, probe = estimator.expansion, estimator.probe
    if not isinstance(expansion, Incremental):
        raise TypeError(
            f"pilot needs an expansion with `increments`; got {expansion}. Take "
            "`expansion=Taylor()`."
        )
    j = estimator.products(g, x).jacobian

    def tails(n: int) -> Tensor:
        """T_k of n vectors, (n_terms, n, B)."""
        terms = expansion.increments(j, probe.sample(n, x, generator), n_terms, n_traced).double()
        terms = nn.functional.pad(terms, (0, 0, 0, 0, 0, n_terms - len(terms)))  # ended early
        return terms.flip(0).cumsum(0).flip(0)

    if isinstance(probe, theory.ProbeVariance):
        dim, n = math.prod(x.shape[1:]), n_draws * min(most, PROBES_A_DRAW)
        found, c = tails(n), share(probe, dim, n)
        one = found.var(1) * ((n - 1) / (n * (1.0 - c)))  # (n_terms, B)
        mean_squares = found.mean(1).square() - c * one
        variances = {m: share(probe, dim, m) * one for m in n_probes}
    else:
        draws = torch.stack([tails(most) for _ in range(n_draws)])  # (R, n_terms, most, B)
        whole = draws.mean(2)
        mean_squares = whole.mean(0).square() - whole.var(0) / n_draws
        groups = {m: draws.unflatten(2, (-1, m)).mean(3) for m in n_probes}
        variances = {m: group.var(0).mean(1) for m, group in groups.items()}
    return Pilot(_mean(mean_squares), {m: _mean(some) for m, some in variances.items()})


def _mean(of_points: Tensor) -> np.ndarray:
    """The mean over points of (n, B), at least zero."""
    return of_points.mean(1).clamp(min=0.0).cpu().numpy()


def pilot_roulette(
    estimator: LogDetEstimator,
    g: Map,
    x: Tensor,
    spectral_radius: float,
    generator: torch.Generator | None = None,
    n_terms: int = 64,
    n_draws: int = 16,
    n_besides: float = 0.0,
) -> Roulette:
    """`optimal_roulette` with E[T_k^2] estimated from the estimator's own products at x.

    Args:
        estimator: its probe, n_probes, products, expansion and n_traced are used.
        x: (B, *event), the points over which the variance is averaged.
        spectral_radius: a bound on rho(J) at these points and others, below 1: the Lipschitz
            constant of g. It is the ratio P_(k+1)/P_k beyond the table, so that the variance is
            finite whatever the pilot's draws.
        n_terms: products a probe, at least 4.
        n_draws: of the m probes at each point, at least 2.

    Properties: cost n_terms n_draws m products for each point, once, of which eight probes a draw
        are enough where the variance has a closed form. Its errors cost variance,
        never bias. For several numbers of probes use one `pilot`.

    Raises:
        ValueError: if `n_terms` or `n_draws` is too small, n_traced not below n_terms/2, or
            `spectral_radius` outside (0, 1).
        TypeError: if the estimator's expansion has no `increments`.
    """
    m = estimator.n_probes
    moments = pilot(estimator, g, x, n_draws, (m,), generator, n_terms)
    return moments.roulette(m, spectral_radius, n_besides)


def _roulette(
    squares: np.ndarray, mean_square: float, n_besides: float, decay: float, rho: float
) -> Roulette:
    """The roulette with n_exact = the number of P_k that are 1, and the law of the rest."""
    costs = np.ones(len(squares) - 1)
    costs[0] += n_besides
    survival = theory.optimal_survival(squares, mean_square, costs)
    n_exact = int(np.count_nonzero(survival == 1.0))
    table = survival[n_exact - 1 :]
    law = Tabulated(tuple(table[table > 0.0].tolist()), decay)
    return Roulette(law, n_exact, spectral_radius=rho)
