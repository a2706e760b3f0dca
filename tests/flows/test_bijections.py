"""Every bijection by one contract: its log-det, its inverse, and how far an error is carried."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from resflow_bench.flows import (
    ActNorm,
    AffineCoupling,
    Chain,
    Cube,
    FactorOut,
    Flatten,
    InverseBlock,
    Inversion,
    Logit,
    Mixing,
    MonotoneBlock,
    ResidualBlock,
    Squeeze,
)
from resflow_bench.flows.bijection import as_bijection
from resflow_bench.layers import (
    Branch,
    InducedLinear,
    LearnableOrder,
    Order,
    ReLU,
    Tanh,
    mlp_branch,
)
from resflow_bench.logdet import Exact

DTYPE = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=DTYPE)


def images(n: int, event: tuple[int, ...]) -> Tensor:
    """In (0, 1), each channel and pixel with a mean of its own."""
    x = torch.rand(n, *event, generator=generator(2), dtype=DTYPE)
    return x ** torch.linspace(4, 1, math.prod(event), dtype=DTYPE).view(event)


def perturbed(bijection: nn.Module, seed: int = 4) -> nn.Module:
    """Parameters moved away from where they start, so that no term vanishes; float64."""
    noise = generator(seed)
    with torch.no_grad():
        for parameter in bijection.parameters():
            step = torch.randn(parameter.shape, generator=noise)
            parameter.add_(0.3 * step)
    return bijection.double().requires_grad_(False)


def residual_block(dim: int) -> ResidualBlock:
    block = ResidualBlock(mlp_branch(dim, (8,), 0.7, generator=generator(3))).double()
    return block.requires_grad_(False)


def induced_block(order: Order) -> ResidualBlock:
    """A contraction in the norm of that order, not necessarily in ours."""
    noise = generator(3)
    first = InducedLinear(6, 8, 0.8, order, order, generator=noise)
    last = InducedLinear(8, 6, 0.8, order, order, generator=noise)
    with torch.no_grad():
        for layer in (first, last):
            layer.weight.mul_(8)
    block = ResidualBlock(Branch(first, Tanh(), last, lipschitz=0.64)).double()
    block.branch.align()
    return block.requires_grad_(False)


EVENT = (3, 2, 4)
BIJECTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "actnorm of vectors": (lambda: perturbed(ActNorm(6)), (6,)),
    "actnorm of images": (lambda: perturbed(ActNorm(3)), EVENT),
    "mixing of vectors": (lambda: perturbed(Mixing(6)), (6,)),
    "mixing of images": (lambda: perturbed(Mixing(3, generator(1))), EVENT),
    "affine coupling of vectors": (lambda: perturbed(AffineCoupling(7, 8)), (7,)),
    "affine coupling of images": (lambda: perturbed(AffineCoupling(3, 8, 3)), EVENT),
    "additive coupling": (lambda: perturbed(AffineCoupling(6, 8, max_log_scale=0)), (6,)),
    "cube": (Cube, EVENT),
    "logit": (lambda: Logit(0.02), EVENT),
    "squeeze": (lambda: Squeeze(2), EVENT),
    "flatten": (lambda: Flatten(EVENT), EVENT),
    "residual block": (lambda: residual_block(6), (6,)),
    "block in the 1-norm": (lambda: induced_block(1.0), (6,)),
    "block in a learnt norm": (lambda: induced_block(LearnableOrder(4.0)), (6,)),
    "inverse block": (lambda: InverseBlock(residual_block(6)), (6,)),
    "inverse block in the 1-norm": (lambda: InverseBlock(induced_block(1.0)), (6,)),
    "monotone block": (lambda: MonotoneBlock(residual_block(6).branch), (6,)),
    "factor out": (
        lambda: FactorOut(
            perturbed(ActNorm(2)), Flatten((2, 2, 4)), residual_block(16), event=EVENT
        ),
        EVENT,
    ),
    "chain": (lambda: Chain(Logit(), perturbed(Mixing(3)), perturbed(ActNorm(3))), EVENT),
}
EACH = pytest.mark.parametrize("name", BIJECTIONS)


def made(name: str) -> tuple[nn.Module, Tensor]:
    make, event = BIJECTIONS[name]
    return make(), images(3, event)


def dense(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """df/dx of one example, (d, d)."""
    matrix = torch.autograd.functional.jacobian(lambda u: f(u[None])[0].flatten(), x)
    return matrix.reshape(x.numel(), x.numel())


def log_det_error(bijection: nn.Module, x: Tensor) -> float:
    """The largest distance from autograd's dense log-det."""
    log_det = as_bijection(bijection).forward_and_log_det(x, Exact())[1]
    truth = torch.stack([torch.linalg.slogdet(dense(bijection, one)).logabsdet for one in x])
    assert log_det.shape == truth.shape
    return float((log_det.detach() - truth).abs().max())


