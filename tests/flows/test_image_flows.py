"""Every bijection by one contract, flows of several scales, and what their inverse certifies."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from resflow_bench.architectures import mlp_flow
from resflow_bench.fixed_point import Outcome, Solution
from resflow_bench.flows import (
    ActNorm,
    Chain,
    FactorOut,
    Inversion,
    MultiScale,
    ResidualBlock,
    ResidualFlow,
    image_flow,
    sample_grid,
)
from resflow_bench.flows.bijection import as_bijection
from resflow_bench.logdet import Exact, Fixed, LogDetEstimator, Rademacher

DTYPE = torch.float64
SMALL = MultiScale(n_blocks=1, hidden=(4, 4), n_tail=1, tail_hidden=(16,), mixing=True)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=DTYPE)


def images(n: int, event: tuple[int, ...], dtype: torch.dtype = DTYPE) -> Tensor:
    """In (0, 1), darker at the left, so that channels and pixels have means of their own."""
    x = torch.rand(n, *event, generator=generator(2), dtype=DTYPE)
    return (x ** torch.linspace(4, 1, event[-1], dtype=DTYPE)).to(dtype)


def strong_flow(
    event: tuple[int, ...], architecture: MultiScale = SMALL, dtype: torch.dtype = DTYPE
) -> ResidualFlow:
    """Weights so large that the norms are at their limits, as after training."""
    return strengthened(
        image_flow(event, architecture, Exact(), generator(1)), dtype
    ).requires_grad_(False)


def strengthened(flow: ResidualFlow, dtype: torch.dtype) -> ResidualFlow:
    with torch.no_grad():
        for block in flow.blocks:
            for parameter in block.branch.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(8)
    flow.align()
    return flow.to(dtype)


# --- flows of several scales ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "architecture"),
    [
        ((1, 4, 4), SMALL),
        ((3, 4, 4), replace(SMALL, mixing=False)),
        ((1, 8, 8), replace(SMALL, n_scales=3, n_tail=2, leading_activation=True)),
        ((2, 3, 5), replace(SMALL, n_scales=1, n_tail=0, margin=None)),
    ],
    ids=["two scales", "no mixing", "three scales", "one scale"],
)
def test_log_prob_is_that_of_the_whole_map(event, architecture) -> None:
    flow, x = strong_flow(event, architecture), images(2, event)
    flow.initialise(images(64, event))
    z = flow(x)
    assert z.shape == (2, flow.dim)
    jacobian = []
    for one in x:
        matrix = torch.autograd.functional.jacobian(lambda u: flow(u[None])[0], one)
        jacobian.append(torch.linalg.slogdet(matrix.flatten(1)).logabsdet)
    base = -0.5 * (z.square().sum(1) + flow.dim * math.log(2 * math.pi))
    torch.testing.assert_close(flow.log_prob(x), base + torch.stack(jacobian), rtol=0, atol=1e-9)


def test_inputs_reach_every_leaf_in_order() -> None:
    flow, x = strong_flow((1, 8, 8), replace(SMALL, n_scales=3)), images(3, (1, 8, 8))
    pairs = list(flow.inputs(x))
    blocks = [leaf for leaf, _ in pairs if isinstance(leaf, ResidualBlock)]
    assert len(blocks) == 4
    assert all(a is b for a, b in zip(blocks, flow.blocks, strict=True))
    assert not any(isinstance(leaf, FactorOut | Chain) for leaf, _ in pairs)
    terms = [as_bijection(leaf).forward_and_log_det(y, Exact())[1] for leaf, y in pairs]
    torch.testing.assert_close(sum(terms), flow.forward_and_log_det(x)[1])


def test_initialise_reaches_every_actnorm() -> None:
    flow, x = strong_flow((1, 8, 8), replace(SMALL, n_scales=3)), images(64, (1, 8, 8))
    flow.initialise(x)
    norms = [(leaf, y) for leaf, y in flow.inputs(x) if isinstance(leaf, ActNorm)]
    assert len(norms) == 4
    for leaf, y in norms:
        channels = leaf(y).transpose(0, 1).flatten(1)
        torch.testing.assert_close(channels.mean(1), 0 * leaf.shift, rtol=0, atol=1e-10)
        torch.testing.assert_close(channels.std(1), 1 + 0 * leaf.shift)


def test_every_parameter_is_trained() -> None:
    estimator = LogDetEstimator(Rademacher(), Fixed(3))
    flow = image_flow((1, 4, 4), SMALL, estimator, generator())
    flow.log_prob(images(4, (1, 4, 4), torch.float32), generator()).mean().neg().backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_samples_are_images_side_by_side() -> None:
    flow = strong_flow((2, 4, 6), dtype=torch.float32)
    samples = flow.sample(6, generator(5))
    assert samples.shape == (6, 2, 4, 6)
    overhang = 0.05 / 0.9
    assert bool(((samples > -overhang) & (samples < 1 + overhang)).all())
    grid = sample_grid(flow, 2, 3, generator(5))
    assert grid.shape == (2, 8, 18)
    torch.testing.assert_close(grid[:, 4:, 6:12], samples[4].clamp(0, 1), rtol=0, atol=0)


def test_a_state_dict_is_a_checkpoint() -> None:
    """Another flow by the same recipe computes the same bits, without a forward pass before."""
    event = (1, 8, 8)
    flow = strong_flow(event, dtype=torch.float32)
    flow.initialise(images(64, event, torch.float32))
    x = images(3, event, torch.float32)
    z = flow(x)
    file = io.BytesIO()
    torch.save(flow.state_dict(), file)
    file.seek(0)
    fresh = image_flow(event, SMALL, Exact(), generator(9))
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh.inverse(z).value, flow.inverse(z).value)
    assert torch.equal(fresh.log_prob(x), flow.log_prob(x))


def test_a_copy_lives_on_its_own() -> None:
    event = (1, 4, 4)
    flow, x = strong_flow(event), images(3, event)
    before = flow.log_prob(x)
    average = copy.deepcopy(flow)
    for parameter in average.parameters():
        parameter.lerp_(torch.ones_like(parameter), 0.5)
    average.update()
    average.initialise(x)
    assert not torch.equal(average.log_prob(x), before)
    assert torch.equal(flow.log_prob(x), before)


# --- what the inverse certifies -------------------------------------------------------------------


def true_error(flow: ResidualFlow, z: Tensor, solution: Solution) -> Tensor:
    truth = copy.deepcopy(flow).double().inverse(z.double(), Inversion(max_steps=20_000)).value
    return (solution.value.double() - truth).flatten(1).norm(dim=1)


def test_a_float32_certificate_is_near_the_error() -> None:
    """Eight blocks at K = 0.9: within a factor of 3; float32's residuals are off by hundreds."""
    flow = strengthened(mlp_flow(64, 0.9), torch.float32)
    x = torch.randn(16, 64, generator=generator(1))
    flow.initialise(x)
    z = flow(x)
    solution = flow.inverse(z)
    error = true_error(flow, z, solution)
    layer_by_layer = flow.layers.inverse(z, Inversion())
    assert torch.equal(solution.value, layer_by_layer.value)
    assert bool((error <= solution.error_bound).all())
    assert bool((solution.error_bound < 3 * error).all())
    assert bool((layer_by_layer.error_bound > 100 * error).all())


