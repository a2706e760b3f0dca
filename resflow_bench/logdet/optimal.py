"""The roulette of least variance times work, from Jacobians or from a pilot run."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from resflow_bench import theory
from resflow_bench.logdet.estimator import LogDetEstimator
from resflow_bench.logdet.laws import Tabulated
from resflow_bench.logdet.probes import Probe
from resflow_bench.logdet.products import Map
from resflow_bench.logdet.truncation import Roulette

MAX_TAILS = 512
"""What a table of probabilities may hold; beyond it the law is geometric."""

MIN_DECAY = 0.1
"""A tail that decays more slowly than J^k costs next to nothing, and one that decays by 1e-9 leaves
probabilities of zero."""


def optimal_roulette(
    jacobian: np.ndarray,
    probe: Probe,
    n_probes: int = 1,
    n_traced: int = 0,
    n_besides: float = 0.0,
) -> Roulette:
    """P_k = sqrt(b_k/b_1),  b_k = E[T_k^2] - E[T_(k+1)^2]: see `theory.optimal_survival`.

    The roulette whose variance times products is least, for the mean variance over these Jacobians;
    N is drawn per example. Beyond the table P_(k+1)/P_k is the largest spectral radius, which is
    the ratio that the optimum tends to.

    Args:
        jacobian: J, (..., d, d), float64: of one branch at several points, say.
        probe: who draws v.
        n_probes: m.
        n_traced: L; the first L terms then are evaluated always, for the powers beyond them.
        n_besides: products a probe that an estimate costs besides its terms: 2 with `Neumann`.

    Raises:
        ValueError: if `jacobian` is not a finite (..., d, d) array, a spectral radius is 1 or more,
            or `n_probes` or `n_traced` is out of range.

    Source: Rhee and Glynn (2015), "Unbiased estimation with square root convergence for SDE
        models", for the optimum; here the terms are those of log(I + J).

    >>> from resflow_bench.logdet import Gaussian
    >>> roulette = optimal_roulette(-0.5 * np.eye(8), Gaussian())
    >>> str(roulette), roulette.survival(np.arange(1, 5)).round(3).tolist()
    ('tabulated(mean=1.17, decay=0.5), n_exact=1', [1.0, 0.745, 0.259, 0.1])
    """
    rho = float(theory.spectral_radius(jacobian).max())
    for n_tails in (32, 128, MAX_TAILS):
        tails = theory.tail_moments(jacobian, n_tails + n_traced)
        squares = tails.trace**2 + probe.variance(tails, n_probes)  # E[T_k^2], (n_tails + L, ...)
        squares = squares.reshape(len(squares), -1).mean(axis=1)[n_traced:]
        if squares[-1] <= 1e-12 * squares[0]:
            break
    squares = np.r_[np.full(n_traced, squares[0]), squares]  # M_(L+1) for M_1, ..., M_L
    mean_square = float((tails.trace[n_traced] ** 2).mean())
    return _roulette(squares, mean_square, n_besides, max(rho, MIN_DECAY), rho)


@torch.no_grad()
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

    T_k = sum_{l>=k} Delta_l, up to l = `n_terms`, the terms of the estimator's expansion; squared
    and averaged over the draws and the examples, and E[T_1]^2 as the mean product of two different
    draws. Of the table, the first half is kept: there the terms left out do not count.

    Args:
        estimator: whose probe, n_probes, products, expansion and n_traced count.
        g: the branch.
        x: (B, *event), the points whose mean variance is to be small.
        spectral_radius: a bound on rho(J) at these points and others, below 1: the Lipschitz
            constant of g. It is the ratio P_(k+1)/P_k beyond the table, so that the variance is
            finite whatever the pilot saw.
        generator: of the probes.
        n_terms: products a probe, at least 4.
        n_draws: independent draws of the m probes at each point, at least 2.
        n_besides: products a probe that an estimate costs besides its terms.

    Properties: cost n_terms n_draws m products for each point, once. What it gets wrong costs
        variance, never bias.

    Raises:
        ValueError: if `n_terms` or `n_draws` is too small, n_traced not below n_terms/2, or
            `spectral_radius` outside (0, 1).
        TypeError: if the estimator's expansion has no `increments`.
    """
    n_traced, m = estimator.n_traced, estimator.n_probes
    if n_terms < max(4, 2 * n_traced + 2) or n_draws < 2:
        raise ValueError(
            f"pilot_roulette needs n_terms >= 4 and above 2 n_traced + 1, and n_draws >= 2; got "
            f"n_terms={n_terms}, n_draws={n_draws} and n_traced={n_traced}. Raise them."
        )
    increments = getattr(estimator.expansion, "increments", None)
    if increments is None:
        raise TypeError(
            f"pilot_roulette needs an expansion with `increments`; got {estimator.expansion}. Take "
            "`expansion=Taylor()`."
        )
    vjp = estimator.products(g, x).vjp
    v = torch.cat([estimator.probe.sample(m, x, generator) for _ in range(n_draws)])
    terms = increments(vjp, v, n_terms, n_traced).double()
    terms = terms.view(len(terms), n_draws, m, -1).mean(2)
    terms = nn.functional.pad(terms, (0, 0, 0, 0, 0, n_terms - len(terms)))  # where they end early
    tails = terms.flip(0).cumsum(0).flip(0)  # T_k, (n_terms, n_draws, B)
    first = tails[0]
    pairs = first.sum(0) ** 2 - (first**2).sum(0)  # over the n_draws (n_draws - 1) pairs
    mean_square = float(pairs.mean()) / (n_draws * (n_draws - 1))
    squares = (tails**2).mean((1, 2)).cpu().numpy()[: n_terms // 2 + 1]
    return _roulette(squares, mean_square, n_besides, spectral_radius, spectral_radius)


def _roulette(
    squares: np.ndarray, mean_square: float, n_besides: float, decay: float, rho: float
) -> Roulette:
    """n_exact = how many P_k are 1, and the law of the rest."""
    costs = np.ones(len(squares) - 1)
    costs[0] += n_besides
    survival = theory.optimal_survival(squares, mean_square, costs)
    n_exact = int(np.count_nonzero(survival == 1.0))
    table = survival[n_exact - 1 :]
    return Roulette(
        Tabulated(tuple(table[table > 0.0].tolist()), decay), n_exact, spectral_radius=rho
    )
