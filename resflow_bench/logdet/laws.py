"""Laws of a roulette's number of terms after the exact ones, each by its survival function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from resflow_bench.theory import Law


@dataclass(frozen=True)
class Geometric:
    """P(M >= j) = (1 - stop)^j: after each term, stop with probability `stop`.

    Properties: mean (1 - stop)/stop; the roulette estimate has finite variance iff
    rho(J)^2 < 1 - stop.

    Raises:
        ValueError: unless 0 < stop < 1.

    Source: Chen et al. (2019), "Residual Flows", where the coin's p is `stop`.

    >>> Geometric(0.5).survival(np.array([0, 1, 2])).tolist()
    [1.0, 0.5, 0.25]
    """

    stop: float

    def __post_init__(self) -> None:
        if not 0.0 < self.stop < 1.0:
            raise ValueError(
                f"Geometric needs 0 < stop < 1; got {self.stop}. "
                "`stop` is the probability of stopping after each term."
            )

    def __str__(self) -> str:
        return f"geometric({self.stop:g})"

    @property
    def decay(self) -> float:
        return 1.0 - self.stop

    def survival(self, j: np.ndarray) -> np.ndarray:
        return (1.0 - self.stop) ** np.asarray(j, dtype=np.float64)


@dataclass(frozen=True)
class Poisson:
    """P(M >= j) = sum_{i>=j} e^-rate rate^i / i!.

    Properties: mean `rate`. The survival falls faster than any power, so the roulette estimate has
    INFINITE variance for every J that is not nilpotent. At a small spectral radius the part of it
    that a feasible number of draws can show is small: see `theory.roulette_variance` with
    `min_survival`.

    Raises:
        ValueError: unless rate > 0.

    Source: Chen et al. (2019), appendix on image models, which use rate 2.

    >>> Poisson(2.0).survival(np.array([0, 1])).round(4).tolist()
    [1.0, 0.8647]
    """

    rate: float

    decay = 0.0  # faster than geometric

    def __post_init__(self) -> None:
        if not self.rate > 0.0 or not np.isfinite(self.rate):
            raise ValueError(
                f"Poisson needs a positive finite rate; got {self.rate}. "
                "`rate` is the mean number of extra terms."
            )

    def __str__(self) -> str:
        return f"poisson({self.rate:g})"

    def survival(self, j: np.ndarray) -> np.ndarray:
        """scipy's survival function, without the cancellation of 1 - sum in the far tail."""
        return np.asarray(stats.poisson.sf(np.asarray(j) - 1, self.rate), dtype=np.float64)


@dataclass(frozen=True)
class Tabulated:
    """P(M >= j) = table[j] for j <= J, and table[J] decay^(j - J) beyond; J = len(table) - 1.

    A law of any shape, with a geometric tail that keeps the estimate unbiased. The law of least
    variance times work, from `optimal_roulette`, is such a table.

    Args:
        table: P(M >= 0) = 1, P(M >= 1), ..., P(M >= J), which never rises and stays positive.
        decay: in (0, 1). The roulette estimate has finite variance iff rho(J)^2 < decay.

    Raises:
        ValueError: if the table does not begin with 1, rises or is not positive, or `decay` is
            outside (0, 1).

    Source: Rhee and Glynn (2015), for the choice of the law by the terms that it cuts.

    >>> Tabulated((1.0, 0.9, 0.2), 0.5).survival(np.arange(5)).tolist()
    [1.0, 0.9, 0.2, 0.1, 0.05]
    """

    table: tuple[float, ...]
    decay: float

    def __post_init__(self) -> None:
        falls = all(b <= a for a, b in zip(self.table, self.table[1:], strict=False))
        if not (self.table and self.table[0] == 1.0 and falls and self.table[-1] > 0.0):
            raise ValueError(
                "Tabulated needs P(M >= j), j = 0..J: 1 first, never rising, positive; got "
                f"{self.table}. A probability of 0 would leave out a term for good: end the table "
                "before it."
            )
        if not 0.0 < self.decay < 1.0:
            raise ValueError(
                f"Tabulated needs 0 < decay < 1; got {self.decay}. `decay` is the ratio of "
                "successive probabilities beyond the table: a bound on the spectral radius, say."
            )

    def __str__(self) -> str:
        mean = sum(self.table[1:]) + self.table[-1] * self.decay / (1.0 - self.decay)
        return f"tabulated(mean={mean:.3g}, decay={self.decay:.3g})"

    def survival(self, j: np.ndarray) -> np.ndarray:
        last = len(self.table) - 1
        table = np.asarray(self.table, dtype=np.float64)[np.minimum(j, last)]
        return np.asarray(table * self.decay ** np.maximum(np.asarray(j) - last, 0))


LAWS: dict[str, Callable[[float], Law]] = {
    law.__name__.lower(): law for law in (Geometric, Poisson)
}
"""The values of the axis `roulette`, by name; each takes one number."""


def law_named(text: str) -> Law:
    """`geometric(0.5)` -> Geometric(0.5).

    Raises:
        ValueError: if it is no law, or its number is refused.

    >>> law_named("poisson(2)")
    Poisson(rate=2.0)
    """
    name, _, number = text.removesuffix(")").partition("(")
    try:
        law, value = LAWS[name], float(number)
    except (KeyError, ValueError):
        raise ValueError(
            f"a law is one of {', '.join(LAWS)} with a number in parentheses."
        ) from None
    return law(value)