@pytest.mark.parametrize("dtype", [torch.float32, DTYPE])
def test_a_round_trip_of_images_is_certified(dtype: torch.dtype) -> None:
    """x -> z -> x within 1e-4 in float32, within 1e-6 in float64; the z are the flow's own."""
    event = (3, 16, 16)
    architecture = replace(SMALL, n_blocks=2, hidden=(8, 8))
    flow, x = strong_flow(event, architecture, dtype), images(4, event, dtype)
    flow.initialise(images(32, event, dtype))
    asked = 1e-4 if dtype == torch.float32 else 1e-6
    solution = flow.inverse(flow(x), Inversion(error=asked)).raise_if_failed()
    assert solution.value.shape == x.shape
    assert float(solution.error_bound.max()) < asked
    assert float((solution.value - x).flatten(1).norm(dim=1).max()) < asked
    assert bool((true_error(flow, flow(x), solution) <= solution.error_bound).all())


def test_what_float32_cannot_certify_is_said() -> None:
    flow = strong_flow((1, 8, 8), dtype=torch.float32)
    z = flow(images(4, (1, 8, 8), torch.float32))
    asked = Inversion(error=1e-9)
    solution = flow.inverse(z, asked)
    assert solution.outcome.tolist() == [Outcome.UNCERTIFIED] * 4
    with pytest.raises(ArithmeticError, match=r"4 UNCERTIFIED .*float64.*float32 reached .*1e-09"):
        solution.raise_if_failed()
    with pytest.raises(ArithmeticError, match="UNCERTIFIED"):
        flow.sample(4, generator(), asked)
    assert copy.deepcopy(flow).double().inverse(z.double(), asked).converged.all()
    assert flow.inverse(z).converged.all()  # nothing asked, nothing failed


def test_outcomes_of_one_batch_are_their_own() -> None:
    """Only what converged can be uncertified; a bound that is not a number certifies nothing."""
    zeros = torch.zeros(4)
    outcome = torch.tensor([0, 0, Outcome.DIVERGED, 0], dtype=torch.int8)
    bound = torch.tensor([1e-6, 1e-2, torch.inf, torch.nan])
    solution = Solution(zeros, zeros, zeros.long(), outcome, bound).demand(1e-3)
    assert solution.outcome.tolist() == [0, 4, 3, 4]
    with pytest.raises(ValueError, match="needs an `error_bound`"):
        Solution(zeros, zeros, zeros.long(), outcome).demand(1e-3)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MultiScale(n_scales=0), "n_scales of at least 1; got 0"),
        (lambda: MultiScale(hidden=(4,)), "one kernel size more"),
        (lambda: image_flow((1, 6, 6), replace(SMALL, n_scales=3)), r"multiples .*= 4; got"),
        (lambda: image_flow((6, 6), SMALL), "needs an event"),
        (lambda: ResidualFlow([ActNorm(2)], (2, 0)), "event of at least 1; got 0"),
        (lambda: sample_grid(mlp_flow(2, 0.5), 1, 1), "needs a flow of images"),
        (
            lambda: ResidualFlow([ActNorm(1)], (1, 2, 2)).log_prob(torch.zeros(3, 1, 2, 2)),
            "End its layers with Flatten",
        ),
        (
            lambda: mlp_flow(2, 0.5).inverse(torch.zeros(1, 2), Inversion(error=1e-3), False),
            "needs a certificate",
        ),
    ],
)
def test_nonsense_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
