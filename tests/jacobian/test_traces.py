"""Exact leading traces: against the whole Jacobian, and what they leave of the variance."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from resflow_bench import theory
from resflow_bench.jacobian import Jacobian, Map, MatrixStage, Products
from resflow_bench.layers import (
    Branch,
    CLipSwish,
    LinearBranch,
    LipSwish,
    SpectralLinear,
    conv_branch,
    dense_branch,
    mlp_branch,
)
from resflow_bench.logdet import (
    Estimate,
    Fixed,
    Gaussian,
    Geometric,
    Linearisation,
    LogDetEstimator,
    Neumann,
    Rademacher,
    Roulette,
    Series,
    Taylor,
    autograd,
    cached,
    dense,
    exact_log_det,
    jacobian,
)

DTYPE = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def steep(branch: Branch) -> Branch:
    """In float64, its weights large enough for every norm to be at its limit."""
    with torch.no_grad():
        for layer in branch.layers:
            layer.weight.mul_(20)  # type: ignore[union-attr]
    branch = branch.double()
    branch.align()
    return branch


def concatenated(grid: tuple[int, int] | None, depth: int) -> Branch:
    """An activation with two outputs per input between layers made for it."""
    phi = [CLipSwish() for _ in range(depth)]
    c = 0.9 ** (1 / (depth + 1)) / 1.02
    layers = [SpectralLinear(4, 6, c, generator=generator())]
    layers += [SpectralLinear(12, 6, c, generator=generator(i)) for i in range(depth - 1)]
    layers += [SpectralLinear(12, 4, c, generator=generator(9))]
    stages = [s for pair in zip(layers, phi, strict=False) for s in pair] + [layers[-1]]
    return steep(Branch(*stages, lipschitz=0.9))


BRANCHES = {
    "W": (
        lambda: LinearBranch(0.4 * torch.randn(5, 5, generator=generator()).double() / 5, 0.9),
        5,
    ),
    "W-phi-W": (lambda: steep(mlp_branch(5, (7,), 0.9)), 2),
    "W-phi-W, one unit": (lambda: steep(mlp_branch(5, (1,), 0.9)), 2),
    "W-phi-W, two outputs": (lambda: concatenated(None, 1), 2),
    "W-phi-W-phi-W": (lambda: steep(mlp_branch(5, (7, 6), 0.9)), 1),
    "W-phi-W-phi-W, two outputs": (lambda: concatenated(None, 2), 1),
    "3-3": (lambda: steep(conv_branch(2, (4, 5), (3, 3), (4,), 0.9)), 2),
    "3-1-3": (lambda: steep(conv_branch(2, (4, 5), (3, 1, 3), (4, 6), 0.9)), 2),
    "5-1-3": (lambda: steep(conv_branch(2, (4, 5), (5, 1, 3), (4, 6), 0.9)), 2),
    "5-1-5 on a small grid": (lambda: steep(conv_branch(2, (3, 2), (5, 1, 5), (4, 6), 0.9)), 2),
    "3-3 on one point": (lambda: steep(conv_branch(2, (1, 1), (3, 3), (4,), 0.9)), 2),
    "1-1-1": (lambda: steep(conv_branch(2, (3, 2), (1, 1, 1), (4, 6), 0.9)), 2),
}
"""Makes the branch; how many traces it admits (of a matrix: as many as are tried)."""


def points(branch: Branch | LinearBranch, n: int = 3) -> Tensor:
    if isinstance(branch, LinearBranch):
        return torch.randn(n, len(branch.matrix), generator=generator(5), dtype=DTYPE)
    first = branch.layers[0]
    event = (first.n_in, *getattr(first, "grid", ()))
    return torch.randn(n, *event, generator=generator(5), dtype=DTYPE)


@pytest.mark.parametrize("name", BRANCHES)
def test_traces_are_those_of_the_powers_of_the_jacobian(name: str) -> None:
    """To 1e-14 of ||J^k||_*; borders and second outputs included."""
    make, n = BRANCHES[name]
    branch = make()
    x = points(branch)
    matrix = power = jacobian(branch, x)
    for k, trace in enumerate(branch.linearise(x)[1].traces(n), start=1):
        expected = power.diagonal(dim1=1, dim2=2).sum(1)
        assert k == 1 or expected.abs().max() > 1e-6  # there is something to be wrong about
        torch.testing.assert_close(trace.expand(3), expected, rtol=0, atol=1e-13)
        power = power @ matrix


def test_borders_count() -> None:
    """The twin that takes every tap at every position is off by a tenth or more."""
    branch = BRANCHES["3-1-3"][0]()
    x = points(branch)
    _, chain = branch.linearise(x)
    kernels = [stage.weight for stage in chain.stages[::2]]
    one, two = (stage.slope for stage in chain.stages[1::2])
    taps = torch.einsum("jctu,citu->ij", kernels[0], kernels[2].flip(2, 3))
    everywhere = torch.einsum("bihw,ij,bjhw->b", two, kernels[1][:, :, 0, 0] * taps, one)
    (trace,) = chain.traces(1)
    assert ((everywhere - trace).abs() > 0.1 * trace.abs()).any()


@pytest.mark.parametrize("name", BRANCHES)
def test_traces_are_differentiable(name: str) -> None:
    """d sum_b w_b tr J_b^k in x and all parameters, against autograd through the dense J."""
    make, n = BRANCHES[name]
    branch, upstream = make(), torch.tensor([1.0, 2.0, -5.0], dtype=DTYPE)
    x = points(branch).requires_grad_()
    inputs = [x, *branch.parameters()]
    if isinstance(branch, LinearBranch):
        return  # neither x nor a parameter is in it
    matrix = power = jacobian(branch, x)
    for trace in branch.linearise(x)[1].traces(n):
        expected = (power.diagonal(dim1=1, dim2=2).sum(1) * upstream).sum()
        ours = torch.autograd.grad(
            (trace * upstream).sum(), inputs, retain_graph=True, materialize_grads=True
        )
        reference = torch.autograd.grad(expected, inputs, retain_graph=True, materialize_grads=True)
        for a, b in zip(ours, reference, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        power = power @ matrix


@pytest.mark.parametrize(
    ("branch", "n", "supported"),
    [
        (dense_branch(4, 4, 2, 0.9), 1, "supports no exact traces; got n = 1"),
        (
            conv_branch(2, (3, 3), (3, 1, 3), (4, 4), 0.9, leading_activation=True),
            1,
            "supports no exact traces; got n = 1",
        ),
        (conv_branch(2, (3, 3), (3, 3, 3), (4, 4), 0.9), 1, "supports no exact traces; got n = 1"),
        (mlp_branch(4, (5, 5), 0.9), 2, r"up to J\^1; got n = 2.*n_traced=1"),
        (mlp_branch(4, (5,), 0.9), 3, r"up to J\^2; got n = 3.*n_traced=2"),
        (mlp_branch(4, (5, 5, 5), 0.9), 1, "supports no exact traces; got n = 1"),
    ],
)
def test_a_branch_without_the_trace_says_so(branch: Branch, n: int, supported: str) -> None:
    x = points(branch.double())
    with pytest.raises(ValueError, match=supported):
        LogDetEstimator(Rademacher(), Fixed(5), n_traced=n)(branch, x)


def test_what_cannot_be_traced_is_refused_with_a_remedy() -> None:
    estimator = LogDetEstimator(Rademacher(), Fixed(5), products=autograd, n_traced=1)
    with pytest.raises(ValueError, match="products=dense"):
        estimator(lambda x: 0.5 * x, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="n_traced=3"):
        LogDetEstimator(Rademacher(), Fixed(2), n_traced=3)
    with pytest.raises(ValueError, match="n_traced of at least 0; got -1"):
        LogDetEstimator(Rademacher(), Fixed(2), n_traced=-1)


def estimate(estimator: LogDetEstimator, branch: Branch, n: int) -> tuple[Estimate, Tensor]:
    """n draws at the three points, and the points' exact log-dets."""
    x = points(branch)
    found = estimator(branch, x.repeat(n, *[1] * (x.ndim - 1)), generator(1))
    return found, exact_log_det(branch, x)


