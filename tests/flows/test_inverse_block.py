"""Inverse blocks, and implicit and monotone flows made of them, against float64 linear algebra."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from resflow_bench.advise import advise
from resflow_bench.architectures import (
    IMPLICIT_BLOCKS,
    MONOTONE_BLOCKS,
    architecture_named,
    steep_flow,
)
from resflow_bench.data import dataset_named
from resflow_bench.flows import (
    InverseBlock,
    MonotoneBlock,
    ResidualBlock,
    ResidualFlow,
    ToError,
    ToTolerance,
)
from resflow_bench.jacobian import Map
from resflow_bench.layers import ELU, Branch, conditional, mlp_branch
from resflow_bench.logdet import (
    Arnoldi,
    Averaged,
    Determinant,
    Estimate,
    Estimator,
    Exact,
    Fixed,
    Gaussian,
    LogDetEstimator,
    Rademacher,
    tuned,
)
from resflow_bench.training import Trainer, Training

DTYPE = torch.float64
DIM, K = 5, 0.8
FAMILIES = pytest.mark.parametrize(
    "blocks", [IMPLICIT_BLOCKS, MONOTONE_BLOCKS], ids=["implicit", "monotone"]
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(n: int = 4, dim: int = DIM) -> Tensor:
    return torch.randn(n, dim, generator=generator(2), dtype=DTYPE)


def steep_block() -> ResidualBlock:
    return steep_flow(DIM, K, seed=1).double().blocks[0]


def log_det_by_autograd(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    dense = [torch.autograd.functional.jacobian(lambda u: f(u[None])[0], one) for one in x]
    return torch.linalg.slogdet(torch.stack(dense)).logabsdet


def test_it_is_the_inverse_of_its_block() -> None:
    block, x = steep_block(), points()
    f = InverseBlock(block)
    z = f(x)
    torch.testing.assert_close(block(z), x, rtol=1e-12, atol=1e-12)
    _, log_det = f.forward_and_log_det(x, Exact())
    _, of_block = block.forward_and_log_det(z, Exact())
    torch.testing.assert_close(log_det, -of_block, rtol=1e-12, atol=1e-12)
    assert float(log_det.detach().abs().min()) > 0.02


def test_its_inverse_is_one_evaluation_within_its_bound() -> None:
    """In float32 the bound covers rounding; an error in z is stretched by 1 + K at most."""
    f = InverseBlock(steep_block())
    x = points(50)
    z = f(x).detach()
    exact = f.inverse(z, ToTolerance())
    assert exact.n_steps.sum() == 0
    error = (exact.value - x).norm(dim=1)
    assert exact.error_bound is not None
    assert bool((error <= exact.error_bound).all())
    assert float(exact.error_bound.max()) < 1e-12
    narrow = InverseBlock(steep_block()).float().inverse(z.float(), ToTolerance())
    assert narrow.error_bound is not None
    truth = f.block(z.float().double())
    off = (narrow.value.double() - truth).norm(dim=1).detach()
    assert bool((off <= narrow.error_bound).all())
    assert bool((narrow.error_bound < 1e-5).all())
    moved = 1e-3 * torch.nn.functional.normalize(points(50).flip(1), dim=1)
    far = f.inverse(z + moved, ToTolerance(), torch.full((50,), 1e-3, dtype=DTYPE))
    assert far.error_bound is not None
    error = (far.value - x).norm(dim=1)
    assert bool((error <= far.error_bound).all())
    assert float(far.error_bound.max()) < 1.001e-3 * (1 + K)
    assert float(error.max()) > 1.05e-3, "it does stretch"


def implicit_pair() -> ResidualFlow:
    first, second = (steep_flow(DIM, K, seed=s).double().blocks[0] for s in (1, 2))
    return ResidualFlow([first, InverseBlock(second)], DIM, Determinant())


def test_an_implicit_block_solves_its_equation() -> None:
    """z + g_2(z) = x + g_1(x), with the difference of two log-dets."""
    flow, x = implicit_pair(), points()
    z, log_det = flow.forward_and_log_det(x)
    first, second = flow.blocks
    torch.testing.assert_close(second(z), first(x), rtol=1e-12, atol=1e-12)
    truth = log_det_by_autograd(flow, x)
    torch.testing.assert_close(log_det, truth, rtol=1e-10, atol=1e-10)


@FAMILIES
@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, DTYPE])
def test_a_flow_maps_batches_of_any_size_there_and_back(blocks, n: int, dtype) -> None:
    flow = steep_flow(DIM, K, blocks=blocks).to(dtype)
    flow.initialise(points(32).to(dtype))
    x = points(n).to(dtype)
    z, log_det = flow.forward_and_log_det(x, generator())
    assert z.dtype == log_det.dtype == dtype
    back = flow.inverse(z.detach(), ToError(1e-3)).raise_if_failed()
    assert back.value.shape == (n, DIM)
    torch.testing.assert_close(back.value, x, rtol=0, atol=1e-3)
    exact = flow.with_estimator(Determinant()).forward_and_log_det(x)[1]
    if n:
        truth = log_det_by_autograd(flow.double(), x.double())
        tolerance = 1e-4 if dtype == torch.float32 else 1e-9
        torch.testing.assert_close(exact.double(), truth, rtol=tolerance, atol=tolerance)


@FAMILIES
def test_samples_have_the_density_of_the_flow_and_a_gradient(blocks) -> None:
    """log q of its own samples, and the slope of a reverse divergence by finite differences."""
    flow = steep_flow(2, 0.5, blocks=blocks).double().with_estimator(Determinant())
    flow.initialise(points(64, 2))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(0.3)  # below the limit, so that a step away keeps the promise
    flow.align()
    x, log_q = flow.sample_and_log_prob(6, generator(5))
    torch.testing.assert_close(log_q, flow.log_prob(x.detach()), rtol=1e-10, atol=1e-10)

    def loss() -> Tensor:
        y, log_p = flow.sample_and_log_prob(6, generator(5))
        return (log_p + 0.3 * y.square().sum(1) + y.sin().sum(1)).mean()

    parameters = list(flow.parameters())[::7]  # of every kind, in first and in last layers
    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    step, seen = 1e-5, 0
    for tensor, gradient in zip(parameters, gradients, strict=True):
        way = torch.randn(tensor.shape, generator=generator(9), dtype=DTYPE)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor.add_(sign * step * way)
                ends.append(float(loss()))
                tensor.sub_(sign * step * way)
        slope = (ends[0] - ends[1]) / (2 * step)
        found = 0.0 if gradient is None else float((gradient * way).sum())
        assert found == pytest.approx(slope, rel=1e-5, abs=1e-8)
        seen += abs(slope) > 1e-3
    assert seen > len(parameters) / 2


def test_a_conditional_implicit_block_is_that_of_its_contexts() -> None:
    layers = []
    for seed in (1, 2):
        branch = conditional(mlp_branch(3, (16,), 0.8, generator=generator(seed)), 2)
        block = ResidualBlock(branch)
        layers.append(InverseBlock(block) if seed == 2 else block)
    flow = ResidualFlow(layers, 3, Determinant()).double()
    for parameter in flow.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator(3)))
    flow.align()
    x, c = points(4, 3), points(4, 2)
    together = flow.log_prob(x, context=c)
    alone = torch.cat([flow.log_prob(x[k : k + 1], context=c[k]) for k in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)
    assert float((flow.log_prob(x, context=-c) - together).detach().abs().min()) > 1e-3
    back = flow.inverse(flow(x, c).detach(), ToError(1e-8), context=c).raise_if_failed()
    torch.testing.assert_close(back.value, x, rtol=0, atol=1e-8)


@dataclass(eq=False)
class Recorded:
    """An estimator of nobody's family that records its calls."""

    estimator: Estimator
    branches: list[Map] = field(default_factory=list)

    def __call__(self, g: Map, x: Tensor, generator: torch.Generator | None = None) -> Estimate:
        self.branches.append(g)
        return self.estimator(g, x, generator)


