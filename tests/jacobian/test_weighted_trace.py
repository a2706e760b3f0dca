"""tr(T J) against the product of the two dense matrices: its value, and its gradient."""

from __future__ import annotations

import pytest
import torch
from steep_branches import steep
from torch import Tensor

from resflow_bench.jacobian import DenseJacobian, Jacobian, dense, dense_jacobian, linearise
from resflow_bench.jacobian.circulant import Circulant, circulant
from resflow_bench.jacobian.weighted_trace import weighted_trace
from resflow_bench.layers import Branch, CLipSwish, conv_branch, dense_branch, mlp_branch

DTYPE = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(c: int, grid: tuple[int, int], kernels: tuple[int, ...], hidden: tuple[int, ...]):
    branch = steep(conv_branch(c, grid, kernels, hidden, 0.9, generator=generator()))
    return branch, torch.randn(3, c, *grid, generator=generator(1), dtype=DTYPE).requires_grad_()


def vectors(*hidden: int, phi: type = CLipSwish):
    branch = steep(mlp_branch(4, hidden, 0.9, phi, generator=generator()))
    return branch, torch.randn(3, 4, generator=generator(1), dtype=DTYPE).requires_grad_()


SUPPORTED = {
    "W-phi-W": vectors(7),
    "W-phi-W-phi-W": vectors(7, 5),
    "3-3": images(2, (4, 3), (3, 3), (5,)),
    "3-1": images(2, (4, 3), (3, 1), (5,)),
    "3-1-3": images(2, (3, 5), (3, 1, 3), (4, 5)),
    "5-1-3 on a row": images(1, (1, 6), (5, 1, 3), (4, 3)),
    "1-3 on two rows": images(2, (2, 2), (1, 3), (3,)),
}


def on_the_grid(t: DenseJacobian | Circulant, x: Tensor) -> Tensor:
    """T as matrices, (B, d, d), by its products with unit vectors."""
    d = x[0].numel()
    eye = torch.eye(d, dtype=DTYPE).view(d, 1, *x.shape[1:]).expand(d, *x.shape)
    return t.vjp(eye.contiguous()).flatten(2).transpose(0, 1)


def weight(jacobian: Jacobian, x: Tensor) -> DenseJacobian | Circulant:
    """A T that is not symmetric, for images other from example to example."""
    if x.ndim == 2:
        return DenseJacobian(torch.randn(1, 4, 4, generator=generator(5), dtype=DTYPE))
    with torch.no_grad():
        powers = torch.randn(3, len(x), generator=generator(5), dtype=DTYPE)
        return circulant(jacobian, (x.shape[2], x.shape[3])).polynomial(powers)


def gradients(trace: Tensor, g: Branch, x: Tensor) -> list[Tensor]:
    upstream = torch.tensor([1.0, 5.0, -2.0], dtype=DTYPE)
    return list(torch.autograd.grad(trace @ upstream, [x, *g.parameters()], materialize_grads=True))


@pytest.mark.parametrize("name", SUPPORTED)
def test_trace_and_gradient_are_those_of_the_dense_product(name) -> None:
    """To 1e-12; T transposed has another trace."""
    g, x = SUPPORTED[name]
    jacobian = linearise(g, x).jacobian
    t = weight(jacobian, x)
    trace = weighted_trace(t, jacobian)
    assert trace is not None
    matrices, matrix = dense_jacobian(linearise(g, x).jacobian, x), on_the_grid(t, x)
    expected = (matrix.mT * matrices).sum((1, 2))
    torch.testing.assert_close(trace, expected, rtol=0, atol=1e-12)
    assert (trace - (matrix * matrices).sum((1, 2))).abs().max() > 1e-3
    for found, right in zip(gradients(trace, g, x), gradients(expected, g, x), strict=True):
        torch.testing.assert_close(found, right, rtol=0, atol=1e-12)


def test_a_dense_jacobian_has_it_for_any_map() -> None:
    g, x = vectors(5, 5, 5)
    jacobian = dense(g, x).jacobian
    t = DenseJacobian(torch.randn(1, 4, 4, generator=generator(5), dtype=DTYPE))
    expected = torch.einsum("ij,bji->b", t.matrix[0], dense_jacobian(linearise(g, x).jacobian, x))
    torch.testing.assert_close(weighted_trace(t, jacobian), expected, rtol=0, atol=1e-13)


def test_others_have_none() -> None:
    """Three hidden layers, concatenated features, a wide middle, a matrix over several pixels."""
    concatenated = steep(dense_branch(4, 4, 2, 0.9, CLipSwish, generator=generator()))
    for g, x in (vectors(5, 5, 5), (concatenated, vectors(7)[1])):
        jacobian = linearise(g, x).jacobian
        assert weighted_trace(weight(jacobian, x), jacobian) is None
    g, x = images(2, (4, 3), (3, 3, 3), (4, 4))
    jacobian = linearise(g, x).jacobian
    assert weighted_trace(weight(jacobian, x), jacobian) is None
    for kernels in ((3, 3), (1, 1)):
        g, x = images(2, (2, 2), kernels, (4,))
        matrix = DenseJacobian(torch.randn(1, 8, 8, generator=generator(5), dtype=DTYPE))
        assert weighted_trace(matrix, linearise(g, x).jacobian) is None