CASES = [
    ("W-phi-W", 1, Fixed(6)),
    ("W-phi-W", 2, Fixed(6)),
    ("W-phi-W", 2, Fixed(2)),
    ("W-phi-W", 1, Roulette(Geometric(0.3), n_exact=0)),
    ("W-phi-W", 2, Roulette(Geometric(0.3), n_exact=0)),
    ("W-phi-W", 2, Roulette(Geometric(0.3), n_exact=3, per="stratified")),
    ("W-phi-W-phi-W", 1, Roulette(Geometric(0.3), n_exact=1)),
    ("3-1-3", 1, Roulette(Geometric(0.3), n_exact=1)),
]


@pytest.mark.parametrize(("name", "n_traced", "truncation"), CASES, ids=str)
@pytest.mark.parametrize("probe", [Gaussian(), Rademacher()], ids=str)
@torch.no_grad()
def test_mean_and_variance_with_exact_traces(name, n_traced, truncation, probe) -> None:
    """|z| < 4 against the closed forms, 2 probes, 20,000 draws (5,000 of images) at 3 points.

    The variance's z takes the sample's own fourth moment; a variance off by 6 % (12 %) shows. The
    twin that forgets the exact traces in the closed form is rejected.
    """
    branch = BRANCHES[name][0]()
    matrix = jacobian(branch, points(branch)).numpy()
    assert theory.spectral_radius(matrix).max() ** 4 < 0.7**3  # the fourth moment is finite
    n = 20_000 if name != "3-1-3" else 5_000
    estimator = LogDetEstimator(probe, truncation, n_probes=2, n_traced=n_traced)
    found, exact = estimate(estimator, branch, n)
    errors = found.value.view(n, 3).numpy() - (exact.numpy() + truncation.bias(matrix))
    expected = truncation.variance(matrix, probe, 2, n_traced)  # (3,)
    if isinstance(truncation, Fixed) and truncation.n_terms == n_traced:
        assert np.abs(errors).max() < 1e-12  # nothing is left to a probe
        assert expected.max() == 0.0
        return
    assert np.all(np.abs(errors.mean(0)) < 4 * np.sqrt(expected / n))
    squares = errors**2
    standard_error = squares.std(0) / np.sqrt(n)
    assert np.all(np.abs(squares.mean(0) - expected) < 4 * standard_error)
    without = truncation.variance(matrix, probe, 2)
    assert np.any(np.abs(squares.mean(0) - without) > 4 * standard_error)


