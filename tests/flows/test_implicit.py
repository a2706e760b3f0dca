"""Gradients of samples, against autograd through an unrolled inverse in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from resflow_bench.flows import (
    ActNorm,
    InverseBlock,
    MonotoneBlock,
    MultiScale,
    ResidualBlock,
    ResidualFlow,
    image_flow,
    implicit,
    preimage,
)
from resflow_bench.flows.bijection import ClosedForm
from resflow_bench.flows.composition import Chain, FactorOut
from resflow_bench.layers import ELU, LinearBranch, mlp_branch
from resflow_bench.logdet import Determinant

DTYPE = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unrolled(layer: object, z: Tensor) -> Tensor:
    """The inverse with a graph of all its steps."""
    match layer:
        case Chain():
            for part in reversed(layer.bijections):
                z = unrolled(part, z)
            return z
        case FactorOut():
            n = layer.n_kept * math.prod(layer.event[1:])
            kept = z[:, :n].unflatten(1, (layer.n_kept, *layer.event[1:]))
            return torch.cat([kept, unrolled(layer.inner, z[:, n:])], dim=1)
        case ResidualBlock():
            x = z
            for _ in range(200):
                x = z - layer.g(x)
            return x
        case InverseBlock():
            return layer.block(z)
        case MonotoneBlock():
            w = z
            for _ in range(200):
                w = z + layer.g(w)
            return 2 * w - z
        case ClosedForm():
            return layer.inverse(z)
    raise AssertionError(layer)


def vectors() -> ResidualFlow:
    draws = generator(1)
    layers: list[nn.Module] = []
    for activation in (None, ELU):
        settings = {} if activation is None else {"activation": activation}
        branch = mlp_branch(3, (8,), 0.8, generator=draws, **settings)
        layers += [ActNorm(3), ResidualBlock(branch)]
    layers.append(ResidualBlock(LinearBranch(0.5 * torch.eye(3), 0.6)))
    return ResidualFlow(layers, 3)


def both_families() -> ResidualFlow:
    """An implicit block, and a monotone one."""
    first, second, third = (mlp_branch(3, (8,), 0.8, generator=generator(s)) for s in (1, 2, 3))
    implicit_block = (ResidualBlock(first), InverseBlock(ResidualBlock(second)))
    return ResidualFlow([ActNorm(3), *implicit_block, MonotoneBlock(third)], 3)


def images() -> ResidualFlow:
    settings = MultiScale(n_scales=2, n_blocks=1, hidden=(4, 4), tail_hidden=(8, 8), mixing=True)
    return image_flow((2, 4, 4), settings)


def conditional() -> ResidualFlow:
    return ResidualFlow.mlp(3, (8,), 3, 0.9, context=2)


FLOWS: dict[str, Callable[[], ResidualFlow]] = {
    "vectors": vectors,
    "implicit and monotone blocks": both_families,
    "images": images,
    "conditional": conditional,
}


def context_of(flow: ResidualFlow, n: int) -> Tensor | None:
    """Contexts of n examples, whose gradient is also tested, if the flow takes any."""
    if flow.n_context is None:
        return None
    c = torch.randn(n, flow.n_context, generator=generator(9), dtype=DTYPE)
    return c.requires_grad_()


def inputs(flow: ResidualFlow, context: Tensor | None) -> list[Tensor]:
    return [*flow.parameters(), *([] if context is None else [context])]


def disturbed(flow: ResidualFlow) -> ResidualFlow:
    """In float64, with parameters away from their special initial values."""
    flow = flow.double()
    for parameter in flow.parameters():
        noise = torch.randn(parameter.shape, generator=generator(2), dtype=DTYPE)
        parameter.data.add_(0.1 * noise)
    flow.align()
    return flow


def relative_error(found: list[Tensor], expected: list[Tensor]) -> float:
    one, other = (torch.cat([t.flatten() for t in parts]) for parts in (found, expected))
    return float((one - other).norm() / other.norm())


def gradients(flow: ResidualFlow, x: Tensor, context: Tensor | None) -> list[Tensor]:
    weights = torch.linspace(-1.0, 2.0, x.numel(), dtype=x.dtype).view_as(x)
    value = (weights * x + x.sin()).sum()
    found = torch.autograd.grad(value, inputs(flow, context), allow_unused=True)
    return [torch.zeros(()) if g is None else g for g in found]


@pytest.mark.parametrize("name", FLOWS)
def test_the_gradient_is_that_of_an_unrolled_inverse(name) -> None:
    flow = disturbed(FLOWS[name]())
    z = torch.randn(5, flow.dim, generator=generator(7), dtype=DTYPE)
    c = context_of(flow, 5)
    x = flow.rsample(5, generator(7), context=c)
    assert torch.equal(x.detach(), flow.sample(5, generator(7), context=c))
    expected = gradients(flow, unrolled(flow.layers.given(c), z), c)
    assert relative_error(gradients(flow, x, c), expected) < 1e-9
    constant = flow.sample(5, generator(7), context=c)  # with a step of each layer's own inverse
    short = one_step(flow.layers.given(c), z, constant)
    assert relative_error(gradients(flow, short, c), expected) > 1e-3
    layers = flow.float().layers.given(None if c is None else c.float())
    single = implicit.attached(layers, z.float(), constant.float())
    assert relative_error(gradients(flow, single, c), expected) < 1e-4


def one_step(layers: Chain, z: Tensor, x: Tensor) -> Tensor:
    """The error that the test has to see: blocks' systems left unsolved, x = z - g(x)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preimage, "_solved", lambda branch, x, v: v)
        return implicit.attached(layers, z, x)


