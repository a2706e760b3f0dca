"""What `advise` promises: the error, the code, the refusals; and that it chooses by the numbers."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from resflow_bench import theory
from resflow_bench.advise import advice, ways
from resflow_bench.advise.advice import Advice, Measured, advise
from resflow_bench.advise.source import constructor
from resflow_bench.architectures import linear_flow
from resflow_bench.cli import main
from resflow_bench.flows import ActNorm, ResidualBlock, ResidualFlow
from resflow_bench.layers import mlp_branch
from resflow_bench.logdet import (
    Arnoldi,
    Controlled,
    Determinant,
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
from resflow_bench.logdet.averaged import Averaged

TARGET = 0.02


class Ticking:
    """A clock that only timed calls move, and each by as much: what else a machine does is nothing.

    What is looked at, tuned and computed between the calls takes no time on it.
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
        patch.setattr(advice, "elapsed", ticking.elapsed)
        patch.setattr(ways, "elapsed", ticking.elapsed)
        patch.setattr(ways, "time", ticking)
        yield ticking


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flow_of(dim: int = 6, lipschitz: float = 0.8) -> ResidualFlow:
    """Two blocks of one hidden layer, whose weights are stretched to what they promise."""
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


def rms(flow: ResidualFlow, estimator: object, n_calls: int = 8) -> float:
    """Of fresh draws, at points that the advice has not seen."""
    x = points(seed=9)
    running, generator, exact = flow.with_estimator(estimator), noise(10), truth(flow, x)  # type: ignore[arg-type]
    draws = torch.stack([running.forward_and_log_det(x, generator)[1] for _ in range(n_calls)])
    return float((draws - exact).square().mean().sqrt())


@pytest.fixture(scope="module")
def flow() -> ResidualFlow:
    return flow_of()


@pytest.fixture(scope="module")
def found(flow: ResidualFlow, clock: Ticking) -> Advice:
    return advise(flow, points(), TARGET, seconds=1.5)


def run(code: str, flow: ResidualFlow, x: torch.Tensor) -> dict[str, object]:
    names: dict[str, object] = {"flow": flow, "x": x}
    exec(code, names)
    return names


# --- the promise


def test_every_way_reaches_the_error_that_was_asked(flow: ResidualFlow, found: Advice) -> None:
    """And one draw, where it takes four or more, does not: what an advice without n would be."""
    cheap = [way for way in found.ways if way.n_draws <= 32]
    assert len(cheap) >= 4
    assert any(way.n_draws > 1 for way in found.ways)
    for way in cheap:
        error = rms(flow, way.estimator)
        assert error <= 1.2 * TARGET, way
        assert way.error_expected <= TARGET * (1 + 1e-9)
        if way.n_draws >= 4:
            assert isinstance(way.estimator, Averaged)
            assert rms(flow, way.estimator.estimator) > 1.2 * TARGET, "one draw would do"


def test_the_best_takes_least_time_and_n_is_the_least(found: Advice) -> None:
    to_target = [way.n_draws * way.seconds for way in found.ways]
    assert to_target[0] <= advice.TIE * min(to_target)
    assert to_target[1:] == sorted(to_target[1:])
    for way in found.ways:
        assert abs(way.bias) <= 0.1 * TARGET
        assert way.bias**2 + way.variance / way.n_draws <= TARGET**2 * (1 + 1e-12)
        if way.n_draws > 1:
            assert way.bias**2 + way.variance / (way.n_draws - 1) > TARGET**2


