"""The change of variables in "Flow Matching, part 1": its densities as printed, and as corrected.

The tests are named after the statements of the post that they correct.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from resflow_bench.flows import ActNorm, Cube, ResidualFlow

DTYPE = torch.float64
MEAN, SIGMA = 1.5, 2.0


def line(reach: float, n: int) -> tuple[Tensor, float]:
    """(points of [-reach, reach], (n, 1), and the distance between them)."""
    points = torch.linspace(-reach, reach, n, dtype=DTYPE)[:, None]
    return points, 2 * reach / (n - 1)


def plane(axis: Tensor) -> Tensor:
    """The pairs of coordinates, (n^2, 2)."""
    return torch.cartesian_prod(axis.flatten(), axis.flatten())


def quadrant() -> tuple[Tensor, Tensor]:
    """(points with positive coordinates, their weights) of the trapezoid rule in ln u and ln v.

    So that |uv|^(-2/3) du dv, singular at the axes, is smooth: e^((t + s)/3) dt ds.
    """
    t = torch.linspace(-90, 9, 500, dtype=DTYPE)
    points = plane(t.exp())
    return points, points.prod(1) * (t[1] - t[0]) ** 2


def gaussian() -> ResidualFlow:
    """x = sigma z + mean with z ~ N(0, 1)."""
    layer = ActNorm(1).double()
    with torch.no_grad():
        layer.shift.fill_(-MEAN)
        layer.log_scale.fill_(-math.log(SIGMA))
    return ResidualFlow([layer], 1)


def cubic() -> ResidualFlow:
    """u = x^3, v = y^3 with (x, y) ~ N(0, I)."""
    return ResidualFlow([Cube()], 2).double()


def exponential(u: Tensor) -> Tensor:
    """exp(-(|u|^(2/3) + |v|^(2/3)) / 2), (n,)."""
    return (-0.5 * u.abs().pow(2 / 3).sum(1)).exp()


@torch.no_grad()
def test_s1_01_the_scaled_gaussian_is_divided_by_sigma_and_not_by_its_root() -> None:
    x, dx = line(40.0, 4001)
    shape = (-((x[:, 0] - MEAN) ** 2) / (2 * SIGMA**2)).exp()
    printed = shape / math.sqrt(2 * math.pi * SIGMA)
    corrected = shape / (SIGMA * math.sqrt(2 * math.pi))
    assert float(printed.sum() * dx) == pytest.approx(math.sqrt(SIGMA), rel=1e-10)
    assert float(corrected.sum() * dx) == pytest.approx(1.0, rel=1e-10)
    torch.testing.assert_close(gaussian().log_prob(x), corrected.log(), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_s1_02_the_gaussian_of_the_plane_is_divided_by_two_pi_and_not_by_its_root() -> None:
    axis, dx = line(12.0, 241)
    x = plane(axis)
    shape = (-0.5 * x.square().sum(1)).exp()
    printed, corrected = shape / math.sqrt(2 * math.pi), shape / (2 * math.pi)
    assert float(printed.sum() * dx**2) == pytest.approx(math.sqrt(2 * math.pi), rel=1e-10)
    assert float(corrected.sum() * dx**2) == pytest.approx(1.0, rel=1e-10)
    flow = ResidualFlow([ActNorm(2)], 2).double()
    torch.testing.assert_close(flow.log_prob(x), corrected.log(), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_s1_03_the_cubic_density_is_divided_by_eighteen_pi() -> None:
    u, weights = quadrant()
    shape = u.prod(1).pow(-2 / 3) * exponential(u)
    printed, corrected = shape / (9 * math.sqrt(2 * math.pi)), shape / (18 * math.pi)
    root = math.sqrt(2 * math.pi)
    assert float(4 * (printed * weights).sum()) == pytest.approx(root, rel=1e-8)  # 4 quadrants
    assert float(4 * (corrected * weights).sum()) == pytest.approx(1.0, rel=1e-8)
    near = corrected > 1e-300
    for signs in plane(torch.tensor([-1.0, 1.0], dtype=DTYPE)):
        log_p = cubic().log_prob(signs * u)
        torch.testing.assert_close(log_p[near], corrected[near].log(), rtol=1e-12, atol=1e-10)


def test_s1_04_the_jacobian_has_the_derivatives_of_x_and_y() -> None:
    """With its right column as printed, (dv/dv, dv/dv), the determinant is that of u alone."""
    flow, points = cubic(), torch.tensor([[0.3, -2.0], [-5.0, 0.01]], dtype=DTYPE)
    z, log_det = flow.forward_and_log_det(points)
    for k, point in enumerate(points):
        jacobian = torch.autograd.functional.jacobian(lambda u: flow(u[None])[0], point)
        diagonal = point.abs().pow(-2 / 3) / 3
        torch.testing.assert_close(jacobian, diagonal.diag(), rtol=1e-12, atol=1e-12)
        truth = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(log_det[k], truth, rtol=1e-12, atol=1e-12)
        printed = torch.stack([jacobian[:, 0], torch.ones(2, dtype=DTYPE)], dim=1)
        torch.testing.assert_close(torch.linalg.det(printed), diagonal[0])
        assert abs(float(torch.linalg.slogdet(printed).logabsdet - truth)) > 0.5
    torch.testing.assert_close(z**3, points)


@torch.no_grad()
def test_s1_05_the_cubic_density_is_unbounded_where_the_inverse_has_no_derivative() -> None:
    """ln q grows as -2/3 ln|u|, and the slope of u^(1/3) as |u|^(-2/3)."""
    steps = 10.0 ** -torch.arange(3, 40, 6, dtype=DTYPE)
    near = torch.stack([steps, torch.ones_like(steps)], dim=1)
    growth = cubic().log_prob(near).diff()
    expected = torch.full_like(growth, 6 * 2 / 3 * math.log(10))
    torch.testing.assert_close(growth, expected, rtol=2e-3, atol=0)
    slopes = Cube()(near)[:, 0] / steps
    torch.testing.assert_close(slopes, steps.pow(-2 / 3))
    assert float(cubic().log_prob(torch.tensor([[0.0, 1.0]], dtype=DTYPE))) == math.inf


@torch.no_grad()
def test_the_samples_are_cubes_of_a_gaussian() -> None:
    """P(|u| < 1) = P(|z| < 1); a hundred thousand coordinates, to four standard errors."""
    n = 50_000
    u = cubic().sample(n, torch.Generator().manual_seed(0))
    share = float((u.abs() < 1).double().mean())
    p = math.erf(1 / math.sqrt(2))
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / (2 * n))
