"""Certified inverses near K = 1: sharp bounds near a point, few operations, honest refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from resflow_bench.architectures import linear_flow, steep_flow
from resflow_bench.fixed_point import Outcome, Solution
from resflow_bench.fixed_point.newton import minimal_residuals
from resflow_bench.flows import ResidualBlock, ResidualFlow, ToError, ToRounding
from resflow_bench.flows import composition as composition_module
from resflow_bench.flows import inversion as inversion_module
from resflow_bench.flows.certificate import apart_near, branch_bounds
from resflow_bench.flows.composition import Chain
from resflow_bench.flows.inversion import Quick
from resflow_bench.layers import Branch, Linear, LinearBranch, ReLU

DOUBLE = torch.float64
NEAR_ONE = (0.99, 0.999, 0.9999)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=DOUBLE)


def steep(lipschitz: float, dim: int = 16) -> ResidualFlow:
    flow = steep_flow(dim, lipschitz).double()
    flow.initialise(normal(64, dim, seed=1))
    return flow


@pytest.fixture
def sizes(monkeypatch) -> list[tuple[object, int]]:
    """(solver, examples) of each inversion of a whole flow, as they are called."""
    called: list[tuple[object, int]] = []
    inverse = Chain.inverse

    def record(chain: Chain, z: Tensor, inversion, *rest, **options):
        if isinstance(inversion, ToError):
            called.append((inversion.solver, len(z)))
        return inverse(chain, z, inversion, *rest, **options)

    monkeypatch.setattr(Chain, "inverse", record)
    return called


# --- the stretch near a point ------------------------------------------------------------------


@pytest.mark.parametrize("lipschitz", NEAR_ONE)
def test_the_least_singular_value_is_bounded_sharply(lipschitz: float) -> None:
    """Of rotations by 120 degrees sigma_min(I + J) is far above 1 + lambda_min(H)."""
    turn = torch.tensor([[-0.5, -math.sqrt(0.75)], [math.sqrt(0.75), -0.5]], dtype=DOUBLE)
    generic = torch.linalg.qr(normal(8, 8)).Q
    gaps = []
    for matrix in (-torch.eye(8, dtype=DOUBLE), generic, torch.block_diag(turn, turn, turn, turn)):
        branch = LinearBranch(lipschitz * matrix, lipschitz * (1 + 1e-7))
        x, zero = normal(3, 8), torch.zeros(3, dtype=DOUBLE)
        least = torch.linalg.svdvals(torch.eye(8, dtype=DOUBLE) + branch.matrix)[-1]
        lowest = 1 + torch.linalg.eigvalsh((branch.matrix + branch.matrix.mT) / 2)[0]
        known = branch_bounds(branch)
        thorough = apart_near(branch, x, zero, known)
        quick = apart_near(branch, x, zero, known, thorough=False)
        assert (quick <= lowest).all()
        assert (thorough <= least).all()
        assert (thorough >= least / 1.15 - 2e-5).all()  # eight equal values cost 8^(1/16) = 1.14
        gaps.append(float((thorough - quick).min()))
    assert gaps[-1] > 0.2


# --- certified, and refused --------------------------------------------------------------------


@pytest.mark.parametrize("lipschitz", NEAR_ONE)
@torch.no_grad()
def test_eight_steep_blocks_are_certified(lipschitz: float) -> None:
    flow, x = steep(lipschitz), normal(20, 16, seed=2)
    solution = flow.inverse(flow(x), ToError(1e-6)).raise_if_failed()
    # The latents are rounded too, and stretched by some 1e5.
    error = (solution.value - x).norm(dim=1)
    assert (error <= solution.error_bound + 1e-10).all()
    assert (solution.error_bound <= 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_an_error_below_rounding_is_refused(dtype: torch.dtype) -> None:
    """g = -0.9999 x takes z to 1e4 z: its rounding alone is above 1e-9 in float64."""
    flow = linear_flow("minus-identity", 4, 0.9999).to(dtype)
    solution = flow.inverse(normal(5, 4).to(dtype), ToError(1e-9))
    assert (solution.outcome == Outcome.UNCERTIFIED).all()
    assert (solution.error_bound > 1e-9).all()
    with pytest.raises(ArithmeticError, match=r"magnifies rounding by up to 1 / \(1 - K\)"):
        solution.raise_if_failed()


# --- the attempt -------------------------------------------------------------------------------


@torch.no_grad()
def test_an_attempt_suffices(sizes) -> None:
    flow, z = steep(0.9), normal(20, 16, seed=3)
    solution = flow.inverse(z, ToError(1e-4)).raise_if_failed()
    assert [(type(solver), n) for solver, n in sizes] == [(Quick, 20)]
    exact = flow.inverse(z, ToRounding()).value
    error = (solution.value - exact).norm(dim=1)
    assert (error <= solution.error_bound).all()
    assert (solution.error_bound <= 1e-4).all()


def mixed() -> tuple[ResidualFlow, Tensor]:
    """A flow with slopes of -0.9 at most latents and 0 at the others: their mean misleads these."""
    first = Linear(16, 16, 1.0, bias=False)
    last = Linear(16, 16, 0.9)
    with torch.no_grad():
        first.weight.copy_(torch.eye(16))
        last.weight.copy_(-torch.eye(16))
        last.bias.fill_(0.5)
    flow = ResidualFlow([ResidualBlock(Branch(first, ReLU(), last, lipschitz=0.9))], 16)
    flow.align()
    z = normal(128, 16, seed=3).abs() + 1
    z[::20] *= -1
    return flow, z


@torch.no_grad()
@pytest.mark.parametrize("of", [0.5, 0.9, 0.99, "mixed"])
def test_picards_steps_of_an_attempt_pay(of: float | str, monkeypatch) -> None:
    """Fewer evaluations and products than without the steps; where the first is slow, than with."""
    flow, z = mixed() if isinstance(of, str) else (steep(of), normal(128, 16, seed=3))
    n_products = 0

    def counted(product, *arguments):
        def one_more(v: Tensor) -> Tensor:
            nonlocal n_products
            n_products += 1
            return product(v)

        return minimal_residuals(one_more, *arguments[:-1])

    def work() -> int:
        nonlocal n_products
        n_products = 0
        solution = flow.inverse(z, ToError(1e-2)).raise_if_failed()
        return n_products + int(solution.n_steps.max())

    monkeypatch.setattr(inversion_module, "minimal_residuals", counted)
    chosen = work()
    monkeypatch.setattr(inversion_module, "QUICK_RATE", math.inf)
    always = work()
    monkeypatch.setattr(inversion_module, "QUICK_PICARD", 0)
    never = work()
    if of == "mixed":
        assert chosen < always
    else:
        assert chosen == always < never


class Recorded(torch.nn.Module):
    """tanh, whose derivative autograd computes."""

    lipschitz = 1.0
    expansion = 1

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(z)

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_()
            y = torch.tanh(z)
            return y, torch.autograd.grad(y.sum(), z, create_graph=True)[0]


def test_an_activation_may_be_derived_by_autograd() -> None:
    branch = Branch(Linear(16, 32, 0.9), Recorded(), Linear(32, 16, 0.9), lipschitz=0.81)
    flow = ResidualFlow([ResidualBlock(branch)], 16)
    solution = flow.inverse(normal(20, 16).float(), ToError(1e-4)).raise_if_failed()
    assert (solution.error_bound <= 1e-4).all()


def test_what_an_attempt_returns_can_be_differentiated() -> None:
    """Although it iterates in torch's inference mode, whose tensors cannot."""
    flow, z = steep(0.9), normal(20, 16, seed=3)
    solution = flow.double().inverse(z.double(), ToError(1e-4))
    for tensor in (solution.value, solution.residual, solution.error_bound):
        assert not tensor.is_inference()
    flow(solution.value).sum().backward()


