"""Time and error of the certified inverse against normflows', with the same weights.

    python -m suites.comparisons.inverse

Needs the `peers` extra. Theirs runs at its default, until the squared step is below 1e-5 for the
whole batch, without the log-det that their layers compute beside it: only the iteration is timed.
Ours requests an error of 1e-6 for each example and certifies the error reached; the certificate is
part of its time. The truth is the inverse by Picard's iteration in float64, to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resflow_bench.fixed_point import Anderson, Auto, Picard, Secant, Step
from resflow_bench.flows import Inversion, ResidualBlock, ResidualFlow
from resflow_bench.flows.copies import in_float64
from resflow_bench.layers import LinearBranch
from resflow_bench.peers.normflows import normflows_flow
from resflow_bench.speed.benchmark import described
from suites.comparisons.pairs import (
    TimeRatio,
    flow_and_points,
    in_words,
    need_normflows,
    of_their_time,
    ratios,
    say,
)

ERROR = 1e-6

STEPS: dict[str, Step] = {
    "Picard": Picard(),
    "secant": Secant(),
    "Anderson": Anderson(),
    "auto": Auto(),
}


@dataclass(frozen=True, eq=False)
class InverseError:
    """The largest error of an inverse over examples.

    error: ||x - x*||. bound: its certified bound; NaN without a certificate.
    certified: share of the examples whose bound is at most `ERROR`.
    """

    error: float
    bound: float = float("nan")
    certified: float = 0.0


def main() -> None:
    """Print the ratios of times, the true errors and bounds, and a comparison of the steps."""
    need_normflows()
    say(f"the inverse, ours asked for {ERROR:g} / normflows {version('normflows')} at its default")
    flow, x = flow_and_points("trained")
    z = latents(x)
    ours, theirs = errors(flow, z)
    say(
        f"MLP flow, d = 64, 8 blocks, K = 0.9, trained, float32, B = {len(z)}, "
        f"{torch.get_num_threads()} threads: {of_their_time(compare(flow, z))}"
    )
    say(
        f"  largest true error: ours {ours.error:.1e}, certified {ours.bound:.1e} "
        f"(within {ERROR:g}: {ours.certified:.0%}); theirs {theirs.error:.1e}, not certified"
    )
    steps_of("trained, K = 0.9", flow, z)
    steps_of("g = -0.97 x, one block", minus_identity(0.97), z)


def compare(flow: ResidualFlow, z: Tensor) -> np.ndarray:
    """Seconds ours / seconds theirs in interleaved pairs, (n,)."""
    peer = peer_of(flow)
    return ratios(lambda: flow.inverse(z, Inversion(error=ERROR)), lambda: their_inverse(peer, z))


def errors(flow: ResidualFlow, z: Tensor) -> tuple[InverseError, InverseError]:
    """The errors of ours and of theirs."""
    return reached(flow, z), InverseError(distance(their_inverse(peer_of(flow), z), flow, z))


def reached(flow: ResidualFlow, z: Tensor, step: Step | None = None) -> InverseError:
    """The error of ours with a step; None is the default step."""
    solution = flow.inverse(z, Inversion(step, error=ERROR))
    assert solution.error_bound is not None  # an error was asked for
    share = float((solution.error_bound <= ERROR).double().mean())
    return InverseError(distance(solution.value, flow, z), float(solution.error_bound.max()), share)


def distance(x: Tensor, flow: ResidualFlow, z: Tensor) -> float:
    """The largest ||x - x*||, f(x*) = z by the same parameters in float64."""
    truth = in_float64(flow).inverse(z.double(), Inversion(max_steps=20_000)).value
    return float((x.double() - truth).flatten(1).norm(dim=1).max())


def steps_of(what: str, flow: ResidualFlow, z: Tensor) -> None:
    """Print a line for each kind of step."""
    say(f"{what}: time to certify, relative to Picard's step")
    for name, step in STEPS.items():
        solution, found = flow.inverse(z, Inversion(step, error=ERROR)), reached(flow, z, step)
        n_steps = solution.n_steps.double()
        pairs = ratios(
            lambda step=step: flow.inverse(z, Inversion(step, error=ERROR)),  # type: ignore[misc]
            lambda: flow.inverse(z, Inversion(Picard(), error=ERROR)),
        )
        say(
            f"  {name}: {in_words(pairs)}; steps, an evaluation of g each, {n_steps.mean():.1f} an "
            f"example and {n_steps.max():.0f} at most, besides the products with J; error "
            f"{found.error:.1e}, certified {found.bound:.1e}"
        )


def peer_of(flow: ResidualFlow) -> Any:
    """Their flow with the same parameters."""
    return normflows_flow(flow, reduce_memory=True).requires_grad_(False)


@torch.no_grad()
def their_inverse(peer: Any, z: Tensor) -> Tensor:
    """x from latent z, which is their forward direction, without log-dets."""
    from normflows.flows import Residual

    for layer in peer.flows:
        z = layer.iresblock.inverse(z) if isinstance(layer, Residual) else layer(z)[0]
    return z


def minus_identity(lipschitz: float) -> ResidualFlow:
    """One block g = -K x, d = 64, in float32: the slowest case for Picard's iteration."""
    branch = LinearBranch(-lipschitz * torch.eye(64), lipschitz)
    return ResidualFlow([ResidualBlock(branch)], 64)


def latents(x: Tensor) -> Tensor:
    """z ~ N(0, I) of the shape of x: the points that sampling inverts."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)


class InverseAgainstNormflows(TimeRatio):
    """Time of the inverse, ours over theirs."""

    @described(name="inverse_against_normflows.InverseAgainstNormflows.track_time_ratio")
    def track_time_ratio(self) -> dict[str, Any]:
        return {"samples": compare(self.flow, latents(self.x)).tolist(), "number": 1}


if __name__ == "__main__":
    main()
