"""J as a dense matrix of each example."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from resflow_bench.jacobian.linearisation import linearise
from resflow_bench.jacobian.operator import Jacobian, Linearisation, Map
from resflow_bench.jacobian.stages import Stage, TensorMap
from resflow_bench.memory import at_once

CHUNK_NUMBERS = 2**24
"""The most numbers that one batched product may hold: 128 MiB in float64, and far more than a call
needs to hide its overhead."""


def dense(g: Map, x: Tensor) -> Linearisation:
    """g(x), and J formed once by d products: then O(d^2) operations per probe and term."""
    value, jacobian = linearise(g, x)
    return Linearisation(value, DenseJacobian(dense_jacobian(jacobian, x)))


@dataclass(frozen=True, eq=False)
class DenseJacobian(Stage):
    """J = `matrix`, (B, d, d); of vectors (m, B, *event)."""

    matrix: Tensor

    def vjp(self, v: Tensor) -> Tensor:
        return self._product("mbi,bij->mbj", v)

    def push(self, v: Tensor) -> Tensor:
        return self._product("mbj,bij->mbi", v)

    def mapped(self, common: TensorMap, each: TensorMap) -> DenseJacobian:
        return DenseJacobian(each(self.matrix))

    def traces(self, n: int) -> list[Tensor]:
        power, found = self.matrix, [self.matrix.diagonal(dim1=1, dim2=2).sum(1)]
        for _ in range(n - 1):
            found.append((power * self.matrix.mT).sum((1, 2)))  # tr(J^k J)
            power = power @ self.matrix
        return found

    def _product(self, formula: str, v: Tensor) -> Tensor:
        return torch.einsum(formula, v.flatten(2), self.matrix).unflatten(2, v.shape[2:])


def dense_jacobian(jacobian: Jacobian, x: Tensor) -> Tensor:
    """J at x, (B, d, d): row i is e_i^T J, in chunks of rows that bound the memory of a product."""
    batch_size, dim = x.shape[0], math.prod(x.shape[1:])
    rows = max(1, at_once(CHUNK_NUMBERS) // max(1, batch_size * dim))
    identity = torch.eye(dim, dtype=x.dtype, device=x.device).view(dim, 1, *x.shape[1:])
    chunks = [
        jacobian.vjp_of_each(basis, batch_size)
        .reshape(len(basis), -1, dim)
        .expand(-1, batch_size, -1)
        for basis in identity.split(rows)
    ]
    return torch.cat(chunks).transpose(0, 1)  # (B, d, d)
