"""The result of a fixed-point solve: a value, its residual and an outcome for each example."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor

# A contraction never raises its residual; a million times the first is not rounding.
BLOW_UP = 1e6


class Outcome(IntEnum):
    """The reason for which an example's iteration ended."""

    CONVERGED = 0
    MAX_STEPS = 1
    STAGNATED = 2
    DIVERGED = 3
    UNCERTIFIED = 4


_CAUSES = {
    Outcome.MAX_STEPS: (
        "still above tolerance after max_steps; take the step `Auto()`, which is faster near a "
        "Lipschitz constant of 1, raise max_steps or loosen rtol/atol"
    ),
    Outcome.STAGNATED: (
        "no new best residual for long, which is the rounding floor or no contraction; "
        "loosen rtol/atol, use float64, or certify the Lipschitz constant"
    ),
    Outcome.DIVERGED: (
        f"not finite or {BLOW_UP:g} times the first residual; f is not a contraction there: "
        "certify the Lipschitz constant"
    ),
    Outcome.UNCERTIFIED: (
        "converged, but its error bound exceeds the requested error: each block magnifies rounding "
        "by up to 1 / (1 - K); compute in float64 (`flow.double()`), or take smaller Lipschitz "
        "constants or fewer blocks"
    ),
}


@dataclass(frozen=True, eq=False)
class Solution:
    """The iterates of a batch, and the accuracy of each example.

    value: (B, *event), the last iterate where converged, otherwise the best one (x0 where nothing
        was finite).
    residual: (B,), ||f(x) - x||_2 at `value`, as computed in its dtype; inf where nothing was
        finite.
    n_steps: (B,) int64, steps taken until the example ended; f was evaluated once more.
    outcome: (B,) int8, an `Outcome` each.
    error_bound: (B,) bound on ||value - x*||_2, or None where no Lipschitz constant certifies one.
    error: the error that was demanded of the bound, or None.
    """

    value: Tensor
    residual: Tensor
    n_steps: Tensor
    outcome: Tensor
    error_bound: Tensor | None = None
    error: float | None = None

    @property
    def converged(self) -> Tensor:
        """(B,) bool."""
        return self.outcome == Outcome.CONVERGED

    def raise_if_failed(self) -> Solution:
        """This solution, if every example converged.

        Raises:
            ArithmeticError: some did not; the message has counts, causes and remedies.
        """
        failed = ~self.converged
        if not bool(failed.any()):
            return self
        causes = [
            f"{int(here.sum())} {outcome.name} ({cause}; {self._reached(outcome, here)})"
            for outcome, cause in _CAUSES.items()
            if bool((here := self.outcome == outcome).any())
        ]
        raise ArithmeticError(
            f"{int(failed.sum())} of {len(failed)} fixed points not found: {'; '.join(causes)}."
        )

    def continued(self, rows: Tensor, other: Solution) -> Solution:
        """This solution with another one's of the examples `rows`, (n,); the steps add up."""
        bound = self.error_bound
        if bound is not None and other.error_bound is not None:
            bound = bound.index_copy(0, rows, other.error_bound)
        return replace(
            self,
            value=self.value.index_copy(0, rows, other.value),
            residual=self.residual.index_copy(0, rows, other.residual),
            n_steps=self.n_steps.index_add(0, rows, other.n_steps),
            outcome=self.outcome.index_copy(0, rows, other.outcome),
            error_bound=bound,
        )

    def demand(self, error: float) -> Solution:
        """This solution, UNCERTIFIED where it converged but `error_bound` is not within `error`.

        An example that did not converge keeps its outcome, which is more specific.

        Raises:
            ValueError: there is no `error_bound`.
        """
        if self.error_bound is None:
            raise ValueError(
                f"Solution.demand({error}) needs an `error_bound`; got None. Solve with `certify`."
            )
        short = self.converged & ~(self.error_bound <= error)  # also where it is not a number
        outcome = torch.where(short, Outcome.UNCERTIFIED, self.outcome)
        return replace(self, outcome=outcome, error=error)

    def _reached(self, outcome: Outcome, here: Tensor) -> str:
        """The largest residual, or error bound if that decided, among the examples `here`."""
        if outcome != Outcome.UNCERTIFIED or self.error_bound is None or self.error is None:
            return f"largest residual {float(self.residual[here].max()):.2e}"
        dtype = str(self.value.dtype).removeprefix("torch.")
        reached = float(self.error_bound[here].max())
        return f"{dtype} reached {reached:.2e}, requested {self.error:g}"
