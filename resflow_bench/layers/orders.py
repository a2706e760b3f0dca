"""p-norms whose order is a number or a parameter: values, norms, and conversion constants."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# The orders that a learnable one may begin with.
LEAST, LARGEST = 1.00001, 100_000.0
# Beyond |raw| = 12 the order is within 7e-6 of 1, or above 160,000: 1 and infinity to float32.
_RAW_LIMIT = 12.0


class LearnableOrder(nn.Module):
    """p = 1 + e^(-raw), so 1/p = sigmoid(raw): smooth in raw, and anywhere in (1, inf).

    raw -> -raw swaps p and its dual, as 1/p* = sigmoid(-raw). raw is held to +-12, beyond which its
    gradient is zero.

    Two layers share an order by holding the same object.

    Args:
        initial: p at the start, in (1, inf).

    Raises:
        ValueError: an initial order outside (1.00001, 100000), which raw cannot reach.

    Source: Chen, Behrmann, Duvenaud and Jacobsen (2019), Residual Flows, learn the orders of
    induced mixed norms.

    >>> LearnableOrder(3.0)
    LearnableOrder(p=3)
    """

    def __init__(self, initial: float = 2.0) -> None:
        super().__init__()
        if not LEAST <= initial <= LARGEST:
            raise ValueError(
                f"LearnableOrder needs 1.00001 <= initial <= 100000; got {initial}. "
                "For the orders 1 and infinity give the float itself."
            )
        self.raw = nn.Parameter(torch.tensor(-math.log(initial - 1)))

    @property
    def initial(self) -> float:
        """p as it is, within what a new order may begin with."""
        return min(max(float(self().detach()), LEAST), LARGEST)

    def forward(self) -> Tensor:
        """p, a scalar, in float32 or finer."""
        raw = self.raw.to(torch.promote_types(self.raw.dtype, torch.float32))
        return 1 + torch.exp(-raw.clamp(-_RAW_LIMIT, _RAW_LIMIT))

    def extra_repr(self) -> str:
        return f"p={float(self().detach()):.4g}"


Order = float | LearnableOrder


def value(order: Order) -> float | Tensor:
    """p: the float itself, or a scalar tensor that the learnable order can be trained through."""
    return order() if isinstance(order, LearnableOrder) else float(order)


def same_order(a: Order, b: Order) -> bool:
    """True if a and b remain equal in training: the same object, or equal fixed numbers.

    >>> shared = LearnableOrder()
    >>> same_order(2.0, 2), same_order(shared, shared), same_order(shared, LearnableOrder())
    (True, True, False)
    """
    if isinstance(a, LearnableOrder) or isinstance(b, LearnableOrder):
        return a is b
    return float(a) == float(b)


def check_order(order: Order, name: str) -> None:
    """Refuse a number below 1, or NaN, with a ValueError."""
    if not isinstance(order, LearnableOrder) and not order >= 1:
        raise ValueError(
            f"An order of a p-norm needs to be at least 1; got {name}={order}. "
            "Below 1 there is no triangle inequality: give 1.0, 2.0, math.inf or between."
        )


def norm(x: Tensor, p: Order | Tensor) -> Tensor:
    """||x||_p = (sum_i |x_i|^p)^(1/p) along the last dimension, (..., d) -> (...).

    Properties: computed as M (sum_i (|x_i| / M)^p)^(1/p) with M = max_i |x_i|, so that no
    order overflows but 2, which is torch's own; differentiable in x and, if p is a tensor, in p,
    with zero gradients (never NaN) where x_i = 0 and where x = 0.

    >>> norm(torch.tensor([[3.0, -4.0]]), 2.0), norm(torch.tensor([[3.0, -4.0]]), math.inf)
    (tensor([5.]), tensor([4.]))
    """
    order = p if isinstance(p, Tensor) else value(p)
    if not isinstance(order, Tensor):
        if order == math.inf:
            return x.abs().amax(-1)
        if order == 1:
            return x.abs().sum(-1)
        if order == 2:
            return torch.linalg.vector_norm(x, dim=-1)
    size = x.abs()
    largest = size.detach().amax(-1, keepdim=True)
    largest = torch.where(largest > 0, largest, 1)
    total = power(size / largest, order).sum(-1)
    return largest.squeeze(-1) * power(total, 1 / order)


def power(t: Tensor, exponent: float | Tensor) -> Tensor:
    """t^exponent for t >= 0, and 0 with zero derivatives of all degrees at t = 0.

    torch's own power is not safe there: t^1.5 has an infinite second derivative at 0, which the
    chain rule multiplies by zero.
    """
    is_zero = t == 0
    return torch.where(is_zero, 0, torch.where(is_zero, 1, t) ** exponent)


def conversion(p_from: Order, p_to: Order, dim: int) -> float | Tensor:
    """c = dim^max(0, 1/p_to - 1/p_from), the least c with ||x||_{p_to} <= c ||x||_{p_from}.

    Attained by a unit vector if p_to >= p_from, by (1, ..., 1) otherwise. A scalar tensor without
    gradient if an order is learnable.

    >>> conversion(math.inf, 2.0, 9), conversion(1.0, 2.0, 9)
    (3.0, 1.0)
    """
    start, end = value(p_from), value(p_to)
    if isinstance(start, Tensor) or isinstance(end, Tensor):
        exponent = torch.as_tensor(1 / end - 1 / start).detach().clamp(min=0)
        return torch.exp(math.log(dim) * exponent)
    return float(dim ** max(0.0, 1 / end - 1 / start))
