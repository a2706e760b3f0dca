"""Flows outside the ordinary: outside their support, without spread, with a bad row or weights."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from small_flows import generator, images, normal, vectors
from torch import Tensor, nn

from resflow_bench.fixed_point import Outcome
from resflow_bench.flows import (
    ActNorm,
    ResidualFlow,
)

INF, NAN = math.inf, math.nan

# The support of an image flow


@pytest.mark.parametrize("value", [255.0, 1.2, -0.1, 1 + 0.05 / 0.9])
def test_outside_the_support_the_density_is_zero(value) -> None:
    flow, x = images(), torch.full((3, 2, 4, 4), 0.5)
    inside = flow.log_prob(x, generator())
    x[1, 0, 0, 0] = value
    found = flow.log_prob(x.requires_grad_(), generator())
    assert found[1] == -INF
    torch.testing.assert_close(found[[0, 2]], inside[[0, 2]], rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad(found[[0, 2]].sum(), x)
    assert gradient.isfinite().all()


def test_the_support_reaches_beyond_the_unit_cube_by_the_margin() -> None:
    """As the inverse does: 0.05 / 0.9 on each side."""
    flow = images()
    for value in (-0.05, 1.05):
        assert flow.log_prob(torch.full((1, 2, 4, 4), value), generator()).isfinite().all()


def test_counts_and_what_is_not_a_number() -> None:
    flow = images()
    with pytest.raises(ValueError, match="of floating point; got uint8"):
        flow.log_prob(torch.zeros(1, 2, 4, 4, dtype=torch.uint8))
    assert flow.log_prob(torch.full((1, 2, 4, 4), NAN), generator()).isnan().all()


# `initialise`


@pytest.mark.parametrize(
    "rows",
    [normal(1, 3), normal(1, 3).expand(5, 3), torch.full((4, 3), 1e6)],
    ids=["one", "equal", "large and equal"],
)
def test_without_spread_a_scale_is_one(rows) -> None:
    flow = ResidualFlow.mlp(3, (16,), 8, 0.9)
    flow.initialise(rows)
    for layer in flow.layers[::2]:
        assert layer.log_scale.abs().max() == 0
    assert flow(rows).abs().max() < 1e3


def test_a_constant_column_keeps_its_scale_and_the_others_are_normalised() -> None:
    x = torch.cat([normal(64, 2), torch.full((64, 1), 1e4)], dim=1)
    norm = ActNorm(3)
    norm.initialise(x)
    z = norm(x)
    torch.testing.assert_close(z.std(0), torch.tensor([1.0, 1.0, 0.0]), rtol=1e-3, atol=1e-3)
    assert norm.log_scale[2] == 0


@pytest.mark.parametrize(
    ("rows", "words"),
    [(normal(0, 3), "got 0"), (torch.cat([normal(5, 3), torch.full((1, 3), NAN)]), "6, 1 of them")],
)
def test_nothing_is_initialised_from_nothing(rows, words) -> None:
    flow = vectors()
    before = copy.deepcopy(flow.state_dict())
    with pytest.raises(ValueError, match=f"all finite; .*{words}"):
        flow.initialise(rows)
    assert all(torch.equal(before[name], tensor) for name, tensor in flow.state_dict().items())


def test_an_actnorm_is_fitted_without_a_look_at_the_numbers() -> None:
    """Meta tensors hold none. Where an example is not finite the layer stays as it is."""
    assert ActNorm(3).to("meta").fit(torch.empty(5, 3, device="meta")).is_meta
    norm = ActNorm(3)
    assert norm.fit(torch.full((2, 3), NAN)) == 2
    assert norm.shift.tolist() == norm.log_scale.tolist() == [0, 0, 0]


# One bad row


def test_a_bad_row_costs_the_inverse_no_more_products(monkeypatch) -> None:
    """Counted: the evaluations and products of the others alone, and a few."""
    flow, z = vectors(), normal(16, 3)
    counts = []

    def count(z: Tensor) -> int:
        n = 0
        plain = nn.functional.linear

        def linear(*arguments: Any) -> Tensor:
            nonlocal n
            n += 1
            return plain(*arguments)

        from resflow_bench.jacobian.matrix_stage import MatrixStage

        push = MatrixStage.push

        def counted(stage: MatrixStage, v: Tensor) -> Tensor:
            nonlocal n
            n += 1
            return push(stage, v)

        with monkeypatch.context() as patch:
            patch.setattr("resflow_bench.layers.maps.functional.linear", linear)
            patch.setattr(MatrixStage, "push", counted)
            solution = flow.inverse(z)
        counts.append(n)
        return solution

    good = count(z)
    z[3] = NAN
    bad = count(z)
    assert bad.outcome.tolist() == [Outcome.DIVERGED if i == 3 else 0 for i in range(16)]
    rest = torch.arange(16) != 3
    assert torch.equal(good.value[rest], bad.value[rest])
    assert counts[1] <= 1.5 * counts[0]


def test_a_nan_in_a_closed_form_is_an_outcome() -> None:
    flow = vectors()
    with torch.no_grad():
        flow.layers[0].shift[1] = NAN
    solution = flow.inverse(normal(4, 3))
    assert (solution.outcome == Outcome.DIVERGED).all()
    with pytest.raises(ArithmeticError, match="4 DIVERGED"):
        flow.sample(4, generator())


# Promises


@pytest.mark.parametrize("call", ["inverse", "sample"])
def test_a_forgotten_update_is_said(call) -> None:
    """Once for each change of the weights; `update` keeps the promise and is silent."""
    flow = vectors()
    use = {"inverse": lambda: flow.inverse(normal(2, 3)), "sample": lambda: flow.sample(2)}[call]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use()
    with torch.no_grad():
        for layer in flow.blocks[1].branch.layers:
            layer.weight.add_(0.15 * normal(*layer.weight.shape))
    with pytest.warns(UserWarning, match=r"promises lipschitz=0\.9 and has .*Call `update\(\)`"):
        use()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use()
        flow.update()
        use()


def test_an_averaged_model_is_said_too() -> None:
    """torch's average copies weights: the norms are of others."""
    flow = vectors()
    average = torch.optim.swa_utils.AveragedModel(flow)
    average.update_parameters(flow)
    with torch.no_grad():
        for layer in flow.blocks[0].branch.layers:
            layer.weight.copy_(normal(*layer.weight.shape))
    flow.update()
    average.update_parameters(flow)
    with pytest.warns(UserWarning, match="averaged, set"):
        average.module.inverse(0.1 * normal(2, 3))


def test_weights_that_are_not_finite_are_an_outcome() -> None:
    """With a warning, and no exception."""
    flow = vectors()
    with torch.no_grad():
        next(flow.blocks[0].branch.parameters()).fill_(NAN)
    with pytest.warns(UserWarning, match="has inf by its certificate, so that it may have no"):
        solution = flow.inverse(normal(2, 3), certify=False)
    assert (solution.outcome == Outcome.DIVERGED).all()


def test_a_block_pickled_before_it_knew_versions_is_certified_once() -> None:
    flow = vectors()
    for block in flow.blocks:
        del block.__dict__["_kept"]
    assert flow.sample(2, generator()).isfinite().all()


def test_a_channel_that_varies_little_is_normalised_in_two_bytes_too() -> None:
    x = (10 + 0.3 * normal(1000, 1)).bfloat16()
    norm = ActNorm(1).bfloat16()
    norm.initialise(x)
    assert 0.9 < norm(x).float().std() < 1.1
