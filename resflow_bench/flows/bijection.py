"""The two kinds of bijection in a flow, closed forms and all others, behind one interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from resflow_bench.arguments import finite_rows
from resflow_bench.fixed_point import Outcome, Solution
from resflow_bench.flows.inversion import AnyInversion
from resflow_bench.layers import AnyBranch
from resflow_bench.logdet.estimator import Estimator
from resflow_bench.theory import Coefficients

ROUNDING = 8.0
"""Units in the last place, relative to |x| + |z| and the magnitudes inside g, by which the residual
of an inverse in float64 may be off. Three convolutions of up to 4,608 terms each erred by no more
than five units relative to |g(x)|, against 80 bits."""


@runtime_checkable
class ClosedForm(Protocol):
    """A bijection x -> z whose log-det and inverse are formulas: write these four methods."""

    def __call__(self, x: Tensor) -> Tensor:
        """z, (B, *event)."""

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(z, ln|det dz/dx|): (B, *event), (B,) nats."""

    def inverse(self, z: Tensor) -> Tensor:
        """x, (B, *event)."""

    def inverse_error(self, z: Tensor, x: Tensor, error: Tensor) -> Tensor:
        """A bound on ||x - x*||_2, (B,) float64, for x = inverse(z) as rounded.

        x* is the exact inverse of some latent within `error` of z, (B,) float64, in the 2-norm.
        """


@runtime_checkable
class Bijection(Protocol):
    """A bijection x -> z whose log-det is estimated and whose inverse is iterated."""

    def __call__(self, x: Tensor) -> Tensor:
        """z, (B, *event)."""

    def forward_and_log_det(
        self, x: Tensor, estimator: Estimator, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """(z, ln|det dz/dx|): (B, *event), (B,) nats."""

    def inverse(
        self, z: Tensor, inversion: AnyInversion, error: Tensor | None = None, certify: bool = True
    ) -> Solution:
        """x and, if `certify`, a bound on its distance from the x of a z that is off by `error`.

        Distances are 2-norms over the event, (B,) in float64; no graph is recorded.
        """


@runtime_checkable
class SeriesBlock(Protocol):
    """A `Bijection` whose log-det is a series in the Jacobian J of one branch, at one point.

    ln|det dz/dx| = sum_k c_k tr J^k, J that of g at `at(x)`.
    """

    coefficients: Coefficients
    """c_k."""

    @property
    def g(self) -> AnyBranch:
        """The branch, at the contexts that a view was given."""

    def at(self, x: Tensor) -> Tensor:
        """The point of J for the input x, (B, *event)."""


@runtime_checkable
class HasLoss(Protocol):
    """A bijection that may be trained by something else than maximum likelihood."""

    def loss(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor | None:
        """The objective at inputs x, (B, *event), a number; None is maximum likelihood."""


def as_bijection(part: object) -> Bijection:
    """`part`, or if it is a closed form a `Bijection` that ignores estimator and inversion.

    Raises:
        TypeError: `part` is neither.
    """
    if isinstance(part, ClosedForm):
        return Formulas(part)
    if isinstance(part, Bijection):
        return part
    raise TypeError(
        "A flow is made of bijections, with the methods of `ClosedForm` or of `Bijection`; "
        f"{type(part).__name__} has neither."
    )


@dataclass(frozen=True, eq=False)
class Formulas:
    """A closed form with the methods of `Bijection`."""

    form: ClosedForm

    def __call__(self, x: Tensor) -> Tensor:
        return self.form(x)

    def forward_and_log_det(
        self, x: Tensor, estimator: Estimator, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.form.forward_and_log_det(x)

    @torch.no_grad()
    def inverse(
        self, z: Tensor, inversion: AnyInversion, error: Tensor | None = None, certify: bool = True
    ) -> Solution:
        x = self.form.inverse(z)
        zeros = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        return Solution(
            value=x,
            residual=zeros,
            n_steps=zeros.long(),
            outcome=torch.where(finite_rows(x), Outcome.CONVERGED, Outcome.DIVERGED).to(torch.int8),
            error_bound=self.form.inverse_error(z, x, or_zeros(error, z)) if certify else None,
        )


def or_zeros(error: Tensor | None, like: Tensor) -> Tensor:
    """The error, (B,) float64: zero if None."""
    if error is None:
        return torch.zeros(len(like), dtype=torch.float64, device=like.device)
    return error
