"""The control of the gradient: its mean exactly, over all sign vectors; variance, value, memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from steep_branches import steep
from torch import Tensor, nn

from resflow_bench.jacobian import Jacobian, Products
from resflow_bench.layers import Branch, CLipSwish, conv_branch, dense_branch, mlp_branch
from resflow_bench.logdet import (
    CirculantControlled,
    Controlled,
    Expansion,
    Fixed,
    Geometric,
    LogDetEstimator,
    Rademacher,
    Roulette,
    Series,
    Taylor,
    Terms,
    Truncation,
    dense,
    exact_log_det,
    linearise,
)
from resflow_bench.logdet.expansions.expansion import Expanded
from resflow_bench.speed.timing import peak_bytes
from resflow_bench.theory import INVERSE, RESIDUAL

DTYPE = torch.float64
UPSTREAM = torch.tensor([1.0, 5.0, -2.0], dtype=DTYPE)
"""d loss/d log_det of each example: unequal, as with importance weights."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(*event: int, batch_size: int = 3) -> Tensor:
    return 1.5 * torch.randn(batch_size, *event, generator=generator(1), dtype=DTYPE)


@dataclass(frozen=True)
class AllSigns:
    """Every sign vector, or the i-th alone: over all of them a mean over probes is exact."""

    i: int | None = None

    def sample(self, n_probes: int, x: Tensor, source: torch.Generator | None) -> Tensor:
        signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=x[0].numel())))
        signs = signs if self.i is None else signs[self.i : self.i + 1]
        return signs.to(x).view(-1, 1, *x.shape[1:]).expand(-1, *x.shape).contiguous()


@dataclass(frozen=True)
class Altered:
    """A twin: an expansion without its trace, or with the series' own adjoint."""

    expansion: Controlled | CirculantControlled
    of_series: bool

    def expand(
        self, jacobian: Jacobian, v: Tensor, terms: Terms, n_traced: int, adjoint: bool
    ) -> Expanded:
        found = self.expansion.expand(jacobian, v, terms, n_traced, adjoint)
        series = self.expansion.expansion.expand(jacobian, v, terms, n_traced, adjoint)
        s = series.adjoint if self.of_series else found.adjoint
        return found._replace(adjoint=s, trace=None)


@dataclass(frozen=True)
class Case:
    """A branch, three points, and a control that suits it."""

    g: Branch
    x: Tensor
    expansion: Controlled | CirculantControlled
    products: Products = linearise

    def value(
        self,
        truncation: Truncation,
        n_traced: int = 0,
        expansion: Expansion | None = None,
        probe: object = AllSigns(),
    ) -> Tensor:
        estimator = LogDetEstimator(
            probe,  # type: ignore[arg-type]
            truncation,
            products=self.products,
            n_traced=n_traced,
            expansion=expansion or self.expansion,
        )
        return estimator(self.g, self.x, generator(3)).value

    def gradient(self, value: Tensor) -> Tensor:
        """d (upstream . value) in x and all parameters, as one vector."""
        of = [self.x, *self.g.parameters()]
        parts = torch.autograd.grad(value @ UPSTREAM.to(value), of, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts])


def make_case(name: str) -> Case:
    match name:
        case "W-phi-W":
            g, x = mlp_branch(6, (8,), 0.9, generator=generator()), points(6)
        case "W-phi-W-phi-W":
            g, x = mlp_branch(6, (8, 7), 0.9, generator=generator()), points(6)
        case "3-1-3":
            g = conv_branch(1, (2, 3), (3, 1, 3), (4, 5), 0.9, generator=generator())
            x = points(1, 2, 3)
        case _:
            g, x = conv_branch(2, (1, 3), (3, 3), (4,), 0.9, generator=generator()), points(2, 1, 3)
    expansion = Controlled() if x.ndim == 2 else CirculantControlled(degree=4)
    return Case(steep(g), x.requires_grad_(), expansion)


CASES = ("W-phi-W", "W-phi-W-phi-W", "3-1-3", "3-3")
MOST_TRACED = {"W-phi-W-phi-W": 1}


@pytest.mark.parametrize("n_traced", [0, 1, 2])
@pytest.mark.parametrize("name", CASES)
def test_mean_is_the_exact_gradient(name, n_traced) -> None:
    """Of 200 terms over all sign vectors, with unequal weights of the examples, to 1e-10.

    Without the trace of T J it is not: a control of mean zero only together with it.
    """
    case = make_case(name)
    n_traced = min(n_traced, MOST_TRACED.get(name, 2))
    exact = case.gradient(exact_log_det(case.g, case.x))
    found = case.gradient(case.value(Fixed(200), n_traced))
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)
    twin = case.gradient(case.value(Fixed(200), n_traced, Altered(case.expansion, False)))
    assert (twin - exact).abs().max() > 1e-3