@torch.no_grad()
def test_less_exact_is_less_work(sizes) -> None:
    """At no error asked for does an attempt go on past a few per cent of it."""
    flow, z = steep(0.9), normal(20, 16, seed=3)
    exact = flow.inverse(z, ToRounding()).value
    steps, bounds = [], []
    for error in (1e-1, 1e-3, 1e-6):
        solution = flow.inverse(z, ToError(error)).raise_if_failed()
        assert ((solution.value - exact).norm(dim=1) <= solution.error_bound).all()
        steps.append(int(solution.n_steps[0]))
        bounds.append(float(solution.error_bound.max()))
    assert {type(solver) for solver, _ in sizes} >= {Quick}
    assert steps == sorted(steps)
    assert steps[0] < steps[-1]
    assert bounds == sorted(bounds, reverse=True)


@torch.no_grad()
def test_solved_systems_are_left_out() -> None:
    """Those of a large batch, once they are half of it: the products shrink, the solutions stay."""
    scales = torch.linspace(0.01, 0.9, 128, dtype=DOUBLE)
    matrices = scales.view(-1, 1, 1) * torch.linalg.qr(normal(128, 8, 8)).Q
    counts: list[int] = []

    def select(rows: Tensor):
        def product(v: Tensor) -> Tensor:
            counts.append(len(v))
            return (matrices[rows] @ v.unsqueeze(2)).squeeze(2)

        return product

    right, limit = normal(128, 8, seed=1), torch.full((128,), 1e-8, dtype=DOUBLE)
    limit[::4] = math.inf  # these ask for nothing
    whole, given = select(torch.arange(128)), right.clone()
    solution = minimal_residuals(whole, right, limit, 200, select=select)
    assert torch.equal(right, given)
    assert sorted(counts, reverse=True) == counts
    assert counts[0] == 128
    assert counts[-1] <= 32
    residual = (right - solution - whole(solution)).norm(dim=1)
    assert (residual <= limit).all()


