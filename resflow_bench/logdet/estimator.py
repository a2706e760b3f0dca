"""Hutchinson's estimate of a truncated or rouletted log-determinant: value, gradient and cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import NamedTuple, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor, nn

from resflow_bench.arguments import check_batch, check_count
from resflow_bench.jacobian import Jacobian, Map, Products, linearise
from resflow_bench.jacobian.blocks import BlockSize, block_diagonal, kind, side_by_side, size
from resflow_bench.logdet.expansions.expansion import Expansion, series_sign
from resflow_bench.logdet.expansions.taylor import Taylor
from resflow_bench.logdet.gradients import Attached, Gradient, Neumann
from resflow_bench.logdet.probes import Gaussian, Probe, Rademacher, Sphere
from resflow_bench.logdet.truncation import Fixed, Terms, Truncation
from resflow_bench.theory import RESIDUAL, Coefficients

P = ParamSpec("P")
R = TypeVar("R")

MOST_JOINED, MOST_JOINED_ELSEWHERE = BlockSize(2**12, 2**17), BlockSize(2**20, 2**22)
"""Sizes of a block, on a CPU and elsewhere, up to which the series of all blocks are evaluated as
one. Beyond, a product takes longer than it takes to start, and that all blocks are held at a time
takes more memory than it is worth; matrices that fit into the cache one by one may not do so all
together."""


class Estimate(NamedTuple):
    """The result of an estimator.

    g: g(x), (B, *event).
    value: the estimate of ln|det(I + J_g(x))|, (B,), nats, differentiable in x and g's parameters.
    n_products: vector-Jacobian products per example, those that the backward pass evaluates again
        included if the value has a graph; the mean over the batch where examples differ.
    standard_error: of the value about its mean, (B,), nats, from independent replicates inside the
        call; None where there are none. Its square is unbiased.
    """

    g: Tensor
    value: Tensor
    n_products: float
    standard_error: Tensor | None = None


class Drawn(NamedTuple):
    """A map linearised at x, and the random numbers of one estimate of its log-determinant.

    g: g(x). v: the probes, (m, B, *event). traced: the terms whose traces are exact, (B,) or 0.
    attached: whether the estimate has a graph.
    """

    g: Tensor
    jacobian: Jacobian
    v: Tensor
    terms: Terms
    traced: Tensor | float
    attached: bool


class Estimator(Protocol):
    """A function that estimates ln|det(I + J_g(x))| at x, (B, *event)."""

    def __call__(self, g: Map, x: Tensor, generator: torch.Generator | None = None) -> Estimate: ...


@dataclass(frozen=True)
class LogDetEstimator:
    """(1/m) sum_j sum_k w_k (-1)^(k+1)/k v_j^T J^k v_j,  with w and N from the truncation.

    Value and gradient come from the same draws; each is unbiased if the truncation is, and each
    carries its truncation's bias if it is not.

    Args:
        n_probes: m, at least 1, in one batched pass.
        products: the function that forms J; by default the fastest that g supports.
        gradient: the derivative that the backward pass returns. The value does not depend on it.
        n_traced: L; the first L traces are computed exactly instead, where J supports it.

    Properties: gradients with a weight for each example are correct. Memory does not grow with the
        number of terms. Cost: m N products, and those that `gradient` adds when a gradient is
        requested. `standard_error` is the spread over probes, where it is all of the error and the
        probes are independent: m >= 2 of `Gaussian`, `Rademacher` or `Sphere`, with `Fixed` terms
        of `Taylor`'s series. Orthogonal and Hadamard probes depend on each other, and a roulette's
        N is common to an example's probes: there it is None, and `Averaged` has one. Autocast has
        no effect: the powers of J are formed in the dtype of x and of g's parameters, because
        rounding to two bytes, compounded over N products, is a bias and not a noise. A float16 or
        bfloat16 x, as autocast returns it, is promoted to the dtype of g's own tensors if that is
        wider. (Call `backward` outside autocast, as torch requires.)
        `torch.compile` breaks its graph here and does not change the estimate. A flow evaluates the
        series of its small blocks as one (`joins`), and holds them all until then.

    Raises:
        ValueError: if `n_probes` is below 1, `n_traced` below 0 or above the terms of a `Fixed`
            truncation; when called, if J does not support so many exact traces.

    Source: Chen et al. (2019), Theorems 1 (value) and 2 (gradient, by the Neumann series). They
        return as the value the Neumann sum, whose mean is tr(J (I + J)^-1); here the value is the
        log-determinant's. The weight of term k in the gradient is w_k, not a second draw.

    >>> from resflow_bench.logdet import Fixed, Rademacher
    >>> estimator = LogDetEstimator(Rademacher(), Fixed(50), n_probes=2)
    >>> estimator(lambda x: 0.5 * x, torch.zeros(1, 4)).value.exp()  # det(1.5 I) = 1.5^4
    tensor([5.0625])
    """

    probe: Probe
    truncation: Truncation
    n_probes: int = 1
    products: Products = linearise
    gradient: Gradient = field(default_factory=Neumann)
    n_traced: int = 0
    expansion: Expansion = field(default_factory=Taylor)

    def __post_init__(self) -> None:
        check_count("LogDetEstimator", "n_probes", self.n_probes)
        check_count("LogDetEstimator", "n_traced", self.n_traced, 0)
        most = self.truncation.n_terms if isinstance(self.truncation, Fixed) else math.inf
        if self.n_traced > most:
            raise ValueError(
                "LogDetEstimator needs n_traced of at most the terms of a fixed truncation; got "
                f"n_traced={self.n_traced} with {self.truncation}. Lower `n_traced`."
            )

    def __call__(
        self,
        g: Map,
        x: Tensor,
        generator: torch.Generator | None = None,
        coefficients: Coefficients = RESIDUAL,
    ) -> Estimate:
        """The estimate, by default of ln|det(I + J)|; of another block's log-det, see `draw`."""
        return _untraced(self._estimate)(g, x, generator, coefficients)

    def draw(
        self,
        g: Map,
        x: Tensor,
        generator: torch.Generator | None = None,
        coefficients: Coefficients = RESIDUAL,
    ) -> Drawn:
        """Linearise g at x, and draw the random numbers of one estimate.

        Args:
            coefficients: c_k in the place of (-1)^(k+1)/k, for the same products.

        Raises:
            ValueError: coefficients of a series in J and -J with an expansion other than Taylor's.
        """
        return _untraced(self._draw)(g, x, generator, coefficients)

    def _draw(
        self, g: Map, x: Tensor, generator: torch.Generator | None, coefficients: Coefficients
    ) -> Drawn:
        check_input("LogDetEstimator", x)
        if coefficients.minus and not isinstance(self.expansion, Taylor):
            raise ValueError(
                f"a series in both J and -J is Taylor's; got {self.expansion}. Take "
                "`expansion=Taylor()`, or estimate the two log-dets one by one."
            )
        with torch.autocast(x.device.type, enabled=False):
            x = _promoted(x, g)
            value, jacobian = self.products(g, x)
            traces = jacobian.traces(self.n_traced) if self.n_traced > 0 else []
            traced = sum(
                coefficients.ratio(k) * series_sign(k) * trace / k
                for k, trace in enumerate(traces, start=1)
            )
            with torch.no_grad():
                v = self.probe.sample(self.n_probes, x, generator)  # (m, B, *event)
                terms = self.truncation.draw(x.shape[0], x, generator)
                if coefficients != RESIDUAL:
                    terms = terms.weighted(coefficients)
        attached = torch.is_grad_enabled() and (value.requires_grad or x.requires_grad)
        return Drawn(value, jacobian, v, terms, traced, attached)

    def joins(self, draw: Drawn) -> bool:
        """True if the series of several such draws are best evaluated together, by `total`."""
        if draw.attached and type(self.gradient) is not Neumann:
            return False
        most = MOST_JOINED if draw.v.is_cpu else MOST_JOINED_ELSEWHERE
        vector, matrix = size(draw.jacobian)
        is_small = self.n_probes * vector <= most.vector and matrix <= most.matrix
        return is_small and type(self.expansion) is Taylor

    def total(self, draws: Sequence[Drawn]) -> Tensor:
        """sum_i ln|det(I + J_i)|, (B,), of several draws, as `__call__` gives each.

        Where the J are alike their series are one, with a product in place of one for each.
        """
        return _untraced(self._total)(draws)

    def _total(self, draws: Sequence[Drawn]) -> Tensor:
        if len(draws) == 1:
            return self._log_det(draws[0]).value
        alike: dict[object, list[Drawn]] = {}
        for draw in draws:
            alike.setdefault(kind(draw.jacobian), []).append(draw)
        joined = [some[0] if len(some) == 1 else _as_one(some) for some in alike.values()]
        return reduce(torch.add, [self._log_det(draw).value for draw in joined])

    def _estimate(
        self, g: Map, x: Tensor, generator: torch.Generator | None, coefficients: Coefficients
    ) -> Estimate:
        draw = self._draw(g, x, generator, coefficients)
        log_det, n_products, forms = self._log_det(draw)
        error = standard_error(forms) if forms is not None and self._probes_are_all() else None
        return Estimate(draw.g, log_det, self.n_probes * n_products, error)

    def _probes_are_all(self) -> bool:
        """True if independent probes are all the randomness of an estimate, and there are two."""
        one_by_one = type(self.probe) in (Gaussian, Rademacher, Sphere)
        alone = type(self.truncation) is Fixed and type(self.expansion) is Taylor
        return self.n_probes >= 2 and one_by_one and alone

    def _log_det(self, draw: Drawn) -> Attached:
        """The estimate, its products a probe, and the estimate of each probe but for the traces."""
        given = draw.jacobian, draw.v, draw.terms, self.n_traced
        with torch.autocast(draw.v.device.type, enabled=False):
            if draw.attached:
                found = self.gradient.estimate(self.expansion, *given)
            else:
                sums = self.expansion.expand(*given, adjoint=False)
                found = Attached(sums.value, sums.n_products, sums.forms)
        return found._replace(value=found.value + draw.traced)


