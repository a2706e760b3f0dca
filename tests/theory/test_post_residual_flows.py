"""What the post "Residual Flows" prints, beside what holds: one test for each statement.

Each test computes the printed value and shows that it is wrong, and that a function of this package
returns the corrected one. `docs/mathematics.md` has the table.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch
from drawn import draws, matrix_map, z_of_mean, z_of_variance
from scipy import stats
from scipy.integrate import solve_ivp

from resflow_bench import theory
from resflow_bench.fixed_point import solve
from resflow_bench.flows import Chain, ResidualBlock, ResidualFlow, StandardNormal, ToTolerance
from resflow_bench.jacobian import cached
from resflow_bench.layers import Branch, Linear, LinearBranch, Tanh, mlp_branch
from resflow_bench.layers.norms.mixed import climb, ratio
from resflow_bench.logdet import (
    Determinant,
    Exact,
    Fixed,
    Gaussian,
    Geometric,
    LogDetEstimator,
    Rademacher,
    Roulette,
    exact_log_det,
    jacobian,
)
from resflow_bench.systems.fields import exact_trace
from resflow_bench.systems.ode import METHODS, integrate

FLOAT = torch.float64
DIAGONAL = np.diag([0.5, -0.3, 0.8])  # of no variance with Rademacher probes
GENERAL = reference.linear_families(6, 0.7, seed=1)["gaussian"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=FLOAT, generator=generator(seed))


def linear_block(matrix: torch.Tensor, lipschitz: float) -> ResidualBlock:
    return ResidualBlock(LinearBranch(matrix, lipschitz))


def aligned(weight: np.ndarray, coefficient: float) -> Linear:
    """A layer without bias that normalises this weight, a constant."""
    layer = Linear(weight.shape[1], weight.shape[0], coefficient, bias=False).double()
    layer.weight.requires_grad_(False).copy_(torch.from_numpy(weight))
    layer.align()
    return layer


def smooth_branch(slope: float, dim: int) -> Branch:
    """g(x) = slope tanh(x), whose Jacobian changes from point to point."""
    identity = np.eye(dim)
    layers = aligned(identity, 1.0), aligned(slope * identity, abs(slope))
    return Branch(layers[0], Tanh(), layers[1], lipschitz=abs(slope))


# --- the series and the change of variables -------------------------------------------------------


def test_s0_01_the_series_begins_at_one_with_a_plus_sign() -> None:
    """Printed: sum_{k>=0} (-1)^k/k J^k. Its first term divides by zero; the rest is -log(I + J)."""
    truth = float(reference.log_det(DIAGONAL))
    np.testing.assert_allclose(draws(DIAGONAL, Rademacher(), Fixed(200), n=2), truth, atol=1e-12)
    printed = sum((-1) ** k / k * np.trace(DIAGONAL**k) for k in range(1, 200))
    assert printed == pytest.approx(-truth)
    assert abs(truth) > 0.5
    with pytest.raises(ZeroDivisionError):
        _ = (-1) ** 0 / 0


def test_s0_09_the_trace_is_of_derivatives_not_of_quotients() -> None:
    """Printed: sum_i dg_i/x_i. With a differential for dg_i only dg_i/dx_i is a number."""
    g, x = smooth_branch(0.9, 2), normal(3, 2)
    step, traces = 1e-6, torch.zeros(3, dtype=FLOAT)
    changes = torch.zeros(3, dtype=FLOAT)
    for i in range(2):
        move = step * torch.eye(2, dtype=FLOAT)[i]
        change = g(x + move)[:, i] - g(x - move)[:, i]
        traces += change / (2 * step)
        changes += change / x[:, i]
    exact = cached(g, x).jacobian.traces(1)[0]
    torch.testing.assert_close(traces, exact, atol=1e-8, rtol=0.0)
    assert changes.abs().max() < 1e-4 < exact.abs().max()  # dg_i/x_i is as small as the step


@torch.no_grad()
def test_s0_16_the_integral_of_the_trace_is_added() -> None:
    """u(x, t) = a x from 0 to 1, p0 the standard normal: p1 = N(0, e^(2a)), and T = d a."""
    a, d = 0.7, 3
    x0 = normal(d).numpy()

    def field(t: float, state: np.ndarray) -> np.ndarray:
        return np.append(a * state[:d], a * d)

    path = solve_ivp(field, (0.0, 1.0), np.append(x0, 0.0), rtol=1e-10, atol=1e-12)
    x1, trace = path.y[:d, -1], path.y[d, -1]
    log_p0 = stats.norm.logpdf(x0).sum()
    log_p1 = stats.norm.logpdf(x1, scale=math.exp(a)).sum()
    assert log_p0 == pytest.approx(log_p1 + trace, abs=1e-8)
    assert log_p0 - (log_p1 - trace) == pytest.approx(2 * a * d, abs=1e-8)  # as printed

    def rates(t: float, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return exact_trace(lambda x, t: a * x, x, torch.full((1,), t, dtype=FLOAT))

    x, log_det = integrate(rates, torch.from_numpy(x0)[None], 0.0, 1.0, METHODS["rk4"], 32)
    np.testing.assert_allclose(x[0].numpy(), x1, rtol=1e-7)
    assert log_det.item() == pytest.approx(trace)  # ln|det dx(1)/dx(0)|


def test_s0_17_each_log_determinant_is_taken_at_its_own_input() -> None:
    """Printed: sum_k ln|det dF^k(x)/dx| at the flow's x; and two orders of composition."""
    first, second = (ResidualBlock(smooth_branch(slope, 3)) for slope in (0.9, -0.6))
    x = normal(5, 3)
    chain = Chain(first, second)
    z, log_det = chain.forward_and_log_det(x, Exact())
    whole = exact_log_det(lambda x: chain(x) - x, x)
    torch.testing.assert_close(log_det, whole, atol=1e-10, rtol=0.0)
    printed = sum(exact_log_det(block.g, x) for block in (first, second))
    assert (printed - whole).abs().max() > 0.1
    torch.testing.assert_close(z, second(first(x)))
    assert (z - first(second(x))).abs().max() > 0.1  # the other order is another map


