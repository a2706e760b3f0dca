"""The iteration of other devices, run on the CPU: the same solutions, and few questions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from resflow_bench.fixed_point import (
    PATIENCE,
    UNASKED,
    Anderson,
    Auto,
    Newton,
    Outcome,
    Picard,
    Secant,
    direct,
    solve,
)
from resflow_bench.fixed_point.windows import solve_in_windows

DOUBLE = torch.float64
STEPS = {"picard": Picard(), "secant": Secant(), "anderson": Anderson(), "auto": Auto()}
N, DIM = 12, 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def rates(k: float):
    """A contraction with constants up to k, a different one for each example and entry."""
    return lambda x: torch.linspace(-k, k, N * DIM).view(N, DIM).to(x) * x.sin() + 1


def mixed(x: Tensor) -> Tensor:
    """Examples that converge fast and slowly, diverge, oscillate, and are not finite."""
    factor = torch.tensor([0.1, 0.9, 0.97, 0.99, 1.01, 3.0, -1.0, 1e30, math.nan, 0.0, 0.5, -0.98])
    return factor.to(x)[:, None] * x + 1


MAPS = {
    "fast": rates(0.3),
    "slow": rates(0.97),
    "mixed": mixed,
    "identity": lambda x: x,
    "period two": lambda x: 1 - x,
}


@pytest.mark.parametrize("max_steps", [0, 3, 8, UNASKED, 33, 700])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("f", MAPS)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_solutions_are_those_of_the_other_loop(f: str, step: str, max_steps: int, dtype) -> None:
    """To the bit, the outcome of each example and its number of steps included."""
    x0, limit = 3 * normal(N, DIM).to(dtype), 10 * torch.finfo(dtype).eps
    rule = STEPS[step]
    expected = solve(MAPS[f], x0, rule, rtol=limit, atol=limit, max_steps=max_steps)
    got = solve_in_windows(MAPS[f], x0, rule, limit, limit, max_steps, ())
    assert got.outcome.tolist() == expected.outcome.tolist()
    assert got.n_steps.tolist() == expected.n_steps.tolist()
    torch.testing.assert_close(got.value, expected.value, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(got.residual, expected.residual, rtol=0, atol=0)


def test_stagnation_is_seen_at_the_same_step() -> None:
    """Which is no multiple of `PATIENCE`, since the tests for it grow apart."""
    x0, rate = 3 * normal(N, DIM).float(), torch.linspace(0.9, 0.995, N)[:, None]

    def f(x: Tensor) -> Tensor:
        return torch.where(x.abs() > 1e-3, rate * x, 1e-3 - x)  # at last of period two

    expected = solve(f, x0, rtol=0, atol=0, max_steps=9000)
    got = solve_in_windows(f, x0, Picard(), 0.0, 0.0, 9000, ())
    stagnated = expected.n_steps[expected.outcome == Outcome.STAGNATED]
    assert (stagnated % PATIENCE != 0).any()
    assert got.outcome.tolist() == expected.outcome.tolist()
    assert got.n_steps.tolist() == expected.n_steps.tolist()


def test_the_maps_have_every_outcome() -> None:
    solution = solve_in_windows(mixed, 3 * normal(N, DIM), Picard(), 1e-12, 1e-12, 700, ())
    outcomes = {Outcome(k).name for k in solution.outcome.tolist()}
    assert outcomes == {"CONVERGED", "MAX_STEPS", "STAGNATED", "DIVERGED"}


def test_questions_are_few(monkeypatch) -> None:
    """None up to `UNASKED` steps, then fewer than one in eight steps."""
    asked = []
    is_true = Tensor.__bool__
    monkeypatch.setattr(Tensor, "__bool__", lambda t: asked.append(1) or is_true(t))

    def n_questions(n: int) -> int:
        asked.clear()
        solve_in_windows(rates(0.99), normal(N, DIM), Picard(), 0.0, 0.0, n, (torch.ones(1),))
        return len(asked)

    def rates(k: float):
        return lambda x, one: k * x + one

    assert n_questions(UNASKED) == 0
    assert 0 < n_questions(400) <= (400 - UNASKED) / 16


def test_direct_solves_are_of_the_columns() -> None:
    """(I + A) d = r for an A that is not symmetric, on events of two axes."""
    matrix, right = normal(4, 4), normal(5, 2, 2, seed=1)
    got = direct(lambda v: (v.flatten(-2) @ matrix.mT).view_as(v), right)
    expected = torch.linalg.solve(torch.eye(4) + matrix, right.flatten(1).mT).mT
    torch.testing.assert_close(got.flatten(1), expected)


def test_newtons_steps_square_the_residual() -> None:
    """Two from 1e-3 reach 1e-11; those with half of the Jacobian, the twin, do not."""
    truth = normal(N, DIM)
    target, start = truth + 0.9 * truth.sin(), truth + 1e-3

    def residual(share: float) -> float:
        step = Newton(lambda x: lambda v: share * 0.9 * x.cos() * v, DOUBLE)
        f = lambda x: target - 0.9 * x.sin()  # noqa: E731
        return float(solve(f, start, step, rtol=0, atol=0, max_steps=2).residual.max())

    assert residual(1.0) < 1e-11
    assert residual(0.5) > 1e-6
