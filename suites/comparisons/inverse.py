"""Time and error of the certified inverse against the inverse of normflows, with the same weights.

    python -m suites.comparisons.inverse

Needs the `peers` extra. normflows iterates to its default tolerance, a squared step below 1e-5 for
the whole batch; the log-det that its layers compute beside the inverse is left out. Ours iterates
to an error of 1e-6 for each example and certifies it; the certificate is part of the time. The
exact inverse is Picard's iteration in float64, to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from resflow_bench.fixed_point import Anderson, Auto, Picard, Secant, Step
from resflow_bench.flows import Inversion, ResidualBlock, ResidualFlow
from resflow_bench.flows.refinement import in_float64
from resflow_bench.layers import LinearBranch
from resflow_bench.peers.normflows import normflows_flow
from resflow_bench.speed.benchmark import described
from suites.comparisons.pairs import (
    TimeRatio,
    flow_and_points,
    median_in_words,
    need_normflows,
    ratios,
    say,
)

if TYPE_CHECKING:
    from torch import Tensor

ERROR = 1e-6

STEPS: dict[str, Step] = {
    "Picard": Picard(),
    "secant": Secant(),
    "Anderson": Anderson(),
    "auto": Auto(),
}


@dataclass(frozen=True, eq=False)
class InverseError:
    """The error of an inverse, the largest over examples.

    error: ||x - x*||.
    bound: the certified bound on it; NaN without a certificate.
    certified: the share of the examples whose bound is at most `ERROR`.
    """

    error: float
    bound: float = float("nan")
    certified: float = 0.0


def main() -> None:
    """Print the ratio of times, true errors and bounds, and each step against Picard's."""
    need_normflows()
    say(f"the inverse, ours to an error of {ERROR:g} / normflows {version('normflows')} by default")
    flow, x = flow_and_points("trained")
    z = latents(x)
    ours, theirs = errors(flow, z)
    say(
        f"MLP flow, d = 64, 8 blocks, K = 0.9, trained, float32, B = {len(z)}, "
        f"{torch.get_num_threads()} threads: {median_in_words(compare(flow, z))} of normflows' time"
    )
    say(
        f"  largest true error: ours {ours.error:.1e}, certified {ours.bound:.1e} "
        f"(within {ERROR:g}: {ours.certified:.0%}); theirs {theirs.error:.1e}, not certified"
    )
    report_steps("trained, K = 0.9", flow, z)
    report_steps("g = -0.97 x, one block", minus_identity(0.97), z)


def compare(flow: ResidualFlow, z: Tensor) -> np.ndarray:
    """Seconds ours / seconds theirs in interleaved pairs, (n,)."""
    peer = peer_of(flow)
    return ratios(lambda: flow.inverse(z, Inversion(error=ERROR)), lambda: their_inverse(peer, z))


def errors(flow: ResidualFlow, z: Tensor) -> tuple[InverseError, InverseError]:
    """The errors of ours and of normflows."""
    theirs = distance(their_inverse(peer_of(flow), z), flow, z)
    return certified_error(flow, z), InverseError(theirs)


def certified_error(flow: ResidualFlow, z: Tensor, step: Step | None = None) -> InverseError:
    """The error of ours with a step; None is the default step."""
    solution = flow.inverse(z, Inversion(step, error=ERROR))
    assert solution.error_bound is not None  # an error was requested
    share = float((solution.error_bound <= ERROR).double().mean())
    return InverseError(distance(solution.value, flow, z), float(solution.error_bound.max()), share)


def distance(x: Tensor, flow: ResidualFlow, z: Tensor) -> float:
    """The largest ||x - x*||, with f(x*) = z solved in float64 with the same parameters."""
    truth = in_float64(flow).inverse(z.double(), Inversion(max_steps=20_000)).value
    return float((x.double() - truth).flatten(1).norm(dim=1).max())


def report_steps(what: str, flow: ResidualFlow, z: Tensor) -> None:
    """Print a line for each step."""
    say(f"{what}: time to certify, relative to Picard's step")
    for name, step in STEPS.items():
        error, invert = certified_error(flow, z, step), Inversion(step, error=ERROR)
        n_steps = flow.inverse(z, invert).n_steps.double()
        picard = Inversion(Picard(), error=ERROR)
        pairs = ratios(partial(flow.inverse, z, invert), partial(flow.inverse, z, picard))
        say(
            f"  {name}: {median_in_words(pairs)}; steps, an evaluation of g each, "
            f"{n_steps.mean():.1f} per example and {n_steps.max():.0f} at most, besides the "
            f"products with J; error {error.error:.1e}, certified {error.bound:.1e}"
        )


def peer_of(flow: ResidualFlow) -> Any:
    """Their flow with the same parameters."""
    return normflows_flow(flow, reduce_memory=True).requires_grad_(False)


@torch.no_grad()
def their_inverse(peer: Any, z: Tensor) -> Tensor:
    """x for z, without log-dets; normflows' forward direction goes from latent to data."""
    from normflows.flows import Residual

    for layer in peer.flows:
        z = layer.iresblock.inverse(z) if isinstance(layer, Residual) else layer(z)[0]
    return z


def minus_identity(lipschitz: float) -> ResidualFlow:
    """One block g = -K x, d = 64, in float32, on which Picard is slowest."""
    branch = LinearBranch(-lipschitz * torch.eye(64), lipschitz)
    return ResidualFlow([ResidualBlock(branch)], 64)


def latents(x: Tensor) -> Tensor:
    """z ~ N(0, I) of the shape of x, as sampling inverts it."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)


class InverseAgainstNormflows(TimeRatio):
    """The ratio of times of the inverse."""

    version = "1"

    def setup(self) -> None:
        super().setup()
        self.z = latents(self.x)

    @described(name="inverse_against_normflows.InverseAgainstNormflows.track_time_ratio")
    def track_time_ratio(self) -> dict[str, Any]:
        return self.samples(compare(self.flow, self.z))


if __name__ == "__main__":
    main()
