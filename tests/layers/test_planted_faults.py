"""Faults that public certificates take for Lipschitz layers, planted into this package's own.

Each is refused, or the certificate is right; docs/lipschitz_layers.md has what the others return.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from operators import convolution
from torch import Tensor, nn

from resflow_bench.layers import (
    SLL,
    Branch,
    CLipSwish,
    Conv2d,
    DenseLayer,
    Linear,
    LipSwish,
    ReLU,
    Sine,
    Softplus,
    Tanh,
    Uncertified,
    activations,
    mlp_branch,
    sll_branch,
)
from resflow_bench.layers.activations import Activation, check_activation
from resflow_bench.layers.norms.operators import Convolution
from resflow_bench.layers.norms.spectral import spectral_certificate


class Unknown(nn.Module):
    """An activation of slope 3 that says nothing of itself, as eclipse-nn takes for slope 1."""

    def forward(self, z: Tensor) -> Tensor:
        return 3 * torch.tanh(z)


class Steep(Tanh):
    """A subclass with slope 3 and the constant of its parent."""

    def forward(self, z: Tensor) -> Tensor:
        return 3 * super().forward(z)

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, Tensor]:
        y, slope = super().value_and_derivative(z)
        return 3 * y, 3 * slope


class SteepValues(Tanh):
    """Slope 3 in `forward` alone."""

    def forward(self, z: Tensor) -> Tensor:
        return 3 * super().forward(z)


class SteepSlopes(Tanh):
    """Slope 3 in the Jacobian alone."""

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, Tensor]:
        y, slope = super().value_and_derivative(z)
        return y, 3 * slope


class OtherValues(Tanh):
    """Values in `value_and_derivative` that are another function's, of the same slopes."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.relu(z)


