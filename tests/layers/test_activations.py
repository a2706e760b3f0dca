"""Activations against autograd, and against their constants on a fine grid."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from resflow_bench.layers import ELU, Activation, CLipSwish, LipSwish, ReLU, Sine, Softplus, Tanh
from resflow_bench.layers.maps import Elementwise

ACTIVATIONS = [LipSwish, CLipSwish, Tanh, ELU, Softplus, Sine, ReLU]


def points(n: int, seed: int = 0) -> Tensor:
    """(n, 2)."""
    draw = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, 2, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("make", ACTIVATIONS)
@pytest.mark.parametrize("raw_beta", [-3.0, 0.5, 4.0])
def test_an_activation_attains_its_lipschitz_constant_and_no_more(make, raw_beta):
    """On a grid of spacing 4e-5, where the largest slope is missed by less than 3e-9; float64."""
    phi = make().double()
    scale = 1.0
    for beta in phi.parameters():  # the swishes: stretch the grid with the sharpness
        nn.init.constant_(beta, raw_beta)
        scale = 1 / nn.functional.softplus(beta.detach())
    z = torch.linspace(-20, 20, 1_000_001, dtype=torch.float64)[:, None] * scale
    with torch.no_grad():
        y, slope = phi.value_and_derivative(z)
        steepest = ((y[1:] - y[:-1]) / (z[1:] - z[:-1])).norm(dim=1).max()
    slopes = slope.norm(dim=1)
    assert slopes.max() <= phi.lipschitz * (1 + 1e-15)
    assert slopes.max() >= phi.lipschitz * (1 - 3e-9)
    assert phi.lipschitz * (1 - 3e-9) <= steepest <= phi.lipschitz * (1 + 3e-9)


def test_the_constants_are_those_of_the_literature_before_rounding():
    assert pytest.approx(1.0998393 / 1.1, rel=1e-7) == LipSwish.lipschitz
    assert pytest.approx(1.0039650 / 1.004, rel=1e-7) == CLipSwish.lipschitz


@pytest.mark.parametrize("make", ACTIVATIONS)
def test_the_derivative_is_that_of_autograd(make):
    phi = make().double()
    assert isinstance(phi, Activation)
    far = torch.tensor([[0.0, -0.0], [-50.0, 50.0]], dtype=torch.float64)
    z = torch.cat([points(100), far]).requires_grad_()
    y, jacobian = Elementwise(phi).linearise(z)
    assert y.shape == (102, 2 * phi.expansion)
    torch.testing.assert_close(y, phi(z), rtol=1e-15, atol=0)
    v = torch.cat([points(102, seed=1)] * phi.expansion, dim=1)
    (truth,) = torch.autograd.grad(phi(z), z, v)
    torch.testing.assert_close(jacobian.vjp(v), truth, rtol=0, atol=1e-14)
    with torch.no_grad():
        torch.testing.assert_close(jacobian.vjp(v[None].clone()), truth[None], rtol=0, atol=1e-14)


@pytest.mark.parametrize("make", ACTIVATIONS)
def test_without_gradients_the_numbers_are_the_same(make):
    """To the last bit, and the argument is left alone, whatever is computed in place."""
    phi = make()
    z = points(100).float()
    given = z.clone()
    forward, (y, slope) = phi(z), phi.value_and_derivative(z)
    with torch.no_grad():
        assert torch.equal(phi(z), forward)
        for alone, recorded in zip(phi.value_and_derivative(z), (y, slope), strict=True):
            assert torch.equal(alone, recorded)
    assert torch.equal(forward, y)
    assert torch.equal(z, given)


def test_the_halves_of_a_concatenated_activation_belong_to_the_same_input():
    """On images, (B, C, H, W): channel j and channel C + j are functions of channel j alone."""
    phi = CLipSwish().double()
    z = points(16).view(2, 4, 2, 2).requires_grad_()
    v = points(32, seed=1).view(2, 8, 2, 2)
    y, jacobian = Elementwise(phi).linearise(z)
    (truth,) = torch.autograd.grad(phi(z), z, v)
    torch.testing.assert_close(jacobian.vjp(v), truth, rtol=0, atol=1e-14)
    torch.testing.assert_close(y[:, 4:], phi(-z)[:, :4], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("make", ACTIVATIONS)
def test_value_and_derivative_can_be_differentiated_twice(make):
    """In z and in the activation's own parameters."""
    phi = make().double()
    z = torch.linspace(-4, 4, 8, dtype=torch.float64).view(4, 2)
    assert (z.abs() > 1e-3).all()  # away from the kink
    inputs = (z.requires_grad_(), *phi.parameters())

    def both(z, *parameters):
        return phi.value_and_derivative(z)

    assert gradcheck(both, inputs)
    assert gradgradcheck(both, inputs)


@pytest.mark.parametrize("make", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_nan_at_zero_or_far_out(make, dtype):
    phi = make().to(dtype)
    z = torch.tensor([[0.0, -0.0, 1e-30, -1e4, 1e4]], dtype=dtype, requires_grad=True)
    y, slope = phi.value_and_derivative(z)
    (first,) = torch.autograd.grad(y.sum(), z, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum() + first.sum(), z)
    for tensor in (y, slope, first, second):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("make", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_the_constant_is_of_the_function_as_computed(make, dtype):
    """|phi(y) - phi(z)| <= Lip |y - z| between neighbours, to rounding, where formulas change too.

    The twin is torch's softplus, which jumps by 2e-9 at 20.
    """
    eps = torch.finfo(dtype).eps

    def excess(phi, lipschitz: float) -> float:
        z = torch.linspace(-50, 50, 1001, dtype=dtype)[:, None]
        y = z * (1 + 4 * eps)
        rise = (phi(y) - phi(z)).double().norm(dim=1)
        rounding = 4 * eps * phi(z).double().norm(dim=1)
        return float((rise - lipschitz * (y - z).double().abs()[:, 0] - rounding).max())

    phi = make().to(dtype)
    assert excess(phi, phi.lipschitz) <= 0
    if dtype == torch.float64:
        assert excess(nn.functional.softplus, 1.0) > 1e-9
