"""Each closed form against its definition, and against numbers worked out elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import reference
from reference import linear_families
from scipy import special

from resflow_bench import theory
from resflow_bench.logdet import Gaussian, Geometric, Rademacher, Roulette

PROBES = {"gaussian": Gaussian(), "rademacher": Rademacher()}
FAMILIES = sorted(linear_families(3, 0.5))
IDENTITY = np.eye(1)


# --- truncation ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lipschitz", "n_terms", "printed"),
    [
        (0.3, 1, 5.67e-2),
        (0.3, 5, 1.64e-4),
        (0.3, 20, 7.07e-13),
        (0.5, 2, 6.82e-2),
        (0.5, 10, 8.23e-5),
        (0.5905, 5, 1.46e-2),
        (0.7, 50, 7.9e-10),
        (0.9, 1, 1.403),
        (0.9, 10, 1.84e-1),
        (0.9412, 20, 1.48e-1),
        (0.98, 10, 1.174),
        (0.99, 50, 5.51e-1),
    ],
)
def test_log_tail_is_the_table(lipschitz: float, n_terms: int, printed: float) -> None:
    assert theory.log_tail(lipschitz, n_terms) == pytest.approx(printed, rel=7e-3)


@pytest.mark.parametrize(
    "lipschitz", [1e-8, 0.3, 0.7, 0.98, 0.9899, 0.9901, 0.999, 1 - 1e-6, 1 - 1e-12]
)
def test_log_tail_is_the_integral(lipschitz: float) -> None:
    n_terms = [0, 1, 3, 10, 99, 150, 1000]
    truth = [reference.log_tail(lipschitz, n) for n in n_terms]
    found = theory.log_tail(lipschitz, n_terms)
    np.testing.assert_allclose(found, truth, rtol=2e-12, atol=1e-300)


def test_log_tail_has_digits_where_the_two_shorter_ways_have_none() -> None:
    n = np.arange(1, 51)
    assert abs(-math.log1p(-0.3) - (0.3**n / n).sum()) < 1e-15  # the difference: rounding
    assert theory.log_tail(0.3, 50) == pytest.approx(reference.log_tail(0.3, 50), rel=1e-12)
    assert math.isnan(special.hyp2f1(1.0, 501.0, 502.0, 0.98))  # scipy's 2F1
    assert theory.log_tail(0.98, 500) == pytest.approx(reference.log_tail(0.98, 500), rel=1e-12)


@pytest.mark.parametrize(
    ("lipschitz", "n_terms"),
    [(0.5, 7), (0.59, 10), (0.7, 14), (0.8, 23), (0.9, 49), (0.95, 100), (0.98, 253), (0.99, 509)],
)
def test_as_many_terms_as_a_thousandth_of_a_nat_takes(lipschitz: float, n_terms: int) -> None:
    before, after = theory.log_tail(lipschitz, [n_terms - 1, n_terms])
    assert after <= 1e-3 < before


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("n_terms", [0, 1, 2, 7, 30])
@pytest.mark.parametrize("lipschitz", [0.3, 0.83, 0.97])
def test_truncation_bias_is_the_difference_and_within_its_bound(
    name: str, n_terms: int, lipschitz: float
) -> None:
    j = linear_families(8, lipschitz)[name]
    bias = float(theory.truncation_bias(j, n_terms))
    truth = np.trace(reference.series(j, n_terms)) - reference.log_det(j)
    assert bias == pytest.approx(truth, abs=1e-13)
    bound = float(theory.truncation_bias_bound(lipschitz, 8, n_terms))
    assert abs(bias) <= bound * (1 + 1e-12)
    if name == "minus-identity":
        assert bias == pytest.approx(bound, rel=1e-12)
    np.testing.assert_allclose(theory.series(j, n_terms), reference.series(j, n_terms), atol=1e-14)


@pytest.mark.parametrize(
    ("eigenvalue", "n_terms", "bias"),
    [(0.9, 4, -0.068), (-0.9, 4, 0.591), (0.9, 5, 0.050), (-0.9, 5, 0.473)],
)
def test_the_sign_of_the_bias_is_that_of_the_first_term_left_out(
    eigenvalue: float, n_terms: int, bias: float
) -> None:
    found = float(theory.truncation_bias(eigenvalue * IDENTITY, n_terms))
    assert found == pytest.approx(bias, abs=6e-4)


def test_a_triangular_jacobian_has_no_bias_at_all_but_has_variance() -> None:
    j = linear_families(32, 0.9)["triangular"]
    for nilpotent in (j, j.T, j[::-1, ::-1]):
        assert theory.truncation_bias(nilpotent, 3) == 0.0
        assert theory.spectral_radius(nilpotent) == 0.0
    assert theory.hutchinson_variance(theory.series(j, 3), Rademacher()) > 1.0


def test_a_bias_of_1e_20_has_its_digits() -> None:
    j = linear_families(6, 0.3)["gaussian"]
    truth = -np.trace(reference.tail(j, 31))
    assert 0.0 < abs(truth) < 1e-20
    assert theory.truncation_bias(j, 30) == pytest.approx(truth, rel=1e-9)


def test_truncation_bias_of_no_contraction_is_still_the_difference() -> None:
    j = np.stack([np.diag([3.0, -0.4, 0.2]), np.diag([-4.0, 0.995, -0.9999])])
    truth = [np.trace(reference.series(a, 5)) - reference.log_det(a) for a in j]
    np.testing.assert_allclose(theory.truncation_bias(j, 5), truth, rtol=1e-12)
    assert theory.truncation_bias(-np.eye(2), 5) == math.inf  # det(I + J) = 0


# --- Hutchinson -----------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("n_probes", [1, 2])
def test_hutchinson_variance_over_every_value_of_the_probe(probe: str, n_probes: int) -> None:
    a = np.random.default_rng(1).standard_normal((4, 4))
    truth = reference.hutchinson_variance(a, probe, n_probes)
    found = float(theory.hutchinson_variance(a, PROBES[probe], n_probes))
    assert found == pytest.approx(truth, rel=1e-12)
    if probe == "gaussian":
        symmetric_only = 2 * np.linalg.norm(a) ** 2 / n_probes
        assert symmetric_only != pytest.approx(truth, rel=0.1)  # the lemma for A = A^T
        assert 2 * np.linalg.norm(a) / n_probes != pytest.approx(truth, rel=0.1)  # without a square
        assert theory.avron_toledo_bound(a, n_probes) == pytest.approx(symmetric_only)


@pytest.mark.parametrize("fourth_moment", [1.0, 1.8, 3.0, 9.0])
def test_iid_variance_is_the_sum_over_all_fourth_moments(fourth_moment: float) -> None:
    a = np.random.default_rng(2).standard_normal((3, 6, 6))
    found = theory.iid_variance(theory.moments(a), fourth_moment)
    truth = [reference.fourth_order_variance(each, fourth_moment) for each in a]
    np.testing.assert_allclose(found, truth, rtol=1e-12)


def test_what_probes_do_not_see() -> None:
    families = linear_families(32, 0.9)
    moments = theory.moments(families["antisymmetric"])
    assert moments.symmetric_sq == 0.0 < moments.frobenius_sq
    for name in ("minus-identity", "plus-identity"):
        s = theory.series(families[name], 10)
        assert theory.hutchinson_variance(s, Rademacher()) == 0.0
    nearly_diagonal = np.eye(4) + 1e-9 * np.eye(4, k=1)
    found = float(theory.hutchinson_variance(nearly_diagonal, Rademacher()))
    assert found == pytest.approx(3e-18, rel=1e-12)  # no difference of large numbers


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("lipschitz", "n_terms"), [(0.5, 5), (0.9, 10), (0.98, 20)])
def test_bounds_on_the_variance_in_order_of_sharpness(
    name: str, lipschitz: float, n_terms: int
) -> None:
    s = theory.series(linear_families(32, lipschitz)[name], n_terms)
    chain = [
        theory.hutchinson_variance(s, Rademacher(), 4),
        theory.hutchinson_variance(s, Gaussian(), 4),
        theory.avron_toledo_bound(s, 4),
        theory.series_variance_bound(lipschitz, 32, n_terms, 4),
        theory.series_variance_bound(lipschitz, 32, n_probes=4),
    ]
    assert all(low <= high * (1 + 1e-12) for low, high in pairwise(chain))
    if name == "minus-identity":
        assert chain[1] == pytest.approx(float(chain[3]), rel=1e-12)


@pytest.mark.parametrize(
    ("lipschitz", "n_terms", "variance", "printed"),
    [(0.5, 5, 30.34, 25.83), (0.9, 10, 287.30, 33.1)],
)
def test_the_printed_bound_is_violated(
    lipschitz: float, n_terms: int, variance: float, printed: float
) -> None:
    s = theory.series(-lipschitz * np.eye(32), n_terms)
    assert theory.hutchinson_variance(s, Gaussian()) == pytest.approx(variance, abs=0.01)
    assert theory.series_variance_bound(lipschitz, 32, n_terms) == pytest.approx(variance, abs=0.01)
    assert theory.printed_variance_bound(32, n_terms) == pytest.approx(printed, abs=0.05)
    assert theory.printed_variance_bound(32, n_terms, 2) == pytest.approx(printed / 2, abs=0.05)


@pytest.mark.parametrize(
    ("lipschitz", "deviation"), [(0.5, 0.980), (0.9, 3.26), (0.941, 4.01), (0.98, 5.53)]
)
def test_the_deviation_of_the_infinite_series(lipschitz: float, deviation: float) -> None:
    bound = theory.series_variance_bound(lipschitz, dim=7, n_probes=7)
    assert math.sqrt(bound) == pytest.approx(deviation, rel=2e-3)


def test_without_contraction_the_bound_tends_to_the_harmonic_sum() -> None:
    harmonic = sum(1 / k for k in range(1, 11))
    found = float(theory.series_variance_bound(1 - 1e-12, 3, 10, 2))
    assert found == pytest.approx(3 * harmonic**2, rel=1e-9)


# --- the inverse ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("lipschitz", [0.3, 0.9, 0.98])
def test_bounds_on_the_error_of_the_inverse(name: str, lipschitz: float) -> None:
    j = linear_families(6, lipschitz)[name]
    x = np.random.default_rng(4).standard_normal(6)
    z = x + j @ x
    iterates = reference.picard(j, z, 40)
    for iterate in iterates:
        error = np.linalg.norm(iterate - x)
        residual = np.linalg.norm(z - iterate - j @ iterate)
        low, high = theory.residual_error_bounds(residual, lipschitz)
        assert low <= error * (1 + 1e-12) + 1e-14
        assert error <= high * (1 + 1e-12) + 1e-14
        if name == "minus-identity":
            assert error == pytest.approx(float(high), rel=1e-9)
        if name == "plus-identity":
            assert error == pytest.approx(float(low), rel=1e-9)


# --- the seconds to a target ----------------------------------------------------------------------


def test_seconds_to_a_target() -> None:
    """n draws reach bias^2 + variance/n = target^2, and one draw always costs its seconds."""
    variance, bias, target = 0.5, np.array([0.0, -0.1, 0.3]), 0.4
    n_draws = theory.draws_to_target(variance, bias, target)
    np.testing.assert_allclose(bias**2 + variance / n_draws, target**2, rtol=1e-12)
    np.testing.assert_array_equal(
        theory.seconds_to_target(2.0, variance, bias, target), 2.0 * n_draws
    )
    assert theory.seconds_to_target(2.0, 1e-6, 0.0, 0.4) == 2.0


@pytest.mark.parametrize(
    ("variance", "bias", "share"),
    [(math.inf, 0.0, 1.0), (0.1, 0.4, 1.0), (0.0, -0.5, 1.0), (0.0, 0.041, 0.1)],
)
def test_no_number_of_draws_reaches_it(variance: float, bias: float, share: float) -> None:
    """An infinite variance, a bias of the target or more, and a bias above its share."""
    assert theory.seconds_to_target(1.0, variance, bias, 0.4, share) == math.inf
    assert theory.seconds_to_target(1.0, 0.0, 0.039, 0.4, share) == 1.0


# --- what may be passed ---------------------------------------------------------------------------

EYE = 0.5 * np.eye(2)
ROULETTE = Roulette(Geometric(0.5), n_exact=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.log_tail(1.03, 5), r"log_tail needs 0 <= lipschitz < 1; got 1\.03"),
        (lambda: theory.log_tail(math.nan, 5), "needs 0 <= lipschitz < 1; got nan"),
        (lambda: theory.log_tail(0.5, -1), r"needs n_terms of at least 0; got -1"),
        (lambda: theory.truncation_bias_bound(0.5, 0, 3), "needs dim of at least 1; got 0"),
        (
            lambda: theory.truncation_bias(np.ones((2, 3)), 3),
            r"square matrices.*got shape \(2, 3\)",
        ),
        (lambda: theory.series(np.full((2, 2), np.nan), 3), "finite matrices; got NaN or inf"),
        (lambda: theory.hutchinson_variance(EYE, Gaussian(), 0), "n_probes of at least 1; got 0"),
        (lambda: theory.series_variance_bound(-0.1, 2), r"got -0\.1"),
        (lambda: theory.printed_variance_bound(2, 0), "needs n_terms of at least 1; got 0"),
        (lambda: theory.tail_moments(EYE, 0), "needs n_tails of at least 1; got 0"),
        (
            lambda: theory.roulette_variance(EYE, ROULETTE, Gaussian(), min_survival=2.0),
            r"0 <= min_survival <= 1; got 2\.0",
        ),
        (lambda: theory.roulette_moment_is_finite(-1.0, ROULETTE), r"at least 0; got -1\.0"),
        (lambda: theory.draws_to_target(-1.0, 0.0, 1.0), r"variance of at least 0\.0; got -1\.0"),
        (lambda: theory.residual_error_bounds(1.0, 1.0), r"got 1\.0"),
    ],
)
def test_what_may_not_be_passed(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
