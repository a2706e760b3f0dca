"""Error, code, refusals and time of `advise`; and that its choice follows from the numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from resflow_bench import theory
from resflow_bench.advise import Advice, Measured, advise, budget, contest, inspection
from resflow_bench.advise.budget import Budget
from resflow_bench.advise.settings import CONTEST, SEARCH
from resflow_bench.advise.source import constructor
from resflow_bench.architectures import linear_flow
from resflow_bench.flows import ActNorm, ResidualBlock, ResidualFlow
from resflow_bench.lab.progress import Progress
from resflow_bench.layers import LinearBranch, conv_branch, mlp_branch
from resflow_bench.logdet import (
    Arnoldi,
    Averaged,
    Controlled,
    Determinant,
    Estimator,
    Fixed,
    Geometric,
    Hadamard,
    LogDetEstimator,
    PerBranch,
    Rademacher,
    Roulette,
    Tabulated,
    Taylor,
    dense,
    exact_log_det,
)

TARGET = 0.02


class Ticking:
    """A clock that advances by the same tick in each timed call, and never in between.

    Inspection, tuning and computation take no time on it.
    """

    def __init__(self, tick: float) -> None:
        self.tick, self.seconds = tick, 0.0

    def elapsed(self, call: Callable[[], object], device: object) -> float:
        call()
        self.seconds += self.tick
        return self.tick

    def perf_counter(self) -> float:
        return self.seconds


@pytest.fixture(scope="module", autouse=True)
def clock() -> Iterator[Ticking]:
    ticking = Ticking(0.005)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contest, "elapsed", ticking.elapsed)
        patch.setattr(inspection, "elapsed", ticking.elapsed)
        patch.setattr(budget, "time", ticking)
        yield ticking


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flow_of(dim: int = 6, lipschitz: float = 0.8) -> ResidualFlow:
    """Two blocks of one hidden layer, with weights stretched up to the promised constant."""
    layers: list[torch.nn.Module] = []
    for seed in range(2):
        branch = mlp_branch(dim, (12,), lipschitz, generator=noise(seed))
        with torch.no_grad():
            for p in branch.parameters():
                p.mul_(4.0 if p.ndim == 2 else 1.0)
        layers += [ActNorm(dim), ResidualBlock(branch)]
    flow = ResidualFlow(layers, dim).double()
    flow.align()
    return flow.requires_grad_(False)


def points(n: int = 256, dim: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, dtype=torch.float64, generator=noise(seed))


def truth(flow: ResidualFlow, x: torch.Tensor) -> torch.Tensor:
    """From the whole Jacobian of the whole flow, by autograd."""
    rows = torch.func.vmap(torch.func.jacrev(lambda one: flow(one[None])[0]))(x)
    return torch.linalg.slogdet(rows).logabsdet


def rms(flow: ResidualFlow, estimator: Estimator, n_calls: int = 8) -> float:
    """Root mean square error of fresh draws at points that the advice has not seen."""
    x = points(seed=9)
    running, generator, exact = flow.with_estimator(estimator), noise(10), truth(flow, x)
    draws = torch.stack([running.forward_and_log_det(x, generator)[1] for _ in range(n_calls)])
    return float((draws - exact).square().mean().sqrt())


@pytest.fixture(scope="module")
def flow() -> ResidualFlow:
    return flow_of()


@pytest.fixture(scope="module")
def advice(flow: ResidualFlow, clock: Ticking) -> Advice:
    return advise(flow, points(), TARGET, seconds=1.5)


def run(code: str, flow: ResidualFlow, x: torch.Tensor) -> dict[str, Any]:
    names: dict[str, Any] = {"flow": flow, "x": x}
    exec(code, names)
    return names


# --- the promise


def test_an_effective_sample_size_is_an_error(flow: ResidualFlow) -> None:
    """exp(-s^2) = 0.9 at s = 0.3246: the Python surface, and its two refusals."""
    answer = advise(flow, points(64), target_ess=0.9, seconds=0.5)
    assert answer.target_error == pytest.approx(0.3246, abs=1e-4)
    for one in answer.measured:
        assert one.ess_expected >= 0.9 - 1e-9
        assert one.ess_expected == pytest.approx(np.exp(-(one.error_expected**2)))
    x, noisy = points(64), [one for one in answer.measured if one.variance > 0.0]
    assert noisy
    for one in noisy:
        running, generator = flow.with_estimator(one.estimator), noise(3)
        draws = torch.stack([running.forward_and_log_det(x, generator)[1] for _ in range(32)])
        weights = (draws - truth(flow, x)).exp()
        assert float(weights.mean() ** 2 / weights.square().mean()) > 0.87
    with pytest.raises(ValueError, match="one target"):
        advise(flow, points(8), 0.1, target_ess=0.9)
    with pytest.raises(ValueError, match="between 0 and 1"):
        advise(flow, points(8), target_ess=1.0)


def test_every_estimator_reaches_the_target(flow: ResidualFlow, advice: Advice) -> None:
    """One draw, where four or more are advised, does not: the twin that forgets `n_draws`."""
    cheap = [one for one in advice.measured if one.n_draws <= 32]
    assert len(cheap) >= 4
    assert any(one.n_draws > 1 for one in advice.measured)
    for one in cheap:
        error = rms(flow, one.estimator)
        assert error <= 1.2 * TARGET, one
        assert one.error_expected <= TARGET * (1 + 1e-9)
        if one.n_draws >= 4:
            assert isinstance(one.estimator, Averaged)
            assert rms(flow, one.estimator.estimator) > 1.2 * TARGET, "one draw would do"


def test_the_best_takes_least_time_and_n_is_the_least(advice: Advice) -> None:
    to_target = [one.n_draws * one.seconds for one in advice.measured]
    assert to_target[0] <= CONTEST.tie * min(to_target)
    assert to_target[1:] == sorted(to_target[1:])
    for one in advice.measured:
        assert abs(one.bias) <= 0.1 * TARGET
        assert one.bias**2 + one.variance / one.n_draws <= TARGET**2 * (1 + 1e-12)
        if one.n_draws > 1:
            assert one.bias**2 + one.variance / (one.n_draws - 1) > TARGET**2


def test_variances_are_those_of_the_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the plain fixed series at the same points; half of it, for two probes, is rejected."""
    monkeypatch.setattr(contest, "CONTEST", replace(CONTEST, first_examples=1000))
    flow, x = flow_of(), points(1000)
    measured = plain_fixed(advise(flow, x, TARGET, seconds=1.0))
    assert isinstance(measured.estimator, Averaged)
    one = measured.estimator.estimator
    assert isinstance(one, LogDetEstimator)
    assert isinstance(one.truncation, Fixed)
    expected = np.zeros(len(x))
    for layer, h in flow.inputs(x):
        if isinstance(layer, ResidualBlock):
            matrices = torch.func.vmap(torch.func.jacrev(lambda z, g=layer.branch: g(z[None])[0]))
            expected += one.truncation.variance(matrices(h).numpy(), Rademacher(), 1)
    # A quadratic form of signs has no more kurtosis than chi-squared with one degree of freedom.
    error = expected.mean() * (14 / (len(x) * (measured.n_calls - 1))) ** 0.5
    assert abs(measured.variance - expected.mean()) < 4 * error
    assert abs(measured.variance - expected.mean() / 2) > 4 * error
    assert measured.n_products == len(flow.blocks) * one.truncation.n_terms