def test_variances_are_those_of_the_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the plain fixed series at the very points; that of two probes, half of it, is not."""
    monkeypatch.setattr(advice, "FEW", 1000)
    flow, x = flow_of(), points(1000)
    ways = advise(flow, x, TARGET, seconds=1.0).ways
    way = next(w for w in ways if re.fullmatch(r"fixed\(\d+\), rademacher", w.name))
    assert isinstance(way.estimator, Averaged)
    one = way.estimator.estimator
    assert isinstance(one, LogDetEstimator)
    expected = np.zeros(len(x))
    for layer, h in flow.inputs(x):
        if isinstance(layer, ResidualBlock):
            matrices = torch.func.vmap(torch.func.jacrev(lambda z, g=layer.branch: g(z[None])[0]))
            expected += one.truncation.variance(matrices(h).numpy(), Rademacher(), 1)
    # A quadratic form of signs has no more kurtosis than chi-squared with one degree of freedom.
    error = expected.mean() * (14 / (len(x) * (way.n_calls - 1))) ** 0.5
    assert abs(way.variance - expected.mean()) < 4 * error
    assert abs(way.variance - expected.mean() / 2) > 4 * error
    assert way.n_products == len(flow.blocks) * one.truncation.n_terms  # type: ignore[attr-defined]


# --- the code


def test_the_code_of_every_way_makes_what_was_measured(flow: ResidualFlow, found: Advice) -> None:
    x = points()
    for way in found.ways:
        if way.n_draws > 200:
            continue
        names = run(way.code, flow, x)
        made, meant = names["estimator"], way.estimator
        if way.name.startswith("tuned"):
            if way.n_draws > 1:
                assert made.n_draws == meant.n_draws  # type: ignore[attr-defined]
                made, meant = made.estimator, meant.estimator  # type: ignore[attr-defined]
            assert isinstance(made, PerBranch)
            assert isinstance(meant, PerBranch)
            assert list(made.estimators.values()) == list(meant.estimators.values())
        else:
            assert made == meant, way.name
        error = names["log_det"] - truth(flow, x)  # type: ignore[operator]
        assert error.square().mean().sqrt() < 1.6 * TARGET  # 64 examples, one call
    assert found.code == found.best.code


def test_tuned_ways_are_tried_where_time_allows() -> None:
    flow = ResidualFlow([ResidualBlock(mlp_branch(2, (4,), 0.5, generator=noise(0)))], 2)
    x = points(8, 2).float()
    names = [way.name for way in advise(flow, x, 0.1, seconds=1.5).ways]
    assert any(name.startswith("tuned, hadamard") for name in names), names
    short = advise(flow, x, 0.1, seconds=1e-3)
    assert len(short.ways) == 1
    assert not any(way.name.startswith("tuned") for way in short.ways)
    assert any(line.startswith("tuned, hadamard") for line in short.left_out)


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
    """With a clock that counts calls, two advices are one; and a tie goes to the determinant."""
    monkeypatch.setattr(advice, "MAX_ROUNDS", 5)
    one, two = (advise(flow_of(), points(), TARGET, seconds=60.0) for _ in range(2))
    assert one.table.equals(two.table)
    assert one.code == two.code
    assert one.best.name == "determinant"
    assert one.ways[1].seconds_to_target == one.best.seconds_to_target


@pytest.mark.parametrize("tick", [0.02, 0.2])
def test_the_seconds_asked_are_kept(
    clock: Ticking, monkeypatch: pytest.MonkeyPatch, tick: float
) -> None:
    """To a third, with the dearest left out if need be; a clock that stands still keeps nothing."""
    monkeypatch.setattr(clock, "tick", tick)
    start, seconds = clock.seconds, 2.0
    found = advise(flow_of(), points(), TARGET, seconds)
    assert clock.seconds - start <= 1.3 * seconds
    assert found.ways
    assert all(way.n_calls >= advice.MIN_ROUNDS for way in found.ways)
    assert bool(found.left_out) == (tick > 0.02)
    for line in found.left_out:
        (needed,) = (int(n) for n in re.findall(r": give seconds=(\d+) or more", line))
        assert needed > seconds
    if tick > 0.02:
        patient = advise(flow_of(), points(), TARGET, 40.0)
        cheap = {way.name for way in found.ways}
        assert cheap < {way.name for way in patient.ways}
        assert "determinant" in cheap, "whose one draw is known to do"
    monkeypatch.setattr(ways.Allowance, "left", property(lambda self: self.seconds))
    monkeypatch.setattr(advice, "MAX_ROUNDS", 60)
    start = clock.seconds
    advise(flow_of(), points(), TARGET, seconds)
    assert clock.seconds - start > 1.3 * seconds


def test_unbiased_leaves_out_what_is_biased(found: Advice) -> None:
    ways = advise(flow_of(), points(), TARGET, seconds=0.6, unbiased=True).ways
    assert {way.bias for way in ways} == {0.0}
    assert not [way.name for way in ways if way.name.startswith("fixed")]
    assert [way.name for way in found.ways if way.name.startswith("fixed")]


def n_terms(found: Advice) -> int:
    (first, *_) = (int(m[1]) for w in found.ways if (m := re.match(r"fixed\((\d+)\)", w.name)))
    return first


def test_fixed_terms_are_enough_for_the_bias_and_not_many_more() -> None:
    """Of J = -K I, whose bias is the bound."""
    flow = linear_flow("minus-identity", 4, 0.5)
    found = advise(flow, points(16, 4), TARGET, seconds=0.6)
    n = n_terms(found)
    assert theory.truncation_bias_bound(0.5, 4, n) <= 0.1 * TARGET
    assert theory.truncation_bias_bound(0.5, 4, n - 1) > 0.1 * TARGET


def test_large_blocks_are_held_to_the_certified_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which asks for more terms than a spectrum that is inside it."""
    flow, x = linear_flow("gaussian", 4, 0.5), points(16, 4)
    seen = n_terms(advise(flow, x, TARGET, seconds=0.2))
    monkeypatch.setattr(ways, "MAX_DENSE", 3)
    bounded = n_terms(advise(flow, x, TARGET, seconds=0.2))
    assert theory.truncation_bias_bound(0.5, 4, bounded) <= 0.1 * TARGET
    assert bounded > seen


