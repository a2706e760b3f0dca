"""The oracle: ln|det(I + J_g(x))| from the whole Jacobian, in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resflow_bench.jacobian import (
    CHUNK_NUMBERS,
    Jacobian,
    Map,
    PerExampleMap,
    Products,
    autograd,
    dense_jacobian,
    linearise,
)
from resflow_bench.jacobian.banded import band_of, block_rows, block_tridiagonal_log_det
from resflow_bench.jacobian.linearisation import same_shape
from resflow_bench.logdet.estimator import Estimate, check_input
from resflow_bench.memory import at_once
from resflow_bench.threads import one_torch_thread


def jacobian(g: Map, x: Tensor) -> Tensor:
    """J_ij = d g_i / d x_j at each example, (B, d, d), float64, differentiable in x and g.

    Args:
        g: a module, evaluated with its parameters and buffers promoted to float64, or a callable,
            which gets x in float64 if it accepts that, and else in x's dtype (a closure over
            float32 tensors: its J then has float32's rounding).
        x: (B, *event); d is the product of the event's shape.

    Properties: d vector-Jacobian products, vectorised in chunks of bounded memory.
    """
    check_input("jacobian", x)
    promoted, source = in_float64(g, x)
    return dense_jacobian(autograd(promoted, source).jacobian, source).double()


def exact_log_det(g: Map, x: Tensor) -> Tensor:
    """ln|det(I + J_g(x))| by LU of the dense matrix, (B,), nats, float64.

    Args: as for `jacobian`. Large batches are evaluated in slices of examples, which bounds the
        memory of their Jacobians.

    Properties: exact to float64 rounding; differentiable in x and in g's parameters; d
        vector-Jacobian products and O(d^3) operations an example.

    >>> exact_log_det(lambda x: 0.5 * x, torch.zeros(2, 3)).tolist() == [3 * torch.tensor(1.5,
    ...     dtype=torch.float64).log().item()] * 2
    True
    """
    check_input("exact_log_det", x)
    return torch.cat([dense_log_det(jacobian(g, piece)) for g, piece in _slices(g, x)])


def dense_log_det(matrix: Tensor) -> Tensor:
    """ln|det(I + J)| of each matrix, (..., d, d) -> (...), nats, by LU on one thread."""
    j = _wide(matrix)
    identity = torch.eye(j.shape[-1], dtype=j.dtype, device=j.device)
    with one_torch_thread():
        return torch.linalg.slogdet(identity + j).logabsdet.to(matrix.dtype)


def whole_log_det(jacobian: Jacobian, x: Tensor) -> tuple[Tensor, int]:
    """ln|det(I + J)| at x, (B,), nats, and its products: by blocks where J is banded, else by LU.

    Differentiable if gradients are enabled.
    """
    band = band_of(jacobian, x)
    n_products, _ = determinant_work(jacobian, x)
    if band is None:
        return dense_log_det(dense_jacobian(jacobian, x)), n_products
    blocks = block_rows(jacobian, x, band)
    with one_torch_thread():
        log_det = block_tridiagonal_log_det(_wide(blocks))
    return log_det.to(blocks.dtype), n_products


def determinant_work(jacobian: Jacobian, x: Tensor) -> tuple[int, float]:
    """Products with J, and operations beyond them, that `whole_log_det` takes an example."""
    band, dim = band_of(jacobian, x), math.prod(x.shape[1:])
    return (dim, 2 * dim**3 / 3) if band is None else (band.n_products, band.n_operations)


def _wide(matrix: Tensor) -> Tensor:
    """The matrix, in float32 where it has half precision, for which there is no LU."""
    return matrix.float() if matrix.dtype.itemsize < torch.float32.itemsize else matrix


@dataclass(frozen=True)
class Exact:
    """`exact_log_det` in x's dtype, in the place of a `LogDetEstimator`.

    Properties: no variance, no bias, d products; takes no random numbers.

    >>> Exact()(lambda x: 0.5 * x, torch.zeros(1, 2)).n_products
    2
    """

    def __call__(self, g: Map, x: Tensor, generator: torch.Generator | None = None) -> Estimate:
        check_input("Exact", x)
        value = same_shape(g(x), x)
        return Estimate(value, exact_log_det(g, x).to(x.dtype), math.prod(x.shape[1:]))


@dataclass(frozen=True)
class Determinant:
    """ln|det(I + J)| of the whole J, in x's dtype: no probe, no series, no random number.

    Properties: exact to x's rounding (some 1e-6 nat at d = 64 in float32); differentiable. Cost:
        d products, the first linear map of which is free for branches of this package, and
        2 d^3/3 operations of a batched LU, which at d = 64 take longer than the products. A
        convolutional branch of few channels takes far less: its J is banded, see
        `jacobian.banded`. Examples are evaluated in slices of bounded memory.

    >>> Determinant()(lambda x: 0.5 * x, torch.zeros(1, 2)).n_products
    2
    """

    products: Products = linearise

    def __call__(self, g: Map, x: Tensor, generator: torch.Generator | None = None) -> Estimate:
        check_input("Determinant", x)
        values, log_dets, n_products = [], [], 0
        for of_piece, piece in _slices(g, x):
            value, operator = self.products(of_piece, piece)
            log_det, n_products = whole_log_det(operator, piece)
            values.append(value)
            log_dets.append(log_det)
        return Estimate(torch.cat(values), torch.cat(log_dets), n_products)


def _slices(g: Map, x: Tensor) -> Iterator[tuple[Map, Tensor]]:
    """Slices of examples with Jacobians of `CHUNK_NUMBERS` together, each with its map."""
    size = max(1, at_once(CHUNK_NUMBERS) // math.prod(x.shape[1:]) ** 2)
    for k in range(0, max(1, len(x)), size):
        piece = slice(k, k + size)
        yield (g.select(piece) if isinstance(g, PerExampleMap) else g), x[piece]


def in_float64(g: Map, x: Tensor) -> tuple[Map, Tensor]:
    """(g, x) promoted to float64; the module itself is left as it is, and gradients reach it.

    A callable that is no module is promoted only as far as it accepts a float64 argument.
    """
    if not isinstance(g, nn.Module):
        return g, x if x.dtype == torch.float64 or not _accepts_float64(g, x) else x.double()
    # A module that occurs twice is named once, or torch would take its promoted tensors for its
    # own when it puts them back; a tensor of two modules is promoted once, and named in both.
    state = {
        f"{path}.{name}" if path else name: tensor
        for path, module in g.named_modules()
        for name, tensor in (
            *module.named_parameters(recurse=False, remove_duplicate=False),
            *module.named_buffers(recurse=False, remove_duplicate=False),
        )
    }
    wide = {id(t): t.double() if t.is_floating_point() else t for t in state.values()}
    promoted = {name: wide[id(tensor)] for name, tensor in state.items()}
    return (
        lambda z: torch.func.functional_call(g, promoted, (z,), tie_weights=False),
        x.double(),
    )


def _accepts_float64(g: Map, x: Tensor) -> bool:
    try:
        with torch.no_grad():
            return g(x[:1].double()).dtype == torch.float64
    except (RuntimeError, ValueError, TypeError):  # of torch for two dtypes, or of a branch
        return False
