"""Glow of our own parts, held against normflows' `MultiscaleFlow`, and what couplings promise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from resflow_bench.architectures import ARCHITECTURES
from resflow_bench.flows import ActNorm, FactorOut, Flatten, Logit, Mixing, ResidualFlow, Squeeze
from resflow_bench.flows.composition import AnyBijection
from resflow_bench.systems import AffineCoupling
from resflow_bench.systems.coupling import LARGEST_LOG_SCALE

EVENT = (1, 8, 8)


def images(n: int) -> Tensor:
    return torch.rand(n, *EVENT, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def flow() -> ResidualFlow:
    """Glow of two scales, its weights moved away from the identity."""
    made = ARCHITECTURES["glow"](EVENT, 0.9)
    made.initialise(images(64).float())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return made.double().requires_grad_(False)


class Parameters(nn.Module):
    """normflows' inverse is (z - shift) exp(-scale), ours exp(s) z + t."""

    def __init__(self, ours: AffineCoupling) -> None:
        super().__init__()
        self.ours = ours

    def forward(self, a: Tensor) -> Tensor:
        b = a.new_zeros(len(a), self.ours.n_channels - self.ours.n_kept, *a.shape[2:])
        shifted = self.ours(torch.cat([a, b], dim=1))[:, self.ours.n_kept :]
        s = (self.ours(torch.cat([a, b + 1], dim=1))[:, self.ours.n_kept :] - shifted).log()
        pairs = torch.stack([-shifted * (-s).exp(), -s], dim=2)  # interleaved
        return pairs.flatten(1, 2)


def converted(layer: AnyBijection) -> nn.Module:
    """normflows' layer with the numbers of ours."""
    nf = pytest.importorskip("normflows")
    if isinstance(layer, Squeeze):
        return nf.flows.Squeeze()
    if isinstance(layer, Mixing):
        theirs = nf.flows.Invertible1x1Conv(layer.n_channels).double()
        theirs.W.data = layer.weight()
        return theirs
    if isinstance(layer, ActNorm):
        theirs = nf.flows.ActNorm((layer.n_channels, 1, 1)).double()
        theirs.s.data = -layer.log_scale[None, :, None, None]
        theirs.t.data = -layer.shift[None, :, None, None]
        theirs.data_dep_init_done = torch.tensor(1.0)
        return theirs
    assert isinstance(layer, AffineCoupling)
    return nf.flows.AffineCouplingBlock(Parameters(layer), scale_map="exp")


def test_log_prob_is_that_of_normflows_multiscale_flow(flow: ResidualFlow) -> None:
    """The same numbers in `MultiscaleFlow`, whose `Composite` adds log-dets in float32."""
    nf = pytest.importorskip("normflows")
    logit, *layers = flow.bijections
    assert isinstance(logit, Logit)
    levels, event, bases = [], EVENT, []
    while layers:
        levels.append([converted(f) for f in layers if not isinstance(f, FactorOut | Flatten)])
        event = (4 * event[0], event[1] // 2, event[2] // 2)
        last = layers[-1]
        layers = last.inner.bijections if isinstance(last, FactorOut) else []
        event = (event[0] // 2, *event[1:]) if layers else event
        bases.append(nf.distributions.DiagGaussian(event, trainable=False))
    merges = [nf.flows.Merge("channel_inv") for _ in levels[1:]]
    # Theirs are ordered from latent to data, the coarsest level first.
    ordered = [[nf.flows.Composite(level[::-1])] for level in levels[::-1]]
    theirs = nf.MultiscaleFlow(bases[::-1], ordered, merges, class_cond=False).double()
    x = images(6)
    y, log_det = logit.forward_and_log_det(x)
    torch.testing.assert_close(
        flow.log_prob(x), theirs.log_prob(y, None) + log_det, rtol=2e-6, atol=0
    )


def test_the_log_det_is_that_of_the_whole_jacobian(flow: ResidualFlow) -> None:
    x = images(2)
    z, log_det = flow.forward_and_log_det(x)
    for row, value in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: flow(v[None])[0].flatten(), row)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian.reshape(64, 64))[1], value)
    torch.testing.assert_close(flow.inverse(z).value, x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("is_image", [False, True])
def test_a_coupling_is_the_identity_at_first_and_never_stretches_beyond_its_bound(
    is_image: bool,
) -> None:
    layer = AffineCoupling(5, 8, is_image)
    x = torch.randn(4, 5, *((3, 3) if is_image else ()), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x), x)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(50.0)
        z, log_det = layer.forward_and_log_det(x)
    n_moved = 3 * (9 if is_image else 1)
    assert (log_det.abs() <= LARGEST_LOG_SCALE * n_moved + 1e-4).all()
    assert log_det.abs().max() > LARGEST_LOG_SCALE, "it is reached"
    torch.testing.assert_close(z[:, :2], x[:, :2])


def test_one_channel_is_refused() -> None:
    with pytest.raises(ValueError, match="n_channels"):
        AffineCoupling(1)