# --- the code


def test_the_code_of_every_estimator_makes_it(flow: ResidualFlow, advice: Advice) -> None:
    x = points()
    for one in advice.measured:
        if one.n_draws > 200:
            continue
        names = run(one.code, flow, x)
        made, expected = names["estimator"], one.estimator
        if one.name.startswith("tuned"):
            if one.n_draws > 1:
                assert made.n_draws == expected.n_draws == one.n_draws
                made, expected = made.estimator, expected.estimator
            assert isinstance(made, PerBranch)
            assert isinstance(expected, PerBranch)
            assert list(made.estimators.values()) == list(expected.estimators.values())
        else:
            assert made == expected, one.name
        error = names["log_det"] - truth(flow, x)
        assert error.square().mean().sqrt() < 1.6 * TARGET  # 64 examples, one call
    assert advice.code == advice.best.code


def test_the_code_imports_each_name_once(advice: Advice) -> None:
    for one in advice.measured:
        first, second, *rest = one.code.splitlines()
        assert first == "import torch"
        assert second.startswith("from resflow_bench.logdet import ")
        assert not any("import" in line for line in rest)


def test_tuned_estimators_are_tried_where_time_allows() -> None:
    flow = ResidualFlow([ResidualBlock(mlp_branch(2, (4,), 0.5, generator=noise(0)))], 2)
    x = points(8, 2).float()
    names = [one.name for one in advise(flow, x, 0.1, seconds=1.5).measured]
    assert any(name.startswith("tuned, hadamard") for name in names), names
    short = advise(flow, x, 0.1, seconds=1e-3)
    assert len(short.measured) == 1
    assert not any(one.name.startswith("tuned") for one in short.measured)
    assert any(line.startswith("tuned, hadamard") for line in short.left_out)


