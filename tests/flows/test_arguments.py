"""What the public calls accept: shapes, dtypes, batches of none, numbers that are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_flows import generator, images, normal, vectors
from torch import Tensor, nn

from resflow_bench.fixed_point import Auto, Picard, solve
from resflow_bench.flows import (
    ActNorm,
    FactorOut,
    Flatten,
    Logit,
    Mixing,
    ResidualBlock,
    ResidualFlow,
    Squeeze,
    ToError,
    ToRounding,
    ToTolerance,
)
from resflow_bench.layers import (
    Branch,
    CLipSwish,
    Conv2d,
    DenseLayer,
    Linear,
    LinearBranch,
    LipSwish,
    conv_branch,
    dense_branch,
    mlp_branch,
)
from resflow_bench.layers.maps import Affine
from resflow_bench.layers.norms.norm import Certificate
from resflow_bench.logdet import (
    Arnoldi,
    Chebyshev,
    Controlled,
    Determinant,
    Exact,
    Fixed,
    Geometric,
    LogDetEstimator,
    Rademacher,
    Roulette,
    Series,
    Taylor,
    exact_log_det,
    jacobian,
)

INF, NAN = math.inf, math.nan

# Any input: the right shape, or a sentence of ours

CALLS: dict[str, tuple[Callable[[Tensor], Any], tuple[int, ...]]] = {}
"""Name to a call that returns one tensor with a row an example, and the event that it takes."""


def known(name: str, event: tuple[int, ...], call: Callable[[Tensor], Any]) -> None:
    CALLS[name] = (call, event)


def make_calls() -> None:
    for kind, flow in (("vectors", vectors()), ("images", images())):
        event = flow.event
        for estimator in (flow.estimator, Exact(), Determinant()):
            view = flow.with_estimator(estimator)
            name = f"{kind} {type(estimator).__name__}"
            known(f"{name} log_prob", event, lambda x, f=view: f.log_prob(x, generator()))
        known(f"{kind} forward", event, flow)
        for inversion in (ToTolerance(), ToRounding(), ToError(1e-3)):
            name = f"{kind} inverse {type(inversion).__name__}"
            known(name, (flow.dim,), lambda z, f=flow, i=inversion: f.inverse(z, i).value)
    layer = Linear(3, 8, 0.9)
    pieces: dict[tuple[int, ...], list[nn.Module]] = {
        (3,): [
            ActNorm(3), Mixing(3), Logit(), Flatten((3,)), layer, mlp_branch(3, (8,), 0.9),
            LinearBranch(0.5 * torch.eye(3), 0.6), DenseLayer(layer, CLipSwish()),
            ResidualBlock(mlp_branch(3, (8,), 0.9)), dense_branch(3, 2, 1, 0.9),
        ],
        (2, 4, 4): [
            ActNorm(2), Mixing(2), Logit(), Squeeze(), Flatten((2, 4, 4)),
            Conv2d(2, 3, 3, (4, 4), 0.9), conv_branch(2, (4, 4), (3, 3), (4,), 0.9),
            FactorOut(Flatten((1, 4, 4)), event=(2, 4, 4)),
        ],
    }  # fmt: skip
    for event, modules in pieces.items():
        for module in modules:
            name = f"{type(module).__name__} {event}"
            known(f"{name} forward", event, module)
            if isinstance(module, ActNorm | Mixing | Logit):
                known(f"{name} inverse", event, module.inverse)
    branch = mlp_branch(3, (8,), 0.9)
    for expansion in (Taylor(), Arnoldi(), Chebyshev(-0.9, 0.9), Controlled()):
        estimator = LogDetEstimator(Rademacher(), Fixed(4), expansion=expansion)
        name = f"estimator {expansion}"
        known(name, (3,), lambda x, e=estimator: e(branch, x, generator()).value)
    for truncation in (Fixed(3), Roulette(Geometric(0.5), 1)):
        estimator = LogDetEstimator(Rademacher(), truncation, gradient=Series())
        name = f"estimator {truncation}"
        known(name, (3,), lambda x, e=estimator: e(branch, x, generator()).value)
    known("exact_log_det", (3,), lambda x: exact_log_det(branch, x))
    known("jacobian", (3,), lambda x: jacobian(branch, x))
    known("solve", (3,), lambda x: solve(lambda u: 0.5 * u, x, Picard()).value)


make_calls()

SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int64, torch.bool])
STRIDES = st.sampled_from(["contiguous", "every other", "expanded"])
OURS = ("needs", "has parameters of", "must map", "cannot run")
"""One of these stands in every sentence of ours; torch's say 'size of tensor', 'mat1' and such."""


