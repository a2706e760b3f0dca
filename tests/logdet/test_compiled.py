"""Products at the hardware's speed: compiled, packed and in TF32, each against plain ones."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode

from resflow_bench.jacobian import JacobianChain, MatrixStage
from resflow_bench.jacobian.matrix_stage import PACKED_FROM, PackedMatrixStage
from resflow_bench.lab import Cell, Skip
from resflow_bench.layers import Branch, conv_branch, mlp_branch
from resflow_bench.logdet import (
    Compiled,
    Fixed,
    Geometric,
    LogDetEstimator,
    Rademacher,
    Roulette,
    Taylor,
    Truncation,
)
from resflow_bench.logdet.expansions import compiled as module
from resflow_bench.logdet.expansions.expansion import Expansion
from resflow_bench.logdet.expansions.numerics import tf32
from resflow_bench.models import build_expansion

COMPILER = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler (g++) on a CPU"
)
CUDA = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="TF32 and CUDA graphs need a CUDA GPU"
)
BRANCHES = {
    "matrices": lambda: mlp_branch(6, (12,), 0.8),
    "one meeting": lambda: mlp_branch(6, (5,), 0.8),
    "images": lambda: conv_branch(2, (3, 4), (3, 1, 3), (4, 4), 0.8),
}
TRUNCATIONS: list[Truncation] = [Fixed(11), Roulette(Geometric(0.2), n_exact=9)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(branch: Branch, n: int) -> Tensor:
    event = (2, 3, 4) if branch.layers[0].n_in != 6 else (6,)
    return torch.randn(n, *event, generator=generator(1), dtype=torch.float64)


def estimate(
    branch: Branch, x: Tensor, expansion: Expansion, truncation: Truncation, n_probes: int = 2
) -> list[Tensor]:
    """The value, and its gradient in x and in the parameters, examples weighted unequally."""
    x = x.clone().requires_grad_()
    estimator = LogDetEstimator(Rademacher(), truncation, n_probes, expansion=expansion)
    value = estimator(branch, x, generator(2)).value
    weights = torch.linspace(1, 2, len(x), dtype=x.dtype)
    leaves = [x, *branch.parameters()]
    found = torch.autograd.grad((value * weights).sum(), leaves, allow_unused=True)
    return [value, *(g for g in found if g is not None)]


def close(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=str)
@pytest.mark.parametrize("name", BRANCHES)
def test_terms_at_once_are_those_one_by_one(name, truncation, monkeypatch) -> None:
    """Values and gradients to 1e-12; terms of a degree one too high are rejected."""
    branch = BRANCHES[name]().double()
    x = points(branch, 8)
    plain = estimate(branch, x, Taylor(), truncation)
    assert close(estimate(branch, x, Compiled("eager"), truncation), plain)

    def late(stages, power, c, a):
        return module._terms(stages, JacobianChain(stages).vjp(power.clone()), c, a)

    monkeypatch.setattr(module, "_compiled", lambda *_: late)
    assert not close(estimate(branch, x, Compiled("eager"), truncation), plain)


def compilations(name: str) -> int:
    """Graphs that values of five sizes of a batch, with weights of their own, are traced to."""
    torch._dynamo.reset()
    module._compiled.cache_clear()
    before = counters["stats"]["unique_graphs"]
    for size in (9, 7, 12):
        branch = BRANCHES[name]().double()
        with torch.no_grad():
            for truncation in TRUNCATIONS:
                estimator = LogDetEstimator(
                    Rademacher(), truncation, 3, expansion=Compiled("eager")
                )
                estimator(branch, points(branch, size), generator(size))
    module._compiled.cache_clear()
    return counters["stats"]["unique_graphs"] - before


@pytest.mark.parametrize("name", BRANCHES)
def test_compiled_once_whatever_the_batch(name, monkeypatch) -> None:
    """One graph for all sizes, compactions and weights; the twin that keeps sizes has many."""
    assert compilations(name) == 1
    monkeypatch.setattr(torch._dynamo, "maybe_mark_dynamic", lambda *_: None)
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: compile_(f, **how, dynamic=False))
    assert compilations(name) > 1


@COMPILER
@pytest.mark.filterwarnings(
    "ignore:.*script_method. is deprecated:DeprecationWarning"
)  # torch's own
def test_inductor_changes_rounding_alone() -> None:
    """Values and gradients to 1e-12, of examples that leave the batch too."""
    branch = BRANCHES["one meeting"]().double()
    x = points(branch, 8)
    for truncation in TRUNCATIONS:
        plain = estimate(branch, x, Taylor(), truncation)
        assert close(estimate(branch, x, Compiled(), truncation), plain)


def test_no_compiler_is_said_in_one_line(monkeypatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    module._check.cache_clear()
    estimator = LogDetEstimator(Rademacher(), Fixed(9), expansion=Compiled())
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler .*`expansion=Taylor") as caught:
        estimator(BRANCHES["matrices"](), torch.zeros(2, 6), generator())
    assert "\n" not in str(caught.value)


def test_other_maps_are_refused() -> None:
    estimator = LogDetEstimator(Rademacher(), Fixed(9), expansion=Compiled("eager"))
    with pytest.raises(TypeError, match="know their stages"):
        estimator(lambda x: 0.5 * x, torch.zeros(2, 3), generator())


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch is built without MKL")
@torch.no_grad()
def test_a_packed_matrix_is_the_matrix() -> None:
    """For the rows it was packed for and for others, and with as many operations counted; a matrix
    packed untransposed is rejected. Small ones, float64 and images are left as they are.
    """
    weight = torch.randn(1024, 1024, generator=generator()) / 32
    v = torch.randn(2, 5, 1024, generator=generator(1))
    plain = MatrixStage(weight)
    stage = plain.packed(10)
    assert isinstance(stage, PackedMatrixStage)
    wrong = MatrixStage(weight.mT).packed(10)
    exact = (v.double() @ weight.double()).float()
    for rows in (v, v[:, :3]):  # rows it was packed for, and others
        torch.testing.assert_close(stage.vjp(rows), exact[:, : rows.shape[1]], rtol=0, atol=2e-5)
        assert not torch.allclose(wrong.vjp(rows), exact[:, : rows.shape[1]], rtol=0, atol=2e-5)
    torch.testing.assert_close(stage.push(v), plain.push(v), rtol=0, atol=2e-5)
    for other in (stage.select(slice(1)), stage.mean(), stage.to(torch.float32)):
        assert torch.equal(other.weight, weight)
    with FlopCounterMode(display=False) as counter:
        stage.vjp(v)
    assert counter.get_total_flops() == 2 * 10 * 1024**2
    for left in (MatrixStage(weight.double()), MatrixStage(weight[:1023])):
        assert left.packed(10) is left
    assert weight[:1023].numel() < PACKED_FROM


@torch.no_grad()
def test_a_series_of_packed_products_is_the_same(monkeypatch) -> None:
    """A block of 1024 hidden units, with examples that leave; 5e-6 of a sum of about 100 nats."""
    branch = mlp_branch(784, (1024,), 0.9)
    x = torch.randn(16, 784, generator=generator(1))
    estimator = LogDetEstimator(Rademacher(), Roulette(Geometric(0.2), n_exact=6), 2)
    made = []
    original = JacobianChain.packed

    def spy(self: JacobianChain, n_rows: int) -> JacobianChain:
        made.append(n_rows)
        return original(self, n_rows)

    monkeypatch.setattr(JacobianChain, "packed", spy)
    ours = estimator(branch, x, generator(2)).value
    assert made[0] == 32
    monkeypatch.setattr(JacobianChain, "packed", lambda self, _: self)
    torch.testing.assert_close(ours, estimator(branch, x, generator(2)).value, rtol=5e-6, atol=5e-6)


def test_tf32_is_refused_where_there_is_none() -> None:
    """A number that says TF32 was made in TF32: no other precision stands in for it."""
    # of one term too, which has no tail: what is refused does not depend on a roulette's draw
    estimator = LogDetEstimator(Rademacher(), Fixed(1), expansion=Taylor("tf32"))
    with pytest.raises(ValueError, match=r"float32 on cpu\. Set `tail=None`"):
        estimator(mlp_branch(4, (8,), 0.9), torch.zeros(2, 4), generator())
    with pytest.raises(ValueError, match="tail=None"):
        Taylor("tf16")  # type: ignore[arg-type]


@tf32()
def fail_in_tf32() -> None:
    allowed = torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
    raise KeyError("allowed" if allowed else "refused")


@pytest.mark.parametrize("before", ["highest", "medium"])
def test_global_precision_is_put_back(before) -> None:
    """As it was, also when what runs inside fails."""
    at_first = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(before)
    torch.backends.cudnn.allow_tf32 = False
    try:
        with pytest.raises(KeyError, match="allowed"):
            fail_in_tf32()
        assert torch.get_float32_matmul_precision() == before
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(at_first[0])
        torch.backends.cudnn.allow_tf32 = at_first[1]


@CUDA
@torch.no_grad()
def test_tf32_rounds_the_tail_alone_and_graphs_change_nothing() -> None:
    branch = mlp_branch(256, (512,), 0.9).cuda()
    x = torch.randn(64, 256, device="cuda")

    def value(n_terms: int, expansion: Expansion) -> Tensor:
        estimator = LogDetEstimator(Rademacher(), Fixed(n_terms), 4, expansion=expansion)
        return estimator(branch, x, torch.Generator("cuda").manual_seed(0)).value

    plain = value(12, Taylor())
    assert torch.equal(value(1, Taylor("tf32")), value(1, Taylor()))
    difference = (value(12, Taylor("tf32")) - plain).abs().max()
    assert 0 < difference < 0.02 * plain.std()
    for _ in range(3):  # warmed up, recorded, replayed
        torch.testing.assert_close(value(12, Compiled()), plain, rtol=1e-5, atol=1e-4)


def test_a_cell_asks_tf32_of_a_gpu_or_is_skipped() -> None:
    cell = Cell("bias", {"expansion": "taylor(tf32)", "lipschitz": 0.9, "device": "cpu"})
    with pytest.raises(Skip, match="needs a CUDA device; got cpu"):
        build_expansion(cell)
    cell = Cell("bias", {"expansion": "taylor(bfloat16)", "lipschitz": 0.9, "device": "cpu"})
    assert build_expansion(cell) == Taylor(torch.bfloat16)
