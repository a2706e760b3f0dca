"""A continuous flow: data and latents are the two ends of an ordinary differential equation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from resflow_bench.arguments import check_batch, finite_rows
from resflow_bench.fixed_point import Outcome, Solution
from resflow_bench.flows.inversion import AnyInversion
from resflow_bench.logdet import Determinant, Exact, LogDetEstimator
from resflow_bench.logdet.estimator import Estimator
from resflow_bench.logdet.probes import drawn_on
from resflow_bench.systems import fields
from resflow_bench.systems.fields import PATHS, LipschitzField, VelocityField
from resflow_bench.systems.ode import METHODS, Rates, integrate

EXACT_TRACE, LIKELIHOOD = "exact", "likelihood"


class Continuous(nn.Module):
    """x(1) = x, dx/dt = u(x, t), z = x(0):  ln|det dz/dx| = -int_0^1 tr(du/dx)(x(t), t) dt.

    So log p_1(x) = log p_0(z) - int_0^1 tr(du/dx) dt, along the path of x. The trace is exact if
    `trace` says so, and wherever the flow's estimator is `Exact` or `Determinant`; else it is
    Hutchinson's estimate by the probes of that estimator, the same at all times of a path, whose
    truncation does not matter: the trace is one term, no series.

    Both integrals are those of the same steps, so that the density is not exactly that of the
    samples; the difference falls as h^order.

    Args:
        dim: d.
        hidden: the widths of u.
        n_steps: steps of a path.
        method: of `METHODS`.
        trace: "exact" or "estimated".
        objective: what a training minimises. "likelihood" is -mean log p; a path of `PATHS` is
            E||u(x_t, t) - dx_t/dt||^2 over data, noise and t, which integrates nothing.
        transport: whether data and noise are paired by optimal transport within a batch.
        lipschitz: L of a `LipschitzField`, whose Lip(u) <= L is certified at all times; None is a
            `VelocityField`, of which no constant is known.
        generator: draws the first weights.

    Raises:
        ValueError: a name that is none of these; an L that is not positive and finite.

    Source: Chen et al. (2018), "Neural ordinary differential equations", theorem 1; Grathwohl et
    al. (2019), "FFJORD"; Lipman et al. (2023), "Flow matching for generative modeling".
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (64, 64),
        n_steps: int = 16,
        method: str = "rk4",
        trace: str = "estimated",
        objective: str = LIKELIHOOD,
        transport: bool = False,
        lipschitz: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value, names in (
            ("method", method, tuple(METHODS)),
            ("trace", trace, (EXACT_TRACE, "estimated")),
            ("objective", objective, (LIKELIHOOD, *PATHS)),
        ):
            if value not in names:
                raise ValueError(f"Continuous needs {name} of {', '.join(names)}; got {value!r}.")
        self.dim, self.hidden, self.n_steps = dim, tuple(hidden), n_steps
        self.method, self.trace = method, trace
        self.objective, self.transport = objective, transport
        self.lipschitz = lipschitz
        self.field = (
            VelocityField(dim, self.hidden, generator)
            if lipschitz is None
            else LipschitzField(dim, self.hidden, lipschitz, generator)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self._path(self.velocity, x, 1.0, 0.0)[0]

    def forward_and_log_det(
        self, x: Tensor, estimator: Estimator, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """(z, ln|det dz/dx|): the flow's estimator chooses the trace, see the class."""
        check_batch("Continuous", x, (self.dim,))
        z, integral = self._path(self._rates(x, estimator, generator), x, 1.0, 0.0)
        return z, integral  # from 1 to 0, so the minus is in the step

    @torch.no_grad()
    def inverse(
        self, z: Tensor, inversion: AnyInversion, error: Tensor | None = None, certify: bool = True
    ) -> Solution:
        """x by the same steps from 0 to 1; no bound is known, and `error_bound` is infinite."""
        x = self._path(self.velocity, z, 0.0, 1.0)[0]
        return integrated(x, self.n_steps, certify)

    def loss(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor | None:
        """The objective of a path at data x, (); None where it is the likelihood's."""
        if self.objective == LIKELIHOOD:
            return None
        device = drawn_on(x, generator)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)
        t = torch.rand(len(x), generator=generator, dtype=x.dtype, device=device).to(x.device)
        if self.transport:
            noise = fields.transported(noise, x)
        point, velocity = PATHS[self.objective](noise, x, t)
        return (self.field(point, t) - velocity).square().sum(1).mean()

    def velocity(self, t: float, x: Tensor) -> tuple[Tensor, Tensor]:
        """(u, 0) at one time, of a path whose log-det is not asked for: (B, d), (B,)."""
        return self.field(x, x.new_full((len(x),), t)), x.new_zeros(len(x))

    def velocity_and_trace(self, t: float, x: Tensor) -> tuple[Tensor, Tensor]:
        """(u, tr du/dx) at one time, exactly: (B, d), (B,)."""
        return fields.exact_trace(self.field, x, x.new_full((len(x),), t))

    def extra_repr(self) -> str:
        return f"n_steps={self.n_steps}, method={self.method}, trace={self.trace}"

    def _path(self, rates: Rates, x: Tensor, start: float, end: float) -> tuple[Tensor, Tensor]:
        return integrate(rates, x, start, end, METHODS[self.method], self.n_steps)

    def _rates(self, x: Tensor, estimator: Estimator, generator: torch.Generator | None) -> Rates:
        """(t, x) -> (u, tr du/dx)."""
        if self.trace == EXACT_TRACE or isinstance(estimator, Exact | Determinant):
            return self.velocity_and_trace
        if not isinstance(estimator, LogDetEstimator):
            raise TypeError(
                "Continuous estimates a trace by the probes of a LogDetEstimator, or has it "
                f"exactly with Exact or Determinant; got {type(estimator).__name__}."
            )
        v = estimator.probe.sample(estimator.n_probes, x, generator)
        return lambda t, x: fields.hutchinson_trace(self.field, x, x.new_full((len(x),), t), v)


def integrated(x: Tensor, n_steps: int, certify: bool) -> Solution:
    """The x, (B, d), of an inverse by so many steps of a solver, with infinite bounds."""
    zeros = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    return Solution(
        value=x,
        residual=zeros,
        n_steps=torch.full_like(zeros, n_steps).long(),
        outcome=torch.where(finite_rows(x), Outcome.CONVERGED, Outcome.DIVERGED).to(torch.int8),
        error_bound=torch.full_like(zeros, torch.inf, dtype=torch.float64) if certify else None,
    )
