"""The series in J whose terms a probe evaluates, and the vector that its gradient is taken with.

An expansion is handed the draws (v, w) and v -> v^T J. A new one is a new class with this verb,
given to `LogDetEstimator` as `expansion`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from resflow_bench.jacobian.products import Vjp
from resflow_bench.logdet.truncation import Terms

COMPACT_AT = 0.8
"""Examples that have all their terms leave the batch once they are a fifth of it: to cut a batch
takes about as long as a small product."""


HEADROOM = 2.0**60
"""By which v is multiplied in float32, to no effect on any digit: J^k v may then be 1e-56 before
its numbers are subnormal, which a CPU multiplies at a tenth of its speed or less."""

PACK_FOR = 6
"""Products from which a matrix is packed: to pack it takes the time that about four save."""

LOOK_EVERY = 8
"""Terms after which a CPU looks whether J^k v is below what float32 can hold, and so is zero."""


class Expanded(NamedTuple):
    """value: (B,), nats, constant. n_products: vector-Jacobian products a probe, per example.

    adjoint: s_j, (m, B, *event), constant, for which d value = (1/m) sum_j s_j^T dJ v_j in the
        mean over probes; None unless it was asked for.
    """

    value: Tensor
    adjoint: Tensor | None
    n_products: float


class Expansion(Protocol):
    """sum_k w_k Delta_k, where Delta_1 + Delta_2 + ... = (1/m) sum_j v_j^T log(I + J) v_j."""

    def expand(self, vjp: Vjp, v: Tensor, terms: Terms, n_traced: int, adjoint: bool) -> Expanded:
        """The weighted sum, without the parts of degree 1 to `n_traced` in J.

        Args:
            vjp: v -> v^T J.
            v: (m, B, *event).
            terms: w_k and N.
            n_traced: how many powers of J are dealt with elsewhere.
            adjoint: whether to compute it.
        """
        ...


@dataclass(frozen=True)
class Taylor:
    """Delta_k = (-1)^(k+1)/k v^T J^k v,    s^T = sum_k w_k (-1)^(k-1) v^T J^(k-1).

    The adjoint's mean is that of sum_k w_k (-J)^(k-1) -> (I + J)^-1: the Neumann series.

    Args:
        tail: the type of the products that make J^2 v and on; None is that of v. Sums are kept in
            v's type. Half the bits make a product several times cheaper, on hardware that has
            units for it, and what they round is small once the first trace is taken exactly: a
            bias, small and not zero, to be measured. "tf32" leaves them float32 in memory and lets
            a GPU's tensor cores round the factors to ten bits of mantissa. All other products are
            as torch's global settings, which are put back, have them.

    Properties: unbiased if E w_k = 1, but for what `tail` rounds. Cost: a product a term, cheaper
        where the outer matrices of two in a row can be one (`layers.Chain.cycle`). The work of a
        batch is the sum of its N if `vjp` can `select`, since examples that have had all their
        terms leave it, and B max N if not. Memory: four vectors shaped like v.

    Raises:
        ValueError: if `tail` is neither a type, "tf32" nor None; when called, if the products
            cannot be had in it: TF32 is of CUDA GPUs since compute capability 8.0, in float32.

    Source: Chen et al. (2019), "Residual Flows for Invertible Generative Modeling", Theorems 1, 2.

    >>> str(Taylor()), str(Taylor(torch.bfloat16)), str(Taylor("tf32"))
    ('taylor', 'taylor(bfloat16)', 'taylor(tf32)')
    """

    tail: torch.dtype | Literal["tf32"] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.tail, str) and self.tail != "tf32":
            raise ValueError(
                f"Taylor needs a tail that is a torch type or `tf32`; got {self.tail!r}. Set "
                "`tail=None`."
            )

    def __str__(self) -> str:
        return f"taylor({str(self.tail).removeprefix('torch.')})" if self.tail else "taylor"

    @torch.no_grad()
    def expand(self, vjp: Vjp, v: Tensor, terms: Terms, n_traced: int, adjoint: bool) -> Expanded:
        if self.tail == "tf32":
            _check_tf32(v)
        work = longest_first(vjp, v, terms)
        v, weights = work.v, work.weights
        if not work.n_active:
            return work.expanded(v.new_zeros(v.shape[1]), torch.zeros_like(v) if adjoint else None)
        enter, loop, leave = cycle(work.vjp)
        scale = headroom(v)
        power = v * scale
        series = rest = v[:0]  # to be shaped by the first product
        for k, n in enumerate(work.n_active, start=1):
            if cut := n < power.shape[1]:
                power = power[:, :n].contiguous()
                enter, loop = part(enter, n), part(loop, n)
            if self.tail is not None and k == (2 if n_traced == 0 else 1):
                enter, loop = _lowered(enter, self.tail), _lowered(loop, self.tail)
                power = power if self.tail == "tf32" else power.to(self.tail)
            if k == 2 or cut:
                loop = _packed(loop, power, work.n_active.count(n))
            if k == 1:
                power = enter(power)
                series = v.new_zeros((*v.shape[:2], *power.shape[2:]))
                rest = torch.zeros_like(series) if adjoint else rest
            else:
                if adjoint and k > n_traced:
                    rest[:, :n].addcmul_(power, weights[k - 1, :n], value=sign(k))
                power = loop(power)
            if k > n_traced:
                series[:, :n].addcmul_(power, weights[k - 1, :n], value=sign(k) / k)
            power = kept(power, k)
        value = inner(leave(series.div_(scale)), v)
        if not adjoint:
            return work.expanded(value, None)
        found = leave(rest.div_(scale))
        return work.expanded(value, found if n_traced else torch.addcmul(found, v, weights[0]))

    @torch.no_grad()
    def increments(self, vjp: Vjp, v: Tensor, n_terms: int, n_traced: int = 0) -> Tensor:
        """Delta_1, ..., Delta_N of each probe, (N, m, B), zero up to `n_traced`; in v's type."""
        scale = headroom(v)
        power, terms = v * scale, []
        for k in range(1, n_terms + 1):
            power = vjp(power)
            form = (power * v).flatten(2).sum(2) if v.ndim > 2 else power * v
            found = torch.zeros_like(form) if k <= n_traced else form * (sign(k) / (k * scale))
            terms.append(found)
            power = kept(power, k)
        return torch.stack(terms)


