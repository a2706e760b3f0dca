"""The worked examples of the post "Flow Matching (Part 1)" as flows: printed and right densities.

A test is named after the misprint that it shows: as printed a density does not integrate to one.
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from resflow_bench.flows import ActNorm, ResidualFlow
from resflow_bench.systems import CubeRoot

MU, SIGMA = 0.5, 2.0


def scaled() -> ResidualFlow:
    """x = sigma z + mu of a standard normal z."""
    layer = ActNorm(1).double()
    with torch.no_grad():
        layer.shift.fill_(-MU)
        layer.log_scale.fill_(-math.log(SIGMA))
    return ResidualFlow([layer], 1).requires_grad_(False)


def cubes(dim: int) -> ResidualFlow:
    """u = z^3 by coordinates, z standard normal."""
    return ResidualFlow([CubeRoot()], dim).double()


def at(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def integral_over_u(q: object) -> float:
    """int q(u) du over both signs, by u = w^3, which takes the pole at 0 away."""
    total, _ = quad(lambda w: q(w**3) * 3 * w**2, 1e-12, 12)  # type: ignore[operator]
    return 2 * total


def test_s1_01_the_scaled_gaussian_has_sigma_outside_the_root() -> None:
    """As printed, exp(-(x - mu)^2 / (2 sigma^2)) / sqrt(2 pi sigma), it integrates to sqrt(2)."""

    def kernel(x: float) -> float:
        return math.exp(-((x - MU) ** 2) / (2 * SIGMA**2))

    printed, _ = quad(lambda x: kernel(x) / math.sqrt(2 * math.pi * SIGMA), -30, 30)
    assert printed == pytest.approx(math.sqrt(SIGMA))
    flow = scaled()
    for x in (-3.0, 0.5, 4.0):
        right = kernel(x) / (SIGMA * math.sqrt(2 * math.pi))
        assert float(flow.log_prob(at(x)).exp()) == pytest.approx(right, rel=1e-12)
    total, _ = quad(lambda x: float(flow.log_prob(at(x)).exp()), -30, 30)
    assert total == pytest.approx(1, abs=1e-9)


def test_s1_02_the_gaussian_of_the_plane_has_two_pi() -> None:
    """As printed, over sqrt(2 pi), it integrates to sqrt(2 pi); by polar coordinates."""
    radial, _ = quad(lambda r: 2 * math.pi * r * math.exp(-(r**2) / 2), 0, 40)
    assert radial / math.sqrt(2 * math.pi) == pytest.approx(math.sqrt(2 * math.pi))
    assert radial / (2 * math.pi) == pytest.approx(1)
    base = cubes(2).base
    assert float(base.log_prob(at(0, 0)).exp()) == pytest.approx(1 / (2 * math.pi))


def test_s1_03_the_density_of_cubes_has_eighteen_pi() -> None:
    """As printed, over 9 sqrt(2 pi), it integrates to sqrt(2 pi) = 2.5066."""

    def kernel(u: float) -> float:
        return abs(u) ** (-2 / 3) * math.exp(-(abs(u) ** (2 / 3)) / 2)

    mass = integral_over_u(kernel) ** 2  # of |uv|^(-2/3) exp(...), a product
    assert mass / (9 * math.sqrt(2 * math.pi)) == pytest.approx(math.sqrt(2 * math.pi), rel=1e-6)
    assert mass / (18 * math.pi) == pytest.approx(1, rel=1e-6)
    flow = cubes(2)
    for u, v in ((1.0, 2.0), (-0.3, 0.01), (-8.0, -27.0)):
        right = kernel(u) * kernel(v) / (18 * math.pi)
        assert float(flow.log_prob(at(u, v)).exp()) == pytest.approx(right, rel=1e-12)


def test_s1_04_the_jacobian_has_the_derivatives_of_x_and_y_by_u_and_v() -> None:
    """Its entry (i, j) is d x_i / d u_j, by differences; as printed a column holds dv/dv."""
    flow, u, h = cubes(2), at(0.7, -2.0), 1e-6
    units = torch.eye(2, dtype=torch.float64)[:, None]
    columns = [(flow(u + h * e) - flow(u - h * e)) / (2 * h) for e in units]
    jacobian = torch.stack([column[0] for column in columns], dim=1)
    right = torch.diag((u[0].abs() ** (-2 / 3)) / 3)
    torch.testing.assert_close(jacobian, right, rtol=1e-6, atol=1e-8)
    _, log_det = flow.forward_and_log_det(u)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian)[1][None], rtol=1e-6, atol=0)


def test_s1_05_the_cube_is_no_diffeomorphism_at_zero() -> None:
    """The density grows without bound there, as |u|^(-2/3); off 0 the map goes back and forth."""
    flow = cubes(1)
    near, nearer = (float(flow.log_prob(at(u))) for u in (1e-6, 1e-9))
    assert nearer - near == pytest.approx(2 / 3 * math.log(1e3), abs=1e-3)
    assert flow.log_prob(at(0.0)).isinf().all()
    u = at(-0.5)
    solution = flow.inverse(flow(u))
    torch.testing.assert_close(solution.value, u)
    total = integral_over_u(lambda u: float(flow.log_prob(at(u)).exp()))
    assert total == pytest.approx(1, abs=1e-6)
