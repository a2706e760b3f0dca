"""The control by a circulant: its mean exactly, its variance in closed form, each term of it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import reference
import torch
from reference import Array
from steep_branches import steep
from torch import Tensor

from resflow_bench.jacobian import Jacobian, dense_jacobian, linearise
from resflow_bench.jacobian.circulant import Circulant, circulant
from resflow_bench.layers import conv_branch, mlp_branch
from resflow_bench.logdet import (
    Arnoldi,
    Chebyshev,
    CirculantControlled,
    Fixed,
    Geometric,
    LogDetEstimator,
    Rademacher,
    Roulette,
    Taylor,
    Terms,
)

DTYPE = torch.float64
GRID, D = (3, 3), 9


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make() -> tuple[torch.nn.Module, Tensor, Jacobian]:
    """A branch of large slopes, three points, and J there."""
    branch = steep(conv_branch(1, GRID, (3, 1, 3), (4, 4), 0.9, generator=generator()))
    x = 2.0 * torch.randn(3, 1, *GRID, generator=generator(1), dtype=DTYPE)
    with torch.no_grad():
        return branch, x, linearise(branch, x).jacobian


def over_all_probes(jacobian: Jacobian, expansion: object, terms: Terms, n_traced: int) -> Array:
    """The value at each example for each of the 2^d sign vectors, (2^d, B)."""
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=D)), dtype=DTYPE)
    values = []
    for v in signs.view(-1, 1, 1, 1, *GRID).expand(-1, 1, 3, 1, *GRID):
        found = expansion.expand(jacobian, v.contiguous(), terms, n_traced, False)  # type: ignore[attr-defined]
        values.append(found.value)
    return torch.stack(values).numpy()


def symmetric_part(c: Circulant) -> Array:
    """(C + C^T)/2 of each example from its forms, by polarisation: (B, d, d)."""
    eye = torch.eye(D, dtype=DTYPE)
    pairs = (eye[:, None] + eye).view(-1, 1, 1, *GRID).expand(-1, 3, 1, *GRID)
    sums = c.form(pairs).view(D, D, 3)
    single = c.form(eye.view(D, 1, 1, *GRID).expand(-1, 3, 1, *GRID))
    return ((sums - single[:, None] - single[None]) / 2).permute(2, 0, 1).numpy()


@pytest.mark.parametrize("n_traced", [0, 1, 2])
@pytest.mark.parametrize("truncation", [Fixed(3), Roulette(Geometric(0.5), 2)])
def test_mean_over_all_probes(truncation, n_traced) -> None:
    """That of the series with these weights, to 1e-12, whatever N was drawn."""
    _, x, jacobian = make()
    terms = truncation.draw(3, x, generator(4))
    expansion = CirculantControlled(degree=2)  # a term beyond it has no control
    found = over_all_probes(jacobian, expansion, terms, n_traced)
    plain = over_all_probes(jacobian, Taylor(), terms, n_traced)
    np.testing.assert_allclose(found.mean(0), plain.mean(0), atol=1e-12)
    assert np.abs(found - plain).max() > 1e-3 or n_traced == 2
    assert len(terms.weights) > 2


def test_variance_is_that_of_the_differences() -> None:
    """That of A = (J - C) - (J^2 - C^2)/2, over all probes."""
    _, x, jacobian = make()
    terms = Fixed(2).draw(3, x, None)
    found = over_all_probes(jacobian, CirculantControlled(), terms, 0)
    with torch.no_grad():
        matrices = dense_jacobian(jacobian, x).numpy()
    c = circulant(jacobian, GRID)
    first, second = symmetric_part(c), symmetric_part(c.power(2))
    for b, j in enumerate(matrices):
        a = (j - first[b]) - (j @ j - second[b]) / 2
        expected = reference.hutchinson_variance(a, "rademacher")
        assert found[:, b].var() == pytest.approx(expected, rel=1e-9)


def test_on_a_grid_of_some_size_it_lowers_the_variance() -> None:
    """0.59 of it is left on 8 x 8 (4,000 draws, each variance to 2 %), where the border counts."""
    branch = conv_branch(1, (8, 8), (3, 1, 3), (4, 4), 0.9, generator=generator()).double()
    x = 2.0 * torch.randn(1, 1, 8, 8, generator=generator(1), dtype=DTYPE).expand(4000, -1, -1, -1)
    variances = []
    for expansion in (Taylor(), CirculantControlled()):
        estimator = LogDetEstimator(Rademacher(), Fixed(1), expansion=expansion)
        with torch.no_grad():
            variances.append(float(estimator(branch, x, generator(2)).value.var()))
    assert variances[1] < 0.75 * variances[0]


@pytest.mark.parametrize("n_traced", [0, 1])
def test_increments_add_up_to_the_value(n_traced) -> None:
    _, x, jacobian = make()
    v = Rademacher().sample(4, x, generator(2))
    expansion = CirculantControlled(degree=3)
    increments = expansion.increments(jacobian, v, 5, n_traced)
    value = expansion.expand(jacobian, v, Fixed(5).draw(3, x, None), n_traced, False).value
    torch.testing.assert_close(increments.sum(0).mean(0), value, rtol=0, atol=1e-13)
    assert increments[:n_traced].abs().sum() == 0


def test_refusals() -> None:
    branch = mlp_branch(9, (8,), 0.9, generator=generator())
    estimator = LogDetEstimator(Rademacher(), Fixed(5), expansion=CirculantControlled())
    with pytest.raises(ValueError, match="circulant"):
        estimator(branch, torch.zeros(2, 9))
    with pytest.raises(ValueError, match="degree"):
        CirculantControlled(degree=0)
    _, x, jacobian = make()
    v = Rademacher().sample(1, x, generator())
    with pytest.raises(TypeError, match="Taylor"):
        CirculantControlled(Chebyshev(-0.9, 0.9)).increments(jacobian, v, 4)
    assert str(CirculantControlled(Arnoldi())) == "circulant(arnoldi, 8)"