def test_a_monotone_block_with_any_other_estimator_has_the_same_draws() -> None:
    """Wrapped, the series is evaluated for g and -g, and the value is that of one evaluation."""
    branch = steep_block().branch
    assert isinstance(branch, Branch)
    f, x = MonotoneBlock(branch), points()
    series = LogDetEstimator(Gaussian(), Fixed(5), n_probes=2)
    wrapped = Recorded(series)
    one = f.forward_and_log_det(x, series, generator())[1]
    two = f.forward_and_log_det(x, wrapped, generator())[1]
    torch.testing.assert_close(two, one, rtol=1e-11, atol=1e-11)
    assert len(wrapped.branches) == 2
    mean = f.forward_and_log_det(x, Averaged(series, 3), generator())[1]
    draws = generator()
    each = [f.forward_and_log_det(x, series, draws)[1] for _ in range(3)]
    torch.testing.assert_close(mean, torch.stack(each).mean(0))
    exact = f.forward_and_log_det(x, Exact())[1]
    whole = LogDetEstimator(Gaussian(), Fixed(2 * DIM), 500, n_traced=2, expansion=Arnoldi())
    found = f.forward_and_log_det(x, whole, generator())[1]
    assert float((found - exact).detach().abs().max()) < 0.15


@FAMILIES
def test_estimators_chosen_for_each_branch_are_unbiased(blocks) -> None:
    """The mean of 4,000 draws at one point, within four standard errors."""
    flow = steep_flow(DIM, K, blocks=blocks).double()
    flow.initialise(points(32))
    x = points(4)
    base = LogDetEstimator(Rademacher(), Fixed(2))
    chosen = tuned(flow.branches(x), base, generator=generator(), n_draws=4)
    assert len(chosen.estimators) == 8
    with torch.no_grad():
        exact = float(flow.with_estimator(Determinant()).forward_and_log_det(x[:1])[1])
        many = x[:1].expand(4000, -1)
        values = flow.with_estimator(chosen).forward_and_log_det(many, generator(3))[1]
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - exact) < 4 * error
    assert error < 0.1


