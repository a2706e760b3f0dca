"""The interface to a norm that a layer keeps below its coefficient, and its shared parts."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from resflow_bench.layers.norms.operators import Operator
from resflow_bench.layers.orders import Order


class Certificate(NamedTuple):
    """An upper bound, by theorem, on the Lipschitz constant of the map that a layer applies.

    norm: the bound, computed in float64.
    method: the name of the computation, for example "svd".
    """

    norm: float
    method: str


class Normaliser(Protocol):
    """A module that makes W_c of W, such that ||A(W_c)|| <= `coefficient`.

    The promise holds right after `update` or `align`, which raise a `torch.linalg.LinAlgError` for
    weights on the CPU that are not finite; elsewhere W_c becomes NaN, without a wait of the
    host. Only these two change the buffers. They replace them rather than
    write into them, so a graph recorded before still has the vectors it was recorded with.

    Norms are computed outside autocast, in W's dtype or float32 where that is finer; bounds in
    float64.
    """

    coefficient: float

    def normalised(self, operator: Operator) -> Tensor:
        """W_c, shaped like the operator's weight W and differentiable in it."""

    def update(self, operator: Operator) -> None:
        """Follow the weight after an optimiser step, at a cost that every step can afford."""

    def align(self, operator: Operator) -> None:
        """Follow the weight as closely as possible, whatever the cost."""

    def certificate(self, operator: Operator) -> Certificate:
        """The tightest affordable upper bound on ||A||, for whatever weight A holds."""


class Norm(Protocol):
    """The setting of a layer's norm, ||.||_domain -> ||.||_codomain; it makes a `Normaliser`."""

    @property
    def domain(self) -> Order: ...

    @property
    def codomain(self) -> Order: ...

    def normaliser(self, operator: Operator, coefficient: float) -> Normaliser:
        """An `nn.Module`, aligned with the operator, whose buffers follow its device and dtype.

        Raises:
            ValueError: a coefficient that is not positive and finite, or a type so coarse that
                rounding takes half of it.
        """


def checked_coefficient(coefficient: float) -> float:
    """The coefficient as a float; a ValueError if it is not positive and finite."""
    if not 0 < coefficient < math.inf:
        raise ValueError(
            "A layer needs a bound on its norm that is a positive, finite `coefficient`; "
            f"got {coefficient}. Choose for example 0.9."
        )
    return float(coefficient)


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """A context outside autocast, which costs nothing where autocast is off."""
    device = x.device.type
    on = not x.is_meta and torch.is_autocast_enabled(device)  # which knows no meta tensors
    return torch.autocast(device, enabled=False) if on else nullcontext()


@cache
def cushion(dtype: torch.dtype, n: int, more: float = 0.0) -> float:
    """The share of a norm that rounding may add, max(1e-6, 2 eps) + (eps / 2) sqrt(n) + more.

    Args:
        dtype: the type that weights are rounded to, with that eps.
        n: see `SpectralNorm`.
        more: the share that other roundings add.

    Raises:
        ValueError: the share is a half or more.
    """
    eps = torch.finfo(dtype).eps
    share = max(1e-6, 2 * eps) + eps / 2 * math.sqrt(n) + more
    if share >= 0.5:
        raise ValueError(
            f"A norm cannot be promised in {dtype} for weights of this size (n={n}): rounding may "
            f"add {share:.0%} to it. Keep the weights in float32."
        )
    return share


def finite(x: Tensor) -> Tensor:
    """x itself; a `torch.linalg.LinAlgError` if an entry is not finite."""
    if not torch.isfinite(x).all():
        raise not_finite()
    return x


def not_finite() -> Exception:
    """The error of an update of weights that are not finite."""
    error: Exception = torch.linalg.LinAlgError(  # type: ignore[attr-defined]
        "A norm needs finite weights; got infinities or NaN. Lower the learning rate, "
        "or go back to the last checkpoint."
    )
    return error