def _as_one(draws: Sequence[Drawn]) -> Drawn:
    """The draws of alike J as that of their block-diagonal J."""
    return Drawn(
        g=draws[0].g,  # of no use here
        jacobian=block_diagonal([draw.jacobian for draw in draws]),
        v=side_by_side([draw.v for draw in draws]),
        terms=Terms.of_blocks([draw.terms for draw in draws]),
        traced=sum(draw.traced for draw in draws),
        attached=any(draw.attached for draw in draws),
    )


def _untraced(function: Callable[P, R]) -> Callable[P, R]:
    """The function, outside `torch.compile`: derivatives taken inside a traced function came out
    wrong or not at all.
    """
    return torch.compiler.disable(function) if torch.compiler.is_compiling() else function


def check_input(owner: str, x: Tensor) -> None:
    """Refuse what is no batch, and calls inside a transform of `torch.func`.

    Raises:
        TypeError: x is no tensor, or a transform of `torch.func` runs.
        ValueError: x is not of floating point, has no batch axis, or an event of no numbers.
    """
    check_batch(owner, x, (...,))
    if 0 in x.shape[1:]:
        raise ValueError(f"{owner} needs an event of one number or more; got {tuple(x.shape)}.")
    if torch._C._functorch.peek_interpreter_stack() is not None:  # noqa: SLF001
        raise TypeError(
            f"{owner} takes derivatives of its own and cannot run inside `torch.func.grad`, "
            "`vmap`, `jacrev` or `jvp`. Use `torch.autograd.grad` of the sum over the batch: each "
            "example's log-det depends on that example alone."
        )


