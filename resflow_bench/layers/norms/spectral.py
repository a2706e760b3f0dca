"""Spectral norms kept below a coefficient: a singular pair to differentiate, a certified bound.

Power iteration approaches ||A|| from below, so weights normalised by it may exceed their promise,
and it stalls where singular values crowd, which is where maximum likelihood drives them: at the
coefficient. A symmetric eigensolver for the leading pair alone costs no more than a bound
that makes up for that, and gives both. Power iteration is left to operators too large for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor, nn
from torch.nn.functional import pad

from resflow_bench.layers.norms.norm import (
    Certificate,
    checked_coefficient,
    cushion,
    finite,
    full_precision,
    not_finite,
)
from resflow_bench.layers.norms.operators import (
    MAX_ENTRIES,
    Convolution,
    Matrix,
    Operator,
    dense_stack,
    gram_rounding,
    symbol_norm,
)
from resflow_bench.layers.norms.squaring import (
    SQUARINGS,
    SQUARINGS_IN_UPDATE,
    gram_norm,
    largest_column,
    unit,
)
from resflow_bench.layers.orders import Order
from resflow_bench.threads import one_blas_thread

# Smaller sides of a convolution's operator up to which its leading pair is exact: in every update
# (2 ms on one core at 256), and in `align` and certificates (0.1 s at 1024).
SIDE_IN_UPDATE = 256
SIDE_AT_ALL = 1024

# Elsewhere than on the CPU matrices of up to so many rows and columns are padded to one size, and
# computed in one batch: there a launch takes longer than their products.
PADDED = 128

# Power steps of an update, from the last vectors, and from a random start.
STEPS_IN_UPDATE = 2
STEPS_FROM_SCRATCH = 30


@dataclass(frozen=True)
class Spectral:
    """||A||_2, the largest singular value of a layer's operator.

    >>> Spectral().normaliser(Matrix(2 * torch.eye(3)), 0.5).divisor(Matrix(2 * torch.eye(3)))
    tensor(4.0000)
    """

    domain: ClassVar[Order] = 2.0
    codomain: ClassVar[Order] = 2.0

    def normaliser(self, operator: Operator, coefficient: float) -> SpectralNorm:
        return SpectralNorm(operator, coefficient)


class SingularPair(NamedTuple):
    """Unit vectors u, v with u^T A v close to ||A||, and a bound on ||A|| from above."""

    u: Tensor  # (n_out,)
    v: Tensor  # (n_in,)
    bound: Tensor  # (), at least ||A|| up to rounding in float64


class SpectralNorm(nn.Module):
    """max(1, sigma_hat inflation / c'), by which W is divided so that ||A(W)||_2 <= c.

    sigma_hat = u^T A(W) v with unit vectors u, v carried from step to step. Since sigma_hat is at
    most ||A||, it alone promises nothing; inflation >= 1 is set by `update` and `align` to the
    ratio of a certified bound to sigma_hat. Hence right after either ||A(W)|| <= c is a theorem,
    and inflation says what it costs: 1 where the pair is exact.

    For a matrix the pair is exact. For a convolution it depends on the operator's smaller side
    min(C_in, C_out) H W, where an axis on which one tap meets the grid counts as 1
    (`Convolution.collapsed`): it is exact up to `SIDE_IN_UPDATE`. Above, u and v follow by power
    iteration and the bound is `symbol_norm`, which gives away some per cent on small grids. `align`
    and `certificate` change over at `SIDE_AT_ALL`.

    Elsewhere than on the CPU "exact" means to 5e-4 in updates and to 2e-7 in `align` and
    certificates, always from above: `gram_norm` replaces LAPACK, so that the host does not wait. A
    weight that is not finite raises no error in `update` and `align` there; it makes the layer NaN.

    c is the coefficient, and c' = c (1 - `cushion`) leaves room for rounding. Rounding the entries
    of W_c adds a matrix E with ||E|| <= (eps / 2) sqrt(n) ||A||. For a matrix n is its smaller
    side, as ||A||_F <= sqrt(n) ||A||. For a convolution n = min(C_in, C_out) kh kw: ||E|| is at
    most sqrt(kh kw) ||K_E||_F, K_E its kernel, and a pixel that all taps reach has a column, or
    row, of A for each channel, of norm ||A|| at most. (On a grid smaller than the kernel it takes
    four pixels to reach all taps: 4 n.)

    Between an optimiser step and the next update the promise is off by the size of the step. In
    1,000 steps of Adam at 1e-2 against random targets, ||A|| was at most c after every update and
    1.02 c before it; with five power steps for an update 1.05 to 1.09 c after it; without any it
    grew to 2.3 to 5.5 c within 300 steps.

    The arguments are those of `Norm.normaliser`.
    """

    def __init__(self, operator: Operator, coefficient: float) -> None:
        super().__init__()
        self.coefficient = checked_coefficient(coefficient)
        weight, small = operator.weight, operator.collapsed()
        self.u: Tensor  # (n_out,), or (C_out, H, W)
        self.v: Tensor  # (n_in,), or (C_in, H, W)
        self.inflation: Tensor  # ()
        self.register_buffer("u", weight.new_zeros(small.shape_out))
        self.register_buffer("v", weight.new_zeros(small.shape_in))
        self.register_buffer("inflation", weight.new_ones(()))
        self.align(operator)

    def normalised(self, operator: Operator) -> Tensor:
        """W / divisor."""
        return operator.weight / self.divisor(operator)

    def divisor(self, operator: Operator) -> Tensor:
        """max(1, sigma_hat inflation / c'), shape (), differentiable in W with u, v constant."""
        small = operator.collapsed()
        sigma = self._sigma_hat(small)
        return (sigma * (self.inflation.to(sigma) / self._target(small))).clamp(min=1.0)

    def sigma_hat(self, operator: Operator) -> Tensor:
        """u^T A v, shape (): at most ||A||, and d sigma_hat = d||A|| once u, v are aligned."""
        return self._sigma_hat(operator.collapsed())

    def constants(self, operator: Operator) -> tuple[Tensor, Tensor, Tensor]:
        """u, v and share = inflation / c', by which the divisor is max(1, share u^T A v)."""
        return self.u, self.v, self.inflation / self._target(operator.collapsed())

    def update(self, operator: Operator) -> None:
        """Follow W after an optimiser step; afterwards ||A|| <= c.

        Properties: for a matrix O(n^3) with n the smaller side; on one core 0.3 ms at 64 x 128,
        0.7 ms at 128 x 128 and 45 ms at 784 x 1024. Two power steps take 0.06 ms at 128, but
        followed by an exact bound they left the training loss of a flow of 24 such layers 15 nat
        higher after 300 steps: the vectors lag behind, and sigma_hat has the wrong gradient.
        """
        if operator.weight.is_cpu:
            self._follow(operator, SIDE_IN_UPDATE, self.u)
        else:
            follow_together([(self, operator)])

    def align(self, operator: Operator) -> None:
        """The exact pair where it is affordable; afterwards ||A|| <= c, and close to it."""
        if operator.weight.is_cpu:
            self._follow(operator, SIDE_AT_ALL)
        else:
            follow_together([(self, operator)], align=True)

    def certificate(self, operator: Operator) -> Certificate:
        """See `spectral_certificate`."""
        return spectral_certificate(operator)

    def carry(self, u: Tensor, v: Tensor) -> None:
        """Replace u and v, in any shape."""
        # As `self.u = ...` would, at a tenth of the time.
        self._buffers.update(u=u.view_as(self.u), v=v.view_as(self.v))

    def carry_inflation(self, inflation: Tensor) -> None:
        """Replace the inflation."""
        self._buffers["inflation"] = inflation

    def _sigma_hat(self, small: Operator) -> Tensor:
        dtype = torch.promote_types(small.weight.dtype, torch.float32)
        with full_precision(small.weight):
            image = small.to(dtype).apply(self.v.to(dtype).flatten())
            return torch.dot(self.u.to(dtype).flatten(), image)

    # Buffers made in inference mode could not take part in a gradient later.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _follow(self, operator: Operator, side: int, start: Tensor | None = None) -> None:
        """Set the buffers; `side` and `start` are those of `leading_pair`."""
        small = operator.collapsed()
        with full_precision(small.weight):
            pair = leading_pair(small.to(torch.float64), side, start)
            self.carry(pair.u.to(self.u), pair.v.to(self.v))
            # With sigma_hat as `forward` computes it: its rounding and that of u and v included.
            ratio = pair.bound / self._sigma_hat(small).double()
            ratio = ratio.nan_to_num(1.0, 1.0).clamp(min=1.0)  # where sigma_hat is 0, W stays W
            self.carry_inflation(ratio.to(self.inflation))

    def _target(self, small: Operator) -> float:
        """c' for an operator that has been collapsed."""
        taps, grid = small.weight.shape[2:], small.shape_in[1:]
        n = min(small.weight.shape[:2]) * math.prod(taps)
        if any(size < reach for size, reach in zip(grid, taps, strict=True)):
            n *= 4
        return self.coefficient * (1 - cushion(small.weight.dtype, n))

    def extra_repr(self) -> str:
        return f"coefficient={self.coefficient:.6g}"


@torch.no_grad()
def spectral_bound(operator: Operator) -> Tensor:
    """An upper bound on ||A||_2, () float64, on the device of the weight.

    Elsewhere than on the CPU the host does not wait, and the bound is NaN where the weight is
    not finite; on the CPU such a weight is a `torch.linalg.LinAlgError`.
    """
    if not operator.weight.is_cpu:
        return bounds_together([operator])[0]
    small = operator.collapsed().to(torch.float64)
    with full_precision(small.weight):
        if isinstance(small, Matrix) or _is_small(small, SIDE_AT_ALL):
            return leading(small.gram())[1]
        return symbol_norm(finite(small.weight), small.grid)


def spectral_certificate(operator: Operator) -> Certificate:
    """`spectral_bound` on the host. svd: ||A||, to rounding on the CPU. fft: `symbol_norm`."""
    bound = float(spectral_bound(operator))
    if not math.isfinite(bound):
        raise not_finite()
    return Certificate(bound, "svd" if _is_small(operator.collapsed(), SIDE_AT_ALL) else "fft")


@torch.inference_mode(False)
@torch.no_grad()
def follow_together(norms: Sequence[tuple[SpectralNorm, Operator]], *, align: bool = False) -> None:
    """`update` or `align` norms of weights that are not on the CPU, without a wait of the host.

    All small operators of one kind are computed at once, with `gram_norm` in place of LAPACK. Where
    a weight is not finite the inflation becomes NaN, and so does all that the layer computes.
    """
    side, n_squarings = (SIDE_AT_ALL, SQUARINGS) if align else (SIDE_IN_UPDATE, SQUARINGS_IN_UPDATE)
    small = [operator.collapsed() for _, operator in norms]
    for members, a, size in _stacks(small, side):
        bound, power = gram_norm(a @ a.mT, n_squarings)
        x = largest_column(power)  # (k, n)
        y = unit((x[:, None] @ a)[:, 0])  # (k, m)
        x, y = (part.to(small[members[0]].weight.dtype) for part in (x, y))
        for row, k in enumerate(members):
            n, m = sorted((small[k].n_in, small[k].n_out))
            pair = x[row, :n], y[row, :m]
            norms[k][0].carry(*(pair if small[k].n_out <= small[k].n_in else pair[::-1]))
        slack = 1 + gram_rounding(a)
        if isinstance(small[members[0]], Matrix):
            sigma = (x.to(a)[:, None] @ a @ y.to(a)[..., None])[:, 0, 0]
            # Units in the last place by which the products in `forward` may be smaller.
            eps = torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps
            slack += eps * math.sqrt(sum(a.shape[1:]))
        else:  # a device may convolve in a coarser type
            sigma = torch.stack([norms[k][0].sigma_hat(small[k]) for k in members]).to(a) / size
        inflation = _inflation(bound * slack, sigma).to(x)
        for row, k in enumerate(members):
            norms[k][0].carry_inflation(inflation[row])
    for (norm, _), operator in zip(norms, small, strict=True):
        if isinstance(operator, Convolution) and not _is_small(operator, side):
            exactly = operator.to(torch.float64)
            start = _alive(exactly, norm.u.double().flatten())
            u, v = _power(exactly, start, STEPS_FROM_SCRATCH if align else STEPS_IN_UPDATE)
            norm.carry(u.to(norm.u), v.to(norm.v))
            sigma = norm.sigma_hat(operator).double()
            bound = symbol_norm(exactly.weight, exactly.grid)
            norm.carry_inflation(_inflation(bound, sigma).to(norm.u))


@torch.no_grad()
def bounds_together(operators: Sequence[Operator]) -> list[Tensor]:
    """`spectral_bound` of operators that are not on the CPU, without a wait of the host."""
    small = [operator.collapsed().to(torch.float64) for operator in operators]
    bounds: dict[int, Tensor] = {}
    for members, a, size in _stacks(small, SIDE_AT_ALL):
        found = gram_norm(a @ a.mT)[0] * (1 + gram_rounding(a)) * size
        bounds |= {k: found[row] for row, k in enumerate(members)}
    for k, operator in enumerate(small):
        if k not in bounds and isinstance(operator, Convolution):
            bounds[k] = symbol_norm(operator.weight, operator.grid)
    return [bounds[k] for k in range(len(small))]


def _stacks(operators: Sequence[Operator], side: int) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """(places in `operators`, batch, sizes) of the small ones, in float64.

    A batch (k, n, m), n <= m, has A or A^T divided by its largest entry, the size, (k,), so that no
    square overflows. Matrices of at most `PADDED` rows and columns share one, padded with zeros.
    """
    alike: dict[Any, list[int]] = {}
    for k, a in enumerate(operators):
        if _is_small(a, side):
            weight = a.weight
            key = type(a), weight.dtype, weight.device, weight.shape, a.shape_in
            alike.setdefault(key, []).append(k)
    padded: dict[Any, list[tuple[list[int], Tensor]]] = {}
    for key, members in alike.items():
        a = operators[members[0]]
        at_once = max(1, MAX_ENTRIES // (a.n_in * a.n_out))
        for some in (members[k : k + at_once] for k in range(0, len(members), at_once)):
            stack = dense_stack([operators[k] for k in some])
            stack = stack if a.n_out <= a.n_in else stack.mT
            if stack.shape[-1] > PADDED:
                yield some, *_scaled(stack)
            else:
                padded.setdefault(key[:3], []).append((some, stack))
    for parts in padded.values():
        n, m = (max(stack.shape[axis] for _, stack in parts) for axis in (1, 2))
        stacks = [pad(s, (0, m - s.shape[2], 0, n - s.shape[1])) for _, s in parts]
        yield [k for some, _ in parts for k in some], *_scaled(torch.cat(stacks))


def _is_small(operator: Operator, side: int) -> bool:
    """True if the pair of an operator that has been collapsed is exact."""
    return isinstance(operator, Matrix) or min(operator.n_in, operator.n_out) <= side


def _scaled(a: Tensor) -> tuple[Tensor, Tensor]:
    """(k, n, m) matrices, each divided by its largest entry, and these, (k,)."""
    largest = torch.linalg.vector_norm(a, math.inf, dim=(1, 2))
    size = largest.clamp(min=torch.finfo(a.dtype).tiny)
    return a / size[:, None, None], size


def _inflation(bound: Tensor, sigma: Tensor) -> Tensor:
    """max(1, bound / sigma); 1 where sigma is 0, so that W stays W, and NaN where either is."""
    return torch.where((sigma <= 0) & (bound < math.inf), 1.0, bound / sigma).clamp(min=1.0)


def _alive(operator: Convolution, start: Tensor) -> Tensor:
    """The start, or sin(k^2), in which all frequencies occur, where A^T maps it to 0."""
    lost = ~(torch.linalg.vector_norm(operator.adjoint(start)) > 0)
    places = torch.arange(len(start), dtype=start.dtype, device=start.device)
    return torch.where(lost, places.square().sin(), start)


def leading_pair(operator: Operator, side: int, start: Tensor | None = None) -> SingularPair:
    """The leading singular pair of an operator in float64, and a bound on its norm.

    Args:
        operator: A, a matrix or a convolution.
        side: the smaller side of a convolution up to which the pair is exact, as it is for every
            matrix. Beyond, it comes from power iteration, and the bound from `symbol_norm`.
        start: the first u of the power iteration, of n_out numbers; None is a random one.

    Raises:
        torch.linalg.LinAlgError: the weight is not finite.
    """
    if isinstance(operator, Matrix):
        x, norm = leading(operator.gram())
        size = norm.clamp(min=torch.finfo(norm.dtype).tiny)  # of A^T x, or A x, to rounding
        if operator.n_out <= operator.n_in:
            return SingularPair(x, operator.adjoint(x) / size, norm)
        return SingularPair(operator.apply(x) / size, x, norm)
    if _is_small(operator, side):
        x, norm = leading(operator.gram())
        if operator.n_in <= operator.n_out:
            return SingularPair(_unit(operator.apply(x)), x, norm)
        return SingularPair(x, _unit(operator.adjoint(x)), norm)
    if start is not None:
        u, v = _power(operator, start.to(operator.weight).flatten(), STEPS_IN_UPDATE)
        if torch.linalg.vector_norm(u) > 0:
            return SingularPair(u, v, symbol_norm(operator.weight, operator.grid))
    # No start is known, or A^T maps it to 0, or the weights are zero or not finite.
    weight = finite(operator.weight)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(operator.n_out, generator=generator, dtype=weight.dtype)
    u, v = _power(operator, start.to(weight.device), STEPS_FROM_SCRATCH)
    return SingularPair(u, v, symbol_norm(weight, operator.grid))


def leading(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvector x of the largest eigenvalue of G = A^T A, and ||A|| = sqrt(lambda_1).

    G (n, n) is symmetric, in float64; x (n,) is a unit vector; both results hold to rounding.

    Properties: O(n^3), about half of the cost of all eigenvalues and vectors; computed by LAPACK on
        the host on one thread, so the host waits once for an accelerator.

    Raises:
        torch.linalg.LinAlgError: G is not finite.
    """
    n = len(gram)
    matrix = gram.cpu().numpy()
    if not math.isfinite(matrix.trace()):  # a diagonal of squares: finite only if W is
        raise not_finite()
    with one_blas_thread():
        value, vector, n_found, _, info = lapack.dsyevr(matrix.T, range="I", il=n, iu=n, lower=1)
        # Where all eigenvalues agree to rounding (W a multiple of an isometry), it may report
        # success and find none.
        if info == 0 and n_found == 0:
            value, vector = (part[..., -1:] for part in np.linalg.eigh(matrix))
    if info != 0:
        raise not_finite()
    x = torch.from_numpy(vector[:, 0]).to(gram)
    return x, gram.new_tensor(math.sqrt(max(value[0], 0.0)))


def _power(operator: Convolution, u: Tensor, n_steps: int) -> tuple[Tensor, Tensor]:
    for _ in range(n_steps):
        v = _unit(operator.adjoint(u))
        u = _unit(operator.apply(v))
    return u, v


def _unit(x: Tensor) -> Tensor:
    """x / ||x||, or x where it is zero."""
    norm = torch.linalg.vector_norm(x)
    return x / torch.where(norm > 0, norm, 1.0)
