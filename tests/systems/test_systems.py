"""Every system as a bijection of a flow: exact log-dets, round trips, files, losses, samples."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from resflow_bench.architectures import ARCHITECTURES
from resflow_bench.flows import ActNorm, Chain, ResidualBlock, ResidualFlow, ToError
from resflow_bench.layers import Uncertified, mlp_branch
from resflow_bench.logdet import Determinant, Exact, Fixed, Gaussian, LogDetEstimator, Rademacher
from resflow_bench.systems import (
    SYSTEMS,
    AdaptivePath,
    Continuous,
    Discrete,
    LipschitzField,
    exactness,
    n_parameters,
    residual_flow,
    score,
)
from resflow_bench.systems.fields import PATHS, exact_trace, hutchinson_trace, transported
from resflow_bench.systems.made import residual_parameters
from resflow_bench.systems.ode import METHODS, integrate

pytest.importorskip("zuko")


def made(name: str, event: tuple[int, ...] = (3,), bend: float = 0.1) -> ResidualFlow:
    """The system in float64, its weights moved by normal numbers times `bend`."""
    flow = ARCHITECTURES[name](event, 0.9)
    flow.initialise(points(64, *event).float())
    flow = flow.double().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in flow.parameters():
        parameter.add_(bend * torch.randn(parameter.shape, generator=generator).double())
    return flow


def points(n: int, *event: int) -> Tensor:
    return torch.randn(n, *event, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_log_det_is_that_of_the_whole_jacobian(name: str) -> None:
    """To rounding for closed forms; to the error of 64 Runge-Kutta steps for paths."""
    flow, x = made(name), points(4, 3)
    if isinstance(path := flow.bijections[-1], Continuous):
        path.n_steps = 64
    z, log_det = flow.with_estimator(Determinant()).forward_and_log_det(x)
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(lambda v: flow(v[None])[0], row) for row in x]
    )
    tolerance = 1e-6 if isinstance(path, Continuous) else 1e-10
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian)[1], rtol=0, atol=tolerance)
    solution = flow.inverse(z)
    torch.testing.assert_close(solution.value, x, rtol=0, atol=1e-5)
    assert solution.error_bound is not None
    assert solution.error_bound.isinf().all(), "nothing is known of its inverse"


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    flow = made(name)
    flow.save(tmp_path / "flow.pt")
    again = ResidualFlow.load(tmp_path / "flow.pt")
    torch.testing.assert_close(again(points(3, 3)), flow(points(3, 3)), rtol=0, atol=0)


def test_a_fresh_process_loads_a_system_by_the_flow_s_class_alone(tmp_path: Path) -> None:
    made("flow-matching").save(tmp_path / "flow.pt")
    code = (
        "from resflow_bench.flows import ResidualFlow; import sys; ResidualFlow.load(sys.argv[1])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "flow.pt")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("dim", [2, 16])
def test_parameters_are_about_those_of_the_residual_flow(name: str, dim: int) -> None:
    """Within a third: a transform more or less is one of up to eight."""
    found = n_parameters(ARCHITECTURES[name]((dim,), 0.9)) / residual_parameters(dim)
    assert 0.66 < found < 1.34
    mlp = n_parameters(ARCHITECTURES["mlp"]((dim,), 0.9))
    assert mlp == pytest.approx(residual_parameters(dim), rel=0.06)


def test_images_become_vectors() -> None:
    flow = ARCHITECTURES["realnvp"]((1, 4, 4), 0.9)
    x = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    flow.initialise(x)
    assert flow.log_prob(x).shape == (5,)
    assert flow.sample(2, torch.Generator().manual_seed(0)).shape == (2, 1, 4, 4)


def test_nice_keeps_volume_and_realnvp_does_not() -> None:
    """zuko's class NICE is affine by default."""
    x = points(4, 3)
    for kind, keeps in (("nice", True), ("realnvp", False)):
        _, log_det = Discrete(kind, 3).double().forward_and_log_det(x)
        assert bool((log_det.abs() < 1e-12).all()) == keeps


@pytest.mark.parametrize("name", ["nice", "realnvp", "maf", "nsf", "neural-ode"])
def test_the_mass_is_one(name: str) -> None:
    """Of a slightly bent flow: on a grid that holds it the midpoint rule is exact to 1e-3."""
    n = 90 if name == "neural-ode" else 400  # it is smooth, and costs more
    ticks = 12 * (2 * torch.arange(n, dtype=torch.float64) + 1 - n) / n
    grid = torch.cartesian_prod(ticks, ticks)
    p = made(name, (2,), bend=0.03).with_estimator(Exact()).log_prob(grid).exp()
    assert float(p.sum()) * (24 / n) ** 2 == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("probe", [Rademacher(), Gaussian()])
