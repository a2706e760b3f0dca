"""An inverse ends where its tolerance says: neither short of it nor far beyond."""

from __future__ import annotations

import pytest
import torch

from resflow_bench.architectures import linear_flow
from resflow_bench.flows import Inversion


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
def test_an_inverse_ends_within_one_step_of_its_tolerance(tolerance: float) -> None:
    """g = -K x, where a step divides the residual by 1 / K: it ends in (K tolerance, tolerance]."""
    z = 3 * torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    branch = linear_flow("minus-identity", 4, 0.9).double().blocks[0].branch
    solution = Inversion(rtol=tolerance, atol=tolerance)(branch, z)
    asked = tolerance * (1 + solution.value.norm(dim=1))
    assert bool((solution.residual <= asked).all())
    assert bool((solution.residual > 0.85 * asked).all())