def test_a_gradient_is_timed_where_one_is_wanted() -> None:
    flow = flow_of().requires_grad_(True)
    found = advise(flow, points(), TARGET, seconds=0.6, gradient=True)
    way = next(w for w in found.ways if re.match(r"fixed\(\d+\), rademacher", w.name))
    assert way.n_products == 2 * (n_terms(found) + 2), "Neumann's two more, in each block"
    assert all(p.grad is None for p in flow.parameters())


def test_it_says_how_far_it_is() -> None:
    heard: list[tuple[str, float]] = []
    advise(flow_of(), points(), TARGET, 0.6, listen=lambda doing, left: heard.append((doing, left)))
    assert {"a first look", "determinant"} <= {doing for doing, _ in heard}
    assert all(left >= 0.0 for _, left in heard)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target_error": 0.0}, "positive target_error; got 0.0"),
        ({"target_error": float("nan")}, "positive target_error"),
        ({"seconds": -1.0}, "positive seconds"),
        ({"x": points(4, 5)}, r"shape \(B, 6\).*got \(4, 5\)"),
        ({"x": points(0)}, "B >= 1"),
        ({"gradient": True}, "requires_grad_"),
        ({"flow": ResidualFlow([ActNorm(6)], 6)}, "residual block"),
        ({"flow": flow_of().float(), "x": points().float(), "target_error": 1e-9}, "float64"),
    ],
)
def test_what_cannot_be_advised_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        advise(**{"flow": flow_of(), "x": points(), "seconds": 0.1, **change})  # type: ignore[arg-type]


# --- the mean of draws


def test_an_average_is_the_mean_of_independent_draws() -> None:
    """Its variance is 1/n; that of n times one draw, the wrong twin, is not. n = 4000: 4 %."""
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
    """Of the determinant's, exactly; weights differ from example to example."""
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x, weights = points(5, 3), torch.arange(5.0, dtype=torch.float64)
    value = Averaged(Determinant(), 3)(lambda z: scale * z.sin(), x).value
    (ours,) = torch.autograd.grad((weights * value).sum(), scale)
    exact = (weights[:, None] * x.cos() / (1 + 0.5 * x.cos())).sum()
    torch.testing.assert_close(ours, exact)
    assert torch.allclose(value, exact_log_det(lambda z: scale * z.sin(), x))


# --- the command


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    monkeypatch.chdir(tmp_path)

    def call(words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["resflow-bench", "advise", *words.split()])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return call


SMALL = "--model minus-identity --dim 4 --lipschitz 0.5 --batch-size 16 --seconds 0.2"


def test_what_the_command_prints_can_be_pasted_and_run(call) -> None:
    code, out, err = call(f"{SMALL} --target-error 0.05")
    assert (code, err) == (0, "")
    head, start, rest = out.partition("from pathlib import Path\n")
    assert "seconds to target" in head
    assert "take " in head
    names: dict[str, object] = {}
    exec(start + rest, names)
    log_det = names["log_det"]
    assert isinstance(log_det, torch.Tensor)
    assert log_det.shape == (16,)
    assert float((log_det - 4 * np.log(0.5)).square().mean().sqrt()) < 1.2 * 0.05


def test_json_is_for_scripts(call) -> None:
    code, out, _ = call(f"{SMALL} --unbiased --gradient no --json")
    assert code == 0
    answer = json.loads(out)
    assert answer["best"] == answer["ways"][0]
    assert {"estimator", "bias", "variance", "n_draws", "seconds_to_target"} <= set(answer["best"])
    assert {way["bias"] for way in answer["ways"]} == {0.0}
    assert "with_estimator" in answer["code"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--model nope", ("`model`", "one of", "nope")),
        ("--model trained --dim 7", ("dim=64", "dim=7")),
        ("--lipschitz 1.5", ("`lipschitz`", "1.5")),
        ("--device nowhere", ("device", "nowhere", "this machine has")),
        ("--dtype bfloat16", ("float64", "bfloat16")),
        ("--target-error 0", ("--target-error", "positive", "0")),
        ("--seconds -1", ("--seconds", "positive", "-1")),
        ("--batch-size 0", ("`batch_size`", "0")),
        ("--gradient maybe", ("maybe",)),
        (f"{SMALL} --dtype float32 --target-error 1e-12", ("float64", "float32")),
    ],
)
def test_a_refusal_is_one_line(call, tmp_path: Path, words: str, said: tuple[str, ...]) -> None:
    code, out, err = call(words)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: .*\n", err), err
    assert all(word in err for word in said), err
    assert not list(tmp_path.iterdir())


def test_a_way_is_told_with_its_averages() -> None:
    one = LogDetEstimator(Rademacher(), Fixed(3))
    way = Measured(Averaged(one, 5), "x", ("estimator = 0",), 0.001, 0.04, 6.0, 5, 1e-4, 8, 9)
    assert way.seconds_to_target == pytest.approx(5e-4)
    assert way.error_expected == pytest.approx((1e-6 + 0.008) ** 0.5)
    assert "Averaged(estimator, n_draws=5)" in way.code
