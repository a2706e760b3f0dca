"""The inverse as on other devices, run on the CPU: planned attempts first, then the whole."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from resflow_bench.fixed_point import Auto, Outcome, Picard, Solution, solve
from resflow_bench.fixed_point.windows import solve_in_windows
from resflow_bench.flows import (
    Inversion,
    MultiScale,
    ResidualBlock,
    ResidualFlow,
    ToRounding,
    ToTolerance,
    composition,
    image_flow,
)
from resflow_bench.flows import inversion as inversion_module
from resflow_bench.flows.composition import Chain
from resflow_bench.flows.copies import in_float64, memoised, on_host, recast
from resflow_bench.flows.inversion import AnyInversion, Planned
from resflow_bench.layers import LinearBranch

DOUBLE = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def vectors(lipschitz: float, dim: int = 8) -> ResidualFlow:
    """Three blocks with ||J|| near the promise: weights near multiples of the identity."""
    flow = ResidualFlow.mlp(dim, (2 * dim, 2 * dim), 3, lipschitz)
    with torch.no_grad():
        for block in flow.blocks:
            for layer, sign in zip(block.branch.layers, (2.0, 2.0, -2.0), strict=True):
                layer.weight += sign * torch.eye(*layer.weight.shape)
                layer.bias += 1
    flow.align()
    return flow


def images(lipschitz: float) -> ResidualFlow:
    scales = MultiScale(n_blocks=1, hidden=(4, 4), tail_hidden=(8,), lipschitz=lipschitz)
    return image_flow((3, 6, 6), scales)


def linear(lipschitz: float) -> ResidualFlow:
    matrix = -lipschitz * torch.linalg.qr(normal(8, 8)).Q.float() * (1 - 1e-6)
    return ResidualFlow([ResidualBlock(LinearBranch(matrix, lipschitz))], 8)


FLOWS = {"mlp": vectors, "wide": lambda k: vectors(k, 80), "image": images, "linear": linear}
EACH = pytest.mark.parametrize("flow", FLOWS)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])


def in_windows(f, x0, step, *, rtol, atol, max_steps, args) -> Solution:
    return solve_in_windows(f, x0, step, rtol, atol, max_steps, args)


@pytest.fixture
def off_cpu(monkeypatch):
    """Has flows go the way of other devices, or back."""

    def go(there: bool = True) -> None:
        monkeypatch.setattr(composition, "_is_off_cpu", lambda x: there)
        monkeypatch.setattr(inversion_module, "solve", in_windows if there else solve)

    return go


@DTYPES
@pytest.mark.parametrize("lipschitz", [0.5, 0.9, 0.98])
@EACH
def test_bounds_hold_and_outcomes_are_the_same(flow: str, lipschitz: float, dtype, off_cpu) -> None:
    """Against an inverse by Picard's float64 iteration, for each inversion."""
    made = FLOWS[flow](lipschitz).to(dtype)
    z = made(torch.rand(6, *made.event, dtype=dtype)).detach()
    plain = copy.deepcopy(made).double()
    truth = plain.inverse(z.double(), ToTolerance(max_steps=20_000))
    for inversion in (Inversion(), Inversion(error=1e-3), ToRounding()):
        off_cpu(there=False)
        expected = made.inverse(z, inversion)
        off_cpu()
        got = made.inverse(z, inversion)
        error = (got.value.double() - truth.value).flatten(1).norm(dim=1)
        assert (error <= got.error_bound + truth.error_bound).all()
        assert got.outcome.tolist() == expected.outcome.tolist()
        assert (got.error_bound <= 2 * expected.error_bound + 1e-9).all()
        assert got.value.dtype == dtype


class Wrong(Planned):
    """The twin that reports the residuals of other numbers."""

    def __call__(self, branch, z: Tensor) -> Solution:
        solution = super().__call__(branch, z)
        return replace(solution, value=solution.value + 1e-3)


def test_a_wrong_residual_breaks_the_bound() -> None:
    made = in_float64(vectors(0.9))
    z = made(torch.rand(6, 8, dtype=DOUBLE)).detach()
    for planned, holds in ((Planned(), True), (Wrong(), False)):
        solution = made.layers.inverse(z, planned)
        error = (made.inverse(z).value - solution.value).norm(dim=1)
        assert bool((error <= solution.error_bound + 1e-11).all()) == holds