@pytest.mark.parametrize(
    ("name", "n_traced", "gradient"),
    [
        ("W-phi-W", 2, Neumann()),
        ("W-phi-W", 2, Series()),
        ("W-phi-W-phi-W", 1, Neumann()),
        ("3-1-3", 1, Neumann()),
    ],
    ids=str,
)
def test_gradient_with_exact_traces_is_unbiased(name, n_traced, gradient) -> None:
    """|z| < 4.5 of the mean of every coordinate, at most 120 of them, in 100 batches of 20 draws at
    three points with unequal weights; and less noise than without.

    The twin leaves the traces' gradient out: rejected.
    """
    branch, n_batches, n_copies = BRANCHES[name][0](), 100, 20
    upstream = torch.tensor([1.0, 2.0, -5.0], dtype=DTYPE)
    x = points(branch)
    inputs = [p for p in branch.parameters() if p is not branch.layers[-1].bias]
    many = x.repeat(n_copies, *[1] * (x.ndim - 1))

    def flat(value: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, inputs)])

    def draws(n_traced: int) -> Tensor:
        """Gradients of the mean over copies, which are the means of their gradients."""
        truncation = Roulette(Geometric(0.2), n_exact=n_traced)
        estimator = LogDetEstimator(Rademacher(), truncation, n_traced=n_traced, gradient=gradient)
        source = generator(2)
        values = (estimator(branch, many, source).value for _ in range(n_batches))
        return torch.stack([flat((v.view(n_copies, 3) @ upstream).mean()) for v in values])

    found = draws(n_traced)
    error = found.mean(0) - flat(exact_log_det(branch, x) @ upstream)
    standard_error = (found.std(0) / n_batches**0.5).clamp_min(1e-12)
    assert (error / standard_error).abs().max() < 4.5
    assert found.var(0).sum() < draws(0).var(0).sum()
    traced = branch.linearise(x)[1].traces(n_traced)
    lead = sum((t if k % 2 else -t) / k for k, t in enumerate(traced, start=1))
    twin = error - flat(lead @ upstream)
    assert (twin / standard_error).abs().max() > 4.5


@pytest.mark.parametrize("products", [None, dense], ids=["cached", "dense"])
@pytest.mark.parametrize("n_probes", [1, 3])
@torch.no_grad()
def test_examples_that_have_their_terms_leave_the_batch(products, n_probes) -> None:
    """The same estimates to rounding as from products that cannot be cut, at fewer products."""
    branch = BRANCHES["W-phi-W"][0]()
    x = points(branch, 64)
    truncation = Roulette(Geometric(0.2), n_exact=1)
    kind = {} if products is None else {"products": products}
    cut = LogDetEstimator(Rademacher(), truncation, n_probes, **kind)(branch, x, generator(3))
    whole = LogDetEstimator(Rademacher(), truncation, n_probes, products=autograd)(
        branch, x, generator(3)
    )
    torch.testing.assert_close(cut.value, whole.value, rtol=0, atol=1e-13)
    n_terms = truncation.draw(64, x, _after_probes(n_probes, x)).n_terms
    assert n_probes * n_terms.mean() <= cut.n_products <= 1.25 * n_probes * n_terms.mean()
    assert whole.n_products == n_probes * n_terms.max()