@pytest.mark.parametrize("name", FLOWS)
def test_log_prob_of_samples_has_the_gradient_of_the_whole(name) -> None:
    """d/dtheta of log q_theta(x_theta(z)), the log-determinant and the inverse both moving."""
    flow = disturbed(FLOWS[name]()).with_estimator(Determinant())
    c = context_of(flow, 4)
    x, log_q = flow.sample_and_log_prob(4, generator(3), context=c)
    torch.testing.assert_close(log_q, flow.log_prob(x, context=c), rtol=1e-9, atol=1e-9)
    parameters = inputs(flow, c)
    found = torch.autograd.grad(log_q.sum() + x.sum(), parameters, allow_unused=True)
    z = torch.randn(4, flow.dim, generator=generator(3), dtype=DTYPE)
    whole = unrolled(flow.layers.given(c), z)
    total = flow.log_prob(whole, context=c).sum() + whole.sum()
    expected = torch.autograd.grad(total, parameters, allow_unused=True)
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if b is not None]
    assert relative_error([a for a, _ in pairs], [b for _, b in pairs]) < 1e-6


def test_reverse_divergence_to_a_gaussian_trains() -> None:
    """From 0.5 nat and more to less than 0.01."""
    mean, scale = torch.tensor([0.5, -0.3]), torch.tensor([[1.0, 0.0], [0.6, 0.7]])
    target = torch.distributions.MultivariateNormal(mean, scale_tril=scale)
    flow = ResidualFlow.mlp(2, (16,), 3, 0.9).with_estimator(Determinant())
    noise, losses = generator(0), []
    adam = torch.optim.Adam(flow.parameters(), lr=2e-2)
    for _ in range(120):
        adam.zero_grad()
        x, log_q = flow.sample_and_log_prob(64, noise)
        loss = (log_q - target.log_prob(x)).mean()
        loss.backward()
        adam.step()
        flow.update()
        losses.append(loss.item())
    x, log_q = flow.sample_and_log_prob(4000, noise)
    divergence = log_q.detach() - target.log_prob(x.detach())
    assert losses[0] > 0.3
    assert divergence.mean() < 0.01
    assert divergence.mean() > -4 * divergence.std() / 4000**0.5


def test_what_has_no_gradient_is_refused() -> None:
    flow = vectors()
    value = flow.rsample(3, generator()).sum()
    with pytest.raises(ValueError, match="Leave out `create_graph=True`"):
        torch.autograd.grad(value, list(flow.parameters()), create_graph=True, allow_unused=True)

    class Own(nn.Module):
        def forward_and_log_det(self, x, estimator, generator=None):
            return x, x.new_zeros(len(x))

        def forward(self, x):
            return x

        def inverse(self, z, inversion, error=None, certify=True):
            return ResidualBlock(LinearBranch(torch.zeros(3, 3), 0.5)).inverse(
                z, inversion, error, certify
            )

    mixed = ResidualFlow([Own(), ActNorm(3)], 3)
    with pytest.raises(TypeError, match="no gradient through Own"):
        mixed.rsample(2, generator())


def test_a_flow_without_gradients_and_an_empty_batch_have_samples() -> None:
    flow = images()
    assert flow.rsample(0, generator()).shape == (0, 2, 4, 4)
    frozen = flow.requires_grad_(False)
    assert not frozen.rsample(2, generator()).requires_grad
