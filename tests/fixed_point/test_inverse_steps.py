"""One contract for every inversion: an error within its bound, or an outcome that says not."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from resflow_bench.fixed_point import (
    Anderson,
    Auto,
    NewtonKrylov,
    Outcome,
    Picard,
    Secant,
    Solution,
    solve,
)
from resflow_bench.flows import (
    Inversion,
    ResidualBlock,
    ResidualFlow,
    ToError,
    ToRounding,
    ToTolerance,
)
from resflow_bench.flows.copies import in_float64, memoised
from resflow_bench.layers import LinearBranch, LipSwish, mlp_branch

DOUBLE = torch.float64
DIM = 8
STEPS = {
    "picard": Picard(),
    "secant": Secant(),
    "anderson": Anderson(),
    "auto": Auto(),
    "default": None,
}
EACH = pytest.mark.parametrize("name", STEPS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def strong_flow(lipschitz: float, dtype: torch.dtype = torch.float32) -> ResidualFlow:
    """Three blocks with ||J|| near the promise: weights near the identity."""
    flow = ResidualFlow.mlp(DIM, (16, 16), 3, lipschitz)
    flow.initialise(normal(64, DIM, seed=9).float())
    with torch.no_grad():
        for block in flow.blocks:
            for layer, sign in zip(block.branch.layers, (2.0, 2.0, -2.0), strict=True):
                layer.weight += sign * torch.eye(*layer.weight.shape)
                layer.bias += 1
    flow.align()
    return flow.to(dtype)


def minus_identity(lipschitz: float) -> ResidualFlow:
    matrix = -lipschitz * torch.eye(DIM, dtype=torch.float32)
    return ResidualFlow([ResidualBlock(LinearBranch(matrix, lipschitz))], DIM)


FLOWS = {
    "mlp": lambda: strong_flow(0.9),
    "mlp in float64": lambda: strong_flow(0.9, DOUBLE),
    "-K": lambda: minus_identity(0.97),
}


def truth(flow: ResidualFlow, z: Tensor) -> Solution:
    """By plain Picard iteration of a float64 copy."""
    exact = copy.deepcopy(flow).double()
    return exact.inverse(z.double(), Inversion(Picard(), max_steps=20_000))


def keeps_its_word(flow: ResidualFlow, z: Tensor, inversion: ToError) -> bool:
    """Every example converged, with error <= bound <= requested error."""
    solution, expected = flow.inverse(z, inversion), truth(flow, z)
    assert solution.value.dtype == z.dtype
    error = (solution.value.double() - expected.value).norm(dim=1)
    return bool(
        (
            solution.converged
            & (error <= solution.error_bound + expected.error_bound)
            & (solution.error_bound <= inversion.error)
        ).all()
    )


@dataclass(frozen=True)
class Squared(ToError):
    """The twin that holds the squared residual to its tolerance."""

    def __call__(self, branch, z, error=None) -> Solution:
        return ToTolerance(rtol=0.0, atol=1e-15**0.5)(branch, z)


@EACH
@pytest.mark.parametrize("flow", FLOWS)
def test_every_step_keeps_its_word(name: str, flow: str) -> None:
    made, z = FLOWS[flow](), 3 * normal(20, DIM)
    assert keeps_its_word(made, z, Inversion(STEPS[name], error=1e-9))
    assert not keeps_its_word(made, z, Squared(1e-9))
    solution = made.inverse(z, Inversion(STEPS[name], error=1e-9))
    back = in_float64(made)(solution.value)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-11)


@EACH
def test_float32_reaches_its_own_rounding(name: str) -> None:
    """The inverse of a float32 z is float64's, rounded: within half a unit of each number."""
    flow, z = strong_flow(0.9), 3 * normal(20, DIM).float()
    solution, expected = flow.inverse(z, Inversion(STEPS[name], error=1e-5)), truth(flow, z)
    error = (solution.value.double() - expected.value).abs()
    assert bool((error <= 2.0**-23 * expected.value.abs() + 1e-12).all())
    assert keeps_its_word(flow, z, Inversion(STEPS[name], error=1e-5))


@pytest.mark.filterwarnings("ignore:A branch promises")
@EACH
def test_a_map_that_is_no_contraction_has_no_bound(name: str) -> None:
    """Grown past its promise after it was checked."""
    flow = minus_identity(0.5)
    flow.blocks[0].branch.matrix.mul_(4)
    solution = flow.inverse(normal(3, DIM).float(), Inversion(STEPS[name], error=1e-3))
    assert torch.isinf(solution.error_bound).all()
    assert not solution.converged.any()
    with pytest.raises(ArithmeticError, match="3 of 3 fixed points not found"):
        solution.raise_if_failed()


@EACH
@pytest.mark.parametrize("error", [None, 1e-6])
def test_an_inverse_does_not_depend_on_batch_mates(name: str, error: float | None) -> None:
    """Beside others that are a hundred times as far away: to float64's rounding, or to a tenth of
    the error that was asked for.
    """
    flow, z = strong_flow(0.9), normal(16, DIM)
    other = z.clone()
    other[1:] *= 100
    inversion = Inversion(STEPS[name], error=error, dtype=torch.float32)
    first, second, alone = (flow.inverse(part, inversion) for part in (z, other, z[:1]))
    limit = 1e-11 if error is None else error / 10
    for solution in (second, alone):
        torch.testing.assert_close(first.value[0], solution.value[0], rtol=0, atol=limit)
        assert first.outcome[0] == solution.outcome[0] == Outcome.CONVERGED


