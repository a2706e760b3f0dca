"""The candidates of `efficiency`: their numbers again by other means, and those tuned or exact."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from reference import hutchinson_variance, series
from torch import Tensor

from resflow_bench.architectures import family_matrix, steep_flow
from resflow_bench.flows import ResidualBlock, ResidualFlow
from resflow_bench.lab import Cell, Context, Observation, Value
from resflow_bench.layers import Branch, LinearBranch, conv_branch, mlp_branch
from resflow_bench.logdet import (
    Controlled,
    Determinant,
    Fixed,
    Gaussian,
    Geometric,
    LogDetEstimator,
    PerBranch,
    Rademacher,
    Roulette,
    Sphere,
    Taylor,
    exact_log_det,
    jacobian,
    tuned,
)
from resflow_bench.logdet.tuned import mean_terms
from resflow_bench.models import build_problem
from suites.efficiency import BASELINE, DETERMINANT, SUITE, TUNED, candidates
from suites.efficiency import measure as lab
from suites.efficiency.comparison import compared, name_of, reference, seconds_to
from suites.efficiency.sampler import build_candidate, closed_forms

DTYPE = torch.float64
D, K = 4, 0.5
WHERE: Mapping[str, Value] = {
    **{"model": "minus-identity", "dim": D, "lipschitz": K, "dtype": "float64"},
    **{"device": "cpu", "batch_size": 64},
}
EFFORT = {"n_points": 4, "n_calls": 64, "n_copies": 64, "n_pairs": 8}
ROULETTE = {**BASELINE, "roulette": "geometric(0.3)", "per": "example"}
FIXED: Mapping[str, Value] = {
    **{"implementation": "ours", "estimator": "hutchinson", "truncation": "fixed", "n_terms": 3},
    **{"probe": "gaussian", "n_probes": 2, "n_traced": 1, "expansion": "taylor"},
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def observe(candidate: Mapping[str, Value], **other: Value) -> dict[str, Observation]:
    cell = Cell("efficiency", {**WHERE, **candidate, **other})
    found = lab.measure_efficiency(cell, Context(0, EFFORT, Path("results")))
    return {observation.metric: observation for observation in found}


def test_a_truncated_estimate_by_hand() -> None:
    """J = -I/2: S_3 = -(1/2 + 1/8 + 1/24) I, its first trace exact, two Gaussian probes."""
    o = observe(FIXED)
    bias = D * (-(1 / 2 + 1 / 8 + 1 / 24) - math.log(0.5))
    variance = 2 * D * (1 / 8 + 1 / 24) ** 2 / 2
    assert o["bias_expected"].value == pytest.approx(bias, rel=1e-12)
    assert o["variance_expected"].value == pytest.approx(variance, rel=1e-12)
    z = (o["bias"].value - bias) / o["bias"].standard_error
    assert abs(z) < 4
    assert abs(o["bias"].value / o["bias"].standard_error) > 10  # a twin: that it is unbiased
    assert o["variance"].ci_low < variance < o["variance"].ci_high
    assert not o["variance"].ci_low < 2 * variance < o["variance"].ci_high  # a twin: one probe
    assert o["n_products"].value == 3 * 2
    assert o["seconds_to_target"].value == math.inf  # that bias is above a tenth of the target


def test_a_roulette_by_hand() -> None:
    """Var = 2d sum of squares over stops, from P(N >= k) = 0.7^(k - 3), summed to k = 200."""
    o = observe(ROULETTE)
    k = np.arange(1, 201)
    terms = -(K**k) / k  # times I: tr = d terms, v^T A v = terms ||v||^2
    survival = 0.7 ** np.maximum(k - 3, 0.0)
    stop = -np.diff(np.append(survival, 0.0))  # P(N = k)
    sums = np.cumsum(terms / survival)
    square = D * D + 2 * D  # E ||v||^4
    variance = square * np.sum(stop * sums**2) - (D * math.log(0.5)) ** 2
    assert o["variance_expected"].value == pytest.approx(variance, rel=1e-9)
    assert o["variance"].ci_low < variance < o["variance"].ci_high
    assert o["bias_expected"].value == 0.0
    assert abs(o["bias"].value) < 4 * o["bias"].standard_error
    mean = float(np.sum(survival))
    assert o["n_products"].value == pytest.approx(mean, rel=0.05)
    seconds = o["seconds_per_example"].value
    assert o["variance_time"].value == pytest.approx(variance * seconds, rel=1e-9)
    assert o["seconds_to_target"].value == pytest.approx(seconds * variance / 1e-4, rel=1e-9)


def test_no_interval_is_claimed_without_a_variance() -> None:
    """rho^2 = 0.64 and geometric(0.5): none of the mean, none above of the variance."""
    o = observe({**BASELINE, "roulette": "geometric(0.5)"}, lipschitz=0.8)
    assert o["variance_is_finite"].value == 0.0
    assert o["variance_expected"].value == math.inf
    assert (o["bias"].ci_low, o["bias"].ci_high) == (-math.inf, math.inf)
    assert o["variance"].ci_high == math.inf
    heavy = observe(ROULETTE, lipschitz=0.8)  # rho^2 < 0.7, and no eighth moment
    assert heavy["variance_is_finite"].value == 1.0
    assert math.isnan(heavy["bias"].standard_error)  # Chebyshev's
    assert heavy["bias"].ci_low < 0.0 < heavy["bias"].ci_high < math.inf


def test_deflation_is_a_candidate() -> None:
    """J = -I/2, which one vector on the sphere sees without an error; a roulette's is left."""
    deflated = {**ROULETTE, "estimator": "xtrace", "probe": "sphere", "n_probes": 2, "n_traced": 1}
    o = observe(deflated)
    assert o["bias"].ci_low < 0 < o["bias"].ci_high
    assert o["bias_expected"].value == 0.0
    assert "variance_expected" not in o
    alone = Roulette(Geometric(0.3), n_exact=3)
    matrix = -0.5 * np.eye(D)
    expected = float(alone.variance(matrix, Sphere(), 1, n_traced=1))
    assert o["variance"].ci_low < expected < o["variance"].ci_high
    assert o["n_products"].value > 2 * 2 * 3
    exact = observe({**deflated, "truncation": "fixed", "n_terms": 40})
    assert exact["variance"].value < 1e-20
    assert exact["n_products"].value == 2 * 2 * 40
    assert name_of({**deflated}) == "XTrace, 1 trace"


