"""The path of a velocity field by zuko's adaptive solver."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from resflow_bench.arguments import check_batch
from resflow_bench.fixed_point import Solution
from resflow_bench.flows.inversion import AnyInversion
from resflow_bench.logdet import Determinant, Exact
from resflow_bench.logdet.estimator import Estimator
from resflow_bench.seeds import torch_seeded
from resflow_bench.systems.continuous import integrated
from resflow_bench.systems.discrete import zuko
from resflow_bench.systems.fields import LipschitzField, VelocityField

ZUKO_SCALE = 0.01
"""`trace_scale` of zuko 1.6."""


class AdaptivePath(nn.Module):
    """`Continuous` of the same field as zuko's CNF integrates it, (B, d) -> (B, d).

    A step of Dormand and Prince's method is accepted where its estimated error in each number y is
    at most tolerance (1 + |y|). zuko multiplies the log-det by `trace_scale` beforehand, so that
    its absolute tolerance is 100 times that of z; 1 gives both the same.

    The trace is exact if the flow's estimator is `Exact` or `Determinant`; else it is Hutchinson's
    with one Gaussian probe a call, whatever the estimator's probes.

    Args:
        field: u, shared, not copied.
        tolerance: rtol = atol.
        trace_scale: see above.

    Raises:
        ValueError: a tolerance or scale that is not positive; zuko is not installed.

    Source: Grathwohl et al. (2019), "FFJORD"; zuko's `FreeFormJacobianTransform`.
    """

    def __init__(
        self,
        field: VelocityField | LipschitzField,
        tolerance: float = 1e-6,
        trace_scale: float = ZUKO_SCALE,
    ) -> None:
        super().__init__()
        if not min(tolerance, trace_scale) > 0:
            raise ValueError(
                "AdaptivePath needs a positive tolerance and trace_scale; got "
                f"{tolerance} and {trace_scale}."
            )
        self.field, self.tolerance, self.trace_scale = field, tolerance, trace_scale
        zuko()

    def forward(self, x: Tensor) -> Tensor:
        check_batch("AdaptivePath", x, (self.field.dim,))
        z: Tensor = self._transform(exact=True)(x)
        return z

    def forward_and_log_det(
        self, x: Tensor, estimator: Estimator, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """(z, ln|det dz/dx|), (B, d) and (B,) nats."""
        check_batch("AdaptivePath", x, (self.field.dim,))
        transform = self._transform(exact=isinstance(estimator, Exact | Determinant))
        with torch_seeded(int(torch.randint(2**31, (), generator=generator))):
            z, log_det = transform.call_and_ladj(x)
        return z, log_det

    @torch.no_grad()
    def inverse(
        self, z: Tensor, inversion: AnyInversion, error: Tensor | None = None, certify: bool = True
    ) -> Solution:
        """x by the same method from 0 to 1; no bound is known, and `error_bound` is infinite."""
        return integrated(self._transform(exact=True).inv(z), 0, certify)

    def extra_repr(self) -> str:
        return f"tolerance={self.tolerance:g}, trace_scale={self.trace_scale:g}"

    def _transform(self, exact: bool) -> Any:
        made = zuko().transforms.FreeFormJacobianTransform(
            lambda t, x: self.field(x, t.to(x).expand(len(x))),
            *(1.0, 0.0, self.parameters(), self.tolerance, self.tolerance, exact),
        )
        made.trace_scale = self.trace_scale
        return made