# --- the trace estimator and its variance ---------------------------------------------------------


def test_s0_02_the_variance_has_the_square_of_the_norm() -> None:
    """Printed: Var(v^T A v) = 2 ||A||_F for symmetric A."""
    a = reference.linear_families(6, 0.9, seed=1)["symmetric"]
    sample = draws(a, Gaussian(), Fixed(1), n=200_000)
    variance = float(theory.hutchinson_variance(a, Gaussian()))
    assert variance == pytest.approx(2 * np.linalg.norm(a) ** 2)
    assert abs(z_of_variance(sample, variance)) < 4
    assert abs(z_of_variance(sample, 2 * np.linalg.norm(a))) > 30


def test_s0_03_only_the_symmetric_part_of_a_matrix_has_variance() -> None:
    """Printed: the lemma for symmetric A, applied to powers of J that are not symmetric."""
    for a in (GENERAL, reference.linear_families(6, 0.7)["antisymmetric"]):
        variance = float(theory.hutchinson_variance(a, Gaussian()))
        assert variance == pytest.approx(np.linalg.norm(a) ** 2 + np.trace(a @ a), abs=1e-14)
        assert variance < 0.9 * float(theory.avron_toledo_bound(a))  # the lemma's value: a bound
    assert variance == 0.0
    assert abs(draws(a, Gaussian(), Fixed(1), n=10)).max() < 1e-14
    sample = draws(GENERAL, Gaussian(), Fixed(1), n=100_000)
    assert abs(z_of_variance(sample, float(theory.hutchinson_variance(GENERAL, Gaussian())))) < 4
    assert abs(z_of_variance(sample, 2 * np.linalg.norm(GENERAL) ** 2)) > 30


def test_s0_04_the_printed_bound_on_the_variance_is_violated() -> None:
    """Printed: 2 H_N sqrt(d), 33.1; J = -K I, K = 0.9, d = 32, N = 10 has the variance 287.3."""
    sample = draws(-0.9 * np.eye(32), Gaussian(), Fixed(10))
    valid = float(theory.series_variance_bound(0.9, 32, 10))
    printed = theory.printed_variance_bound(32, 10)
    assert abs(z_of_variance(sample, valid)) < 4  # attained
    assert printed < 34 < 287 < valid
    assert z_of_variance(sample, printed) > 50
    terms = sum((-1) ** k / k * 0.9**k * 32**0.5 for k in range(1, 11))
    assert terms < 0  # the triangle inequality as printed, with alternating signs: no bound at all


