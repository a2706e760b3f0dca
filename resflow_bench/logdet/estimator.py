"""Hutchinson's estimate of a truncated or rouletted log-determinant: value, gradient and cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from resflow_bench.logdet.probes import Probe
from resflow_bench.logdet.products import Map, Products, linearise
from resflow_bench.logdet.truncation import Truncation


class Estimate(NamedTuple):
    """What an estimator returns.

    g: g(x), (B, *event).
    value: the estimate of ln|det(I + J_g(x))|, (B,), nats, differentiable in x and g's parameters.
    n_products: vector-Jacobian products per example that the call evaluated.
    """

    g: Tensor
    value: Tensor
    n_products: int


class Estimator(Protocol):
    """Anything that turns (g, x, generator) into an `Estimate`."""

    def __call__(self, g: Map, x: Tensor, generator: torch.Generator | None = None) -> Estimate:
        """Estimate ln|det(I + J_g(x))|."""
        ...


@dataclass(frozen=True)
class LogDetEstimator:
    """(1/m) sum_j sum_k w_k (-1)^(k+1)/k v_j^T J^k v_j,  with w and N from the truncation.

    The gradient is that of

        (1/m) sum_j < s_j^T J , v_j >,    s_j^T = sum_k (-1)^(k-1) w_k v_j^T J^(k-1)  held constant,

    whose mean is tr((I + J)^-1 dJ) = d ln|det(I + J)|, the Neumann series with the same weights.
    The value and the gradient come from one chain of products, so value and gradient are each
    unbiased if the truncation is, and each carries its truncation's bias if it is not.

    Args:
        probe: who draws v.
        truncation: how many terms, which weights.
        n_probes: m, at least 1, in one batched pass.
        products: how v^T J is formed; by default the fastest way that g admits.

    Properties: per-example upstream gradients are honoured. The terms are computed without a
        graph, so memory does not grow with their number: the graph holds one evaluation of g and
        one product. Cost: m N products, and m more when a gradient is asked for.

    Raises:
        ValueError: if `n_probes` is below 1.

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

    def __post_init__(self) -> None:
        if self.n_probes < 1:
            raise ValueError(
                f"LogDetEstimator needs n_probes of at least 1; got {self.n_probes}. "
                "Raise `n_probes`."
            )

    def __call__(self, g: Map, x: Tensor, generator: torch.Generator | None = None) -> Estimate:
        """Estimate ln|det(I + J_g(x))| at x, (B, *event), with fresh probes and a fresh N."""
        value, vjp = self.products(g, x)
        with_gradient = torch.is_grad_enabled() and (value.requires_grad or x.requires_grad)
        with torch.no_grad():
            v = self.probe.sample(self.n_probes, x, generator)  # (m, B, *event)
            weights = self.truncation.draw(x.shape[0], x, generator)  # (N, B)
            weights = weights.view(*weights.shape, *[1] * (x.ndim - 1))  # (N, B, 1...)
            power = v
            series, neumann = torch.zeros_like(v), torch.zeros_like(v)
            for k, weight in enumerate(weights, start=1):
                sign = 1.0 if k % 2 else -1.0
                if with_gradient:
                    neumann.addcmul_(power, weight, value=sign)
                power = vjp(power)  # v^T J^k
                series.addcmul_(power, weight, value=sign / k)
            log_det = _inner(series, v)
        if with_gradient:
            surrogate = _inner(vjp(neumann), v)
            log_det = log_det + (surrogate - surrogate.detach())
        n_products = self.n_probes * (len(weights) + with_gradient)
        return Estimate(value, log_det, n_products)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> over the event, averaged over probes: (m, B, *event) x2 -> (B,)."""
    product = a * b
    return (product.flatten(2).sum(-1) if product.ndim > 2 else product).mean(0)
