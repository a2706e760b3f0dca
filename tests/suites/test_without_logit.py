"""The part of a flow that other implementations hold: behind its logit, on vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from resflow_bench.architectures import ARCHITECTURES
from resflow_bench.logdet import Determinant
from suites.sampling import without_logit


@pytest.mark.parametrize(("name", "event"), [("wide", (12,)), ("conv", (3, 2, 2))])
def test_what_is_left_has_the_log_det_but_for_the_known_part(name: str, event) -> None:
    """In float64; a fully connected flow of images goes on with vectors."""
    flow = ARCHITECTURES[name]((3, 2, 2), 0.9).double().with_estimator(Determinant())
    x = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = 0.1 + 0.8 * x
    with torch.no_grad():
        z, whole = flow.forward_and_log_det(x)
        rest, behind, known = without_logit(flow, x)
        image, log_det = rest.with_estimator(Determinant()).forward_and_log_det(behind)
    assert behind.shape[1:] == event
    torch.testing.assert_close(image, z)
    np.testing.assert_allclose(log_det.numpy() + known, whole.numpy(), rtol=1e-12)
    assert np.abs(known).min() > 1


def test_a_flow_without_either_is_left_as_it_is() -> None:
    flow, x = ARCHITECTURES["mlp"]((2,), 0.9), torch.zeros(3, 2)
    rest, behind, known = without_logit(flow, x)
    assert rest is flow
    assert behind is x
    assert known.tolist() == [0.0, 0.0, 0.0]
