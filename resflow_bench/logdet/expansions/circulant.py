"""A control variate for images: quadratic forms of a convolution with circular padding."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from resflow_bench.arguments import check_count
from resflow_bench.jacobian import Jacobian
from resflow_bench.jacobian.circulant import Circulant, circulant
from resflow_bench.logdet.expansions.expansion import (
    Expanded,
    Expansion,
    Incremental,
    series_sign,
    series_signs,
)
from resflow_bench.logdet.expansions.taylor import Taylor
from resflow_bench.logdet.truncation import Terms


@dataclass(frozen=True)
class CirculantControlled:
    """q - sum_k w_k c_k ((1/m) sum_j v_j^T C^k v_j - tr C^k),  L < k <= n,  q that of `expansion`.

    C is J with circular padding and each channel's mean slope over the pixels of an example: see
    `jacobian.circulant`. c_k = (-1)^(k+1)/k, w_k the weights of the truncation, n = `degree`, L =
    `n_traced`. From the adjoint T^T v_j is taken off, T = sum_k w_k (-1)^(k+1) C^(k-1), L < k <= n,
    and the gradient of tr(T J), of J itself and exact, is added. That is for branches of two
    convolutions, or of three with a 1 x 1 kernel in the middle (`weighted_trace`); the gradient of
    any other J is that of `expansion`.

    Properties: as unbiased as `expansion`: w and C do not depend on v, and E[v^T C^k v] = tr C^k
        with any probe. Each term is that of J^k - C^k, in the roulette too, and its gradient that
        of (J^(k-1) - C^(k-1)) dJ: on a trained flow (patches of 3 x 16 x 16, `tuned`, hierarchical
        probes) 0.05 of the gradient's variance is left at L = 1 and 0.11 at L = 2. Cost: a Fourier
        transform of each probe, and n products of matrices (C, C) for each frequency and example,
        however many probes and hidden channels there are; twice that for a gradient.

    Raises:
        ValueError: if `degree` is below 1; when called, if J is not made of convolutions.

    >>> from resflow_bench.layers import conv_branch
    >>> from resflow_bench.logdet import Fixed, LogDetEstimator, Rademacher
    >>> branch = conv_branch(1, (4, 4), (3, 3), (8,), 0.9, generator=torch.Generator())
    >>> estimator = LogDetEstimator(Rademacher(), Fixed(8), expansion=CirculantControlled())
    >>> estimator(branch, torch.zeros(3, 1, 4, 4)).value.shape
    torch.Size([3])
    """

    expansion: Expansion = field(default_factory=Taylor)
    degree: int = 8

    def __post_init__(self) -> None:
        check_count("CirculantControlled", "degree", self.degree)

    def __str__(self) -> str:
        return f"circulant({self.expansion}, {self.degree})"

    @torch.no_grad()
    def expand(
        self, jacobian: Jacobian, v: Tensor, terms: Terms, n_traced: int, adjoint: bool
    ) -> Expanded:
        expanded = self.expansion.expand(jacobian, v, terms, n_traced, adjoint)
        weights, c = terms.weights[: self.degree], _control(jacobian, v)
        signs = series_signs(weights, n_traced)
        k = torch.arange(1, len(weights) + 1, dtype=weights.dtype, device=weights.device)
        known = c.series(weights * (signs / k[:, None]))
        control = known.form(v).mean(0) - known.trace()
        expanded = expanded._replace(value=expanded.value - control.to(expanded.value.dtype))
        if not adjoint:
            return expanded
        t = c.polynomial(weights * signs)
        return expanded.controlled(t, jacobian, v)

    @torch.no_grad()
    def increments(self, jacobian: Jacobian, v: Tensor, n_terms: int, n_traced: int = 0) -> Tensor:
        """As `Incremental`, each of the first `degree` without its control.

        Raises:
            TypeError: if `expansion` has no increments.
        """
        if not isinstance(self.expansion, Incremental):
            raise TypeError(
                f"increments need an expansion that returns its own; got {self.expansion}. Take "
                "`CirculantControlled(Taylor())`."
            )
        found = self.expansion.increments(jacobian, v, n_terms, n_traced)
        known = _control(jacobian, v)
        for k in range(n_traced + 1, min(self.degree, len(found)) + 1):
            power = known.power(k)
            found[k - 1] -= (series_sign(k) / k) * (power.form(v) - power.trace())
        return found


def _control(jacobian: Jacobian, v: Tensor) -> Circulant:
    return circulant(jacobian, (v.shape[-2], v.shape[-1]))
