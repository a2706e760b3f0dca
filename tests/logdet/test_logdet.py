"""The estimator against autograd of the exact log-det: value, gradient, cost, reproducibility."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from resflow_bench.layers import (
    ELU,
    Branch,
    LinearBranch,
    LipSwish,
    SpectralLinear,
    Tanh,
    mlp_branch,
)
from resflow_bench.logdet import (
    Exact,
    Fixed,
    Gaussian,
    Geometric,
    LogDetEstimator,
    Poisson,
    Rademacher,
    Roulette,
    autograd,
    cached,
    dense,
    exact_log_det,
    jacobian,
    linearise,
)

DTYPE = torch.float64
PROBES = [Gaussian(), Rademacher()]
UNBIASED = [
    Roulette(Geometric(0.3), n_exact=0),
    Roulette(Geometric(0.3), n_exact=3),
    Roulette(Poisson(2.0), n_exact=4),
    Roulette(Geometric(0.3), n_exact=2, per="batch"),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Convolution(nn.Module):
    """3x3 convolution, tanh, 3x3 convolution: an image branch with no `linearise` of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1, dtype=DTYPE)
        self.second = nn.Conv2d(3, 2, 3, padding=1, dtype=DTYPE)
        with torch.no_grad():
            for i, parameter in enumerate(self.parameters()):
                parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator(i)))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def stretched(branch: nn.Module) -> nn.Module:
    """The branch with every singular value at its limit, and activations where they are steep."""
    with torch.no_grad():
        for linear in branch.layers:  # type: ignore[union-attr]
            left, _, right = torch.linalg.svd(linear.weight, full_matrices=False)
            linear.weight.copy_(2 * left @ right)
            linear.bias.add_(1.5)
    branch.align()  # type: ignore[operator]
    return branch


def make_mlp() -> tuple[nn.Module, Tensor]:
    branch = stretched(mlp_branch(5, (16, 16), 0.8, generator=generator()).double())
    return branch, torch.randn(4, 5, generator=generator(9), dtype=DTYPE)


def make_elu() -> tuple[nn.Module, Tensor]:
    branch = stretched(mlp_branch(3, (8,), 0.7, activation=ELU, generator=generator(3)).double())
    return branch, torch.randn(4, 3, generator=generator(9), dtype=DTYPE)


def make_convolution() -> tuple[nn.Module, Tensor]:
    return Convolution(), torch.randn(3, 2, 4, 4, generator=generator(9), dtype=DTYPE)


def make_closure() -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A closure over a parameter, and over a scale that differs from example to example."""
    weight = (0.25 * torch.randn(4, 4, generator=generator(2), dtype=DTYPE)).requires_grad_()
    scale = torch.tensor([0.5, 0.7, 0.9], dtype=DTYPE)[:, None]

    def g(x: Tensor) -> Tensor:
        return scale.repeat(len(x) // 3, 1) * torch.tanh(x @ weight.T)

    g.parameters = lambda: iter([weight])  # type: ignore[attr-defined]
    return g, torch.randn(3, 4, generator=generator(9), dtype=DTYPE)


MAKERS = [make_mlp, make_elu, make_convolution, make_closure]


def parameters(g: object) -> Iterator[Tensor]:
    return g.parameters()  # type: ignore[attr-defined]


@pytest.mark.parametrize("make", [make_mlp, make_elu])
@pytest.mark.parametrize("truncation", [Fixed(7), UNBIASED[1]], ids=str)
@pytest.mark.parametrize("n_probes", [1, 3])
def test_three_ways_to_form_products_agree(make, truncation, n_probes) -> None:
    """Value and gradient to 1e-10 on the same draws."""
    branch, x = make()
    x.requires_grad_()
    results = []
    for products in (autograd, cached, dense):
        estimator = LogDetEstimator(Rademacher(), truncation, n_probes, products)
        value = estimator(branch, x, generator(1)).value
        gradient = torch.autograd.grad(
            value @ torch.tensor([1.0, 2.0, 5.0, -1.0]).to(value),
            [x, *branch.parameters()],
            materialize_grads=True,
        )
        results.append((value, *gradient))
    for other in results[1:]:
        for ours, reference in zip(other, results[0], strict=True):
            torch.testing.assert_close(ours, reference, rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", MAKERS)
def test_exact_log_det_and_its_gradient(make) -> None:
    """Against slogdet of torch's own Jacobian, example by example."""
    g, x = make()
    weights = torch.linspace(1.0, -2.0, len(x), dtype=DTYPE)
    x.requires_grad_()
    value = exact_log_det(g, x)
    full = torch.autograd.functional.jacobian(g, x, create_graph=True)
    size = x[0].numel()
    matrices = torch.stack([full[b, ..., b, *[slice(None)] * (x.ndim - 1)] for b in range(len(x))])
    matrices = matrices.reshape(len(x), size, size)
    expected = torch.linalg.slogdet(torch.eye(size, dtype=DTYPE) + matrices).logabsdet
    torch.testing.assert_close(jacobian(g, x), matrices, rtol=0, atol=1e-12)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    inputs = [x, *parameters(g)]
    for ours, reference in zip(
        torch.autograd.grad(value @ weights, inputs, allow_unused=True, retain_graph=True),
        torch.autograd.grad(expected @ weights, inputs, allow_unused=True),
        strict=True,
    ):
        if reference is not None:
            torch.testing.assert_close(ours, reference, rtol=0, atol=1e-10)


