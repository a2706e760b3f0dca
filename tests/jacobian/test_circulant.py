"""The circulant approximation of a convolutional Jacobian, against its dense matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from resflow_bench.jacobian import KernelStage, SlopeStage, linearise
from resflow_bench.jacobian.chain import JacobianChain
from resflow_bench.jacobian.circulant import Circulant, circulant
from resflow_bench.layers import Branch, CLipSwish, SpectralConv2d, conv_branch, mlp_branch

DTYPE = torch.float64
GRIDS = [(4, 6), (5, 3), (2, 7), (1, 1)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def on_a_torus(weight: Tensor, x: Tensor) -> Tensor:
    """The convolution with circular padding, tap by tap."""
    total = x.new_zeros(len(x), len(weight), *x.shape[2:])
    rows, columns = weight.shape[2:]
    for t in range(rows):
        for u in range(columns):
            moved = x.roll((rows // 2 - t, columns // 2 - u), (2, 3))
            total += torch.einsum("oi,bihw->bohw", weight[:, :, t, u], moved)
    return total


def made(grid: tuple[int, int]) -> tuple[Branch, Tensor]:
    """A branch with an activation of two outputs per input, and three points."""
    layers = [
        SpectralConv2d(2, 3, 3, grid, 0.9, generator=generator()),
        SpectralConv2d(6, 3, 1, grid, 0.9, generator=generator(1)),
        SpectralConv2d(6, 2, 3, grid, 0.9, generator=generator(2)),
    ]
    first, second, third = layers
    branch = Branch(first, CLipSwish(), second, CLipSwish(), third, lipschitz=0.9).double()
    return branch, 3.0 * torch.randn(3, 2, *grid, generator=generator(3), dtype=DTYPE)


def dense(chain: JacobianChain, torus: tuple[int, int]) -> Tensor:
    """C of each of three examples on the torus, (B, d, d), column by column."""
    d = 2 * torus[0] * torus[1]
    image = torch.eye(d, dtype=DTYPE).view(d, 2, *torus)
    columns = []
    for b in range(3):
        out = image
        for stage in chain.stages:
            if isinstance(stage, KernelStage):
                out = on_a_torus(stage.weight, out)
            else:
                assert isinstance(stage, SlopeStage)
                mean = stage.slope[b].mean((1, 2))[:, None, None]
                out = torch.cat([out] * stage.expansion, 1) * mean
        columns.append(out.flatten(1).T)
    return torch.stack(columns)


@pytest.mark.parametrize("grid", GRIDS)
def test_powers_traces_and_forms_are_those_of_the_dense_matrix(grid) -> None:
    """Those of the block on the grid, to 1e-13; with zero padding the numbers differ."""
    branch, x = made(grid)
    with torch.no_grad():
        chain = branch.linearise(x)[1]
        assert isinstance(chain, JacobianChain)
        known = circulant(chain, grid)
        torus = grid[0] + 4, grid[1] + 4
        assert known.torus == torus, "J reaches two pixels"
        matrix = dense(chain, torus)
        inside = torch.zeros(2, *torus, dtype=torch.bool)
        inside[:, : grid[0], : grid[1]] = True
        v = torch.randn(2, 3, 2, *grid, generator=generator(4), dtype=DTYPE)
        flat = v.flatten(2)
        weights = torch.randn(3, 3, generator=generator(5), dtype=DTYPE)
        on_torus = [torch.linalg.matrix_power(matrix, k) for k in (1, 2, 3)]
        powers = [power[:, inside.flatten()][..., inside.flatten()] for power in on_torus]
        cases: list[tuple[Circulant, Tensor]] = [
            *((known.power(k), power) for k, power in enumerate(powers, start=1)),
            (
                known.series(weights),
                sum(w[:, None, None] * p for w, p in zip(weights, powers, strict=True)),
            ),
        ]
        for found, expected in cases:
            trace = expected.diagonal(dim1=1, dim2=2).sum(1)
            torch.testing.assert_close(found.trace(), trace, rtol=0, atol=1e-13)
            form = torch.einsum("mbi,bij,mbj->mb", flat, expected, flat)
            torch.testing.assert_close(found.form(v), form, rtol=0, atol=1e-12)
        if grid == (4, 6):
            padded = functional.conv2d(x, chain.stages[0].weight, padding=1)
            assert (padded - on_a_torus(chain.stages[0].weight, x)).abs().max() > 1e-3


def test_a_branch_without_slopes_is_the_same_for_all_examples() -> None:
    kernel = KernelStage(torch.randn(2, 2, 3, 3, generator=generator(), dtype=DTYPE))
    assert circulant(kernel, (4, 4)).trace().shape == (1,)


def test_kernels_of_one_tap_are_summed_over_all_pixels() -> None:
    """Such a J is the same matrix at every frequency."""
    kernel = torch.randn(2, 2, 1, 1, generator=generator(), dtype=DTYPE)
    slopes = torch.rand(3, 2, 4, 5, generator=generator(1), dtype=DTYPE)
    chain = JacobianChain([KernelStage(kernel), SlopeStage(slopes)])
    expected = (slopes.mean((2, 3)) * kernel[:, :, 0, 0].diagonal()).sum(1) * 20
    torch.testing.assert_close(circulant(chain, (4, 5)).trace(), expected)


def test_an_example_that_is_not_finite_spoils_no_other() -> None:
    branch = conv_branch(2, (4, 4), (3, 1, 3), (3, 3), 0.9, generator=generator())
    x = torch.randn(3, 2, 4, 4, generator=generator())
    x[1] = torch.nan
    with torch.no_grad():
        trace = circulant(branch.linearise(x)[1], (4, 4)).trace()
    assert trace.isfinite().tolist() == [True, False, True]


def test_matrices_are_refused() -> None:
    branch = mlp_branch(4, (8,), 0.9, generator=generator())
    with pytest.raises(ValueError, match="MatrixStage supports no circulant"):
        circulant(linearise(branch, torch.zeros(1, 4)).jacobian, (2, 2))
