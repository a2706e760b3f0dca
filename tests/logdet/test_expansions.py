"""Every expansion against the matrix logarithm: value, adjoint, bias, mean under a roulette."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import reference
import torch
from reference import Array
from scipy import fft, linalg
from torch import Tensor

from resflow_bench import theory
from resflow_bench.jacobian import DenseJacobian, FunctionJacobian
from resflow_bench.layers import LinearBranch, conv_branch, mlp_branch
from resflow_bench.logdet import (
    Arnoldi,
    Chebyshev,
    Controlled,
    Expansion,
    Fixed,
    Geometric,
    LogDetEstimator,
    Rademacher,
    Roulette,
    Taylor,
    Terms,
    autograd,
    cached,
    dense,
    exact_log_det,
    measured_interval,
)
from resflow_bench.logdet.expansions.expansion import Expanded

DTYPE = torch.float64
SERIES: list[Expansion] = [Taylor(), Arnoldi(), Chebyshev(-0.6, 0.6)]
"""Each converges to v^T f(J) v for every v."""
EXPANSIONS: list[Expansion] = [*SERIES, Controlled(), Controlled(Arnoldi())]
"""Each converges to it in the mean over v; a new one is a new item."""
FAMILIES = sorted(reference.linear_families(5, 0.6))


SMALL = ("minus-identity", "plus-identity", "triangular")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def remainder(jacobian: Array, n_traced: int) -> Array:
    """log(I + J) - S_L."""
    return reference.log_matrix(jacobian) - reference.series(jacobian, n_traced)


def slope(jacobian: Array, n_traced: int) -> Array:
    """(I + J)^-1 - sum_{k<=L} (-J)^(k-1)."""
    powers = (np.linalg.matrix_power(-jacobian, k) for k in range(n_traced))
    inverse = np.linalg.inv(np.eye(len(jacobian)) + jacobian)
    return inverse - sum(powers, np.zeros_like(jacobian))


def points(jacobian: Array, n: int) -> DenseJacobian:
    return DenseJacobian(torch.from_numpy(np.tile(jacobian, (n, 1, 1))))


def forms(v: Tensor, matrix: Array) -> Array:
    """v^T A v averaged over probes, (B,)."""
    return np.einsum("mbi,ij,mbj->mb", v.numpy(), matrix, v.numpy()).mean(0)


def whole_adjoint(found: Expanded, jacobian: DenseJacobian, v: Tensor) -> Tensor:
    """s_j, and T^T v_j of the tr(TJ) that a control has put in its place."""
    assert found.adjoint is not None
    if found.trace is None:
        return found.adjoint
    (transposed,) = torch.autograd.grad(found.trace.sum(), jacobian.matrix)
    return found.adjoint + torch.einsum("bij,mbj->mbi", transposed, v)


@pytest.mark.parametrize("n_traced", range(6))
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("expansion", EXPANSIONS, ids=str)
def test_exact_traces_may_outnumber_the_dimensions(expansion, dim, n_traced) -> None:
    """Value and adjoint over a basis of probes: tr f(J) and f'(J), exactly; also where J = .5 I."""
    half, some = 0.5 * np.eye(dim), reference.linear_families(dim, 0.6)["gaussian"]
    v = math.sqrt(dim) * torch.eye(dim, dtype=DTYPE)[:, None].expand(-1, 2, -1).contiguous()
    jacobians = DenseJacobian(torch.from_numpy(np.stack([half, some])).requires_grad_())
    terms = Fixed(60).draw(2, v, None)
    found = expansion.expand(jacobians, v, terms, n_traced, True)
    value, adjoint = found.value, whole_adjoint(found, jacobians, v)
    for b, jacobian in enumerate((half, some)):
        expected = np.trace(remainder(jacobian, n_traced))
        np.testing.assert_allclose(value[b], expected, rtol=0, atol=1e-8)
        rows = math.sqrt(dim) * slope(jacobian, n_traced)
        np.testing.assert_allclose(adjoint[:, b], rows, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("n_traced", [0, 1, 2])
@pytest.mark.parametrize("n_probes", [1, 3])
@pytest.mark.parametrize("expansion", SERIES, ids=str)
def test_with_many_terms_it_is_the_logarithm(expansion, n_probes, n_traced, name) -> None:
    """Value and adjoint to 1e-8, as for Taylor; four steps of Arnoldi's five are rejected."""
    j = reference.linear_families(5, 0.6)[name]
    v = torch.randn(n_probes, 4, 5, generator=generator(1), dtype=DTYPE)
    terms = Fixed(120).draw(4, v, None)
    value, adjoint, _ = expansion.expand(points(j, 4), v, terms, n_traced, True)[:3]
    np.testing.assert_allclose(value, forms(v, remainder(j, n_traced)), rtol=0, atol=1e-8)
    expected = np.einsum("mbi,ij->mbj", v.numpy(), slope(j, n_traced))
    np.testing.assert_allclose(adjoint, expected, rtol=0, atol=1e-8)
    # Not where a smaller space is invariant, or where little is left to be found.
    if isinstance(expansion, Arnoldi) and name not in SMALL:
        short = expansion.expand(points(j, 4), v, Fixed(4).draw(4, v, None), n_traced, False)
        assert np.abs(short.value.numpy() - forms(v, remainder(j, n_traced))).max() > 1e-6


# --- what a fixed number of terms leaves out, over all probes -------------------------------------


def corners(dim: int) -> Tensor:
    """All values of a Rademacher probe, (2^d, 1, d): their mean is the expectation."""
    signs = list(itertools.product((-1.0, 1.0), repeat=dim))
    return torch.tensor(signs, dtype=DTYPE)[:, None]


def by_krylov(jacobian: Array, v: Array, n_terms: int) -> float:
    """||v||^2 e_1^T log(I + H) e_1, the basis by QR of the powers themselves."""
    powers = np.stack([np.linalg.matrix_power(jacobian.T, k) @ v for k in range(n_terms)], axis=1)
    basis = np.linalg.qr(powers)[0]
    h = basis.T @ jacobian.T @ basis
    start = basis.T @ v
    return float(start @ linalg.logm(np.eye(n_terms) + h).real @ start)


def by_cosines(jacobian: Array, n_terms: int, low: float, high: float) -> float:
    """tr p_N(J), the coefficients of log(1 + t)/t by a discrete cosine transform of 512 values."""
    theta = np.pi * (np.arange(512) + 0.5) / 512
    t = (low + high) / 2 + (high - low) / 2 * np.cos(theta)
    c = fft.dct(np.log1p(t) / t) / 512
    c[0] /= 2
    tau = (2 * jacobian - (low + high) * np.eye(len(jacobian))) / (high - low)
    before, now, total = tau, np.eye(len(tau)), np.zeros_like(tau)
    for j in range(n_terms):
        total += c[j] * now
        before, now = now, (tau if j == 0 else 2 * tau @ now - before)
    return float(np.trace(jacobian @ total))


@pytest.mark.parametrize("name", ["gaussian", "orthogonal", "symmetric", "triangular"])
@pytest.mark.parametrize("n_terms", [1, 2, 3, 4])
def test_the_bias_of_a_fixed_number_of_terms(n_terms, name) -> None:
    """E over all 32 sign vectors against float64 oracles, to 1e-9; a term more is rejected."""
    j = reference.linear_families(5, 0.6)[name]
    v = corners(5)

    def expected(expansion: Expansion, n: int) -> float:
        terms = Fixed(n).draw(1, v, None)
        return float(expansion.expand(points(j, 1), v, terms, 0, False).value)

    oracles = {
        "taylor": np.trace(reference.series(j, n_terms)),
        "arnoldi": np.mean([by_krylov(j, corner, n_terms) for corner in v[:, 0].numpy()]),
        "chebyshev(-0.6, 0.6)": by_cosines(j, n_terms, -0.6, 0.6),
    }
    for expansion in SERIES:
        oracle = oracles[str(expansion)]
        assert expected(expansion, n_terms) == pytest.approx(oracle, rel=0, abs=1e-9)
        if name != "triangular":
            assert abs(expected(expansion, n_terms + 1) - oracle) > 1e-6
    bias = float(theory.chebyshev_bias(j, n_terms, -0.6, 0.6))
    oracle = oracles["chebyshev(-0.6, 0.6)"] - reference.log_det(j)
    assert bias == pytest.approx(oracle, rel=0, abs=1e-7)  # of the nilpotent J's eigenvalues


@pytest.mark.parametrize("n_traced", [0, 1, 2])
def test_chebyshev_bias_with_exact_traces(n_traced) -> None:
    j = reference.linear_families(5, 0.6)["gaussian"]
    v = corners(5)
    found = Chebyshev(-0.6, 0.6).expand(points(j, 1), v, Fixed(5).draw(1, v, None), n_traced, False)
    bias = float(found.value) - np.trace(remainder(j, n_traced))
    assert bias == pytest.approx(float(theory.chebyshev_bias(j, 5, -0.6, 0.6, n_traced)), abs=1e-12)
    assert abs(bias) > 1e-5


# --- the mean under a roulette --------------------------------------------------------------------


@dataclass(frozen=True)
class OneTooFar:
    """A twin: w_k = 1[N >= k] / P(N >= k + 1)."""

    truncation: Roulette

    def draw(self, batch_size: int, like: Tensor, source: torch.Generator | None) -> Terms:
        terms = self.truncation.draw(batch_size, like, source)
        k = np.arange(1, len(terms.weights) + 1)
        ratio = self.truncation.survival(k) / self.truncation.survival(k + 1)
        ratios = torch.from_numpy(ratio).to(like)[:, None]
        return terms._replace(weights=terms.weights * ratios)


ROULETTE = Roulette(Geometric(0.5), n_exact=1)
UPSTREAM = torch.tensor([1.0, 2.0, 5.0, -1.0], dtype=DTYPE)


def steep(branch: torch.nn.Module) -> torch.nn.Module:
    """In float64, weights at the norm that is allowed, activations where they are curved."""
    with torch.no_grad():
        for name, parameter in branch.double().named_parameters():
            if name.endswith("weight"):
                parameter.mul_(5)
            elif name.endswith("bias"):
                parameter.add_(1.0)
    branch.align()  # type: ignore[operator]
    return branch


def make_mlp() -> tuple[torch.nn.Module, Tensor]:
    branch = steep(mlp_branch(4, (8,), 0.65, generator=generator()))
    return branch, torch.randn(4, 4, generator=generator(9), dtype=DTYPE)


def make_conv() -> tuple[torch.nn.Module, Tensor]:
    branch = steep(conv_branch(2, (3, 3), (3, 1, 3), (3, 3), 0.65, generator=generator()))
    return branch, torch.randn(4, 2, 3, 3, generator=generator(9), dtype=DTYPE)


def largest_z(
    make, expansion, truncation, n_traced=0, n_probes=1, n_calls=40, n_copies=100
) -> tuple[float, float]:
    """(|z| of the values' mean, max |z| of the gradient's mean), one upstream weight an example."""
    g, x = make()
    x.requires_grad_()
    inputs = [x, *g.parameters()]
    exact = exact_log_det(g, x)
    truth = torch.autograd.grad(exact @ UPSTREAM, inputs, materialize_grads=True)
    estimator = LogDetEstimator(
        Rademacher(), truncation, n_probes, n_traced=n_traced, expansion=expansion
    )
    noise, upstream, found = generator(5), UPSTREAM.repeat(n_copies) / n_copies, []
    for _ in range(n_calls):
        copies = x.repeat(n_copies, *[1] * (x.ndim - 1))
        value = estimator(g, copies, noise).value
        parts = torch.autograd.grad(value @ upstream, inputs, materialize_grads=True)
        errors = [(a - b).flatten() for a, b in zip(parts, truth, strict=True)]
        off = value.detach().view(n_copies, len(x)).mean(0) - exact.detach()
        found.append(torch.cat([off, *errors]))
    stacked = torch.stack(found)
    standard_error = (stacked.std(0) / n_calls**0.5).clamp_min(1e-12)
    z = (stacked.mean(0) / standard_error).abs()
    return float(z[: len(x)].max()), float(z[len(x) :].max())


@pytest.mark.parametrize("make", [make_mlp, make_conv])
@pytest.mark.parametrize(("n_traced", "n_probes"), [(0, 1), (1, 3)])
@pytest.mark.parametrize("expansion", EXPANSIONS, ids=str)
def test_value_and_gradient_are_unbiased(expansion, n_traced, n_probes, make) -> None:
    """|z| < 4 of 4 values and up to 95 coordinates of the gradient; n = 4,000 draws an example."""
    value, gradient = largest_z(make, expansion, ROULETTE, n_traced, n_probes)
    assert value < 4
    assert gradient < 4


@pytest.mark.parametrize("twin", [OneTooFar(ROULETTE), Fixed(1)], ids=["one too far", "one term"])
@pytest.mark.parametrize("expansion", EXPANSIONS, ids=str)
def test_biased_twins_are_rejected(expansion, twin) -> None:
    """By the gradient's z at the same n, and the wrong weight by the value's too."""
    value, gradient = largest_z(make_mlp, expansion, twin)
    assert gradient > 4
    assert value > 4 or isinstance(twin, Fixed)


# --- corners --------------------------------------------------------------------------------------


@pytest.mark.parametrize("expansion", EXPANSIONS, ids=str)
@pytest.mark.parametrize("n_traced", [0, 1, 2])
def test_a_jacobian_of_zeros_has_no_log_det(expansion, n_traced) -> None:
    v = torch.randn(2, 3, 4, generator=generator(), dtype=DTYPE)
    zero = DenseJacobian(torch.zeros(3, 4, 4, dtype=DTYPE, requires_grad=True))
    found = expansion.expand(zero, v, Fixed(40).draw(3, v, None), n_traced, True)
    assert found.value.abs().max() == 0
    expected = v if n_traced == 0 else torch.zeros_like(v)
    torch.testing.assert_close(whole_adjoint(found, zero, v), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arnoldi_ends_where_the_space_is_invariant(dtype) -> None:
    """Nilpotent (after its degree), rank one, and identity (after one step): no NaN, then zeros."""
    v = torch.randn(2, 3, 5, generator=generator(), dtype=dtype)
    shift, rank_one = np.diag(np.full(4, 0.6), 1), np.zeros((5, 5))
    rank_one[0] = 0.3
    jacobians = np.stack([0.6 * np.eye(5), shift, rank_one])
    found = Arnoldi().increments(DenseJacobian(torch.from_numpy(jacobians).to(dtype)), v, 7)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    assert found.shape == (5, 2, 3)
    assert found[1:, :, 0].abs().max() <= tolerance
    assert found[2:, :, 2].abs().max() <= tolerance
    for b, jacobian in enumerate(jacobians):
        each = np.einsum("mi,ij,mj->m", v[:, b], remainder(jacobian, 0), v[:, b])
        np.testing.assert_allclose(found[..., b].sum(0), each, rtol=0, atol=100 * tolerance)


@pytest.mark.parametrize("expansion", EXPANSIONS, ids=str)
@pytest.mark.parametrize("products", [cached, dense])
def test_one_dimension_no_example_no_term(expansion, products) -> None:
    """d = 1 is exact; B = 0 and N = 0 give empty tensors and zeros."""
    line = LinearBranch(torch.full((1, 1), 0.5, dtype=DTYPE), 0.5)
    estimator = LogDetEstimator(Rademacher(), Fixed(60), products=products, expansion=expansion)
    x = torch.zeros(2, 1, dtype=DTYPE)
    expected = torch.full((2,), 1.5, dtype=DTYPE).log()
    torch.testing.assert_close(estimator(line, x).value, expected, rtol=0, atol=1e-9)
    v = torch.ones(1, 2, 1, dtype=DTYPE)
    terms = Terms(torch.ones(0, 2, dtype=DTYPE), np.zeros(2, dtype=int))
    if not isinstance(expansion, Controlled):
        value, adjoint, n_products = expansion.expand(
            products(line, x).jacobian, v, terms, 0, True
        )[:3]
        assert value.abs().max() == 0
        assert adjoint.abs().max() == 0
        assert n_products == 0
    if products is cached:
        assert estimator(line, x[:0]).value.shape == (0,)


@pytest.mark.parametrize("make", [make_mlp, make_conv])
@pytest.mark.parametrize("expansion", SERIES, ids=str)
def test_examples_leave_the_batch_when_they_have_their_terms(expansion, make) -> None:
    """The same to 1e-10 as with autograd, where none can leave; and fewer products."""
    g, x = make()
    results = []
    for products in (cached, autograd):
        estimator = LogDetEstimator(
            Rademacher(), Roulette(Geometric(0.3), 1), 2, products, expansion=expansion
        )
        x.requires_grad_()
        value, n_products = estimator(g, x.repeat(8, *[1] * (x.ndim - 1)), generator(3))[1:3]
        gradient = torch.autograd.grad(value @ UPSTREAM.repeat(8), x)[0]
        results.append((value.detach(), gradient, n_products))
    for ours, theirs in zip(results[0][:2], results[1][:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    assert results[0][2] < 0.8 * results[1][2]


@pytest.mark.parametrize("expansion", EXPANSIONS, ids=str)
def test_single_precision(expansion) -> None:
    """To 1e-4 of float64 on the same probes."""
    g, x = make_mlp()
    found = []
    for dtype in (torch.float64, torch.float32):
        estimator = LogDetEstimator(Rademacher(), Fixed(8), 2, expansion=expansion)
        found.append(estimator(g.to(dtype), x.to(dtype), generator(3)).value.double())
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-4)


# --- what each is for -----------------------------------------------------------------------------


def test_arnoldi_needs_fewer_products_where_j_is_symmetric() -> None:
    """d = 64, K = 0.9, eight terms: the rms error is 1/50 of Taylor's, and its estimate sees it."""
    j = reference.linear_families(64, 0.9)["symmetric"]
    v = Rademacher().sample(1, torch.zeros(50, 64, dtype=DTYPE), generator())
    truth, terms = forms(v, remainder(j, 0)), Fixed(8).draw(50, v, None)
    rms = {
        str(expansion): np.sqrt(np.mean((found.numpy() - truth) ** 2))
        for expansion in (Taylor(), Arnoldi())
        for found in [expansion.expand(points(j, 50), v, terms, 0, False).value]
    }
    assert rms["arnoldi"] < rms["taylor"] / 50
    last = Arnoldi().increments(points(j, 50), v, 8)[-1]
    assert rms["arnoldi"] < float(last.square().mean().sqrt()) < 100 * rms["arnoldi"]


def test_chebyshev_converges_on_discs_inside_its_ellipse_only() -> None:
    """Eigenvalues on a circle of radius K, and [-K, K]: K = 0.6 converges, K = 0.9 diverges."""
    for lipschitz, converges in ((0.6, True), (0.9, False)):
        j = reference.linear_families(6, lipschitz)["orthogonal"]
        short, long = (theory.chebyshev_bias(j, n, -lipschitz, lipschitz) for n in (10, 60))
        assert bool(abs(long) < 0.01 * abs(short)) is converges


def test_measured_interval_holds_the_eigenvalues_of_a_symmetric_jacobian() -> None:
    j = reference.linear_families(20, 0.8)["symmetric"]
    v = torch.randn(1, 3, 20, generator=generator(), dtype=DTYPE)
    low, high = measured_interval(points(j, 3), v)
    eigenvalues = np.linalg.eigvalsh(j)
    assert -1 < low < eigenvalues.min()
    assert eigenvalues.max() < high < 1.2
    half = measured_interval(points(j, 3), v, margin=0.0, n_products=1)  # a twin: one vector's
    assert half.low > eigenvalues.min()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Arnoldi(0), "n_nodes"),
        (lambda: Chebyshev(-1.0, 0.5), "low"),
        (lambda: Chebyshev(0.5, 0.5), "low"),
        (lambda: Controlled(degree=0), "degree"),
    ],
)
def test_settings_outside_their_range_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@torch.no_grad()
def test_long_series_of_a_small_jacobian_are_summed_right_in_float32() -> None:
    """J = 0.1 I: J^60 v is below what float32 can hold, and the sum is ln 1.1 to rounding; with
    weights of 2^60 no number overflows.
    """
    x = torch.zeros(3, 5)
    exact = 5 * math.log(1.1)
    for n_terms in (20, 60, 200):
        estimator = LogDetEstimator(Rademacher(), Fixed(n_terms))
        value = estimator(lambda z: 0.1 * z, x, torch.Generator().manual_seed(0)).value
        assert value.double().sub(exact).abs().max() < 1e-6
    heavy = torch.ones(20, 3)
    heavy[10:] *= 2.0**60
    tenth = FunctionJacobian(lambda v: 0.1 * v)
    terms = Terms(heavy, np.full(3, 20))
    expanded = Taylor().expand(tenth, torch.ones(1, 3, 5), terms, 0, adjoint=True)
    expected = sum(w * (-1) ** (k + 1) * 0.1**k / k for k, w in enumerate(heavy[:, 0].tolist(), 1))
    assert expanded.value.double().div(5 * expected).sub(1).abs().max() < 1e-5
    assert expanded.adjoint.isfinite().all()
