"""Monotone blocks: log-det, gradient and inverse against dense float64 linear algebra."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from resflow_bench.architectures import monotone_architecture, steep_flow
from resflow_bench.data import dataset_named
from resflow_bench.flows import MonotoneBlock, ResidualFlow, ToTolerance
from resflow_bench.layers import Branch, Linear, LinearBranch, conditional, mlp_branch
from resflow_bench.logdet import (
    Determinant,
    Exact,
    Fixed,
    Geometric,
    LogDetEstimator,
    Poisson,
    Rademacher,
    Roulette,
    jacobian,
)
from resflow_bench.training import Trainer, Training

DTYPE = torch.float64
DIM, K = 5, 0.8


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def block() -> MonotoneBlock:
    """Steep: all singular values of the layers at their limits, LipSwish near its largest slope."""
    flow = steep_flow(DIM, K, seed=1).double()
    branch = flow.blocks[0].branch
    assert isinstance(branch, Branch)
    return MonotoneBlock(branch)


def points(n: int = 4) -> Tensor:
    return torch.randn(n, DIM, generator=generator(2), dtype=DTYPE)


def dense(f: MonotoneBlock, x: Tensor) -> Tensor:
    """(I - J) (I + J)^-1 at w, (B, d, d)."""
    j, identity = jacobian(f.branch, f.at(x).detach()).detach(), torch.eye(DIM, dtype=DTYPE)
    return torch.linalg.solve(identity + j, identity - j, left=False)


def test_the_map_is_that_of_its_two_halves() -> None:
    f, x = block(), points()
    w = f.at(x)
    torch.testing.assert_close(w + f.branch(w), x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(f(x), w - f.branch(w), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator", [Exact(), Determinant()], ids=["exact", "determinant"])
def test_the_log_det_is_that_of_the_dense_jacobian(estimator: object) -> None:
    f, x = block(), points()
    log_det = f.forward_and_log_det(x, estimator)[1].detach()  # type: ignore[arg-type]
    truth = torch.linalg.slogdet(dense(f, x)).logabsdet
    torch.testing.assert_close(log_det, truth, rtol=1e-10, atol=1e-10)
    assert float(truth.abs().min()) > 0.05
    by_autograd = torch.autograd.functional.jacobian(lambda u: f(u[None])[0], x[0])
    torch.testing.assert_close(by_autograd, dense(f, x)[0], rtol=1e-10, atol=1e-10)


def test_a_fixed_truncation_has_the_odd_terms_alone() -> None:
    """The mean of 100,000 probes, within four standard errors; an even term would be seen."""
    f, x = block(), points(1)
    j = jacobian(f.branch, f.at(x).detach())[0].detach()
    odd = -2 * sum(torch.trace(torch.linalg.matrix_power(j, k)) / k for k in (1, 3))
    estimator = LogDetEstimator(Rademacher(), Fixed(4), n_probes=4000)
    many = [f.forward_and_log_det(x, estimator, generator(s))[1].detach() for s in range(25)]
    values = torch.cat(many)
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean() - odd)) < 4 * error
    even = -2 * float(torch.trace(j @ j)) / 2
    assert abs(even) > 20 * error


@pytest.mark.parametrize("law", [Geometric(0.3), Poisson(4.0)], ids=repr)
def test_a_roulette_is_unbiased(law: object) -> None:
    """The mean over 20,000 examples at one point, within four standard errors."""
    f, x = block(), points(1)
    truth = float(torch.linalg.slogdet(dense(f, x)[0]).logabsdet)
    estimator = LogDetEstimator(Rademacher(), Roulette(law, n_exact=4))  # type: ignore[arg-type]
    with torch.no_grad():
        values = f.forward_and_log_det(x.expand(20_000, -1), estimator, generator(3))[1]
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - truth) < 4 * error
    assert error < 0.02 * abs(truth)


def test_both_halves_have_the_same_draws() -> None:
    """At two terms the even one cancels in each draw: v^T J v times -2 is left."""
    f, x = block(), points()
    one, two = (LogDetEstimator(Rademacher(), Fixed(n)) for n in (1, 2))
    first = f.forward_and_log_det(x, one, generator())[1]
    torch.testing.assert_close(f.forward_and_log_det(x, two, generator())[1], first)


def test_gradients_are_those_of_finite_differences() -> None:
    """Of a weighted sum of z and log-det, in x and in all parameters along one direction each.

    The weights are below their limit, so that a step away from them keeps the promise.
    """
    f, x = block(), points()
    with torch.no_grad():
        for parameter in f.parameters():
            parameter.mul_(0.3)
    f.branch.align()
    weights = torch.tensor([1.0, -0.5, 2.0, 0.3], dtype=DTYPE)

    def value(u: Tensor) -> Tensor:
        z, log_det = f.forward_and_log_det(u, Exact())
        return (weights * (log_det + z.sin().sum(1))).sum()

    u = x.clone().requires_grad_()
    parameters = list(f.parameters())
    gradients = torch.autograd.grad(value(u), [u, *parameters])
    step = 1e-5
    for tensor, gradient in zip([x, *parameters], gradients, strict=True):
        way = torch.randn(tensor.shape, generator=generator(5), dtype=DTYPE)
        with torch.no_grad():
            tensor.add_(step * way)
            above = value(x)
            tensor.sub_(2 * step * way)
            below = value(x)
            tensor.add_(step * way)
        slope = float((above - below) / (2 * step))
        assert float((gradient * way).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-7)


def test_it_stretches_by_at_most_the_promised_factor() -> None:
    """(1 + K) / (1 - K), attained by g = K Q x of norm K alone: 0.9 of it for -K I."""
    f, x = block(), points(50)
    singular = torch.linalg.svdvals(dense(f, x))
    most = (1 + K) / (1 - K)
    assert float(singular.max()) <= most
    assert float(singular.min()) >= 1 / most
    assert float(singular.max()) > 1 + K  # what no residual block reaches
    layer = Linear(DIM, DIM, K, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(-10 * torch.eye(DIM))
    layer.align()
    steep = MonotoneBlock(Branch(layer, lipschitz=K))
    assert float(torch.linalg.svdvals(dense(steep, x[:1])).max()) == pytest.approx(most, rel=1e-3)


def test_the_inverse_is_within_its_bound() -> None:
    f, x = block(), points(50)
    z = f(x).detach()
    rough = f.inverse(z, ToTolerance(rtol=1e-3, atol=1e-3))
    assert rough.error_bound is not None
    error = (rough.value - x).norm(dim=1)
    assert bool((error <= rough.error_bound).all())
    assert float(error.max()) > 1e-4
    assert bool((rough.error_bound < 0.1).all())


def test_what_has_no_negative_is_refused() -> None:
    with pytest.raises(TypeError, match="got LinearBranch"):
        MonotoneBlock(LinearBranch(0.5 * torch.eye(2), 0.5))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="without a context"):
        MonotoneBlock(conditional(mlp_branch(2, (8,), 0.9), 3))


def test_it_trains_saves_loads_and_samples(tmp_path: Path) -> None:
    data = dataset_named("moons")
    flow = monotone_architecture(data.event, 0.9)
    trainer = Trainer(flow, data, Training(30, batch_size=64, learning_rate=5e-3))
    losses = [trainer.step() for _ in range(30)]
    assert sum(losses[-5:]) < sum(losses[:5]) - 1.0
    flow.save(tmp_path / "monotone.pt")
    again = ResidualFlow.load(tmp_path / "monotone.pt", Determinant())
    x = data.prepare(data.train[:4], generator())
    torch.testing.assert_close(
        again.log_prob(x), flow.with_estimator(Determinant()).log_prob(x), rtol=0, atol=0
    )
    solution = again.inverse(again(x)).raise_if_failed()
    torch.testing.assert_close(solution.value, x, rtol=0, atol=1e-3)
    assert again.sample(3, generator()).shape == (3, 2)
