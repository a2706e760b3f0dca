"""The solver against maps whose fixed points, rates and failures are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from resflow_bench.fixed_point import PATIENCE, Outcome, Picard, Solution, solve
from resflow_bench.layers import LinearBranch, LipSwish, Tanh, mlp_branch

DIM = 16


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def error(solution: Solution, truth: Tensor) -> Tensor:
    return (solution.value - truth).flatten(1).norm(dim=1)


@dataclass(frozen=True)
class Damped:
    """x + (f(x) - x) / 2, counting its calls: a second `Step`, with state."""

    def init(self, x0: Tensor) -> int:
        return 0

    def next(self, x: Tensor, fx: Tensor, state: int) -> tuple[Tensor, int]:
        return (x + fx) / 2, state + 1


STEPS = [Picard(), Damped()]


@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_every_step_finds_the_fixed_point_of_a_contraction(step):
    truth = gaussian(5, 2, 3)
    shift = truth - 0.8 * torch.tanh(truth)
    solution = solve(lambda x: shift + 0.8 * torch.tanh(x), torch.zeros_like(truth), step)
    assert solution.converged.all()
    assert (solution.residual <= 1e-6 + 1e-6 * solution.value.flatten(1).norm(dim=1)).all()
    assert (error(solution, truth) <= solution.residual / (1 - 0.8)).all()
    assert solution.outcome.dtype == torch.int8
    assert solution.n_steps.dtype == torch.int64
    assert solution.error_bound is None
    assert solution.raise_if_failed() is solution


def stop_at_squared_step(f, x, tolerance: float) -> Tensor:
    """The public code's stopping rule, (x_{n+1} - x_n)^2 < tolerance (1 + |x|) elementwise."""
    for _ in range(1000):
        x_next = f(x)
        if ((x_next - x) ** 2 < tolerance * (1 + x.abs())).all():
            return x_next
        x = x_next
    raise AssertionError("the squared rule did not stop")


@pytest.mark.parametrize("lipschitz", [0.5, 0.9, 0.98])
def test_tolerance_is_on_the_norm_not_on_its_square(lipschitz):
    """g = -K x, where |error| = residual / (1 - K) exactly; the squared rule is far outside."""
    z = gaussian(8, DIM)
    truth = z / (1 - lipschitz)
    tolerance = 1e-5

    def f(x):
        return z + lipschitz * x

    solution = solve(f, z, rtol=tolerance, atol=tolerance)
    found = error(solution, truth)
    torch.testing.assert_close(found, solution.residual / (1 - lipschitz), rtol=1e-6, atol=0)
    promised = tolerance * (1 + solution.value.norm(dim=1)) / (1 - lipschitz)
    assert (found <= promised).all()
    squared = (stop_at_squared_step(f, z, tolerance) - truth).norm(dim=1)
    assert (squared > 5 * promised).any()