def test_exact_takes_large_batches_in_slices(monkeypatch) -> None:
    """Rows in chunks and examples in slices: the same numbers as all at once."""
    branch, x = make_mlp()
    whole, matrices = exact_log_det(branch, x), jacobian(branch, x)
    monkeypatch.setattr("resflow_bench.jacobian.dense_matrix.CHUNK_NUMBERS", 50)
    monkeypatch.setattr("resflow_bench.logdet.exact.CHUNK_NUMBERS", 50)
    torch.testing.assert_close(exact_log_det(branch, x), whole, rtol=0, atol=1e-13)
    torch.testing.assert_close(jacobian(branch, x), matrices, rtol=0, atol=1e-13)


class Tied(nn.Module):
    """x -> W^T tanh(W x): one parameter of two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(3, 3, bias=False), nn.Module()
        self.leave.weight = self.enter.weight

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.enter(x)) @ self.leave.weight


def shared_activation() -> Branch:
    """One learnable phi at two places."""
    phi = LipSwish()
    layers = [SpectralLinear(n, m, 0.9) for n, m in ((3, 8), (8, 8), (8, 3))]
    return Branch(layers[0], phi, layers[1], phi, layers[2], lipschitz=0.9)


@pytest.mark.parametrize("make", [Tied, shared_activation])
@pytest.mark.parametrize("oracle", [exact_log_det, jacobian, lambda g, x: Exact()(g, x).value])
def test_exact_leaves_parameters_that_occur_twice_alone(make, oracle) -> None:
    """They stay the float32 leaves that an optimiser knows, and gradients reach both places."""
    g = make()
    before = dict(g.named_parameters(remove_duplicate=False))
    x = torch.randn(4, 3, generator=generator())
    value = oracle(g, x)
    after = dict(g.named_parameters(remove_duplicate=False))
    assert all(after[name] is tensor for name, tensor in before.items())
    twin = copy.deepcopy(g).double()
    expected = oracle(twin, x.double())
    torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-6)
    value.sum().backward()
    expected.sum().backward()
    for ours, theirs in zip(g.parameters(), twin.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-6)


def test_exact_promotes_a_float32_module_and_leaves_it_alone() -> None:
    branch = mlp_branch(6, (12,), 0.9, generator=generator())
    x = torch.randn(3, 6, generator=generator(1))
    twin = mlp_branch(6, (12,), 0.9, generator=generator()).double()
    assert exact_log_det(branch, x).dtype == DTYPE
    # u and v are promoted, not converged again: the norms agree to float32's rounding squared.
    torch.testing.assert_close(
        exact_log_det(branch, x), exact_log_det(twin, x.double()), rtol=0, atol=1e-12
    )
    assert next(branch.parameters()).dtype == torch.float32
    matrix = 0.3 * torch.randn(6, 6, generator=generator(2))
    assert exact_log_det(lambda z: z @ matrix, x).dtype == DTYPE


def bias_z_score(g, x: Tensor, probe: object, truncation: object) -> float:
    """z of mean(estimate - exact) over 200 calls on 50 copies of x, two probes each."""
    exact = exact_log_det(g, x).detach().repeat(50)
    estimator = LogDetEstimator(probe, truncation, n_probes=2)  # type: ignore[arg-type]
    copies, noise = x.repeat(50, *[1] * (x.ndim - 1)), generator(4)
    with torch.no_grad():
        errors = [(estimator(g, copies, noise).value - exact).mean() for _ in range(200)]
    errors = torch.stack(errors)
    return float(errors.mean() / (errors.std() / len(errors) ** 0.5))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("probe", PROBES, ids=str)
@pytest.mark.parametrize("truncation", UNBIASED, ids=str)
def test_value_is_unbiased(make, probe, truncation) -> None:
    """|z| < 4, n = 10,000 draws of each example (200 where the batch shares one N).

    The twin below, one term with weight one, is rejected. What the test can see is 4 standard
    errors, at most 0.01 nat where N is drawn per example.
    """
    g, x = make()
    assert abs(bias_z_score(g, x, probe, truncation)) < 4


@pytest.mark.parametrize("make", MAKERS)
def test_truncated_twin_is_rejected(make) -> None:
    """What `test_value_is_unbiased` accepts in roulette it rejects in one term."""
    g, x = make()
    assert abs(bias_z_score(g, x, Rademacher(), Fixed(1))) > 4


def test_value_and_gradient_share_one_truncation() -> None:
    """Fixed(N): the gradient is exactly the Neumann sum of N powers, mean tr(sum (-J)^k dJ).

    J = a I with Rademacher probes has no noise: value d S_N(a), gradient d (1 - (-a)^N)/(1 + a).
    """
    a = torch.tensor(0.6, dtype=DTYPE, requires_grad=True)
    x = torch.zeros(2, 3, dtype=DTYPE)
    out = LogDetEstimator(Rademacher(), Fixed(4))(lambda z: a * z, x, generator())
    series = sum((-1) ** (k + 1) * 0.6**k / k for k in range(1, 5))
    torch.testing.assert_close(out.value, torch.full((2,), 3 * series, dtype=DTYPE))
    (gradient,) = torch.autograd.grad(out.value[0], a)
    torch.testing.assert_close(gradient, torch.tensor(3 * (1 - 0.6**4) / 1.6, dtype=DTYPE))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("probe", PROBES, ids=str)
def test_variance_is_the_closed_form(make, probe) -> None:
    """Sample variance of 4,000 draws within 4 standard errors of 5.1's, from the fourth moment."""
    g, x = make()
    estimator = LogDetEstimator(probe, Fixed(6), n_probes=2)
    noise = generator(7)
    with torch.no_grad():
        copies = x.repeat(4000, *[1] * (x.ndim - 1))
        draws = estimator(g, copies, noise).value.view(4000, len(x)).numpy()
    expected = Fixed(6).variance(jacobian(g, x).detach().numpy(), probe, 2)
    squares = (draws - draws.mean(0)) ** 2
    error = squares.std(0) / len(draws) ** 0.5
    assert np.all(np.abs(squares.mean(0) - expected) < 4 * error)


