"""The coefficients of a block's log-determinant as a series in the Jacobian of its branch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Coefficients:
    """c_k of  plus log(1 + t) + minus log(1 - t) = sum_k c_k t^k,   c_k = r_k (-1)^(k+1)/k,

    with r_k = plus - minus for odd k and plus + minus for even k. A block's log-det is
    plus ln|det(I + J)| + minus ln|det(I - J)|: `RESIDUAL`, its `INVERSE`, or `MONOTONE`.

    Properties: sum_k |c_k| K^k = |sum_k c_k (-K)^k|, as all c_k (-K)^k have the same sign. So
        each bound from K alone is attained by J = -K I, for every block.

    Raises:
        ValueError: unless |plus| >= |minus|, on which this property rests.

    >>> import numpy as np
    >>> MONOTONE(np.arange(1, 5)).tolist() == [-2.0, 0.0, -2.0 / 3.0, 0.0]
    True
    """

    plus: float
    minus: float = 0.0

    def __post_init__(self) -> None:
        if abs(self.plus) < abs(self.minus):
            raise ValueError(
                f"Coefficients needs |plus| >= |minus|; got plus={self.plus:g} and "
                f"minus={self.minus:g}. Take the series of -J, and exchange the two."
            )

    def __call__(self, k: Any) -> Any:
        """c_k, for a number or an array of numbers k >= 1."""
        return self.ratio(k) * (-1.0) ** (k + 1) / k

    def ratio(self, k: Any) -> Any:
        """r_k = c_k over the coefficient of log(1 + t)."""
        return self.minus * (-1.0) ** k + self.plus

    def combine(self, of: Callable[[Any], Any], t: Any) -> Any:
        """plus of(t) + minus of(-t): for log(1 + t), and for all that depends on it linearly.

        >>> import numpy as np
        >>> bool(np.isclose(MONOTONE.combine(np.log1p, 0.5), -2 * np.arctanh(0.5), rtol=1e-14))
        True
        """
        total = self.plus * of(t)
        return total + self.minus * of(-t) if self.minus else total


RESIDUAL = Coefficients(1.0)
"""ln|det(I + J)|, of z = x + g(x)."""

INVERSE = Coefficients(-1.0)
"""-ln|det(I + J)|, of z + g(z) = x, with J at z."""

MONOTONE = Coefficients(-1.0, 1.0)
"""ln|det(I - J)| - ln|det(I + J)| = -2 sum over odd k of tr J^k/k, of (I - g) o (I + g)^-1."""
