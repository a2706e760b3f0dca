"""The bound of an inverse: how strongly a block keeps points apart, everywhere and near a point."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from resflow_bench.fixed_point import Outcome, Solution
from resflow_bench.flows import Inversion, ResidualBlock, ResidualFlow, ToError
from resflow_bench.flows import residual as residual_module
from resflow_bench.flows.certificate import BranchBounds, apart_near, branch_bounds
from resflow_bench.layers import (
    ELU,
    Branch,
    CLipSwish,
    Linear,
    LinearBranch,
    LipSwish,
    ReLU,
    Sine,
    Softplus,
    Tanh,
    conv_branch,
    dense_branch,
    mlp_branch,
)

DOUBLE = torch.float64
LONG = np.longdouble


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=DOUBLE)


def orthogonal(n_out: int, n_in: int, seed: int) -> Tensor:
    """Singular values from 0.95 to 1: crowded, as maximum likelihood leaves them."""
    n = min(n_out, n_in)
    left, right = (torch.linalg.qr(normal(m, n, seed=seed + m)).Q for m in (n_out, n_in))
    return left * torch.linspace(0.95, 1, n, dtype=DOUBLE) @ right.mT


def saturated(branch: Branch, seed: int) -> Branch:
    """The branch with every weight at its coefficient in all directions."""
    with torch.no_grad():
        for k, layer in enumerate(branch.layers):
            layer.weight.copy_(2 * orthogonal(*layer.weight.shape, seed=1000 * seed + 20 * k))
            layer.bias.copy_(normal(len(layer.bias), seed=1000 * seed + k + 500))
    branch.align()
    return branch


def flow_of(seed: int, dim: int = 4, width: int = 8, n_blocks: int = 3, phi=LipSwish):
    flow = ResidualFlow.mlp(dim, (width, width), n_blocks, 0.9, phi, generator=generator(seed))
    flow = flow.double()
    for k, block in enumerate(flow.blocks):
        saturated(block.branch, 10 * seed + k)
    flow.initialise(normal(64, dim, seed=seed))
    return flow


# --- the truth in more than double precision ---------------------------------------------------


def long_forward(flow: ResidualFlow, x: np.ndarray) -> np.ndarray:
    """f(x) in 80 bits, by the float64 numbers that the flow multiplies with."""
    for layer in flow.bijections:
        if isinstance(layer, ResidualBlock):
            y = x
            for stage in layer.branch.stages:
                if isinstance(stage, Linear):
                    y = y @ long(stage.weight_normalised()).T + long(stage.bias)
                else:
                    beta = long(nn.functional.softplus(stage.raw_beta))
                    y = y / (1 + np.exp(-beta * y)) / LONG("1.1")
            x = x + y
        else:
            x = (x + long(layer.shift)) * np.exp(long(layer.log_scale))
    return x


def long(t: Tensor) -> np.ndarray:
    return t.detach().numpy().astype(LONG)


def long_inverse(flow: ResidualFlow, z: Tensor, start: Tensor) -> np.ndarray:
    """x* to 1e-17 by Newton's steps with float64 Jacobians from a start that is near."""
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: flow(x[None])[0]))(start.detach())
    inverse = long(torch.linalg.inv(jacobian))
    x = long(start)
    for _ in range(4):
        x = x - np.einsum("bij,bj->bi", inverse, long_forward(flow, x) - long(z))
    assert np.abs(long_forward(flow, x) - long(z)).max() < 1e-16
    return x


def bounds_and_errors(flows: list[ResidualFlow]) -> tuple[np.ndarray, np.ndarray]:
    """Bounds and errors of each flow at 4 points, inverted to float64's rounding: (4 n_flows,)."""
    bounds, errors = [], []
    for seed, flow in enumerate(flows):
        z = 2 * normal(4, flow.dim, seed=seed + 1000)
        solution = flow.inverse(z, Inversion(error=1e-15))  # unreachable: all blocks are tightened
        truth = long_inverse(flow, z, solution.value)
        bounds.append(solution.error_bound.numpy())
        errors.append(np.linalg.norm(long(solution.value) - truth, axis=1).astype(float))
    return np.concatenate(bounds), np.concatenate(errors)


def test_the_bound_holds_to_rounding_in_80_bits() -> None:
    """200 examples of 50 random flows of two blocks."""
    bounds, errors = bounds_and_errors([flow_of(seed, n_blocks=2) for seed in range(50)])
    assert (errors > 0).all()
    assert (errors <= bounds).all()
    assert np.median(bounds / errors) < 1000