def test_s0_05_the_harmonic_number_begins_at_one() -> None:
    """Printed: H_N = sum_{k=0}^N 1/k, which divides by zero. H_4 = 25/12."""
    with pytest.raises(ZeroDivisionError):
        _ = sum(1 / k for k in range(5))
    assert theory.printed_variance_bound(1, 4) == pytest.approx(2 * 25 / 12)
    limit = float(theory.series_variance_bound(1 - 1e-12, 1, 4))  # the valid bound at K -> 1
    assert limit == pytest.approx(2 * (25 / 12) ** 2, rel=1e-9)


def test_s0_06_powers_of_the_jacobian_decay() -> None:
    """Printed: ||J^k||_F^2 <= d, true and loose: it is at most d K^(2k), attained here."""
    lipschitz, d = 0.8, 5
    q = reference.linear_families(d, lipschitz)["orthogonal"]
    for k in (1, 4, 12):
        power = theory.moments(np.linalg.matrix_power(q, k)).frobenius_sq
        assert float(power) == pytest.approx(d * lipschitz ** (2 * k))
    assert power < 0.005 * d
    bound = float(theory.series_variance_bound(lipschitz, d))  # of all terms
    assert bound == pytest.approx(2 * d * math.log(1 - lipschitz) ** 2)
    without_decay = [2 * d * sum(1 / k for k in range(1, n)) ** 2 for n in (10, 1000)]
    assert bound < without_decay[0] < without_decay[1] / 5  # which grows without limit


