"""The steps of a continuous flow as the blocks of a residual flow."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from resflow_bench.flows import ResidualBlock, ResidualFlow
from resflow_bench.layers import BoundedMap, Uncertified
from resflow_bench.systems.continuous import Continuous
from resflow_bench.systems.fields import Field, LipschitzField


class SolverStep(nn.Module):
    """g(x) of one step x -> x + g(x) from t to t - h: -h u(x, t) by Euler's method.

    By the midpoint rule g(x) = -h u(x - h/2 u(x, t), t - h/2).
    """

    def __init__(self, field: Field, t: float, h: float, method: str) -> None:
        super().__init__()
        self.field, self.t, self.h, self.method = field, t, h, method

    def forward(self, x: Tensor) -> Tensor:
        u = self.field(x, x.new_full((len(x),), self.t))
        if self.method == "midpoint":
            half = 0.5 * self.h
            u = self.field(x - half * u, x.new_full((len(x),), self.t - half))
        return -self.h * u


class CertifiedStep(nn.Module):
    """A `SolverStep` of a `LipschitzField` with its constant in x, from the field's L.

    Lip(g) <= h L by Euler's method, and h L (1 + h L / 2) by the midpoint rule.
    """

    def __init__(self, step: SolverStep, field: LipschitzField) -> None:
        super().__init__()
        self.step, self.field = step, field
        self.lipschitz = float(self._constant(torch.tensor(field.lipschitz, dtype=torch.float64)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.step(x)
        return y

    def lipschitz_bound(self) -> Tensor:
        return self._constant(self.field.lipschitz_bound())

    def magnitude(self, x: Tensor) -> Tensor:
        t, h = x.new_full((len(x),), self.step.t), self.step.h
        inside = h * self.field.magnitude(x, t)
        if self.step.method != "midpoint":
            return inside
        middle = x - 0.5 * h * self.field(x, t)
        sizes = x.norm(dim=1) + middle.norm(dim=1) + 0.5 * inside
        last = self.field.magnitude(middle, t - 0.5 * h)
        return h * (last + self.field.lipschitz * sizes)

    def _constant(self, of_field: Tensor) -> Tensor:
        euler = self.step.h * of_field
        return euler * (1 + 0.5 * euler) if self.step.method == "midpoint" else euler


def residual_flow(flow: ResidualFlow, n_steps: int, method: str = "euler") -> ResidualFlow:
    """The flow with its last layer, a `Continuous`, replaced by the n blocks of its solver.

    A block x - h u(x, t) is invertible, and the series of its log-det converges, where
    h Lip(u) < 1: not where Lip(u) < 1, but from some number of steps on for any Lipschitz u. The
    flow's density is its own, exactly; it tends to that of the path as h^order.

    If the field is a `LipschitzField` of constant L, each block promises and certifies its own
    constant, see `CertifiedStep`: by Euler's method a contraction for sure from T > L on.

    Args:
        n_steps: T, of h = 1/T.
        method: euler or midpoint.

    Raises:
        ValueError: the last layer is no `Continuous`, or another method.
    """
    *before, path = flow.bijections
    if not isinstance(path, Continuous) or method not in ("euler", "midpoint"):
        raise ValueError(
            "The steps of a flow that ends in Continuous become blocks, by euler or midpoint; got "
            f"{type(path).__name__} and {method!r}."
        )
    h = 1 / n_steps
    steps = [SolverStep(path.field, 1 - k * h, h, method) for k in range(n_steps)]
    layers = [layer for layer in before if isinstance(layer, nn.Module)]
    blocks = [ResidualBlock(_branch(step, path.field)) for step in steps]
    return ResidualFlow([*layers, *blocks], flow.event, flow.estimator)


def _branch(step: SolverStep, field: nn.Module) -> BoundedMap | Uncertified:
    if isinstance(field, LipschitzField):
        return BoundedMap(CertifiedStep(step, field))
    return Uncertified(step)
