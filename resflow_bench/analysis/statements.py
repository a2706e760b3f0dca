"""What theory says of each suite, and what is said elsewhere."""

from __future__ import annotations

from resflow_bench.analysis.rules import AtLeast, AtMost, Equals, Exactly, Statement

# A tolerance that the dtype can tell from rounding, and steps enough to reach it.
REACHABLE = (
    "tolerance > 0 and n_steps_bound <= max_steps and "
    "(dtype == 'float64' and tolerance >= 1e-14 or dtype == 'float32' and tolerance >= 1e-6)"
)
BIAS_RESOLUTION = 0.1  # nat: 0.002 bits per dimension at d = 64, below what models are told by
GAP_RESOLUTION = 0.01  # bit/dim: the last digit that likelihoods are printed with
EXPONENT_RESOLUTION = 0.05  # 11 % over a ladder from 1 to 8: what leaving a cache may cost
# All peers draw their number of terms from geometric(0.5). A finite variance takes rho^2 < 1/2
# there; that a mean of some dozen calls has the interval it says, rho^8 < (1/2)^7.
LIGHT_TAILED = "mode == 'series' or spectral_radius < 0.54"

STATEMENTS = (
    Statement(
        "bias",
        "bias as expected",
        "the mean of a truncated estimate is off by exactly tr S_N − ln|det(I + J)|",
        "Hutchinson (1989): E vᵀAv = tr A",
        Equals("bias", "bias_expected", BIAS_RESOLUTION),
        only="truncation == 'fixed'",
    ),
    Statement(
        "bias",
        "bias as expected, paired",
        "so is its mean distance from vᵀ log(I + J) v with the same probes, which has less noise",
        "the same, E vᵀ log(I + J) v being the log-det itself",
        Equals("bias_paired", "bias_expected", BIAS_RESOLUTION),
    ),
    Statement(
        "bias",
        "bias within bound",
        "|bias| ≤ d τ_N(K), with τ_N(K) = Σ_{k>N} Kᵏ/k",
        "Behrmann et al. (2019), theorem 3",
        AtMost("bias_paired", "bias_bound", absolute=True, theory="bias_expected"),
        only="truncation == 'fixed'",
    ),
    Statement(
        "bias",
        "roulette unbiased",
        "a roulette estimate has no bias, whatever its law",
        "Chen et al. (2019), theorem 1",
        Equals("bias", 0.0, BIAS_RESOLUTION),
        only="truncation == 'roulette'",
    ),
    Statement(
        "variance",
        "variance as expected",
        "the variance is the closed form of its probe and truncation",
        "2‖sym A‖² + (κ₄ − 3) Σ A_ii², and Abel summation over the roulette's stops",
        Equals("variance", "variance_expected"),
    ),
    Statement(
        "variance",
        "variance within Avron–Toledo",
        "variance ≤ (2/m) ‖A‖²_F, with A the weighted series",
        "Avron and Toledo (2011), for symmetric A; any A, as vᵀAv = vᵀ sym(A) v",
        AtMost("variance", "variance_bound", theory="variance_expected"),
    ),
    Statement(
        "variance",
        "variance within Lipschitz bound",
        "variance ≤ (2d/m) (Σ_{k≤N} Kᵏ/k)², from K, d, m and N alone (roulette: its like)",
        "‖Jᵏ‖_F ≤ √d Kᵏ and the triangle inequality",
        AtMost("variance", "variance_bound_lipschitz", theory="variance_expected"),
    ),
    Statement(
        "inverse",
        "error within certificate",
        "‖x̂ − x‖ ≤ ‖x̂ − x′‖ + ‖r′‖ / m, x′ the inverse in float64, r′ its residual, m ≥ 1 − K",
        "‖f(x) − f(y)‖ ≥ m ‖x − y‖, block by block; Banach's theorem for m = 1 − K",
        Exactly("error_over_bound", 1.0),
    ),
    Statement(
        "inverse",
        "error within Banach's rate",
        "after n steps, ‖x̂ − x‖ ≤ Kⁿ ‖g(y)‖ / (1 − K), block by block (float64, above rounding)",
        "Banach's fixed-point theorem, a priori",
        Exactly("inverse_error", "inverse_error_banach"),
        # Far above the rounding floor u / (1 - K), of which a theorem on real numbers says nothing.
        only="dtype == 'float64' and inverse_error_banach > 1e-6",
    ),
    Statement(
        "inverse",
        "steps within Banach's count",
        "no more steps than ln(ε (1 − K) / ‖g(y)‖) / ln K",
        "Banach's fixed-point theorem, a priori",
        Exactly("n_steps", "n_steps_bound"),
        only=REACHABLE,
    ),
    Statement(
        "inverse",
        "every solve converged",
        "every point met its tolerance",
        "K < 1 and a tolerance above the rounding floor u / (1 − K)",
        Exactly("outcome", 0.0),
        only=REACHABLE,
    ),
    Statement(
        "lipschitz",
        "certified within promised",
        "the product of the layers' norms, by SVD in float64, keeps the promise K",
        "Lip(g) ≤ Π ‖W_j‖₂ Lip(φ_j)",
        Exactly("lipschitz_certified", "lipschitz_promised"),
    ),
    Statement(
        "lipschitz",
        "realised within certified",
        "‖J(x)‖₂ at the points is no larger than the certified constant",
        "‖J(x)‖₂ ≤ Lip(g)",
        Exactly("lipschitz_realised", "lipschitz_certified"),
    ),
    Statement(
        "lipschitz",
        "spectral radius within norm",
        "ρ(J(x)) ≤ ‖J(x)‖₂",
        "every eigenvalue is at most any operator norm",
        Exactly("spectral_radius", "lipschitz_realised"),
    ),
    Statement(
        "throughput",
        "no faster than the hardware",
        "no more floating-point work a second than matrix products reach in the same run",
        "the rate of a large matrix product on the same device and dtype",
        AtMost("flops_fraction", 1.0),
    ),
    Statement(
        "scaling",
        "work no worse than linear",
        "the FLOPs of a log-prob are at most proportional to its terms, probes and examples",
        "one product a term, probe and example",
        Exactly("exponent_flops", 1.0),
    ),
    Statement(
        "scaling",
        "seconds no worse than linear",
        f"its seconds grow as nᵉ with e ≤ {1 + EXPONENT_RESOLUTION:g}",
        "seconds in proportion to products, and a constant, which makes e less than 1",
        AtMost("exponent", 1 + EXPONENT_RESOLUTION),
    ),
    Statement(
        "training_gap",
        "gap as expected",
        "a truncated objective is off by Σ tr S_N − ln|det(I + J)| over the blocks, over d ln 2",
        "Hutchinson (1989): E vᵀAv = tr A",
        Equals("gap", "gap_expected", GAP_RESOLUTION),
    ),
    Statement(
        "training_gap",
        "gap within bound",
        "|gap| ≤ Σ d τ_N(K) / (d ln 2), the sum over blocks",
        "Behrmann et al. (2019), theorem 3",
        AtMost("gap", "gap_bound", absolute=True, theory="gap_expected"),
        only="truncation == 'fixed'",
    ),
    Statement(
        "training_gap",
        "no gap with a roulette",
        "a roulette objective is off by nothing in the mean",
        "Chen et al. (2019), theorem 1",
        Equals("gap", 0.0, GAP_RESOLUTION),
        only="truncation == 'roulette'",
    ),
    Statement(
        "density",
        "no better than the truth",
        "E[ln p_true(x) − ln p(x)] ≥ 0 over x from the true density",
        "Gibbs' inequality: a Kullback–Leibler divergence is at least 0",
        AtLeast("divergence", 0.0),
    ),
    Statement(
        "efficiency",
        "variance as expected",
        "the variance of a candidate is the closed form of its probe, truncation and traces",
        "2‖sym A‖² + (κ₄ − 3) Σ A_ii², and Abel summation over the roulette's stops",
        Equals("variance", "variance_expected"),
    ),
    Statement(
        "efficiency",
        "bias as expected",
        "the mean of a truncated estimate is off by exactly tr S_N − ln|det(I + J)|",
        "Hutchinson (1989): E vᵀAv = tr A",
        Equals("bias", "bias_expected", BIAS_RESOLUTION),
        only="implementation == 'ours' and truncation == 'fixed'",
    ),
    Statement(
        "efficiency",
        "unbiased",
        "no remedy costs bias: traces, strata, a control, a tuned roulette; nor has a determinant",
        "Chen et al. (2019), theorem 1",
        Equals("bias", "bias_expected", BIAS_RESOLUTION),
        only="implementation == 'ours' and truncation != 'fixed'",
    ),
    Statement(
        "peers",
        "value as its formula",
        "the mean of an implementation's estimates is that of the formula in its source",
        "its source, evaluated on the blocks' Jacobians",
        Equals("bias", "bias_expected", BIAS_RESOLUTION),
        only=LIGHT_TAILED,
    ),
    Statement(
        "training",
        "promise kept while training",
        "after every update, no block's certified constant is above the promise",
        "the certificate that ends each update",
        Exactly("lipschitz_certified", "lipschitz"),
    ),
)
# What is said elsewhere and is wrong: a cell that violates it is a finding, not our failure.
CLAIMS = (
    Statement(
        "variance",
        "variance within 2 H_N √d / m, as printed",
        "variance ≤ 2 H_N √d / m, as printed in a widely read post",
        "there the norm lost its square and the sum its signs; right is (2d/m) (Σ_{k≤N} Kᵏ/k)²",
        AtMost("variance", "variance_bound_printed", theory="variance_expected"),
        only="truncation == 'fixed'",
    ),
    Statement(
        "peers",
        "the value is the log-determinant",
        "the mean of an implementation's estimates is ln |det(I + J)|",
        "said of each estimator in its source; judged by the mean of its formula, without draws",
        Equals("bias_expected", 0.0, BIAS_RESOLUTION),
        only="implementation != 'ours' and mode != 'series'",
    ),
    Statement(
        "peers",
        "the inverse keeps its tolerance",
        "‖x̂ − x‖ is at most the tolerance that the inverse was asked for",
        "the tolerance's name; a bound on a step is none on the error",
        Exactly("inverse_error", "inverse_asked"),
        only="implementation != 'ours'",
    ),
)