def laid_out(x: Tensor, strides: str) -> Tensor:
    """The same shape in another layout; expanded: every row is the first one."""
    if strides == "every other" and x.ndim and x.shape[-1]:
        return x.repeat_interleave(2, -1)[..., ::2]
    if strides == "expanded" and x.ndim and len(x):
        return x[:1].expand(x.shape)
    return x


@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("name", CALLS)
@given(shape=SHAPES, n=st.integers(0, 3), right=st.booleans(), dtype=DTYPES, strides=STRIDES)
def test_the_right_shape_or_a_sentence_of_ours(name, shape, n, right, dtype, strides) -> None:
    """A batch of any size in the module's dtype is served; anything else, served or refused."""
    call, event = CALLS[name]
    shape = (n, *event) if right else shape
    x = laid_out((0.2 + 0.6 * torch.rand(shape, generator=generator())).to(dtype), strides)
    found, refusal = None, ""
    try:
        found = call(x)
    except (ValueError, TypeError) as error:
        refusal = str(error)
    if found is None:
        assert any(words in refusal for words in OURS), refusal
        assert not (right and dtype == torch.float32), refusal
        return
    assert len(found) == len(x) or x.ndim == 1  # a linear layer takes a vector alone
    assert found.isfinite().all()
    if right and n > 1:
        alone = call(x[1:2].clone())
        if "log_prob" not in name and "estimator" not in name:  # whose draws are of the batch
            torch.testing.assert_close(found[1:2], alone, rtol=1e-3, atol=1e-3)