@torch.no_grad()
def test_what_an_attempt_leaves_is_inverted_again(sizes, monkeypatch) -> None:
    """One alone, whose rounding is too large; all, if the attempt corrects none of them."""
    flow, z = steep(0.9), normal(20, 16, seed=3)
    z[4] *= 1e12  # its rounding alone is above the error, which no attempt can mend
    solution = flow.inverse(z, ToError(1e-4))
    assert [n for _, n in sizes] == [20, 1]
    assert solution.outcome[4] == Outcome.UNCERTIFIED
    assert solution.converged.sum() == 19
    monkeypatch.setattr(inversion_module, "QUICK_FINE", 1)
    sizes.clear()
    again = flow.inverse(z, ToError(1e-4))
    assert [n for _, n in sizes] == [20, 20]
    assert again.outcome.tolist() == solution.outcome.tolist()
    assert (again.n_steps > solution.n_steps)[:4].all()


def test_an_attempt_counts_the_rounding_of_its_value() -> None:
    """A float64 bound within the error is no reason to stop if float32 then exceeds it."""
    x = torch.tensor([[8.0 + 5e-7], [8.0]], dtype=DOUBLE)  # the first is off by 4.5e-7 in float32
    bounds = torch.full((2,), 0.6e-6, dtype=DOUBLE)
    zeros = torch.zeros(2, dtype=DOUBLE)
    solution = Solution(x, zeros, zeros.long(), zeros.to(torch.int8), bounds)
    for dtype, expected in ((DOUBLE, [True, True]), (torch.float32, [False, True])):
        judged = composition_module._judged(solution, x, ToError(1e-6), dtype)
        assert judged.converged.tolist() == expected


@torch.no_grad()
def test_a_latent_that_is_not_finite_spoils_no_other(sizes) -> None:
    flow, z = steep(0.9), normal(20, 16, seed=3)
    expected = flow.inverse(z, ToError(1e-4))
    z[7, 3] = torch.nan
    solution = flow.inverse(z, ToError(1e-4))
    assert solution.outcome[7] == Outcome.DIVERGED
    assert len(sizes) == 2  # one attempt each, and no more
    others = torch.arange(20) != 7
    torch.testing.assert_close(solution.value[others], expected.value[others], rtol=0, atol=1e-5)
