"""Base densities, temperature, and samples in batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from small_flows import generator, images, normal, vectors
from torch import Tensor, nn

from resflow_bench.flows import (
    ActNorm,
    BaseDensity,
    DiagonalNormal,
    NormalMixture,
    ResidualBlock,
    ResidualFlow,
    StandardNormal,
    ToError,
)
from resflow_bench.flows.composition import AnyBijection
from resflow_bench.logdet import Determinant

DIM = 3


def diagonal() -> DiagonalNormal:
    base = DiagonalNormal(DIM)
    base.mean.data = torch.tensor([1.0, -2.0, 0.5])
    base.log_scale.data = torch.tensor([0.3, -0.7, 0.0])
    return base


def mixture() -> NormalMixture:
    base = NormalMixture(DIM, 2)
    base.means.data = torch.tensor([[3.0, 0.0, 1.0], [-1.0, 2.0, 0.0]])
    base.log_scales.data = torch.tensor([[0.1, -0.4, 0.0], [-1.0, 0.2, 0.3]])
    base.logits.data = torch.tensor([0.0, math.log(3.0)])
    return base


def density(base: BaseDensity, z: np.ndarray) -> np.ndarray:
    """log p(z) by SciPy."""

    def of(mean: Tensor, log_scale: Tensor) -> np.ndarray:
        scale = log_scale.detach().double().exp().numpy()
        return stats.norm.logpdf(z, mean.detach().double().numpy(), scale).sum(1)

    if isinstance(base, NormalMixture):
        parts = [of(*pair) for pair in zip(base.means, base.log_scales, strict=True)]
        return np.logaddexp(parts[0] + math.log(0.25), parts[1] + math.log(0.75))
    if isinstance(base, DiagonalNormal):
        return of(base.mean, base.log_scale)
    return of(torch.zeros(DIM), torch.zeros(DIM))


BASES = {"standard": lambda: StandardNormal(DIM), "diagonal": diagonal, "mixture": mixture}
EACH = pytest.mark.parametrize("name", BASES)


@EACH
def test_the_log_density_is_scipy_s(name) -> None:
    base = BASES[name]().double()
    z = 3 * normal(50, DIM).double()
    expected = torch.from_numpy(density(base, z.numpy()))
    torch.testing.assert_close(base.log_prob(z), expected, rtol=1e-6, atol=0)  # float32 logits


@EACH
def test_samples_have_the_moments_of_the_density(name) -> None:
    """Within four standard errors: 4,000 draws see a shift of 0.06 standard deviations."""
    base, n = BASES[name](), 4000
    z = base.sample(n, generator()).detach().double()
    if name == "mixture":
        w, m, s = torch.tensor([[0.25], [0.75]]), base.means, base.log_scales.exp()
        mean = (w * m).sum(0)
        variance = (w * (s**2 + m**2)).sum(0) - mean**2
    else:
        is_diagonal = name == "diagonal"
        mean = base.mean if is_diagonal else torch.zeros(DIM)
        variance = base.log_scale.exp() ** 2 if is_diagonal else torch.ones(DIM)
    mean, variance = mean.detach().double(), variance.detach().double()
    assert ((z.mean(0) - mean).abs() < 4 * (variance / n).sqrt()).all()
    squares = (z - mean).square()
    assert ((squares.mean(0) - variance).abs() < 4 * squares.std(0) / n**0.5).all()
    assert not ((z.mean(0) - mean - 0.1 * variance.sqrt()).abs() < 4 * (variance / n).sqrt()).any()
    assert base.sample(0, generator()).shape == (0, DIM)


def test_the_default_is_the_standard_normal_with_the_numbers_and_the_state_of_before() -> None:
    flow = vectors()
    z = torch.randn(4, DIM, generator=generator(5))
    assert torch.equal(flow.sample(4, generator(5)), flow.inverse(z, certify=False).value)
    assert all(name.startswith("layers.") for name in flow.state_dict())
    for dtype in (torch.float64, torch.bfloat16):
        assert flow.to(dtype).base.sample(2).dtype == dtype
    given = flow.float()
    log_p = given.with_estimator(Determinant()).log_prob(z)
    z, log_det = given.with_estimator(Determinant()).forward_and_log_det(z)
    assert torch.equal(log_p, -0.5 * (z.square().sum(-1) + DIM * math.log(2 * math.pi)) + log_det)


@pytest.mark.parametrize("name", ["diagonal", "mixture"])
def test_a_base_is_trained_saved_and_moved_with_its_flow(name) -> None:
    base = BASES[name]()
    flow = ResidualFlow.mlp(DIM, (8,), 1, 0.9, estimator=Determinant(), base=base)
    assert {n for n in flow.state_dict() if n.startswith("base.")} == {
        f"base.{n}" for n in base.state_dict()
    }
    x = normal(5, DIM).double()
    flow = flow.double()
    log_p = flow.log_prob(x)
    z, log_det = flow.forward_and_log_det(x)
    expected = torch.from_numpy(density(base, z.detach().numpy())) + log_det
    torch.testing.assert_close(log_p, expected, rtol=1e-6, atol=1e-9)
    log_p.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in base.parameters())


def test_a_mixture_fits_two_modes_better() -> None:
    """Two narrow modes far apart, which a contractive flow of a normal base has to join."""
    side = torch.where(torch.rand(512, 1, generator=generator(1)) < 0.5, -1.0, 1.0)
    x = 2 * side * torch.tensor([[1.0, 0.0]]) + 0.2 * normal(512, 2)
    held_out, reached = x[256:], {}
    for name, base in (("normal", DiagonalNormal(2)), ("mixture", NormalMixture(2, 2))):
        flow = ResidualFlow.mlp(2, (8,), 2, 0.8, estimator=Determinant(), base=base)
        flow.initialise(x[:256])
        adam = torch.optim.Adam(flow.parameters(), lr=2e-2)
        for _ in range(150):
            adam.zero_grad()
            (-flow.log_prob(x[:256]).mean()).backward()
            adam.step()
            flow.update()
        with torch.no_grad():
            reached[name] = float(flow.log_prob(held_out).mean())
    assert reached["mixture"] > reached["normal"] + 0.3, reached


def test_samples_move_with_a_learnable_base() -> None:
    """d/dtheta of samples, base included, against autograd through an unrolled inverse."""
    base = diagonal().double()
    flow = ResidualFlow.mlp(DIM, (8,), 2, 0.8, base=base).double()
    weights = torch.linspace(-1.0, 2.0, 4 * DIM, dtype=torch.float64).view(4, DIM)
    for temperature in (1.0, 0.7):
        x = flow.rsample(4, generator(3), temperature=temperature)
        found = torch.autograd.grad((weights * x.sin()).sum(), list(flow.parameters()))
        noise = torch.randn(4, DIM, generator=generator(3), dtype=torch.float64)
        whole = base.mean + temperature * base.log_scale.exp() * noise
        for layer in reversed(flow.bijections):
            whole = _unrolled(layer, whole)
        torch.testing.assert_close(x, whole, rtol=0, atol=1e-11)
        expected = torch.autograd.grad((weights * whole.sin()).sum(), list(flow.parameters()))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def _unrolled(layer: AnyBijection, z: Tensor) -> Tensor:
    if not isinstance(layer, ResidualBlock):
        assert isinstance(layer, ActNorm)
        return layer.inverse(z)
    x = z
    for _ in range(200):
        x = z - layer.branch(x)
    return x


def test_reverse_divergence_trains_the_base_alone() -> None:
    """KL(N(m, s^2) || N(2, 0.5^2)) to 0, by samples whose log-density is the flow's own."""
    base = DiagonalNormal(1)
    flow = ResidualFlow.mlp(1, (4,), 1, 0.5, estimator=Determinant(), base=base)
    target = torch.distributions.Normal(2.0, 0.5)
    adam, noise, losses = torch.optim.Adam(base.parameters(), lr=5e-2), generator(), []
    for _ in range(150):
        adam.zero_grad()
        x, log_q = flow.sample_and_log_prob(64, noise)
        loss = (log_q - target.log_prob(x)[:, 0]).mean()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[0] > 1
    assert abs(sum(losses[-20:])) / 20 < 0.02