def test_images_get_probes_and_a_control_of_their_own() -> None:
    """In the place of Hadamard's, in one of the two tuned candidates."""
    block = ResidualBlock(conv_branch(1, (4, 4), (3, 1, 3), (4, 4), 0.5, generator=noise(0)))
    flow, x = ResidualFlow([block], (1, 4, 4)), torch.randn(8, 1, 4, 4, generator=noise(1))
    advice = advise(flow, x, 0.01, seconds=3.0)
    names = [*(one.name for one in advice.measured), *advice.left_out]
    assert any(re.match("tuned, hierarchical, 1 traced, circulant", name) for name in names), names
    assert not any(re.match("tuned, hadamard", name) for name in names)


@pytest.mark.parametrize(
    "setting",
    [
        Determinant(),
        LogDetEstimator(Rademacher(), Fixed(3)),
        LogDetEstimator(Hadamard(), Roulette(Geometric(0.1), 2, "stratified"), 8, n_traced=1),
        LogDetEstimator(Rademacher(), Roulette(Tabulated((1.0, 0.5), 0.3), 1), expansion=Arnoldi()),
        LogDetEstimator(Rademacher(), Fixed(3), expansion=Controlled(Taylor(torch.bfloat16), 4)),
        Averaged(LogDetEstimator(Rademacher(), Fixed(3), products=dense), 4),
    ],
    ids=["determinant", "fixed", "stratified", "arnoldi", "controlled", "averaged"],
)
def test_a_setting_is_written_as_the_python_that_makes_it(setting: object) -> None:
    from resflow_bench import logdet

    names = {**vars(logdet), "torch": torch, "Averaged": Averaged}
    assert eval(constructor(setting), names) == setting


# --- the choice


