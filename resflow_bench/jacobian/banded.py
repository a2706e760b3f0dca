"""The Jacobian of a map of images whose outputs depend on near pixels alone, as a banded matrix."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from resflow_bench.jacobian.dense_matrix import CHUNK_NUMBERS
from resflow_bench.jacobian.operator import Jacobian
from resflow_bench.memory import at_once

IN_CACHE = 2**19
"""The most numbers of the products of one call on a CPU, whose intermediate results then stay in
its cache: half the time of all products in one call, on patches of 3 x 16 x 16."""


class Band(NamedTuple):
    """The places of the numbers of J on a grid (C, H, W), outputs within `reach` of their inputs.

    With the numbers of `height` rows of the grid in a block, J is block tridiagonal, of n blocks of
    s = height W C numbers: no output reaches beyond the next block.
    """

    event: tuple[int, int, int]
    reach: tuple[int, int]

    @property
    def height(self) -> int:
        return max(1, self.reach[0])

    @property
    def n_blocks(self) -> int:
        return -(-self.event[1] // self.height)

    @property
    def size(self) -> int:
        """s."""
        return self.height * self.event[2] * self.event[0]

    @property
    def period(self) -> tuple[int, int]:
        """The distance from which two outputs share no input, at most the grid."""
        rows, columns = self.reach
        return min(2 * rows + 1, self.event[1]), min(2 * columns + 1, self.event[2])

    @property
    def n_products(self) -> int:
        return math.prod(self.period) * self.event[0]

    @property
    def n_operations(self) -> float:
        """The work of `block_tridiagonal_log_det`: in a block two LU, a solution and a product."""
        return self.n_blocks * (4 / 3 + 2 + 2) * self.size**3

    @property
    def pays(self) -> bool:
        """True if a band takes fewer operations than the LU of the whole matrix."""
        return self.n_operations < 2 * math.prod(self.event) ** 3 / 3


def band_of(jacobian: Jacobian, x: Tensor) -> Band | None:
    """The band of J at x, (B, C, H, W), if J has a reach and the band pays."""
    reach = jacobian.reach()
    if reach is None or x.ndim != 4:
        return None
    band = Band((x.shape[1], x.shape[2], x.shape[3]), reach)
    return band if band.pays else None


def block_rows(jacobian: Jacobian, x: Tensor, band: Band) -> Tensor:
    """J at x as (B, n, s, 3, s): the three blocks of each row of blocks, zero beyond the grid.

    Outputs that share no input are differentiated by one product: the sum of their rows of J, in
    which the places tell the rows apart. Such a set is every (2 r + 1)-th pixel along each axis, in
    one channel, for a reach of r.

    Properties: (2 r_h + 1)(2 r_w + 1) C products in place of C H W, of one and the same v at all
        points; differentiable if gradients are enabled.

    Source: Curtis, Powell and Reid (1974), "On the Estimation of Sparse Jacobian Matrices".
    """
    sets, places = _sets(band, x.dtype, x.device), _places(band, x.device)
    n = max(1, at_once(IN_CACHE if x.is_cpu else CHUNK_NUMBERS) // max(1, x.numel()))
    products = [
        jacobian.vjp_of_each(some, len(x)).expand(-1, len(x), -1, -1, -1).flatten(2)
        for some in sets.split(n)
    ]
    numbers = torch.cat(products).transpose(0, 1).flatten(1)  # (B, sets x C H W)
    found = pad(numbers, (0, 1)).index_select(1, places)
    return found.view(len(x), band.n_blocks, band.size, 3, band.size)


def block_tridiagonal_log_det(blocks: Tensor) -> Tensor:
    """ln|det(I + J)|, (B,), nats, from `block_rows` by block elimination.

    S_1 = I + A_1,  S_i = I + A_i - L_i S_(i-1)^-1 U_(i-1),  ln|det(I + J)| = sum_i ln|det S_i|.

    Properties: 16 n s^3 / 3 operations in place of 2 (n s)^3 / 3. Where ||J||_2 < 1 the
        symmetric part of I + J is positive definite, and so is that of every S_i: no pivot outside
        a block is needed.

    Source: Golub and Van Loan (2013), "Matrix Computations", sections 4.3 and 4.5.
    """
    identity = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
    below, middle, above = blocks.unbind(3)
    schur = identity + middle[:, 0]
    total = torch.linalg.slogdet(schur).logabsdet
    for i in range(1, blocks.shape[1]):
        eliminated = below[:, i] @ torch.linalg.solve(schur, above[:, i - 1])
        schur = identity + middle[:, i] - eliminated
        total = total + torch.linalg.slogdet(schur).logabsdet
    return total


@lru_cache(maxsize=16)
def _sets(band: Band, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Indicators of the sets of outputs, (sets, 1, C, H, W), in the order row, column, channel."""
    (c, h, w), (rows, columns) = band.event, band.period
    row = torch.eye(rows, dtype=dtype)[:, torch.arange(h) % rows]  # (rows, H)
    column = torch.eye(columns, dtype=dtype)[:, torch.arange(w) % columns]
    sets = torch.einsum("ph,qw,cd->pqcdhw", row, column, torch.eye(c, dtype=dtype))
    return sets.reshape(-1, 1, c, h, w).to(device)


@lru_cache(maxsize=16)
def _places(band: Band, device: torch.device) -> Tensor:
    """Where in the products of the `_sets` the numbers of the blocks lie, (n s 3 s,), int64.

    A number outside the band or the grid has the place behind the last.
    """
    (c, h, w), (rows, columns), height = band.event, band.period, band.height
    block = torch.arange(band.n_blocks).view(-1, 1, 1, 1, 1, 1, 1)
    y = block * height + torch.arange(height).view(-1, 1, 1, 1, 1, 1)
    x, channel = torch.arange(w).view(-1, 1, 1, 1, 1), torch.arange(c).view(-1, 1, 1, 1)
    to_y = (block - 1) * height + torch.arange(3 * height).view(-1, 1, 1)
    to_x, to_channel = torch.arange(w).view(-1, 1), torch.arange(c)
    inside = (y < h) & (to_y >= 0) & (to_y < h)
    near = ((y - to_y).abs() <= band.reach[0]) & ((x - to_x).abs() <= band.reach[1])
    one_set = (y % rows * columns + x % columns) * c + channel
    place = ((one_set * c + to_channel) * h + to_y) * w + to_x
    last = math.prod(band.period) * c * c * h * w
    return torch.where(inside & near, place, last).flatten().to(device)
