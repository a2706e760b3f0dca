"""What the post "Flow Matching (Part 1)" prints, beside what holds: one test for each statement.

Each test computes the printed value and shows that it is wrong, and that a function of this package
returns the corrected one. `docs/mathematics.md` has the table. The post's f maps noise to data; a
flow of this package maps data to noise, so its inverse is the post's f.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch
from drawn import draws, matrix_map, z_of_mean, z_of_variance
from torch.distributions import Normal

from resflow_bench import theory
from resflow_bench.flows import ActNorm, ResidualBlock, ResidualFlow, StandardNormal, ToTolerance
from resflow_bench.layers import ELU, Branch, Linear, LinearBranch, ReLU, Tanh, mlp_branch
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
)

FLOAT = torch.float64
A = reference.linear_families(5, 0.7, seed=1)["gaussian"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=FLOAT, generator=generator(seed))


def smooth_block(slope: float) -> ResidualBlock:
    """x + slope tanh(x) in one dimension."""
    layers = [Linear(1, 1, c, bias=False).double() for c in (1.0, abs(slope))]
    for layer, weight in zip(layers, (1.0, slope), strict=True):
        torch.nn.init.constant_(layer.weight, weight)
        layer.align()
    return ResidualBlock(Branch(layers[0], Tanh(), layers[1], lipschitz=abs(slope)))


def flow_of(*layers: torch.nn.Module, dim: int = 1) -> ResidualFlow:
    base = StandardNormal(dim, torch.zeros(1, dtype=FLOAT))
    return ResidualFlow(layers, dim, Determinant(), base)


# --- one direction --------------------------------------------------------------------------------


@torch.no_grad()
def test_s1_06_samples_come_from_the_map_from_noise_to_data() -> None:
    """Printed: x1 = f^-1(x0), for the f of x1 = f(x0). For data N(1, 9) it is N(-1/3, 1/9)."""
    layer = ActNorm(1).double()
    layer.shift.fill_(-1.0)
    layer.log_scale.fill_(-math.log(3.0))
    flow = flow_of(layer)
    x1 = flow.sample(20_000, generator())
    assert abs(z_of_mean(x1.numpy(), 1.0)) < 4
    assert abs(z_of_variance(x1.numpy(), 9.0)) < 4
    torch.testing.assert_close(flow.log_prob(x1), Normal(1.0, 3.0).log_prob(x1)[:, 0].double())
    printed = flow(normal(20_000, 1)).numpy()  # the post's f^-1
    assert abs(z_of_mean(printed, -1 / 3)) < 4
    assert abs(z_of_variance(printed, 1 / 9)) < 4


@torch.no_grad()
def test_s1_07_the_parameter_is_where_the_likelihood_is_largest() -> None:
    """Printed: theta* = max. The largest log-likelihood is -2.52 nat; the scale is at 1/3."""
    layer, x = ActNorm(1).double(), 3.0 * normal(10_000, 1) + 1.0
    layer.initialise(x)  # the maximum for one scale and one shift
    flow, best = flow_of(layer), layer.log_scale.item()
    assert math.exp(best) == pytest.approx(1 / 3, rel=0.03)
    largest = flow.log_prob(x).mean().item()
    assert largest == pytest.approx(-0.5 * math.log(2 * math.pi * math.e) + best, abs=1e-3)
    for other in (best - 0.1, best + 0.1, largest):
        layer.log_scale.fill_(other)
        assert flow.log_prob(x).mean().item() < largest - 0.005


@torch.no_grad()
def test_s1_08_each_log_determinant_is_taken_at_its_own_input() -> None:
    """Printed: all at x^(i). Then exp(log q) does not integrate to one."""
    blocks = smooth_block(0.9), smooth_block(-0.6)
    flow = flow_of(*blocks)
    x = torch.linspace(-9.0, 9.0, 20_001, dtype=FLOAT)[:, None]
    density = flow.log_prob(x).exp()
    assert torch.trapezoid(density, x[:, 0]).item() == pytest.approx(1.0, abs=1e-8)
    log_dets = sum(exact_log_det(block.g, x) for block in blocks)
    printed = flow.base.log_prob(flow(x)) + log_dets
    assert abs(torch.trapezoid(printed.exp(), x[:, 0]).item() - 1.0) > 0.05


@torch.no_grad()
def test_s1_09_the_log_determinant_of_the_inverse_has_the_other_sign() -> None:
    """Printed: the series for ln|det df^-1/dx|; it is ln|det(I + J)| of f."""
    block, x, step = smooth_block(0.9), torch.full((1, 1), 0.3, dtype=FLOAT), 1e-5
    z = torch.cat([block(x) - step, block(x) + step])
    back, ahead = block.inverse(z, ToTolerance()).value
    of_inverse = math.log((ahead - back).item() / (2 * step))
    _, series = block.forward_and_log_det(x, LogDetEstimator(Rademacher(), Fixed(400)), generator())
    assert series.item() == pytest.approx(-of_inverse, abs=1e-8)  # d = 1: no variance
    assert series.item() > 0.5


# --- the block ------------------------------------------------------------------------------------


def test_s1_10_a_norm_of_one_is_no_contraction() -> None:
    """Printed: spectral norms <= 1 and contractive activations. g(x) = -x then gives f(x) = 0."""
    x, g = normal(3, 2), matrix_map(-np.eye(2))
    assert (x + g(x)).abs().max() == 0.0
    assert torch.isneginf(exact_log_det(g, x)).all()
    with pytest.raises(ValueError, match="needs 0 < lipschitz < 1"):
        LinearBranch(-torch.eye(2, dtype=FLOAT), 1.0)
    near = torch.tensor([1e-6], dtype=FLOAT)
    for phi in (Tanh(), ReLU(), ELU()):
        assert phi.lipschitz == 1.0
        assert (phi(near) / near).item() == pytest.approx(1.0, abs=1e-6)  # attained at 0
    assert mlp_branch(2, (8,), 0.9, activation=Tanh).lipschitz_certified() <= 0.9


def test_s1_14_the_number_of_layers_is_not_the_contraction_constant() -> None:
    """Printed: K for both. Five blocks of constant 0.9; the bound on the bias needs each."""
    flow = ResidualFlow.mlp(dim=3, hidden=(8,), n_blocks=5, lipschitz=0.9)
    assert [block.lipschitz for block in flow.blocks] == [0.9] * 5
    with pytest.raises(ValueError, match="needs 0 < lipschitz < 1"):
        ResidualFlow.mlp(dim=3, hidden=(8,), n_blocks=5, lipschitz=5)
    worst = LinearBranch(-0.9 * torch.eye(3, dtype=FLOAT), 0.9)
    flow = flow_of(*[ResidualBlock(worst) for _ in range(5)], dim=3)
    x = normal(2, 3)
    truncated = flow.with_estimator(LogDetEstimator(Rademacher(), Fixed(4)))
    bias = truncated.log_prob(x, generator()) - flow.with_estimator(Exact()).log_prob(x)
    bound = 5 * float(theory.truncation_bias_bound(0.9, 3, 4))  # attained
    np.testing.assert_allclose(bias.numpy(), bound, rtol=1e-9)


# --- the estimators -------------------------------------------------------------------------------


def test_s1_11_the_trace_is_the_mean_of_the_estimator() -> None:
    """Printed: tr A = (1/V) sum_i v_i^T A v_i. With V = 4 they differ by their standard error."""
    forms = draws(A, Gaussian(), Fixed(1), n=80_000)
    assert abs(z_of_mean(forms, np.trace(A))) < 4
    four = forms.reshape(-1, 4).mean(1)
    variance = float(theory.hutchinson_variance(A, Gaussian(), n_probes=4))
    assert abs(z_of_variance(four, variance)) < 4
    assert np.median(abs(four - np.trace(A))) > 0.5 * math.sqrt(variance)


def test_s1_12_the_roulette_keeps_the_division_by_k() -> None:
    """Printed: (-1)^(k+1)/P(N >= k) v^T J^k v, whose mean is tr(J (I + J)^-1), not the log-det."""
    j, roulette, n = 0.5 * np.eye(4), Roulette(Geometric(0.5), n_exact=1), 100_000
    log_det, resolvent = 4 * math.log(1.5), 4 * 0.5 / 1.5
    ours = draws(j, Rademacher(), roulette, n)  # its noise is that of N alone
    assert abs(z_of_mean(ours, log_det)) < 4
    weights = roulette.draw(n, torch.zeros(1, dtype=FLOAT), generator()).weights.numpy()
    k = np.arange(1, len(weights) + 1)
    printed = (-1.0) ** (k + 1) * 4 * 0.5**k @ weights
    assert abs(z_of_mean(printed, resolvent)) < 4
    assert abs(z_of_mean(printed, log_det)) > 30
    assert abs(z_of_mean(ours, resolvent)) > 30


def test_s1_13_the_probe_is_a_vector() -> None:
    """Printed: v ~ N(0, 1). One number for all coordinates has E v v^T = 1 1^T, not I."""
    v = Gaussian().sample(50_000, torch.zeros(1, 5, dtype=FLOAT), generator())[:, 0].numpy()
    np.testing.assert_allclose(v.T @ v / len(v), np.eye(5), atol=0.04)
    ours = np.einsum("ni,ij,nj->n", v, A, v)
    printed = v[:, 0] ** 2 * A.sum()
    assert abs(z_of_mean(ours, np.trace(A))) < 4
    assert abs(z_of_mean(printed, A.sum())) < 4
    assert abs(z_of_mean(printed, np.trace(A))) > 30


def test_s1_15_the_coin_of_the_library_is_the_probability_to_stop() -> None:
    """Printed: heads, p, goes on: P(N >= k) = p^(k-1). In the paper p stops: (1 - p)^(k-1)."""
    k, p = np.arange(1, 6), 0.9
    goes_on = Roulette(Geometric(1 - p), n_exact=1)
    np.testing.assert_allclose(goes_on.survival(k), p ** (k - 1))
    stops = Roulette(Geometric(p), n_exact=1)  # the other reading
    j = 0.5 * np.eye(4)
    for roulette, terms in ((goes_on, 1 / (1 - p)), (stops, 1 / p)):
        drawn = roulette.draw(20_000, torch.zeros(1, dtype=FLOAT), generator()).n_terms
        assert abs(z_of_mean(drawn, terms)) < 4
    assert math.isfinite(theory.roulette_variance(j, goes_on, Rademacher()))
    assert theory.roulette_variance(j, stops, Rademacher()) == math.inf  # 0.5^2 > 1 - 0.9