def _after_probes(n_probes: int, x: Tensor) -> torch.Generator:
    source = generator(3)
    Rademacher().sample(n_probes, x, source)
    return source


class Whole(Jacobian):
    """A twin of a chain, without its `cycle`."""

    shrinks = True

    def __init__(self, chain: Jacobian) -> None:
        self.chain = chain
        self.vjp, self.traces = chain.vjp, chain.traces
        self.bilinear_gradient = chain.bilinear_gradient

    def select(self, examples: slice | Tensor) -> Jacobian:
        return Whole(self.chain.select(examples))


@pytest.mark.parametrize(
    ("hidden", "n_traced"),
    [((8,), 0), ((8,), 1), ((8, 6), 0), ((8, 6), 1), ((6, 30, 7), 0)],
    ids=str,
)
@pytest.mark.parametrize("truncation", [Fixed(1), Fixed(5), Roulette(Geometric(0.3), 0)], ids=str)
def test_outer_matrices_in_one_change_nothing_but_the_cost(hidden, n_traced, truncation) -> None:
    """Value and gradient to 1e-12 of those by autograd, 40 examples, two probes, unequal weights;
    and the products between the first and the last have d (h_1 + h_L) - h_1 h_L numbers fewer.
    """
    branch = steep(mlp_branch(12, hidden, 0.9))
    x = points(branch, 40).requires_grad_()
    upstream = torch.linspace(-1.0, 2.0, 40, dtype=DTYPE)

    def found(products: Products) -> tuple[Tensor, ...]:
        estimator = LogDetEstimator(Rademacher(), truncation, 2, products, n_traced=n_traced)
        value = estimator(branch, x, generator(6)).value
        inputs = [x, *branch.parameters()]
        gradient = torch.autograd.grad(value @ upstream, inputs, materialize_grads=True)
        return value, *gradient

    def whole(g: Map, x: Tensor) -> Linearisation:
        """The twin that always multiplies with both outer matrices."""
        value, chain = cached(g, x)
        return Linearisation(value, Whole(chain))

    for ours, reference in zip(found(cached), found(whole), strict=True):
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-12)
    _, loop, _ = branch.linearise(x)[1].cycle()
    sizes = [stage.weight.numel() for stage in loop.stages if isinstance(stage, MatrixStage)]
    assert sum(sizes) == hidden[0] * hidden[-1] + sum(a * b for a, b in pairwise(hidden))


def test_wide_hidden_layers_are_left_as_they_are() -> None:
    """h = 2 d: nothing is saved; and images, and J as a matrix, have no outer matrices."""
    for branch in (mlp_branch(8, (16,), 0.9), conv_branch(2, (4, 4), (3, 1, 3), (4, 4), 0.9)):
        chain = branch.linearise(points(branch).float())[1]
        assert chain.cycle()[1] is chain


@torch.no_grad()
def test_low_precision_in_the_tail_alone() -> None:
    """bfloat16 products round what they round: less with the first trace exact, and nothing at all
    of the first product. Root mean square of the difference to float32, 512 points.
    """
    branch = steep(mlp_branch(16, (32,), 0.7, activation=LipSwish)).float()
    x = points(branch, 512).float()

    def value(n_traced: int, tail: torch.dtype | None, n_terms: int = 6) -> Tensor:
        estimator = LogDetEstimator(
            Rademacher(), Fixed(n_terms), n_traced=n_traced, expansion=Taylor(tail)
        )
        found = estimator(branch, x, generator(4)).value
        assert found.dtype == torch.float32
        return found

    def rounded(n_traced: int, n_terms: int = 6) -> float:
        difference = value(n_traced, torch.bfloat16, n_terms) - value(n_traced, None, n_terms)
        return float(difference.pow(2).mean().sqrt())

    assert rounded(0, n_terms=1) == 0.0  # the first product is not rounded
    assert 0.0 < rounded(1) < 0.02 * float(value(0, None).std())
    assert 0.0 < rounded(0) < 0.02 * float(value(0, None).std())
    low = Taylor(torch.bfloat16)
    estimator = LogDetEstimator(Rademacher(), Fixed(3), products=autograd, expansion=low)
    with pytest.raises(ValueError, match="tail=None"):
        estimator(lambda x: 0.5 * x, torch.zeros(2, 3))