IDENTITY = torch.eye(DIM, dtype=torch.float64)
BRANCHES = {
    "-K": LinearBranch(-0.9 * IDENTITY, 0.9),
    "+K": LinearBranch(0.9 * IDENTITY, 0.9),
    "orthogonal": LinearBranch(0.9 * torch.linalg.qr(gaussian(DIM, DIM)).Q, 0.9),
    "lipswish": mlp_branch(DIM, (32, 32), 0.9, LipSwish).double(),
    "tanh": mlp_branch(DIM, (32,), 0.7, Tanh).double(),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_residual_bounds_the_error_from_both_sides_at_every_step(name):
    """r / (1 + K) <= |x - x*| <= r / (1 - K), and K^n |x_0 - x*|; -K and +K attain one each."""
    g = BRANCHES[name]
    k = g.lipschitz
    truth = gaussian(32, DIM, seed=1)
    with torch.no_grad():
        z = truth + g(truth)
        at_start = (z - truth).norm(dim=1)
        for n in (0, 1, 2, 5, 10, 20):
            solution = solve(lambda x: z - g(x), z, rtol=0, atol=1e-11, max_steps=n)
            found = error(solution, truth)
            assert (found >= solution.residual / (1 + k) - 1e-12).all()
            assert (found <= solution.residual / (1 - k) + 1e-12).all()
            banach = k ** solution.n_steps.double() * at_start
            assert (found <= banach + 1e-12).all()
            if name == "-K":
                torch.testing.assert_close(found, solution.residual / (1 - k))
                torch.testing.assert_close(found, banach)
            if name == "+K":
                torch.testing.assert_close(found, solution.residual / (1 + k))


def test_an_example_does_not_depend_on_its_batch_mates():
    """Bitwise: alone, in a batch of slower and faster ones, and beside one that diverges."""
    rate = torch.tensor([0.1, 0.5, 0.9, 0.98, 2.0, 0.3])[:, None]
    z = gaussian(6, DIM, dtype=torch.float32)
    together = solve(lambda x: z + rate * x, z)
    assert together.outcome.tolist() == [0, 0, 0, 0, Outcome.DIVERGED, 0]
    assert together.n_steps[3] > 10 * together.n_steps[0]
    for i in range(6):
        alone = solve(lambda x, i=i: z[i : i + 1] + rate[i : i + 1] * x, z[i : i + 1])
        for field in ("value", "residual", "n_steps", "outcome"):
            assert torch.equal(getattr(alone, field)[0], getattr(together, field)[i])


def test_matrix_products_keep_an_example_independent_of_its_batch_mates():
    g = mlp_branch(DIM, (32,), 0.9).normalised()
    z = gaussian(8, DIM, dtype=torch.float32)
    other = z.clone()
    other[1:] *= 100
    with torch.no_grad():
        first = solve(lambda x: z - g(x), z, rtol=1e-6)
        second = solve(lambda x: other - g(x), other, rtol=0, atol=1e-5)
        third = solve(lambda x: other - g(x), other, rtol=1e-6)
    assert not torch.equal(first.n_steps, second.n_steps)
    assert torch.equal(first.value[0], third.value[0])
    assert torch.equal(first.residual[0], third.residual[0])


# Maps that must fail: f, where from, the outcome, its number of steps.
FAILURES = {
    "expansion": (lambda x: 2 * x + 1, 1.0, Outcome.DIVERGED, 24),
    "overflow": (lambda x: x * x, 3.0, Outcome.DIVERGED, 8),
    "overflow at once": (lambda x: x * x, 1e30, Outcome.DIVERGED, 0),
    "not a number": (lambda x: x * float("nan"), 1.0, Outcome.DIVERGED, 0),
    "period two": (lambda x: 1 - x, 2.0, Outcome.STAGNATED, PATIENCE),
    "slow expansion": (lambda x: 1.01 * x, 1.0, Outcome.STAGNATED, PATIENCE),
    "no fixed point": (lambda x: x + 1 / (1 + x.abs()), 1.0, Outcome.MAX_STEPS, 100),
}


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_map_that_is_no_contraction_fails_and_says_so(name, dtype):
    f, start, outcome, n_steps = FAILURES[name]
    if name == "overflow at once" and dtype is torch.float64:
        start = 1e200
    x0 = torch.full((2, 3), start, dtype=dtype)
    x0[1] = 0.0

    def beside_a_contraction(x):
        return torch.stack([f(x[0]), 0.5 * x[1] + 1])

    solution = solve(beside_a_contraction, x0, max_steps=100)
    assert solution.outcome.tolist() == [outcome, Outcome.CONVERGED]
    if not (name == "overflow" and dtype is torch.float64):
        assert solution.n_steps[0] == n_steps
    assert solution.value.isfinite().all()
    if name != "no fixed point":
        assert torch.equal(solution.value[0], x0[0])  # the best residual was the first
    with pytest.raises(ArithmeticError, match=f"1 of 2 fixed points not found: 1 {outcome.name}"):
        solution.raise_if_failed()


def test_the_message_names_every_cause_with_its_count():
    rate = torch.tensor([0.5, 2.0, 2.0, -1.0, 0.999])[:, None]
    solution = solve(lambda x: 1 + rate * x, torch.zeros(5, 3), max_steps=64)
    with pytest.raises(ArithmeticError) as raised:
        solution.raise_if_failed()
    message = str(raised.value)
    assert message.startswith("4 of 5 fixed points not found: 1 MAX_STEPS")
    assert "1 STAGNATED" in message
    assert "2 DIVERGED" in message
    assert "certify the Lipschitz constant" in message


@pytest.mark.parametrize("lipschitz", [0.5, 0.9, 0.99, 0.999])
def test_float32_stagnates_at_the_unit_roundoff_over_one_minus_k(lipschitz):
    """g = -K x, no tolerance: |error| within 2 u / (1 - K) relative, where r may well be 0.

    x is a fixed point of the rounded map once each of its two roundings, u |x| at most, hides the
    step (1 - K) |error|.
    """
    z = gaussian(64, DIM, dtype=torch.float32)
    solution = solve(lambda x: z + lipschitz * x, z, rtol=0, atol=0, max_steps=40_000)
    assert (solution.outcome != Outcome.MAX_STEPS).all()
    assert (solution.outcome != Outcome.DIVERGED).all()
    truth = z.double() / (1 - float(np.float32(lipschitz)))
    relative = error(solution, truth) / truth.norm(dim=1)
    floor = 2.0**-24 / (1 - lipschitz)
    assert (relative <= 2 * floor).all()
    assert relative.mean() > 0.3 * floor
    assert (solution.residual / (1 - lipschitz) < error(solution, truth)).any()


def test_zero_steps_only_measure():
    x0 = gaussian(3, DIM)
    solution = solve(lambda x: 0.5 * x, x0, max_steps=0)
    assert solution.outcome.tolist() == [Outcome.MAX_STEPS] * 3
    assert solution.n_steps.tolist() == [0, 0, 0]
    assert torch.equal(solution.value, x0)
    torch.testing.assert_close(solution.residual, 0.5 * x0.norm(dim=1))


def test_a_start_that_is_the_answer_takes_no_steps():
    x0 = torch.zeros(3, DIM)
    solution = solve(lambda x: 0.5 * x, x0, rtol=0, atol=0)
    assert solution.converged.all()
    assert solution.n_steps.tolist() == [0, 0, 0]
    solution.value.add_(1)
    assert not x0.any()  # the caller's start is not what was returned


def test_max_steps_counts_the_steps_and_one_more_evaluation():
    calls = []

    def f(x):
        calls.append(x)
        return 0.9 * x + 1

    solution = solve(f, torch.zeros(2, 1), rtol=0, atol=0, max_steps=7)
    assert solution.n_steps.tolist() == [7, 7]
    assert len(calls) == 8


@pytest.mark.parametrize("shape", [(0, 3), (4,), (2, 3, 2, 2)])
def test_any_event_shape_and_an_empty_batch(shape):
    x0 = gaussian(*shape)
    solution = solve(lambda x: 0.5 * x + 1, x0)
    assert solution.value.shape == shape
    assert solution.residual.shape == solution.n_steps.shape == shape[:1]
    torch.testing.assert_close(solution.value, torch.full_like(x0, 2.0), rtol=0, atol=1e-5)
    assert solution.raise_if_failed() is solution


def test_the_solution_carries_no_graph():
    rate = torch.tensor(0.5, requires_grad=True)
    solution = solve(lambda x: rate * x + 1, torch.zeros(2, 3, requires_grad=True))
    assert not solution.value.requires_grad
    assert not solution.residual.requires_grad


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"rtol": -1e-6}, "finite `rtol` of at least 0; got -1e-06"),
        ({"atol": float("nan")}, "finite `atol` of at least 0; got nan"),
        ({"max_steps": -1}, "finite `max_steps` of at least 0; got -1"),
        ({"x0": torch.zeros(2, 3, dtype=torch.int64)}, "floating point .* got torch.int64"),
        ({"x0": torch.tensor(1.0)}, "batch axis"),
        ({"f": lambda x: x[:1]}, r"keeps the shape .* got \(1, 3\) from \(2, 3\)"),
    ],
)
def test_bad_arguments_are_named(arguments, rule):
    arguments = {"f": lambda x: 0.5 * x, "x0": torch.zeros(2, 3)} | arguments
    with pytest.raises(ValueError, match=rule):
        solve(**arguments)
