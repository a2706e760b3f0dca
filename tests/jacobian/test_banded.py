"""The banded Jacobian of convolutional branches: numbers, determinant and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from resflow_bench.jacobian import Jacobian, KernelStage, dense_jacobian, linearise
from resflow_bench.jacobian.banded import (
    Band,
    band_of,
    block_rows,
    block_tridiagonal_log_det,
)
from resflow_bench.layers import CLipSwish, conv_branch, dense_branch, mlp_branch
from resflow_bench.logdet import Determinant, dense_log_det, exact_log_det
from resflow_bench.logdet.exact import whole_log_det

DTYPE = torch.float64

GRIDS = [
    (2, (3, 1, 3), (8, 5)),  # rows and columns
    (1, (3, 1, 3), (9, 3)),  # a last block that is not full
    (1, (3, 3, 3), (14, 4)),
    (2, (1, 1), (6, 3)),  # a reach of no pixel
    (1, (3, 3), (7, 1)),  # a grid narrower than the reach
]


def make(channels: int, kernels: tuple[int, ...], grid: tuple[int, int]) -> tuple[Jacobian, Tensor]:
    """J of an untrained branch of large slopes at three points."""
    generator = torch.Generator().manual_seed(0)
    hidden = (6,) * (len(kernels) - 1)
    branch = conv_branch(channels, grid, kernels, hidden, 0.9, generator=generator).double()
    x = torch.randn(3, channels, *grid, generator=generator, dtype=DTYPE)
    return linearise(branch, x).jacobian, x


def assembled(blocks: Tensor, band: Band) -> Tensor:
    """The dense matrix in the order channel, row, column of the tensors of an image."""
    (c, h, w), n = band.event, band.n_blocks
    whole = blocks.new_zeros(len(blocks), (n + 2) * band.size, (n + 2) * band.size)
    for i in range(n):
        rows = slice((i + 1) * band.size, (i + 2) * band.size)
        whole[:, rows, i * band.size : (i + 3) * band.size] = blocks[:, i].flatten(2)
    inside = whole[:, band.size :, band.size :][:, : c * h * w, : c * h * w]
    order = torch.arange(c * h * w).view(h, w, c).permute(2, 0, 1).flatten()
    return inside[:, order][:, :, order]


@pytest.mark.parametrize(("channels", "kernels", "grid"), GRIDS)
def test_numbers_and_determinant_are_those_of_the_dense_matrix(channels, kernels, grid) -> None:
    """To 1e-13; a twin with a reach of one pixel less in each direction misses some."""
    jacobian, x = make(channels, kernels, grid)
    reach = jacobian.reach()
    assert reach == (sum(k // 2 for k in kernels),) * 2
    band = Band((channels, *grid), reach)
    with torch.no_grad():
        expected = dense_jacobian(jacobian, x)
        blocks = block_rows(jacobian, x, band)
        found = assembled(blocks, band)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    log_det = block_tridiagonal_log_det(blocks)
    torch.testing.assert_close(log_det, dense_log_det(expected), rtol=0, atol=1e-12)
    assert log_det.abs().min() > 1e-3
    if reach > (0, 0):
        smaller = Band(band.event, (reach[0] - 1, reach[1] - 1))
        with torch.no_grad():
            wrong = block_tridiagonal_log_det(block_rows(jacobian, x, smaller))
        assert (wrong - log_det).abs().max() > 1e-6


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_elimination_is_stable_at_a_norm_near_one(sign) -> None:
    """Neighbours mixed, ||J||_2 = 0.9999, smallest eigenvalue of I + J 1e-4: to 1e-11 of it."""
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(2, 2, 3, 3, generator=generator, dtype=DTYPE)
    kernel = kernel + kernel.transpose(0, 1).flip(2, 3)  # symmetric
    x = torch.zeros(1, 2, 9, 3, dtype=DTYPE)
    whole = dense_jacobian(KernelStage(kernel), x)[0]
    eigenvalues = torch.linalg.eigvalsh(whole)
    extreme = eigenvalues[eigenvalues.abs().argmax()]
    stage = KernelStage(kernel * (sign * 0.9999 / extreme))
    band = band_of(stage, x)
    assert band is not None
    found = block_tridiagonal_log_det(block_rows(stage, x, band))
    expected = torch.log1p(eigenvalues * (sign * 0.9999 / extreme)).sum(0, keepdim=True)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)


def test_gradient_is_that_of_the_dense_determinant() -> None:
    """In x and in every parameter, to 1e-12."""
    generator = torch.Generator().manual_seed(1)
    branch = conv_branch(2, (9, 3), (3, 1, 3), (6, 6), 0.9, generator=generator).double()
    x = torch.randn(2, 2, 9, 3, generator=generator, dtype=DTYPE, requires_grad=True)
    assert band_of(linearise(branch, x).jacobian, x) is not None
    wanted = [x, *branch.parameters()]

    def gradients(log_det: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(log_det.sum(), wanted, materialize_grads=True)

    found, expected = gradients(Determinant()(branch, x).value), gradients(exact_log_det(branch, x))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert expected[0].abs().max() > 1e-3


def test_a_band_is_taken_where_it_pays() -> None:
    """Products: 25 a channel with a reach of two pixels; d where the grid is too small for it."""
    jacobian, x = make(2, (3, 1, 3), (12, 5))
    log_det, n_products = whole_log_det(jacobian, x)
    assert n_products == 50
    torch.testing.assert_close(log_det, dense_log_det(dense_jacobian(jacobian, x)))
    jacobian, x = make(2, (3, 1, 3), (4, 4))
    assert whole_log_det(jacobian, x)[1] == 32


def test_vectors_and_dense_blocks() -> None:
    """Without an image there is no band; a branch that concatenates has one."""
    generator = torch.Generator().manual_seed(2)
    vectors = mlp_branch(4, (8,), 0.9, generator=generator)
    assert linearise(vectors, torch.zeros(1, 4)).jacobian.reach() is None
    dense = dense_branch(4, 4, 1, 0.9, CLipSwish, generator=generator)
    assert linearise(dense, torch.zeros(1, 4)).jacobian.reach() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions(dtype) -> None:
    """To the rounding of the dtype in which J is computed."""
    jacobian, x = make(2, (3, 1, 3), (12, 5))
    expected, _ = whole_log_det(jacobian, x)
    found, _ = whole_log_det(jacobian.to(dtype), x.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=200 * torch.finfo(dtype).eps)
