"""The gradients against autograd of the exact log-det; their memory; autocast and compilation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from resflow_bench.flows import ResidualFlow
from resflow_bench.jacobian import FunctionJacobian, Jacobian
from resflow_bench.layers import Branch, CLipSwish, conv_branch, dense_branch, mlp_branch
from resflow_bench.logdet import (
    Determinant,
    Exact,
    Expansion,
    Fixed,
    Geometric,
    Linearisation,
    LogDetEstimator,
    Neumann,
    Orthogonal,
    Rademacher,
    Roulette,
    Series,
    Terms,
    autograd,
    dense,
    exact_log_det,
    linearise,
)
from resflow_bench.logdet.estimator import Estimator
from resflow_bench.logdet.gradients import Attached
from resflow_bench.speed.timing import peak_bytes

DTYPE = torch.float64
GRADIENTS = [Neumann(), Series()]
ROULETTE = Roulette(Geometric(0.6), n_exact=2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Convolution(nn.Module):
    """conv, sine, conv, without a `linearise` of its own: its products are autograd's."""

    def __init__(self) -> None:
        super().__init__()
        draw = generator(1)
        self.first = nn.Parameter(0.15 * torch.randn(3, 2, 3, 3, dtype=DTYPE, generator=draw))
        self.second = nn.Parameter(0.15 * torch.randn(2, 3, 3, 3, dtype=DTYPE, generator=draw))
        self.bias = nn.Parameter(torch.randn(3, dtype=DTYPE, generator=draw))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sin(functional.conv2d(x, self.first, self.bias, padding=1))
        return functional.conv2d(x, self.second, padding=1)


def steep(branch: Branch) -> Branch:
    """In float64, weights at the norm that is allowed, activations where they are curved."""
    with torch.no_grad():
        for name, parameter in branch.double().named_parameters():
            if name.endswith("weight"):
                parameter.mul_(5)
                if parameter.ndim == 2:  # every singular value, not the first alone
                    left, _, right = torch.linalg.svd(parameter, full_matrices=False)
                    parameter.copy_(2 * left @ right)
            elif name.endswith("bias"):
                parameter.add_(1.0)
    branch.align()
    return branch


def make_mlp() -> tuple[nn.Module, Tensor]:
    branch = steep(mlp_branch(4, (8, 8), 0.7, generator=generator()))
    return branch, torch.randn(4, 4, generator=generator(9), dtype=DTYPE)


def make_autograd() -> tuple[nn.Module, Tensor]:
    return Convolution(), torch.randn(4, 2, 3, 3, generator=generator(9), dtype=DTYPE)


def make_conv() -> tuple[nn.Module, Tensor]:
    branch = steep(conv_branch(2, (3, 3), (3, 1), (3,), 0.8, generator=generator()))
    return branch, torch.randn(4, 2, 3, 3, generator=generator(9), dtype=DTYPE)


def make_dense() -> tuple[nn.Module, Tensor]:
    branch = steep(dense_branch(4, 4, 2, 0.7, CLipSwish, generator=generator()))
    return branch, torch.randn(4, 4, generator=generator(9), dtype=DTYPE)


BRANCHES = [make_mlp, make_autograd, make_conv, make_dense]
"""Each makes (g, x) in float64; a new kind of branch is a new line."""

UPSTREAM = torch.tensor([1.0, 2.0, 5.0, -1.0], dtype=DTYPE)
"""d loss/d log_det of each example: unequal, as with importance weights."""


@dataclass(frozen=True)
class OneTooFar:
    """A twin: w_k = 1[N >= k] / P(N >= k + 1)."""

    truncation: Roulette

    def draw(self, batch_size: int, like: Tensor, source: torch.Generator | None) -> Terms:
        terms = self.truncation.draw(batch_size, like, source)
        k = torch.arange(1, len(terms.weights) + 1).numpy()
        ratio = self.truncation.survival(k) / self.truncation.survival(k + 1)
        ratios = torch.from_numpy(ratio).to(like)[:, None]
        return terms._replace(weights=terms.weights * ratios)


