"""Densities in the plane with exact samplers and log-densities, as the truth for 2-D flows.

The shapes are the usual ones for 2-D flows, scaled to about unit variance. All noise is Gaussian,
so that each density has a closed form or is an integral over one variable, computed to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from resflow_bench.data.dataset import Dataset

POINTS_AT_ONCE = 256
"""Points whose distances to all components of a mixture are held at once, at most some 4 MB."""

NODES_PER_STD = 6.0
"""Quadrature nodes per standard deviation of the noise along a curve. Fewer would do for points on
the curve; for points far from it, a shorter part of the curve contributes."""


class PlaneDensity(Protocol):
    """A probability density in the plane with a sampler."""

    @property
    def name(self) -> str:
        """The key in `DENSITIES`."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n independent points, (n, 2), float64, on the generator's device."""

    def log_prob(self, x: Tensor) -> Tensor:
        """ln p(x), nats, (n,), computed in x's dtype; x is (n, 2).

        Raises:
            ValueError: if x has another shape.
        """


@dataclass(frozen=True)
class EightGaussians:
    """p(x) = 1/8 sum_k N(x; c_k, std^2 I), c_k = radius (cos, sin)(k pi/4).

    Raises:
        ValueError: if `radius` or `std` is not above 0.

    >>> density = EightGaussians()
    >>> density.log_prob(density.sample(3, torch.Generator().manual_seed(0))).shape
    torch.Size([3])
    """

    radius: float = 1.4
    std: float = 0.175
    name: str = "eight-gaussians"

    def __post_init__(self) -> None:
        _check_positive(self.name, radius=self.radius, std=self.std)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        mode = torch.randint(8, (n,), generator=generator, device=generator.device)
        return self.radius * _circle(mode.double() / 8) + self.std * _normal(n, generator)

    def log_prob(self, x: Tensor) -> Tensor:
        centres = self.radius * _circle(torch.arange(8, device=x.device, dtype=x.dtype) / 8)
        return _log_mixture(x, centres, torch.full_like(centres[:, 0], -math.log(8)), self.std)


@dataclass(frozen=True)
class Checkerboard:
    """p(x) = 1/(8 side^2) on the 8 black squares of a 4 x 4 board centred at 0, else 0.

    The black squares are closed. If `side` needs few bits, such as 7/8, their corners are exact in
    float32, and a sample rounded to float32 keeps a finite log-density.

    Raises:
        ValueError: if `side` is not above 0.

    >>> Checkerboard(side=0.5).log_prob(torch.tensor([[0.1, 0.1], [0.1, 0.6]])).exp().tolist()
    [0.5, 0.0]
    """

    side: float = 0.875
    name: str = "checkerboard"

    def __post_init__(self) -> None:
        _check_positive(self.name, side=self.side)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        device = generator.device
        column = torch.randint(4, (n,), generator=generator, device=device) - 2
        row = 2 * torch.randint(2, (n,), generator=generator, device=device) - 2 + column % 2
        corner = torch.stack([column, row], dim=1)
        return self.side * (corner + _uniform(n, 2, generator))

    def log_prob(self, x: Tensor) -> Tensor:
        _check_points(x)
        square = x / self.side
        # A point on an edge belongs to the squares on both sides of it.
        below, above = square.ceil() - 1, square.floor()
        black = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for column in (below[:, 0], above[:, 0]):
            for row in (below[:, 1], above[:, 1]):
                on_board = (column >= -2) & (column < 2) & (row >= -2) & (row < 2)
                black |= on_board & ((column + row) % 2 == 0)
        inside = torch.full_like(x[:, 0], -math.log(8 * self.side**2))
        return torch.where(black, inside, -math.inf)


@dataclass(frozen=True)
class Rings:
    """x = r_A (cos t, sin t) + std e with A and t uniform, e ~ N(0, I): concentric circles.

        p(x) = 1/n_rings sum_k exp(-(|x| - r_k)^2/(2 std^2)) i0e(|x| r_k/std^2) / (2 pi std^2)

    with i0e(z) = exp(-z) I_0(z): the integral over the angle is a Bessel function, and |x| given a
    ring has a Rice distribution.

    radii: r_k, equally likely.

    Raises:
        ValueError: if `radii` is empty, or a radius or `std` is not above 0.

    Source: Rice (1945), "Mathematical analysis of random noise".

    >>> Rings(radii=(1.0,), std=1.0).log_prob(torch.zeros(1, 2))  # -1/2 - ln 2 pi
    tensor([-2.3379])
    """

    radii: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    std: float = 0.06
    name: str = "rings"

    def __post_init__(self) -> None:
        _check_positive(self.name, std=self.std, radius=min(self.radii, default=0.0))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        device = generator.device
        ring = torch.randint(len(self.radii), (n,), generator=generator, device=device)
        radius = torch.tensor(self.radii, dtype=torch.float64, device=device)[ring]
        on_ring = radius[:, None] * _circle(_uniform(n, 1, generator)[:, 0])
        return on_ring + self.std * _normal(n, generator)

    def log_prob(self, x: Tensor) -> Tensor:
        _check_points(x)
        distance = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        radii = torch.tensor(self.radii, dtype=x.dtype, device=x.device)
        variance = self.std**2
        exponents = (distance - radii).square() / (2 * variance)  # (n, n_rings)
        log_rings = torch.special.i0e(distance * radii / variance).log() - exponents
        return log_rings.logsumexp(1) - math.log(len(self.radii) * 2 * math.pi * variance)


