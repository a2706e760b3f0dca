"""Spectral norms held below a coefficient: a singular pair to differentiate, a bound to trust.

Power iteration approaches ||A|| from below, so what it normalises may exceed its promise, and it
stalls where singular values crowd, which is where maximum likelihood drives them: at the
coefficient. A symmetric eigensolver asked for the leading pair alone costs no more than a bound
that makes up for that, and gives both. Power iteration is left to operators too large for it.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor, nn

from resflow_bench.layers.layer import Certificate
from resflow_bench.threads import one_blas_thread


class Pair(NamedTuple):
    """Unit vectors u, v with u^T A v close to ||A||, and a bound on ||A|| from above.

    u: (*shape_out). v: (*shape_in). bound: (), at least ||A|| up to rounding in float64.
    """

    u: Tensor
    v: Tensor
    bound: Tensor


class Operator(Protocol):
    """A(W): R^shape_in -> R^shape_out, linear in its weight W as well; it holds no tensors."""

    @property
    def shape_in(self) -> tuple[int, ...]: ...

    @property
    def shape_out(self) -> tuple[int, ...]: ...

    def apply(self, weight: Tensor, v: Tensor) -> Tensor:
        """A v, (*shape_in) -> (*shape_out)."""
        ...

    def follow(self, weight: Tensor, u: Tensor) -> Pair:
        """What is affordable after every optimiser step, from the last u."""
        ...

    def solve(self, weight: Tensor) -> Pair:
        """The leading pair and the tightest bound that is affordable, from nothing."""
        ...

    def certificate(self, weight: Tensor) -> Certificate:
        """That bound alone."""
        ...


class SpectralNorm(nn.Module):
    """max(1, sigma_hat inflation / c'), by which W is divided so that ||A(W)|| <= c.

    sigma_hat = u^T A(W) v with unit vectors u, v carried from step to step. Since sigma_hat is at
    most ||A||, it alone promises nothing; inflation >= 1 is set by `update` and `align` to the
    ratio of a certified bound to sigma_hat. Hence right after either ||A(W)|| <= c is a theorem,
    and inflation says what it costs: 1 where the pair is exact.

    c' = c (1 - cushion) leaves room for rounding. The scalars are rounded a few times: 1e-6 in
    float32, more in coarser types. Rounding the entries of W_c adds a matrix E with
    ||E|| <= (eps / 2) sqrt(n) ||A||. For a matrix n is its smaller side, as ||A||_F is at most
    sqrt(n) ||A||. For a convolution n = min(C_in, C_out) kh kw: ||E|| <= sqrt(kh kw) ||K_E||_F, K_E
    its kernel, and a pixel that all taps reach has a column, or row, of A for each channel, of norm
    ||A|| at most. (On a grid smaller than the kernel it takes four pixels to reach all taps: 4 n.)

    Between an optimiser step and the next update the promise is off by what the step did. In 1,000
    steps of Adam at 1e-2 against random targets, ||A|| was at most c after every update and 1.02 c
    before it; with five power steps for an update 1.05 to 1.09 c after it; without any it grew to
    2.3 to 5.5 c within 300 steps.

    Only `update` and `align` change u, v and inflation. They replace the buffers rather than write
    into them, so a graph recorded before still has the vectors it was recorded with. Norms are
    computed outside autocast, in W's dtype or float32 where that is finer; bounds in float64.

    Args:
        operator: W -> A(W).
        coefficient: c, the promised bound on ||A||, above 0.
        weight: W; its device and dtype are the buffers'.

    Raises:
        ValueError: a coefficient that is not positive and finite, or a type so coarse that rounding
            takes half of it.
    """

    def __init__(self, operator: Operator, coefficient: float, weight: Tensor) -> None:
        super().__init__()
        if not 0 < coefficient < math.inf:
            raise ValueError(
                "A spectral layer needs a positive, finite `coefficient`; "
                f"got {coefficient}. Choose for example 0.9."
            )
        self.operator = operator
        self.coefficient = float(coefficient)
        self.u: Tensor  # (*shape_out)
        self.v: Tensor  # (*shape_in)
        self.inflation: Tensor  # ()
        self.register_buffer("u", weight.new_zeros(operator.shape_out))
        self.register_buffer("v", weight.new_zeros(operator.shape_in))
        self.register_buffer("inflation", weight.new_ones(()))
        self.align(weight)

    def divisor(self, weight: Tensor) -> Tensor:
        """max(1, sigma_hat inflation / c'), shape (), differentiable in W with u, v constant."""
        sigma = self.sigma_hat(weight)
        return (sigma * (self.inflation.to(sigma) / self._target(weight))).clamp(min=1.0)

    def sigma_hat(self, weight: Tensor) -> Tensor:
        """u^T A(W) v, shape (): at most ||A||, and d sigma_hat = d||A|| once u, v are aligned."""
        dtype = torch.promote_types(weight.dtype, torch.float32)
        with full_precision(weight):
            image = self.operator.apply(weight.to(dtype), self.v.to(dtype))
            return torch.dot(self.u.to(dtype).flatten(), image.flatten())

    def constants(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u, v and share = inflation / c', by which the divisor is max(1, share u^T A(W) v)."""
        return self.u, self.v, self.inflation / self._target(weight)

    # Buffers made in inference mode could not take part in a gradient later.
    @torch.inference_mode(False)
    @torch.no_grad()
    def update(self, weight: Tensor) -> None:
        """Follows W after an optimiser step; afterwards ||A|| <= c.

        Raises:
            torch.linalg.LinAlgError: W is not finite.
        """
        with full_precision(weight):
            self._adopt(weight, self.operator.follow(weight.double(), self.u.double()))

    @torch.inference_mode(False)
    @torch.no_grad()
    def align(self, weight: Tensor) -> None:
        """The exact pair where it is affordable; afterwards ||A|| <= c, and close to it.

        Raises:
            torch.linalg.LinAlgError: W is not finite.
        """
        with full_precision(weight):
            self._adopt(weight, self.operator.solve(weight.double()))

    @torch.no_grad()
    def certificate(self, weight: Tensor) -> Certificate:
        """The tightest affordable bound on ||A(W)||, for the normalised weight if W is that."""
        with full_precision(weight):
            return self.operator.certificate(weight.double())

    def _adopt(self, weight: Tensor, pair: Pair) -> None:
        # As `self.u = ...` would, at a tenth of the time.
        self._buffers.update(u=pair.u.to(self.u), v=pair.v.to(self.v))
        # Of sigma_hat as forward will compute it, with its rounding and that of u and v.
        ratio = pair.bound / self.sigma_hat(weight).double()
        ratio = ratio.nan_to_num(1.0, 1.0).clamp(min=1.0)  # where sigma_hat is 0, W stays W
        self._buffers["inflation"] = ratio.to(self.inflation)

    def _target(self, weight: Tensor) -> float:
        taps, grid = weight.shape[2:], self.operator.shape_in[1:]
        n = min(weight.shape[:2]) * math.prod(taps)
        if any(size < reach for size, reach in zip(grid, taps, strict=True)):
            n *= 4
        return self.coefficient * (1 - cushion(weight.dtype, n))

    def extra_repr(self) -> str:
        return f"coefficient={self.coefficient:.6g}"


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Outside autocast: a context that costs nothing where there is none to leave."""
    device = x.device.type
    on = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()


@cache
def cushion(dtype: torch.dtype, n: int) -> float:
    """The share of a norm that rounding to a type may add, max(1e-6, 2 eps) + (eps / 2) sqrt(n).

    Raises:
        ValueError: if that is half of the norm or more.
    """
    eps = torch.finfo(dtype).eps
    share = max(1e-6, 2 * eps) + eps / 2 * math.sqrt(n)
    if share >= 0.5:
        raise ValueError(
            f"A norm cannot be promised in {dtype} for weights of this size (n={n}): rounding may "
            f"add {share:.0%} to it. Keep the weights in float32."
        )
    return share


def leading(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvector x of the largest eigenvalue of G = A^T A, and ||A|| = sqrt(lambda_1).

    Args:
        gram: (n, n), symmetric, float64.

    Returns:
        x (n,), unit, and the norm (), both to rounding.

    Properties: O(n^3), about half of what all eigenvalues and vectors cost; computed by LAPACK on
    the host on one thread, so that an accelerator is waited for, once.

    Raises:
        torch.linalg.LinAlgError: G is not finite.
    """
    n = len(gram)
    matrix = gram.cpu().numpy()
    if not math.isfinite(matrix.trace()):  # nor is a diagonal of squares where W is not
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


def finite(x: Tensor) -> Tensor:
    """x itself.

    Raises:
        torch.linalg.LinAlgError: an entry is not finite.
    """
    if not torch.isfinite(x).all():
        raise not_finite()
    return x


def not_finite() -> Exception:
    """What an update of weights that are not finite raises."""
    error: Exception = torch.linalg.LinAlgError(  # type: ignore[attr-defined]
        "A spectral norm needs finite weights; got infinities or NaN. Lower the learning rate, "
        "or go back to the last checkpoint."
    )
    return error


def unit(x: Tensor) -> Tensor:
    """x / ||x||, or x where it is zero."""
    norm = torch.linalg.vector_norm(x)
    return x / torch.where(norm > 0, norm, 1.0)
