"""Ordinary differential equations with an integral carried along, by explicit Runge-Kutta steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

Rates = Callable[[float, Tensor], tuple[Tensor, Tensor]]
"""(t, x) -> (dx/dt, dl/dt): (B, d), (B,)."""


@dataclass(frozen=True)
class Tableau:
    """Butcher's tableau of an explicit method: stages at t + c_i h, slopes weighted by a_ij h."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]


METHODS: Mapping[str, Tableau] = MappingProxyType(
    {
        "euler": Tableau(((),), (1.0,), (0.0,)),
        "midpoint": Tableau(((), (0.5,)), (0.0, 1.0), (0.0, 0.5)),
        "rk4": Tableau(
            ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
            (1 / 6, 1 / 3, 1 / 3, 1 / 6),
            (0.0, 0.5, 0.5, 1.0),
        ),
    }
)
"""Euler's method, the midpoint rule, and the classical method: of orders 1, 2 and 4."""


def integrate(
    rates: Rates, x: Tensor, start: float, end: float, method: Tableau, n_steps: int
) -> tuple[Tensor, Tensor]:
    """(x(end), l(end)) from x(start) = x and l(start) = 0, in n equal steps: (B, d), (B,).

    Differentiable through every step. `end` may lie before `start`.
    """
    h, integral = (end - start) / n_steps, x.new_zeros(len(x))
    for k in range(n_steps):
        slopes: list[tuple[Tensor, Tensor]] = []
        for row, c in zip(method.a, method.c, strict=True):
            stage = x
            for weight, (slope, _) in zip(row, slopes, strict=True):
                stage = stage + h * weight * slope if weight else stage
            slopes.append(rates(start + (k + c) * h, stage))
        for weight, (slope, rate) in zip(method.b, slopes, strict=True):
            x, integral = x + h * weight * slope, integral + h * weight * rate
    return x, integral
