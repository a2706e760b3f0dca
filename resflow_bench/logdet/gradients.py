"""The gradient of the estimated log-determinant: whose derivative it is, and what its graph holds.

A gradient is handed the draws (v, w) and v -> v^T J; it chooses how the value depends on theta.
A new one is a new class with this verb, given to `LogDetEstimator` as `gradient`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from resflow_bench.jacobian.chain import Chain
from resflow_bench.jacobian.products import Vjp
from resflow_bench.jacobian.stages import ByMatrix, BySlope
from resflow_bench.logdet.expansions import Expansion, Taylor, inner
from resflow_bench.logdet.truncation import Terms

P = ParamSpec("P")
R = TypeVar("R")


class Attached(NamedTuple):
    """value: (B,), nats, differentiable; n_products: vector-Jacobian products a probe."""

    value: Tensor
    n_products: float


class Gradient(Protocol):
    """How the estimate is differentiated. The value is the expansion's, to the last bit."""

    def estimate(
        self, expansion: Expansion, vjp: Vjp, v: Tensor, terms: Terms, n_traced: int
    ) -> Attached:
        """The expansion's value, with a graph behind it.

        Args:
            expansion: of log(I + J).
            vjp: v -> v^T J, its graph attached to x and to g's parameters.
            v: (m, B, *event), constant.
            terms: w_k and N, constant.
            n_traced: how many powers of J are dealt with elsewhere.
        """
        ...


@dataclass(frozen=True)
class Neumann:
    """(1/m) sum_j < s_j^T dJ , v_j >,    s_j the expansion's adjoint, held constant.

    For Taylor's expansion s_j^T = sum_k (-1)^(k-1) w_k v_j^T J^(k-1), whose mean gives
    tr((I + J)^-1 dJ) = d ln|det(I + J)| if E w_k = 1. It is *not* the derivative of the estimate:
    of tr(J^k dJ)'s k + 1 places for the probe, all equal in the mean, it takes one.

    Properties: unbiased if the truncation is; the weight of J^(k-1) is that of term k, whose
    survival P(N >= k) it therefore shares. The chain of N products leaves no graph, and the last
    product none but s: it is evaluated in the backward pass. Memory: s, v and what g keeps for its
    linearisation, whatever N. Cost: N + 2 products a probe and, for the gradient in J's matrices,
    about one more. Through matrices and slopes the two are s^T J and J v; through anything else
    s^T J twice, and autograd's way back.

    Its own derivative (`create_graph=True`) is that of the surrogate, not of the log-det: for
    second derivatives take the exact log-det.

    Source: Chen et al. (2019), "Residual Flows for Invertible Generative Modeling", Theorem 2.

    >>> from resflow_bench.logdet import Fixed, LogDetEstimator, Rademacher
    >>> a = torch.tensor(0.5, requires_grad=True)
    >>> estimator = LogDetEstimator(Rademacher(), Fixed(40), gradient=Neumann())
    >>> estimator(lambda x: a * x, torch.zeros(1, 3)).value.backward()
    >>> round(a.grad.item(), 4)  # d/da 3 ln(1 + a) = 3 / 1.5
    2.0
    """

    def __str__(self) -> str:
        return "neumann"

    def estimate(
        self, expansion: Expansion, vjp: Vjp, v: Tensor, terms: Terms, n_traced: int
    ) -> Attached:
        """The value, and one more product for the gradient."""
        value, adjoint, n_products = expansion.expand(vjp, v, terms, n_traced, adjoint=True)
        assert adjoint is not None  # asked for
        if isinstance(vjp, Chain) and all(isinstance(p, ByMatrix | BySlope) for p in vjp.pulls):
            numbers = [p.slope if isinstance(p, BySlope) else p.weight for p in vjp.pulls]  # type: ignore[attr-defined]
            return Attached(_Bilinear.apply(value, adjoint, v, vjp, *numbers), n_products + 2)
        surrogate = _again(lambda s: inner(vjp(s), v), adjoint)
        return Attached(value + (surrogate - surrogate.detach()), n_products + 2)