@dataclass(frozen=True)
class Pinwheel:
    """x = R(twist |f|^2) f, f from n_arms Gaussians along rays: bent arms.

        p(x) = p_f(R(-twist |x|^2) x),  p_f = 1/n_arms sum_k N(R(-2 pi k/n_arms) f; (radius, 0), S)

    with R(a) the rotation by a and S = diag(radial_std^2, tangential_std^2). The twist is a
    bijection with Jacobian determinant 1: in polar coordinates it adds a function of the radius to
    the angle.

    twist: radians per squared unit of distance.

    Raises:
        ValueError: if a radius, a deviation or `n_arms` is not above 0.

    >>> Pinwheel().log_prob(torch.zeros(1, 2)).exp() > 0
    tensor([True])
    """

    n_arms: int = 5
    radius: float = 1.35
    radial_std: float = 0.4
    tangential_std: float = 0.135
    twist: float = 0.2
    name: str = "pinwheel"

    def __post_init__(self) -> None:
        _check_positive(
            self.name,
            n_arms=self.n_arms,
            radius=self.radius,
            radial_std=self.radial_std,
            tangential_std=self.tangential_std,
        )

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        arm = torch.randint(self.n_arms, (n,), generator=generator, device=generator.device)
        along, across = _normal(n, generator).unbind(1)
        ray = torch.stack([self.radius + self.radial_std * along, self.tangential_std * across], 1)
        turn = 2 * math.pi * arm.double() / self.n_arms + self.twist * ray.square().sum(1)
        return _rotate(ray, turn)

    def log_prob(self, x: Tensor) -> Tensor:
        _check_points(x)
        untwisted = -self.twist * x.square().sum(1)
        log_arms = []
        for arm in range(self.n_arms):
            ray = _rotate(x, untwisted - 2 * math.pi * arm / self.n_arms)
            along = (ray[:, 0] - self.radius) / self.radial_std
            across = ray[:, 1] / self.tangential_std
            log_arms.append(-0.5 * (along.square() + across.square()))
        volume = 2 * math.pi * self.radial_std * self.tangential_std
        return torch.stack(log_arms).logsumexp(0) - math.log(self.n_arms * volume)


@dataclass(frozen=True)
class NoisyCurve:
    """x = c_A(U) + std e, A uniform over arms, U ~ U[0, 1), e ~ N(0, I): a noisy curve.

        p(x) = 1/n_arms sum_a int_0^1 N(x; c_a(u), std^2 I) du
             = 1/n_arms sum_a sum_i 2 s_i w_i N(x; c_a(s_i^2), std^2 I)

    with s_i, w_i the nodes and weights of Fejér's first quadrature rule on [0, 1]. The substitution
    u = s^2 makes the integrand smooth for a curve that behaves like sqrt(u) at u = 0. For |x| up to
    twice the largest |c_a(u)| the error of ln p is below 1e-10.

    curve: u (n,) in [0, 1) to c_a(u), (n_arms, n, 2); analytic in sqrt(u).
    n_nodes: quadrature nodes per arm.

    Raises:
        ValueError: if `std` is not above 0, or `n_nodes` is below 6 L/std, L the length of the
            longest arm.

    Source: Waldvogel (2006), "Fast construction of the Fejér and Clenshaw-Curtis quadrature rules".

    >>> NoisyCurve("moons", moons, std=0.14, n_nodes=200).sample(
    ...     2, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 2])
    """

    name: str
    curve: Callable[[Tensor], Tensor]
    std: float
    n_nodes: int

    def __post_init__(self) -> None:
        _check_positive(self.name, std=self.std)
        arms = self.curve(torch.linspace(0, 1, 1001, dtype=torch.float64))
        length = float(arms.diff(dim=1).norm(dim=2).sum(1).max())
        if self.n_nodes < (needed := math.ceil(NODES_PER_STD * length / self.std)):
            raise ValueError(
                f"{self.name} needs n_nodes of at least {NODES_PER_STD:g} length/std = {needed} "
                f"for an exact density; got {self.n_nodes}. Raise `n_nodes`."
            )

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        arms = self.curve(_uniform(n, 1, generator)[:, 0])  # (n_arms, n, 2)
        arm = torch.randint(len(arms), (n,), generator=generator, device=generator.device)
        on_curve = arms[arm, torch.arange(n, device=generator.device)]
        return on_curve + self.std * _normal(n, generator)

    def log_prob(self, x: Tensor) -> Tensor:
        s, weights = (v.to(x) for v in _fejer(self.n_nodes))
        centres = self.curve(s.square())
        log_weights = (2 * s * weights / len(centres)).log().expand(len(centres), -1)
        return _log_mixture(x, centres.flatten(0, 1), log_weights.flatten(), self.std)