class FirstOnly(torch.autograd.Function):
    """A twin: the whole batch gets the first example's upstream gradient."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx, upstream: Tensor) -> Tensor:
        return upstream[:1].expand_as(upstream)


def same(value: Tensor) -> Tensor:
    return value


def inputs(g: nn.Module, x: Tensor) -> list[Tensor]:
    return [x, *g.parameters()]


def flat(value: Tensor, g: nn.Module, x: Tensor) -> Tensor:
    """The gradient in x and all parameters, as one vector."""
    parts = torch.autograd.grad(value, inputs(g, x), materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def largest_z(
    make: Callable[[], tuple[nn.Module, Tensor]],
    gradient: object,
    truncation: object,
    through: Callable[[Tensor], Tensor] = same,
    n_calls: int = 100,
    n_copies: int = 30,
) -> tuple[float, float]:
    """(max over x and all parameters of |z|, 4 standard errors over the gradient's norm)."""
    g, x = make()
    x.requires_grad_()
    truth = flat(exact_log_det(g, x) @ UPSTREAM, g, x)
    estimator = LogDetEstimator(Rademacher(), truncation, gradient=gradient)  # type: ignore[arg-type]
    noise, upstream = generator(5), UPSTREAM.repeat(n_copies) / n_copies
    errors = []
    for _ in range(n_calls):
        copies = x.repeat(n_copies, *[1] * (x.ndim - 1))
        value = through(estimator(g, copies, noise).value)
        errors.append(flat(value @ upstream, g, x) - truth)
    stacked = torch.stack(errors)
    # An output's bias has gradient zero in truth and estimate: zero over the floor is zero.
    standard_error = (stacked.std(0) / n_calls**0.5).clamp_min(1e-12)
    z = (stacked.mean(0) / standard_error).abs().max()
    return float(z), float(4 * standard_error.max() / truth.norm())


@pytest.mark.parametrize("make", BRANCHES)
@pytest.mark.parametrize("gradient", GRADIENTS, ids=str)
def test_gradient_is_unbiased_with_unequal_weights(make, gradient) -> None:
    """|z| < 4 for each of 138 to 183 coordinates of (x, parameters); n = 3,000 draws an example.

    The bias that it sees, 4 standard errors, is at most 2.5 % of the gradient's norm in any one
    coordinate. The twins below are rejected by the same statistic at the same n.
    """
    z, smallest_bias = largest_z(make, gradient, ROULETTE)
    assert z < 4
    assert smallest_bias < 0.025


TWINS = {
    "one term": (Fixed(1), same),
    "weight 1/P(N >= k + 1)": (OneTooFar(ROULETTE), same),
    "one upstream gradient for the batch": (ROULETTE, FirstOnly.apply),
}


@pytest.mark.parametrize("make", BRANCHES)
@pytest.mark.parametrize("gradient", GRADIENTS, ids=str)
def test_two_terms_are_rejected(make, gradient) -> None:
    """The weakest twin, on every branch: the test above has the power to see it."""
    assert largest_z(make, gradient, Fixed(2))[0] > 4


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("gradient", GRADIENTS, ids=str)
def test_biased_twins_are_rejected(gradient, twin) -> None:
    truncation, through = TWINS[twin]
    assert largest_z(make_mlp, gradient, truncation, through)[0] > 4


@dataclass(frozen=True)
class Plain:
    """The series differentiated by autograd, term by term: exact, and its graph holds them all."""

    def estimate(
        self, expansion: Expansion, jacobian: Jacobian, v: Tensor, terms: Terms, n_traced: int
    ) -> Attached:
        power, value = v, torch.zeros_like(v)
        weights = terms.weights.view(*terms.weights.shape, *[1] * (v.ndim - 2))
        for k, weight in enumerate(weights, start=1):
            power = jacobian.vjp(power)
            if k > n_traced:
                value = value + (-1) ** (k + 1) / k * weight * power
        return Attached((value * v).flatten(2).sum(-1).mean(0), len(weights))


@pytest.mark.parametrize("make", BRANCHES)
@pytest.mark.parametrize(("n_probes", "products"), [(1, linearise), (2, autograd)])
@pytest.mark.parametrize("truncation", [Fixed(7), ROULETTE], ids=str)
def test_series_is_the_derivative_of_the_estimate(make, n_probes, products, truncation) -> None:
    """To 1e-12, on the same draws; Neumann's, another unbiased gradient, is rejected."""
    g, x = make()
    x.requires_grad_()

    def gradient(kind: object) -> Tensor:
        estimator = LogDetEstimator(Rademacher(), truncation, n_probes, products, kind)  # type: ignore[arg-type]
        return flat(estimator(g, x, generator(3)).value @ UPSTREAM, g, x)

    expected = gradient(Plain())
    torch.testing.assert_close(gradient(Series()), expected, rtol=0, atol=1e-12)
    assert (gradient(Neumann()) - expected).abs().max() > 1e-4


@pytest.mark.parametrize("make", BRANCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_value_does_not_depend_on_the_gradient(make, dtype) -> None:
    """Bit for bit, differentiated in either way or not at all."""
    g, x = make()
    g, x = g.to(dtype), x.to(dtype).requires_grad_()
    values = []
    for gradient in GRADIENTS:
        estimator = LogDetEstimator(Rademacher(), ROULETTE, 2, gradient=gradient)
        values.append(estimator(g, x, generator(2)).value)
        with torch.no_grad():
            values.append(estimator(g, x, generator(2)).value)
    assert values[0].requires_grad
    assert values[2].requires_grad
    assert all(torch.equal(value, values[0]) for value in values[1:])


@pytest.mark.parametrize("gradient", GRADIENTS, ids=str)
@pytest.mark.parametrize("products", [linearise, autograd])
def test_products_are_counted_as_they_are_evaluated(gradient, products) -> None:
    """Those of the call and of one backward pass together, for every probe."""
    g, x = make_mlp()
    calls = 0

    def counted(g: nn.Module, x: Tensor) -> Linearisation:
        value, jacobian = products(g, x)

        def count(v: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return jacobian.vjp(v)

        return Linearisation(value, FunctionJacobian(count))

    for n_terms in (1, 2, 3, 5, 12, 17):
        estimator = LogDetEstimator(Rademacher(), Fixed(n_terms), 3, counted, gradient)
        calls = 0
        out = estimator(g, x, generator())
        out.value.sum().backward()
        assert out.n_products == 3 * calls
        with torch.no_grad():
            assert estimator(g, x, generator()).n_products == 3 * n_terms


@pytest.mark.parametrize("gradient", GRADIENTS, ids=str)
def test_no_term_has_gradient_zero(gradient) -> None:
    """A roulette may draw N = 0 for the whole batch; the loss still has a graph."""

    class Nothing:
        def draw(self, batch_size: int, like: Tensor, source: object) -> Terms:
            return Terms(like.new_zeros(0, batch_size), np.zeros(batch_size, dtype=int))

    g, x = make_mlp()
    x.requires_grad_()
    value = LogDetEstimator(Rademacher(), Nothing(), gradient=gradient)(g, x).value  # type: ignore[arg-type]
    assert torch.equal(value, torch.zeros(4, dtype=DTYPE))
    assert torch.equal(
        flat(value.sum(), g, x), torch.zeros(len(flat(exact_log_det(g, x).sum(), g, x)))
    )


def peak_of_a_step(gradient: object, n_terms: int) -> int:
    """Bytes that a training step of eight narrow blocks holds at most."""
    flow = ResidualFlow.mlp(4, (48, 48), 8, 0.9)
    flow.estimator = LogDetEstimator(Rademacher(), Fixed(n_terms), gradient=gradient)  # type: ignore[arg-type]
    x = torch.randn(32, 4, generator=generator())
    return peak_bytes(lambda: flow.log_prob(x, generator()).mean().backward(), "cpu")


@pytest.mark.parametrize("gradient", GRADIENTS, ids=str)
def test_memory_does_not_grow_with_terms(gradient) -> None:
    """Within 5 % from 5 terms to 50."""
    assert peak_of_a_step(gradient, 50) < 1.05 * peak_of_a_step(gradient, 5)


def test_a_plain_graph_grows_with_terms() -> None:
    """What the test above rejects: autograd through the chain."""
    assert peak_of_a_step(Plain(), 50) > 3 * peak_of_a_step(Plain(), 5)


def bfloat16_region() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("make", BRANCHES)
@pytest.mark.parametrize("gradient", GRADIENTS, ids=str)
def test_autocast_changes_nothing(make, gradient) -> None:
    """g, value and gradient are float32's, bit for bit; g alone, in the same region, is not."""
    g, x = make()
    g, x = g.float(), x.float().requires_grad_()
    estimator = LogDetEstimator(Rademacher(), Fixed(6), 2, gradient=gradient)
    results = []
    for region in (bfloat16_region(), torch.autocast("cpu", enabled=False)):
        with region:
            out = estimator(g, x, generator())
        objective = out.value @ UPSTREAM.float() + out.g.square().sum()
        results.append((out.g, out.value, flat(objective, g, x)))
    for ours, reference in zip(*results, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, reference)
    with bfloat16_region():
        assert not torch.equal(g(x).float(), results[0][0])


@pytest.mark.parametrize("make", BRANCHES)
def test_a_bfloat16_x_is_promoted_to_the_parameters(make) -> None:
    """As autocast hands it over: what is estimated is float32's number at that x."""
    g, x = make()
    g, x = g.float(), x.bfloat16().requires_grad_()
    estimator = LogDetEstimator(Rademacher(), Fixed(6))
    out, reference = estimator(g, x, generator()), estimator(g, x.float(), generator())
    assert out.value.dtype == torch.float32
    assert torch.equal(out.value, reference.value)
    assert torch.equal(out.g, reference.g)
    (gradient,) = torch.autograd.grad(out.value.sum(), x)
    (expected,) = torch.autograd.grad(reference.value.sum(), x)
    assert gradient.dtype == torch.bfloat16
    assert torch.equal(gradient, expected)


# torch looks at `.grad` of what enters a graph, and hides the warning from all but an error filter.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("gradient", GRADIENTS, ids=str)
@pytest.mark.parametrize("products", [linearise, autograd])
def test_compiled_flows_give_the_same_numbers(gradient, products) -> None:
    """log_prob and its gradient, to float32's rounding; another draw is rejected."""
    torch.compiler.reset()
    flow = ResidualFlow.mlp(4, (8,), 2, 0.8)
    flow.estimator = LogDetEstimator(Rademacher(), ROULETTE, 2, products, gradient)
    x = torch.randn(6, 4, generator=generator())

    def numbers(log_prob: Callable[..., Tensor], seed: int) -> list[Tensor]:
        value = log_prob(x, generator(seed))
        parts = torch.autograd.grad(value @ torch.arange(6.0), list(flow.parameters()))
        return [value.detach(), *parts]

    compiled = torch.compile(flow.log_prob, backend="aot_eager")
    for seed in (1, 2):  # two roulettes of different length
        for ours, reference in zip(
            numbers(compiled, seed), numbers(flow.log_prob, seed), strict=True
        ):
            torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(numbers(compiled, 1)[0], numbers(flow.log_prob, 2)[0], rtol=1e-3)


# g = .4 sin(A x) at (.5, .3); the Hessian of ln|det(I + J)| from a symbolic J, to four digits.
A = torch.tensor([[1.5, 0.8], [-0.9, 1.2]], dtype=DTYPE)
POINT = torch.tensor([[0.5, 0.3]], dtype=DTYPE)
HESSIAN = torch.tensor([[-1.2676, -0.1591], [-0.1591, -0.7840]], dtype=DTYPE)


def hessian(estimator: Estimator) -> Tensor:
    def log_det(x: Tensor) -> Tensor:
        return estimator(lambda x: 0.4 * torch.sin(x @ A.mT), x, generator()).value[0]

    return torch.autograd.functional.hessian(log_det, POINT)[0, :, 0]


@pytest.mark.parametrize("products", [linearise, dense])
def test_second_derivatives_are_right(products) -> None:
    """Probes that are a basis leave no noise; nor does a determinant."""
    basis = LogDetEstimator(Orthogonal(), Fixed(80), 2, products, Series())
    for estimator in (Exact(), Determinant(products), basis):
        torch.testing.assert_close(hessian(estimator), HESSIAN, rtol=0, atol=1e-4)


@pytest.mark.parametrize("products", [linearise, dense])
@pytest.mark.parametrize("n_traced", [0, 1])
def test_neumann_refuses_second_derivatives(products, n_traced) -> None:
    """Of a map and of a branch; a gradient alone is not refused, nor is a flow's default."""
    estimator = LogDetEstimator(Rademacher(), Fixed(8), 1, products)
    with pytest.raises(ValueError, match=r"no second derivatives.*gradient=Series\(\)"):
        hessian(estimator)
    flow = ResidualFlow.mlp(3, (8,), 2, 0.9)
    flow.estimator = LogDetEstimator(Rademacher(), Fixed(8), n_traced=n_traced)
    x = torch.zeros(4, 3, requires_grad=True)
    torch.autograd.grad(flow.log_prob(x, generator()).sum(), x)
    with pytest.raises(ValueError, match="no second derivatives"):
        torch.autograd.grad(flow.log_prob(x, generator()).sum(), x, create_graph=True)