@FAMILIES
def test_advise_measures_their_estimators(blocks) -> None:
    flow = steep_flow(4, 0.7, blocks=blocks)
    x = points(32, 4).float()
    flow.initialise(x)
    found = advise(flow, x, target_error=0.2, seconds=1.0)
    assert found.measured[0].name == "determinant"


def test_an_implicit_flow_trains_saves_and_loads(tmp_path: Path) -> None:
    data = dataset_named("moons")
    flow = architecture_named("implicit")(data.event, 0.9)
    assert len(flow.blocks) == 8
    trainer = Trainer(flow, data, Training(30, batch_size=64, learning_rate=5e-3))
    losses = [trainer.step() for _ in range(30)]
    assert sum(losses[-5:]) < sum(losses[:5]) - 1.0
    certified = max(block.branch.lipschitz_certified() for block in flow.blocks)
    assert 0.5 < certified <= 0.9 * (1 + 1e-5)
    flow.save(tmp_path / "flow.pt")
    again = ResidualFlow.load(tmp_path / "flow.pt", Determinant())
    x = data.prepare(data.train[:4], generator())
    truth = flow.with_estimator(Determinant()).log_prob(x)
    torch.testing.assert_close(again.log_prob(x), truth, rtol=0, atol=0)
    assert again.sample(3, generator()).shape == (3, 2)


def test_a_branch_without_a_linear_end_has_no_monotone_block() -> None:
    inner = mlp_branch(3, (8,), 0.8, activation=ELU)
    last = inner.stages[-1]
    wrapped = MonotoneBlock(inner).minus.branch
    assert isinstance(wrapped, Branch)
    with pytest.raises(TypeError, match="ends with a Linear or Conv2d"):
        MonotoneBlock(wrapped)
    x = points(2, 3).float()
    torch.testing.assert_close(wrapped(x), -inner(x), rtol=0, atol=0)
    assert wrapped.layers[-1].certificate() == last.certificate()
