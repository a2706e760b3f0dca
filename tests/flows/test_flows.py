"""The flow: change of variables, certified inverse, sampling, ActNorm, shared parameters."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from resflow_bench.architectures import LINEAR_FAMILIES, linear_flow
from resflow_bench.fixed_point import Outcome
from resflow_bench.flows import ActNorm, Inversion, ResidualBlock, ResidualFlow
from resflow_bench.layers import LinearBranch, Tanh
from resflow_bench.logdet import Exact, Fixed, Geometric, LogDetEstimator, Rademacher, Roulette

DTYPE = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_flow(lipschitz: float = 0.8, dtype: torch.dtype = DTYPE) -> ResidualFlow:
    """Three blocks at d = 4 with weights so large that the norms are at their limits."""
    flow = ResidualFlow.mlp(4, (24, 24), 3, lipschitz, Tanh, Exact(), generator(1)).to(dtype)
    with torch.no_grad():
        for block in flow.blocks:
            for layer in block.branch.layers:
                layer.weight.mul_(8)
    flow.align()
    flow.initialise(2 * points(64, dtype) + 1)
    return flow


def points(n: int, dtype: torch.dtype = DTYPE) -> Tensor:
    return torch.randn(n, 4, generator=generator(2), dtype=DTYPE).to(dtype)


def test_log_det_is_that_of_the_whole_map() -> None:
    flow, x = make_flow(), points(5)
    z, log_det = flow.forward_and_log_det(x)
    torch.testing.assert_close(z, flow(x))
    for b in range(5):
        matrix = torch.autograd.functional.jacobian(lambda u: flow(u[None])[0], x[b])
        expected = torch.linalg.slogdet(matrix).logabsdet
        torch.testing.assert_close(log_det[b], expected, rtol=0, atol=1e-12)


def test_log_prob_is_a_density() -> None:
    """d = 1: the density integrates to one, by the trapezoidal rule on [-40, 40]."""
    flow = ResidualFlow.mlp(1, (16,), 2, 0.9, estimator=Exact(), generator=generator(3)).double()
    grid = torch.linspace(-40, 40, 20_001, dtype=DTYPE)[:, None]
    with torch.no_grad():
        density = flow.log_prob(grid).exp()
    assert torch.trapezoid(density, grid[:, 0]).item() == pytest.approx(1.0, abs=1e-8)


def test_estimated_log_prob_is_unbiased() -> None:
    """|z| < 4 over 20,000 draws; the twin with one term is rejected."""
    flow, x = make_flow(), points(1)

    def z_score(truncation: object) -> float:
        estimator = LogDetEstimator(Rademacher(), truncation)  # type: ignore[arg-type]
        with torch.no_grad():
            draws = flow.with_estimator(estimator).log_prob(x.expand(20_000, 4), generator(5))
            errors = draws - flow.log_prob(x)
        return float(errors.mean() / (errors.std() / len(errors) ** 0.5))

    assert abs(z_score(Roulette(Geometric(0.3), n_exact=3))) < 4
    assert abs(z_score(Fixed(1))) > 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lipschitz", [0.5, 0.9])
@pytest.mark.parametrize("rtol", [1e-2, 1e-4, None])
def test_inverse_is_within_its_bound(dtype, lipschitz, rtol) -> None:
    """The truth is a float64 inverse to rounding; the bound is at least the error everywhere."""
    flow = make_flow(lipschitz, dtype)
    z = 2 * points(50, dtype)
    solution = flow.inverse(z, Inversion(rtol=rtol, atol=rtol))
    assert bool(solution.converged.all())
    exact = copy.deepcopy(flow).double()
    truth = exact.inverse(z.double(), Inversion(max_steps=10_000))
    error = (solution.value.double() - truth.value).norm(dim=1)
    assert bool((error <= solution.error_bound + truth.error_bound).all())
    torch.testing.assert_close(exact(truth.value), z.double(), rtol=0, atol=1e-11)


def test_bound_is_attained_by_minus_k() -> None:
    """g = -K x leaves an error of exactly residual/(1 - K): the certificate is not slack there."""
    flow = linear_flow("minus-identity", 4, 0.9)
    solution = flow.inverse(points(8), Inversion(rtol=1e-3, atol=1e-3))
    truth = points(8) / 0.1
    error = (solution.value - truth).norm(dim=1)
    torch.testing.assert_close(solution.error_bound, error, rtol=1e-9, atol=0)


def test_a_certificate_does_not_trust_its_reference(monkeypatch) -> None:
    """Both the inverse and the float64 one that it is held to stop after two steps: they agree to
    float32, and are off by 1,000 times as much. The bound knows.
    """
    monkeypatch.setattr("resflow_bench.flows.inversion.POLISH_STEPS", 2)
    flow = make_flow(0.8, torch.float32)
    z = 2 * points(20, torch.float32)
    solution = flow.inverse(z, Inversion(max_steps=2))
    exact = copy.deepcopy(flow).double()
    error = (solution.value - exact.inverse(z.double()).value).norm(dim=1)
    reference = exact.inverse(z.double(), Inversion(max_steps=2)).value
    assert bool((error <= solution.error_bound).all())
    assert bool((error > 1e3 * (solution.value - reference).norm(dim=1)).all())


@pytest.mark.filterwarnings("ignore:A branch promises")
def test_a_hostile_branch_has_no_bound() -> None:
    """A matrix grown past its promise after it was checked: the bound is infinite, not wrong."""
    branch = LinearBranch(0.5 * torch.eye(4, dtype=DTYPE), 0.5)
    branch.matrix.mul_(-3)
    solution = ResidualBlock(branch).inverse(points(3), Inversion(max_steps=200))
    assert torch.isinf(solution.error_bound).all()
    assert bool((solution.outcome != Outcome.CONVERGED).all())
    with pytest.raises(ArithmeticError, match="3 of 3 fixed points not found"):
        ResidualFlow([ResidualBlock(branch)], 4).sample(3, generator())


def test_samples_follow_the_density() -> None:
    """Mean of log p over 4,000 samples is minus the entropy of f^-1(N): within 4 s.e. of
    E[log N(z) + log_det] computed along the same map from fresh z, and samples map to normals.
    """
    flow = make_flow()
    x = flow.sample(4000, generator(7))
    z = flow(x)
    assert (z.mean(0).abs() < 4 / 4000**0.5).all()
    assert ((z.var(0) - 1).abs() < 4 * (2 / 4000) ** 0.5).all()
    torch.testing.assert_close(x, flow.sample(4000, generator(7)), rtol=0, atol=0)


def test_actnorm_normalises_and_keeps_its_state() -> None:
    layer = ActNorm(4).double()
    x = 3 * points(500) - 2
    layer.initialise(x)
    z, log_det = layer.forward_and_log_det(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(4, dtype=DTYPE), rtol=0, atol=1e-12)
    torch.testing.assert_close(z.std(0), torch.ones(4, dtype=DTYPE))
    torch.testing.assert_close(log_det[0], -x.std(0).log().sum())
    other = ActNorm(4).double()
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(x), z)
    layer.initialise(torch.ones(5, 4, dtype=DTYPE))
    assert torch.isfinite(layer.log_scale).all()


def test_with_estimator_shares_parameters_and_leaves_the_flow_alone() -> None:
    flow = make_flow()
    view = flow.with_estimator(LogDetEstimator(Rademacher(), Fixed(2)))
    assert flow.estimator == Exact()
    with torch.no_grad():
        flow.layers[0].shift.add_(1.0)
    torch.testing.assert_close(view(points(3)), flow(points(3)))


def test_state_dict_holds_all_state() -> None:
    """u and v are there before any forward pass, so a fresh flow loads and computes the same."""
    flow, x = make_flow(), points(5)
    fresh = ResidualFlow.mlp(4, (24, 24), 3, 0.8, Tanh, Exact(), generator(9)).double()
    fresh.load_state_dict(flow.state_dict())
    torch.testing.assert_close(fresh.log_prob(x), flow.log_prob(x), rtol=0, atol=0)


def test_blocks_get_different_weights_and_seeds_reproduce_them() -> None:
    first, again = (ResidualFlow.mlp(4, (8,), 2, 0.5) for _ in range(2))
    weights = [block.branch.layers[0].weight for block in first.blocks]
    assert not torch.equal(*weights)
    assert torch.equal(weights[0], again.blocks[0].branch.layers[0].weight)


@pytest.mark.parametrize("name", LINEAR_FAMILIES)
def test_linear_families_attain_their_promise(name) -> None:
    flow = linear_flow(name, 6, 0.7)
    (block,) = flow.blocks
    assert block.branch.lipschitz_certified() == pytest.approx(0.7, rel=1e-12)
    eigenvalues = torch.linalg.eigvals(block.branch.matrix)
    if name == "triangular":
        assert eigenvalues.abs().max() == 0
    elif name == "orthogonal":
        torch.testing.assert_close(eigenvalues.abs(), torch.full((6,), 0.7, dtype=DTYPE))
    elif name == "symmetric":
        assert eigenvalues.imag.abs().max() < 1e-12
    expected = torch.linalg.slogdet(torch.eye(6, dtype=DTYPE) + block.branch.matrix).logabsdet
    log_det = flow.with_estimator(Exact()).forward_and_log_det(points(2).repeat(1, 2)[:, :6])[1]
    torch.testing.assert_close(log_det, expected.expand(2), rtol=0, atol=1e-12)


def test_base_density_is_standard_normal() -> None:
    flow = ResidualFlow([ActNorm(3)], 3, Exact())
    assert flow.log_prob(torch.zeros(1, 3)).item() == pytest.approx(-1.5 * math.log(2 * math.pi))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lipschitz": 1.0}, "got 1.0"),
        ({"lipschitz": 0.0}, "got 0.0"),
        ({"n_blocks": 0}, "n_blocks of at least 1; got 0"),
    ],
)
def test_bad_flows_are_refused(settings, words) -> None:
    with pytest.raises(ValueError, match="got") as error:
        ResidualFlow.mlp(**{"dim": 2, "hidden": (4,), "n_blocks": 1, "lipschitz": 0.5, **settings})
    assert words in str(error.value)