class Work(NamedTuple):
    """A batch with the examples of most terms first, so that those that have theirs can leave.

    vjp: v -> v^T J of the examples in this order.
    v: (m, B, *event). weights: (N, B, 1, ...).
    n_active: of how many examples, the first ones, term k = 1..N is evaluated; falls with k.
    order: which examples they are, (B,); None if nobody was moved.
    """

    vjp: Vjp
    v: Tensor
    weights: Tensor
    n_active: list[int]
    order: Tensor | None

    def expanded(self, value: Tensor, adjoint: Tensor | None) -> Expanded:
        """What was found, (B,) and (m, B, *event), in the order in which the examples came."""
        if self.order is not None:
            back = torch.argsort(self.order)
            value = value[back]
            adjoint = adjoint if adjoint is None else adjoint.index_select(1, back)
        return Expanded(value, adjoint, sum(self.n_active) / max(1, self.v.shape[1]))


def longest_first(vjp: Vjp, v: Tensor, terms: Terms) -> Work:
    """The batch in the order of falling N, if `vjp` can `select` and it pays; else as it is."""
    weights = terms.weights.view(*terms.weights.shape, *[1] * (v.ndim - 2))  # (N, B, 1...)
    n = v.shape[1]
    n_active = [n] * len(weights)
    select = getattr(vjp, "select", None)
    if select is not None and n > 0:
        for k in range(len(weights)):
            needed = int((terms.n_terms > k).sum())
            n = needed if needed <= COMPACT_AT * n else n
            n_active[k] = n
    if n == v.shape[1]:
        return Work(vjp, v, weights, n_active, None)
    assert select is not None  # or n had not changed
    order = torch.from_numpy(np.argsort(-terms.n_terms, kind="stable")).to(v.device)
    return Work(select(order), v.index_select(1, order), weights[:, order], n_active, order)