def test_a_twin_without_rounding_is_seen(monkeypatch) -> None:
    """It takes a block's residuals, some of them zero, at their word."""
    blocks = [flow_of(seed, dim=1, width=2, n_blocks=1).blocks for seed in range(20)]
    flows = [ResidualFlow(block, 1) for block in blocks]
    bounds, errors = bounds_and_errors(flows)
    assert (errors <= bounds).all()
    monkeypatch.setattr(residual_module, "ROUNDING", 0.0)
    bounds, errors = bounds_and_errors(flows)
    assert (errors > bounds).any()


# --- near a point ------------------------------------------------------------------------------

BRANCHES = {
    "mlp": (lambda: saturated(mlp_branch(6, (12, 12), 0.9, LipSwish).double(), 1), (6,)),
    "tanh": (lambda: saturated(mlp_branch(6, (12,), 0.9, Tanh).double(), 2), (6,)),
    "dense": (lambda: dense_branch(6, 8, 2, 0.9).double(), (6,)),
    "conv": (lambda: conv_branch(2, (3, 3), (3, 1, 3), (4, 4), 0.9).double(), (2, 3, 3)),
    "linear": (lambda: LinearBranch(-0.9 * orthogonal(6, 6, 3), 0.9), (6,)),
}


def jacobian(branch, x: Tensor) -> Tensor:
    """J by autograd, (B, d, d)."""
    one = torch.func.jacrev(lambda x: branch(x[None])[0].flatten())
    # vmap would give a convolution five axes.
    each = torch.func.vmap(one)(x) if x.ndim == 2 else torch.stack([one(row) for row in x])
    return each.flatten(2)


def least_stretch(branch, x: Tensor, radius: float) -> Tensor:
    """The least ||f(y) - f(x)|| / ||y - x|| of 400 y's at `radius`, softest directions included."""
    soft = torch.linalg.svd(torch.eye(x[0].numel()) + jacobian(branch, x)).Vh[:, -1].view_as(x)
    step = torch.cat([soft[None], -soft[None], normal(398, *x.shape, seed=5)])
    step = radius * step / step.flatten(2).norm(dim=2).view(400, -1, *[1] * (x.ndim - 1))
    y = x + step
    f_y = y + branch(y.flatten(0, 1)).view_as(y)
    return (f_y - x - branch(x)).flatten(2).norm(dim=2).amin(0) / radius


@pytest.mark.parametrize("thorough", [True, False])
@pytest.mark.parametrize("radius", [1e-4, 1e-2])
@pytest.mark.parametrize("name", BRANCHES)
@torch.no_grad()
def test_points_near_are_kept_apart(name: str, radius: float, thorough: bool) -> None:
    """m is below the least stretch, and above what holds everywhere."""
    make, event = BRANCHES[name]
    branch, x = make(), 2 * normal(8, *event)
    known = branch_bounds(branch)
    m = apart_near(branch, x, torch.full((8,), radius, dtype=DOUBLE), known, thorough)
    assert (m <= least_stretch(branch, x, radius)).all()
    if radius == 1e-4 and name != "linear":
        assert (m > known.apart + 0.01).float().mean() > 0.5


@torch.no_grad()
def test_a_twin_without_curvature_is_seen() -> None:
    """g = -0.9 sin x is flat at pi / 2, and pulls together what is a little aside."""
    layers = [Linear(1, 1, c).double() for c in (1.0, 0.9)]
    branch = Branch(layers[0], Sine(), layers[1], lipschitz=0.9)
    for layer, weight in zip(layers, (2.0, -2.0), strict=True):
        layer.weight.fill_(weight)
        layer.bias.zero_()
    branch.align()
    known = branch_bounds(branch)
    assert known.curvature == pytest.approx(0.9, rel=1e-5)
    x, radius = torch.full((1, 1), np.pi / 2, dtype=DOUBLE), 0.5
    stretch = least_stretch(branch, x, radius)
    assert apart_near(branch, x, torch.tensor([radius]).double(), known) <= stretch
    flat = known._replace(curvature=0.0)
    assert apart_near(branch, x, torch.tensor([radius]).double(), flat) > stretch


# --- everywhere --------------------------------------------------------------------------------


class Falling(nn.Module):
    """phi(z) = -max(z, 0): the middle of its slopes is negative."""

    lipschitz, expansion, slopes = 1.0, 1, (-1.0, 0.0)

    def forward(self, z: Tensor) -> Tensor:
        return -torch.relu(z)

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.relu(z), -(z > 0).to(z)


