"""Products at the hardware's speed: packed, in TF32 and recorded, each against plain ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from resflow_bench.flows import ResidualFlow
from resflow_bench.jacobian import JacobianChain, MatrixStage
from resflow_bench.jacobian.matrix_stage import PACKED_FROM, PackedMatrixStage
from resflow_bench.lab import Cell, Skip
from resflow_bench.layers import mlp_branch
from resflow_bench.logdet import (
    Determinant,
    Fixed,
    Geometric,
    LogDetEstimator,
    Rademacher,
    Roulette,
    Taylor,
)
from resflow_bench.logdet.expansions.numerics import tf32
from resflow_bench.models import build_expansion

CUDA = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="TF32 and CUDA graphs need a CUDA GPU"
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
def test_tf32_rounds_the_tail_alone() -> None:
    branch = mlp_branch(256, (512,), 0.9).cuda()
    x = torch.randn(64, 256, device="cuda")

    def value(n_terms: int, expansion: Taylor) -> Tensor:
        estimator = LogDetEstimator(Rademacher(), Fixed(n_terms), 4, expansion=expansion)
        return estimator(branch, x, torch.Generator("cuda").manual_seed(0)).value

    plain = value(12, Taylor())
    assert torch.equal(value(1, Taylor("tf32")), value(1, Taylor()))
    difference = (value(12, Taylor("tf32")) - plain).abs().max()
    assert 0 < difference < 0.02 * plain.std()


@CUDA
@torch.no_grad()
def test_a_log_prob_of_fixed_terms_can_be_recorded_as_a_cuda_graph() -> None:
    """Replayed, it returns the log-prob of new examples, with the probes of the replay."""
    flow = ResidualFlow.mlp(8, (16, 16), 4, 0.9).cuda()
    flow.estimator = LogDetEstimator(Rademacher(), Fixed(30), n_probes=64)
    x = torch.randn(16, 8, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            flow.log_prob(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = flow.log_prob(x)
    x.copy_(torch.randn_like(x))
    graph.replay()
    exact = flow.with_estimator(Determinant()).log_prob(x)
    torch.testing.assert_close(value, exact, rtol=0, atol=0.5)


def test_a_cell_asks_tf32_of_a_gpu_or_is_skipped() -> None:
    cell = Cell("bias", {"expansion": "taylor(tf32)", "lipschitz": 0.9, "device": "cpu"})
    with pytest.raises(Skip, match="needs a CUDA device; got cpu"):
        build_expansion(cell)
    cell = Cell("bias", {"expansion": "taylor(bfloat16)", "lipschitz": 0.9, "device": "cpu"})
    assert build_expansion(cell) == Taylor(torch.bfloat16)
