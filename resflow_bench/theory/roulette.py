"""The variance of the roulette estimator: its finiteness, value and bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import spence

from resflow_bench.theory.bias import log_of_tail
from resflow_bench.theory.checks import Floats, at_least, contraction, probe_count, square
from resflow_bench.theory.coefficients import RESIDUAL, Coefficients
from resflow_bench.theory.hutchinson import Moments, ProbeVariance
from resflow_bench.theory.tails import late_tails, scaled_tails, spectral_radius

_MAX_TERMS = 2**19  # enough unless rho^2 is within 0.005 % of decay; 2 s at d = 64
_DENSE_TERMS = 2**13  # from which on the tails come from eigenvectors; 0.25 s at d = 64
_RTOL = 1e-12


class Law(Protocol):
    """The law of a number M of terms on {0, 1, 2, ...}, by its survival function."""

    @property
    def decay(self) -> float:
        """lim P(M >= j + 1) / P(M >= j), which decides which moments of an estimate are finite."""

    def __hash__(self) -> int: ...

    def survival(self, j: np.ndarray) -> np.ndarray:
        """P(M >= j) in float64, to full relative precision however far in the tail."""


class TermCount(Protocol):
    """A random number of terms N = n_exact + M."""

    @property
    def law(self) -> Law:
        """The law of M."""

    @property
    def n_exact(self) -> int:
        """The number of terms that are always evaluated."""

    def survival(self, k: np.ndarray) -> np.ndarray:
        """P(N >= k), to full relative precision in the tail."""


def roulette_moment_is_finite(
    spectral_radius: ArrayLike, roulette: TermCount, order: float = 2
) -> NDArray[np.bool_]:
    """rho^p < decay^(p-1), or rho = 0: the condition for E|Y|^p < inf of the roulette estimate Y.

    decay = lim P_(k+1)/P_k: 1 - stop for geometric laws; 0 for Poisson laws, under which no moment
    above the first is finite unless J is nilpotent. On the boundary the answer is False, though
    the variance of a diagonalisable J is finite there.

    Derivation: |Y| ~ (rho/decay)^n on {N = n}, which has probability ~ decay^n.

    Raises:
        ValueError: if a spectral radius is negative or `order` is below 1.

    Source: by the derivation above; Chen et al. (2019), section 3.1, only ask that it be finite.
    """
    rho = np.asarray(spectral_radius, dtype=np.float64)
    if not (rho >= 0.0).all():
        raise ValueError(
            f"roulette_moment_is_finite needs spectral radii of at least 0; got {rho.min()}. "
            "Pass max |eigenvalue| of the Jacobian of g."
        )
    p = at_least("roulette_moment_is_finite", "order", order, 1)
    return np.asarray((rho**p < roulette.law.decay ** (p - 1)) | (rho == 0.0))


def roulette_variance_is_finite(
    spectral_radius: ArrayLike, roulette: TermCount
) -> NDArray[np.bool_]:
    """rho^2 < decay, or rho = 0: `roulette_moment_is_finite` of order 2.

    Raises:
        ValueError: if a spectral radius is negative.
    """
    return roulette_moment_is_finite(spectral_radius, roulette, 2)


def roulette_variance(
    jacobian: ArrayLike,
    roulette: TermCount,
    probe: ProbeVariance,
    n_probes: int = 1,
    min_survival: float = 0.0,
    n_traced: int = 0,
    coefficients: Coefficients = RESIDUAL,
) -> Floats:
    """V_m(M_1) + sum_{k>=1} [(tr M_k)^2 + V_m(M_k)] (1/P_k - 1/P_(k-1)), P_0 = 1; shape (...).

    The exact variance, with V_m(A) = Var((1/m) sum_j v_j^T A v_j) from `probe`, of

        Y = sum_{k<=N} a_k/P_k,  a_k = (-1)^(k+1)/k (1/m) sum_j v_j^T J^k v_j,

    N independent of the v_j. The first part is the probes' noise, the second the roulette's, to
    which a k with P_k = P_(k-1) adds nothing. If the first L traces are taken exactly, a_k = 0 for
    k <= L and M_(L+1) stands for M_1, ..., M_L.

    Derivation, with T_k = sum_{l>=k} a_l = (1/m) sum_j v_j^T M_k v_j:

    1. For fixed probes E[Y^2] = sum_{k,l} a_k a_l/P_min(k,l) = sum_k (T_k^2 - T_(k+1)^2)/P_k.
    2. By parts, less E[Y]^2 = T_1^2: sum_k T_k^2 (1/P_k - 1/P_(k-1)).
    3. Over the probes E[T_k^2] = (tr M_k)^2 + V_m(M_k), and Var(T_1) = V_m(M_1) adds to it.

    Args:
        min_survival: q. If positive, only terms with P_k >= q are summed: the variance that about
            1/q draws can show, of interest where the variance is infinite.
        n_traced: L.
        coefficients: c_k in the place of (-1)^(k+1)/k; the derivation holds for any.

    Returns:
        To a relative 1e-8 or better (1e-6 if rho^2 is within 1e-6 of decay): the sum ends where a
        bound on its rest is 1e-12 of it, or after 524,288 terms, with the rest extrapolated by its
        law rho^(2k)/(k^2 P_k). inf where `roulette_variance_is_finite` is False and `min_survival`
        is 0, and where rho >= 1. Laws lighter than geometric lose the terms with P_k < 1e-290.

    Raises:
        ValueError: if `jacobian` is not a finite (..., d, d) array, `n_probes` is below 1,
            `n_traced` below 0, or `min_survival` is outside [0, 1].
        ArithmeticError: if `min_survival` asks for more than 524,288 terms of a divergent sum.

    Source: Chen et al. (2019), Theorem 1, for the estimator; the variance by the derivation above.
    """
    j = square("roulette_variance", jacobian)
    m = probe_count("roulette_variance", n_probes)
    n_traced = int(at_least("roulette_variance", "n_traced", n_traced, 0))
    if not 0.0 <= min_survival <= 1.0:
        raise ValueError(
            f"roulette_variance needs 0 <= min_survival <= 1; got {min_survival}. It is the "
            "probability below which a term is left out: 1e-9, say."
        )

    def variance(j: np.ndarray, rho: float) -> float:
        if rho >= 1.0 or not (min_survival > 0.0 or roulette_variance_is_finite(rho, roulette)):
            return math.inf
        squares = partial(_squares, j, rho, probe, m, n_traced, coefficients)
        decay = roulette.law.decay
        ratio = 0.0 if rho == 0.0 else rho**2 / decay if decay > 0.0 else math.inf
        return _weighted_sum(squares, ratio, roulette, min_survival, len(j))

    rho = spectral_radius(j)
    flat = j.reshape(-1, *j.shape[-2:])
    each = [variance(one, r) for one, r in zip(flat, rho.ravel(), strict=True)]
    return np.array(each).reshape(rho.shape)


def roulette_variance_bound(
    jacobian: ArrayLike,
    roulette: TermCount,
    n_probes: int = 1,
    n_traced: int = 0,
    coefficients: Coefficients = RESIDUAL,
) -> Floats:
    """`roulette_variance` with each V_m(M_k) replaced by its bound (2/m) ||M_k||_F^2.

    Equals E[(2/m) ||A_N||_F^2] + Var(tr A_N), A_N the weighted sum of N terms; shape (...),
    inf where the variance is.

    Raises:
        ValueError: if `jacobian` is not a finite (..., d, d) array, `n_probes` is below 1 or
            `n_traced` below 0.

    Source: Avron and Toledo (2011), Table 1, given N.
    """
    bound = _AvronToledo()
    return roulette_variance(jacobian, roulette, bound, n_probes, 0.0, n_traced, coefficients)


def roulette_variance_bound_lipschitz(
    lipschitz: float,
    dim: int,
    roulette: TermCount,
    n_probes: int = 1,
    n_traced: int = 0,
    coefficients: Coefficients = RESIDUAL,
) -> float:
    """(2d/m) t_1^2 + (d^2 + 2d/m) sum_{k>=1} t_k^2 (1/P_k - 1/P_(k-1)), t_k = sum_{l>=k} K^l/l.

    With `n_traced` = L the t_(L+1) stands for t_1, ..., t_L. Of another block's series
    t_k = sum_{l>=k} |c_l| K^l.

    Bounds `roulette_variance` for every J with ||J||_2 <= K; attained by J = -K I with Gaussian
    probes. The d^2: the roulette's noise is common to all dimensions, the probes' is not. inf where
    K^2 >= decay.

    Raises:
        ValueError: if K is outside [0, 1), `dim` or `n_probes` is below 1, or `n_traced` below 0.

    Source: `roulette_variance` with |tr M_k| <= d t_k and ||M_k||_F^2 <= d t_k^2.
    """
    k = float(contraction("roulette_variance_bound_lipschitz", lipschitz))
    d = float(at_least("roulette_variance_bound_lipschitz", "dim", dim, 1))
    m = probe_count("roulette_variance_bound_lipschitz", n_probes)
    n_traced = int(at_least("roulette_variance_bound_lipschitz", "n_traced", n_traced, 0))
    if not roulette_variance_is_finite(k, roulette):
        return math.inf
    if k == 0.0:
        return 0.0

    def squares(n: int) -> tuple[float, Floats, Floats]:
        log_t = log_of_tail(np.array(k), np.maximum(np.arange(n), n_traced), coefficients)
        log_square = math.log(d**2 + 2.0 * d / m) + 2.0 * log_t
        return 2.0 * d / m * math.exp(2.0 * log_t[0]), log_square, log_square

    return _weighted_sum(squares, k**2 / roulette.law.decay, roulette, 0.0, 1)


class _AvronToledo:
    """The bound on V_m(A) in the place of a probe's V_m(A)."""

    def variance(self, moments: Moments, n_probes: int) -> Floats:
        return np.asarray(2.0 * moments.frobenius_sq / n_probes)