def moons(u: Tensor) -> Tensor:
    """Two interlocking half circles at constant speed, (2, n, 2)."""
    upper = _circle(u / 2) - torch.tensor([0.5, 0.25]).to(u)
    return math.sqrt(2) * torch.stack([upper, -upper])


def spirals(u: Tensor) -> Tensor:
    """Two Archimedean spirals of one and a half turns with uniform density per area, (2, n, 2)."""
    s = u.sqrt()
    arm = 2 * s[:, None] * _circle(1.5 * s)
    return torch.stack([arm, -arm])


def swiss_roll(u: Tensor) -> Tensor:
    """t/7 (cos t, sin t), t = 3 pi/2 (1 + 2u): one spiral, the section of a roll; (1, n, 2)."""
    t = 1.5 * math.pi * (1 + 2 * u)
    return (t[:, None] / 7 * _circle(t / (2 * math.pi)))[None]


def _check_positive(name: str, **settings: float) -> None:
    for setting, value in settings.items():
        if not value > 0:
            raise ValueError(f"{name} needs {setting} above 0; got {value}.")


def _check_points(x: Tensor) -> None:
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"A density in the plane needs points of shape (n, 2); got {(*x.shape,)}.")


def _uniform(n: int, d: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, d, generator=generator, device=generator.device, dtype=torch.float64)


def _normal(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, 2, generator=generator, device=generator.device, dtype=torch.float64)


def _circle(turns: Tensor) -> Tensor:
    """(cos, sin)(2 pi turns), (n, 2)."""
    angle = 2 * math.pi * turns
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def _rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Rows of x, (n, 2), each rotated by its own angle, (n,)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * x[:, 0] - sin * x[:, 1], sin * x[:, 0] + cos * x[:, 1]], dim=1)


def _log_mixture(x: Tensor, centres: Tensor, log_weights: Tensor, std: float) -> Tensor:
    """ln sum_k w_k N(x; c_k, std^2 I), (n,), for centres (K, 2) and log-weights (K,)."""
    _check_points(x)
    parts = []
    for part in x.split(POINTS_AT_ONCE):
        squared = sum((part[:, i, None] - centres[:, i]).square() for i in (0, 1))  # (n, K)
        terms = log_weights - squared / (2 * std**2)
        # A term below e^-700 of the largest is negligible; subnormal results make exp slow.
        terms = torch.maximum(terms, terms.amax(1, keepdim=True) - 700)
        parts.append(terms.logsumexp(1))
    return torch.cat(parts) - math.log(2 * math.pi * std**2)


def _fejer(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and positive weights of the integral over [0, 1], float64, (n,).

    Gauss's rule needs only two thirds of the nodes, but the outermost weights that numpy computes
    for a rule of this length have a relative error of 1e-9.
    """
    angle = math.pi * (torch.arange(n, dtype=torch.float64) + 0.5) / n
    j = torch.arange(1, n // 2 + 1, dtype=torch.float64)
    cosines = (2 * j * angle[:, None]).cos() / (4 * j.square() - 1)  # (n, n // 2)
    return (angle / 2).cos().square(), (1 - 2 * cosines.sum(1)) / n


_DENSITIES: tuple[PlaneDensity, ...] = (
    EightGaussians(),
    Checkerboard(),
    NoisyCurve("moons", moons, std=0.14, n_nodes=200),
    Rings(radii=(0.9, 1.8), std=0.14, name="circles"),
    Pinwheel(),
    NoisyCurve("spirals", spirals, std=0.064, n_nodes=920),
    NoisyCurve("swiss-roll", swiss_roll, std=0.14, n_nodes=560),
    Rings(),
)
DENSITIES = {density.name: density for density in _DENSITIES}
"""The densities in the plane, by name."""


def density_named(name: str) -> PlaneDensity:
    """The density `DENSITIES[name]`.

    Raises:
        ValueError: if `name` is not a key.
    """
    if name not in DENSITIES:
        raise ValueError(f"A density is one of {', '.join(DENSITIES)}; got {name!r}. Name one.")
    return DENSITIES[name]


def density_dataset(
    density: PlaneDensity, n_train: int = 100_000, n_test: int = 10_000, seed: int = 0
) -> Dataset:
    """Independent points of a density, rounded to float32.

    One generator draws the training points, then the test points.

    Raises:
        ValueError: if `n_train` or `n_test` is below 1.
    """
    if min(n_train, n_test) < 1:
        raise ValueError(
            f"{density.name} needs n_train and n_test of at least 1; got {n_train} and {n_test}. "
            "Raise the smaller."
        )
    generator = torch.Generator().manual_seed(seed)
    train, test = (density.sample(n, generator).float() for n in (n_train, n_test))
    return Dataset(density.name, train, test)
