"""Made-up parts, one class each, in a flow: its density, gradients, certified inverse, promises.

Layers whose form keeps their constant are put to the same questions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from resflow_bench.flows import ActNorm, Flatten, ResidualBlock, ResidualFlow, ToError, ToTolerance
from resflow_bench.flows.bijection import as_bijection
from resflow_bench.layers import (
    AOL,
    Branch,
    Certificate,
    Conv2d,
    Linear,
    LipSwish,
    SemiOrthogonal,
    Tanh,
    mlp_branch,
    sll_branch,
)
from resflow_bench.layers.maps import Affine
from resflow_bench.layers.norms.norm import cushion
from resflow_bench.layers.norms.operators import Operator
from resflow_bench.logdet import Exact, Fixed, LogDetEstimator, Rademacher

DTYPE = torch.float64
DIM = 4


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=DTYPE)


class Arctan(nn.Module):
    """An activation: phi(z) = arctan z, phi'(z) = 1 / (1 + z^2)."""

    lipschitz = 1.0
    expansion = 1

    def forward(self, z: Tensor) -> Tensor:
        return torch.atan(z)

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return torch.atan(z), 1 / (1 + z * z)


class Scaling(nn.Module):
    """A layer: y_i = s_i x_i with |s_i| at most its coefficient after an update."""

    domain = codomain = 2.0

    def __init__(self, n: int, coefficient: float) -> None:
        super().__init__()
        self.n_in = self.n_out = n
        self.coefficient = coefficient
        self.scale = nn.Parameter(torch.linspace(-3, 3, n))
        self.update()

    def normalised(self) -> Affine:
        return Affine(self.scale.diag())

    @torch.no_grad()
    def update(self) -> None:
        limit = self.coefficient * (1 - 1e-6)
        self.scale.clamp_(-limit, limit)

    def align(self) -> None:
        self.update()

    def certificate(self) -> Certificate:
        return Certificate(float(self.scale.detach().abs().max()), "scale")


