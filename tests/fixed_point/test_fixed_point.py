"""The solver against maps whose fixed points, rates and failures are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from resflow_bench.fixed_point import PATIENCE, Anderson, Auto, Outcome, Picard, Solution, solve
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


STEPS = [Picard(), Damped(), Anderson(), Anderson(1), Auto(), Auto(n_residuals=2, slow=0.0)]


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


@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_a_step_treats_each_example_by_itself(step):
    """To rounding, and to the step: the others end earlier, later, or never, and leave the batch.

    A step with one norm for the batch, as the public Broyden code has it, is the twin.
    """
    rate = torch.tensor([0.1, 0.5, -0.9, 0.98, 2.0, 0.3])[:, None] * torch.linspace(0.2, 1, DIM)
    rate, z = rate.double(), gaussian(6, DIM)

    def f(x, z, rate):
        return z + rate * x + 0.01 * torch.sin(x)

    def differs(step) -> bool:
        together = solve(f, z, step, args=(z, rate))
        alone = [solve(f, z[i : i + 1], step, args=(z[i : i + 1], rate[i : i + 1])) for i in MATES]
        assert (together.converged == torch.tensor([i in MATES for i in range(6)])).all()
        return any(
            not torch.allclose(one.value[0], together.value[i], rtol=0, atol=1e-12)
            or one.n_steps[0] != together.n_steps[i]
            for i, one in zip(MATES, alone, strict=True)
        )

    assert not differs(step)
    assert differs(OneForAll())


MATES = (0, 1, 2, 3, 5)


@dataclass(frozen=True)
class OneForAll:
    """The twin: secant steps with one slope for the whole batch."""

    def init(self, x0: Tensor) -> None:
        return None

    def next(self, x: Tensor, fx: Tensor, state: None) -> tuple[Tensor, None]:
        r = fx - x
        return x + r / (1 + 0.1 * torch.tanh(r.norm())), None


@pytest.mark.parametrize("step", [Picard(), Anderson(), Auto()], ids=repr)
def test_who_has_ended_is_evaluated_no_more(step):
    """With `args` at most twice as many examples as run; the same values, to the bit here."""
    rate = torch.linspace(0.1, 0.99, 64, dtype=torch.float64)[:, None]
    z = gaussian(64, 1)
    seen = []

    def f(x, z, rate):
        seen.append(len(x))
        return z + rate * x - 0.1 * rate * torch.tanh(x)

    part = solve(f, z, step, args=(z, rate))
    running = [int((part.n_steps >= k).sum()) for k in range(len(seen))]
    assert all(n <= max(2 * m, 1) for n, m in zip(seen[1:], running[1:], strict=True))
    assert seen[0] == 64
    whole = solve(lambda x: f(x, z, rate), z, step)
    assert sum(seen[: len(running)]) < 0.75 * 64 * len(running)
    for field in ("n_steps", "outcome"):
        assert torch.equal(getattr(part, field), getattr(whole, field))
    torch.testing.assert_close(part.value, whole.value, rtol=1e-12, atol=1e-12)


@dataclass(frozen=True)
class Affine:
    """x -> z + rate x of each example, whose numbers are no tensor of `args`."""

    z: Tensor
    rate: Tensor

    def select(self, examples: Tensor) -> Affine:
        return Affine(self.z[examples], self.rate[examples])


def test_arguments_may_be_objects_that_select():
    """The same as with the tensors in them, to the bit, examples that end among them."""
    z, rate = gaussian(8, 2), torch.linspace(0.1, 0.99, 8, dtype=torch.float64)[:, None]
    tensors = solve(lambda x, z, rate: z + rate * x, z, args=(z, rate))
    objects = solve(lambda x, a: a.z + a.rate * x, z, args=(Affine(z, rate),))
    assert len(tensors.n_steps.unique()) > 4
    for field in ("value", "residual", "n_steps", "outcome"):
        assert torch.equal(getattr(objects, field), getattr(tensors, field))


def gmres(matrix: np.ndarray, b: np.ndarray, n: int) -> np.ndarray:
    """argmin ||b - (I - A) y|| over y in span(b, A b, ..., A^(n-1) b), from y = 0."""
    basis = np.stack([np.linalg.matrix_power(matrix, k) @ b for k in range(n)], axis=1)
    system = (np.eye(len(b)) - matrix) @ basis
    return basis @ np.linalg.lstsq(system, b, rcond=None)[0]


@pytest.mark.parametrize("n", [1, 2, 4])
def test_anderson_is_gmres_one_picard_step_on(n):
    """x_{n+1} = f(GMRES_n), f(x) = A x + b from 0 (Walker and Ni); Picard's, the twin, is not."""
    a, b = 0.3 * gaussian(6, 6), gaussian(1, 6)

    def iterate(step) -> np.ndarray:
        x = torch.zeros_like(b)
        state = step.init(x)
        for _ in range(n + 1):
            x, state = step.next(x, x @ a.mT + b, state)
        return x[0].numpy()

    expected = a.numpy() @ gmres(a.numpy(), b[0].numpy(), n) + b[0].numpy()
    np.testing.assert_allclose(iterate(Anderson(6)), expected, rtol=1e-9, atol=1e-9)
    assert np.abs(iterate(Picard()) - expected).max() > 1e-3


def test_anderson_falls_back_where_a_residual_grew():
    """A kink that fools the secant: the next step is Picard's own, f(x)."""
    step, x = Anderson(), torch.tensor([[1.0], [1.0]])
    fx = torch.tensor([[2.0], [2.0]])
    _, state = step.next(x, fx, step.init(x))
    x, fx = torch.tensor([[2.0], [2.0]]), torch.tensor([[5.0], [2.5]])  # grew, shrank
    following, _ = step.next(x, fx, state)
    assert torch.equal(following[0], fx[0])
    torch.testing.assert_close(following[1], torch.tensor([3.0]))  # the secant's zero


def test_auto_is_picard_until_that_is_slow():
    z = gaussian(3, DIM)
    for rate, slow in ((0.5, False), (0.97, True)):
        auto, picard = (solve(lambda x, r=rate: z + r * x, z, step) for step in (Auto(), Picard()))
        if slow:
            assert auto.n_steps.max() <= 11 < picard.n_steps.min() / 20
        else:
            assert torch.equal(auto.value, picard.value)


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
        ({"max_steps": -1}, "max_steps of at least 0; got -1"),
        ({"x0": torch.zeros(2, 3, dtype=torch.int64)}, "floating point; got int64"),
        ({"x0": torch.tensor(1.0)}, r"shape \(B, \.\.\.\); got \(\)"),
        ({"f": lambda x: x[:1]}, r"keeps the shape .* got \(1, 3\) .* from \(2, 3\)"),
    ],
)
def test_bad_arguments_are_named(arguments, rule):
    arguments = {"f": lambda x: 0.5 * x, "x0": torch.zeros(2, 3)} | arguments
    with pytest.raises(ValueError, match=rule):
        solve(**arguments)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="memory of at least 1; got 0"):
        Anderson(memory=0)
    with pytest.raises(ValueError, match="n_residuals=1"):
        Auto(n_residuals=1)