def test_a_determinant_is_exact_and_called_twice() -> None:
    o = observe(DETERMINANT)
    assert (o["variance"].value, o["variance"].n) == (0.0, 2)
    assert abs(o["bias"].value) < 1e-12
    assert o["n_products"].value == D
    assert o["seconds_to_target"].value == o["seconds_per_example"].value


def test_a_tuned_one_is_unbiased_and_has_its_closed_form() -> None:
    o = observe({**TUNED, "probe": "gaussian", "n_traced": 1})
    assert o["bias_expected"].value == 0.0
    assert abs(o["bias"].value) < 4 * o["bias"].standard_error
    expected = o["variance_expected"].value
    assert 0.0 < expected < observe(ROULETTE)["variance_expected"].value
    assert o["variance"].ci_low < expected < o["variance"].ci_high


def test_a_control_keeps_the_mean_that_is_known_and_not_the_variance() -> None:
    axes = {"model": "steep", "dim": 6, "lipschitz": 0.9, "n_traced": 1, "expansion": "controlled"}
    best = {**ROULETTE, "roulette": "geometric(0.1)", "probe": "rademacher"}
    o = observe({**best, **axes})
    assert o["bias_expected"].value == 0.0
    assert abs(o["bias"].value) < 4 * o["bias"].standard_error
    assert "variance_expected" not in o
    plain = observe({**best, **axes, "expansion": "taylor"})
    assert o["variance"].ci_high < plain["variance"].ci_low
    built = build_candidate(
        Cell("efficiency", {**WHERE, **TUNED, **axes, "probe": "hadamard"}),
        build_problem(Cell("efficiency", {**WHERE, **axes}), Path("results"), 2),
        Path("results"),
    )
    assert isinstance(built, PerBranch)
    assert {one.expansion for one in built.estimators.values()} == {Controlled()}