def test_probes_are_averaged() -> None:
    """m probes in one pass give the mean of the m one-probe estimates on the same numbers."""

    class Given:
        def __init__(self, v: Tensor) -> None:
            self.v = v

        def sample(self, n_probes: int, x: Tensor, generator: object) -> Tensor:
            return self.v

    branch, x = make_mlp()
    v = torch.randn(5, *x.shape, generator=generator(1), dtype=DTYPE)
    with torch.no_grad():
        together = LogDetEstimator(Given(v), Fixed(6), 5, autograd)(branch, x).value
        apart = [LogDetEstimator(Given(u[None]), Fixed(6), 1, autograd)(branch, x).value for u in v]
    torch.testing.assert_close(together, torch.stack(apart).mean(0), rtol=0, atol=1e-12)


def test_numbers_come_from_the_generator_alone() -> None:
    branch, x = make_mlp()
    estimator = LogDetEstimator(Rademacher(), Roulette(Geometric(0.2), 1), 2)
    values = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)  # noqa: NPY002 (the very state that must not matter)
        values.append(estimator(branch, x, generator(11)).value)
    assert torch.equal(*values)
    assert not torch.equal(values[0], estimator(branch, x, generator(12)).value)


def test_products_are_counted() -> None:
    branch, x = make_mlp()
    estimator = LogDetEstimator(Rademacher(), Fixed(6), n_probes=3)
    with torch.no_grad():
        assert estimator(branch, x, generator()).n_products == 18
    # One more for the gradient, and that one again in the backward pass.
    assert estimator(branch, x, generator()).n_products == 24
    assert Exact()(branch, x).n_products == 5


