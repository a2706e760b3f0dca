"""The suites measure what they say: against dense algebra, at values that no preset lists."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import reference
import torch

import suites
import suites.bias
from resflow_bench.architectures import LINEAR_FAMILIES, architecture_named, family_matrix
from resflow_bench.flows import ToTolerance
from resflow_bench.intervals import median_interval
from resflow_bench.lab import Cell, Context, Failure, Skip
from resflow_bench.layers import LinearBranch, mlp_branch
from resflow_bench.models import build_flow, build_problem
from resflow_bench.models import catalogue as models
from resflow_bench.speed import timing
from resflow_bench.speed.clock import YARDSTICK_S, SteadyClock
from suites.inverse.measure import solved_by_newton

EFFORT = {"n_points": 4, "max_draws": 6000, "half_width": 0.02, "seconds": 0.05}


def observe(suite: str, results: Path, seed: int = 0, **axes: object) -> dict:
    """Metric -> observation of one cell."""
    defaults = {"dim": 8, "lipschitz": 0.83, "dtype": "float64", "device": "cpu"}
    cell = Cell(suite, {**defaults, **axes})  # type: ignore[arg-type]
    context = Context(seed=seed, effort=EFFORT, results=results)
    return {o.metric: o for o in suites.load(suite).measure(cell, context)}


def fixed(n_terms: int = 7, n_probes: int = 3, probe: str = "gaussian") -> dict:
    return {"truncation": "fixed", "n_terms": n_terms, "probe": probe, "n_probes": n_probes}


def roulette(law: str, n_exact: int = 2, n_probes: int = 3, probe: str = "gaussian") -> dict:
    settings = {"truncation": "roulette", "roulette": law, "n_exact": n_exact}
    return {**settings, "probe": probe, "n_probes": n_probes}


def near(observation, expected: float) -> bool:
    """Within the 99 % interval stretched from 2.58 to 4 standard errors, and 1e-12."""
    stretch, value = 4 / 2.576, observation.value
    low = value - stretch * (value - observation.ci_low)
    high = value + stretch * (observation.ci_high - value)
    return low - 1e-12 <= expected <= high + 1e-12


@pytest.mark.parametrize("model", LINEAR_FAMILIES)
@pytest.mark.parametrize("probe", ["gaussian", "rademacher"])
def test_bias_and_variance_of_known_jacobians(tmp_path, model, probe) -> None:
    """Expected values against dense float64 algebra to 1e-9; measured ones within |z| < 4 of them.

    Whether the 99 % intervals cover is the next test's question.
    """
    matrix = family_matrix(model, 8, 0.83).numpy()
    exact = reference.log_det(matrix)
    series = reference.series(matrix, 7)
    bias = observe("bias", tmp_path, model=model, **fixed(probe=probe))
    expected = np.trace(series) - exact
    assert bias["log_det_exact"].value == pytest.approx(exact, abs=1e-9)
    assert bias["bias_expected"].value == pytest.approx(expected, abs=1e-9)
    assert bias["bias_bound"].value == pytest.approx(8 * reference.log_tail(0.83, 7), rel=1e-9)
    assert near(bias["bias"], expected)
    assert near(bias["bias_paired"], expected)
    widths = [o.ci_high - o.ci_low for o in (bias["bias"], bias["bias_paired"])]
    assert widths[1] <= widths[0]
    assert abs(expected) <= bias["bias_bound"].value * (1 + 1e-9)
    assert bias["norm_realised"].value == pytest.approx(0.83)

    variance = observe("variance", tmp_path, model=model, **fixed(probe=probe))
    fourth_moment = {"gaussian": 3.0, "rademacher": 1.0}[probe]
    expected = reference.fourth_order_variance(series, fourth_moment) / 3
    assert variance["variance_expected"].value == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert near(variance["variance"], expected)
    frobenius = 2 / 3 * np.linalg.norm(series) ** 2
    assert variance["variance_bound"].value == pytest.approx(frobenius)
    assert expected <= frobenius * (1 + 1e-9)
    assert frobenius <= variance["variance_bound_lipschitz"].value * (1 + 1e-9)
    printed = 2 * sum(1 / k for k in range(1, 8)) * math.sqrt(8) / 3
    assert variance["variance_bound_printed"].value == pytest.approx(printed)


def test_measured_intervals_cover(tmp_path) -> None:
    """60 seeds of five cells: at most 20 of the 900 intervals at 99 % miss (P < 1 in 1,000 if each
    covers at 99 %); a bias that is off by 0.05 nat is missed by most. At d = 2 with one Rademacher
    probe the estimate takes two values, and its squares hardly vary.
    """
    missed = twin_missed = 0
    for seed in range(60):
        for model, settings in (
            ("gaussian", fixed(3, 1)),
            ("symmetric", {**fixed(4, 1, "rademacher"), "dim": 2}),
            ("orthogonal", fixed(5, 2, "rademacher")),
            ("gaussian", roulette("geometric(0.3)", 2, 1)),
            ("minus-identity", roulette("geometric(0.2)", 1, 2)),
        ):
            axes = {"dim": 5, "model": model, "lipschitz": 0.61, **settings}
            bias = observe("bias", tmp_path, seed, **axes)
            variance = observe("variance", tmp_path, seed, **axes)
            for observation, truth in (
                (bias["bias"], bias["bias_expected"].value),
                (bias["bias_paired"], bias["bias_expected"].value),
                (variance["variance"], variance["variance_expected"].value),
            ):
                missed += not observation.ci_low <= truth <= observation.ci_high
            if settings["truncation"] == "fixed" and model == "gaussian":
                wrong = bias["bias_expected"].value + 0.05
                twin_missed += not bias["bias"].ci_low <= wrong <= bias["bias"].ci_high
    assert missed <= 20
    assert twin_missed > 50


def test_roulette_variance_of_a_known_jacobian(tmp_path) -> None:
    """The closed form by enumeration over N and all values of the probe, d = 3."""
    matrix = family_matrix("gaussian", 3, 0.7).numpy()
    seen = observe(
        "variance", tmp_path, model="gaussian", dim=3, lipschitz=0.7,
        **roulette("geometric(0.25)", 1, 1, "rademacher"),
    )  # fmt: skip

    def survival(k: np.ndarray) -> np.ndarray:
        return 0.75 ** np.maximum(np.asarray(k) - 1, 0)

    expected = reference.roulette_variance(matrix, survival, "rademacher")
    assert seen["variance_expected"].value == pytest.approx(expected, rel=1e-6)
    assert seen["variance_is_finite"].value == 1.0


def test_infinite_variance_is_said(tmp_path) -> None:
    axes = {"model": "minus-identity", "lipschitz": 0.9}
    for law in ("poisson(2)", "geometric(0.5)"):
        variance = observe("variance", tmp_path, **axes, **roulette(law))
        assert variance["variance_is_finite"].value == 0.0
        assert variance["variance_expected"].value == math.inf
        assert variance["variance"].ci_high == math.inf
        assert "infinite variance" in variance["variance"].message
        assert math.isfinite(variance["variance_reachable"].value)
        bias = observe("bias", tmp_path, **axes, **roulette(law))
        assert bias["bias"].ci_low == -math.inf
        assert "infinite variance" in bias["bias"].message
    nilpotent = observe("variance", tmp_path, model="triangular", **roulette("poisson(2)"))
    assert nilpotent["variance_is_finite"].value == 1.0
    assert nilpotent["variance"].ci_high < math.inf


def test_a_flow_adds_its_blocks(tmp_path) -> None:
    """On the untrained flow: expected bias and variance from the blocks' own Jacobians."""
    axes = {"model": "init", "dim": 6, "lipschitz": 0.9}
    cell = Cell("bias", {**axes, "dtype": "float64", "device": "cpu"})
    problem = build_problem(cell, tmp_path, 4)
    assert [matrices.shape for matrices in problem.jacobians] == [(4, 6, 6)] * 8
    bias = observe("bias", tmp_path, **axes, **fixed(2, 1))
    traces = [[np.trace(reference.series(j, 2)) - reference.log_det(j) for j in matrices]
              for matrices in problem.jacobians]  # fmt: skip
    assert bias["bias_expected"].value == pytest.approx(np.sum(traces) / 4, abs=1e-12)
    assert bias["bias"].ci_low <= bias["bias_expected"].value <= bias["bias"].ci_high
    variance = observe("variance", tmp_path, **axes, **fixed(2, 1))
    sums = [[reference.fourth_order_variance(reference.series(j, 2), 3.0) for j in matrices]
            for matrices in problem.jacobians]  # fmt: skip
    assert variance["variance_expected"].value == pytest.approx(np.sum(sums) / 4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("model", ["minus-identity", "gaussian", "init"])
def test_inverse_errors_respect_their_bounds(tmp_path, model, dtype) -> None:
    for axes in (
        {"tolerance": 1e-4, "max_steps": 5000},
        {"tolerance": 0.0, "max_steps": 3},
        {"tolerance": 0.0, "max_steps": 60},
    ):
        seen = observe("inverse", tmp_path, model=model, dtype=dtype, **axes)
        assert seen["error_over_bound"].value <= 1.0
        assert seen["inverse_error"].value <= seen["inverse_error_bound"].value
        if axes["tolerance"]:
            assert seen["outcome"].value == 0
            assert seen["n_steps"].value <= seen["n_steps_bound"].value
        else:
            assert seen["inverse_error"].value <= seen["inverse_error_banach"].value


def test_steps_stay_within_banachs_count_where_the_rate_is_attained(tmp_path) -> None:
    """The iterates of -K x grow on the way: the relative tolerance is met by a smaller norm."""
    for dtype in ("float32", "float64"):
        axes = {"dim": 1, "lipschitz": 0.99, "dtype": dtype, "tolerance": 1e-3, "max_steps": 5000}
        seen = observe("inverse", tmp_path, model="minus-identity", **axes)
        assert 100 < seen["n_steps"].value <= seen["n_steps_bound"].value


def test_a_constant_that_rounds_to_one_fails_the_cell(tmp_path) -> None:
    axes = {"lipschitz": 0.99999999, "dtype": "float32", "tolerance": 1e-3, "max_steps": 10}
    with pytest.raises(Failure, match=r"lipschitz=0\.99999999 is 1 or more once rounded"):
        observe("inverse", tmp_path, model="minus-identity", **axes)


def test_a_row_says_why_its_draws_ended(tmp_path) -> None:
    """Asked for 0.1 nat, a Gaussian map takes some hundreds of draws; for 0.02, all there are."""
    axes = {"model": "gaussian", **fixed(3, 1)}
    cell = Cell("bias", {"dim": 8, "lipschitz": 0.83, "dtype": "float64", "device": "cpu", **axes})
    for half_width, words in ((0.1, "as narrow as asked"), (0.001, "budget spent")):
        context = Context(0, EFFORT | {"half_width": half_width}, tmp_path)
        bias, *_ = suites.load("bias").measure(cell, context)
        assert bias.message.startswith(words)
        assert (bias.n < 6000) == (half_width == 0.1)
        if half_width == 0.1:
            assert (bias.ci_high - bias.ci_low) / 2 == pytest.approx(0.1, rel=0.2)


def test_lipschitz_constants_are_ordered(tmp_path) -> None:
    for model in (*LINEAR_FAMILIES, "init"):
        seen = observe("lipschitz", tmp_path, model=model, dtype="float32")
        order = ["spectral_radius", "lipschitz_realised", "lipschitz_certified"]
        values = [seen[metric].value for metric in [*order, "lipschitz_promised"]]
        assert all(a <= b * (1 + 1e-6) for a, b in pairwise(values))


@pytest.mark.parametrize("operation", ["log_prob", "train_step", "sample"])
def test_throughput_counts(tmp_path, operation) -> None:
    seen = observe(
        "throughput", tmp_path, model="init", dtype="float32", batch_size=32,
        operation=operation, **fixed(4, 1, "rademacher"),
    )  # fmt: skip
    wall = seen["wall_s"]
    assert 0 < wall.ci_low <= wall.value <= wall.ci_high
    assert seen["examples_per_s"].value == pytest.approx(32 / wall.value)
    assert seen["peak_bytes"].value > 0
    assert 0 < seen["spectral_radius"].value <= seen["norm_realised"].value < 0.83
    assert 0 < seen["flops_fraction"].value < 1


def test_flops_and_bytes_of_a_known_call() -> None:
    """A 100 x 200 by 200 x 50 product is 2e6 FLOP; three tensors, two alive at a time."""
    a, b = torch.ones(100, 200), torch.ones(200, 50)
    assert timing.count_flops(lambda: a @ b) == 2 * 100 * 200 * 50

    def three() -> None:
        first = a + 1
        second = first + 1
        del first
        second + 1

    assert timing.peak_bytes(three, "cpu") == 2 * a.nbytes


def test_numbers_depend_on_the_cell_and_the_seed_alone(tmp_path) -> None:
    axes = {"model": "gaussian", **fixed(2, 1)}
    first = observe("bias", tmp_path, **axes)["bias"]
    observe("bias", tmp_path, **{**axes, "n_terms": 3})
    assert observe("bias", tmp_path, **axes)["bias"] == first
    assert observe("bias", tmp_path, seed=1, **axes)["bias"].value != first.value


def test_trained_weights_exist_at_one_dim_only(tmp_path) -> None:
    with pytest.raises(Skip, match="dim=64; got dim=8"):
        observe("lipschitz", tmp_path, model="trained")


def test_models_take_dtype_and_promise(tmp_path) -> None:
    cell = Cell(
        "bias", {"model": "init", "dim": 4, "lipschitz": 0.7, "dtype": "float32", "device": "cpu"}
    )
    flow = build_flow(cell, tmp_path)
    assert next(flow.parameters()).dtype == torch.float32
    assert max(block.branch.lipschitz_certified() for block in flow.blocks) <= 0.7


@pytest.mark.parametrize("name", suites.NAMES)
def test_presets_grow_and_suites_say_what_they_answer(name) -> None:
    suite = suites.load(name)
    sizes = [len(suite.cells(preset)) for preset in ("smoke", "quick", "full")]
    assert 0 < sizes[0] < sizes[1] < sizes[2]
    assert suite.question.endswith("?")


@pytest.mark.parametrize("name", suites.NAMES)
def test_every_suite_has_an_asv_class(name) -> None:
    """Its first CPU cell: set up twice (the second time from the cache), timed, tracked."""
    class_name = name.title().replace("_", "")
    benchmark = getattr(__import__(f"suites.{name}", fromlist=["x"]), class_name)()
    times = [method for method in dir(benchmark) if method.startswith("time_")]
    tracks = [method for method in dir(benchmark) if method.startswith("track_")]
    assert times
    assert tracks
    for _ in range(2):
        benchmark.setup(benchmark.params[0])
    getattr(benchmark, times[0])(benchmark.params[0])
    tracked = getattr(benchmark, tracks[0])(benchmark.params[0])
    samples = tracked["samples"] if isinstance(tracked, dict) else [tracked]
    assert np.isfinite(samples).all()
    if not torch.cuda.is_available() and name == "throughput":
        with pytest.raises(NotImplementedError, match="CUDA"):
            benchmark.setup("log_prob-cuda")


def test_a_steady_clock_counts_in_yardsticks_on_a_cpu_alone(monkeypatch) -> None:
    """A machine at half its speed: the yardstick takes twice as long, and so does a call."""
    for slowdown in (1.0, 2.0):
        times = iter([0.0, slowdown * YARDSTICK_S, 1.0, 1.0 + 3.0 * slowdown])
        monkeypatch.setattr("resflow_bench.speed.clock.timer", lambda times=times: next(times))
        clock = SteadyClock()
        clock.calibrate(torch.device("cpu"))
        start = clock()
        assert clock() - start == pytest.approx(3.0)
    monkeypatch.setattr("resflow_bench.speed.clock.timer", lambda: 7.0)
    clock.calibrate(torch.device("cuda"))
    assert clock() == 7.0


def test_the_clock_is_calibrated_before_every_timed_call(monkeypatch) -> None:
    """asv calls `setup` before each; one that did not would count in another moment's seconds."""
    calibrated = []
    monkeypatch.setattr(suites.bias.Bias.clock, "calibrate", calibrated.append)
    benchmark = suites.bias.Bias()
    for _ in range(3):
        benchmark.setup(benchmark.params[0])
    assert calibrated == [torch.device("cpu")] * 3
    assert suites.bias.Bias.timer is suites.bias.Bias.clock


def test_a_tracked_accuracy_that_is_not_finite_fails(monkeypatch) -> None:
    """asv would file a NaN as skipped, and a diverged model would go unseen."""
    benchmark = suites.bias.Bias()
    benchmark.setup(benchmark.params[0])
    monkeypatch.setattr(benchmark, "measure", lambda cell, seed: {"bias": math.nan})
    with pytest.raises(ArithmeticError, match=r"bias of bias .* is not finite"):
        benchmark.track_bias(benchmark.params[0])


def test_median_interval_is_what_throughput_reports() -> None:
    samples = np.arange(1.0, 102.0)
    interval = median_interval(samples)
    assert interval.value == 51.0
    assert interval.low < 51.0 < interval.high


def test_a_call_is_timed_on_one_thread_and_on_all() -> None:
    """Each count is in force while its calls run, and the old one is back afterwards."""
    before = torch.get_num_threads()
    seen: set[int] = set()
    try:
        torch.set_num_threads(2)
        times = timing.timings(lambda: seen.add(torch.get_num_threads()), "cpu", 0.01)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(times) == seen == {1, 2}
    assert all(len(taken) >= timing.MIN_TIMES for taken in times.values())


def test_architectures_of_images_say_so() -> None:
    for name in ("conv", "multiscale"):
        with pytest.raises(ValueError, match=rf"{name} is for images .* shape \(2,\). Take mlp"):
            architecture_named(name)((2,), 0.9)


@pytest.mark.parametrize("model", ["conv", "multiscale"])
def test_the_suites_take_flows_on_images(tmp_path, monkeypatch, model) -> None:
    """Positive weights, at their promise, in the place of trained ones; blocks of two sizes.

    What the blocks' Jacobians say is held to the Jacobian of the whole flow, and every suite to its
    own truth.
    """

    def strong(recipe, results, say):
        flow = recipe.flow()
        flow.initialise(models.held_out("digits", 64))
        for block in flow.blocks:
            for layer in block.branch.layers:
                layer.weight.data.abs_().mul_(8)
        return flow

    monkeypatch.setattr(models, "trained", strong)
    monkeypatch.setattr(models, "published", lambda *_: None)
    axes = {"model": model, "dim": 64, "lipschitz": 0.9}
    cell = Cell("bias", {**axes, "dtype": "float64", "device": "cpu"})
    problem = build_problem(cell, tmp_path, 2)
    x = problem.x[:1]
    whole = torch.autograd.functional.jacobian(problem.flow, x).reshape(64, 64)
    assert problem.log_det[0] == pytest.approx(torch.linalg.slogdet(whole).logabsdet.item())
    assert {matrices.shape[-1] for matrices in problem.jacobians} == (
        {64} if model == "conv" else {64, 32}
    )
    bias = observe("bias", tmp_path, **axes, **fixed(2, 1))
    assert bias["bias_paired"].ci_high < 0  # told from zero
    assert bias["bias_paired"].ci_low <= bias["bias_expected"].value <= bias["bias_paired"].ci_high
    assert abs(bias["bias_expected"].value) <= bias["bias_bound"].value
    variance = observe("variance", tmp_path, **axes, **fixed(2, 1))
    low, high = variance["variance"].ci_low, variance["variance"].ci_high
    assert low <= variance["variance_expected"].value <= high
    steps = {"tolerance": 0.0, "max_steps": 6, "dtype": "float64"}
    inverse = observe("inverse", tmp_path, **axes, **steps)
    error = inverse["inverse_error"].value
    assert 1e-6 < error <= inverse["inverse_error_banach"].value
    assert error <= inverse["inverse_error_bound"].value
    lipschitz = observe("lipschitz", tmp_path, **axes)
    assert lipschitz["lipschitz_realised"].value <= lipschitz["lipschitz_certified"].value <= 0.9


@pytest.mark.parametrize("lipschitz", [0.5, 0.99])
def test_the_truth_of_an_inverse_is_no_run_of_its_solver(lipschitz: float) -> None:
    """To float64's rounding, as a solve by LU of a linear g and a flow's own certificate confirm;
    the solver's answer, 100,000 steps of the same iteration, is further off.
    """
    gaussian = torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = -lipschitz * gaussian / torch.linalg.matrix_norm(gaussian, 2)
    z = torch.randn(16, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    linear = LinearBranch(matrix, lipschitz)
    expected = torch.linalg.solve(torch.eye(8, dtype=torch.float64) + matrix, z.mT).mT
    found = solved_by_newton(linear, z).value
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13 / (1 - lipschitz))

    branch = mlp_branch(8, (16,), lipschitz).double()
    solution = solved_by_newton(branch, z)
    assert solution.residual.max() < 1e-14
    by_steps = ToTolerance(max_steps=100_000)(branch, z)
    assert solution.residual.max() <= by_steps.residual.max()


def test_throughput_refuses_a_call_that_it_does_not_time(tmp_path) -> None:
    with pytest.raises(Skip, match="log_prob, train_step and sample are timed; got update"):
        observe("throughput", tmp_path, model="init", operation="update", batch_size=4,
                **fixed(4, 1, "rademacher"))  # fmt: skip
