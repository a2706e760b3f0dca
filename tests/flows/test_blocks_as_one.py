"""The series of several residual blocks evaluated as one: the numbers of each block by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from resflow_bench.flows import ActNorm, Chain, ResidualBlock, ResidualFlow
from resflow_bench.jacobian import JacobianChain, Linearisation, MatrixStage, linearise
from resflow_bench.jacobian.blocks import BlockSize
from resflow_bench.layers import Branch, Linear, LinearBranch, LipSwish, Tanh, mlp_branch
from resflow_bench.logdet import (
    Fixed,
    Gaussian,
    Geometric,
    Hadamard,
    LogDetEstimator,
    Poisson,
    Rademacher,
    Roulette,
    Series,
    Taylor,
    Terms,
    estimator,
)

ESTIMATORS = {
    "fixed": LogDetEstimator(Rademacher(), Fixed(7), n_probes=3),
    "one term": LogDetEstimator(Gaussian(), Fixed(1)),
    "traced": LogDetEstimator(Gaussian(), Fixed(5), n_probes=2, n_traced=1),
    "roulette": LogDetEstimator(Rademacher(), Roulette(Geometric(0.3), n_exact=2), n_probes=2),
    "no exact term": LogDetEstimator(Rademacher(), Roulette(Poisson(1.0), n_exact=0)),
    "per batch": LogDetEstimator(Hadamard(), Roulette(Geometric(0.5), 1, per="batch"), n_probes=4),
    "stratified": LogDetEstimator(Rademacher(), Roulette(Geometric(0.2), 3, per="stratified")),
    "tail": LogDetEstimator(Rademacher(), Fixed(6), n_traced=1, expansion=Taylor(torch.float32)),
    "series": LogDetEstimator(Rademacher(), Fixed(6), gradient=Series()),
}


def of_different_blocks() -> ResidualFlow:
    """Three kinds of J, two of them twice."""
    draws = torch.Generator().manual_seed(3)
    branches = [
        mlp_branch(4, (6,), 0.7, generator=draws),
        LinearBranch(0.4 * torch.eye(4), 0.5),
        mlp_branch(4, (6,), 0.8, generator=draws),
        mlp_branch(4, (5, 7), 0.6, Tanh, generator=draws),
        mlp_branch(4, (5, 7), 0.6, Tanh, generator=draws),
    ]
    layers = [part for branch in branches for part in (ActNorm(4), ResidualBlock(branch))]
    return ResidualFlow(layers, 4)


FLOWS = {
    "wide": lambda: ResidualFlow.mlp(4, (9, 8), 3, 0.9),  # the two outer matrices stay apart
    "narrow": lambda: ResidualFlow.mlp(8, (5, 5), 4, 0.9),  # they become one
    "shallow": lambda: ResidualFlow.mlp(2, (6,), 2, 0.8),
    "different": of_different_blocks,
}


@contextmanager
def joining(most: float, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(estimator, "MOST_JOINED", BlockSize(most, math.inf))
        yield


def numbers(flow: ResidualFlow, x: Tensor) -> list[Tensor]:
    """log p without a graph, with one, and its gradient by weighted examples, in x too."""
    with torch.no_grad():
        alone = flow.log_prob(x, torch.Generator().manual_seed(5))
    x = x.clone().requires_grad_()
    value = flow.log_prob(x, torch.Generator().manual_seed(5))
    weights = torch.linspace(0.5, 2.0, len(x), dtype=x.dtype)
    return [alone, value.detach(), *torch.autograd.grad(value @ weights, [x, *flow.parameters()])]


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)
def test_the_numbers_are_those_of_each_block_by_itself(make, name, monkeypatch) -> None:
    torch.manual_seed(0)
    flow = make().double().with_estimator(ESTIMATORS[name])
    for layer in flow.modules():
        if isinstance(layer, ActNorm):
            nn.init.normal_(layer.shift)
            nn.init.normal_(layer.log_scale, std=0.1)
    tolerance = 1e-5 if name == "tail" else 1e-11
    for n in (0, 1, 13):
        x = torch.randn(n, flow.dim, dtype=torch.float64)
        with joining(0, monkeypatch):
            expected = numbers(flow, x)
        with joining(math.inf, monkeypatch):
            found = numbers(flow, x)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


class Count(TorchDispatchMode):
    """The number of products evaluated inside."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default)
        return func(*args, **(kwargs or {}))