def test_a_temperature_scales_the_latents_of_a_normal_base() -> None:
    for base in (None, diagonal()):
        flow = ResidualFlow.mlp(DIM, (8,), 1, 0.9, estimator=Determinant(), base=base)
        mean = torch.zeros(DIM) if base is None else base.mean.detach()
        z, cool = (flow(flow.sample(6, generator(2), temperature=t)) for t in (1.0, 0.5))
        torch.testing.assert_close(cool - mean, 0.5 * (z - mean), rtol=1e-4, atol=1e-4)
        x, log_p = flow.sample_and_log_prob(6, generator(2), temperature=0.5)
        torch.testing.assert_close(x, flow.sample(6, generator(2), temperature=0.5))
        torch.testing.assert_close(log_p, flow.log_prob(x))  # that of the flow, at T = 1


@pytest.mark.parametrize("make", [vectors, images])
def test_samples_do_not_depend_on_the_size_of_batches(make) -> None:
    flow = make()
    expected = flow.sample(10, generator(1))
    for size in (1, 3, 10, 64):
        found = flow.sample(10, generator(1), batch_size=size)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    certified = flow.sample(10, generator(1), ToError(1e-4), batch_size=4)
    torch.testing.assert_close(certified, expected, rtol=1e-4, atol=1e-4)
    assert flow.sample(0, generator(), batch_size=3).shape == (0, *flow.event)