def test_the_trace_is_unbiased_with_the_probe_s_variance(probe: Rademacher | Gaussian) -> None:
    """20,000 draws of one point: mean within 4.5 standard errors, variance within 5 %."""
    field = made("ffjord").bijections[-1].field  # type: ignore[union-attr]
    x, t = points(1, 3), torch.full((1,), 0.3, dtype=torch.float64)
    n = 20_000
    v = probe.sample(n, x, torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, exact = exact_trace(field, x, t)
        _, mean = hutchinson_trace(field, x, t, v)
    a = torch.autograd.functional.jacobian(lambda y: field(y[None], t)[0], x[0])
    squares = (0.5 * (a + a.T)).square()
    variance = 2 * float(squares.sum())
    if isinstance(probe, Rademacher):
        variance -= 2 * float(squares.diagonal().sum())
    assert abs(float(mean - exact)) < 4.5 * math.sqrt(variance / n)
    forms = torch.einsum("mi,ij,mj->m", v[:, 0], a, v[:, 0])
    torch.testing.assert_close(forms.mean()[None], mean)
    assert float(forms.var()) == pytest.approx(variance, rel=0.05)


def test_the_trace_follows_the_flow_s_estimator() -> None:
    flow, x = made("ffjord"), points(5, 3)
    one = flow.with_estimator(LogDetEstimator(Rademacher(), Fixed(1), 1))
    many = flow.with_estimator(LogDetEstimator(Rademacher(), Fixed(7), 512))
    exact = flow.with_estimator(Exact()).log_prob(x)

    def error(of: ResidualFlow) -> float:
        with torch.no_grad():
            log_prob = of.log_prob(x, torch.Generator().manual_seed(3))
        return float((log_prob - exact).square().mean())

    assert error(many) < error(one) / 50
    always = made("neural-ode")
    torch.testing.assert_close(always.log_prob(x), always.log_prob(x), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_the_order_of_a_method_on_a_linear_equation(name: str, order: int) -> None:
    """dx/dt = a x with dl/dt = a: x(1) = e^a x, l = a exactly."""
    x, a = points(3, 2), -1.3

    def error(n: int) -> float:
        rates = lambda t, y: (a * y, torch.full((len(y),), a, dtype=y.dtype))  # noqa: E731
        end, integral = integrate(rates, x, 0.0, 1.0, METHODS[name], n)
        torch.testing.assert_close(integral, torch.full((3,), a, dtype=x.dtype))
        return float((end - math.exp(a) * x).norm())

    assert math.log2(error(32) / error(64)) == pytest.approx(order, abs=0.05)


@pytest.mark.parametrize("method", ["euler", "midpoint"])
def test_the_constant_of_a_step_holds_at_any_weights(method: str, tmp_path: Path) -> None:
    """Weights far outside the promise: an update keeps it, for the field and its steps."""
    flow = made("certified-flow-matching", bend=3.0)
    path = flow.bijections[-1]
    assert isinstance(path, Continuous)
    field = path.field
    assert isinstance(field, LipschitzField)
    assert field.lipschitz_bound() > 30
    flow.update()
    steps = residual_flow(flow, 20, method).requires_grad_(False)
    h_l = 14.4 / 20
    promised = h_l * (1 + h_l / 2) if method == "midpoint" else h_l
    assert steps.blocks[0].lipschitz == pytest.approx(promised)
    x, y = points(400, 3), 1e-3 * points(800, 3)[400:]
    for block in steps.blocks:
        certified = block.branch.lipschitz_certified()
        assert certified <= promised * (1 + 1e-6)
        moved = (block.branch(x + y) - block.branch(x)).norm(dim=1) / y.norm(dim=1)
        assert 0.02 * certified < float(moved.max()) <= certified
    steps.save(tmp_path / "steps.pt")
    again = ResidualFlow.load(tmp_path / "steps.pt")
    torch.testing.assert_close(again(x), steps(x), rtol=0, atol=0)


def test_the_inverse_of_certified_steps_has_a_bound() -> None:
    """In float32, where rounding matters: to the inverse in float64, found by more steps."""
    flow = made("certified-flow-matching", bend=0.3)
    flow.update()
    for method in ("euler", "midpoint"):
        steps = residual_flow(flow, 40, method).requires_grad_(False)
        single = copy.deepcopy(steps).float()
        z32 = points(20, 3).float()
        truth = copy.deepcopy(single).double().inverse(z32.double(), certify=False).value
        solution = single.inverse(z32)
        error = (solution.value.double() - truth).norm(dim=1)
        assert bool((error <= solution.error_bound).all())
        assert float(solution.error_bound.max()) < 1e-2  # type: ignore[union-attr]
        certain = single.inverse(z32, ToError(1e-3))
        assert bool(certain.converged.all())


def test_a_flow_updates_a_field_and_leaves_what_promises_nothing() -> None:
    """Also a field inside another bijection; a branch inside an `Uncertified` is the user's."""
    path, user = Continuous(2, (8,), lipschitz=3.0), mlp_branch(2, (8,), 0.9)
    flow = ResidualFlow([Chain(path, ActNorm(2)), ResidualBlock(Uncertified(user))], 2)
    with torch.no_grad():
        for weight in flow.parameters():
            weight.add_(3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    before = user.lipschitz_certified()
    assert float(path.field.lipschitz_bound()) > 3.5  # type: ignore[operator]
    for follow in (flow.update, flow.align):
        follow()
        assert float(path.field.lipschitz_bound()) <= 3.0 * (1 + 1e-6)  # type: ignore[operator]
        assert user.lipschitz_certified() == before > 1


def test_a_path_by_zuko_is_that_of_its_field(tmp_path: Path) -> None:
    """Against 64 steps of the classical method; the trace exact, or of one probe in mean."""
    flow, x = made("flow-matching"), points(5, 3)
    fixed = flow.bijections[-1]
    assert isinstance(fixed, Continuous)
    fixed.n_steps = 64
    field = fixed.field.requires_grad_(True)
    path = ResidualFlow([AdaptivePath(field, 1e-8)], 3)
    alone = ResidualFlow([fixed], 3).with_estimator(Exact())
    exact = path.with_estimator(Exact())
    expected, found = alone.log_prob(x), exact.log_prob(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    gradients = [
        torch.autograd.grad(one.sum(), tuple(field.parameters())) for one in (found, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(path.inverse(path(x)).value, x, rtol=0, atol=1e-6)
        state, many = torch.get_rng_state(), x[:1].expand(400, -1)
        draws = path.log_prob(many, torch.Generator().manual_seed(0)) - expected[0]
        assert torch.equal(torch.get_rng_state(), state), "no draw of the global generator"
    assert float(draws.std()) > 0.01
    assert abs(float(draws.mean())) < 4.5 * float(draws.std()) / 400**0.5
    exact.save(tmp_path / "path.pt")
    again = ResidualFlow.load(tmp_path / "path.pt").with_estimator(Exact())
    torch.testing.assert_close(again.log_prob(x), found, rtol=0, atol=1e-9)
    assert "by zuko to 1e-08" in exactness(path)
    with pytest.raises(ValueError, match="positive tolerance"):
        AdaptivePath(field, -1.0)


class _Swinging(nn.Module):
    """u = 5 cos(8 t) x in d = 3: from x = 0 z is 0, and the log-det is -15 sin(8) / 8."""

    dim, n_calls = 3, 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.n_calls += 1
        return 5 * (8 * t).cos()[:, None] * x


def test_zuko_controls_the_log_det_100_times_more_loosely() -> None:
    """Where z takes no steps of its own: by 50 tolerances, and by less than one if it is told."""
    errors, calls = [], []
    for scale in (0.01, 1.0):
        path = AdaptivePath(field := _Swinging(), 1e-6, scale)  # type: ignore[arg-type]
        z, log_det = path.forward_and_log_det(0 * points(1, 3), Exact())
        assert bool((z == 0).all())
        errors.append(abs(float(log_det) + 15 * math.sin(8) / 8) / 1e-6)
        calls.append(field.n_calls)
    assert 20 < errors[0] < 200
    assert errors[1] < 1
    assert calls[1] > 2 * calls[0]


@pytest.mark.parametrize("name", PATHS)
def test_the_velocity_of_a_path_is_its_derivative(name: str) -> None:
    noise, data = points(4, 2), points(8, 2)[4:]
    t = torch.tensor([0.1, 0.4, 0.7, 0.9], dtype=torch.float64)
    ends = PATHS[name](noise, data, 0 * t), PATHS[name](noise, data, 0 * t + 1)
    torch.testing.assert_close(ends[0].x, noise)
    torch.testing.assert_close(ends[1].x, data, rtol=1e-6, atol=1e-6)
    later, sooner = (PATHS[name](noise, data, t + s).x for s in (1e-6, -1e-6))
    difference = (later - sooner) / 2e-6
    torch.testing.assert_close(
        PATHS[name](noise, data, t).velocity, difference, rtol=1e-6, atol=1e-6
    )


def test_the_score_of_gaussian_data() -> None:
    """Data N(0, s^2): E[velocity | x] is linear, and p_t = N(0, cos^2 + s^2 sin^2)."""
    s, x = 0.5, points(4, 2)
    t = torch.tensor([0.0, 0.3, 0.6, 0.9], dtype=torch.float64)
    a = 0.5 * math.pi * t[:, None]
    variance = a.cos() ** 2 + s**2 * a.sin() ** 2

    def field(y: Tensor, _: Tensor) -> Tensor:
        return 0.5 * math.pi * (s**2 - 1) * a.sin() * a.cos() / variance * y

    torch.testing.assert_close(score(field, x, t), -x / variance)


def test_a_regression_recovers_the_linear_field_of_gaussian_data() -> None:
    """Its minimiser's loss at the exact field is the conditional variance; the gradient is 0 in
    mean there. Held by the value: for x = (1-t) n + t y, the best loss is E Var(y - n | x_t).
    """
    path = Continuous(1, (8,), objective="straight")
    x = torch.randn(50_000, 1, generator=torch.Generator().manual_seed(0))
    path.field = _Best()  # type: ignore[assignment]
    with torch.no_grad():
        loss = path.loss(x, torch.Generator().manual_seed(1))
    t = np.linspace(0, 1, 2001)
    mean = np.mean(1 / ((1 - t) ** 2 + t**2))  # Var(y - n | x_t) at unit variances
    assert float(loss) == pytest.approx(mean, rel=0.02)  # type: ignore[arg-type]


class _Best(torch.nn.Module):
    """E[data - noise | x_t] for standard normal data and noise."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = t[:, None]
        return (2 * t - 1) / ((1 - t) ** 2 + t**2) * x


def test_transport_pairs_each_example_once_at_the_least_cost() -> None:
    noise, data = points(6, 2), 3 * points(12, 2)[6:]
    paired = transported(noise, data)
    assert sorted(map(tuple, paired.tolist())) == sorted(map(tuple, noise.tolist()))
    cost = float((paired - data).square().sum())
    generator = torch.Generator().manual_seed(0)
    for _ in range(500):
        other = noise[torch.randperm(6, generator=generator)]
        assert float((other - data).square().sum()) >= cost - 1e-9


def test_a_regression_does_not_train_the_layers_in_front() -> None:
    """ActNorm could shrink the data, and with them the loss."""
    flow = ARCHITECTURES["flow-matching"]((2,), 0.9)
    x = points(32, 2).float()
    flow.initialise(x)
    flow.loss(x, torch.Generator().manual_seed(0)).backward()
    front, path = flow.bijections[:-1], flow.bijections[-1]
    assert all(p.grad is None for layer in front for p in layer.parameters())  # type: ignore[union-attr]
    assert all(p.grad is not None for p in path.parameters())  # type: ignore[union-attr]


def test_the_loss_of_others_is_the_negative_log_likelihood() -> None:
    for name in ("mlp", "nsf", "ffjord"):
        flow, x = ARCHITECTURES[name]((2,), 0.9), points(32, 2).float()
        loss = flow.loss(x, torch.Generator().manual_seed(0))
        log_prob = flow.log_prob(x, torch.Generator().manual_seed(0))
        torch.testing.assert_close(loss, -log_prob.mean())


def test_gradients_of_a_path_are_those_of_finite_differences() -> None:
    flow, x = made("neural-ode"), points(3, 3)
    weight = flow.bijections[-1].field.weights[0]  # type: ignore[union-attr]
    weight.requires_grad_(True)
    flow.log_prob(x).sum().backward()
    with torch.no_grad():
        found = []
        for step in (1e-5, -1e-5):
            moved = copy.deepcopy(flow)
            moved.bijections[-1].field.weights[0][1, 2] += step  # type: ignore[union-attr]
            found.append(float(moved.log_prob(x).sum()))
    assert float(weight.grad[1, 2]) == pytest.approx((found[0] - found[1]) / 2e-5, rel=1e-6)


def test_samples_are_from_the_density() -> None:
    """In one dimension of a bent flow: the distribution function by quadrature, 2,000 samples."""
    flow = made("flow-matching", (1,))
    ticks = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    p = flow.with_estimator(Exact()).log_prob(ticks[:, None]).detach().exp().numpy()
    total = np.cumsum(p) * 0.006
    x = flow.sample(2000, torch.Generator().manual_seed(0)).squeeze(1).numpy()
    uniform = np.interp(x, ticks.numpy(), total)
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3


def test_what_is_exact_is_said() -> None:
    assert "closed form" in exactness(ARCHITECTURES["nsf"]((2,), 0.9))
    assert "estimated" in exactness(ARCHITECTURES["mlp"]((2,), 0.9))
    assert "trace exact, integrated in 16 steps of rk4" in exactness(made("neural-ode"))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Discrete("glow", 2), "a kind of nice, realnvp, maf, nsf; got 'glow'"),
        (lambda: Continuous(2, method="rk5"), "method of euler, midpoint, rk4; got 'rk5'"),
        (lambda: Continuous(2, lipschitz=0.0), "positive, finite lipschitz; got 0.0"),
        (lambda: Continuous(2, objective="score"), "objective of likelihood"),
    ],
)
def test_refusals_name_the_value_and_the_choices(make: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()  # type: ignore[operator]
