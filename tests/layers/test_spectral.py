"""Linear layers with a certified spectral norm, against SVD in float64 and against autograd."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import hostile_training, norm_after, power_steps_alone
from torch import Tensor, nn
from torch.autograd import gradcheck

from resflow_bench.layers.layer import Layer
from resflow_bench.layers.linear import Linear, SpectralLinear
from resflow_bench.layers.norms.operators import Matrix
from resflow_bench.layers.norms.spectral import leading
from resflow_bench.speed.timing import count_flops


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def layer_with(weight: Tensor, coefficient: float = 0.9) -> Linear:
    """A layer of that weight whose u, v know nothing of it."""
    n_out, n_in = weight.shape
    layer = SpectralLinear(n_in, n_out, coefficient, bias=False).to(weight.dtype)
    layer.weight.data = weight.clone()
    layer.norm.u = nn.functional.normalize(gaussian(n_out, seed=1), dim=0).to(weight)
    layer.norm.v = nn.functional.normalize(gaussian(n_in, seed=2), dim=0).to(weight)
    return layer


# The leading pair

LEFT, RIGHT = (torch.linalg.qr(gaussian(6, 6, seed=seed)).Q for seed in (1, 2))
MATRICES = {
    "zero": torch.zeros(3, 4, dtype=torch.float64),
    "rank one": gaussian(5, 1) @ gaussian(1, 3, seed=1),
    "nilpotent": torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64),
    "orthogonal": LEFT,
    "sigma_1 twice": LEFT @ torch.tensor([2.0, 2.0, 1.0, 1.0, 0.5, 0.0]).double().diag() @ RIGHT,
    "sigma_1 near sigma_2": LEFT @ (1 - 1e-9 * torch.arange(6).double()).diag() @ RIGHT,
    "tall": gaussian(40, 3),
    "wide": gaussian(3, 40),
    "one row": gaussian(1, 7),
    "one number": torch.full((1, 1), -3.0, dtype=torch.float64),
    "huge": 1e30 * gaussian(4, 4),
    "tiny": 1e-30 * gaussian(4, 4),
}


def test_products_with_one_vector_are_no_matrix_products():
    """They cost nothing beside a batch's, and a count of FLOPs leaves them out: it is 2 B m n."""
    matrix, x, y = Matrix(gaussian(6, 4)), gaussian(3, 4), gaussian(3, 6)
    torch.testing.assert_close(matrix.apply(x[0]), matrix.apply(x)[0], rtol=1e-15, atol=1e-15)
    torch.testing.assert_close(matrix.adjoint(y[0]), matrix.adjoint(y)[0], rtol=1e-15, atol=1e-15)
    assert count_flops(lambda: (matrix.apply(x[0]), matrix.adjoint(y[0]))) == 0
    assert count_flops(lambda: matrix.apply(x)) == 2 * 3 * 6 * 4


@pytest.mark.parametrize("name", MATRICES)
def test_update_finds_the_norm_and_a_pair_that_attains_it(name):
    layer = layer_with(MATRICES[name])
    layer.update()
    truth = np.linalg.norm(MATRICES[name].numpy(), 2)
    assert layer.norm.sigma_hat(Matrix(layer.weight)).item() == pytest.approx(truth, rel=1e-13)
    assert layer.norm.inflation.item() == pytest.approx(1.0, rel=1e-13)
    assert norm_after(layer) == pytest.approx(min(truth, 0.9 * (1 - 1e-6)), rel=1e-12)
    assert layer.certificate() == (pytest.approx(norm_after(layer), rel=1e-13), "svd")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12), st.floats(-3, 3))
def test_the_promise_is_kept_after_update_and_almost_attained(seed, n_out, n_in, magnitude):
    weight = 10**magnitude * gaussian(n_out, n_in, seed=seed)
    for dtype, waste in ((torch.float32, 2e-6), (torch.bfloat16, 0.05)):
        layer = layer_with(weight.to(dtype), 0.7)
        layer.update()
        truth = np.linalg.norm(layer.weight.detach().double().numpy(), 2)
        assert min(truth, 0.7) * (1 - waste) <= norm_after(layer) <= 0.7


def test_wide_layers_keep_the_promise_in_float32():
    layer = SpectralLinear(300, 200, 0.9)
    layer.weight.data *= 10
    layer.update()
    assert 0.9 * (1 - 3e-6) < norm_after(layer) <= 0.9


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(bad):
    layer = SpectralLinear(4, 3, 0.9)
    layer.weight.data[1, 2] = bad
    for verb in (layer.update, layer.align, layer.certificate):
        with pytest.raises(torch.linalg.LinAlgError, match=r"needs finite weights; .* Lower the"):
            verb()


def test_the_leading_pair_of_a_gram_matrix_is_numpys():
    a = gaussian(9, 5)
    x, norm = leading(a.mT @ a)
    _, values, right = np.linalg.svd(a.numpy())
    assert float(norm) == pytest.approx(values[0], rel=1e-14)
    assert abs(float(x @ torch.from_numpy(right[0]))) == pytest.approx(1, rel=1e-14)


