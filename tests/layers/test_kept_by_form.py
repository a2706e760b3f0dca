"""Layers whose form keeps their constant, against their definitions and SVD in float64 NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from operators import Array, convolution, hostile_training, norm_after
from torch import Tensor, nn
from torch.autograd import gradcheck

from resflow_bench.layers import (
    AOL,
    ELU,
    SLL,
    Conv2d,
    Linear,
    LipSwish,
    Norm,
    ReLU,
    SemiOrthogonal,
    Sine,
    Softplus,
    Tanh,
    sll_branch,
)

NORMS = pytest.mark.parametrize("norm", [AOL(), SemiOrthogonal()], ids=str)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def linear(weight: Tensor, norm: Norm, coefficient: float = 0.9) -> Linear:
    layer = Linear(weight.shape[1], weight.shape[0], coefficient, norm).to(weight.dtype)
    layer.weight.data = weight.clone()
    return layer


def numpy(t: Tensor) -> Array:
    return t.detach().double().numpy()


MATRICES = {
    "square": gaussian(40, 40),
    "tall": gaussian(40, 3),
    "wide": gaussian(3, 40),
    "one row": gaussian(1, 7),
    "orthogonal": torch.linalg.qr(gaussian(20, 20)).Q,
    "all positive": gaussian(64, 64).abs(),
    "equal columns": gaussian(30, 1).expand(-1, 30) + 1e-7 * gaussian(30, 30, seed=1),
    "a column of zeros": gaussian(9, 5) * (torch.arange(5) != 2),
    "sizes far apart": gaussian(30, 30) * torch.logspace(-12, 12, 30),
    "huge": 1e18 * gaussian(4, 4),
    "tiny": 1e-18 * gaussian(4, 4),
}


@NORMS
@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_promise_holds_at_any_weights(name: str, norm: Norm, dtype: torch.dtype) -> None:
    layer = linear(MATRICES[name].to(dtype), norm)
    truth = norm_after(layer)
    assert truth <= layer.coefficient
    assert truth <= layer.certificate().norm * (1 + 1e-12)
    assert layer.certificate().norm <= truth * (1 + 1e-9)


@pytest.mark.parametrize("name", MATRICES)
def test_almost_orthogonal_by_definition(name: str) -> None:
    """c W D with D_ii = (sum_j |W^T W|_ij)^(-1/2), 0 for a column of zeros."""
    w = numpy(MATRICES[name])
    sums = np.abs(w.T @ w).sum(1)
    expected = 0.9 * w / np.sqrt(np.where(sums > 0, sums, np.inf))
    found = numpy(linear(MATRICES[name].double(), AOL()).weight_normalised())
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=0)


KERNELS = [((3, 2, 3, 3), (4, 5)), ((2, 4, 3, 3), (1, 6)), ((4, 2, 5, 3), (3, 3)),
           ((3, 3, 1, 1), (2, 2))]  # fmt: skip


@pytest.mark.parametrize(("shape", "grid"), KERNELS)
def test_almost_orthogonal_convolution_by_definition(
    shape: tuple[int, int, int, int], grid: tuple[int, int]
) -> None:
    """D from the dense operator on a grid so large that some pixel sees no border."""
    layer = Conv2d(shape[1], shape[0], shape[2:], grid, 0.9, AOL()).double()
    layer.weight.data = gaussian(*shape).double()
    w, (_, n_in, kh, kw) = numpy(layer.weight), shape
    large = (4 * kh + 1, 4 * kw + 1)
    dense = convolution(w, large)
    sums = np.abs(dense.T @ dense).sum(1).reshape(n_in, *large)[:, 2 * kh, 2 * kw]
    found = numpy(layer.weight_normalised())
    np.testing.assert_allclose(found, 0.9 * w / np.sqrt(sums)[:, None, None], rtol=3e-6)
    assert norm_after(layer) <= layer.certificate().norm * (1 + 1e-12) <= 0.9


def test_without_absolute_values_the_bound_fails() -> None:
    """The twin: as in a sum over positions, where terms of both signs cancel."""
    w = np.array([[1.0, -0.9], [0.5, 0.2]])
    twin = w / np.sqrt((w.T @ w).sum(1))
    assert np.linalg.norm(twin, 2) > 1.5
    layer = linear(torch.from_numpy(w), AOL(), 1.0)
    assert norm_after(layer) <= 1


@pytest.mark.parametrize("name", ["square", "tall", "wide", "one row", "orthogonal"])
def test_orthonormal_by_gram_and_schmidt(name: str) -> None:
    w = numpy(MATRICES[name])
    tall = w if w.shape[0] >= w.shape[1] else w.T
    columns: list[Array] = []
    for column in tall.T:
        rest = column.copy()
        for _ in range(2):  # twice is enough
            rest = rest - sum((q * (q @ rest) for q in columns), np.zeros_like(rest))
        columns.append(rest / np.linalg.norm(rest))
    q = np.stack(columns, 1)
    found = numpy(linear(MATRICES[name].double(), SemiOrthogonal()).weight_normalised())
    np.testing.assert_allclose(found, 0.9 * (q if q.shape == w.shape else q.T), atol=3e-6)


@NORMS
@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5)])
def test_gradients_are_those_of_differences(norm: Norm, shape: tuple[int, int]) -> None:
    layer = linear(gaussian(*shape).double(), norm)

    def weight(w: Tensor) -> Tensor:
        return layer.norm.normalised(type(layer.operator)(w))

    assert gradcheck(weight, (gaussian(*shape).double().requires_grad_(),))


TRAINED: dict[str, Callable[[], nn.Module]] = {
    "almost orthogonal": lambda: Linear(16, 24, 0.9, AOL()),
    "almost orthogonal, wide": lambda: Linear(24, 16, 0.9, AOL()),
    "almost orthogonal convolution": lambda: Conv2d(3, 4, 3, (5, 4), 0.9, AOL()),
    "orthogonal": lambda: Linear(16, 16, 0.9, SemiOrthogonal()),
    "orthogonal, wide": lambda: Linear(24, 16, 0.9, SemiOrthogonal()),
}


@pytest.mark.parametrize("name", TRAINED)
def test_the_promise_holds_between_updates_too(name: str) -> None:
    layer = TRAINED[name]()
    after, between = hostile_training(layer, layer.update, 200)
    assert after <= 1
    assert between <= 1


@NORMS
def test_weights_that_are_not_finite_are_an_error_of_the_update(norm: Norm) -> None:
    layer = linear(gaussian(3, 3), norm)
    layer.weight.data[1, 1] = torch.nan
    for follow in (layer.update, layer.align):
        with pytest.raises(torch.linalg.LinAlgError, match="finite weights"):
            follow()


def test_an_orthogonal_kernel_is_refused() -> None:
    with pytest.raises(TypeError, match="SemiOrthogonal is for matrices"):
        Conv2d(2, 2, 3, (4, 4), 0.9, SemiOrthogonal())


# SLL


def sll(activation: nn.Module, *, n: int = 5, width: int = 7, size: float = 1.0) -> SLL:
    layer = SLL(n, width, 0.9, activation).double()
    for k, parameter in enumerate((layer.weight, layer.bias, layer.raw_q)):
        parameter.data = size * gaussian(*parameter.shape, seed=k).double()
    return layer


def matrices(layer: SLL) -> tuple[Array, Array]:
    """V, and T's diagonal by its definition."""
    v, q = numpy(layer.weight), np.exp(numpy(layer.raw_q))
    gram = np.abs(v @ v.T)
    t = [sum(gram[k, j] * q[j] / q[k] for j in range(len(q))) for k in range(len(q))]
    return v, np.array(t)


