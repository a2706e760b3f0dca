"""Orders and mixed norms against brute force, dense float64 operators and autograd."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from resflow_bench.layers.norms.mixed import (
    balance_at,
    climb,
    ratio,
    schur,
    simple_starts,
    upper_bounds,
)
from resflow_bench.layers.norms.operators import Convolution, Matrix
from resflow_bench.layers.orders import LearnableOrder, conversion, norm, same_order

INF = math.inf
# p < q, p = q, p > q, on both sides of 2, and the corners that are not easy.
HARD = [(1.3, 3.0), (3.0, 4.0), (1.2, 1.5), (3.0, 3.0), (1.5, 1.5), (INF, 1.0), (2.0, 1.0)]
HARD += [(INF, 2.0), (3.0, 1.5), (4.0, 3.0), (1.5, 1.2), (2.1, 1.9), (1.9, 2.1), (2.0, 40.0)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def matrices(n: int, seed: int = 0) -> list[np.ndarray]:
    """Tiny ones, with one to three columns: Gaussian, of uneven scale, sparse, with few signs."""
    rng = np.random.default_rng(seed)
    drawn = [rng.normal(size=rng.integers(1, (5, 4))) for _ in range(n)]
    change = [
        lambda w: w,
        lambda w: w * np.exp(rng.normal(size=w.shape)),
        lambda w: w * (rng.random(w.shape) < 0.6),
        lambda w: w + 0.8,
    ]
    return [change[k % 4](weight) for k, weight in enumerate(drawn)]


# Oracles


def p_norms(x: np.ndarray, p: float) -> np.ndarray:
    return np.linalg.norm(x, ord=p, axis=-1)


def ratios(weight: np.ndarray, x: np.ndarray, p: float, q: float) -> np.ndarray:
    return p_norms(x @ weight.T, q) / p_norms(x, p)


def brute_force(weight: np.ndarray, p: float, q: float) -> float:
    """max ||W x||_q / ||x||_p from a grid on the cube's surface, the 6 best polished by search."""
    n = weight.shape[1]
    side = np.linspace(-1, 1, {1: 1, 2: 201, 3: 31}[n])
    face = np.stack(np.meshgrid(*[side] * (n - 1), [1.0]), axis=-1).reshape(-1, n)[:, :-1]
    x = np.concatenate([np.insert(face, k, 1.0, axis=1) for k in range(n)])
    x = x[np.argsort(ratios(weight, x, p, q))[-6:]]
    around = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=n)))
    for k in range(80 if n > 1 else 0):
        near = x[:, None] + (side[1] - side[0]) * 0.8**k * around
        x = near[np.arange(len(x)), ratios(weight, near, p, q).argmax(1)]
    return float(ratios(weight, x, p, q).max())