def test_the_leading_pair_of_an_isometry() -> None:
    """All eigenvalues agree to rounding, where one LAPACK driver finds none in one in fifty."""
    found = [
        leading(w.mT @ w)
        for n in (4, 8, 33)
        for seed in range(100)
        for w in [3.3 * torch.linalg.qr(gaussian(n, n, seed=seed))[0]]
    ]
    norms = torch.stack([norm for _, norm in found])
    torch.testing.assert_close(norms, torch.full_like(norms, 3.3), rtol=1e-13, atol=0)
    assert all(float(x.norm()) == pytest.approx(1, rel=1e-13) for x, _ in found)


# The forward pass


def test_a_small_weight_is_left_alone():
    layer = layer_with(1e-3 * gaussian(4, 4))
    layer.update()
    assert torch.equal(layer.weight_normalised(), layer.weight)


@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_gradient_goes_through_sigma(size):
    """Exact for any constant u, v; once they are aligned, through sigma_1 itself."""
    layer = layer_with(size * gaussian(4, 3))
    assert gradcheck(lambda weight: layer.weight_normalised(), (layer.weight,))
    layer.update()
    weight, g = layer.weight, gaussian(4, 3, seed=3)
    (ours,) = torch.autograd.grad((layer.weight_normalised() * g).sum(), weight)
    norm = torch.linalg.matrix_norm(weight, ord=2)
    true = weight / (norm / (0.9 * (1 - 1e-6))).clamp(min=1)
    (truth,) = torch.autograd.grad((true * g).sum(), weight)
    # sqrt(3) eps / 2 of the cushion is not in `true`.
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)


def test_the_map_its_products_and_its_interface():
    layer = SpectralLinear(6, 4, 0.9, generator=generator()).double()
    layer.align()
    assert isinstance(layer, Layer)
    assert (layer.n_in, layer.n_out, layer.domain, layer.codomain) == (6, 4, 2.0, 2.0)
    x, v = gaussian(5, 6).requires_grad_(), gaussian(2, 3, 5, 4, seed=1)
    y, jacobian = layer.normalised().linearise(x)
    expected = x @ layer.weight_normalised().mT + layer.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-14, atol=1e-14)
    assert torch.equal(y, layer(x))
    assert torch.equal(layer.normalised()(x), y)
    (truth,) = torch.autograd.grad(y, x, v[1, 2], retain_graph=True)
    torch.testing.assert_close(jacobian.vjp(v)[1, 2], truth, rtol=1e-13, atol=1e-13)
    assert jacobian.vjp(v).requires_grad
    kept = v.clone()
    with torch.no_grad():
        assert not jacobian.vjp(v).requires_grad
    assert torch.equal(v, kept)


# State


def test_forward_changes_no_state_and_update_replaces_it():
    layer = layer_with(gaussian(4, 6))
    before = copy.deepcopy(layer.state_dict())
    held = layer.norm.u
    layer(gaussian(2, 6)).sum().backward()
    layer.certificate()
    assert all(torch.equal(before[name], now) for name, now in layer.state_dict().items())
    layer.update()
    assert torch.equal(held, before["norm.u"])
    changed = {n for n, now in layer.state_dict().items() if not torch.equal(before[n], now)}
    assert {"norm.u", "norm.v"} <= changed <= {"norm.u", "norm.v", "norm.inflation"}


def test_a_checkpoint_is_the_layer():
    """u, v and inflation exist before any forward, and travel."""
    saved = SpectralLinear(6, 4, 0.9, generator=generator(1))
    saved.norm.u, saved.norm.inflation = -0.3 * saved.norm.u, torch.tensor(1.7)
    names = {"weight", "bias", "norm.u", "norm.v", "norm.inflation"}
    assert names == set(saved.state_dict())
    fresh = SpectralLinear(6, 4, 0.9, generator=generator(2))
    fresh.load_state_dict(saved.state_dict())
    x = torch.ones(2, 6)
    assert torch.equal(fresh(x), saved(x))


def test_update_between_forward_and_backward_leaves_the_gradient():
    layer = layer_with(gaussian(4, 3))
    x = gaussian(2, 3)
    (expected,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
    loss = layer(x).square().sum()
    layer.update()
    (found,) = torch.autograd.grad(loss, layer.weight)
    assert torch.equal(found, expected)


def test_weights_come_from_the_generator_alone():
    state = torch.get_rng_state()
    first, again = (SpectralLinear(6, 4, 0.9, generator=generator(1)) for _ in range(2))
    other = SpectralLinear(6, 4, 0.9)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)


# Training


def test_hostile_training_keeps_the_promise_after_every_update():
    layer = SpectralLinear(12, 16, 0.9)
    after, between = hostile_training(layer, layer.update, n_steps=1000)
    assert after <= 1
    assert between > 1


def test_five_power_steps_do_not_keep_it():
    layer = SpectralLinear(12, 16, 0.9)
    after, _ = hostile_training(layer, lambda: power_steps_alone(layer), n_steps=200)
    assert after > 1.001


def test_without_update_the_promise_is_lost():
    layer = SpectralLinear(12, 16, 0.9)
    after, _ = hostile_training(layer, lambda: None, n_steps=200)
    assert after > 1.5


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ((5, 5, 0.0), "positive, finite `coefficient`; got 0"),
        ((5, 5, float("nan")), "positive, finite `coefficient`; got nan"),
        ((0, 5, 0.9), "n_in of at least 1; got 0"),
    ],
)
def test_bad_arguments_are_named(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        SpectralLinear(*arguments)