SLOPED = pytest.mark.parametrize("activation", [Softplus, ELU, Tanh, ReLU])


@SLOPED
def test_sll_by_definition(activation: Callable[[], nn.Module]) -> None:
    layer = sll(activation())
    v, t = matrices(layer)
    x = gaussian(6, 5, seed=9).double()
    inner = numpy(layer.activation(x @ layer.weight.mT + layer.bias))
    expected = 0.9 * (numpy(x) - 2 * (inner / t) @ v)
    np.testing.assert_allclose(numpy(layer(x)), expected, rtol=3e-6, atol=3e-6)


@SLOPED
@pytest.mark.parametrize("size", [0.1, 1.0, 30.0])
def test_sll_has_a_symmetric_jacobian_within_its_constant(
    activation: Callable[[], nn.Module], size: float
) -> None:
    layer = sll(activation(), size=size)
    x = gaussian(20, 5, seed=9).double()
    y, jacobian = layer.normalised().linearise(x)
    assert torch.equal(y, layer(x))
    for k, one in enumerate(x):
        truth = torch.autograd.functional.jacobian(lambda u: layer(u[None])[0], one)
        eye = torch.eye(5).double()
        each = jacobian.mapped(lambda t: t, lambda t, k=k: t[k : k + 1])
        torch.testing.assert_close(each.vjp(eye[:, None])[:, 0], truth)
        torch.testing.assert_close(each.push(eye[:, None])[:, 0], truth.mT)
        torch.testing.assert_close(truth, truth.mT)
        assert np.abs(np.linalg.eigvalsh(numpy(truth))).max() <= 0.9


