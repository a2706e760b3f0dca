"""One contract for every kind of J, against the dense J; and a kind of a user's own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from resflow_bench.jacobian import (
    DenseJacobian,
    FunctionJacobian,
    Jacobian,
    Linearisation,
    MatrixStage,
    autograd,
    cached,
    dense,
    dense_jacobian,
)
from resflow_bench.layers import CLipSwish, LinearBranch, conv_branch, dense_branch, mlp_branch
from resflow_bench.logdet import (
    Arnoldi,
    Controlled,
    Fixed,
    Geometric,
    LogDetEstimator,
    Neumann,
    Rademacher,
    Roulette,
    Series,
    Taylor,
    exact_log_det,
    jacobian,
)
from resflow_bench.logdet.expansions.numerics import lowered

DTYPE = torch.float64
B, M = 4, 3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=DTYPE)


class LowRankBranch(nn.Module):
    """g(x) = U tanh(V x): J = U diag(1 - tanh^2(V x)) V, of rank r < d."""

    def __init__(self, dim: int = 6, rank: int = 2) -> None:
        super().__init__()
        self.u = nn.Parameter(0.3 * normal(dim, rank, seed=1) / math.sqrt(rank))
        self.v = nn.Parameter(normal(rank, dim, seed=2) / math.sqrt(dim))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.v.mT) @ self.u.mT


@dataclass(frozen=True, eq=False)
class LowRank(Jacobian):
    """J = U V_b of each example: what a user would write."""

    u: Tensor  # (d, r)
    v: Tensor  # (B, r, d)

    shrinks = True

    def vjp(self, v: Tensor) -> Tensor:
        return torch.einsum("mbi,ir,brj->mbj", v, self.u, self.v)

    def select(self, examples: slice | Tensor) -> LowRank:
        return LowRank(self.u, self.v[examples])

    def traces(self, n: int) -> list[Tensor]:
        core = self.v @ self.u  # (B, r, r)
        powers = [torch.linalg.matrix_power(core, k) for k in range(1, n + 1)]
        return [power.diagonal(dim1=1, dim2=2).sum(1) for power in powers]


def low_rank(g: LowRankBranch, x: Tensor) -> Linearisation:
    slope = 1 - torch.tanh(x @ g.v.mT).square()
    return Linearisation(g(x), LowRank(g.u, slope[..., None] * g.v))


def mlp(*hidden: int) -> nn.Module:
    return mlp_branch(6, hidden, 0.9, generator=generator()).double()


def conv() -> nn.Module:
    return conv_branch(2, (3, 4), (3, 1, 3), (4, 4), 0.9, generator=generator()).double()


KINDS = {
    "matrix": (lambda: LinearBranch(0.2 * torch.eye(6, dtype=DTYPE), 0.9), cached),
    "chain": (lambda: mlp(8), cached),
    "deep chain": (lambda: mlp(4, 5), cached),
    "two outputs": (lambda: mlp_branch(6, (8,), 0.9, CLipSwish).double(), cached),
    "kernels": (conv, cached),
    "concatenation": (lambda: dense_branch(6, 4, 2, 0.9, generator=generator()).double(), cached),
    "dense": (lambda: mlp(8), dense),
    "dense image": (conv, dense),
    "autograd": (lambda: mlp(8), autograd),
    "autograd image": (conv, autograd),
    "low rank": (LowRankBranch, low_rank),
}
"""A branch and its products; a new kind of J is a new item."""

UNSUPPORTED = {
    "autograd": {"push", "select", "to", "mean", "traces"},
    "autograd image": {"push", "select", "to", "mean", "traces"},
    "low rank": {"push", "to", "mean"},
    "concatenation": {"traces"},
}


def points(branch: nn.Module) -> Tensor:
    grid = getattr(getattr(branch, "layers", [None])[0], "grid", None)
    return normal(B, *((6,) if grid is None else (2, *grid)), seed=5)


@pytest.fixture(params=KINDS)
def case(request) -> tuple[str, Jacobian, Tensor, Tensor, Tensor]:
    """(name, J, dense J (B, d, d), x, v) at four points."""
    make, products = KINDS[request.param]
    branch = make().requires_grad_(False)
    x = points(branch)
    return request.param, products(branch, x)[1], jacobian(branch, x), x, normal(M, *x.shape)


def times(v: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("mbi,bij->mbj", v.flatten(2), matrix).view_as(v)


def close(ours: Tensor, truth: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(ours, truth, rtol=0, atol=atol)


def supports(name: str, verb: str) -> bool:
    return verb not in UNSUPPORTED.get(name, set())


@torch.no_grad()
def test_products_are_those_of_the_dense_jacobian(case) -> None:
    """v^T J to 1e-12, also of one v for all examples; J v, the twin, is another vector."""
    name, operator, matrix, x, v = case
    close(operator.vjp(v.clone()), times(v, matrix))
    shared = operator.vjp_of_each(v[:, :1].contiguous(), B).expand(M, B, *x.shape[1:])
    close(shared, times(v[:, :1].expand_as(v), matrix))
    close(dense_jacobian(operator, x), matrix)
    if name != "matrix":
        assert (times(v, matrix.mT) - times(v, matrix)).abs().max() > 1e-3
    if supports(name, "push"):
        close(operator.push(v), times(v, matrix.mT))


@torch.no_grad()
def test_parts_copies_and_means(case) -> None:
    """Of two examples; in float32; and at mean slopes, for one layer of them the mean J."""
    name, operator, matrix, x, v = case
    if operator.shrinks:
        for examples in (slice(2), torch.tensor([3, 1])):
            close(operator.select(examples).vjp(v[:, examples].clone()),
                  times(v[:, examples], matrix[examples]))  # fmt: skip
    assert operator.shrinks == supports(name, "select")
    if supports(name, "to"):
        low = operator.to(torch.float32).vjp(v.float())
        assert low.dtype == torch.float32
        close(low.double(), times(v, matrix), atol=1e-5)
    if name in ("matrix", "chain", "two outputs", "dense", "dense image"):
        close(dense_jacobian(operator.mean(), x[:1])[0], matrix.mean(0))


@torch.no_grad()
def test_powers_by_the_cycle_and_packed(case) -> None:
    """leave(v^T enter loop^2) = v^T J^3."""
    _, operator, matrix, _, v = case
    enter, loop, leave = operator.cycle()
    loop = loop.packed(M * B)
    expected = times(times(times(v, matrix), matrix), matrix)
    close(leave(loop.vjp(loop.vjp(enter.vjp(v.clone())))), expected)


@torch.no_grad()
def test_traces(case) -> None:
    name, operator, matrix, _, _ = case
    n = 1 if name in ("deep chain", "kernels") else 2
    if supports(name, "traces"):
        for k, trace in enumerate(operator.traces(n), start=1):
            power = torch.linalg.matrix_power(matrix, k)
            close(trace.expand(B), power.diagonal(dim1=1, dim2=2).sum(1))


def test_the_bilinear_form_has_autograds_gradient(case, request) -> None:
    """In x and all parameters, weights per example; the value is zero."""
    make, products = KINDS[request.node.callspec.params["case"]]
    branch = make()
    x = points(branch).requires_grad_()
    inputs = [x, *branch.parameters()]
    s, v = normal(M, *x.shape, seed=6), normal(M, *x.shape, seed=7)
    zero = products(branch, x)[1].bilinear_gradient(s, v)
    assert zero.shape == (B,)
    assert zero.abs().max() == 0
    truth = (times(s, jacobian(branch, x)) * v).flatten(2).sum(2).mean(0)
    weights = normal(B, seed=8)
    if not truth.requires_grad:
        assert not zero.requires_grad
        return
    for ours, theirs in zip(
        torch.autograd.grad(zero @ weights, inputs, materialize_grads=True),
        torch.autograd.grad(truth @ weights, inputs, materialize_grads=True),
        strict=True,
    ):
        close(ours, theirs)


CALLS = {
    "push": lambda j: j.push(torch.zeros(M, B, 6, dtype=DTYPE)),
    "select": lambda j: j.select(slice(2)),
    "to": lambda j: j.to(torch.float32),
    "mean": lambda j: j.mean(),
    "traces": lambda j: j.traces(1),
}


@pytest.mark.parametrize("verb", CALLS)
@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_a_kind_cannot_do_is_refused_in_one_sentence(name, verb) -> None:
    """With the operator's name, what it supports, and the remedy."""
    make, products = KINDS[name]
    branch = make()
    operator = products(branch, points(branch))[1]
    if supports(name, verb):
        CALLS[verb](operator)
        return
    with pytest.raises(ValueError, match=r"supports .*; got .*: .*`products=dense`") as caught:
        CALLS[verb](operator)
    said = str(caught.value)
    assert "\n" not in said
    assert said.endswith(".")
    assert ". " not in said
    operator_name = "this branch (" if name == "concatenation" else type(operator).__name__
    assert said.startswith(operator_name)


