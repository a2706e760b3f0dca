"""Layers held to a constant between two p-norms: the promise, its gradients, its checkpoints."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from resflow_bench.layers.conv import Conv2d, InducedConv2d
from resflow_bench.layers.layer import Layer
from resflow_bench.layers.linear import InducedLinear, Linear
from resflow_bench.layers.norms.mixed import climb
from resflow_bench.layers.norms.operators import Convolution, Matrix
from resflow_bench.layers.orders import LearnableOrder, Order, norm, same_order, value

INF = math.inf
Induced = Linear | Conv2d


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def linear(p: Order, q: Order, coefficient: float = 0.5, n_in: int = 5, n_out: int = 4):
    layer = InducedLinear(n_in, n_out, coefficient, p, q, generator=generator(3))
    return enlarged(layer)


def conv(p: Order, q: Order, coefficient: float = 0.5):
    layer = InducedConv2d(2, 3, (3, 1), (3, 4), coefficient, p, q, generator=generator(3))
    return enlarged(layer)


def enlarged(layer: Induced) -> Induced:
    """With weights whose norm is well above the coefficient, in float64."""
    nn.init.normal_(layer.weight, generator=generator(4))
    layer.double().align()
    return layer


def inputs(layer: Induced, *batch: int, seed: int = 0) -> Tensor:
    event = (5,) if isinstance(layer, Linear) else (2, 3, 4)
    return gaussian(*batch, *event, seed=seed)


@torch.no_grad()
def steepest(layer: Induced, pool: Tensor, n_steps: int = 0) -> float:
    """max ||W_c x||_q / ||x||_p over unit vectors and a pool, from where they climb, in float64."""
    weight = layer.weight_normalised().double()
    x = torch.cat([torch.eye(pool[0].numel()).double(), pool.flatten(1).double()])
    is_linear = isinstance(layer, Linear)
    operator = Matrix(weight) if is_linear else Convolution(weight, layer.grid)
    p, q = float(value(layer.domain)), float(value(layer.codomain))
    if n_steps:
        x = climb(operator, x, p, q, n_steps)
    return float((norm(operator.apply(x), q) / norm(x, p)).max())


PAIRS = [(INF, 1.0), (2.0, 1.0), (1.0, INF), (1.0, 1.0), (INF, INF), (2.0, 2.0), (1.3, 3.0)]
PAIRS += [(3.0, 1.5), (4.0, 3.0)]
MAKERS = [linear, conv]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_the_promise_is_kept_and_nearly_attained(make, p, q):
    layer = make(p, q)
    certificate = layer.certificate()
    assert 0.5 * (1 - 1e-5) <= certificate.norm <= 0.5
    assert steepest(layer, inputs(layer, 3000)) <= certificate.norm
    easy = {(1.0, q): "columns", (2.0, 2.0): "svd"}.get((p, q), "rows" if q == INF else None)
    if easy:
        assert certificate.method == easy
        assert layer.norm.inflation == pytest.approx(1.0, abs=1e-9)
    else:
        assert certificate.method in ("interpolation", "schur", "balance")
        assert 1 <= layer.norm.inflation < 1.6
    nn.init.normal_(layer.weight, std=1e-3)
    layer.update()
    assert torch.equal(layer.weight_normalised(), layer.weight), "small weights are left alone"


@pytest.mark.parametrize("make", MAKERS)
def test_easy_norms_keep_the_promise_without_an_update(make):
    """Where the orders of the other layers do not: their twin has stale vectors."""
    for p, q in [
        (1.0, LearnableOrder(3.0)),
        (LearnableOrder(3.0), INF),
        (3.0, LearnableOrder(3.0)),
    ]:
        layer = make(p, q)
        nn.init.normal_(layer.weight, std=3.0, generator=generator(12))
        for order in (o for o in (layer.domain, layer.codomain) if isinstance(o, LearnableOrder)):
            nn.init.constant_(order.raw, 1.0)
        assert (layer.certificate().norm <= 0.5) == (p == 1 or q == INF)


def test_a_large_convolution_is_certified_without_its_dense_matrix():
    layer = InducedConv2d(5, 6, 3, (6, 6), 0.5, 2.0, 2.0, generator=generator())
    nn.init.normal_(layer.weight, generator=generator(1))
    layer.align()
    certificate = layer.certificate()
    assert certificate.method == "fft"
    jacobian = torch.func.jacrev(lambda x: layer(x[None])[0])(torch.zeros(5, 6, 6))
    truth = torch.linalg.matrix_norm(jacobian.reshape(216, 180).double(), 2)
    assert 0.45 < truth <= certificate.norm <= 0.5


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("p", "q"), [(3.0, 1.5), (1.0, 2.0)])
def test_linearise_is_forward_and_autograds_vjp(make, p, q):
    layer = make(p, q)
    assert isinstance(layer, Layer)
    x = inputs(layer, 6).requires_grad_()
    y, jacobian = layer.normalised().linearise(x)
    torch.testing.assert_close(y, layer(x))
    torch.testing.assert_close(layer.normalised()(x), y)
    v = gaussian(3, *y.shape, seed=7)
    truth = [torch.autograd.grad(y, x, one, retain_graph=True)[0] for one in v]
    torch.testing.assert_close(jacobian.vjp(v), torch.stack(truth))
    torch.testing.assert_close(jacobian.vjp(v[0]), truth[0])
    torch.testing.assert_close(jacobian.vjp(v[None]), torch.stack(truth)[None])
    kept = v.clone()
    with torch.no_grad():
        assert not jacobian.vjp(v).requires_grad
    assert torch.equal(v, kept)
    (gradient,) = torch.autograd.grad(jacobian.vjp(v).square().sum(), layer.weight)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("fixed", [None, 1.0, INF])
def test_weight_normalised_has_gradients_in_weights_and_orders(make, fixed):
    """With v and the inflation held constant; also where one order is easy and fixed."""
    p, q = LearnableOrder(2.5), LearnableOrder(1.6)
    layer = make(1.0 if fixed == 1 else p, INF if fixed == INF else q)
    learnable = [o.raw for o in (layer.domain, layer.codomain) if isinstance(o, LearnableOrder)]

    def normalised(*_: Tensor) -> Tensor:
        return layer.weight_normalised()

    assert gradcheck(normalised, (layer.weight, *learnable))


def test_sigma_hat_has_the_derivatives_of_the_norm_itself():
    """Envelope theorem: central differences of the norm, aligned anew, in W, 1/p and 1/q.

    The twin at a v that is no maximiser has other derivatives.
    """
    p, q = LearnableOrder(1.7), LearnableOrder(2.6)
    layer = linear(p, q, n_in=3, n_out=3)
    parameters = [layer.weight, p.raw, q.raw]
    directions = [gaussian(3, 3, seed=9), gaussian(1, seed=1)[0], gaussian(1, seed=2)[0]]

    def sigma() -> Tensor:
        return layer.norm.sigma_hat(Matrix(layer.weight))

    def slopes() -> list[float]:
        gradients = torch.autograd.grad(sigma(), parameters)
        return [float((g * d).sum()) for g, d in zip(gradients, directions, strict=True)]

    def difference(parameter: Tensor, direction: Tensor, h: float = 1e-5) -> float:
        values = []
        for sign in (1, -1):
            parameter.data.add_(sign * h * direction)
            layer.align()
            values.append(float(sigma().detach()))
            parameter.data.sub_(sign * h * direction)
        return (values[0] - values[1]) / (2 * h)

    truth = [difference(*pair) for pair in zip(parameters, directions, strict=True)]
    layer.align()
    assert slopes() == pytest.approx(truth, rel=1e-6)
    layer.norm.v = layer.norm.v + 0.3
    assert slopes() != pytest.approx(truth, rel=1e-2)


def test_a_shared_order_is_one_parameter_and_stays_shared():
    order = LearnableOrder()
    block = nn.Sequential(linear(order, 2.0, n_out=6), linear(2.0, order, n_in=6, n_out=5))
    assert len(list(block.parameters())) == 5
    for copied in (block, copy.deepcopy(block)):
        assert same_order(copied[0].domain, copied[1].codomain)
        before = copied[0].weight_normalised()
        nn.init.constant_(copied[1].codomain.raw, 1.0)
        assert not torch.equal(copied[0].weight_normalised(), before)
    assert not same_order(block[0].domain, copy.deepcopy(block)[0].domain)


@pytest.mark.parametrize("make", MAKERS)
def test_a_checkpoint_holds_all_that_forward_needs(make):
    trained = make(LearnableOrder(2.5), LearnableOrder(1.6))
    fresh = make(LearnableOrder(), LearnableOrder())
    nn.init.normal_(trained.weight, generator=generator(8))
    trained.update()
    assert set(trained.state_dict()) == {
        *("weight", "bias", "domain.raw", "codomain.raw"),
        *("norm.v", "norm.d_in", "norm.d_out", "norm.inflation"),
    }
    fresh.load_state_dict(trained.state_dict())
    x = inputs(trained, 4)
    assert torch.equal(fresh(x), trained(x))
    assert fresh.certificate() == trained.certificate()


# Adam at learning rate 1e-2 that wants the largest outputs there are


def train(layers: list[Induced], n_steps: int, seen: Callable[[Induced], None]) -> None:
    """Adam steps of layers and their orders towards changing outputs 100 times too large."""
    parameters = {p for layer in layers for p in layer.parameters()}
    optimiser = torch.optim.Adam(parameters, lr=1e-2)
    batches = [inputs(layer, 16, seed=6).float() for layer in layers]
    for step in range(n_steps):
        targets = generator(step // 50)
        loss = torch.zeros(())
        for layer, x in zip(layers, batches, strict=True):
            y = layer(x)
            loss = loss + (y - 100 * torch.randn(y.shape, generator=targets)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        for layer in layers:
            layer.update()
            seen(layer)


def test_the_promise_survives_a_thousand_hostile_steps_of_weights_and_orders():
    layer = linear(LearnableOrder(), LearnableOrder(2.5)).float()
    started = [layer.domain().item(), layer.codomain().item()]
    certified = []
    train([layer], 1000, lambda layer: certified.append(layer.certificate().norm))
    assert len(certified) == 1000
    assert max(certified) <= 0.5
    assert min(certified) > 0.49
    ended = [layer.domain().item(), layer.codomain().item()]
    assert max(abs(math.log(b / a)) for a, b in zip(started, ended, strict=True)) > 0.3


@pytest.mark.parametrize("inflated", [True, False], ids=["certified", "twin"])
def test_the_promise_survives_at_shared_and_hard_orders_and_in_a_convolution(inflated):
    """By vectors that climb anew. The twin, power iteration without a bound, breaks the promise."""
    shared = LearnableOrder(1.6)
    layers = [linear(INF, 1.0), linear(shared, 3.0), conv(3.0, shared)]
    layers = [layer.float() for layer in layers]
    worst = 0.0

    def seen(layer: Induced) -> None:
        nonlocal worst
        if inflated:
            assert layer.certificate().norm <= 0.5
        else:
            nn.init.ones_(layer.norm.inflation)
        worst = max(worst, steepest(layer, inputs(layer, 20, seed=5), n_steps=10))

    train(layers, 100, seen)
    assert (worst <= 0.5) == inflated


# Corners


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("p", "q"), [(3.0, 1.5), (2.0, 2.0), (1.0, 3.0), (2.0, 7.0)])
def test_degenerate_weights(make, p, q):
    """Zero, rank one, one entry: norms stay below the coefficient, gradients are finite."""
    for fill in ("zero", "rank one", "one entry"):
        layer = make(p, LearnableOrder(q))
        nn.init.constant_(layer.weight, 3.0 if fill == "rank one" else 0.0)
        if fill == "one entry":
            layer.weight.data[(0,) * layer.weight.ndim] = 5.0
        for follow in (layer.update, layer.align):
            follow()
            certified = layer.certificate().norm
            assert steepest(layer, inputs(layer, 100)) <= certified * (1 + 1e-12) <= 0.5
            gradients = torch.autograd.grad(layer(inputs(layer, 2)).sum(), [*layer.parameters()])
            assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("p", [1.0, 3.0])
def test_weights_that_are_not_finite_are_an_error(make, p):
    layer = make(p, 2.0)
    nn.init.constant_(layer.weight, math.nan)
    for follow in (layer.update, layer.align, layer.certificate):
        with pytest.raises(torch.linalg.LinAlgError):
            follow()


@pytest.mark.parametrize("make", MAKERS)
def test_autocast_changes_no_norm_and_bfloat16_keeps_the_promise(make):
    plain, mixed = make(3.0, 1.5).float(), make(3.0, 1.5).float()
    plain.update()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed.update()
        assert torch.equal(mixed.weight_normalised(), plain.weight_normalised())
        assert mixed.certificate() == plain.certificate()
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, mixed.get_buffer(name))
    coarse = plain.to(torch.bfloat16)
    coarse.update()
    assert 0.45 < coarse.certificate().norm <= 0.5


def test_forward_and_updates_leave_the_buffers_of_a_recorded_graph_alone():
    layer = linear(3.0, 1.5)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    y = layer(inputs(layer, 2)).sum()
    (truth,) = torch.autograd.grad(y, layer.weight, retain_graph=True)
    assert all(torch.equal(before[name], buffer) for name, buffer in layer.named_buffers())
    held = layer.norm.v
    layer.align()
    layer.norm.update(Matrix(gaussian(4, 5, seed=9)))
    assert torch.equal(held, before["norm.v"])
    assert not torch.equal(layer.norm.v, held)
    (again,) = torch.autograd.grad(y, layer.weight)
    assert torch.equal(again, truth)


def test_what_is_not_a_layer_is_refused():
    for p, q in [(0.5, 2.0), (2.0, math.nan), (-1.0, 2.0)]:
        with pytest.raises(ValueError, match="at least 1"):
            InducedLinear(2, 2, 0.9, p, q)
    for coefficient in (0.0, -1.0, INF, math.nan):
        with pytest.raises(ValueError, match="coefficient"):
            InducedLinear(2, 2, coefficient, 2.0, 2.0)
    with pytest.raises(ValueError, match="n_in of at least 1"):
        InducedLinear(0, 2, 0.9, 2.0, 2.0)
    for size, grid in [(2, (4, 4)), ((3, 4), (4, 4)), (0, (4, 4)), (3, (0, 4))]:
        with pytest.raises(ValueError, match=r"of at least 1; got 0|odd `kernel_size`"):
            InducedConv2d(1, 1, size, grid, 0.9, 2.0, 2.0)
    with pytest.raises(ValueError, match="grid"):
        conv(2.0, 2.0)(torch.zeros(1, 2, 4, 4).double())


def test_a_small_norm_in_a_broken_chain_is_no_contraction():
    """1 -> inf with norm .97, and yet x -> W x expands by 7.76: why the orders must close."""
    layer = InducedLinear(8, 8, 0.97, 1.0, INF, bias=False)
    nn.init.ones_(layer.weight)
    radius = torch.linalg.eigvals(layer.weight_normalised()).abs().max()
    assert layer.certificate().norm <= 0.97
    assert radius > 7.75
    assert not same_order(layer.domain, layer.codomain)