@pytest.mark.parametrize("n_traced", [0, 1, 2])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("truncation", [Fixed(2), Roulette(Geometric(0.5), 2)])
def test_mean_is_that_of_the_weights_that_were_drawn(name, truncation, n_traced) -> None:
    """To 1e-13, whatever N was drawn for each example; the gradient of one probe is another.

    Where all terms are exact traces, no probe has a part in it.
    """
    case = make_case(name)
    n_traced = min(n_traced, MOST_TRACED.get(name, 2))

    def difference(probe: AllSigns) -> float:
        plain = case.gradient(case.value(truncation, n_traced, Taylor(), probe))
        return float((case.gradient(case.value(truncation, n_traced, probe=probe)) - plain).norm())

    assert difference(AllSigns()) < 1e-13
    assert (difference(AllSigns(11)) < 1e-4) == (n_traced == 2 and truncation == Fixed(2))


@pytest.mark.parametrize("name", CASES)
def test_of_an_inverse_it_is_the_negative(name) -> None:
    """With one probe, to 1e-14: the control takes the signs of the weights, or its noise adds."""
    case = make_case(name)
    estimator = LogDetEstimator(AllSigns(11), Fixed(10), expansion=case.expansion)
    found, inverse = (
        case.gradient(estimator(case.g, case.x, generator(3), coefficients).value)
        for coefficients in (RESIDUAL, INVERSE)
    )
    torch.testing.assert_close(inverse, -found, rtol=0, atol=1e-14)


def test_of_dense_matrices_it_is_exact_too() -> None:
    """Where the expansion is a control of any map."""
    given = make_case("W-phi-W")
    deep = steep(mlp_branch(6, (8, 8, 8), 0.9, generator=generator()))
    case = Case(deep, given.x, given.expansion, dense)
    exact = case.gradient(exact_log_det(case.g, case.x))
    torch.testing.assert_close(case.gradient(case.value(Fixed(200))), exact, rtol=0, atol=1e-10)


def variances(case: Case, n_traced: int, n: int = 200) -> tuple[float, float]:
    """Of the gradient, summed over its entries, with the control and without."""
    found = []
    for expansion in (case.expansion, Altered(case.expansion, True)):
        estimator = LogDetEstimator(Rademacher(), Fixed(20), n_traced=n_traced, expansion=expansion)
        noise = generator(7)
        draws = [case.gradient(estimator(case.g, case.x, noise).value) for _ in range(n)]
        found.append(float(torch.stack(draws).var(0).sum()))
    return found[0], found[1]


@pytest.mark.parametrize(("n_traced", "left"), [(0, 0.02), (1, 0.3)])
def test_on_vectors_it_lowers_the_variance(n_traced, left) -> None:
    """With d = 24, from 200 draws of each: 0.005 and 0.14 of it are left."""
    g = steep(mlp_branch(24, (32,), 0.9, generator=generator()))
    case = Case(g, points(24).requires_grad_(), Controlled())
    controlled, plain = variances(case, n_traced)
    assert controlled < left * plain


@pytest.mark.parametrize(("n_traced", "left"), [(0, 0.002), (1, 0.75)])
def test_on_images_it_lowers_the_variance(n_traced, left) -> None:
    """On a grid of 8 x 8, from 200 draws of each: 0.0004 and 0.52 of it are left."""
    g = steep(conv_branch(1, (8, 8), (3, 1, 3), (6, 6), 0.9, generator=generator()))
    case = Case(g, points(1, 8, 8).requires_grad_(), CirculantControlled())
    controlled, plain = variances(case, n_traced)
    assert controlled < left * plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_the_value_is_the_same_with_a_gradient(name, dtype) -> None:
    """To the last bit, and that of the same control without one of the gradient."""
    case = make_case(name)
    x = case.x.detach().to(dtype)
    case = Case(case.g.to(dtype), x.requires_grad_(), case.expansion)
    truncation = Roulette(Geometric(0.5), 2)
    attached = case.value(truncation)
    assert torch.equal(attached, case.value(truncation, 0, Altered(case.expansion, True)))
    with torch.no_grad():
        assert torch.equal(attached, case.value(truncation))
    assert attached.dtype == dtype


