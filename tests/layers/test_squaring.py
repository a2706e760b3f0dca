"""Norms by repeated squaring, against singular values; many layers at once; no wait of the host."""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from resflow_bench.flows import MultiScale, ResidualFlow, image_flow
from resflow_bench.layers import Conv2d, DenseLayer, Induced, Linear, LipSwish, together
from resflow_bench.layers.norms.operators import Convolution, Matrix, dense_stack
from resflow_bench.layers.norms.spectral import SpectralNorm, bounds_together, follow_together
from resflow_bench.layers.norms.squaring import SQUARINGS_IN_UPDATE, gram_norm, largest_column

DTYPE = torch.float64
KINDS = ("Gaussian", "isometry", "crowded", "two values", "rank one", "repeated")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def hostile(kind: str, n: int, m: int, count: int, seed: int) -> Tensor:
    """Matrices (count, n, m), n <= m, of singular values on which squaring is slow or rounds."""
    noise = generator(seed)
    gaussian = torch.randn(count, n, m, generator=noise, dtype=DTYPE)
    u, s, vh = torch.linalg.svd(gaussian, full_matrices=False)
    k = torch.arange(n, dtype=DTYPE)
    values = {
        "Gaussian": s[0],
        "isometry": torch.ones(n, dtype=DTYPE),
        "crowded": 1 - 1e-5 * k / n,
        "two values": torch.where(k < (n + 1) // 2, 1.0, 1 - 1e-4),
        "rank one": (k == 0).double(),
        "repeated": torch.where(k < 2, 1.0, 0.5),
    }[kind]
    scales = 10 ** (12 * torch.rand(count, 1, 1, generator=noise, dtype=DTYPE) - 6)
    return scales * (u * values) @ vh


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_above_the_norm_by_a_thousandth_at_most(kind: str, dtype: Any) -> None:
    """With the bound after few squarings, the case of an update."""
    for seed, (n, m) in enumerate([(1, 1), (2, 3), (5, 5), (16, 32), (33, 40), (64, 64)]):
        a = hostile(kind, n, m, 8, seed).to(dtype).double()
        truth = torch.linalg.svdvals(a)[:, 0]
        for n_squarings, most in ((SQUARINGS_IN_UPDATE, 1e-3), (24, 1e-6)):
            bound, power = gram_norm(a @ a.mT, n_squarings)
            assert bool((bound >= truth).all())
            assert bool((bound <= truth * (1 + most)).all())
            assert bool((bound <= truth * (n**2.0 ** (-n_squarings - 2) + 1e-10)).all())
            x = largest_column(power)
            attained = torch.linalg.vector_norm(x[:, None] @ a, dim=(1, 2))
            assert bool((attained >= truth * (1 - most)).all())
            torch.testing.assert_close(x.norm(dim=1), torch.ones(8, dtype=DTYPE))


def test_a_multiple_of_an_isometry_attains_the_bound_of_the_theorem() -> None:
    bound, _ = gram_norm(9 * torch.eye(64, dtype=DTYPE), SQUARINGS_IN_UPDATE)
    assert float(bound) == pytest.approx(3 * 64 ** (2.0**-14), rel=1e-11)


def test_matrices_that_are_zero_or_not_finite_disturb_no_other() -> None:
    a = torch.eye(3, dtype=DTYPE).repeat(4, 1, 1)
    a[1], a[2, 0, 1], a[3, 2, 2] = 0, math.inf, math.nan
    bound, power = gram_norm(a @ a.mT)
    assert bound[:2].tolist() == [pytest.approx(1, abs=1e-6), 0]
    assert bool(bound[2:].isnan().all())
    assert largest_column(power)[1].tolist() == [0, 0, 0]
    blocks = torch.complex(a[0], a[0].roll(1, 0))  # Hermitian Gram matrices of complex blocks
    truth = torch.linalg.svdvals(blocks)[0]
    assert truth <= gram_norm(blocks @ blocks.mH)[0] <= truth * (1 + 1e-6)


def operators() -> list[Matrix | Convolution]:
    """Of all kinds that share no batch, two alike, one beyond each limit."""
    noise = generator(3)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=noise)

    matrices = [Matrix(drawn(*shape)) for shape in ((4, 7), (7, 4), (4, 7), (1, 1), (6, 200))]
    grids = [((3, 2, 3, 3), (4, 5)), ((2, 3, 1, 3), (4, 5)), ((5, 4, 1, 1), (9, 9))]
    beyond = [((9, 8, 3, 3), (6, 6)), ((1, 1, 3, 3), (33, 32))]
    return matrices + [Convolution(drawn(*shape), grid) for shape, grid in grids + beyond]


def true_norm(operator: Matrix | Convolution) -> float:
    matrix = operator if isinstance(operator, Matrix) else operator.dense()
    return float(torch.linalg.matrix_norm(matrix.weight.double(), 2))