def test_a_circulant_control_is_tuned_with_its_own_moments() -> None:
    """On the digits' convolutional flow: fewer products for less variance than without."""
    axes = {"model": "conv", "dim": 64, "lipschitz": 0.9, "dtype": "float32", "n_traced": 1}
    problem = build_problem(Cell("efficiency", {**WHERE, **axes}), Path("results"), 2)
    work = {}
    for expansion in ("taylor", "circulant"):
        cell = Cell(
            "efficiency",
            {**WHERE, **TUNED, **axes, "probe": "rademacher", "expansion": expansion},
        )
        built = build_candidate(cell, problem, Path("results"))
        assert isinstance(built, PerBranch)
        forms = {str(one.expansion) for one in built.estimators.values()}
        assert forms == {"taylor" if expansion == "taylor" else "circulant(taylor, 8)"}
        flow = problem.flow.with_estimator(built)
        noise, x = generator(3), problem.x[:1].expand(2000, *problem.x.shape[1:])
        with torch.no_grad():
            draws = flow.forward_and_log_det(x, noise)[1].double()
        products = sum(o.n_probes * mean_terms(o.truncation) for o in built.estimators.values())
        work[expansion] = float(draws.var()) * products
        assert abs(float(draws.mean()) - problem.log_det[0]) < 4 * float(draws.std()) / 2000**0.5
    assert work["circulant"] < 0.8 * work["taylor"]


def two_blocks() -> tuple[ResidualFlow, Tensor]:
    """Spectral radii 0.3 and 0.9."""
    branches = [LinearBranch(family_matrix("gaussian", 8, k, seed=3), k) for k in (0.3, 0.9)]
    flow = ResidualFlow([ResidualBlock(b) for b in branches], 8).double()
    return flow.requires_grad_(False), torch.randn(8, 8, generator=generator(1), dtype=DTYPE)


def test_tuning_pays_where_blocks_differ() -> None:
    """Variance x products in closed form, less than that of the base for both blocks alike."""
    flow, x = two_blocks()
    base = LogDetEstimator(Gaussian(), Roulette(Geometric(0.15), 3))
    inputs = [(block.branch, x) for block in flow.blocks]
    found = tuned(inputs, base, n_besides=0.0, generator=generator(), n_draws=64)

    def variance_products(each: Mapping[object, LogDetEstimator]) -> float:
        variance = products = 0.0
        for branch, one in each.items():
            matrix = jacobian(branch, x[:1])[0].numpy()  # type: ignore[arg-type]
            truncation = one.truncation
            assert isinstance(truncation, Roulette)
            variance += float(truncation.variance(matrix, one.probe, one.n_probes))
            products += one.n_probes * float(truncation.survival(np.arange(1, 400)).sum())
        return variance * products

    alike = variance_products({block.branch: base for block in flow.blocks})
    assert variance_products(found.estimators) < 0.7 * alike
    # The twin that gives each block the other's has more than the right one.
    one, two = found.estimators
    crossed = {one: found.estimators[two], two: found.estimators[one]}
    assert variance_products(crossed) > 1.5 * variance_products(found.estimators)


def test_an_unknown_branch_is_refused() -> None:
    flow, x = two_blocks()
    one, two = (block.branch for block in flow.blocks)
    estimator = PerBranch({one: LogDetEstimator(Rademacher(), Fixed(3))})
    assert estimator(one, x, generator()).value.shape == (8,)
    with pytest.raises(ValueError, match="`tuned` on the flow"):
        estimator(two, x, generator())


def make_conv() -> tuple[Branch, Tensor]:
    branch = conv_branch(2, (3, 3), (3, 3), (3,), 0.9, generator=generator()).double()
    return branch, torch.randn(5, 2, 3, 3, generator=generator(9), dtype=DTYPE)


def make_mlp() -> tuple[Branch, Tensor]:
    branch = mlp_branch(6, (8,), 0.9, generator=generator()).double()
    return branch, torch.randn(5, 6, generator=generator(9), dtype=DTYPE)


@pytest.mark.parametrize("make", [make_mlp, make_conv])
def test_a_determinant_and_its_gradient(make) -> None:
    """To 1e-12, with unequal upstream weights; the twin drops an off-diagonal part of J."""
    branch, x = make()
    x.requires_grad_()
    upstream = torch.tensor([1.0, 2.0, 5.0, -1.0, 3.0], dtype=DTYPE)
    inputs = [x, *branch.parameters()]
    found = []
    for value in (Determinant()(branch, x).value, exact_log_det(branch, x)):
        gradient = torch.autograd.grad(value @ upstream, inputs, materialize_grads=True)
        found.append((value.detach(), gradient))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)
    diagonal = jacobian(branch, x).diagonal(dim1=1, dim2=2).log1p().sum(1)
    assert (diagonal - found[0][0]).abs().max() > 1e-6


def test_the_steep_flow_is_steep() -> None:
    """Every layer keeps its promise with equality, in every direction that it has."""
    flow = steep_flow(6, 0.9)
    for block in flow.blocks:
        assert isinstance(block.branch, Branch)
        assert 0.8999 < block.branch.lipschitz_certified() <= 0.9
        for layer in block.branch.layers:
            sizes = torch.linalg.svdvals(layer.weight_normalised())  # type: ignore[attr-defined]
            assert sizes.max() - sizes.min() < 1e-3 * sizes.max()