def dense(kernel: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The zero-padded convolution as a matrix, tap by tap."""
    n_out, n_in, kh, kw = kernel.shape
    high, wide = grid
    matrix = np.zeros((n_out, high, wide, n_in, high, wide))
    for i, j, a, b in itertools.product(range(high), range(wide), range(kh), range(kw)):
        row, column = i + a - kh // 2, j + b - kw // 2
        if 0 <= row < high and 0 <= column < wide:
            matrix[:, i, j, :, row, column] = kernel[:, :, a, b]
    return matrix.reshape(n_out * high * wide, n_in * high * wide)


# Orders


@pytest.mark.parametrize("p", [1.0, 1.01, 1.7, 2.0, 3.0, 50.0, 1e5, INF])
def test_norm_is_numpys_and_as_finite_as_its_input(p):
    x = gaussian(7, 5)
    x[0], x[1, 2:] = 0.0, 0.0
    x[2] *= 1e200
    scale = x.abs().amax(1).clamp(min=1)
    truth = torch.from_numpy(p_norms((x / scale[:, None]).numpy(), p)) * scale
    for order in (p, torch.tensor(p, dtype=torch.float64)):
        torch.testing.assert_close(norm(x[[0, 1, 3, 4]], order), truth[[0, 1, 3, 4]])
    if p != 2:
        torch.testing.assert_close(norm(x, p), truth)
    assert norm(torch.tensor([[math.nan, 1.0]]), p).isnan().all()


def test_norm_has_derivatives_in_x_and_p_twice_and_none_is_nan_at_zeros():
    x = gaussian(3, 4)
    p = torch.tensor(1.4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(norm, (x.clone().requires_grad_(), p))
    assert gradgradcheck(norm, (x.clone().requires_grad_(), p))
    x[0], x[1, 1] = 0.0, 0.0
    x.requires_grad_()
    first = torch.autograd.grad(norm(x, p).sum(), (x, p), create_graph=True)
    second = torch.autograd.grad(first[0].sum() + first[1], (x, p))
    assert all(derivative.isfinite().all() for derivative in (*first, *second))


def test_conversion_bounds_one_norm_by_another_and_is_attained():
    x = torch.cat([gaussian(1000, 6), torch.ones(1, 6), torch.eye(6)[:1]]).double()
    learnable = LearnableOrder(1.5)
    for p, q in itertools.product((1.0, learnable, 2.0, 7.0, INF), repeat=2):
        with torch.no_grad():
            quotient = norm(x, q) / norm(x, p)
        assert float(quotient.max()) == pytest.approx(float(conversion(p, q, 6)), rel=1e-6)
        assert not torch.as_tensor(conversion(p, q, 6)).requires_grad


def test_orders_are_shared_by_object_and_cover_their_range():
    order = LearnableOrder()
    assert same_order(order, order)
    assert same_order(2, 2.0)
    assert same_order(INF, INF)
    assert not same_order(order, LearnableOrder())
    assert not same_order(order, 2.0)
    assert not same_order(1.0, INF)
    for raw in (-1e4, -3.0, 0.0, 3.0, 1e4):
        nn.init.constant_(order.raw, raw)
        (slope,) = torch.autograd.grad(order(), order.raw)
        assert 1 < order() < INF
        assert slope.isfinite()
    assert LearnableOrder(7.0)().item() == pytest.approx(7.0)
    for p in (1.0, INF, 0.5, math.nan):
        with pytest.raises(ValueError, match="initial"):
            LearnableOrder(p)


# Norms


@pytest.mark.parametrize("grid", [(1, 1), (2, 1), (3, 5), (6, 6)])
@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (3, 2, 3, 3), (2, 2, 5, 3)])
def test_convolution_is_its_dense_operator(shape, grid):
    kernel = gaussian(*shape, seed=sum(grid))
    operator, truth = Convolution(kernel, grid), dense(kernel.numpy(), grid)
    x, y = gaussian(2, operator.n_in), gaussian(2, operator.n_out, seed=1)
    matrix = torch.from_numpy(truth)
    torch.testing.assert_close(operator.apply(x), x @ matrix.mT)
    torch.testing.assert_close(operator.adjoint(y), y @ matrix)
    torch.testing.assert_close(operator.dense().weight, matrix)
    for q in (1.0, 1.6, INF):
        torch.testing.assert_close(operator.column_norms(q), norm(matrix.mT, q))
        torch.testing.assert_close(operator.row_norms(q), norm(matrix, q))
    exact = np.linalg.norm(truth, 2)
    slack = 1.15 if grid == (6, 6) else 1.5  # most is lost where the kernel fills the grid
    assert exact * (1 - 1e-12) <= float(operator.spectral()) <= exact * slack
    # The norm of the reshaped kernel is no bound: on grids where taps share inputs it is too small.
    if grid == (6, 6) and shape[2:] != (1, 1):
        assert np.linalg.norm(kernel.flatten(1).numpy(), 2) < exact * 0.9


def test_easy_norms_are_exact():
    weight = matrices(1, seed=5)[0]
    for q in (1.0, 1.7, 2.0, INF):
        (columns,) = upper_bounds(Matrix(torch.from_numpy(weight)), 1.0, q).items()
        assert columns[0] == "columns"
        assert float(columns[1]) == pytest.approx(brute_force(weight, 1.0, q), rel=1e-12)
    for p in (1.3, 2.0, INF):
        (rows,) = upper_bounds(Matrix(torch.from_numpy(weight)), p, INF).items()
        assert rows[0] == "rows"
        assert float(rows[1]) == pytest.approx(brute_force(weight, p, INF), rel=1e-7)
    (svd,) = upper_bounds(Matrix(torch.from_numpy(weight)), 2.0, 2.0).items()
    assert svd[0] == "svd"
    assert float(svd[1]) == pytest.approx(np.linalg.norm(weight, 2), rel=1e-12)


def test_power_iteration_attains_the_maximum_and_bounds_exceed_it():
    """On 16 tiny matrices at 14 pairs of orders each, as `align` would iterate.

    The bound that forgets what changing the norms costs, the bare spectral norm, is refuted.
    """
    attained, loose, refuted = [], [], 0
    for weight in matrices(16):
        operator = Matrix(torch.from_numpy(weight))
        for p, q in HARD:
            truth = brute_force(weight, p, q)
            starts = gaussian(16, operator.n_in)
            starts = torch.cat([starts, simple_starts(operator, p, q, 16)])
            v = climb(operator, starts, p, q, 100)[0]
            low = float(ratio(operator, v, p, q))
            assert low <= truth * (1 + 1e-7) + 1e-12
            attained.append(low >= truth * (1 - 1e-6))
            bounds = upper_bounds(operator, p, q, balance_at(operator, v, p, q, 0.5))
            for name, bound in bounds.items():
                assert float(bound) >= truth * (1 - 1e-9), (name, p, q, weight)
            loose.append(float(min(bounds.values())) / max(truth, 1e-300))
            refuted += np.linalg.norm(weight, 2) < truth * (1 - 1e-6)
    assert np.mean(attained) > 0.98
    assert np.median([x for x in loose if x < 1e9]) < 1.06
    assert refuted > 30


@pytest.mark.parametrize("power", [1.0, 1e3, 1e5])
def test_bounds_hold_where_powers_underflow(power):
    """1/p and 1/q anywhere in [0, 1], entries over twenty decades: `ratio` of the best vector."""
    rng = np.random.default_rng(int(power))
    for k in range(60):
        weight = torch.from_numpy(rng.normal(size=rng.integers(1, 6, 2)))
        weight = weight * 10.0 ** rng.integers(-10, 10) * torch.from_numpy(rng.random(weight.shape))
        p, q = (1 / rng.random(2) ** (1 + k % 3)) * (1, power)[:: (-1) ** k]
        operator = Matrix(weight)
        starts = torch.cat([torch.ones(1, operator.n_in), simple_starts(operator, p, q, 5)])
        v = climb(operator, starts.double(), p, q, 20)[0]
        low = float(ratio(operator, v, p, q)) * (1 - 1e-12)
        for bound in upper_bounds(operator, p, q, balance_at(operator, v, p, q, 1.0)).values():
            assert float(bound) >= low > 0


def test_bounds_of_matrices_without_negative_entries_are_exact():
    weight = gaussian(5, 7).abs()
    for p, q in [(INF, 1.0), (4.0, 2.0), (3.0, 1.5), (2.5, 2.4), (1.6, 1.6)]:
        operator = Matrix(weight)
        v = climb(operator, torch.ones(1, 7).double(), p, q, 200)[0]
        assert float(schur(operator, p, q)) == pytest.approx(
            float(ratio(operator, v, p, q)), rel=1e-5
        )


def test_restarts_keep_the_best_where_one_start_gets_stuck():
    """inf -> 1 of 8 x 8 matrices, the truth over all signs. Two twins are rejected by it.

    One start misses most maxima; so does keeping the last restart that beats the first.
    """
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=8)), dtype=torch.float64)
    found = {"best": 0, "single": 0, "last": 0}
    for seed in range(20):
        operator = Matrix(gaussian(8, 8, seed=seed))
        truth = float(ratio(operator, signs, INF, 1.0).max())
        starts = gaussian(32, 8, seed=100 + seed)
        each = [
            float(ratio(operator, climb(operator, x[None], INF, 1.0, 20)[0], INF, 1.0))
            for x in starts
        ]
        together = float(ratio(operator, climb(operator, starts, INF, 1.0, 20)[0], INF, 1.0))
        last = [x for x in each if x >= each[0]][-1]
        for name, x in {"best": together, "single": each[0], "last": last}.items():
            assert x <= truth * (1 + 1e-12)
            found[name] += x >= truth * (1 - 1e-12)
    assert found["best"] == 20
    assert found["single"] < 12
    assert found["last"] < 18
