"""The control by the mean Jacobian: the mean exactly, the variance in closed form."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import reference
import torch
from reference import Array
from torch import Tensor

from resflow_bench.jacobian import DenseJacobian, Jacobian, dense_jacobian
from resflow_bench.layers import CLipSwish, conv_branch, dense_branch, mlp_branch
from resflow_bench.logdet import (
    Controlled,
    Fixed,
    LogDetEstimator,
    Rademacher,
    Taylor,
    Terms,
    autograd,
    cached,
    jacobian,
)
from resflow_bench.logdet.expansions.expansion import Expanded
from resflow_bench.theory import INVERSE, RESIDUAL

DTYPE = torch.float64
DIM, N_TERMS = 4, 6


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_jacobians() -> Array:
    """A mean of norm about 0.4 and deviations from it, (3, d, d)."""
    rng = np.random.default_rng(0)
    mean, deviations = rng.standard_normal((DIM, DIM)), rng.standard_normal((3, DIM, DIM))
    return 0.12 * mean + 0.05 * deviations


def over_all_probes(expansion: object, jacobians: Array, n_traced: int) -> Array:
    """The value at each example for each of the 2^d sign vectors, (2^d, B)."""
    operator, found = DenseJacobian(torch.from_numpy(jacobians)), []
    for signs in itertools.product((-1.0, 1.0), repeat=DIM):
        v = torch.tensor(signs, dtype=DTYPE).expand(1, len(jacobians), -1).contiguous()
        terms = Fixed(N_TERMS).draw(len(jacobians), v, None)
        found.append(expansion.expand(operator, v, terms, n_traced, False).value)  # type: ignore[attr-defined]
    return torch.stack(found).numpy()


@dataclass(frozen=True)
class WithoutTheTrace:
    """A twin: the control is taken off and its mean not put back."""

    def expand(
        self, jacobian: Jacobian, v: Tensor, terms: Terms, n_traced: int, adjoint: bool
    ) -> Expanded:
        found = Controlled().expand(jacobian, v, terms, n_traced, adjoint)
        assert isinstance(jacobian, DenseJacobian)
        trace = np.trace(known(jacobian.matrix.numpy(), n_traced))
        return found._replace(value=found.value - trace)


def known(jacobians: Array, n_traced: int, degree: int = 8) -> Array:
    """F."""
    mean = jacobians.mean(0)
    return reference.series(mean, degree) - reference.series(mean, n_traced)


@pytest.mark.parametrize("n_traced", [0, 1, 2])
def test_mean_and_variance_over_all_probes(n_traced) -> None:
    """The mean to 1e-12 (the twin is off by tr F), the variance that of v^T (A - F) v."""
    jacobians = make_jacobians()
    values = over_all_probes(Controlled(), jacobians, n_traced)
    series = [reference.series(j, N_TERMS) - reference.series(j, n_traced) for j in jacobians]
    np.testing.assert_allclose(values.mean(0), np.trace(series, axis1=1, axis2=2), atol=1e-12)
    twin = over_all_probes(WithoutTheTrace(), jacobians, n_traced).mean(0)
    assert np.abs(twin - values.mean(0)).max() > 1e-3
    f = known(jacobians, n_traced)
    expected = [reference.hutchinson_variance(a - f, "rademacher") for a in series]
    np.testing.assert_allclose(values.var(0), expected, rtol=1e-10)
    plain = over_all_probes(Taylor(), jacobians, n_traced)
    assert values.var(0).mean() < 0.8 * plain.var(0).mean()


def test_the_inverse_of_a_block_is_controlled_as_the_block() -> None:
    """Its value is the other's with a minus, for the same probes; so is its gradient in x."""
    branch, x = make_mlp()
    x.requires_grad_()
    estimator = LogDetEstimator(Rademacher(), Fixed(8), expansion=Controlled())
    there, back = (
        estimator.total([estimator.draw(branch, x, generator(3), coefficients)])
        for coefficients in (RESIDUAL, INVERSE)
    )
    torch.testing.assert_close(back, -there, rtol=1e-12, atol=0)
    (there,), (back,) = (torch.autograd.grad(value.sum(), x) for value in (there, back))
    torch.testing.assert_close(back, -there, rtol=1e-10, atol=1e-14)


def make_mlp() -> tuple[torch.nn.Module, Tensor]:
    branch = mlp_branch(4, (8,), 0.9, generator=generator()).double()
    return branch, torch.randn(5, 4, generator=generator(9), dtype=DTYPE)


def make_conv() -> tuple[torch.nn.Module, Tensor]:
    branch = conv_branch(2, (3, 3), (3, 3), (3,), 0.9, generator=generator()).double()
    return branch, torch.randn(5, 2, 3, 3, generator=generator(9), dtype=DTYPE)


def make_dense() -> tuple[torch.nn.Module, Tensor]:
    branch = dense_branch(4, 4, 1, 0.9, CLipSwish, generator=generator()).double()
    return branch, torch.randn(5, 4, generator=generator(9), dtype=DTYPE)


@pytest.mark.parametrize("make", [make_mlp, make_conv, make_dense])
def test_with_one_layer_of_slopes_it_is_the_mean_jacobian(make) -> None:
    branch, x = make()
    with torch.no_grad():
        mean = dense_jacobian(cached(branch, x).jacobian.mean(), x[:1])[0]
        expected = jacobian(branch, x)
    torch.testing.assert_close(mean, expected.mean(0), rtol=0, atol=1e-12)
    assert (mean - expected[0]).abs().max() > 1e-4  # a twin: one example's


def test_products_without_slopes_are_refused() -> None:
    branch, x = make_mlp()
    estimator = LogDetEstimator(Rademacher(), Fixed(5), products=autograd, expansion=Controlled())
    with pytest.raises(ValueError, match="cached"):
        estimator(branch, x)