@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("name", CALLS)
@given(at=st.integers(0, 3), bad=st.sampled_from([NAN, INF, -INF]))
def test_a_row_that_is_not_finite_spoils_no_other(name, at, bad) -> None:
    """The others' numbers are those without it, to rounding; no exception, no warning."""
    call, event = CALLS[name]
    x = 0.2 + 0.6 * torch.rand((4, *event), generator=generator())
    whole = call(x)
    spoiled = x.clone()
    spoiled[at].view(-1)[0] = bad
    found = call(spoiled)
    rest = torch.arange(4) != at
    tolerance = 0.3 if "controlled" in name else 1e-4  # a control of another mean, unbiased too
    torch.testing.assert_close(found[rest], whole[rest], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("x", [np.zeros((2, 3)), [[0.0] * 3] * 2, None, 1.0])
def test_what_is_no_tensor_is_refused(name, x) -> None:
    with pytest.raises(TypeError, match="as a tensor; got"):
        CALLS[name][0](x)


# Shapes that broadcast


@pytest.mark.parametrize("shape", [(5, 1), (3,), (2, 5, 3), (5, 4), ()])
@pytest.mark.parametrize("call", ["forward", "log_prob", "inverse", "initialise", "inputs"])
def test_a_flow_names_its_event(call, shape) -> None:
    """(5, 1) would be broadcast to five plausible numbers."""
    with pytest.raises(ValueError, match=r"of shape \(B, 3\); got"):
        list(getattr(vectors(), call)(torch.zeros(shape)))


def test_a_wider_input_is_refused_with_both_remedies() -> None:
    with pytest.raises(ValueError, match=r"x with `\.to\(torch\.float32\)`.*`\.to\(torch\.float64"):
        vectors().log_prob(torch.zeros(2, 3, dtype=torch.float64))
    assert vectors().double().log_prob(torch.zeros(2, 3, dtype=torch.float64)).dtype.itemsize == 8


# Estimators, transforms, own modules


class Learned(nn.Module):
    """An estimator that is a module, with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.estimator = Determinant()

    def forward(self, g: Any, x: Tensor, generator: torch.Generator | None = None) -> Any:
        estimate = self.estimator(g, x, generator)
        return estimate._replace(value=estimate.value * self.scale)


def test_an_estimator_may_be_a_module() -> None:
    flow, x = vectors(), normal(4, 3)
    names = list(flow.state_dict())
    exact = flow.with_estimator(Determinant()).log_prob(x)
    view = flow.with_estimator(Learned())
    assert torch.equal(view.log_prob(x), exact)
    assert list(flow.state_dict()) == list(view.state_dict()) == names
    assert torch.equal(flow.log_prob(x, generator()), vectors().log_prob(x, generator()))
    assert torch.equal(
        view.with_estimator(Exact()).log_prob(x), flow.with_estimator(Exact()).log_prob(x)
    )
    flow.estimator = Learned()
    flow.estimator = Exact()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by torch.func.jvp
@pytest.mark.parametrize(
    "estimator",
    [vectors().estimator, Exact(), Determinant()],
    ids=["series", "exact", "determinant"],
)
@pytest.mark.parametrize(
    "transform",
    [
        lambda f: torch.func.grad(lambda x: f(x).sum()),
        torch.func.jacrev,
        lambda f: torch.func.vmap(lambda x: f(x[None])[0]),
        lambda f: lambda x: torch.func.jvp(f, (x,), (x,)),
    ],
)
def test_transforms_of_functions_are_refused_with_a_remedy(transform, estimator) -> None:
    flow = vectors().with_estimator(estimator)
    with pytest.raises(TypeError, match=r"cannot run inside.*`torch\.autograd\.grad` of the sum"):
        transform(lambda x: flow.log_prob(x, generator()))(normal(4, 3))
    x = normal(4, 3).requires_grad_()
    assert torch.autograd.grad(flow.log_prob(x, generator()).sum(), x)[0].isfinite().all()


def test_the_map_itself_can_be_transformed() -> None:
    flow, x = vectors(), normal(3)
    found = torch.func.jacrev(lambda u: flow(u[None])[0])(x)
    expected = torch.autograd.functional.jacobian(lambda u: flow(u[None])[0], x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_exact_density_can_be_exported() -> None:
    class Density(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flow = vectors().with_estimator(Determinant())

        def forward(self, x: Tensor) -> Tensor:
            return self.flow.log_prob(x)

    density, x = Density(), normal(4, 3)
    program = torch.export.export(density, (x,))
    torch.testing.assert_close(program.module()(x), density(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [vectors, images])
def test_a_flow_made_in_another_default_dtype(make) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        flow = make()
        x = 0.2 + 0.6 * torch.rand((3, *flow.event), generator=generator())
        assert flow.log_prob(x, generator()).dtype == torch.float64
        assert flow.sample(2, generator()).dtype == torch.float64
        assert {p.dtype for p in flow.parameters()} == {torch.float64}
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_g_without_a_promise_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match=r"promised Lipschitz constant.*got Sequential"):
        ResidualBlock(nn.Sequential(nn.Linear(3, 3), nn.Tanh()))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LogDetEstimator(Rademacher(), Fixed(2), n_probes=1.5), "`n_probes`; got 1.5"),
        (lambda: Fixed(2.5), "`n_terms`; got 2.5"),
        (lambda: Roulette(Geometric(0.5), n_exact=0.5), "`n_exact`; got 0.5"),
        (lambda: vectors().sample(-1), "n of at least 0; got -1"),
        (lambda: vectors().sample(2.0), "`n`; got 2.0"),
        (lambda: ResidualFlow.mlp(3, (16,), 1.5, 0.9), "`n_blocks`; got 1.5"),
        (lambda: ResidualFlow.mlp(3, (0,), 1, 0.9), "n_out of at least 1; got 0"),
        (lambda: Conv2d(1, 2, 3, (8,), 0.9), r"two numbers as `grid`; got \(8,\)"),
        (lambda: Squeeze(0), "factor of at least 1; got 0"),
        (lambda: Squeeze(2)(torch.zeros(1, 1, 3, 4)), r"that it divides; got \(1, 1, 3, 4\)"),
        (lambda: Branch(LipSwish(), lipschitz=0.9), "layer as its last stage"),
        (lambda: solve(lambda x: x[..., :1], torch.zeros(2, 3)), "keeps the shape"),
        (lambda: solve(lambda x: x.double(), torch.zeros(2, 3)), "keeps the shape and dtype"),
    ],
)
def test_numbers_that_cannot_be_are_named(make, words) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    "call",
    [
        lambda: LogDetEstimator(Rademacher(), Fixed(2))(lambda x: None, torch.zeros(2, 3)),
        lambda: Exact()(lambda x: None, torch.zeros(2, 3)),
        lambda: solve(lambda x: None, torch.zeros(2, 3)),
    ],
)
def test_a_function_that_returns_nothing_is_named(call) -> None:
    with pytest.raises(TypeError, match="tensor; got NoneType"):
        call()


def test_a_slow_iteration_names_the_step_that_solves_it() -> None:
    """g = -0.999 x: Picard's 2,000 steps are not enough, and nine of Auto's are."""
    block, z = ResidualBlock(LinearBranch(-0.999 * torch.eye(3), 0.9991)), normal(5, 3)
    with pytest.raises(ArithmeticError, match=r"MAX_STEPS \(.*take the step `Auto\(\)`"):
        block.inverse(z, ToTolerance(Picard())).raise_if_failed()
    assert block.inverse(z, ToTolerance(Auto())).raise_if_failed().n_steps.max() <= 9


@pytest.mark.parametrize("make", [mlp_branch, lambda *_: LinearBranch(0.5 * torch.eye(4), 0.9)])
def test_what_acts_on_the_last_axis_takes_any_axes_before_it(make) -> None:
    """A sequence of vectors: its log-det is the sum of theirs; a closure over it is a g, too."""
    branch, x = make(4, (8,), 0.9), normal(5, 3, 4)
    each = exact_log_det(branch, x.flatten(0, 1)).view(5, 3).sum(1)
    torch.testing.assert_close(exact_log_det(branch, x), each, rtol=0, atol=1e-9)
    closure = exact_log_det(lambda y: 1.0 * branch(y), x)
    torch.testing.assert_close(closure, each, rtol=0, atol=1e-4)
    flow = ResidualFlow([ResidualBlock(branch), Flatten((3, 4))], (3, 4))
    solution = flow.inverse(flow(x))
    torch.testing.assert_close(solution.value, x, rtol=0, atol=1e-5)


class Twice(nn.Module):
    """One parameter under two names of one module."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(0.5 * torch.eye(4))
        self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.a @ self.b


def test_a_parameter_may_have_two_names() -> None:
    found = exact_log_det(Twice(), normal(2, 4))
    torch.testing.assert_close(found, torch.full((2,), 4 * math.log(1.25)).double())


def test_a_layer_may_have_no_parameter_and_an_event_any_kind_of_integer() -> None:
    class Halved(nn.Module):
        coefficient, n_in, n_out, domain, codomain = 0.5, 4, 4, 2.0, 2.0

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("matrix", 0.5 * torch.eye(4))

        def normalised(self) -> Affine:
            return Affine(self.matrix)

        def update(self) -> None: ...
        def align(self) -> None: ...
        def certificate(self) -> Certificate:
            return Certificate(0.5, "known")

    branch = Branch(Halved(), lipschitz=0.6)
    flow = ResidualFlow([ResidualBlock(branch)], np.int64(4))
    x = normal(2, 4)
    assert torch.equal(branch(x), 0.5 * x)
    torch.testing.assert_close(flow.inverse(flow(x)).value, x)
