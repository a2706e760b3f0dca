"""Importance weights exp(estimate - exact): closed forms, and what two suites measure of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import suites
from resflow_bench import theory
from resflow_bench.architectures import family_matrix
from resflow_bench.lab import Cell, Context, Observation
from resflow_bench.logdet import Fixed, Gaussian, LogDetEstimator, Poisson, Roulette
from resflow_bench.models import build_problem
from suites.weights import observe_ess_loss, observe_weight_bias


def observe(suite: str, results: Path, seed: int = 0, **axes: object) -> dict[str, Observation]:
    """Metric -> observation of one cell at d = 6, K = 0.7."""
    defaults = {"dim": 6, "lipschitz": 0.7, "dtype": "float64", "device": "cpu"}
    cell = Cell(suite, {**defaults, "probe": "gaussian", **axes})  # type: ignore[arg-type]
    effort = {"n_points": 4, "max_draws": 4000, "half_width": 0.01}
    context = Context(seed=seed, effort=effort, results=results)
    return {o.metric: o for o in suites.load(suite).measure(cell, context)}


# --- closed forms


def test_a_normal_error_costs_the_share_that_theory_says() -> None:
    """Against Gauss-Hermite quadrature of exp(t e)."""
    nodes, masses = np.polynomial.hermite_e.hermegauss(60)
    masses = masses / masses.sum()
    for bias, variance in ((0.0, 0.01), (-0.7, 0.5)):
        weights = np.exp(bias + math.sqrt(variance) * nodes)
        first, second = masses @ weights, masses @ weights**2
        logs = [float(theory.normal_log_moment(t, bias, variance)) for t in (1, 2)]
        assert logs == pytest.approx([math.log(first), math.log(second)])
        assert theory.ess_loss(*logs) == pytest.approx(1 - first**2 / second)
        assert theory.ess_loss(*logs) == pytest.approx(1 - math.exp(-variance))
    assert theory.ess_loss(math.inf, math.inf) == 1.0


def test_moments_of_a_quadratic_form() -> None:
    """m probes of A = a in one dimension: a chi-squared number of m degrees, times a/m."""
    for a, m in ((0.2, 1), (-0.9, 3)):
        grid = np.linspace(0.0, 1.0, 20_001)[1:-1]
        expected = np.exp(a * stats.chi2(m).ppf(grid) / m).mean()
        assert theory.gaussian_log_moment(1.0, [[a]], m) == pytest.approx(
            math.log(expected), rel=1e-2
        )
    asymmetric = np.array([[0.1, 0.3], [-0.1, 0.2]])
    det = np.linalg.det(np.eye(2) - (asymmetric + asymmetric.T))
    assert theory.gaussian_log_moment(1.0, asymmetric) == pytest.approx(-0.5 * math.log(det))
    assert theory.gaussian_log_moment(1.0, [[0.5]]) == math.inf
    assert theory.gaussian_log_moment(1.0, [[0.49]]) < math.inf
    assert theory.gaussian_log_moment(1.0, [[0.99]], 2) < math.inf


def test_the_error_of_an_effective_sample_size() -> None:
    assert math.exp(-(theory.error_of_ess(0.9) ** 2)) == pytest.approx(0.9)
    for share in (0.0, 1.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            theory.error_of_ess(share)


# --- the suites


def test_closed_forms_of_known_jacobians(tmp_path) -> None:
    """E[exp(t e)] = det(I - 2 t sym(S)/m)^(-m/2) e^(-t log-det), from dense algebra."""
    matrix = family_matrix("gaussian", 6, 0.7).numpy()
    power, series = np.eye(6), np.zeros((6, 6))
    for k in range(1, 8):
        power = power @ matrix
        series -= (-1) ** k / k * power
    exact = np.linalg.slogdet(np.eye(6) + matrix)[1]
    axes = {"model": "gaussian", "truncation": "fixed", "n_terms": 7, "n_probes": 16}
    bias, variance = observe("bias", tmp_path, **axes), observe("variance", tmp_path, **axes)
    logs = [
        -8 * np.linalg.slogdet(np.eye(6) - t * (series + series.T) / 16)[1] - t * exact
        for t in (1, 2)
    ]
    assert bias["weight_bias_expected"].value == pytest.approx(logs[0], abs=1e-9)
    loss = 1 - math.exp(2 * logs[0] - logs[1])
    assert variance["ess_loss_expected"].value == pytest.approx(loss, abs=1e-9)


def test_intervals_cover(tmp_path) -> None:
    """At most 16 of 400 intervals at 99 % miss (P < 1 in 10,000 if each covers at 99 %); twice the
    bias or the loss is missed by most.
    """
    axes = {"model": "gaussian", "dim": 6, "lipschitz": 0.7, "dtype": "float64", "device": "cpu"}
    problem = build_problem(Cell("bias", axes), tmp_path, 1)
    estimator = LogDetEstimator(Gaussian(), Fixed(7), 16)
    form = theory.series(problem.jacobians[0][0], 7)
    missed = twin_missed = 0
    for seed in range(200):
        v = np.random.default_rng(seed).standard_normal((1000, 16, 6))
        errors = np.einsum("nmi,ij,nmj->n", v, form, v)[:, None] / 16 - problem.log_det
        for measure in (observe_weight_bias, observe_ess_loss):
            one, expected = measure(problem, estimator, errors)
            assert "interval: t" in one.message
            assert len(one.replicates) == 16
            missed += not one.ci_low <= expected.value <= one.ci_high
            twin_missed += not one.ci_low <= 2 * expected.value <= one.ci_high
    assert missed <= 16
    assert twin_missed > 300


def test_a_heavy_tail_has_no_upper_limit(tmp_path) -> None:
    """One Gaussian probe of log(1.7) I: 2 t log 1.7 > 1, so that E[w] is infinite."""
    axes = {"model": "plus-identity", "truncation": "fixed", "n_terms": 30, "n_probes": 1}
    bias, variance = observe("bias", tmp_path, **axes), observe("variance", tmp_path, **axes)
    assert bias["weight_bias_expected"].value == math.inf == bias["weight_bias"].ci_high
    assert variance["ess_loss_expected"].value == 1.0 == variance["ess_loss"].ci_high
    for one in (bias["weight_bias"], variance["ess_loss"]):
        assert "one-sided" in one.message
        assert one.ci_low <= one.value


def test_an_infinite_variance_is_infinite_and_one(tmp_path) -> None:
    axes = {"model": "minus-identity", "truncation": "roulette", "roulette": "poisson(2)"}
    axes |= {"n_exact": 3, "n_probes": 1}
    bias, variance = observe("bias", tmp_path, **axes), observe("variance", tmp_path, **axes)
    assert bias["weight_bias_expected"].value == math.inf == bias["weight_bias"].ci_high
    assert variance["ess_loss_expected"].value == 1.0 == variance["ess_loss"].ci_high


def test_a_constant_bias_costs_no_sample(tmp_path) -> None:
    """Rademacher probes of -K I: every draw is the same, off by the bias."""
    axes = {"model": "minus-identity", "truncation": "fixed", "n_terms": 2, "n_probes": 1}
    axes |= {"probe": "rademacher"}
    bias, variance = observe("bias", tmp_path, **axes), observe("variance", tmp_path, **axes)
    assert bias["weight_bias"].value == pytest.approx(bias["bias_expected"].value, abs=1e-12)
    assert bias["bias_expected"].value > 1.0
    assert variance["ess_loss"].ci_high < 1e-10


def test_one_error_of_thousands_of_nats_leaves_a_lower_limit() -> None:
    """As a roulette of infinite variance has it: all other weights are zero beside its own."""
    axes = {"model": "minus-identity", "dim": 6, "lipschitz": 0.9}
    cell = Cell("variance", {**axes, "dtype": "float64", "device": "cpu"})  # type: ignore[arg-type]
    problem = build_problem(cell, Path("unused"), 1)
    estimator = LogDetEstimator(Gaussian(), Roulette(Poisson(2.0), 0))
    errors = np.random.default_rng(0).normal(0.0, 0.5, (4000, 1))
    errors[7] = 5000.0
    found = {
        o.metric: o
        for observe_them in (observe_ess_loss, observe_weight_bias)
        for o in observe_them(problem, estimator, errors)
    }
    assert found["ess_loss"].value == pytest.approx(1 - 1 / 4000)
    # Without the outlier 1 - exp(-1/4) is lost, and ln E[exp(e)] = 1/8.
    assert 0.1 < found["ess_loss"].ci_low < 0.25
    assert found["weight_bias"].value == pytest.approx(5000 - math.log(4000))
    assert 0.0 < found["weight_bias"].ci_low < 0.15
    assert found["weight_bias"].ci_high == math.inf