def n_fine_evaluations(branch, z: Tensor, invert) -> int:
    """The number of examples for which g was evaluated in float64."""
    seen = []

    def count(_, args) -> None:
        seen.append(len(args[0]) * (args[0].dtype == DOUBLE))

    handle = branch.activations[0].register_forward_pre_hook(count)
    assert bool(invert(branch, z).converged.all())
    handle.remove()
    return sum(seen)


def test_fine_residuals_are_few() -> None:
    """Four evaluations in float64 do what takes Picard's iteration there more than twenty."""
    branch = in_float64(strong_flow(0.9)).blocks[0].branch
    z = normal(20, DIM)
    few = n_fine_evaluations(branch, z, Inversion(Picard(), dtype=torch.float32))
    many = n_fine_evaluations(branch, z, Inversion(Picard()))
    assert few <= 4 * 20
    assert many > 20 * 20


def test_a_refinement_that_fails_leaves_the_work_to_float64(monkeypatch) -> None:
    """Capped at no refinement at all, the same answer comes of the iteration in float64."""
    branch, z = in_float64(strong_flow(0.9)).blocks[0].branch, normal(5, DIM)
    invert = ToRounding(Picard(), Picard(), max_steps=1000)
    good = invert(branch, z)
    monkeypatch.setattr("resflow_bench.flows.inversion.MAX_REFINEMENTS", 0)
    slow = invert(branch, z)
    assert slow.converged.all()
    assert (slow.n_steps > good.n_steps).all()
    torch.testing.assert_close(good.value, slow.value, rtol=0, atol=1e-12)


class Halved:
    """The twin of a Jacobian: half of it."""

    def __init__(self, chain) -> None:
        self.chain = chain

    def push(self, v: Tensor) -> Tensor:
        return self.chain.push(v) / 2


def test_products_of_the_right_jacobian_refine() -> None:
    """From an x within 1e-4 three steps reach 1e-13; those of half the Jacobian do not."""
    branch = mlp_branch(DIM, (16,), 0.9, LipSwish).double()
    with torch.no_grad():
        branch.layers[0].weight += 2 * torch.eye(16, DIM)
        branch.layers[1].weight += 2 * torch.eye(DIM, 16)
        branch.align()
        x = normal(10, DIM)
        z, start = x + branch(x), x + 1e-5 * normal(10, DIM, seed=1)

    def error(wrap) -> float:
        step = NewtonKrylov(lambda y: wrap(branch.linearise(y.double())[1].to(y.dtype)).push)
        solution = solve(lambda y: z - branch(y), start, step, rtol=0, atol=0, max_steps=3)
        return float((solution.value - x).norm(dim=1).max())

    with torch.no_grad():
        assert error(lambda chain: chain) < 1e-13
        assert error(Halved) > 1e-10


def norm_of(part) -> float:
    return float(part.weight.detach().norm())


def test_what_is_memoised_follows_the_weights() -> None:
    """A write through `.data`, which autograd's version counter, the twin, does not see."""
    layer = torch.nn.utils.skip_init(torch.nn.Linear, 2, 2)
    layer.weight.data.fill_(1.0)
    layer.bias.data.fill_(0.0)
    assert memoised(layer, norm_of) == memoised(layer, norm_of) == 2.0
    version = layer.weight._version
    layer.weight.data[0, 0] = 2.0
    assert layer.weight._version == version
    assert memoised(layer, norm_of) == pytest.approx(7**0.5)


@pytest.mark.filterwarnings("ignore:A branch promises")
def test_a_certificate_is_of_the_weights_in_use() -> None:
    """Shrunk weights have a smaller constant, and so a smaller bound at once."""
    flow, z = minus_identity(0.9), normal(4, DIM)
    loose = flow.inverse(z, Inversion(error=1.0)).error_bound
    flow.blocks[0].branch.matrix.data.mul_(0.5)
    assert (flow.inverse(z, Inversion(error=1.0)).error_bound < 0.5 * loose).all()
    flow.blocks[0].branch.matrix.data.mul_(3)
    assert torch.isinf(flow.inverse(z, Inversion(error=1.0)).error_bound).all()


def test_an_inversion_is_one_of_three_settings() -> None:
    assert Inversion() == ToTolerance()
    assert Inversion(Secant(), rtol=0.1, max_steps=7) == ToTolerance(Secant(), 0.1, None, 7)
    assert Inversion(dtype=torch.float32) == ToRounding()
    assert Inversion(error=1e-4) == ToError(1e-4)
    by_picard = ToRounding(Picard(), Picard(), 9, DOUBLE)
    assert Inversion(Picard(), max_steps=9, error=0.1, dtype=DOUBLE) == ToError(0.1, by_picard)
    for options in ({"error": 1e-4}, {"dtype": torch.float32}):
        with pytest.raises(ValueError, match=r"got rtol=0.1 and atol=None .* Leave one out"):
            Inversion(rtol=0.1, **options)


def test_a_dtype_that_cannot_iterate_is_refused() -> None:
    with pytest.raises(ValueError, match=r"float32 or torch\.float64.*got torch\.float16"):
        Inversion(dtype=torch.float16)