@pytest.mark.parametrize("n_traced", [0, 2])
@pytest.mark.parametrize(
    ("expansion", "gradient"),
    [(Taylor(), Neumann()), (Taylor(), Series()), (Arnoldi(), Neumann())],
    ids=str,
)
def test_a_kind_of_a_users_own_estimates_as_autograd_does(expansion, gradient, n_traced) -> None:
    """Value and gradient to 1e-12, at fewer products: finished examples leave the batch."""
    branch, found = LowRankBranch(), []
    x = normal(20, 6, seed=5).requires_grad_()
    for products in (low_rank, dense):
        estimator = LogDetEstimator(
            Rademacher(), Roulette(Geometric(0.3), 2), 2, products, gradient, n_traced, expansion
        )
        value, n_products = estimator(branch, x, generator(3))[1:3]
        weighted = value @ torch.linspace(1, 2, 20, dtype=DTYPE)
        found.append((value, n_products, *torch.autograd.grad(weighted, [x, branch.u, branch.v])))
    assert found[0][1] == found[1][1]
    for ours, theirs in zip(found[0], found[1], strict=True):
        if isinstance(ours, Tensor):
            close(ours, theirs)


def test_its_mean_is_the_log_det() -> None:
    branch = LowRankBranch()
    x = normal(1, 6, seed=5)
    estimator = LogDetEstimator(Rademacher(), Fixed(60), 4000, products=low_rank)  # type: ignore[arg-type]
    with torch.no_grad():
        value = estimator(branch, x, generator()).value
    close(value, exact_log_det(branch, x).detach(), atol=0.02)


def test_what_needs_more_than_products_is_refused_by_the_estimator() -> None:
    branch, x = LowRankBranch(), normal(2, 6)
    for expansion, words in ((Controlled(), "leave out `Controlled`"),
                             (Taylor(torch.bfloat16), "set `tail=None`")):  # fmt: skip
        estimator = LogDetEstimator(Rademacher(), Fixed(5), products=low_rank, expansion=expansion)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=words):
            estimator(branch, x, generator())


def test_a_bare_function_and_tf32_keep_their_products() -> None:
    double = FunctionJacobian(lambda v: 2 * v)
    v = normal(1, 2, 3)
    close(double.vjp(v), 2 * v)
    matrices = DenseJacobian(normal(2, 3, 3))
    in_tf32 = lowered(matrices, "tf32")
    close(in_tf32.select(slice(1)).vjp(v[:, :1]), matrices.select(slice(1)).vjp(v[:, :1]))
    assert in_tf32.shrinks
    assert not lowered(double, "tf32").shrinks
    assert isinstance(lowered(MatrixStage(v[0]), torch.float32), MatrixStage)