@dataclass(frozen=True)
class Series:
    """(1/m) sum_j sum_k w_k (-1)^(k+1)/k d(v_j^T J^k v_j): the derivative of the estimate itself.

    Since d(v^T J^k v) = sum_{i<k} v^T J^i dJ J^(k-1-i) v, it averages the k places for the probe
    of which `Neumann` takes one; its variance is another, by a few percent on small branches.

    Properties: unbiased if the truncation is. Memory: besides the weights, (N, B), what is kept
        between the passes does not depend on N, and the backward pass adds 2 sqrt(N) vectors
        shaped like v and the graph of one product: it evaluates the chain again in sqrt(N)
        segments, and each of them once more term by term. Cost: 5 N products a probe, less one a
        segment (N for the value, N for the graph, the rest in a backward pass; `n_products` counts
        them all), and the backward passes of N products.

    Source: Chen et al. (2019), whose "basic" gradient this is, at the memory of their Neumann
        gradient; segments after Chen, Xu, Zhang and Guestrin (2016), "Training Deep Nets with
        Sublinear Memory Cost".

    >>> from resflow_bench.logdet import Fixed, LogDetEstimator, Rademacher
    >>> a = torch.tensor(0.5, requires_grad=True)
    >>> estimator = LogDetEstimator(Rademacher(), Fixed(40), gradient=Series())
    >>> estimator(lambda x: a * x, torch.zeros(1, 3)).value.backward()
    >>> round(a.grad.item(), 4)
    2.0
    """

    def __str__(self) -> str:
        return "series"

    def estimate(
        self, expansion: Expansion, vjp: Vjp, v: Tensor, terms: Terms, n_traced: int
    ) -> Attached:
        """The value, its graph to be made again in the backward pass."""
        if not isinstance(expansion, Taylor):
            raise TypeError(
                f"the gradient `Series` is that of Taylor's series; got {expansion}. Take "
                "`gradient=Neumann()`, which differentiates any expansion."
            )
        n_terms = len(terms.weights)
        if n_terms <= n_traced:  # zero, but with a graph
            return Neumann().estimate(expansion, vjp, v, terms, n_traced)
        value, _, n_products = expansion.expand(vjp, v, terms, n_traced, adjoint=False)
        weights = terms.weights.view(*terms.weights.shape, *[1] * (v.ndim - 2))  # (N, B, 1...)
        length = math.isqrt(n_terms - 1) + 1  # ceil(sqrt(N))
        starts = range(n_terms, 0, -length)

        # Horner's rule, so that one vector is all that goes from term to term:
        # r <- (r + c_k v)^T J for k = N..1, from r = 0, ends as (sum_k c_k v^T J^k)^T.
        def term(r: Tensor, k: int) -> Tensor:
            if k > n_traced:
                r = r.addcmul(v, weights[k - 1], value=_sign(k) / k)
            return vjp(r)

        def segment(r: Tensor, last: int) -> Tensor:
            for k in range(last, max(last - length, 0), -1):
                r = _again(term, r, k)
            return r

        def chain(r: Tensor) -> Tensor:
            for last in starts:
                r = _again(segment, r, last)
            return inner(r, v)

        surrogate = _again(chain, torch.zeros_like(v))
        n_products += 4 * n_terms - len(starts)
        return Attached(value + (surrogate - surrogate.detach()), n_products)


def constant(expansion: Expansion, vjp: Vjp, v: Tensor, terms: Terms, n_traced: int) -> Attached:
    """The expansion's value as a constant, for those who differentiate nothing."""
    value, _, n_products = expansion.expand(vjp, v, terms, n_traced, adjoint=False)
    return Attached(value, n_products)


class _Bilinear(torch.autograd.Function):
    """The value as it is, whose gradient is that of f = (1/m) sum_j s_j^T J v_j, (B,).

    Of a stage of J = S_L ... S_1, f sees b^T S a with a = S_(l-1) ... S_1 v from the one side and
    b^T = s^T S_L ... S_(l+1) from the other, so that in a matrix it is b a^T and in slopes b * a.
    Nothing is evaluated before it is asked for, and s^T J itself never is.
    """

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, s: Tensor, v: Tensor, chain: Chain, *numbers: Tensor
    ) -> Tensor:
        ctx.save_for_backward(s, v, *numbers)
        ctx.expansions = [p.expansion if isinstance(p, BySlope) else 0 for p in chain.pulls]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        s, v, *numbers = ctx.saved_tensors
        wanted = ctx.needs_input_grad[4:]
        b = s * (upstream / len(s)).view(-1, *[1] * (s.ndim - 2))
        if torch.is_grad_enabled():  # and so a derivative of this one is asked for
            numbers = [number.view_as(number) for number in numbers]  # not through each other
            f = (Chain(_pulls(numbers, ctx.expansions))(b) * v).sum()
            asked = [number for number, want in zip(numbers, wanted, strict=True) if want]
            found = iter(torch.autograd.grad(f, asked, create_graph=True))
        else:
            found = iter(_outer_products(_pulls(numbers, ctx.expansions), b, v, wanted))
        return None, None, None, None, *(next(found) if want else None for want in wanted)


def _pulls(numbers: Sequence[Tensor], expansions: Sequence[int]) -> list[ByMatrix | BySlope]:
    """Slopes where there is an expansion, matrices where it is 0."""
    return [
        BySlope(number, expansion) if expansion else ByMatrix(number)
        for number, expansion in zip(numbers, expansions, strict=True)
    ]


def _outer_products(
    pulls: Sequence[ByMatrix | BySlope], b: Tensor, v: Tensor, wanted: Sequence[bool]
) -> list[Tensor]:
    """d/dS_j of sum b^T S_L ... S_1 v, for each j that is wanted; b and v are (m, B, *event).

    v is pushed from the right, S_(j-1) ... S_1 v, as far as is needed, then b pulled to meet it.
    """
    if len(b) == 1:
        b, v = b[0], v[0]
    right = [v]
    for pull in pulls[:-1]:
        right.append(pull.push(right[-1]))
    found: list[Tensor] = []
    for j, pull in reversed(list(enumerate(pulls))):
        a = right.pop()
        if wanted[j] and isinstance(pull, ByMatrix):
            found.append(b.flatten(0, -2).mT @ a.flatten(0, -2))
        elif wanted[j] and isinstance(pull, BySlope):
            n = pull.slope.ndim
            a = torch.cat([a] * pull.expansion, 1 - n) if pull.expansion > 1 else a
            found.append(b * a if b.ndim == n else (b * a).sum(0))
        if j > 0:
            b = pull(b)
    return found[::-1]


def _again(function: Callable[P, R], *arguments: P.args, **_: P.kwargs) -> R:
    """function(*arguments), keeping the arguments alone: the rest is made again for the gradient.

    Nothing in a chain is random, so no state of a generator has to be kept.
    """
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def _sign(k: int) -> float:
    """(-1)^(k+1)."""
    return 1.0 if k % 2 else -1.0