def cycle(vjp: Vjp) -> tuple[Vjp, Vjp, Vjp]:
    """(enter, loop, leave) with v^T J^k = leave(loop^(k-1)(enter(v))): the cheapest known."""
    found: tuple[Vjp, Vjp, Vjp] = (vjp, vjp, lambda v: v)
    if hasattr(vjp, "cycle"):
        found = vjp.cycle()
    return found


def part(vjp: Vjp, n: int) -> Vjp:
    """v -> v^T J of the first n examples, of a `vjp` that can `select`."""
    first: Vjp = vjp.select(slice(n))  # type: ignore[attr-defined]
    return first


def _lowered(vjp: Vjp, dtype: torch.dtype | Literal["tf32"]) -> Vjp:
    if dtype == "tf32":
        return _InTf32(vjp)
    if not hasattr(vjp, "to"):
        raise ValueError(
            f"Taylor(tail={dtype}) needs products that can be rounded, which a residual branch of "
            f"this package has (`cached`); got {type(vjp).__name__}. Set `tail=None`."
        )
    lowered: Vjp = vjp.to(dtype)
    return lowered


@dataclass(frozen=True)
class _InTf32:
    """Products whose factors a GPU's tensor cores may round to ten bits of mantissa."""

    vjp: Vjp

    def __call__(self, v: Tensor) -> Tensor:
        with tf32():
            return self.vjp(v)

    def select(self, examples: slice) -> _InTf32:
        return _InTf32(self.vjp.select(examples))  # type: ignore[attr-defined]


@contextmanager
def tf32() -> Iterator[None]:
    """TF32 allowed by torch's global settings, which are then put back as they were."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def _check_tf32(v: Tensor) -> None:
    if not (
        v.is_cuda
        and v.dtype == torch.float32
        and torch.cuda.get_device_capability(v.device) >= (8, 0)
    ):
        raise ValueError(
            "Taylor(tail=tf32) needs float32 on a CUDA GPU of compute capability 8.0 or more; got "
            f"{str(v.dtype).removeprefix('torch.')} on {v.device}. Set `tail=None`."
        )


def _packed(loop: Vjp, power: Tensor, n_products: int) -> Vjp:
    """The same, faster for `n_products` more vectors shaped like `power`, where that pays."""
    if n_products < PACK_FOR or not hasattr(loop, "packed"):
        return loop
    packed: Vjp = loop.packed(power.shape[0] * power.shape[1])
    return packed


def inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> over the event, averaged over probes: (m, B, *event) x2 -> (B,)."""
    product = a * b
    return (product.flatten(2).sum(-1) if product.ndim > 2 else product).mean(0)


def headroom(v: Tensor) -> float:
    """By what v is multiplied before its powers are taken."""
    return HEADROOM if v.dtype == torch.float32 else 1.0


def kept(power: Tensor, k: int) -> Tensor:
    """v^T J^k with its headroom; zero once, without it, no number of it would be left."""
    if k % LOOK_EVERY or not power.is_cpu or power.numel() == 0:
        return power
    smallest = torch.finfo(power.dtype).tiny * HEADROOM / 2**24
    return torch.zeros_like(power) if _largest(power) < smallest else power


def _largest(v: Tensor) -> float:
    """max |v_i|, in one pass."""
    low, high = torch.aminmax(v)
    return max(-float(low), float(high))


def sign(k: int) -> float:
    """(-1)^(k+1)."""
    return 1.0 if k % 2 else -1.0