def test_one_product_takes_the_place_of_one_for_each_block(monkeypatch) -> None:
    """Three for each of nine further terms: eight blocks, or one."""
    flow = ResidualFlow.mlp(4, (16, 16), 8, 0.9)
    flow.estimator = LogDetEstimator(Rademacher(), Fixed(10))
    counts = []
    for most in (0, 2**14):
        with joining(most, monkeypatch), torch.no_grad(), Count() as count:
            flow.log_prob(torch.zeros(5, 4))
        counts.append(count.n)
    assert counts == [8 * 30, 30]


@pytest.mark.parametrize(
    ("dim", "hidden", "n", "joins"),
    [
        (4, (64, 64), 32, True),
        (4, (64, 64), 33, False),
        (64, (8,), 32, True),
        (64, (8,), 33, False),
        (64, (256, 256), 1, True),
        (64, (512, 512), 1, False),
    ],
)
def test_large_blocks_are_evaluated_one_by_one(dim, hidden, n, joins) -> None:
    """By the numbers of a vector where it is widest, all probes together, and of a matrix."""
    branch = mlp_branch(dim, hidden, 0.9)
    one = LogDetEstimator(Rademacher(), Fixed(3), n_probes=2)
    assert one.joins(one.draw(branch, torch.zeros(n, dim))) is joins


@pytest.mark.parametrize("n_rows", [1, 2, 3])
def test_blocks_on_rows_of_vectors_stay_apart(n_rows) -> None:
    """An event (T, d), each row a vector of its own."""
    branches = []
    for seed in range(2):
        draws = torch.Generator().manual_seed(seed)
        layers = [Linear(4, 8, 0.9, generator=draws), Linear(8, 4, 0.9, generator=draws)]
        branches.append(Branch(layers[0], LipSwish(), layers[1], lipschitz=0.85))
    flow, one = Chain(*map(ResidualBlock, branches)), ESTIMATORS["no exact term"]
    for n in (1, 3):
        x = torch.randn(n, n_rows, 4)
        found = flow.forward_and_log_det(x, one, torch.Generator().manual_seed(2))[1]
        draws, expected = torch.Generator().manual_seed(2), torch.zeros(n)
        for branch in branches:
            g, value = one(branch, x, draws)[:2]
            x, expected = x + g, expected + value
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_what_a_user_has_changed_stays_as_it_is() -> None:
    """A subclass's estimate and stages of one's own are not replaced."""
    flow, x = ResidualFlow.mlp(4, (8,), 3, 0.9), torch.ones(3, 4)

    class Twice(LogDetEstimator):
        def __call__(self, g, x, generator=None):
            estimate = super().__call__(g, x, generator)
            return estimate._replace(value=2 * estimate.value)

    class Negated(MatrixStage):
        def vjp(self, v: Tensor) -> Tensor:
            return -v @ self.weight

    def negated(g, x: Tensor) -> Linearisation:
        value, jacobian = linearise(g, x)
        first, *others = jacobian.stages
        return Linearisation(value, JacobianChain([Negated(-first.weight), *others]))

    def log_det(one: LogDetEstimator) -> Tensor:
        view = flow.with_estimator(one)
        return view.forward_and_log_det(x, torch.Generator().manual_seed(1))[1].detach()

    expected = log_det(LogDetEstimator(Rademacher(), Fixed(5)))
    torch.testing.assert_close(log_det(Twice(Rademacher(), Fixed(5))), 2 * expected)
    same = LogDetEstimator(Rademacher(), Fixed(5), products=negated)
    torch.testing.assert_close(log_det(same), expected)


def test_weights_of_different_layouts_are_joined() -> None:
    expanded = Fixed(4).draw(3, torch.zeros(1), None)
    joined = Terms.of_blocks([expanded, Terms(torch.ones(4, 3), np.full(3, 4))])
    assert torch.equal(joined.weights, torch.ones(4, 3, 2))
    assert (joined.n_terms == 4).all()


def test_a_row_that_is_not_finite_spoils_no_other(monkeypatch) -> None:
    flow = ResidualFlow.mlp(3, (8,), 3, 0.9).with_estimator(ESTIMATORS["roulette"])
    x = torch.randn(5, 3)
    with joining(math.inf, monkeypatch):
        expected = flow.log_prob(x, torch.Generator().manual_seed(1))
        x[2, 1] = math.nan
        found = flow.log_prob(x, torch.Generator().manual_seed(1))
    keep = torch.tensor([0, 1, 3, 4])
    assert found[2].isnan()
    torch.testing.assert_close(found[keep], expected[keep], rtol=1e-5, atol=1e-5)