def test_every_candidate_has_a_name_of_its_own() -> None:
    """And nothing is told by it but what sets it apart."""
    told = {"message": "normflows 1.7.3; of the sample"}
    names = [name_of({**one, **told}) for one in candidates(2, 0.3)]
    assert len(set(names)) == len(names)
    assert name_of(BASELINE) == "baseline"
    assert {"determinant", "all together", "tuned, Hadamard", "all together, control"} <= set(names)
    assert {"normflows 1.7.3, training", "1 trace", "geometric(0.3)", "16 Hadamard"} <= set(names)
    assert SUITE.axes.index("expansion") > 0


def table(*lines: tuple[str, float, float, float, float, float]) -> pd.DataFrame:
    """(estimator, variance, its closed form, bias_expected, seconds, relative_time) each."""
    names = ["estimator", "variance", "variance_expected", "bias_expected"]
    frame = pd.DataFrame(lines, columns=[*names, "seconds_per_example", "relative_time"])
    one = {**BASELINE, "model": "steep", "dim": 4, "lipschitz": 0.9, "status": "ok", "message": ""}
    told = {k: v for k, v in one.items() if k != "estimator"}
    finite = np.isfinite(frame["variance_expected"]).astype(float)
    return frame.assign(**told, bias=0.3, bias_low=-0.4, bias_high=0.5, variance_is_finite=finite)


def test_seconds_to_an_error() -> None:
    """The second was timed while the machine was busy; its ratio says so."""
    cells = compared(
        table(
            ("hutchinson", 3.9, 4.0, 0.0, 1.0, 0.5),
            ("tuned", 1.1, 1.0, 0.06, 8.0, 1.0),
            ("determinant", 0.0, 0.0, 0.0, 6.0, 3.0),
            ("hutchinson", 9.0, math.inf, math.nan, 0.2, 0.1),
        )
    )
    assert cells["seconds"].tolist() == pytest.approx([1.0, 2.0, 6.0, 0.2])
    assert cells["floor"].tolist() == pytest.approx([1e-6, 0.06, 1e-6, 0.5])
    assert cells["spread"].tolist() == [4.0, 1.0, 0.0, 9.0]
    found = seconds_to(cells, np.asarray([1.0, 0.1, 0.05]))
    expected = [[4.0, 400.0, 1600.0], [2.0 / 0.9964, 312.5, math.inf], [6.0, 6.0, 6.0]]
    np.testing.assert_allclose(found[:3], expected, rtol=1e-6)
    assert np.isinf(found[3]).all()  # averaging does not help it
    usual = reference(cells)
    assert usual is not None
    assert usual["name"] == "baseline"


def test_variances_of_the_candidates_add_over_blocks() -> None:
    """The closed form that is printed, for a flow, against the sum over dense Jacobians."""
    cell = Cell("efficiency", {**WHERE, **FIXED, "model": "steep", "n_traced": 2})
    problem = build_problem(cell, Path("results"), 3)
    estimator = replace(LogDetEstimator(Gaussian(), Fixed(3), 2, n_traced=2), expansion=Taylor())
    variance, bias = closed_forms([estimator] * len(problem.jacobians), problem)
    assert variance is not None
    assert bias is not None
    expected, off = np.zeros(3), np.zeros(3)
    for block in problem.jacobians:
        for p, j in enumerate(block):
            expected[p] += hutchinson_variance(series(j, 3) - series(j, 2), "gaussian") / 2
            off[p] += np.trace(series(j, 3)) - np.linalg.slogdet(np.eye(D) + j)[1]
    np.testing.assert_allclose(variance, expected, rtol=1e-9)
    np.testing.assert_allclose(bias, off, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("dim", "effort", "expected"), [(8, 100, 100), (128, 100, 50), (128, 30, 30)]
)
def test_a_large_event_takes_fewer_calls(dim: int, effort: int, expected: int) -> None:
    where = {**WHERE, "dim": dim, "batch_size": 4, **FIXED}
    efforts = {"n_points": 1, "n_calls": effort, "n_copies": 1, "n_pairs": 2}
    cell = Cell("efficiency", where)
    found = {
        o.metric: o for o in lab.measure_efficiency(cell, Context(0, efforts, Path("results")))
    }
    assert found["variance"].n == expected