def slopes_at_their_ends(layer: SLL) -> float:
    """The largest ||J|| of the float32 numbers in `forward` over slopes that are 0 or 1."""
    maps = layer.normalised()
    inward, _, outward = (numpy(s.weight) if hasattr(s, "weight") else None for s in maps.h.stages)
    assert inward is not None
    assert outward is not None
    bits = np.indices((2,) * layer.width).reshape(layer.width, -1).T
    jacobians = maps.a * np.eye(layer.n_in) + (outward * bits[:, None]) @ inward
    return float(np.linalg.norm(jacobians, 2, axis=(1, 2)).max())


@pytest.mark.parametrize("size", [1e-6, 1.0, 100.0])
def test_sll_certifies_the_numbers_it_multiplies_with(size: float) -> None:
    """In float32, at every corner of the cube of slopes, where a convex function is largest."""
    layer = sll(Softplus(), size=size).float()
    truth, certified = slopes_at_their_ends(layer), layer.certificate().norm
    assert truth <= certified <= 0.9
    assert certified <= truth * (1 + 1e-5)


def test_the_corners_reject_a_smaller_diagonal() -> None:
    """The twin: T without what is beside its diagonal."""
    layer = sll(Softplus())
    v, _ = matrices(layer)
    t = (v * v).sum(1)
    bits = np.indices((2,) * layer.width).reshape(layer.width, -1).T
    jacobians = np.eye(5) - 2 * ((v.T / t) * bits[:, None]) @ v
    assert np.linalg.norm(jacobians, 2, axis=(1, 2)).max() > 1.01


def test_sll_keeps_its_promise_in_a_hostile_training() -> None:
    layer = SLL(6, 8, 0.9, Softplus())
    optimiser = torch.optim.Adam(layer.parameters(), lr=1e-2)
    x = gaussian(32, 6)
    for step in range(200):
        target = gaussian(32, 6, seed=step // 10)
        optimiser.zero_grad()
        (-(layer(x) * target).sum()).backward()
        optimiser.step()
        if step % 10 == 9:
            assert slopes_at_their_ends(layer) <= layer.certificate().norm <= 0.9
    assert float(layer.raw_q.detach().abs().max()) > 0.01, "q was trained"


@pytest.mark.parametrize("activation", [LipSwish, Sine])
def test_sll_refuses_slopes_below_zero(activation: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match="`slopes` within"):
        SLL(3, 4, 0.9, activation())


def test_the_curvature_bounds_the_change_of_the_jacobian() -> None:
    layer = sll(Softplus())
    known = layer.curvature()
    x = gaussian(200, 5, seed=3).double()
    y = x + 0.01 * gaussian(200, 5, seed=4).double()
    largest = 0.0
    for a, b in zip(x, y, strict=True):
        j, k = (
            numpy(torch.autograd.functional.jacobian(lambda u: layer(u[None])[0], one))
            for one in (a, b)
        )
        largest = max(largest, np.linalg.norm(j - k, 2) / float((a - b).norm()))
    assert 0.03 * known < largest <= known


def test_a_branch_of_sll_layers_keeps_its_promise() -> None:
    branch = sll_branch(3, (8, 4, 4), 0.9)
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter.add_(gaussian(*parameter.shape))
    branch.update()
    assert 0.89 < branch.lipschitz_certified() <= 0.9
    assert float(branch.lipschitz_bound()) == pytest.approx(branch.lipschitz_certified())
