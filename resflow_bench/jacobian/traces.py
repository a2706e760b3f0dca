"""Exact traces of the powers of a branch's Jacobian, most at the cost of about one product.

Most of a probe's variance is that of the first terms of the series. For the usual branches their
traces are contractions of weights, common to all examples, with slopes of each example.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from resflow_bench.jacobian.matrix_stage import MatrixStage
from resflow_bench.jacobian.stages import KernelStage, SlopeStage, Stage, padding


class Factors(NamedTuple):
    """W_L D_(L-1) ... D_1 W_1: kernels (C_out, C_in, kh, kw), slopes (B, C, H, W), all 4-D.

    A matrix is a kernel of one tap on a grid of one point.

    n_most: the largest n with exact traces of J, ..., J^n; inf for a matrix, 0 for other J.
    """

    kernels: list[Tensor]
    slopes: list[Tensor]
    n_most: float


def factors_of(stages: Sequence[Stage]) -> Factors:
    """The kernels and slopes of J = S_L ... S_1, and how many exact traces they support."""
    linear, slopes = stages[::2], [s for s in stages[1::2] if isinstance(s, SlopeStage)]
    none = Factors([], [], 0)
    if len(stages) not in (1, 3, 5) or len(slopes) < len(stages) // 2:
        return none
    matrices = [s.weight[:, :, None, None] for s in linear if isinstance(s, MatrixStage)]
    kernels = [s.weight for s in linear if isinstance(s, KernelStage)]
    weights = matrices or kernels
    if len(weights) < len(linear) or len(kernels) == 1:
        return none
    if len(weights) == 3 and weights[1].shape[2:] != (1, 1):
        return none
    for j, stage in enumerate(slopes):
        if stage.expansion > 1:
            weights[j] = weights[j].repeat(stage.expansion, 1, 1, 1)
    diagonals = [s.slope[:, :, None, None] if matrices else s.slope for s in slopes]
    n_most = math.inf if not slopes else 1 if len(slopes) == 2 and matrices else 2
    return Factors(weights, diagonals, n_most)


def exact_traces(factors: Factors, n: int) -> list[Tensor]:
    """tr J, ..., tr J^n at each example; n is from 1 to `factors.n_most`.

    * J = W, a matrix: any n, by the powers of W.
    * J = W_2 D W_1, D = diag(slopes), matrices: tr J = sum_j D_j A_jj and
      tr J^2 = sum_ij D_i A_ij A_ji D_j with A = W_1 W_2, formed once for the batch: n <= 2.
    * J = W_3 D_2 W_2 D_1 W_1, matrices: tr J = sum_ij D_2i [W_2 * (W_1 W_3)^T]_ij D_1j: n = 1.
    * The last two with convolutions of odd kernels on one grid, the middle one 1 x 1: the same at
      each position q, with W_1 W_3 replaced by sum_t W_1(t) W_3(-t) over the taps t that lead from
      q to a point of the grid, which at the border are fewer: n = 1.

    Returns:
        n tensors of shape (B,), or () where no slope depends on the example; differentiable in
        weights and slopes.

    Properties: exact to rounding, no random numbers; one matrix product of the batch each, of
        (h, h) weights, but for tr J^2 of convolutions, which takes (h + C kh kw)/2 products with J:
        30 for 3-1-3 kernels of 32 channels. Activations with several outputs per input count as
        that many rows of the weights before them.

    Source: tr(XY) = tr(YX).
    """
    first, last = factors.kernels[0], factors.kernels[-1]
    if not factors.slopes:
        powers = accumulate([first[:, :, 0, 0]] * n, torch.matmul)
        return [power.trace() for power in powers]
    *_, slope = factors.slopes
    if len(factors.slopes) == 2:
        found = [_three(factors.kernels, factors.slopes)]
    else:
        found = [_two(first, slope, last)]
    if n == 1:
        return found
    on_one_point = all(t.shape[2:] == (1, 1) for t in (first, slope, last))
    if len(factors.slopes) == 2 or not on_one_point:
        return [*found, _second(local_blocks(factors))]
    a = first[:, :, 0, 0] @ last[:, :, 0, 0]  # (h, h)
    d = slope[:, :, 0, 0]  # (B, h)
    return [*found, ((d @ (a * a.mT)) * d).sum(1)]


def _two(first: Tensor, slope: Tensor, last: Tensor) -> Tensor:
    """sum_(j,q) D_j(q) sum_(t: q+t on the grid) sum_c W_1[j,c,t] W_2[c,j,-t]."""
    first, last = _common(first, last)
    taps = (first * last.transpose(0, 1)).sum(1)  # (h, kh, kw)
    grid = torch.ones(1, 1, *slope.shape[2:], dtype=slope.dtype, device=slope.device)
    weights = functional.conv2d(grid, taps[:, None], padding=padding(first))  # (1, h, H, W)
    return (slope * weights).flatten(1).sum(1)


def _three(kernels: list[Tensor], slopes: list[Tensor]) -> Tensor:
    """sum_(q,i,j) D_2i(q) W_2[i,j] C_q[j,i] D_1j(q), window by window of positions with one C_q."""
    first, last = _common(kernels[0], kernels[2])
    middle = kernels[1][:, :, 0, 0]  # (h_2, h_1)
    one, two = (slope.permute(0, 2, 3, 1) for slope in slopes)  # (B, H, W, h)
    taps = torch.einsum("jctu,citu->tuij", first, last)  # (kh, kw, h_2, h_1)
    total = one.new_zeros(len(one))
    for rows, of_rows in windows(one.shape[1], taps.shape[0]):
        for columns, of_columns in windows(one.shape[2], taps.shape[1]):
            weight = middle * taps[of_rows, of_columns].sum((0, 1))
            products = (one[:, rows, columns] @ weight.mT) * two[:, rows, columns]
            total = total + products.flatten(1).sum(1)
    return total


def local_blocks(factors: Factors) -> Tensor:
    """The blocks (C, C) of J between near pixels, (B, n_h, n_w, C, C, H, W): see `_second`.

    J = sum_q P_q^T K_q P_q, with P_q the patches around a pixel q that the outer kernels cover and
    K_q = W_L D_(L-1)(q) ... D_1(q) W_1 of their taps. Output q - t reads input q + s, through taps
    t and s of the two.
    """
    first, last = factors.kernels[0], factors.kernels[-1]
    (_, c, *taps_in), (_, h, *taps_out) = first.shape, last.shape
    batch_size, _, *grid = factors.slopes[0].shape
    left = last.permute(2, 3, 0, 1).reshape(-1, h)  # (t C, h)
    right = first.permute(2, 3, 1, 0).flatten(0, 2)  # (s C, h_1)
    one, *two = (slope.flatten(2) for slope in factors.slopes)  # (B, h, H W)
    hidden = left[:, :, None]
    if two:
        weights = left[:, None] * factors.kernels[1][:, :, 0, 0].mT  # (t C, h_1, h_2)
        hidden = (weights.flatten(0, 1) @ two[0]).unflatten(1, weights.shape[:2])
    inner = right @ (hidden * one[:, None])  # K_q, (B, t C, s C, H W)
    inner = inner.view(batch_size, *taps_out, c, *taps_in, c, *grid)
    n_h, n_w = (a + b - 1 for a, b in zip(taps_in, taps_out, strict=True))
    total = inner.new_zeros(batch_size, n_h, n_w, c, c, *grid)
    for t in range(taps_out[0]):
        for u in range(taps_out[1]):
            to, of = _shifted(grid, (t - taps_out[0] // 2, u - taps_out[1] // 2))
            part = inner[:, t, u, ..., of[0], of[1]].permute(0, 2, 3, 1, 4, 5, 6)
            total[:, t : t + taps_in[0], u : u + taps_in[1], ..., to[0], to[1]] += part
    return total


def _second(blocks: Tensor) -> Tensor:
    """sum_po tr J_(p, p + o) J_(p + o, p), (B,), of blocks (B, n_h, n_w, C, C, H, W).

    The block of p and p + o is at [o, :, :, p]. The offsets o are those of an odd grid (n_h, n_w),
    whose middle is 0; o and -o give the same.
    """
    n_h, n_w, *_, height, width = blocks.shape[1:]
    middle = n_h * n_w // 2
    total = blocks.new_zeros(len(blocks))
    for place in range(middle + 1):
        a, b = divmod(place, n_w)
        here, there = _shifted((height, width), (a - n_h // 2, b - n_w // 2))
        back = blocks[:, n_h - 1 - a, n_w - 1 - b].transpose(1, 2)[..., there[0], there[1]]
        product = blocks[:, a, b][..., here[0], here[1]] * back
        total = total + product.flatten(1).sum(1) * (1 if place == middle else 2)
    return total


def _shifted(grid: Sequence[int], offset: tuple[int, int]) -> tuple[list[slice], list[slice]]:
    """The points p of the grid with p + offset on it, and those p + offset.

    >>> _shifted((4, 4), (1, -2))
    ([slice(0, 3, None), slice(2, 4, None)], [slice(1, 4, None), slice(0, 2, None)])
    """
    lows = [min(n, max(0, -o)) for n, o in zip(grid, offset, strict=True)]
    runs = [(a, max(a, min(n, n - o))) for a, n, o in zip(lows, grid, offset, strict=True)]
    here = [slice(low, high) for low, high in runs]
    there = [slice(low + o, high + o) for (low, high), o in zip(runs, offset, strict=True)]
    return here, there


def _common(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """W_1(t) and W_L(-t) on the taps that both have."""
    for axis in (2, 3):
        size = min(first.shape[axis], last.shape[axis])
        first = first.narrow(axis, (first.shape[axis] - size) // 2, size)
        last = last.narrow(axis, (last.shape[axis] - size) // 2, size)
    return first, last.flip(2, 3) if last.shape[2:] != (1, 1) else last


def windows(n_points: int, n_taps: int) -> list[tuple[slice, slice]]:
    """(points, taps): the runs of points along an axis from which the same taps stay on the grid.

    >>> windows(4, 3)
    [(slice(0, 1, None), slice(1, 3, None)), (slice(1, 3, None), slice(0, 3, None)), \
(slice(3, 4, None), slice(0, 2, None))]
    """
    reach = n_taps // 2

    def admitted(point: int) -> tuple[int, int]:
        low, high = max(-point, -reach), min(n_points - 1 - point, reach)
        return low + reach, high + reach + 1

    runs = [(key, list(points)) for key, points in groupby(range(n_points), admitted)]
    return [(slice(points[0], points[-1] + 1), slice(*key)) for key, points in runs]