@pytest.mark.parametrize("align", [False, True])
def test_norms_of_many_layers_at_once_keep_every_promise(align: bool) -> None:
    """After an update of other weights: the divisor is the norm's, u and v are its vectors."""
    for some in (operators(), operators()[:1]):
        norms = [SpectralNorm(operator, 0.5) for operator in some]
        for operator in some:
            operator.weight.mul_(3).add_(torch.randn(operator.weight.shape, generator=generator()))
        follow_together([*zip(norms, some, strict=True)], align=align)
        for norm, operator, bound in zip(norms, some, bounds_together(some), strict=True):
            truth = true_norm(operator)
            exact = isinstance(operator.collapsed(), Matrix) or min(
                operator.collapsed().n_in, operator.collapsed().n_out
            ) <= (1024 if align else 256)
            assert truth <= float(bound)
            divided = truth / float(norm.divisor(operator))
            assert divided <= 0.5
            if exact:
                assert divided >= 0.5 * (1 - 1e-3)
                assert float(norm.sigma_hat(operator)) == pytest.approx(truth, rel=1e-3)
                assert float(bound) == pytest.approx(truth, rel=1e-3)


def test_dense_stacks_are_the_operators_matrices() -> None:
    weights = torch.randn(2, 3, 2, 3, 3, generator=generator())
    both = [Convolution(weight, (4, 2)) for weight in weights]
    for matrix, operator in zip(dense_stack(both), both, strict=True):
        torch.testing.assert_close(matrix, operator.dense().weight.double())


@pytest.mark.parametrize("n_channels", [2, 9])
def test_a_convolution_whose_vectors_were_lost_finds_them_again(n_channels: int) -> None:
    """Zero weights leave no direction, weights that are not finite left NaN; both are mended."""
    weight = torch.zeros(n_channels, n_channels, 3, 3)
    operator = Convolution(weight, (6, 6))
    norm = SpectralNorm(operator, 0.5)
    for lost in (0.0, math.nan):
        weight.zero_()
        follow_together([(norm, operator)])
        assert torch.equal(norm.divisor(operator), torch.tensor(1.0))
        norm.u.fill_(lost)
        weight.normal_(generator=generator())
        follow_together([(norm, operator)])
        assert 0.1 < true_norm(operator) / float(norm.divisor(operator)) <= 0.5


def test_a_weight_that_is_not_finite_makes_its_layer_nan_and_no_other() -> None:
    layers = [Linear(3, 4, 0.9), Linear(3, 4, 0.9)]
    with torch.no_grad():
        layers[0].weight[0, 0] = math.inf
    follow_together([(layer.norm, layer.operator) for layer in layers])
    assert layers[0].norm.inflation.isnan()
    assert layers[0](torch.ones(1, 3)).isnan().all()
    assert layers[1].certificate().norm <= 0.9
    bounds = bounds_together([layer.operator_normalised() for layer in layers])
    assert [bool(bound.isfinite()) for bound in bounds] == [False, True]


class Launches(TorchDispatchMode):
    """Counts operations that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        views = any(r.alias_info is not None for r in func._schema.returns)
        self.names[str(func)] += not views and "view" not in str(func)
        return func(*args, **(kwargs or {}))


def flows() -> dict[str, ResidualFlow]:
    images = image_flow((3, 8, 8), MultiScale(n_scales=2, n_blocks=2, hidden=(8, 8)))
    return {"mlp": ResidualFlow.mlp(16, (32, 32), 8, 0.9), "image": images}


@pytest.mark.parametrize(("name", "most"), [("mlp", 80), ("image", 300)])
def test_an_update_elsewhere_neither_waits_nor_grows_with_the_layers(name: str, most: int) -> None:
    """On meta tensors, which hold no number, whatever waits for one raises."""
    flow = flows()[name].to("meta")
    with Launches() as launches:
        flow.update()
    assert sum(launches.names.values()) <= most
    flow.align()
    for block in flow.blocks:
        assert block.branch.lipschitz_bound().is_meta
        with pytest.raises((RuntimeError, NotImplementedError), match=r"(?i)meta"):
            block.branch.lipschitz_certified()


@pytest.mark.parametrize("orders", [(3.0, 1.5), (1.5, 3.0), (2.5, 2.5), (math.inf, 1.0)])
def test_an_update_of_induced_norms_elsewhere_does_not_wait(orders: tuple[float, float]) -> None:
    for layer in (
        Linear(8, 6, 0.9, Induced(*orders)),
        Conv2d(2, 3, 3, (4, 4), 0.9, Induced(*orders)),
        Conv2d(9, 9, 3, (6, 6), 0.9, Induced(*orders)),
    ):
        elsewhere = layer.to("meta")
        elsewhere.update()
        assert together.bounds([elsewhere])[0].is_meta


def test_bounds_of_layers_are_their_certificates() -> None:
    dense = DenseLayer(Conv2d(2, 3, 3, (4, 4), 1.0), LipSwish())
    induced = Linear(4, 6, 0.8, Induced(3.0, 1.5))
    layers = [Linear(4, 6, 0.8), induced, Conv2d(2, 2, 3, (4, 4), 0.9), dense]
    for layer, bound in zip(layers, together.bounds(layers), strict=True):
        assert float(bound) == pytest.approx(layer.certificate().norm, rel=1e-12)
    flow = flows()["mlp"]
    for block in flow.blocks:
        certified = block.branch.lipschitz_certified()
        assert float(block.branch.lipschitz_bound()) == pytest.approx(certified, rel=1e-12)


def test_a_flow_updates_its_blocks_as_each_block_would() -> None:
    """On the CPU to the bit."""
    flow = flows()["image"]
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator()))
    alone = copy.deepcopy(flow)
    flow.update()
    for block in alone.blocks:
        for layer in block.branch.layers:
            layer.update()
    for ours, theirs in zip(flow.buffers(), alone.buffers(), strict=True):
        assert torch.equal(ours, theirs)