def _squares(
    j: np.ndarray,
    rho: float,
    probe: ProbeVariance,
    m: int,
    n_traced: int,
    coefficients: Coefficients,
    n: int,
) -> tuple[float, Floats, Floats]:
    """V_m(M_1), and log[(tr M_k)^2 + V_m(M_k)] with its envelope, k = 1..n, of one J (d, d)."""
    scaled, log_scale = _tails(j, rho, n + n_traced, coefficients)
    seen = np.maximum(np.arange(n), n_traced)  # M_(L+1) in the place of M_1 ... M_L
    scaled, log_scale = Moments(scaled.dim, *(f[seen] for f in scaled[1:])), log_scale[seen]
    noise = probe.variance(scaled, m)
    with np.errstate(divide="ignore"):  # M_k = 0
        log_square = np.log(scaled.trace**2 + noise) + 2.0 * log_scale
        log_envelope = np.log((len(j) + 2.0 / m) * scaled.frobenius_sq) + 2.0 * log_scale
    return float(noise[0] * np.exp(2.0 * log_scale[0])), log_square, log_envelope


def _tails(j: np.ndarray, rho: float, n: int, coefficients: Coefficients) -> tuple[Moments, Floats]:
    """`scaled_tails`; after `_DENSE_TERMS` terms from the eigenvectors, if they keep the digits."""
    n_dense = min(n, _DENSE_TERMS)
    scaled, log_scale = scaled_tails(j, rho, n_dense, coefficients)
    if n == n_dense:
        return scaled, log_scale
    try:
        late, log_late = late_tails(j, n_dense, n, coefficients)
    except np.linalg.LinAlgError:  # eigenvectors that are the same to rounding
        return scaled_tails(j, rho, n, coefficients)
    ratio = math.exp(2.0 * (log_late[0] - log_scale[-1]))
    if not math.isclose(late.frobenius_sq[0] * ratio, scaled.frobenius_sq[-1], rel_tol=1e-9):
        return scaled_tails(j, rho, n, coefficients)
    fields = (np.append(a, b[1:]) for a, b in zip(scaled[1:], late[1:], strict=True))
    return Moments(scaled.dim, *fields), np.append(log_scale, log_late[1:])