def test_the_choice_follows_the_numbers_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that counts calls, two advices are equal; a tie goes to the determinant."""
    monkeypatch.setattr(contest, "CONTEST", replace(CONTEST, max_rounds=5))
    one, two = (advise(flow_of(), points(), TARGET, seconds=60.0) for _ in range(2))
    assert one.table.equals(two.table)
    assert one.code == two.code
    assert one.best.name == "determinant"
    assert one.measured[1].seconds_to_target == one.best.seconds_to_target


@pytest.mark.parametrize("tick", [0.02, 0.2])
def test_the_seconds_asked_are_kept(
    clock: Ticking, monkeypatch: pytest.MonkeyPatch, tick: float
) -> None:
    """To a third, the most expensive candidates left out if need be.

    The twin whose budget never gets smaller takes longer.
    """
    monkeypatch.setattr(clock, "tick", tick)
    start, seconds = clock.seconds, 2.0
    advice = advise(flow_of(), points(), TARGET, seconds)
    assert clock.seconds - start <= 1.3 * seconds
    assert advice.measured
    assert all(one.n_calls >= CONTEST.min_rounds for one in advice.measured)
    assert bool(advice.left_out) == (tick > 0.02)
    for line in advice.left_out:
        (needed,) = (int(n) for n in re.findall(r": give seconds=(\d+) or more", line))
        assert needed > seconds
    if tick > 0.02:
        patient = advise(flow_of(), points(), TARGET, 40.0)
        cheap = {one.name for one in advice.measured}
        assert cheap < {one.name for one in patient.measured}
        assert "determinant" in cheap, "one draw of it is known to be enough"
    monkeypatch.setattr(Budget, "left", property(lambda self: self.seconds))
    monkeypatch.setattr(contest, "CONTEST", replace(CONTEST, max_rounds=60))
    start = clock.seconds
    advise(flow_of(), points(), TARGET, seconds)
    assert clock.seconds - start > 1.3 * seconds


def test_unbiased_leaves_out_fixed_terms(advice: Advice) -> None:
    unbiased = advise(flow_of(), points(), TARGET, seconds=0.6, unbiased=True).measured
    assert {one.bias for one in unbiased} == {0.0}
    assert not [one.name for one in unbiased if one.name.startswith("fixed")]
    assert [one.name for one in advice.measured if one.name.startswith("fixed")]


def plain_fixed(advice: Advice) -> Measured:
    """A fixed number of terms with one Rademacher probe."""
    return next(
        one for one in advice.measured if re.fullmatch(r"fixed\(\d+\), rademacher", one.name)
    )


def n_terms(advice: Advice) -> int:
    """Terms of the candidates with a fixed number."""
    names = (re.match(r"fixed\((\d+)\)", one.name) for one in advice.measured)
    return next(int(name[1]) for name in names if name)


def test_fixed_terms_are_enough_for_the_bias_and_not_many_more() -> None:
    """For J = -K I, where the bias equals its bound."""
    flow = linear_flow("minus-identity", 4, 0.5)
    n = n_terms(advise(flow, points(16, 4), TARGET, seconds=0.6))
    assert theory.truncation_bias_bound(0.5, 4, n) <= 0.1 * TARGET
    assert theory.truncation_bias_bound(0.5, 4, n - 1) > 0.1 * TARGET


def test_large_blocks_are_held_to_the_certified_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    """The constant requires more terms than a spectrum inside it."""
    flow, x = linear_flow("gaussian", 4, 0.5), points(16, 4)
    seen = n_terms(advise(flow, x, TARGET, seconds=0.2))
    monkeypatch.setattr(inspection, "SEARCH", replace(SEARCH, max_dense=3))
    bounded = n_terms(advise(flow, x, TARGET, seconds=0.2))
    assert theory.truncation_bias_bound(0.5, 4, bounded) <= 0.1 * TARGET
    assert bounded > seen


def test_a_gradient_is_timed_where_it_is_requested() -> None:
    flow = flow_of().requires_grad_(True)
    advice = advise(flow, points(), TARGET, seconds=0.6, gradient=True)
    expected = 2 * (n_terms(advice) + 2)  # two more for Neumann's gradient, in each block
    assert plain_fixed(advice).n_products == expected
    assert all(p.grad is None for p in flow.parameters())


def test_the_listener_hears_each_step_and_the_seconds_left() -> None:
    heard: list[Progress] = []
    advise(flow_of(), points(), TARGET, 0.6, listen=heard.append)
    assert {"inspecting the flow", "determinant"} <= {progress.message for progress in heard}
    assert all(progress.seconds_left >= 0.0 for progress in heard)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target_error": 0.0}, "positive target_error; got 0.0"),
        ({"target_error": float("nan")}, "positive target_error"),
        ({"seconds": -1.0}, "positive seconds"),
        ({"x": points(4, 5)}, r"shape \(B, 6\).*got \(4, 5\)"),
        ({"x": points(0)}, "B >= 1"),
        ({"x": points() / 0.0}, "finite x; got .* rows that are not"),
        ({"gradient": True}, "requires_grad_"),
        ({"flow": ResidualFlow([ActNorm(6)], 6)}, "residual block"),
        ({"flow": flow_of().float(), "x": points().float(), "target_error": 1e-9}, "float64"),
    ],
)
def test_unusable_arguments_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        advise(**{"flow": flow_of(), "x": points(), "seconds": 0.1, **change})


def test_one_dimension_has_an_answer() -> None:
    """A probe of one sign is exact there: no variance to divide by."""
    matrix = torch.full((1, 1), -0.5, dtype=torch.float64)
    flow = ResidualFlow([ResidualBlock(LinearBranch(matrix, 0.5))], 1)
    advice = advise(flow, torch.randn(64, 1, dtype=torch.float64), TARGET, 0.3)
    assert advice.best.variance == 0


# --- the mean of draws


def test_an_average_is_the_mean_of_independent_draws() -> None:
    """Its variance is 1/n of a draw's, the twin's, the same draw n times, is not. To 4 %."""
    matrix = 0.3 * torch.randn(4, 4, dtype=torch.float64, generator=noise(1))
    one = LogDetEstimator(Rademacher(), Fixed(6))
    x = points(4000, 4)
    four = Averaged(one, 4)(lambda z: z @ matrix.T, x, noise(2))
    same = one(lambda z: z @ matrix.T, x, noise(2))
    expected = float(one.truncation.variance(matrix.numpy(), Rademacher(), 1)) / 4
    error = expected * (6 / len(x)) ** 0.5
    assert abs(float(four.value.var()) - expected) < 4 * error
    assert abs(float(same.value.var()) - expected) > 4 * error
    assert four.n_products == 4 * same.n_products
    generator = noise(2)
    draws = [one(lambda z: z @ matrix.T, x, generator).value for _ in range(4)]
    torch.testing.assert_close(four.value, torch.stack(draws).mean(0))
    with pytest.raises(ValueError, match="n_draws of at least 1; got 0"):
        Averaged(one, 0)


def test_an_average_has_the_gradient_of_its_draws() -> None:
    """The determinant's gradient is reproduced exactly, with unequal weights per example."""
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x, weights = points(5, 3), torch.arange(5.0, dtype=torch.float64)
    value = Averaged(Determinant(), 3)(lambda z: scale * z.sin(), x).value
    (ours,) = torch.autograd.grad((weights * value).sum(), scale)
    exact = (weights[:, None] * x.cos() / (1 + 0.5 * x.cos())).sum()
    torch.testing.assert_close(ours, exact)
    assert torch.allclose(value, exact_log_det(lambda z: scale * z.sin(), x))


def test_a_measured_estimator_counts_all_its_draws() -> None:
    one = LogDetEstimator(Rademacher(), Fixed(3))
    lines = ("estimator = 0",)
    measured = Measured(Averaged(one, 5), "x", lines, 0.001, 0.04, 6.0, 5, 1e-4, 8, 9)
    assert measured.seconds_to_target == pytest.approx(5e-4)
    assert measured.error_expected == pytest.approx((1e-6 + 0.008) ** 0.5)
    assert "Averaged(estimator, n_draws=5)" in measured.code
