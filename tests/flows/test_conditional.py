"""Conditional flows: values against float64 oracles at each context, certificates, and a fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from small_flows import generator, normal
from torch import Tensor, nn

from resflow_bench.fixed_point import Solution
from resflow_bench.fixed_point.windows import solve_in_windows
from resflow_bench.flows import (
    ActNorm,
    Inversion,
    MultiScale,
    ResidualBlock,
    ResidualFlow,
    ToTolerance,
    composition,
    image_flow,
)
from resflow_bench.flows import inversion as inversion_module
from resflow_bench.jacobian import dense_jacobian
from resflow_bench.layers import GivenBranch, conditional, conv_branch, dense_branch, mlp_branch
from resflow_bench.logdet import (
    Arnoldi,
    Averaged,
    Determinant,
    Exact,
    Fixed,
    LogDetEstimator,
    Rademacher,
    Series,
    autograd,
    tuned,
)
from resflow_bench.logdet import exact as exact_module

DTYPE = torch.float64
N = 5
N_CONTEXT = 3


def disturbed(flow: ResidualFlow) -> ResidualFlow:
    """In float64, with parameters away from 0, so that the context has an effect."""
    flow = flow.double()
    for parameter in flow.parameters():
        noise = torch.randn(parameter.shape, generator=generator(2), dtype=DTYPE)
        parameter.data.add_(0.2 * noise)
    flow.align()
    return flow


def vectors() -> ResidualFlow:
    return ResidualFlow.mlp(3, (8, 8), 3, 0.9, context=N_CONTEXT)


def dense() -> ResidualFlow:
    branch = conditional(dense_branch(3, 4, 2, 0.8), N_CONTEXT, width=8)
    return ResidualFlow([ActNorm(3), ResidualBlock(branch)], 3)


def images() -> ResidualFlow:
    scales = MultiScale(n_blocks=1, hidden=(4, 4), tail_hidden=(8,), mixing=True, context=N_CONTEXT)
    return image_flow((2, 4, 4), scales)


FLOWS: dict[str, Callable[[], ResidualFlow]] = {
    "vectors": vectors,
    "dense": dense,
    "images": images,
}
EACH = pytest.mark.parametrize("name", FLOWS)


def points(flow: ResidualFlow, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = 0.5 + 0.1 * normal(N, *flow.event, seed=seed).double()
    return x, normal(N, N_CONTEXT, seed=seed + 1).double()


def jacobians(flow: ResidualFlow, x: Tensor, context: Tensor) -> Tensor:
    """dz/dx of each example alone, (B, d, d), by autograd."""
    each = [
        torch.autograd.functional.jacobian(lambda one, c=c: flow(one[None], c[None])[0], point)
        for point, c in zip(x, context, strict=True)
    ]
    return torch.stack(each).view(len(x), flow.dim, flow.dim)


@EACH
def test_the_log_det_is_that_of_each_example_s_jacobian_in_x(name) -> None:
    flow = disturbed(FLOWS[name]()).with_estimator(Determinant())
    x, context = points(flow)
    expected = jacobians(flow, x, context).det().abs().log()
    z, log_det = flow.forward_and_log_det(x, context=context)
    torch.testing.assert_close(log_det, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(z, flow(x, context), rtol=0, atol=1e-12)
    base = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(flow.log_prob(x, context=context), base + expected)
    other = flow.forward_and_log_det(x, context=context.roll(1, 0))[1]
    assert (other - expected).abs().min() > 1e-4  # the rows of the context matter


@EACH
@pytest.mark.parametrize(
    "estimator",
    [
        LogDetEstimator(Rademacher(), Fixed(8), n_probes=2),
        LogDetEstimator(Rademacher(), Fixed(8), n_probes=2, products=autograd),
        LogDetEstimator(Rademacher(), Fixed(8), gradient=Series()),
        LogDetEstimator(Rademacher(), Fixed(4), expansion=Arnoldi()),
        Averaged(LogDetEstimator(Rademacher(), Fixed(8)), 2),
        Exact(),
    ],
    ids=["probes", "autograd", "series", "arnoldi", "averaged", "exact"],
)
def test_an_estimator_treats_each_example_as_alone(name, estimator) -> None:
    """One context in the batch gives the numbers of a batch with that context throughout."""
    flow = disturbed(FLOWS[name]()).with_estimator(estimator)
    x, context = points(flow)
    together = flow.log_prob(x, generator(), context)
    for k in range(2):
        alike = flow.log_prob(x, generator(), context[k])
        torch.testing.assert_close(together[k], alike[k], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(alike, flow.log_prob(x, generator(), context[1:2]))


def test_many_examples_are_evaluated_in_slices_with_their_contexts(monkeypatch) -> None:
    flow = disturbed(vectors())
    x, context = points(flow)
    for estimator in (Determinant(), Exact()):
        whole = flow.with_estimator(estimator).log_prob(x, context=context)
        with monkeypatch.context() as patch:
            patch.setattr(exact_module, "CHUNK_NUMBERS", 18)
            parts = flow.with_estimator(estimator).log_prob(x, context=context)
        torch.testing.assert_close(parts, whole)


def test_an_estimator_is_chosen_for_a_branch_whatever_its_context() -> None:
    flow = disturbed(vectors())
    x, context = points(flow)
    base = LogDetEstimator(Rademacher(), Fixed(4))
    chosen = tuned(flow.branches(x, context), base, generator=generator(), n_draws=2)
    assert flow.with_estimator(chosen).log_prob(x, generator(), context[0]).isfinite().all()


@pytest.mark.parametrize("dtype", [DTYPE, torch.float32])
def test_gradients_reach_the_context_and_its_network(dtype) -> None:
    """Against autograd of the exact log-det, with unequal weights."""
    flow = disturbed(vectors()).to(dtype)
    network = [normal(N_CONTEXT, 4).to(dtype).requires_grad_()]
    x, c = (t.to(dtype) for t in points(flow))
    x.requires_grad_()
    inputs = [x, *network, *flow.parameters()]
    weights = torch.linspace(-1.0, 2.0, N, dtype=dtype)

    def gradient(estimator) -> Tensor:
        context = (c[:, :1].repeat(1, 4) @ network[0].mT).tanh()
        log_p = flow.with_estimator(estimator).log_prob(x, generator(), context)
        parts = torch.autograd.grad((weights * log_p).sum(), inputs)
        return torch.cat([part.flatten() for part in parts])

    expected = gradient(Exact())
    tolerance = 1e-9 if dtype == DTYPE else 1e-4
    assert (gradient(Determinant()) - expected).norm() < tolerance * expected.norm()
    many = LogDetEstimator(Rademacher(), Fixed(60), n_probes=500)
    for estimator in (many, replace(many, gradient=Series())):
        assert (gradient(estimator) - expected).norm() < 0.1 * expected.norm()


@EACH
def test_the_certificate_holds_at_any_context_and_is_unchanged_by_it(name) -> None:
    """||J_g||_2 <= K at contexts up to 1e3, and K is that of the branch without a conditioner."""
    flow = disturbed(FLOWS[name]())
    x, context = points(flow)
    for size in (1.0, 1e3):
        for g, h in flow.branches(x, size * context):
            assert isinstance(g, GivenBranch)
            certified = g.lipschitz_certified()
            alone = type(g.branch)(*g.branch.stages, lipschitz=g.lipschitz)
            assert certified == alone.lipschitz_certified() <= g.lipschitz * (1 + 1e-9)
            assert float(g.lipschitz_bound()) == pytest.approx(certified, rel=1e-9)
            norms = torch.linalg.matrix_norm(dense_jacobian(autograd(g, h).jacobian, h), 2)
            assert norms.max() <= certified * (1 + 1e-9)
            assert norms.max() > 1e-3


@EACH
@pytest.mark.parametrize("settings", [{}, {"error": 1e-4}, {"dtype": torch.float32}], ids=str)
def test_the_inverse_is_right_and_its_bound_holds(name, settings) -> None:
    """Of float32 latents, against the float64 inverse; the bound holds and is no triviality."""
    wide = disturbed(FLOWS[name]())
    x, context = points(wide, seed=3)
    z, context = wide(x, context).float(), context.float()
    flow = FLOWS[name]()
    flow.load_state_dict({k: t.float() for k, t in wide.state_dict().items()})
    flow.update()
    inversion = Inversion(**settings)
    solution = flow.inverse(z, inversion, context=context).raise_if_failed()
    exact = FLOWS[name]().double()
    exact.load_state_dict({k: t.double() for k, t in flow.state_dict().items()})
    newton = Inversion(dtype=torch.float64, max_steps=5000)
    truth = exact.inverse(z.double(), newton, context=context.double()).raise_if_failed().value
    error = (solution.value.double() - truth).flatten(1).norm(dim=1)
    assert (error <= solution.error_bound).all()
    assert (solution.error_bound < 1e-3).all()
    again = exact(solution.value.double(), context.double())
    assert (again - z).abs().max() < 1e-4
    wrong = flow.inverse(z, inversion, context=context.roll(1, 0)).value
    assert ((wrong.double() - truth).flatten(1).norm(dim=1) > solution.error_bound).all()


def test_examples_that_end_early_take_their_contexts_with_them() -> None:
    """Half of the examples converge at once: the rest go on with the right rows."""
    flow = disturbed(vectors())
    z, context = normal(64, 3).double(), normal(64, N_CONTEXT, seed=1).double()
    z[::2], context[::2] = 0.0, 0.0
    whole = flow.inverse(z, ToTolerance(), context=context).value
    parts = [flow.inverse(z[k : k + 1], context=context[k]).value for k in range(64)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=0, atol=1e-12)
    refined = flow.inverse(z, Inversion(error=1e-9), context=context).raise_if_failed().value
    torch.testing.assert_close(whole, refined, rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", [vectors, images])
@pytest.mark.parametrize("settings", [{}, {"error": 1e-4}], ids=str)
def test_the_attempts_of_other_devices_take_contexts(make, settings, monkeypatch) -> None:
    """Few steps for all examples, planned beforehand, reach the same x within its bound."""
    flow = disturbed(make())
    x, context = points(flow)
    z, inversion = flow(x, context), Inversion(**settings)
    expected = flow.inverse(z, inversion, context=context).value
    monkeypatch.setattr(composition, "_is_off_cpu", lambda x: True)
    monkeypatch.setattr(inversion_module, "solve", in_windows)
    solution = flow.inverse(z, inversion, context=context).raise_if_failed()
    error = (solution.value - x).flatten(1).norm(dim=1)
    assert (error <= solution.error_bound + 1e-9).all()
    torch.testing.assert_close(solution.value, expected, rtol=0, atol=1e-4)


def in_windows(f, x0, step, *, rtol, atol, max_steps, args) -> Solution:
    return solve_in_windows(f, x0, step, rtol, atol, max_steps, args)


def test_a_shift_that_cancels_a_bias_counts_as_rounding() -> None:
    g = conditional(mlp_branch(3, (8,), 0.9), N_CONTEXT).double()
    x, c = normal(2, 3).double(), torch.ones(2, N_CONTEXT, dtype=DTYPE)
    g.conditioner.out.data[-3:] = 1e6
    shift = g.conditioner(c)[:, -3:]
    g.layers[-1].bias.data -= shift[0]
    given = GivenBranch(g, c)
    assert (given(x).norm(dim=1) < 10).all()
    assert (given.magnitude(x) > shift.norm(dim=1)).all()


def test_a_view_leaves_the_flow_as_it_is_and_certifies_once() -> None:
    flow = disturbed(vectors())
    x, context = points(flow)
    before = [name for name, _ in flow.named_modules()], list(flow.state_dict())
    flow.log_prob(x, generator(), context)
    flow.inverse(flow(x, context), context=context)
    assert before == ([name for name, _ in flow.named_modules()], list(flow.state_dict()))
    assert not any(block.has_changed() for block in flow.blocks)


def test_initialise_normalises_at_the_context_of_each_example() -> None:
    flow = disturbed(vectors())
    x, context = normal(200, 3).double(), normal(200, N_CONTEXT, seed=1).double()
    flow.initialise(x, context)
    for layer, h in flow.inputs(x, context):
        if isinstance(layer, ActNorm):
            z = layer(h)
            assert z.mean(0).abs().max() < 1e-9
            torch.testing.assert_close(z.std(0), torch.ones(3, dtype=DTYPE))


def test_two_bytes_under_autocast() -> None:
    flow = disturbed(vectors()).float()
    x, context = (t.float() for t in points(flow))
    expected = flow.log_prob(x, generator(), context)
    with torch.autocast("cpu", torch.bfloat16):
        found = flow.log_prob(x, generator(), context)
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.1)


def crescent(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """x, whose mean turns with an angle, of a standard deviation that shrinks with it."""
    angle = 3 * torch.rand(n, 1, generator=generator(seed))
    mean = 2 * torch.cat([angle.cos(), angle.sin()], dim=1)
    return mean + (0.6 - 0.15 * angle) * normal(n, 2, seed=seed + 1), angle


def fitted(context: int | None) -> float:
    """Held-out nats per example after 150 steps."""
    estimator = Determinant()
    flow = ResidualFlow.mlp(2, (16,), 3, 0.9, estimator=estimator, context=context)
    (x, angle), (held_out, its_angle) = crescent(256, 0), crescent(1000, 10)
    c, its_c = (None, None) if context is None else (angle, its_angle)
    flow.initialise(x, c)
    adam = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(150):
        adam.zero_grad()
        (-flow.log_prob(x, context=c).mean()).backward()
        adam.step()
        flow.update()
    with torch.no_grad():
        return float(flow.log_prob(held_out, context=its_c).mean())


def test_a_context_pays_on_data_that_ask_for_it() -> None:
    assert fitted(1) > fitted(None) + 0.5


def test_what_does_not_fit_is_refused() -> None:
    flow, plain = vectors(), ResidualFlow.mlp(3, (8,), 1, 0.9)
    x, c = normal(4, 3), normal(4, N_CONTEXT)
    for call in (flow, flow.log_prob, flow.inverse, flow.initialise, flow.branches):
        with pytest.raises(ValueError, match="needs `context`, 3 numbers for each example; got no"):
            call(x)
    with pytest.raises(ValueError, match="takes no context; got one"):
        plain.log_prob(x, context=c)
    with pytest.raises(ValueError, match="takes no context; got one"):
        plain.sample(4, context=c)
    for wrong, said in (
        (c[:, :2], r"context of shape \(B, 3\); got \(4, 2\)"),
        (c[:3], "a context for each of 4 examples, or one for all; got 3"),
        (c.double(), "got context of torch.float64|got context of float64"),
        (torch.tensor(1.0), "context of shape"),
        (c[:, 0], r"context of shape \(B, 3\); got \(4,\)"),
    ):
        with pytest.raises(ValueError, match=said):
            flow.sample(4, context=wrong)
    with pytest.raises(TypeError, match="context as a tensor; got list"):
        flow.sample(4, context=[1.0, 2.0, 3.0])  # type: ignore[arg-type]
    branch = flow.blocks[0].branch
    with pytest.raises(ValueError, match="This branch needs a context of 3 numbers"):
        branch(x)
    with pytest.raises(ValueError, match="a context for each example; got 3 for 4"):
        GivenBranch(branch, c[:3])(x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a branch with a conditioner"):
        GivenBranch(mlp_branch(3, (8,), 0.9), c)
    other = conditional(mlp_branch(3, (8,), 0.9), 2)
    with pytest.raises(ValueError, match=r"contexts of sizes \[2, 3\]"):
        ResidualFlow([ResidualBlock(other), *flow.layers], 3)
    with pytest.raises(ValueError, match="n_out together, 11; got n_out=19"):
        type(other)(*other.stages, lipschitz=0.9, conditioner=branch.conditioner)


def test_a_context_shifts_the_channels_of_a_convolution() -> None:
    g = conditional(conv_branch(2, (4, 4), (3, 3), (4,), 0.9), N_CONTEXT)
    assert isinstance(g.conditioner, nn.Module)
    x, c = normal(N, 2, 4, 4), normal(N, N_CONTEXT)
    torch.testing.assert_close(GivenBranch(g, c)(x), GivenBranch(g, 0 * c)(x))  # V is 0 at first
    g.conditioner.out.data[4] = 1.0  # of the last layer's first channel
    moved = GivenBranch(g, c)(x) - GivenBranch(g, 0 * c)(x)
    assert moved[:, 1].abs().max() < 1e-6
    torch.testing.assert_close(moved[:, 0], moved[:, :1, :1, :1].expand(N, 1, 4, 4)[:, 0])
    assert moved[:, 0].abs().min() > 1e-3
