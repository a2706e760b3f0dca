"""Hutchinson's estimate of a truncated or rouletted log-determinant: value, gradient and cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import reduce
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from resflow_bench.jacobian.products import Map, Products, Vjp, linearise
from resflow_bench.logdet.expansions import Expansion, Taylor
from resflow_bench.logdet.gradients import Gradient, Neumann, constant
from resflow_bench.logdet.probes import Probe
from resflow_bench.logdet.truncation import Fixed, Truncation


class Estimate(NamedTuple):
    """What an estimator returns.

    g: g(x), (B, *event).
    value: the estimate of ln|det(I + J_g(x))|, (B,), nats, differentiable in x and g's parameters.
    n_products: vector-Jacobian products per example, those that the backward pass evaluates again
        included if the value has a graph; the mean over the batch where examples differ.
    """

    g: Tensor
    value: Tensor
    n_products: float


class Estimator(Protocol):
    """Anything that turns (g, x, generator) into an `Estimate`."""

    def __call__(self, g: Map, x: Tensor, generator: torch.Generator | None = None) -> Estimate:
        """Estimate ln|det(I + J_g(x))|."""
        ...


@dataclass(frozen=True)
class LogDetEstimator:
    """(1/m) sum_j sum_k w_k (-1)^(k+1)/k v_j^T J^k v_j,  with w and N from the truncation.

    The traces of the first `n_traced` powers are taken exactly instead, where g admits it.

    Value and gradient come from the same draws; each is unbiased if the truncation is, and each
    carries its truncation's bias if it is not.

    Args:
        probe: who draws v.
        truncation: how many terms, which weights.
        n_probes: m, at least 1, in one batched pass.
        products: how v^T J is formed; by default the fastest way that g admits.
        gradient: what the backward pass returns; by default the Neumann series, whose graph holds
            one product. The value does not depend on it.

    Properties: per-example upstream gradients are honoured. Memory does not grow with the number
        of terms. Cost: m N products, and what `gradient` adds when one is asked for. Autocast does
        not reach it: the powers of J are formed in the dtype of x and of g's parameters, because
        half a word's rounding, raised to the power N, is a bias and not a noise. A float16 or
        bfloat16 x, as autocast leaves behind, is promoted to the dtype of g's own tensors if that
        is wider. (Call `backward` outside autocast, as torch asks of everyone.) `torch.compile`
        breaks its graph here and leaves the estimate as it is.

    Raises:
        ValueError: if `n_probes` is below 1, `n_traced` below 0 or above the terms of a `Fixed`
            truncation; when called, if g does not admit so many exact traces.

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
        if self.n_probes < 1:
            raise ValueError(
                f"LogDetEstimator needs n_probes of at least 1; got {self.n_probes}. "
                "Raise `n_probes`."
            )
        most = self.truncation.n_terms if isinstance(self.truncation, Fixed) else math.inf
        if not 0 <= self.n_traced <= most:
            raise ValueError(
                "LogDetEstimator needs 0 <= n_traced <= the terms of a fixed truncation; got "
                f"n_traced={self.n_traced} with {self.truncation}. Lower `n_traced`."
            )

    def __call__(self, g: Map, x: Tensor, generator: torch.Generator | None = None) -> Estimate:
        """Estimate ln|det(I + J_g(x))| at x, (B, *event), with fresh probes and a fresh N."""
        estimate = self._estimate
        if torch.compiler.is_compiling():
            # Not traced: derivatives taken inside a traced function came out wrong or not at all.
            estimate = torch.compiler.disable(estimate)
        return estimate(g, x, generator)

    def _estimate(self, g: Map, x: Tensor, generator: torch.Generator | None) -> Estimate:
        with torch.autocast(x.device.type, enabled=False):
            x = _promoted(x, g)
            value, vjp = self.products(g, x)
            traced = _traced(vjp, self.n_traced)
            with torch.no_grad():
                v = self.probe.sample(self.n_probes, x, generator)  # (m, B, *event)
                terms = self.truncation.draw(x.shape[0], x, generator)
            differentiate = torch.is_grad_enabled() and (value.requires_grad or x.requires_grad)
            estimate = self.gradient.estimate if differentiate else constant
            log_det, n_products = estimate(self.expansion, vjp, v, terms, self.n_traced)
        return Estimate(value, log_det + traced, self.n_probes * n_products)


def _traced(vjp: Vjp, n_traced: int) -> Tensor | float:
    """sum_{k<=L} (-1)^(k+1) tr J^k/k, (B,)."""
    if n_traced == 0:
        return 0.0
    if not hasattr(vjp, "traces"):
        raise ValueError(
            f"n_traced={n_traced} needs products with exact traces, which a residual branch of "
            "this package has (`cached`), and J as a matrix (`dense`); got "
            f"{type(vjp).__name__}. Set `n_traced=0` or `products=dense`."
        )
    total = 0.0
    for k, trace in enumerate(vjp.traces(n_traced), start=1):
        total = total + (trace if k % 2 else -trace) / k
    return total


def _promoted(x: Tensor, g: Map) -> Tensor:
    """x, in the dtype of g's tensors if x is of two bytes and they are wider."""
    if x.dtype not in (torch.float16, torch.bfloat16) or not isinstance(g, nn.Module):
        return x
    own = [t.dtype for t in (*g.parameters(), *g.buffers()) if t.is_floating_point()]
    return x.to(reduce(torch.promote_types, own, x.dtype))