class Falling(Tanh):
    """Slopes in [-1, 1], and the range [0, 1] of its parent, on which SLL's bound rests."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.sin(z)

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sin(z), torch.cos(z)


class PlainSwish(LipSwish):
    """Swish without the divisor 1.1, and the constant 1."""

    lipschitz = 1.0

    def forward(self, z: Tensor) -> Tensor:
        return 1.1 * super().forward(z)

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, Tensor]:
        y, slope = super().value_and_derivative(z)
        return 1.1 * y, 1.1 * slope


class Learnt(nn.Module):
    """max(z, a z) with a learnt a, 1/4 at first."""

    lipschitz = 1.0
    expansion = 1

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.25))

    def forward(self, z: Tensor) -> Tensor:
        return torch.where(z > 0, z, self.a * z)

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self(z), torch.where(z > 0, torch.ones_like(z), self.a.to(z))


OURS = [getattr(activations, name) for name in
        ("LipSwish", "CLipSwish", "Tanh", "ELU", "Softplus", "Sine", "ReLU")]  # fmt: skip


@pytest.mark.parametrize("make", [*OURS, Learnt])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_activations_that_keep_their_constant_pass(
    make: Callable[[], Activation], dtype: torch.dtype
) -> None:
    phi = make()
    assert isinstance(phi, nn.Module)
    check_activation(phi.to(dtype))


@pytest.mark.parametrize("beta", [1e-3, 1.0, 1e3])
def test_a_steep_turn_passes(beta: float) -> None:
    for phi, swish in ((one := LipSwish(), one), (two := CLipSwish(), two.swish)):
        swish.raw_beta.data.fill_(beta)
        check_activation(phi)


BUILDERS: dict[str, Callable[[Callable[[], Activation]], nn.Module]] = {
    "mlp_branch": lambda phi: mlp_branch(2, (4,), 0.9, phi),
    "Branch": lambda phi: Branch(Linear(2, 3, 0.9), phi(), Linear(3, 2, 0.9), lipschitz=0.9),
    "DenseLayer": lambda phi: DenseLayer(Linear(2, 3, 0.9), phi()),
    "SLL": lambda phi: SLL(2, 3, 0.9, phi()),
    "sll_branch": lambda phi: sll_branch(2, (4, 4), 0.9, phi),
}
EACH = pytest.mark.parametrize("builder", BUILDERS)


@EACH
@pytest.mark.parametrize("phi", [Unknown, nn.GELU, nn.SiLU], ids=lambda phi: phi.__name__)
def test_an_unknown_activation_is_refused(builder: str, phi: Callable[[], Activation]) -> None:
    with pytest.raises(TypeError, match=r"members of neither|An activation is a module with"):
        BUILDERS[builder](phi)


@EACH
@pytest.mark.parametrize(
    ("phi", "slope"), [(Steep, "3"), (SteepValues, "3"), (SteepSlopes, "3"), (PlainSwish, "1.1")]
)
def test_a_subclass_with_a_wrong_slope_is_refused(
    builder: str, phi: Callable[[], Activation], slope: str
) -> None:
    with pytest.raises(ValueError, match=rf"but has a slope of {re.escape(slope)}"):
        BUILDERS[builder](phi)


@EACH
def test_a_subclass_with_a_wrong_range_of_slopes_is_refused(builder: str) -> None:
    with pytest.raises(ValueError, match=r"slopes in \[0, 1\], but has them in \[-1, 1\]"):
        BUILDERS[builder](Falling)


def test_values_of_another_function_are_refused() -> None:
    with pytest.raises(ValueError, match="not those of `forward`"):
        mlp_branch(2, (4,), 0.9, OtherValues)


def test_a_slope_that_grows_after_the_branch_was_made_has_no_certificate() -> None:
    branch = mlp_branch(2, (4,), 0.9, Learnt)
    assert branch.lipschitz_certified() <= 0.9
    with torch.no_grad():
        for phi in branch.activations:
            phi.a.fill_(3.0)
    with pytest.raises(ValueError, match="but has a slope of 3"):
        branch.lipschitz_certified()


@pytest.mark.parametrize("inner", [ReLU, Softplus])
def test_a_constant_set_by_hand_has_no_certificate(inner: Callable[[], Activation]) -> None:
    """In each of the layers that hold an activation."""
    dense, residual = DenseLayer(Linear(2, 3, 0.9), inner()), SLL(2, 3, 0.9, inner())
    for layer in (dense, residual):
        assert layer.certificate().norm > 0
        layer.activation.lipschitz = 0.5
        with pytest.raises(ValueError, match=r"promises lipschitz=0\.5"):
            layer.certificate()


def test_sll_refuses_slopes_that_are_not_what_it_rests_on() -> None:
    with pytest.raises(ValueError, match="`slopes` within"):
        SLL(2, 3, 0.9, Sine())


# Convolutions in groups

GRID, GROUPS = (4, 3), 2


def grouped(kernel: np.ndarray) -> np.ndarray:
    """The dense operator of a kernel in two groups, (C_out, C_in / 2, kh, kw)."""
    n_out, n_in = kernel.shape[0], GROUPS * kernel.shape[1]
    whole = np.zeros((n_out, n_in, *kernel.shape[2:]))
    for k in range(GROUPS):
        rows = slice(k * n_out // GROUPS, (k + 1) * n_out // GROUPS)
        whole[rows, k * kernel.shape[1] : (k + 1) * kernel.shape[1]] = kernel[rows]
    return convolution(whole, GRID)


def test_a_layer_in_groups_is_refused() -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1, groups=GROUPS)
    with pytest.raises(TypeError, match="Conv2d has the members of neither"):
        Branch(layer, lipschitz=0.9)
    assert Uncertified(layer).lipschitz_certified() == np.inf
    with pytest.raises(TypeError, match="groups"):
        Conv2d(4, 4, 3, GRID, 0.9, groups=GROUPS)


def test_a_kernel_in_groups_is_refused_as_a_weight() -> None:
    layer = Conv2d(4, 4, 3, GRID, 0.9)
    layer.weight = nn.Parameter(layer.weight.detach()[:, :2].clone())
    with pytest.raises((ValueError, RuntimeError)):
        Branch(layer, lipschitz=0.9)(torch.zeros(1, 4, *GRID))


@pytest.mark.parametrize("seed", range(4))
def test_a_certificate_of_a_kernel_in_groups_is_an_upper_bound(seed: int) -> None:
    """Without the groups, the kernel is their blocks on top of each other, of no smaller norm.

    A product over the groups, as orthogonium's, is smaller if they contract.
    """
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(4, 2, 3, 3)) * np.array([0.05, 0.05, 0.1, 0.1])[:, None, None, None]
    truth = np.linalg.norm(grouped(kernel), 2)
    certified = spectral_certificate(Convolution(torch.from_numpy(kernel), GRID)).norm
    norms = [np.linalg.norm(convolution(k, GRID), 2) for k in np.split(kernel, GROUPS)]
    assert truth == pytest.approx(max(norms))
    assert np.prod(norms) < 0.9 * truth
    assert truth <= certified * (1 + 1e-12)