@pytest.mark.parametrize("name", CASES)
def test_float32_is_float64_rounded(name) -> None:
    case = make_case(name)
    expected = case.gradient(case.value(Fixed(10), probe=AllSigns(11)))
    x = case.x.detach().float().requires_grad_()
    short = Case(case.g.float(), x, case.expansion)
    found = short.gradient(short.value(Fixed(10), probe=AllSigns(11)))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_examples_do_not_mix(name) -> None:
    """The log-det of one has no gradient in another's x, also where they share a mean Jacobian."""
    case = make_case(name)
    value = case.value(Fixed(10), probe=AllSigns(11))
    (of_x,) = torch.autograd.grad(value[0], case.x)
    assert of_x[0].abs().min() > 0
    assert of_x[1:].abs().max() == 0


@pytest.mark.parametrize("name", CASES)
def test_constant_parameters_leave_the_gradient_in_x(name) -> None:
    """The same to the last bit; if x is constant too, the value has no graph."""
    case = make_case(name)
    (expected,) = torch.autograd.grad(case.value(Fixed(10)).sum(), case.x)
    case.g.requires_grad_(False)
    (found,) = torch.autograd.grad(case.value(Fixed(10)).sum(), case.x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    case.x.requires_grad_(False)
    assert not case.value(Fixed(10)).requires_grad


WITHOUT: dict[str, Callable[[], tuple[nn.Module, Tensor, Expansion]]] = {
    "concatenation": lambda: (
        dense_branch(6, 4, 2, 0.9, CLipSwish, generator=generator()),
        points(6),
        Controlled(),
    ),
    "a wide middle": lambda: (
        conv_branch(1, (2, 3), (3, 3, 3), (4, 4), 0.9, generator=generator()),
        points(1, 2, 3),
        CirculantControlled(),
    ),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_without_the_trace_the_gradient_is_that_of_the_series(name) -> None:
    """To the last bit."""
    g, x, expansion = WITHOUT[name]()
    case = Case(g.double(), x.requires_grad_(), expansion)  # type: ignore[arg-type]
    found, plain = (
        case.gradient(case.value(Fixed(10), 0, one, AllSigns(11))) for one in (expansion, Taylor())
    )
    assert torch.equal(found, plain)


@pytest.mark.parametrize("name", ["W-phi-W", "3-1-3"])
def test_an_example_that_is_not_finite_spoils_no_other(name) -> None:
    case = make_case(name)
    with torch.no_grad():
        case.x[2] = torch.nan
    value = case.value(Fixed(10), probe=AllSigns(11))
    (of_x,) = torch.autograd.grad(value[:2].sum(), case.x)
    assert of_x[:2].isfinite().all()


@pytest.mark.parametrize("name", ["W-phi-W", "3-1-3"])
def test_refusals(name) -> None:
    """Second derivatives; and `Series` is Taylor's alone."""
    case = make_case(name)
    with pytest.raises(ValueError, match="no second derivatives"):
        torch.autograd.grad(case.value(Fixed(10)).sum(), case.x, create_graph=True)
    estimator = LogDetEstimator(Rademacher(), Fixed(5), gradient=Series(), expansion=case.expansion)
    with pytest.raises(TypeError, match="Taylor's series"):
        estimator(case.g, case.x, generator())


def peak_of_a_gradient(expansion: Expansion, g: Branch, x: Tensor, n_terms: int) -> int:
    estimator = LogDetEstimator(Rademacher(), Fixed(n_terms), 4, expansion=expansion)
    return peak_bytes(lambda: estimator(g, x, generator()).value.sum().backward(), "cpu")


@pytest.mark.parametrize("degree", [4, 40])
@pytest.mark.parametrize("of", [Controlled, CirculantControlled])
def test_memory_does_not_grow_with_terms(of, degree) -> None:
    """Within 5 % from 5 terms to 50, whatever the degree."""
    if of is Controlled:
        g, x = mlp_branch(48, (64,), 0.9, generator=generator()), points(48, batch_size=64).float()
    else:
        g = conv_branch(2, (8, 8), (3, 1, 3), (8, 8), 0.9, generator=generator())
        x = points(2, 8, 8, batch_size=16).float()
    expansion = of(degree=degree)
    few, many = (peak_of_a_gradient(expansion, g, x, n) for n in (5, 50))
    assert many < 1.05 * few