def test_g_is_returned_and_differentiable() -> None:
    g, x = make_convolution()
    out = LogDetEstimator(Gaussian(), Fixed(2))(g, x, generator())
    torch.testing.assert_close(out.g, g(x))
    assert out.value.shape == (3,)
    assert out.g.requires_grad
    with torch.no_grad():
        assert not LogDetEstimator(Gaussian(), Fixed(2))(g, x, generator()).g.requires_grad


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("products", [linearise, autograd, dense])
def test_inference_mode_changes_nothing(make, products) -> None:
    """Autograd is asked inside, whatever the caller has switched off."""
    g, x = make()
    estimator = LogDetEstimator(Rademacher(), Fixed(4), 2, products)
    with torch.no_grad():
        value, exact = estimator(g, x, generator()).value, exact_log_det(g, x)
    with torch.inference_mode():
        inside = x.clone()
        torch.testing.assert_close(estimator(g, inside, generator()).value, value)
        torch.testing.assert_close(exact_log_det(g, inside), exact)
        assert not estimator(g, inside, generator()).value.requires_grad


def test_any_event_shape_and_an_empty_batch() -> None:
    """Scalars as events, and no example at all."""
    for truncation in (Fixed(60), Roulette(Geometric(0.1), n_exact=50)):
        for n_probes in (1, 3):
            estimator = LogDetEstimator(Rademacher(), truncation, n_probes)
            value = estimator(lambda x: 0.5 * x, torch.zeros(4, dtype=DTYPE), generator()).value
            torch.testing.assert_close(value, torch.full((4,), np.log(1.5), dtype=DTYPE))
            for shape in ((0, 3), (0,)):
                assert estimator(torch.tanh, torch.zeros(shape), generator()).value.shape == (0,)
    scalars = exact_log_det(lambda x: 0.5 * x, torch.zeros(4, dtype=DTYPE))
    torch.testing.assert_close(scalars, torch.full((4,), np.log(1.5), dtype=DTYPE))
    assert exact_log_det(torch.tanh, torch.zeros(0, 3)).shape == (0,)


def test_a_g_that_works_in_place_leaves_x_alone() -> None:
    g = nn.Sequential(nn.ELU(inplace=True), nn.Linear(3, 3).requires_grad_(False))
    leaf = torch.randn(4, 3, generator=generator())
    for x in (leaf, (leaf.clone().requires_grad_() * 1.0)):
        before = x.detach().clone()
        value = LogDetEstimator(Rademacher(), Fixed(3))(g, x, generator()).value
        assert torch.isfinite(value).all()
        assert torch.equal(x, before)


def test_a_constant_g_has_log_det_zero() -> None:
    x = torch.randn(3, 2, generator=generator())
    constant = torch.ones(3, 2)
    for n_probes in (1, 2):
        estimator = LogDetEstimator(Rademacher(), Fixed(3), n_probes)
        assert torch.equal(estimator(lambda z: constant, x).value, torch.zeros(3))
        assert torch.equal(
            estimator(lambda z: constant * constant.clone().requires_grad_(), x).value,
            torch.zeros(3),
        )


def test_float32_and_bfloat16_keep_their_dtype() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        branch = LinearBranch(0.5 * torch.eye(4), 0.5).to(dtype)
        x = torch.zeros(2, 4, dtype=dtype)
        value = LogDetEstimator(Rademacher(), Fixed(8))(branch, x, generator()).value
        assert value.dtype == dtype
        torch.testing.assert_close(
            value.float(), torch.full((2,), 4 * np.log(1.5)).float(), rtol=0.02, atol=0
        )


def test_linearise_prefers_the_branchs_own() -> None:
    branch, x = make_mlp()
    v = torch.randn(2, *x.shape, generator=generator(), dtype=DTYPE)
    for ours, reference in zip(
        (linearise(branch, x).jacobian.vjp(v), linearise(Tanh(), x).jacobian.vjp(v)),
        (autograd(branch, x).jacobian.vjp(v), v * Tanh().value_and_derivative(x)[1]),
        strict=True,
    ):
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Fixed(0), "n_terms of at least 1; got 0"),
        (lambda: Geometric(1.0), "0 < stop < 1; got 1.0"),
        (lambda: Poisson(0.0), "positive finite rate; got 0.0"),
        (lambda: Roulette(Geometric(0.5), -1), "n_exact of at least 0; got -1"),
        (lambda: Roulette(Geometric(0.5), 1, per="block"), "got 'block'"),  # type: ignore[arg-type]
        (lambda: LogDetEstimator(Gaussian(), Fixed(1), 0), "n_probes of at least 1; got 0"),
        (lambda: autograd(lambda x: x[:, :1], torch.zeros(2, 3)), "(2, 1) from (2, 3)"),
    ],
)
def test_bad_settings_are_refused_with_the_value(call, words) -> None:
    with pytest.raises(ValueError, match="got") as error:
        call()
    assert words in str(error.value)


def test_cached_products_need_a_branch() -> None:
    with pytest.raises(TypeError, match="Use `autograd`"):
        cached(torch.tanh, torch.zeros(2, 3))
