"""Densities in the plane: against SciPy, and against their own samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from torch import Tensor

from resflow_bench import data
from resflow_bench.data import DENSITIES, PlaneDensity

STEP = 0.875 / 20  # 20 to a square of the checkerboard, so that no midpoint is on an edge
N_STEPS = 160  # the box [-3.5, 3.5]^2 holds all but 1e-8 of each density
CELL = 5  # grid points to a side of a cell of the chi-square test
N_POINTS = 20_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grid() -> Tensor:
    axis = (torch.arange(N_STEPS, dtype=torch.float64) - N_STEPS / 2 + 0.5) * STEP
    return torch.cartesian_prod(axis, axis)


@cache
def on_grid(density: PlaneDensity) -> Tensor:
    """ln p at the midpoints; their sum converges faster than any power of STEP for smooth p."""
    return density.log_prob(grid())


def mass_and_entropy(log_prob: Tensor) -> tuple[float, float]:
    p = log_prob.exp() * STEP**2
    return float(p.sum()), -float(torch.special.xlogy(p, log_prob.exp()).sum())


def chi_square_z(points: Tensor, log_prob: Tensor) -> float:
    """How far the counts in cells are from their expectation, in deviations of chi-square."""
    n_cells = N_STEPS // CELL
    blocks = (log_prob.exp() * STEP**2).reshape(n_cells, CELL, n_cells, CELL)
    expected = len(points) * blocks.sum((1, 3)).numpy().ravel()
    edges = (np.arange(n_cells + 1) - n_cells / 2) * STEP * CELL
    observed = np.histogram2d(*points.T.numpy(), bins=(edges, edges))[0].ravel()
    large = expected >= 5
    expected = np.append(expected[large], len(points) - expected[large].sum())
    observed = np.append(observed[large], len(points) - observed[large].sum())
    rest = max(expected[-1], 1.0)  # a rest that should be empty and is not counts in full
    expected[-1] = rest
    freedom = len(expected) - 1
    return float((((observed - expected) ** 2 / expected).sum() - freedom) / (2 * freedom) ** 0.5)


def likelihood_z(points: Tensor, density: PlaneDensity, log_prob: Tensor) -> float:
    """How far the mean log-density of points is from minus the entropy, in standard errors."""
    values = density.log_prob(points)
    if not values.isfinite().all():
        return -np.inf
    standard_error = max(float(values.std()) / len(values) ** 0.5, 1e-12)
    return (float(values.mean()) + mass_and_entropy(log_prob)[1]) / standard_error


TWINS = {
    "eight-gaussians": {"std": 0.19},
    "checkerboard": {"side": 0.8},
    "moons": {"std": 0.16},
    "circles": {"std": 0.16},
    "pinwheel": {"twist": 0.22},
    "spirals": {"std": 0.075},
    "swiss-roll": {"std": 0.17},
    "rings": {"radii": (0.5, 1.0, 1.5, 2.03)},
}
"""Each density with one setting off by 1.5 per cent (rings) to 21 per cent (swiss-roll)."""

each_density = pytest.mark.parametrize("name", DENSITIES)


@each_density
def test_a_density_integrates_to_one(name: str) -> None:
    """To 1e-7; the twin, a normaliser that is off by 1e-6, is rejected."""
    log_prob = on_grid(DENSITIES[name])
    assert abs(mass_and_entropy(log_prob)[0] - 1) < 1e-7
    assert abs(mass_and_entropy(log_prob + 1e-6)[0] - 1) > 1e-7


@each_density
def test_samples_follow_the_density(name: str) -> None:
    """By counts in cells; the twin of TWINS is rejected."""
    density = DENSITIES[name]
    points = density.sample(N_POINTS, generator())
    twin = replace(density, **TWINS[name])  # type: ignore[type-var]
    assert abs(chi_square_z(points, on_grid(density))) < 4
    assert chi_square_z(points, on_grid(twin)) > 4


@each_density
def test_the_mean_log_density_of_samples_is_minus_the_entropy(name: str) -> None:
    """Within 4 standard errors, some 0.03 nat; samples of a twin are rejected."""
    density = DENSITIES[name]
    points = density.sample(N_POINTS, generator())
    assert abs(likelihood_z(points, density, on_grid(density))) < 4
    assert abs(likelihood_z(1.05 * points, density, on_grid(density))) > 4


def test_a_wrong_weight_of_one_mode_is_rejected() -> None:
    """The twin takes 0.16 for 0.125, and (1 - 0.16)/7 for each of the others."""
    density = DENSITIES["eight-gaussians"]
    points = density.sample(N_POINTS, generator())
    for first, rejected in ((0.125, False), (0.16, True)):
        weights = np.array([first, *[(1 - first) / 7] * 7])
        wrong = torch.from_numpy(eight_gaussians(grid().numpy(), weights))
        assert (chi_square_z(points, wrong) > 4) == rejected


@each_density
def test_a_density_has_about_unit_variance_and_draws_by_its_generator(name: str) -> None:
    points = DENSITIES[name].sample(N_POINTS, generator())
    assert points.shape == (N_POINTS, 2)
    assert points.dtype == torch.float64
    assert 0.9 < points.var(0).mean() < 1.1
    assert torch.equal(points, DENSITIES[name].sample(N_POINTS, generator()))
    assert not torch.equal(points, DENSITIES[name].sample(N_POINTS, generator(1)))


def eight_gaussians(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    angles = np.arange(8) * np.pi / 4
    centres = 1.4 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    modes = [stats.multivariate_normal(c, 0.175**2).logpdf(x) for c in centres]
    return special.logsumexp(np.stack(modes), axis=0, b=weights[:, None])


def test_eight_gaussians_against_scipy() -> None:
    x = 2 * torch.randn(50, 2, generator=generator(), dtype=torch.float64)
    expected = eight_gaussians(x.numpy(), np.full(8, 1 / 8))
    np.testing.assert_allclose(DENSITIES["eight-gaussians"].log_prob(x), expected, rtol=1e-12)


def rings(*radii: float) -> Callable[[float], np.ndarray]:
    return lambda u: np.array(
        [[r * np.cos(2 * np.pi * u), r * np.sin(2 * np.pi * u)] for r in radii]
    )


def moons(u: float) -> np.ndarray:
    upper = np.array([np.cos(np.pi * u) - 0.5, np.sin(np.pi * u) - 0.25])
    return np.sqrt(2) * np.array([upper, -upper])


def spirals(u: float) -> np.ndarray:
    t = 3 * np.pi * np.sqrt(u)
    arm = 2 * t / (3 * np.pi) * np.array([np.cos(t), np.sin(t)])
    return np.array([arm, -arm])


def swiss_roll(u: float) -> np.ndarray:
    t = 1.5 * np.pi * (1 + 2 * u)
    return np.array([[t * np.cos(t) / 7, t * np.sin(t) / 7]])


@pytest.mark.parametrize(
    ("name", "curve"),
    [
        ("circles", rings(0.9, 1.8)),
        ("rings", rings(0.5, 1.0, 1.5, 2.0)),
        ("moons", moons),
        ("spirals", spirals),
        ("swiss-roll", swiss_roll),
    ],
)
def test_a_curve_with_noise_against_adaptive_quadrature(name: str, curve) -> None:
    """int N(x; c(u), std^2) du / p(x) = 1 to 1e-10, at samples, at the origin and out to |x| = 4.

    The twin, whose std is off by a part in 1e8, is rejected.
    """
    density = DENSITIES[name]
    far = torch.tensor([[0.0, 0.0], [2.5, -0.5], [-2.0, 2.0], [0.3, 3.0], [-4.0, 0.0]]).double()
    x = torch.cat([density.sample(8, generator()), far])
    log_p = density.log_prob(x).numpy()

    def ratio(u: float) -> np.ndarray:
        squared = ((x.numpy()[:, None] - curve(u)) ** 2).sum(2)
        log_normal = -squared / (2 * density.std**2) - np.log(2 * np.pi * density.std**2)
        return np.exp(log_normal - log_p[:, None]).mean(1)

    breaks = np.linspace(0, 1, 33)[1:-1]
    total, _ = integrate.quad_vec(ratio, 0, 1, epsrel=1e-12, norm="max", points=breaks)
    np.testing.assert_allclose(total, 1, rtol=1e-10)
    twin = replace(density, std=density.std * (1 + 1e-8)).log_prob(x).numpy()
    assert np.abs(total * np.exp(log_p - twin) - 1).max() > 1e-10


@pytest.mark.parametrize("name", ["moons", "spirals", "swiss-roll"])
def test_quadrature_is_exact_to_1e_10_within_twice_the_curves_reach(name: str) -> None:
    """Against four times the nodes, in ln p; a curve with too few nodes for that is refused."""
    density = DENSITIES[name]
    x = 8 * torch.rand(1500, 2, generator=generator(), dtype=torch.float64) - 4
    x = x[x.norm(dim=1) < 4]
    finer = replace(density, n_nodes=4 * density.n_nodes)
    error = (density.log_prob(x) - finer.log_prob(x)).abs().max()
    assert error < 1e-10
    with pytest.raises(ValueError, match="needs n_nodes of at least"):
        replace(density, n_nodes=density.n_nodes // 2)


def test_pinwheel_against_its_gaussians_carried_along() -> None:
    """p(twist(f)) = p_f(f): the density of f by SciPy, the twist by NumPy."""
    f = np.random.default_rng(0).normal(size=(50, 2))
    arms = []
    for k in range(5):
        cos, sin = np.cos(2 * np.pi * k / 5), np.sin(2 * np.pi * k / 5)
        turn = np.array([[cos, -sin], [sin, cos]])
        covariance = turn @ np.diag([0.4**2, 0.135**2]) @ turn.T
        arms.append(stats.multivariate_normal(1.35 * turn[:, 0], covariance).logpdf(f))
    expected = special.logsumexp(arms, axis=0) - np.log(5)
    z = (f[:, 0] + 1j * f[:, 1]) * np.exp(0.2j * (f**2).sum(1))
    x = torch.from_numpy(np.stack([z.real, z.imag], axis=1))
    np.testing.assert_allclose(DENSITIES["pinwheel"].log_prob(x), expected, rtol=1e-12)


def test_checkerboard_is_uniform_on_the_black_squares() -> None:
    centres = torch.cartesian_prod(*[torch.arange(-3.0, 3.0) + 0.5] * 2).double()
    column, row = (centres - 0.5).long().T
    on_board = (centres.abs() < 2).all(1)
    black = on_board & ((column + row) % 2 == 0)
    assert black.sum() == 8
    p = data.Checkerboard(side=0.5).log_prob(0.5 * centres).exp()
    torch.testing.assert_close(p, torch.where(black, 0.5, 0.0).double())


def test_a_sample_rounded_to_float32_stays_on_the_checkerboard() -> None:
    """Points a float64 step inside the black square's edges; the half-open twin loses them."""
    inside = np.nextafter([0.0, 0.875], [1.0, 0.0])
    x = torch.from_numpy(np.stack(np.meshgrid(inside, inside), axis=-1).reshape(-1, 2))
    density = data.Checkerboard()
    assert density.log_prob(x).isfinite().all()
    rounded = x.float()
    assert density.log_prob(rounded).isfinite().all()
    half_open = (rounded / 0.875).floor().sum(1) % 2 == 0
    assert not half_open.all()


def test_densities_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"A density is one of eight-gaussians, .* got 'moon'"):
        data.density_named("moon")
    with pytest.raises(ValueError, match=r"points of shape \(n, 2\); got \(3,\)"):
        DENSITIES["rings"].log_prob(torch.zeros(3))
    with pytest.raises(ValueError, match="rings needs radius above 0; got 0"):
        data.Rings(radii=())
    for name in DENSITIES:
        setting = "side" if name == "checkerboard" else "std"
        setting = "radial_std" if name == "pinwheel" else setting
        with pytest.raises(ValueError, match=f"{name} needs {setting} above 0; got -1"):
            replace(data.density_named(name), **{setting: -1.0})  # type: ignore[type-var]
    with pytest.raises(ValueError, match="n_train and n_test of at least 1; got 0 and 5"):
        data.density_dataset(DENSITIES["rings"], n_train=0, n_test=5)
