"""log(I + J) in Chebyshev's polynomials: the series for a spectrum near an interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from resflow_bench import theory
from resflow_bench.jacobian import Jacobian
from resflow_bench.jacobian.operator import inner
from resflow_bench.logdet.expansions.arnoldi import krylov
from resflow_bench.logdet.expansions.compaction import State, longest_first
from resflow_bench.logdet.expansions.expansion import Expanded, WeightedSum
from resflow_bench.logdet.truncation import Fixed, Terms


class SpectralInterval(NamedTuple):
    """An interval of the real axis, meant to contain the real parts of J's eigenvalues."""

    low: float
    high: float


@dataclass(frozen=True)
class Chebyshev:
    """Delta_(L+1+j) = c_j v^T J^(L+1) T_j(tau(J)) v,    tau(t) = (2t - low - high)/(high - low).

    c_j are the coefficients of f(t)/t^(L+1), f(t) = log(1 + t) - its first L powers, in the
    polynomials T_j of [low, high]; Delta_1 = ... = Delta_L = 0. The adjoint is
    s^T = sum_j w_(L+1+j) c'_j v^T J^L T_j(tau(J)), c'_j those of f'(t)/t^L.

    Args:
        low, high: an interval that contains the eigenvalues of J, -1 < low < high, for example from
            `measured_interval`.

    Properties: for eigenvalues in [low, high] the terms fall like r^-j, r = a + sqrt(a^2 - 1),
        a = -tau(-1): 2.0 at +-0.8, where Taylor's fall by 1.25, and 1.6 at +-0.9. For others the
        sum converges where they lie inside the ellipse with foci low and high that passes through
        -1: a disc of radius K, which all J with ||J||_2 <= K may fill, lies inside that of [-K, K]
        only if K < 0.7071, and beyond it the sum diverges for some J, and its roulette with it. The
        bias of a truncated sum is `theory.chebyshev_bias`. Unbiased under a roulette where it
        converges. Cost: N products a probe, compacted as Taylor's. Memory: six vectors shaped like
        v.

    Raises:
        ValueError: unless -1 < low < high.

    Source: Han, Malioutov and Shin (2015), "Large-scale log-determinant computation through
        stochastic Chebyshev expansions", for symmetric matrices and Hutchinson's probes.

    >>> from resflow_bench.logdet import Fixed, LogDetEstimator, Rademacher
    >>> estimator = LogDetEstimator(Rademacher(), Fixed(24), expansion=Chebyshev(-0.8, 0.8))
    >>> estimator(lambda x: 0.5 * x, torch.zeros(1, 4)).value.exp()
    tensor([5.0625])
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        theory.chebyshev_coefficients(self.low, self.high, 0)

    def __str__(self) -> str:
        return f"chebyshev({self.low:g}, {self.high:g})"

    @torch.no_grad()
    def expand(
        self, jacobian: Jacobian, v: Tensor, terms: Terms, n_traced: int, adjoint: bool
    ) -> Expanded:
        work = longest_first(jacobian, v, terms)
        v, n = work.v, max(0, len(work.weights) - n_traced)
        if not work.n_active:
            return work.zero(adjoint)
        coefficients = theory.chebyshev_coefficients(self.low, self.high, n, n_traced)
        value, slope = ([0.0] * n_traced + c.tolist() for c in coefficients)
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        series, s = (WeightedSum(work.weights, n_traced) for _ in range(2))

        def step(k: int, state: State) -> State:
            (jacobian,), (now, before) = state
            product = jacobian.vjp(now)  # v^T J^k, k <= L; then v^T J^(L+1) T_j(tau(J))
            series.add(k, value[k - 1], product)
            if adjoint:
                s.add(k, slope[k - 1], now)
            if (j := k - n_traced - 1) < 0:
                return State((jacobian,), (product, before))
            # T_1 = tau, T_(j+1) = 2 tau T_j - T_(j-1)
            turned = (product - middle * now) / half
            return State((jacobian,), (turned if j == 0 else 2 * turned - before, now))

        work.recur(State((work.jacobian,), (v, v)), step)
        return work.expanded(inner(series.over(1.0), v), s.over(1.0) if adjoint else None)


@torch.no_grad()
def measured_interval(
    jacobian: Jacobian, v: Tensor, n_products: int = 12, margin: float = 0.1
) -> SpectralInterval:
    """The range of x^T J x/x^T x over x in the Krylov spaces of v, widened by a margin.

    The eigenvalues of sym(H), H = V J^T V^T of all examples and probes: inside the numerical range
    of J, whose ends they approach after few products.

    Args:
        v: (m, B, *event), of a batch of at least one example.
        margin: added on both sides, as a share of the interval's length.

    Properties: an observation, not a bound. `low` stays above -1: at least midway between -1
        and the least value found.

    >>> from resflow_bench.logdet import dense
    >>> measured_interval(dense(lambda x: 0.5 * x, torch.zeros(1, 3)).jacobian, torch.ones(1, 1, 3))
    SpectralInterval(low=-0.05, high=0.55)
    """
    h = krylov(jacobian, v, Fixed(n_products).draw(v.shape[1], v, None)).hessenberg
    values = torch.linalg.eigvalsh((h + h.transpose(0, 1)).movedim((0, 1), (2, 3)) / 2)
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    reach = margin * (high - low)
    return SpectralInterval(max(low - reach, (low - 1) / 2), high + reach)