def _weighted_sum(
    squares: Callable[[int], tuple[float, Floats, Floats]],
    ratio: float,
    roulette: TermCount,
    min_survival: float,
    n_zero: int,
) -> float:
    """first + sum_k square_k (1/P_k - 1/P_(k-1)).

    squares(n) is (first, log square_k, log envelope_k), k = 1..n, where the envelope bounds the
    square and does not oscillate with k. Times the weights both end as ratio^k/k^2; if ratio = 0,
    they are zero for k > n_zero.
    """
    n_reachable = _n_reachable(roulette, min_survival)
    if ratio >= 1.0 and n_reachable > _MAX_TERMS:
        raise ArithmeticError(
            f"roulette_variance sums at most {_MAX_TERMS} terms of a divergent series; got "
            f"min_survival = {min_survival}, which asks for more. Raise `min_survival`."
        )
    if ratio >= 1.0:
        n = n_reachable
    elif ratio == 0.0:
        n = roulette.n_exact + n_zero
    else:
        n_decay = math.ceil(math.log(0.1 * _RTOL * (1.0 - ratio)) / math.log(ratio))
        n = roulette.n_exact + 16 + n_decay
    while True:
        n = max(1, min(n, n_reachable, _MAX_TERMS))
        first, log_square, log_envelope = squares(n)
        log_weight = _log_weights(roulette, n)
        log_weight[n_reachable:] = -math.inf
        with np.errstate(over="ignore"):  # a variance above 1e308 is inf
            terms = np.exp(log_square + log_weight)
        total = first + float(terms.sum())
        rest = math.inf
        if n < n_reachable:
            rest = _rest((log_envelope + log_weight)[roulette.n_exact :], ratio)
        if n >= n_reachable or rest <= _RTOL * total or not math.isfinite(total):
            return total
        if n == _MAX_TERMS:
            return total + _extrapolate(terms, ratio)
        n *= 2


