"""Gradients that are written out, against autograd: a branch's linearisation and s^T J v."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from resflow_bench.jacobian import JacobianChain
from resflow_bench.jacobian.operator import inner
from resflow_bench.layers import Branch, CLipSwish, LinearBranch, LipSwish, Tanh, fused, mlp_branch
from resflow_bench.logdet import Fixed, LogDetEstimator, Neumann, Rademacher, Taylor

DTYPE = torch.float64
B, D = 5, 4


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=DTYPE)


def branch(scale: float = 4.0, activation: Callable[[], LipSwish | CLipSwish] = LipSwish) -> Branch:
    """Weights beyond their norm at scale 4, within it at 0.1; biases that bend every slope."""
    g = mlp_branch(D, (6, 7), 0.8, activation, generator()).double()
    with torch.no_grad():
        for name, parameter in g.named_parameters():
            parameter.mul_(scale) if name.endswith("weight") else parameter.add_(0.3)
    g.align()
    return g


def stage_by_stage(g: Branch, x: Tensor) -> tuple[Tensor, JacobianChain]:
    """The linearisation that autograd differentiates."""
    return g.normalised().linearise(x)


def results(g: Branch, x: Tensor, linearise: Callable) -> list[Tensor]:
    """y and s^T J v, for some s and v."""
    y, jacobian = linearise(g, x)
    return [y, inner(jacobian.vjp(normal(2, B, D, seed=1)), normal(2, B, D, seed=2))]


def every_gradient(g: Branch, linearise: Callable, upstream: tuple[float, float]) -> list[Tensor]:
    """The gradient of a weighted sum of both results, in x and all parameters."""
    x = normal(B, D, seed=3).requires_grad_()
    y, form = results(g, x, linearise)
    weights = normal(B, seed=4)
    total = upstream[0] * (y.sin() * weights[:, None]).sum() + upstream[1] * (form * weights).sum()
    return list(torch.autograd.grad(total, [x, *g.parameters()]))


def largest_difference(ours: list[Tensor], truth: list[Tensor]) -> float:
    return max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-3))
        for a, b in zip(ours, truth, strict=True)
    )


@pytest.mark.parametrize("scale", [4.0, 0.1])
@pytest.mark.parametrize("upstream", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_a_fused_linearisation_is_that_of_its_stages(scale, upstream) -> None:
    g = branch(scale)
    assert g._fusable is not None
    ours, truth = (every_gradient(g, way, upstream) for way in (Branch.linearise, stage_by_stage))
    assert largest_difference(ours, truth) < 1e-13


def test_its_values_are_those_without_a_gradient_to_the_last_bit() -> None:
    g, x = branch(), normal(B, D)
    attached = results(g, x, Branch.linearise)
    with torch.no_grad():
        plain = results(g, x, Branch.linearise)
    assert all(torch.equal(a, b) for a, b in zip(attached, plain, strict=True))


def test_constant_parameters_and_no_bias() -> None:
    g = branch()
    g.layers[0].bias = None  # type: ignore[attr-defined]
    g.layers[1].weight.requires_grad_(False)  # type: ignore[attr-defined]
    found = []
    for linearise in (Branch.linearise, stage_by_stage):
        y, form = results(g, normal(B, D), linearise)
        (y.sum() + form.sum()).backward()
        found.append([p.grad for p in g.parameters() if p.requires_grad])
        assert g.layers[1].weight.grad is None  # type: ignore[attr-defined]
        g.zero_grad()
    assert largest_difference(*found) < 1e-13


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("_weight_back", lambda d_w, *_: d_w.clone()),  # W_c's norm taken for a constant
        ("swish_backward", lambda z, raw, beta, slope, d, _: (slope * d, 0 * raw)),
    ],
)
def test_twins_that_leave_a_part_out_are_rejected(name, twin, monkeypatch) -> None:
    g = branch()
    truth = every_gradient(g, stage_by_stage, (1.0, 1.0))
    monkeypatch.setattr(fused, name, twin)
    assert largest_difference(every_gradient(g, Branch.linearise, (1.0, 1.0)), truth) > 1e-3


def test_other_branches_and_types_go_stage_by_stage() -> None:
    assert mlp_branch(D, (6,), 0.8, Tanh)._fusable is None
    g = branch()
    assert fused.pays(g.stages, normal(B, D))
    assert not fused.pays(g.stages, normal(2, B, D))
    assert not fused.pays(g.stages, normal(B, D).float())
    with torch.no_grad():
        assert not fused.pays(g.stages, normal(B, D))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not fused.pays(g.stages, normal(B, D))


def test_a_second_derivative_is_autograds() -> None:
    g = branch()
    found = []
    for linearise in (Branch.linearise, stage_by_stage):
        x = normal(B, D, seed=3).requires_grad_()
        y, form = results(g, x, linearise)
        inputs = [x, *g.parameters()]
        first = torch.autograd.grad(y.sin().sum() + form.sin().sum(), inputs, create_graph=True)
        square = sum(gradient.square().sum() for gradient in first)
        found.append(list(torch.autograd.grad(square, inputs)))
    assert largest_difference(*found) < 1e-12


# s^T J v


def bilinear(g, n_probes: int, estimate: Callable, second: bool = False) -> list[Tensor]:
    """Gradients of the attached value (or of their squares' sum) in x and the parameters."""
    x = normal(B, D, seed=3).requires_grad_()
    terms = Fixed(6).draw(B, x, None)
    v = normal(n_probes, B, D, seed=5)
    value = estimate(g.linearise(x)[1], v, terms)
    inputs = [x, *g.parameters()]
    total = (value * normal(B, seed=6)).sum()
    first = torch.autograd.grad(total, inputs, create_graph=second, materialize_grads=True)
    if not second:
        return list(first)
    square = sum(gradient.square().sum() for gradient in first)
    return list(torch.autograd.grad(square, inputs, materialize_grads=True))


def ours(jacobian, v, terms) -> Tensor:
    return Neumann().estimate(Taylor(), jacobian, v, terms, 0).value


def by_autograd(jacobian, v, terms, swap: bool = False) -> Tensor:
    """s^T J v with a graph; the twin takes v^T J s."""
    s = Taylor().expand(jacobian, v, terms, 0, adjoint=True).adjoint
    assert s is not None
    return inner(jacobian.vjp(v), s) if swap else inner(jacobian.vjp(s), v)


@pytest.mark.parametrize("activation", [LipSwish, CLipSwish])
@pytest.mark.parametrize("n_probes", [1, 3])
def test_the_gradient_from_both_sides_is_autograds(activation, n_probes) -> None:
    g = branch(activation=activation)
    found, truth = (bilinear(g, n_probes, way) for way in (ours, by_autograd))
    assert largest_difference(found, truth) < 1e-12
    twin = bilinear(g, n_probes, lambda *a: by_autograd(*a, swap=True))
    assert largest_difference(twin, truth) > 1e-3


def test_its_own_derivative_is_that_of_the_form() -> None:
    """Held against s^T J v with s constant; each number of J counts once, not through others."""

    def form(jacobian, v, terms) -> Tensor:
        s = Taylor().expand(jacobian, v, terms, 0, adjoint=True).adjoint
        return jacobian.bilinear_gradient(s, v)

    g = branch()
    found, truth = (bilinear(g, 2, way, second=True) for way in (form, by_autograd))
    assert largest_difference(found, truth) < 1e-12


def test_a_constant_jacobian_has_no_gradient() -> None:
    x = normal(B, D).requires_grad_()
    out = LogDetEstimator(Rademacher(), Fixed(4))(LinearBranch(0.5 * torch.eye(D).double(), 0.9), x)
    assert not out.value.requires_grad