@dataclass(frozen=True)
class Averaged:
    """(1/n) sum_i q_i,  q_i independent draws of `estimator`: its bias, 1/n of its variance.

    Args:
        estimator: with a finite variance, or the error does not fall as 1/sqrt(n).

    Properties: n times the work. More probes of one draw are cheaper, since g is linearised once,
        but do not reduce the roulette's own variance, as averaging does. With n >= 2 the estimate
        has a `standard_error`, whatever the probes and the number of terms: the draws' spread.

    Raises:
        ValueError: if `n_draws` is below 1.

    >>> from resflow_bench.logdet import Fixed, Rademacher
    >>> one = LogDetEstimator(Rademacher(), Fixed(50))
    >>> Averaged(one, n_draws=3)(lambda x: 0.5 * x, torch.zeros(1, 4)).value.exp()
    tensor([5.0625])
    """

    estimator: Estimator
    n_draws: int

    def __post_init__(self) -> None:
        check_count("Averaged", "n_draws", self.n_draws)

    def __call__(self, g: Map, x: Tensor, generator: torch.Generator | None = None) -> Estimate:
        draws = [self.estimator(g, x, generator) for _ in range(self.n_draws)]
        values = torch.stack([draw.value for draw in draws])
        error = standard_error(values) if self.n_draws >= 2 else None
        return Estimate(draws[0].g, values.mean(0), sum(draw.n_products for draw in draws), error)


def standard_error(values: Tensor) -> Tensor:
    """s/sqrt(n), (B,), of the mean of n >= 2 independent values, (n, B); a constant."""
    n, values = len(values), values.detach()
    return ((values - values.mean(0)).square().sum(0) / (n * (n - 1))).sqrt()


def _promoted(x: Tensor, g: Map) -> Tensor:
    """x, in the dtype of g's tensors if x is of two bytes and they are wider."""
    if x.dtype not in (torch.float16, torch.bfloat16) or not isinstance(g, nn.Module):
        return x
    own = [t.dtype for t in (*g.parameters(), *g.buffers()) if t.is_floating_point()]
    return x.to(reduce(torch.promote_types, own, x.dtype))