@EACH
def test_log_det_is_that_of_the_dense_jacobian(name: str) -> None:
    bijection, x = made(name)
    z, _ = as_bijection(bijection).forward_and_log_det(x, Exact())
    torch.testing.assert_close(z, bijection(x))
    assert log_det_error(bijection, x) < 1e-10


class OncePerChannel(ActNorm):
    """The twin that forgets how many pixels a channel has."""

    def forward_and_log_det(self, x):
        return self(x), self.log_scale.sum().expand(len(x))


class LogitWithoutMargin(Logit):
    """The twin that forgets that the margin contracts."""

    def forward_and_log_det(self, x):
        z, log_det = super().forward_and_log_det(x)
        return z, log_det - x[0].numel() * math.log1p(-2 * self.margin)


@pytest.mark.parametrize("twin", [OncePerChannel(3), LogitWithoutMargin(0.02)], ids=repr)
def test_a_wrong_log_det_is_seen(twin: nn.Module) -> None:
    assert log_det_error(perturbed(twin), images(3, EVENT)) > 0.1


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, DTYPE])
def test_inverse_returns_to_the_input(name: str, dtype: torch.dtype) -> None:
    """The bound is at least the error of the same z by the same parameters in float64."""
    exact, x = made(name)
    bijection = copy.deepcopy(exact).to(dtype)
    exact = copy.deepcopy(bijection).double()  # the parameters as `bijection` has them
    z = bijection(x.to(dtype))
    solution = as_bijection(bijection).inverse(z, Inversion())
    truth = as_bijection(exact).inverse(z.double(), Inversion())
    assert solution.raise_if_failed().value.dtype == dtype
    rounding = 1e-3 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(solution.value.double(), x, rtol=0, atol=rounding)
    error = (solution.value.double() - truth.value).flatten(1).norm(dim=1)
    assert bool((error <= solution.error_bound + truth.error_bound).all())
    assert as_bijection(bijection).inverse(z, Inversion(), certify=False).error_bound is None


def worst_direction(bijection: nn.Module, x: Tensor) -> Tensor:
    """The unit dz, (d,), that moves x most: the last left singular vector of dz/dx."""
    return torch.linalg.svd(dense(bijection, x)).U[:, -1]


def excess(bijection: nn.Module, x: Tensor, error: float = 1e-4) -> tuple[float, float]:
    """The largest and the smallest of true error / bound, z being off by `error`.

    In the worst direction, one at random, and in each coordinate.
    """
    z = bijection(x[:1])
    dim = z.numel()
    directions = [worst_direction(bijection, x[0]), normal(dim), *torch.eye(dim, dtype=DTYPE)]
    steps = torch.stack([error * d / d.norm() for d in directions]).view(-1, *z.shape[1:])
    handed = torch.full((len(steps),), error, dtype=DTYPE)
    solution = as_bijection(bijection).inverse(z + steps, Inversion(), handed)
    ratio = (solution.value - x[:1]).flatten(1).norm(dim=1) / solution.error_bound
    return float(ratio.max()), float(ratio[0])


@EACH
def test_an_error_in_z_stays_within_the_bound(name: str) -> None:
    ratio, worst = excess(*made(name))
    assert ratio <= 1 + 1e-9
    if name.startswith(("actnorm", "mixing", "squeeze", "flatten")):
        assert worst > 0.999  # linear maps: the bound is the stretch itself


class MeanStretch(ActNorm):
    """The twin that carries an error on by the mean scale, not the largest."""

    def inverse_error(self, z, x, error):
        return error * (-self.log_scale).exp().mean()


