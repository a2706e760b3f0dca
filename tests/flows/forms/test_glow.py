"""Glow against autograd's exact Jacobian, against normflows, and as a flow without an estimate."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resflow_bench.architectures import GLOW_STEPS, glow_architecture
from resflow_bench.data import dataset_named
from resflow_bench.flows import ActNorm, AffineCoupling, FactorOut, Mixing, ResidualFlow
from resflow_bench.flows.forms import Squeeze
from resflow_bench.flows.forms.coupling import _spectral_bound
from resflow_bench.logdet import exact_log_det
from resflow_bench.training import Trainer, Training

DTYPE = torch.float64
IMAGES = (1, 8, 8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def glow(event: tuple[int, ...]) -> ResidualFlow:
    """With parameters away from where they start, in float64."""
    flow = glow_architecture(event, 0.9).double()
    noise = generator(1)
    with torch.no_grad():
        for parameter in flow.parameters():
            step = torch.randn(parameter.shape, generator=noise, dtype=DTYPE)
            parameter.add_(0.02 * step)
    return flow.requires_grad_(False)


def examples(event: tuple[int, ...], n: int = 3) -> Tensor:
    return torch.rand(n, *event, generator=generator(2), dtype=DTYPE)


@pytest.mark.parametrize("event", [IMAGES, (2, 8, 4), (5,)], ids=str)
def test_the_log_det_is_that_of_the_exact_jacobian(event: tuple[int, ...]) -> None:
    flow, x = glow(event), examples(event)
    z, log_det = flow.forward_and_log_det(x)
    truth = exact_log_det(lambda u: flow(u).view_as(u) - u, x)
    torch.testing.assert_close(log_det, truth, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(z, flow(x))


@pytest.mark.parametrize("event", [IMAGES, (5,)], ids=str)
def test_the_inverse_is_within_its_bound(event: tuple[int, ...]) -> None:
    """In float32 and float64; the bound is finite, however far above the error."""
    flow, x = glow(event).float(), examples(event)
    exact = copy.deepcopy(flow).double()  # the parameters as rounded
    z = flow(x.float())
    solution = flow.inverse(z).raise_if_failed()
    truth = exact.inverse(z.double())
    torch.testing.assert_close(truth.value, x, rtol=0, atol=1e-3)
    assert solution.error_bound is not None
    assert truth.error_bound is not None
    error = (solution.value.double() - truth.value).flatten(1).norm(dim=1)
    assert bool((error <= solution.error_bound + truth.error_bound).all())
    assert bool(solution.error_bound.isfinite().all())


def test_the_bound_of_a_convolution_is_near_its_norm() -> None:
    """Against the dense matrix on a grid of 10 x 10, where the padding hardly shows."""
    weight = torch.randn(2, 3, 3, 3, generator=generator(3), dtype=DTYPE)
    unit = torch.eye(300, dtype=DTYPE).view(300, 3, 10, 10)
    matrix = torch.nn.functional.conv2d(unit, weight, padding=1).flatten(1)
    norm = float(torch.linalg.matrix_norm(matrix, 2))
    assert norm <= _spectral_bound(weight) < 1.2 * norm


class Interleaved(nn.Module):
    """Shift and scale of normflows' coupling, which goes from latent to data: -t exp(-s) and s.

    b = z exp(-s) - t exp(-s) there is z = exp(s) b + t here.
    """

    def __init__(self, coupling: AffineCoupling) -> None:
        super().__init__()
        self.coupling = coupling

    def forward(self, a: Tensor) -> Tensor:
        s, t = self.coupling.scale_and_shift(a)
        return torch.stack([-t * (-s).exp(), -s], dim=2).flatten(1, 2)


def glow_block(nf: Any, *step: nn.Module) -> nn.Module:
    """normflows' GlowBlock with the same weights."""
    actnorm, mixing, coupling = step
    assert isinstance(actnorm, ActNorm)
    assert isinstance(mixing, Mixing)
    assert isinstance(coupling, AffineCoupling)
    block = nf.flows.GlowBlock(mixing.n_channels, 4, scale_map="exp").double()
    theirs, convolution, norm = block.flows
    theirs.flows[1].param_map = Interleaved(coupling)
    n = mixing.n_channels
    convolution.P.copy_(torch.eye(n, dtype=DTYPE)[mixing.rows])
    convolution.L.data, convolution.U.data = mixing.lower.data, mixing.upper.data
    convolution.log_S.data = mixing.log_scale.data
    convolution.sign_S.copy_(mixing.sign)
    norm.s.data.copy_(-actnorm.log_scale.view(1, n, 1, 1))
    norm.t.data.copy_(-actnorm.shift.view(1, n, 1, 1))
    norm.data_dep_init_done = torch.tensor(1.0)
    return block


def test_the_density_is_that_of_normflows_with_the_same_weights() -> None:
    """Data in R^d, as normflows' Logit has another domain; ours is tested above."""
    nf = pytest.importorskip("normflows")
    flow = glow(IMAGES)
    rest: list[nn.Module] = list(flow.layers)[1:]
    x = 2 * examples(IMAGES) - 1
    levels: list[list[nn.Module]] = []
    bases: list[nn.Module] = []
    event: tuple[int, ...] = IMAGES
    inner = rest
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecated functions in their constructors
        while inner:
            assert isinstance(inner[0], Squeeze)
            n = 3 * GLOW_STEPS
            steps = [glow_block(nf, *inner[1 + k : 4 + k]) for k in range(0, n, 3)]
            levels.insert(0, [*reversed(steps), nf.flows.Squeeze()])
            event = (4 * event[0], event[1] // 2, event[2] // 2)
            last = inner[1 + n]
            inner = list(last.inner) if isinstance(last, FactorOut) else []
            event = (event[0] // 2, *event[1:]) if inner else event
            bases.insert(0, nf.distributions.DiagGaussian(event, trainable=False).double())
        merges = [nf.flows.Merge("channel_inv") for _ in levels[1:]]
        theirs = nf.MultiscaleFlow(bases, levels, merges, class_cond=False)
        expected = theirs.log_prob(x, None)
    ours = ResidualFlow(rest, IMAGES).double().log_prob(x)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize(("dataset", "n_steps"), [("moons", 60), ("digits", 20)])
def test_it_trains_saves_loads_and_samples(dataset: str, n_steps: int, tmp_path: Path) -> None:
    data = dataset_named(dataset)
    flow = glow_architecture(data.event, 0.9)
    trainer = Trainer(flow, data, Training(n_steps, batch_size=64, learning_rate=2e-3))
    losses = [trainer.step() for _ in range(n_steps)]
    assert sum(losses[-10:]) < sum(losses[:10]) - 1.0
    assert trainer.excess() == 0.0
    flow.save(tmp_path / "glow.pt")
    again = ResidualFlow.load(tmp_path / "glow.pt")
    x = data.prepare(data.train[:4], generator())
    assert torch.equal(again.log_prob(x), flow.log_prob(x))
    samples, log_p = again.sample_and_log_prob(4, generator())
    assert samples.shape == x.shape
    log_p.sum().backward()
    torch.testing.assert_close(flow.inverse(flow(x)).value, x, rtol=0, atol=1e-3)
    # The density is a formula: it takes no draw, and so has no noise.
    assert torch.equal(again.log_prob(x, generator(1)), again.log_prob(x, generator(2)))


def test_sizes_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(ValueError, match=r"multiples of 4; got \(1, 6, 6\)"):
        glow_architecture((1, 6, 6), 0.9)
    with pytest.raises(ValueError, match="n_channels of at least 2"):
        glow_architecture((1,), 0.9)
