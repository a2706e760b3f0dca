"""The trace of a constant matrix times a branch's Jacobian, at the cost of about one product."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from resflow_bench.jacobian.chain import JacobianChain
from resflow_bench.jacobian.circulant import Circulant
from resflow_bench.jacobian.dense_matrix import DenseJacobian
from resflow_bench.jacobian.operator import Jacobian
from resflow_bench.jacobian.traces import Factors, factors_of, windows


def weighted_trace(t: DenseJacobian | Circulant, jacobian: Jacobian) -> Tensor | None:
    """tr(T J) of each example, (B,), differentiable in J's numbers; T is constant.

    * T and J matrices: sum_ij T_ij J_ji.
    * T a matrix, J = W_2 D_1 W_1 or W_3 D_2 W_2 D_1 W_1, of matrices, D = diag(slopes):
      sum_ij D_2i [W_2 * (W_1 T W_3)^T]_ij D_1j, with W_2 = D_2 = I where there is one D.
    * T the block of a torus, J the same with convolutions, the middle one 1 x 1: that sum at each
      pixel q, with T among the pixels around q that the outer kernels cover. At the border they
      are fewer; everywhere else T is the same.

    Returns:
        None for other T and J.

    Properties: exact to rounding. Cost: about one product, and W_1 T W_L, once for all pixels
        inside.

    Source: tr(XY) = tr(YX).
    """
    if isinstance(jacobian, DenseJacobian):
        return (t.matrix.mT * jacobian.matrix).sum((1, 2)) if isinstance(t, DenseJacobian) else None
    factors = factors_of(jacobian.stages if isinstance(jacobian, JacobianChain) else [])
    if not factors.slopes:
        return None
    size = max(k.shape[2] for k in factors.kernels), max(k.shape[3] for k in factors.kernels)
    if isinstance(t, Circulant):
        return _over_patches(factors, t.among(size))
    if size != (1, 1) or factors.slopes[0].shape[2:] != (1, 1):  # T is of more than one point
        return None
    return _over_patches(factors, t.matrix[:, :, None, None, :, None, None])


def _over_patches(factors: Factors, among: Tensor) -> Tensor:
    """The trace, (B,), from T among the points of a patch, (B or 1, C, kh, kw, C, kh, kw)."""
    size = among.shape[2], among.shape[3]
    first, last = _grown(factors.kernels[0], size), _grown(factors.kernels[-1], size).flip(2, 3)
    one, *two = (slope.permute(0, 2, 3, 1) for slope in factors.slopes)  # (B, H, W, h)
    total = one.new_zeros(len(one))
    for rows, of_rows in windows(one.shape[1], size[0]):
        for columns, of_columns in windows(one.shape[2], size[1]):
            near = among[:, :, of_rows, of_columns][..., of_rows, of_columns]
            inward = first[:, :, of_rows, of_columns].flatten(1)  # (h_1, n)
            outward = last[:, :, of_rows, of_columns].transpose(0, 1).flatten(1)  # (h_L, n)
            product = inward @ near.flatten(4).flatten(1, 3)  # W_1 T, (B, h_1, n)
            d_1, *d_2 = (slope[:, rows, columns].flatten(1, 2) for slope in (one, *two))
            if d_2:
                weight = (product @ outward.mT) * factors.kernels[1][:, :, 0, 0].mT
                summed = (d_1 @ weight * d_2[0]).sum((1, 2))
            else:
                summed = (d_1 * (product * outward).sum(2)[:, None]).sum((1, 2))
            total = total + summed
    return total


def _grown(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """The kernel with zeros around it, (..., kh, kw)."""
    below, left = ((n - own) // 2 for n, own in zip(size, kernel.shape[2:], strict=True))
    return pad(kernel, (left, left, below, below))