class FixedScale(AffineCoupling):
    """The twin that forgets that an error in a changes the scale and the shift of b."""

    def inverse_error(self, z, x, error):
        a = x[:, : self.n_channels - self.n_channels // 2]
        return error * (-self.scale_and_shift(a)[0]).exp().amax(1).clamp_min(1)


class InnerBoundAlone(FactorOut):
    """The twin that forgets the half that passes."""

    def inverse(self, z, inversion, error=None, certify=True):
        return replace(
            super().inverse(z, inversion),
            error_bound=self.inner.inverse(z[:, 8:], inversion, error).error_bound,
        )


def test_a_wrong_stretch_is_seen() -> None:
    assert excess(perturbed(MeanStretch(3)), images(1, EVENT))[0] > 1.01
    assert excess(perturbed(FixedScale(7, 8)), images(1, (7,)))[0] > 1.01
    expansion = ActNorm(2).double().requires_grad_(False)
    expansion.log_scale.add_(1)  # its inverse shrinks an error, which the passing half does not
    inner = (expansion, Flatten((2, 2, 4)))
    assert excess(InnerBoundAlone(*inner, event=EVENT), images(1, EVENT))[0] > 1.01
    assert excess(FactorOut(*inner, event=EVENT), images(1, EVENT))[0] <= 1


def test_mixing_starts_orthogonal_and_is_seeded() -> None:
    first, again, other = (Mixing(5, generator(seed)).double() for seed in (0, 0, 1))
    identity = torch.eye(5, dtype=DTYPE)
    torch.testing.assert_close(first.weight() @ first.weight().T, identity, rtol=0, atol=1e-6)
    assert torch.equal(first.weight(), again.weight())
    assert not torch.equal(first.weight(), other.weight())


class MaxNormBranch(nn.Module):
    """g(x) = -K x_1 (1, ..., 1): of norm K from the maximum norm to itself, sqrt(d) K in ours."""

    order = math.inf

    def __init__(self, dim: int, lipschitz: float) -> None:
        super().__init__()
        self.lipschitz = lipschitz
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return (-self.lipschitz * x[:, :1]).expand(-1, self.dim)

    def normalised(self) -> Callable[[Tensor], Tensor]:
        return self.forward

    def magnitude(self, x: Tensor) -> Tensor:
        return 2 * self.lipschitz * x[:, 0].abs()

    def lipschitz_certified(self) -> float:
        return self.lipschitz


def test_rounding_inside_a_branch_is_charged() -> None:
    """Biases of 1e4 that cancel: g is small, its rounding is not. The twin charges |x| + |z| alone.

    With every unit open the branch is linear, so that the truth is one solve without the biases.
    """
    branch = mlp_branch(2, (16,), 0.9, ReLU, generator()).double()
    first, last = branch.layers
    with torch.no_grad():
        first.weight.mul_(8)
        last.weight.mul_(8)
        branch.align()
        first.bias.fill_(1e4)
        last.bias.copy_(-(last.weight_normalised() @ first.bias))
        matrix = last.weight_normalised() @ first.weight_normalised()
        z = 1e-3 * normal(200, 2)
        truth = torch.linalg.solve(torch.eye(2, dtype=DTYPE) + matrix, z.mT).mT
        solution = ResidualBlock(branch).inverse(z, Inversion(max_steps=5000))
    error = (solution.value - truth).norm(dim=1)
    assert bool((error <= solution.error_bound).all())
    twin = 8 * 2.2e-16 * (z.norm(dim=1) + truth.norm(dim=1)) / (1 - 0.9)
    assert bool((error > 10 * twin).any())


def test_a_contraction_in_another_norm_is_certified_in_ours() -> None:
    """d = 16: x* - x is up to 36 times an error in z, which the 2-norm's rule takes for 10."""
    block, error = ResidualBlock(MaxNormBranch(16, 0.9)), 1e-3
    z = normal(5, 16)
    step = torch.zeros(16, dtype=DTYPE)
    step[0] = error
    handed = torch.full((5,), error, dtype=DTYPE)
    solution = block.inverse(z + step, Inversion(max_steps=5000), handed)
    truth = block.inverse(z, Inversion(max_steps=5000)).value
    off = (solution.value - truth).norm(dim=1)
    assert bool((off <= solution.error_bound).all())
    assert bool((off > 0.8 * solution.error_bound).all())
    assert bool((off > 2 * error / (1 - 0.9)).all())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Logit(0.5), "0 < margin < 0.5"),
        (lambda: Squeeze(0), "factor of at least 1; got 0"),
        (lambda: AffineCoupling(1), "n_channels of at least 2; got 1"),
        (lambda: AffineCoupling(4, kernel_size=2), "odd kernel_size; got 2"),
        (lambda: AffineCoupling(4, max_log_scale=-1.0), "max_log_scale of at least 0; got -1.0"),
        (Chain, "at least one bijection"),
        (lambda: FactorOut(ActNorm(1), event=(1, 4, 4)), r"C of at least 2; got \(1, 4, 4\)"),
        (lambda: Inversion(error=0.0), "positive, finite `error`"),
    ],
)
def test_nonsense_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