@pytest.mark.parametrize("phi", [LipSwish, Tanh, ELU, Softplus, Sine, ReLU, Falling])
@pytest.mark.parametrize("hidden", [(12, 12), (12,)])
@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_constants_hold_everywhere(phi, hidden: tuple[int, ...], seed: int) -> None:
    branch = saturated(mlp_branch(6, hidden, 0.9, phi).double(), seed)
    dense = jacobian(branch, 6 * normal(500, 6, seed=seed))
    lowest = torch.linalg.eigvalsh((dense + dense.mT) / 2).min()
    product, (k, apart, _) = branch.lipschitz_certified(), branch_bounds(branch)
    assert torch.linalg.matrix_norm(dense, 2).max() <= k <= product
    assert 1 + lowest >= apart >= 1 - k - 1e-9
    if phi is not Sine:  # whose slopes have the middle 0
        assert apart > 1.05 * (1 - product)
        assert k < 0.999 * product


@torch.no_grad()
def test_apart_is_attained_and_a_twin_of_the_middle_alone_is_seen() -> None:
    """g = -0.9 phi(x): the middle slope says 1 - 0.9 / 2, where phi is steep it is 1 - 0.9."""
    branch = mlp_branch(3, (3,), 0.9, Softplus).double()
    with torch.no_grad():
        for layer, sign in zip(branch.layers, (2.0, -2.0), strict=True):
            layer.weight.copy_(sign * torch.eye(3))
            layer.bias.zero_()
    branch.align()
    stretch = 1 + torch.linalg.eigvalsh(jacobian(branch, torch.full((1, 3), 40.0).double())).min()
    apart = branch_bounds(branch).apart
    assert apart <= stretch <= apart + 1e-6
    assert branch_bounds(branch).lipschitz == pytest.approx(1 - float(stretch), abs=1e-6)
    assert stretch + 0.4 < 1 - 0.9 / 2


@pytest.mark.parametrize("phi", [LipSwish, Tanh, ELU, Softplus, Sine, CLipSwish])
def test_curvature_is_attained_and_no_more(phi) -> None:
    """Between the points of a grid of spacing 1e-4."""
    phi = phi().double()
    z = torch.linspace(-6, 6, 120_001, dtype=DOUBLE)[:, None]
    with torch.no_grad():
        _, slope = phi.value_and_derivative(z)
        change = (slope[1:] - slope[:-1]).norm(dim=1) / 1e-4
    assert 0.999 * phi.curvature() < float(change.max()) < phi.curvature() * (1 + 1e-6)


# --- the flow ----------------------------------------------------------------------------------


def certified(flow: ResidualFlow, z: Tensor, error: float) -> Solution:
    """As `ResidualFlow.inverse`, without its attempt: at rounding, whatever the error."""
    return flow.layers.inverse(z, ToError(error)).demand(error)


def test_an_error_is_certified_that_the_constants_alone_do_not(monkeypatch) -> None:
    """Eight blocks of K = 0.9: the constants stretch rounding 1e8 times; the point's do not."""
    flow, z = flow_of(0, n_blocks=8), 2 * normal(20, 4)
    near = certified(flow, z, 5e-9)
    assert near.converged.all()
    assert (near.error_bound <= 5e-9).all()
    monkeypatch.setattr(residual_module, "near_is_known", lambda *_: False)
    far = certified(flow, z, 5e-9)
    assert (far.outcome == Outcome.UNCERTIFIED).all()
    assert (far.error_bound > 5e-9).all()
    torch.testing.assert_close(near.value, far.value, rtol=0, atol=0)


def test_without_curvature_the_constants_stand() -> None:
    """ReLU's slope jumps: the same bound, whatever the requested error."""
    flow, z = flow_of(1, phi=ReLU), 2 * normal(10, 4)
    assert branch_bounds(flow.blocks[0].branch).curvature == np.inf
    strict, lax = (certified(flow, z, error) for error in (1e-13, 1.0))
    torch.testing.assert_close(strict.error_bound, lax.error_bound, rtol=1e-6, atol=0)
    assert lax.converged.all()
    assert (strict.outcome == Outcome.UNCERTIFIED).all()


@pytest.mark.filterwarnings("ignore:A branch promises")
def test_a_grown_branch_has_no_bound_near_or_far() -> None:
    """m <= 0 everywhere: that the point itself is harmless does not put x* near it."""
    branch = saturated(mlp_branch(4, (8,), 0.9, Tanh).double(), 3)
    known = branch_bounds(branch)
    assert isinstance(known, BranchBounds)
    with torch.no_grad():
        branch.layers[0].norm.coefficient = 4.0
        branch.layers[0].weight.mul_(4)
    assert branch_bounds(branch).apart < 0
    solution = ResidualBlock(branch).inverse(normal(3, 4), Inversion(error=1e-6, max_steps=50))
    assert torch.isinf(solution.error_bound).all()