def _rest(log_terms: np.ndarray, ratio: float) -> float:
    """A bound on the sum of the terms that follow, at the slower of final and present rate."""
    n = len(log_terms)
    back = max(1, n // 4)
    last, before = log_terms[-1], log_terms[-1 - back] if back < n else -math.inf
    if last == -math.inf:
        return 0.0 if ratio == 0.0 or before == -math.inf else math.inf
    if before == -math.inf:
        return math.inf
    rate = max(ratio, math.exp((last - before) / back))
    return math.exp(last) * rate / (1.0 - rate) if rate < 1.0 else math.inf


def _extrapolate(terms: np.ndarray, ratio: float) -> float:
    """sum_{k>n} terms_k, if terms_k = ratio^k/k^2 (a + b/k), a and b from the second half.

    sum_{k>=1} ratio^k/k^2 is the dilogarithm; with 1/k^3 a million terms are enough.
    """
    n = len(terms)
    k = np.arange(1.0, n + 1.0)
    shape = ratio**k / k**2
    half = slice(n // 2, None)
    b, a = np.polyfit(1.0 / k[half], terms[half] / shape[half], 1)
    beyond = np.arange(n + 1.0, n + 2.0**20)
    square = float(spence(1.0 - ratio)) - math.fsum(shape)
    cube = float((ratio**beyond / beyond**3).sum())
    return float(a * square + b * cube)


def _n_reachable(roulette: TermCount, min_survival: float) -> int:
    """The number of k with P_k >= min_survival, _MAX_TERMS + 1 if more or min_survival is 0."""
    if min_survival == 0.0:
        return _MAX_TERMS + 1
    survival = roulette.survival(np.arange(1, _MAX_TERMS + 2))
    return int(np.count_nonzero(survival >= min_survival))


def _log_weights(roulette: TermCount, n: int) -> Floats:
    """log(1/P_k - 1/P_(k-1)), k = 1..n, P_0 = 1; P_k itself may be below the smallest float64."""
    decay = roulette.law.decay
    survival = np.asarray(roulette.survival(np.arange(n + 1)), dtype=np.float64)
    survival[0] = 1.0
    known = int(np.count_nonzero(survival > 1e-290))  # it never rises; below, it loses digits
    log_survival = np.log(survival[:known])
    stops = 1.0 - survival[1:known] / survival[: known - 1]
    if known <= n and decay > 0.0:
        beyond = np.arange(1, n + 2 - known)
        log_survival = np.append(log_survival, log_survival[-1] + beyond * math.log(decay))
        stops = np.append(stops, np.full(len(beyond), 1.0 - decay))
    weights = np.full(n, -math.inf)
    with np.errstate(divide="ignore"):  # P_k = P_(k-1): weight 0
        weights[: len(stops)] = np.log(stops) - log_survival[1:]
    return weights