class Asinh(nn.Module):
    """A bijection in closed form: z = asinh x, with dz/dx = 1 / cosh z."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.asinh(x)

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.asinh(x), -0.5 * torch.log1p(x * x).flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        return torch.sinh(z)

    def inverse_error(self, z: Tensor, x: Tensor, error: Tensor) -> Tensor:
        size = z.double().abs().flatten(1).amax(1) + error
        rounding = 8 * torch.finfo(z.dtype).eps * x.double().flatten(1).norm(dim=1)
        return size.cosh() * error + rounding


@dataclass(frozen=True)
class SchurTest:
    """A norm: ||A||_2 <= sqrt(||A||_1 ||A||_inf), of matrices and convolutions alike."""

    domain = codomain = 2.0

    def normaliser(self, operator: Operator, coefficient: float) -> SchurTestNorm:
        return SchurTestNorm(coefficient)


class SchurTestNorm(nn.Module):
    """The bound itself, so that nothing has to be carried from step to step."""

    def __init__(self, coefficient: float) -> None:
        super().__init__()
        self.coefficient = coefficient

    def normalised(self, operator: Operator) -> Tensor:
        target = self.coefficient * (1 - cushion(operator.weight.dtype, 1))
        return operator.weight / (self._bound(operator) / target).clamp(min=1)

    def update(self, operator: Operator) -> None: ...

    def align(self, operator: Operator) -> None: ...

    def certificate(self, operator: Operator) -> Certificate:
        return Certificate(float(self._bound(operator.to(torch.float64)).detach()), "schur test")

    def _bound(self, operator: Operator) -> Tensor:
        return (operator.column_norms(1.0).amax() * operator.row_norms(1.0).amax()).sqrt()


def flow_of(*layers: nn.Module, event: tuple[int, ...] = (DIM,)) -> ResidualFlow:
    """With weights so large that promises matter."""
    flow = ResidualFlow([*layers, *([Flatten(event)] if len(event) > 1 else [])], event, Exact())
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator(parameter.numel())))
    flow.update()
    return flow


def schur_block(*layers: nn.Module) -> ResidualBlock:
    return ResidualBlock(Branch(layers[0], LipSwish(), layers[1], lipschitz=0.81))


GRID = (3, 2)
FLOWS: dict[str, Callable[[], ResidualFlow]] = {
    "activation": lambda: flow_of(ResidualBlock(mlp_branch(DIM, (6, 6), 0.8, Arctan))),
    "layer": lambda: flow_of(
        ActNorm(DIM),
        ResidualBlock(Branch(Scaling(DIM, 0.9), Tanh(), Linear(4, 4, 0.9), lipschitz=0.81)),
    ),
    "closed form": lambda: flow_of(Asinh(), ResidualBlock(mlp_branch(DIM, (6,), 0.8)), Asinh()),
    "norm": lambda: flow_of(
        schur_block(Linear(DIM, 6, 0.9, SchurTest()), Linear(6, DIM, 0.9, SchurTest()))
    ),
    "norm of convolutions": lambda: flow_of(
        schur_block(
            Conv2d(2, 3, 3, GRID, 0.9, SchurTest()), Conv2d(3, 2, 1, GRID, 0.9, SchurTest())
        ),
        event=(2, *GRID),
    ),
    "almost orthogonal": lambda: flow_of(ResidualBlock(mlp_branch(DIM, (6, 6), 0.8, norm=AOL()))),
    "almost orthogonal convolutions": lambda: flow_of(
        schur_block(Conv2d(2, 3, 3, GRID, 0.9, AOL()), Conv2d(3, 2, 1, GRID, 0.9, AOL())),
        event=(2, *GRID),
    ),
    "orthogonal": lambda: flow_of(
        ActNorm(DIM), ResidualBlock(mlp_branch(DIM, (6, 6), 0.8, norm=SemiOrthogonal()))
    ),
    "residual layers": lambda: flow_of(ResidualBlock(sll_branch(DIM, (6, 5, 8), 0.8))),
}
EACH = pytest.mark.parametrize("name", FLOWS)


def log_prob_by_autograd(flow: ResidualFlow, x: Tensor) -> Tensor:
    """From the dense Jacobian of the whole map, differentiable."""
    d = flow.dim
    jacobians = [
        torch.autograd.functional.jacobian(
            lambda u: flow(u[None])[0], one, create_graph=True
        ).reshape(d, d)
        for one in x
    ]
    base = -0.5 * (flow(x).square().sum(1) + d * math.log(2 * math.pi))
    return base + torch.linalg.slogdet(torch.stack(jacobians)).logabsdet


@EACH
def test_log_prob_and_its_gradient_are_those_of_the_dense_jacobian(name: str) -> None:
    flow = FLOWS[name]().double()
    x = normal(3, *flow.event).requires_grad_()
    ours, truth = flow.log_prob(x), log_prob_by_autograd(flow, x)
    torch.testing.assert_close(ours, truth, rtol=1e-11, atol=1e-11)
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=DTYPE)
    inputs = [x, *flow.parameters()]
    for found, expected in zip(
        torch.autograd.grad((ours * weights).sum(), inputs, materialize_grads=True),
        torch.autograd.grad((truth * weights).sum(), inputs, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@EACH
def test_the_inverse_is_certified(name: str) -> None:
    """In float32, to a tolerance and to an error, against float64's own."""
    flow = FLOWS[name]()
    z = flow(0.5 * normal(5, *flow.event).float()).detach()
    truth = copy.deepcopy(flow).double().inverse(z.double(), ToTolerance(max_steps=20_000))
    for inversion in (ToTolerance(rtol=1e-3, atol=1e-3), ToError(1e-3)):
        solution = flow.inverse(z, inversion).raise_if_failed()
        error = (solution.value.double() - truth.value).flatten(1).norm(dim=1)
        assert bool((error <= solution.error_bound + truth.error_bound).all())
    assert bool((solution.error_bound <= 1e-3).all())


@EACH
def test_training_keeps_the_promise_and_a_checkpoint_is_the_flow(name: str) -> None:
    flow = FLOWS[name]().with_estimator(LogDetEstimator(Rademacher(), Fixed(3)))
    optimiser = torch.optim.Adam(flow.parameters(), lr=0.05)
    x, noise = normal(16, *flow.event).float(), generator(1)
    for _ in range(10):
        optimiser.zero_grad()
        flow.log_prob(x, noise).mean().neg().backward()
        optimiser.step()
        flow.update()
        for block in flow.blocks:
            assert block.branch.lipschitz_certified() <= block.lipschitz
    fresh = FLOWS[name]()
    fresh.load_state_dict(flow.state_dict())
    assert torch.equal(fresh(x), flow(x))


def test_a_part_with_neither_contract_is_named() -> None:
    with pytest.raises(TypeError, match="`ClosedForm` or of `Bijection`; Tanh has neither"):
        as_bijection(nn.Tanh())