@pytest.mark.parametrize("inversion", [Inversion(error=1e-3), ToRounding(), Inversion()])
@pytest.mark.parametrize("flow", ["mlp", "linear"])
def test_an_attempt_asks_nothing(flow: str, inversion, off_cpu, monkeypatch) -> None:
    """With copies at hand, constants included, the host reads no number of a planned attempt."""
    layers = in_float64(FLOWS[flow](0.9)).layers
    z = layers(torch.rand(6, 8, dtype=DOUBLE)).detach()
    off_cpu()
    attempts = inversion.planned()
    solutions = [layers.inverse(z, attempt) for attempt in attempts]

    def refuse(*_) -> None:
        raise AssertionError("the host asked")

    with monkeypatch.context() as asking:
        for name in ("__bool__", "__float__", "__int__", "item", "nonzero", "tolist"):
            asking.setattr(Tensor, name, refuse)
        again = [layers.inverse(z, attempt) for attempt in attempts]
        with pytest.raises(AssertionError, match="the host asked"):
            layers.inverse(z, ToTolerance())
    for one, two in zip(solutions, again, strict=True):
        assert torch.equal(one.value, two.value)


@pytest.fixture
def inversions(monkeypatch) -> list[AnyInversion]:
    """The inversions of whole flows, as they are called."""
    called: list[AnyInversion] = []
    inverse = Chain.inverse

    def record(chain: Chain, z: Tensor, inversion, *rest, **options) -> Solution:
        called.append(inversion)
        return inverse(chain, z, inversion, *rest, **options)

    monkeypatch.setattr(Chain, "inverse", record)
    return called


def test_an_attempt_that_fails_leaves_it_to_the_whole(off_cpu, inversions, monkeypatch) -> None:
    made, z, whole = vectors(0.98), 3 * normal(6, 8).float(), Inversion(error=1e-3)
    expected = made.inverse(z, whole)
    inversions.clear()
    off_cpu()
    good = made.inverse(z, whole)
    assert inversions == [Planned()]
    monkeypatch.setattr(inversion_module, "PLANNED_START", 0)
    monkeypatch.setattr(inversion_module, "PLANNED_REFINEMENTS", 0)
    inversions.clear()
    slow = made.inverse(z, whole)
    assert inversions == [Planned(), whole]
    for solution in (good, slow):
        assert solution.converged.all()
        torch.testing.assert_close(solution.value, expected.value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("inversion", [Inversion(), Inversion(error=1e-3), ToRounding()])
@EACH
def test_an_example_that_is_not_finite_spoils_no_other(
    flow: str, inversion, off_cpu, inversions
) -> None:
    """Neither is it a reason for another attempt."""
    made = FLOWS[flow](0.5)
    z = made(torch.rand(6, *made.event)).detach()
    off_cpu()
    alone = made.inverse(z, inversion)
    n_alone = len(inversions)
    z[2], z[4] = torch.nan, torch.inf
    beside = made.inverse(z, inversion)
    assert len(inversions) == 2 * n_alone
    rest = [0, 1, 3, 5]
    torch.testing.assert_close(beside.value[rest], alone.value[rest], rtol=0, atol=1e-5)
    assert (beside.outcome[rest] == Outcome.CONVERGED).all()
    assert not beside.converged[[2, 4]].any()
    assert torch.isinf(beside.error_bound[[2, 4]]).all()


def test_a_cap_on_steps_is_kept(off_cpu) -> None:
    made, z = vectors(0.98), 3 * normal(6, 8).float()
    off_cpu()
    solution = made.inverse(z, ToTolerance(max_steps=5), certify=False)
    assert (solution.outcome == Outcome.MAX_STEPS).all()
    assert (solution.n_steps == 5 * 3).all()
    assert len(ToTolerance(Auto(), max_steps=20).planned()) == 1


def test_copies_are_of_the_same_state() -> None:
    flow = vectors(0.9)
    flow.blocks[0].branch.layers[0].weight.requires_grad_(False)
    for copied in (in_float64(flow), recast(flow, torch.bfloat16)):
        for (name, old), (same, new) in zip(
            flow.state_dict().items(), copied.state_dict().items(), strict=True
        ):
            assert name == same
            torch.testing.assert_close(old.to(new.dtype), new, rtol=0, atol=0)
            assert old.data_ptr() != new.data_ptr()
        grads = [p.requires_grad for p in copied.parameters()]
        assert grads == [p.requires_grad for p in flow.parameters()]
    assert recast(flow, torch.float32) is flow
    branch = in_float64(flow).blocks[0].branch
    assert on_host(branch) is branch
    assert memoised(branch, str) is memoised(branch, str)


def test_steps_and_tolerances_of_attempts() -> None:
    plain = ToTolerance(Picard(), rtol=1e-3)
    assert [a.max_steps for a in plain.planned()] == list(inversion_module.PLANNED_STEPS)
    assert {(a.step, a.rtol) for a in plain.planned()} == {(Picard(), 1e-3)}
