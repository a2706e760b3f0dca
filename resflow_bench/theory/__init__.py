"""Closed forms with which measurements of a residual flow are compared.

    log(I + J) = sum_{k>=1} (-1)^(k+1) J^k/k,  S_N = its first N terms,  M_k = its terms from k on,

where f(x) = x + g(x) and J is the Jacobian of g; so M_1 = log(I + J) = S_N + M_(N+1). Functions
that take `coefficients` also hold for the series of the other blocks, see `Coefficients`. K bounds
||J||_2, rho is the spectral radius of J, d the dimension, m the number of probes, and P_k the
probability P(N >= k) that a roulette reaches term k.

Everything is float64. Jacobians have shape (..., d, d) and results the leading shape (...).
Log-determinants are in nats, variances in nats squared.

Source: Hutchinson (1990) for the trace estimator and its variance; Avron and Toledo (2011) for the
variance 2 ||A||_F^2; Behrmann et al. (2019), "Invertible Residual Networks", for the series, its
truncation and the inverse; Chen et al. (2019), "Residual Flows", for the roulette. Sharper
results here are derived in their docstrings.
"""

from resflow_bench.theory.bias import log_tail, series, truncation_bias, truncation_bias_bound
from resflow_bench.theory.chebyshev import chebyshev_bias, chebyshev_coefficients
from resflow_bench.theory.coefficients import INVERSE, MONOTONE, RESIDUAL, Coefficients
from resflow_bench.theory.hutchinson import (
    Moments,
    ProbeVariance,
    avron_toledo_bound,
    hadamard_variance,
    hutchinson_variance,
    iid_variance,
    moments,
    orthogonal_variance,
    printed_variance_bound,
    series_variance_bound,
)
from resflow_bench.theory.inverse import residual_error_bounds
from resflow_bench.theory.optimal import optimal_survival
from resflow_bench.theory.roulette import (
    Law,
    TermCount,
    roulette_moment_is_finite,
    roulette_variance,
    roulette_variance_bound,
    roulette_variance_bound_lipschitz,
    roulette_variance_is_finite,
)
from resflow_bench.theory.tails import spectral_radius, tail_moments
from resflow_bench.theory.target import draws_to_target, seconds_to_target
from resflow_bench.theory.weights import (
    error_of_ess,
    ess_loss,
    gaussian_log_moment,
    normal_log_moment,
)

__all__ = [
    "INVERSE",
    "MONOTONE",
    "RESIDUAL",
    "Coefficients",
    "Law",
    "Moments",
    "ProbeVariance",
    "TermCount",
    "avron_toledo_bound",
    "chebyshev_bias",
    "chebyshev_coefficients",
    "draws_to_target",
    "error_of_ess",
    "ess_loss",
    "gaussian_log_moment",
    "hadamard_variance",
    "hutchinson_variance",
    "iid_variance",
    "log_tail",
    "moments",
    "normal_log_moment",
    "optimal_survival",
    "orthogonal_variance",
    "printed_variance_bound",
    "residual_error_bounds",
    "roulette_moment_is_finite",
    "roulette_variance",
    "roulette_variance_bound",
    "roulette_variance_bound_lipschitz",
    "roulette_variance_is_finite",
    "seconds_to_target",
    "series",
    "series_variance_bound",
    "spectral_radius",
    "tail_moments",
    "truncation_bias",
    "truncation_bias_bound",
]