def test_s0_07_a_power_of_the_jacobian_is_not_the_jacobian_of_a_power() -> None:
    """Printed: J_g(x)^k = J_(g o ... o g)(x). At x = 1 and k = 2: 0.1920 and 0.2671."""
    x = torch.ones(1, 1, dtype=FLOAT)

    def g(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(0.9 * x)

    square = jacobian(g, x).item() ** 2
    composed = jacobian(lambda x: g(g(x)), x).item()
    assert (square, composed) == pytest.approx((0.1920, 0.2671), abs=5e-5)
    two_terms = LogDetEstimator(Rademacher(), Fixed(2))(g, x, generator()).value.item()
    assert two_terms == pytest.approx(jacobian(g, x).item() - square / 2)
    assert abs(two_terms - (jacobian(g, x).item() - composed / 2)) > 0.03


def test_s0_08_a_backward_pass_multiplies_by_the_transpose() -> None:
    """Printed: J v = d(g^T v)/dx, which is J^T v; v^T J v is the same for both."""
    x, v = normal(1, 6), normal(1, 6, seed=1)
    g, j = LinearBranch(torch.from_numpy(GENERAL), 0.9), torch.from_numpy(GENERAL)
    source = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((g(source) * v).sum(), source)
    operator = cached(g, x).jacobian
    torch.testing.assert_close(operator.vjp(v[None])[0], gradient)
    torch.testing.assert_close(gradient, v @ j)
    torch.testing.assert_close(operator.push(v[None])[0], v @ j.T)
    assert (gradient - v @ j.T).abs().max() > 0.1
    torch.testing.assert_close((gradient * v).sum(), (v @ j.T * v).sum())


# --- the roulette ---------------------------------------------------------------------------------


def test_s0_18_the_mean_of_the_roulette_is_the_infinite_sum() -> None:
    """Printed: E_N of the sum to N is the sum to N, so the proof ends at a truncated series."""
    j, roulette = -0.6 * np.eye(4), Roulette(Geometric(0.5), n_exact=1)
    sample = draws(j, Rademacher(), roulette, n=200_000)  # its noise is that of N alone
    assert abs(z_of_mean(sample, float(reference.log_det(j)))) < 4
    for n_terms in (1, 2, 4):  # N is 2 in the mean
        assert abs(z_of_mean(sample, np.trace(theory.series(j, n_terms)))) > 6


# --- Lipschitz constants and power iteration ------------------------------------------------------


def test_s0_10_the_norm_is_the_largest_stretch() -> None:
    """Printed: ||T|| = inf ||Tz||/||z|| and K <= ||T||; the infimum bounds nothing from above."""
    weight = np.random.default_rng(0).standard_normal((4, 4))
    weight *= 0.8 / np.linalg.norm(weight, 2)
    layer = aligned(weight, 0.9)  # leaves it as it is
    stretches = ratio(layer.operator, normal(1000, 4), 2.0, 2.0)
    certified = layer.certificate().norm
    infimum = np.linalg.svd(weight, compute_uv=False)[-1]
    assert certified == pytest.approx(0.8, rel=1e-9)
    assert 3 * infimum < 0.5 < float(stretches.max()) <= certified


def test_s0_11_power_iteration_needs_the_transpose() -> None:
    """Printed: x <- T x. For T = [[0, 5], [0, 0]] it ends at zero, and ||T|| = 5."""
    weight = np.array([[0.0, 5.0], [0.0, 0.0]])
    x = np.array([0.6, 0.8])
    assert not (weight @ (weight @ x)).any()
    layer = aligned(weight, 1.0)
    start = torch.from_numpy(x)[None]
    found = ratio(layer.operator, climb(layer.operator, start, 2.0, 2.0, 1), 2.0, 2.0)
    assert float(found) == pytest.approx(5.0)  # A^T A in place of A
    assert float(layer.norm.divisor(layer.operator)) == pytest.approx(5.0, rel=1e-5)


def test_s0_12_power_iteration_is_below_the_norm_at_every_finite_step() -> None:
    """Printed: below only after an unlucky start. Here the start has all components."""
    weight = np.diag([1.0, 0.9, 0.5])
    layer = aligned(weight, 2.0)  # leaves it as it is
    operator, start = layer.operator, torch.ones(1, 3, dtype=FLOAT)
    gaps = []
    for n_steps in (1, 5, 20, 21):
        x = climb(operator, start, 2.0, 2.0, n_steps)
        sigma = float(ratio(operator, x, 2.0, 2.0))
        rayleigh = float((operator.apply(x) ** 2).sum())  # of T^T T
        assert rayleigh == pytest.approx(sigma**2)  # the quotient converges to the square
        gaps.append(1.0 - sigma)
    assert all(gap > 0 for gap in gaps)
    assert gaps[0] > 0.05 > gaps[2]
    assert gaps[3] / gaps[2] == pytest.approx(0.9**4, rel=0.01)
    assert layer.certificate().norm >= 1.0  # certified, from above


def test_s0_13_dividing_by_an_estimate_leaves_a_norm_above_c() -> None:
    """Printed: then Lip(W) <= c. It is c sigma / sigma_hat, 1.3 c after two steps here."""
    c, weight = 0.9, np.random.default_rng(0).standard_normal((128, 128))
    layer = aligned(weight, c)
    x = climb(layer.operator, normal(1, 128), 2.0, 2.0, 1)
    estimate = float(ratio(layer.operator, x, 2.0, 2.0))
    assert np.linalg.norm(c / estimate * weight, 2) > 1.1 * c
    layer.update()
    assert 0.999 * c < np.linalg.norm(layer.weight_normalised().numpy(), 2) <= c
    assert layer.certificate().norm <= c


def test_s0_14_the_gradient_goes_through_the_norm() -> None:
    """Printed: W is multiplied by c/sigma after each step, so the loss is of W, not of c W/sigma.

    A loss of c W/sigma does not change with the length of W: <dL/dW, W> = 0.
    """
    weight, m = np.random.default_rng(0).standard_normal((2, 5, 5))
    layer = aligned(weight, 0.9)
    layer.weight.requires_grad_()
    (layer.weight_normalised() * torch.from_numpy(m)).sum().backward()
    gradient = layer.weight.grad.numpy()
    through, printed = (gradient * weight).sum(), 0.9 / np.linalg.norm(weight, 2) * m
    assert abs(through) < 1e-9 < 0.1 < abs((printed * weight).sum())
    step = 1e-6 * np.random.default_rng(1).standard_normal((5, 5))
    loss = [(m * w).sum() * 0.9 / np.linalg.norm(w, 2) for w in (weight + step, weight - step)]
    assert (gradient * step).sum() == pytest.approx((loss[0] - loss[1]) / 2, rel=1e-5)
    assert (printed * step).sum() != pytest.approx((loss[0] - loss[1]) / 2, rel=0.05)


def test_s0_15_the_constant_of_a_branch_is_the_product_over_its_layers() -> None:
    """Printed: each layer at most one, or at most c, for Lip(g) <= c. Five layers at 0.9: 0.590."""
    layers = [Linear(4, 4, 0.9, generator=generator(k)).double() for k in range(5)]
    for layer in layers:
        layer.weight.data.mul_(10.0)
        layer.align()
    branch = Branch(*layers, lipschitz=0.9**5)
    assert branch.lipschitz_certified() == pytest.approx(0.9**5, rel=1e-4)
    promised = mlp_branch(4, (4, 4, 4, 4), 0.9).layers
    assert [layer.coefficient for layer in promised] == pytest.approx([0.9**0.2] * 5, rel=1e-3)
    with pytest.raises(ValueError, match="Lower `coefficient`"):  # layers at one
        Branch(Linear(4, 4, 1.0), Linear(4, 4, 1.0), lipschitz=0.9)


def test_s0_20_the_terms_decay_at_the_rate_k() -> None:
    """Printed: the issue is that terms decay exponentially. They do, at the rate K < 1.

    Held here: the ratio of successive errors tends to K, so 7 terms reach 1e-3 at K = 0.5, and 253
    at K = 0.98.
    """
    for lipschitz, n_terms in ((0.5, 7), (0.98, 253)):
        assert theory.log_tail(lipschitz, n_terms) <= 1e-3 < theory.log_tail(lipschitz, n_terms - 1)
        error, next_error = theory.log_tail(lipschitz, [1000, 1001])
        assert next_error / error == pytest.approx(lipschitz, rel=2e-3)


def test_s0_21_a_bound_is_not_the_smallest_constant() -> None:
    """Printed: K for both. Here the bound is 0.81, and the smallest constant 0.09."""
    one, two = aligned(np.diag([0.9, 0.1]), 0.9), aligned(np.diag([0.1, 0.9]), 0.9)
    branch = Branch(one, two, lipschitz=0.9)
    assert branch.lipschitz_certified() == pytest.approx(0.81, rel=1e-4)
    j = jacobian(branch, normal(1, 2))[0].detach().numpy()
    assert np.linalg.norm(j, 2) == pytest.approx(0.09, rel=1e-4)
    bias = abs(float(theory.truncation_bias(j, 3)))
    assert bias < 1e-3 * theory.truncation_bias_bound(branch.lipschitz_certified(), 2, 3)


# --- the inverse and Euler steps ------------------------------------------------------------------


def test_s0_19_an_euler_step_needs_h_times_the_constant_below_one() -> None:
    """Printed: Lip(u) < 1. It is neither necessary (3, h = 1/4) nor sufficient (1/2, h = 2)."""
    identity, x = torch.eye(2, dtype=FLOAT), normal(4, 2)
    block = linear_block(0.25 * -3.0 * identity, 0.75)
    flow = ResidualFlow([block], 2, Determinant(), StandardNormal(2, x))
    solution = flow.inverse(flow(x))
    assert (solution.value - x).norm(dim=1).le(solution.error_bound).all()
    assert solution.error_bound.max() < 1e-13
    step = 2.0 * -0.5 * identity
    assert (x + x @ step).abs().max() == 0.0  # every x goes to 0
    assert torch.isneginf(exact_log_det(matrix_map(step.numpy()), x)).all()
    with pytest.raises(ValueError, match="needs 0 < lipschitz < 1"):
        LinearBranch(step, 1.0)


def test_s0_22_the_iterates_are_a_sequence_not_a_series() -> None:
    """Printed: the series {x_n} converges. The sequence does; sum_n x_n grows as n x*."""
    g, z = smooth_branch(0.7, 3), normal(1, 3)
    fixed = ToTolerance()(g, z).value
    steps = [solve(lambda x: z - g(x), z, rtol=0.0, atol=0.0, max_steps=n) for n in range(1, 61)]
    iterates = [solution.value for solution in steps]
    errors = [float((x - fixed).norm()) for x in iterates]
    first = float(g(z).norm())  # ||x_1 - x_0||
    bound = [g.lipschitz ** (n + 1) / (1 - g.lipschitz) * first for n in range(60)]
    assert all(e <= b + 1e-14 for e, b in zip(errors, bound, strict=True))
    assert errors[-1] < 1e-10
    total = torch.stack(iterates).sum(0)
    torch.testing.assert_close(total / 60, fixed, rtol=0.05, atol=0.05)
    assert total.norm() > 50 * fixed.norm()