def test_batches_take_their_contexts_with_them() -> None:
    flow = ResidualFlow.mlp(DIM, (8,), 2, 0.9, context=2)
    for block in flow.blocks:
        block.branch.conditioner.out.data.add_(0.3)  # type: ignore[union-attr]
    context = normal(7, 2, seed=4)
    expected = flow.sample(7, generator(1), context=context)
    torch.testing.assert_close(
        flow.sample(7, generator(1), context=context, batch_size=3), expected, rtol=0, atol=1e-4
    )
    one = flow.sample(7, generator(1), context=context[0], batch_size=3)
    torch.testing.assert_close(one[0], expected[0], rtol=0, atol=1e-4)
    assert (one[1:] - expected[1:]).abs().amax(1).min() > 1e-3


def test_the_failure_of_an_inverse_in_a_later_batch_is_raised() -> None:
    bad = torch.cat([torch.zeros(4, DIM), torch.full((1, DIM), math.nan)])
    flow = ResidualFlow([*vectors().layers], DIM, base=Own(lambda n: bad))
    with pytest.raises(ArithmeticError):
        flow.sample(5, batch_size=2)


class Own:
    """A base density that is no module."""

    def __init__(self, sample=lambda n: torch.zeros(n, DIM), log_prob=lambda z: z.sum(1)) -> None:
        self._sample, self.log_prob = sample, log_prob

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self._sample(n)


def test_a_base_of_one_s_own_needs_two_methods() -> None:
    flow = ResidualFlow.mlp(DIM, (8,), 1, 0.9, estimator=Determinant(), base=Own())
    x = flow.sample(4)
    torch.testing.assert_close(flow(x), torch.zeros(4, DIM))
    z, log_det = flow.forward_and_log_det(x)
    assert torch.equal(flow.log_prob(x), z.sum(1) + log_det)
    assert flow.sample_and_log_prob(4)[1].requires_grad


def test_what_does_not_fit_is_refused() -> None:
    flow = vectors()
    for value in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"positive, finite temperature; got {value}"):
            flow.sample(2, temperature=value)
    for size in (0, -1, 1.5):
        with pytest.raises(ValueError, match="batch_size"):
            flow.sample(2, batch_size=size)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="with `log_prob` and `sample`, see `BaseDensity`; Flatten"):
        ResidualFlow([*flow.layers], DIM, base=nn.Flatten())  # type: ignore[arg-type]
    mixed = ResidualFlow([*flow.layers], DIM, base=mixture())
    with pytest.raises(ValueError, match="NormalMixture has no temperature, a method"):
        mixed.sample(2, temperature=0.5)
    with pytest.raises(TypeError, match="no gradient in the parameters of NormalMixture"):
        mixed.rsample(2)
    mixed.base.requires_grad_(False)  # type: ignore[union-attr]
    assert mixed.rsample(2).requires_grad
    wrong = ResidualFlow([*flow.layers], DIM, base=Own(log_prob=lambda z: z))
    with pytest.raises(ValueError, match=r"log_prob of shape \(B,\); Own gave \(4, 3\)"):
        wrong.log_prob(normal(4, DIM))
    with pytest.raises(ValueError, match=r"z of shape \(B, 2\)"):
        ResidualFlow([*flow.layers], DIM, base=StandardNormal(2)).log_prob(normal(4, DIM))
