"""How the cost of a log-prob grows: the fits, the counted work, a ladder on a made-up clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from made_up import SUITES, make_frames, rows, scaling_cells
from scipy import optimize

from resflow_bench.analysis.findings import findings
from resflow_bench.analysis.tables import wide
from resflow_bench.analysis.verdicts import judge
from resflow_bench.cli.choices import parse_assignment
from resflow_bench.lab import Cell, Context, Observation
from resflow_bench.speed import timing
from resflow_bench.speed.timing import Call, count_flops
from suites.scaling import measure as lab
from suites.scaling.figures import ladders

SMALL = {"dim": 6, "width": 10, "dtype": "float32", "device": "cpu"}
FIRST = {"n_terms": 3, "n_probes": 2, "batch_size": 4}
SIZES = np.array([20.0, 40.0, 80.0, 160.0])


def cell(grows: str, **other: object) -> Cell:
    return Cell("scaling", {**SMALL, **FIRST, "grows": grows, **other})  # type: ignore[arg-type]


def measured(asked: Cell, n_rounds: int = 60) -> dict[str, Observation]:
    context = Context(seed=0, effort={"n_rounds": n_rounds}, results=Path("results"))
    return {o.metric: o for o in lab.measure_scaling(asked, context)}


def clock(seconds_of: Callable[[float], float], noise: float = 0.1) -> Callable[..., float]:
    """An `elapsed` that takes `seconds_of` a call's FLOPs, times noise whose median is 1."""
    draw = np.random.default_rng(0)
    known: dict[Call, float] = {}

    def elapsed(call: Call, device: str = "cpu") -> float:
        if call not in known:
            known[call] = seconds_of(float(count_flops(call)))
        return known[call] * math.exp(noise * draw.standard_normal())

    return elapsed


@pytest.fixture
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MATMUL_SIZE", {"cpu": 32})


def noisy_rounds() -> np.ndarray:
    """5 rounds of seconds = 0.1 + 0.01 n, each rung off by some per cent."""
    noise = np.exp(0.2 * np.random.default_rng(1).standard_normal((5, 4)))
    return (0.1 + 0.01 * SIZES) * noise


def test_exponents_are_those_of_regressions_in_logarithms() -> None:
    """Against the closed form cov/var; the twin that regresses the seconds themselves is off."""
    seconds = noisy_rounds()
    x, y = np.log(SIZES), np.log(seconds)
    slopes = ((x - x.mean()) * (y - y.mean(1, keepdims=True))).sum(1) / ((x - x.mean()) ** 2).sum()
    found = lab.exponents(SIZES, seconds)
    assert found == pytest.approx(slopes, rel=1e-9)
    assert np.polyfit(SIZES, seconds.T, 1)[0] != pytest.approx(slopes, rel=0.5)


def test_straight_lines_weigh_relative_errors() -> None:
    """Against scipy's least squares of (a + b n)/s - 1; the twin without weights is off."""
    seconds = noisy_rounds()
    found = lab.straight_lines(SIZES, seconds)
    twin = np.polyfit(SIZES, seconds.T, 1)[::-1].T
    for (a, b), s in zip(found, seconds, strict=True):
        fit = optimize.least_squares(
            lambda ab, s=s: (ab[0] + ab[1] * SIZES) / s - 1.0, [0.1, 0.01], xtol=1e-14, ftol=1e-14
        )
        assert (a, b) == pytest.approx(tuple(fit.x), rel=1e-5)
    assert np.abs(twin / found - 1).max() > 0.05


@pytest.mark.parametrize("grows", FIRST)
def test_the_work_is_a_constant_and_a_slope(grows: str) -> None:
    """FLOPs of rungs at 1, 2, 4, 8: f(8) - f(4) = 2 (f(4) - f(2)) = 4 (f(2) - f(1)), exactly; in
    the twin, the hidden width and d together, they are not.
    """

    def increments(names: tuple[str, ...]) -> list[float]:
        asked = {**SMALL, **FIRST}
        each = []
        for factor in lab.FACTORS:
            rung = cell(grows, **{name: asked[name] * factor for name in names})
            each.append(count_flops(lab.build_log_prob(lab.build_sized_flow(rung), rung, 0)))
        steps = np.diff(each)
        return list(steps / steps[0])

    assert increments((grows,)) == [1.0, 2.0, 4.0]
    assert increments(("dim", "width"))[2] > 10.0


@pytest.mark.parametrize("grows", FIRST)
@pytest.mark.usefixtures("small_products")
def test_a_ladder_finds_the_law_of_its_clock(grows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 ms and 1 ns a FLOP: constant, slope and share within their 99 % intervals and these within
    15 %; the twin of no constant is outside.
    """
    monkeypatch.setattr(lab, "elapsed", clock(lambda flops: 1e-3 + 1e-9 * flops))
    found = measured(cell(grows))
    flops = [
        count_flops(lab.build_log_prob(lab.build_sized_flow(rung), rung, 0))
        for rung in (cell(grows, **{grows: FIRST[grows] * n}) for n in lab.FACTORS)
    ]
    slope = (flops[3] - flops[0]) / (7 * FIRST[grows])
    truth = {
        "marginal_s": 1e-9 * slope,
        "overhead_s": 1e-3 + 1e-9 * (flops[0] - slope * FIRST[grows]),
        "wall_s_8": 1e-3 + 1e-9 * flops[3],
        "flops_fraction": flops[3] / (1e-3 + 1e-9 * flops[3]) * (1e-3 / (2 * 32**3) + 1e-9),
    }
    for metric, value in truth.items():
        o = found[metric]
        assert o.ci_low <= value <= o.ci_high, metric
    assert found["overhead_s"].ci_low > 0.5e-3
    share = found["flops_fraction"]
    assert share.ci_high - share.ci_low < 0.3 * share.value
    assert not share.ci_low <= 1.0 <= share.ci_high
    assert found["exponent_flops"].value <= 1.0 + 1e-12
    assert found["exponent"].value < found["exponent_flops"].value


def frame(grows: str) -> pd.DataFrame:
    asked = cell(grows)
    lines = [
        {"suite": "scaling", "cell": asked.id, "status": "ok", **vars(o), **asked.axes}
        for o in measured(asked).values()
    ]
    columns = ["suite", "cell", "status", "message", "metric", "value", "unit", "standard_error"]
    return pd.DataFrame(lines)[[*columns, "ci_low", "ci_high", "n", *asked.axes]]


@pytest.mark.usefixtures("small_products")
def test_a_cost_that_is_not_linear_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear seconds hold; their twin that grows as the work to the power 1.2 is violated."""
    verdicts = {}
    for power in (1.0, 1.2):
        monkeypatch.setattr(lab, "elapsed", clock(lambda flops, p=power: (1e-9 * flops) ** p))
        lines = judge({"scaling": frame("batch_size")}, SUITES).set_index("statement")["verdict"]
        verdicts[power] = (
            lines["seconds no worse than linear"],
            lines["work no worse than linear"],
        )
    assert verdicts == {1.0: ("holds", "holds"), 1.2: ("violated", "holds")}


def test_more_work_than_linear_is_found_without_a_clock() -> None:
    """exponent_flops = 1 is shown; 1.0001, in the twin, is a violation, no matter of chance."""

    def twin() -> Iterator[tuple[dict, dict]]:
        for axes, metrics in scaling_cells():
            yield axes, {**metrics, "exponent_flops": 1.0001}

    for cells, verdict in ((scaling_cells(), "holds"), (twin(), "violated")):
        lines = judge({"scaling": rows("scaling", cells)}, SUITES)
        work = lines[lines["statement"] == "work no worse than linear"]
        assert set(work["verdict"]) == {verdict}


def test_the_faster_number_of_threads_is_taken_and_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for fast in (1, 2):
            monkeypatch.setattr(
                lab, "elapsed", lambda call, device, f=fast: 1.0 + (torch.get_num_threads() != f)
            )
            with lab.fastest_threads(lambda: None, "cpu") as n_threads:
                assert n_threads == torch.get_num_threads() == fast
            assert torch.get_num_threads() == 2
        with pytest.raises(KeyboardInterrupt), lab.fastest_threads(lambda: None, "cpu"):
            raise KeyboardInterrupt
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_ladder_on_a_gpu() -> None:
    found = measured(cell("n_terms", device="cuda"), n_rounds=10)
    assert found["wall_s_1"].ci_low > 0
    assert 0 < found["flops_fraction"].value < 1


def test_only_what_makes_a_ladder_grows() -> None:
    assert parse_assignment("grows=n_probes") == ("grows", ("n_probes",))
    with pytest.raises(ValueError, match="must be one of n_terms, n_probes, batch_size; got `dim`"):
        parse_assignment("grows=dim")


def test_a_panel_for_each_device_and_size() -> None:
    """Marks at the rungs; a dashed line of slope 1, which only it is if there is a constant."""
    figure = ladders(wide(make_frames()["scaling"]), 3)
    assert figure is not None
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    kinds = ("terms", "probes", "examples")
    assert titles == [f"{kind}, {device}" for device in ("cpu", "cuda") for kind in kinds]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["64 × 128", "64 × 1024", "without the constant"]
    marks, line, dashed = figure.axes[0].lines[:3]
    assert list(marks.get_xdata()) == [20, 40, 80, 160]
    assert list(marks.get_ydata()) == pytest.approx([0.012, 0.022, 0.042, 0.082])
    slopes = [
        np.diff(np.log(k.get_ydata())) / np.diff(np.log(k.get_xdata())) for k in (dashed, line)
    ]
    assert slopes[0] == pytest.approx(np.ones(49))
    assert slopes[1].max() < 0.99


def test_ladders_of_one_panel_have_names_of_their_own() -> None:
    cells = wide(make_frames()["scaling"]).query("device == 'cpu'")
    double = cells.assign(dtype="float64", cell=cells["cell"] + "double")
    figure = ladders(pd.concat([cells, double], ignore_index=True), 1)
    assert figure is not None
    figure.draw_without_rendering()
    assert figure.get_tightbbox().x1 <= figure.get_size_inches()[0] + 0.02  # on a phone too
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[:2] == ["64 × 128, float32", "64 × 1024, float32"]
    assert len(set(names)) == len(names) == 5


def test_the_widest_flow_is_said() -> None:
    (text,) = findings({"scaling": make_frames()["scaling"]}, SUITES)
    assert (
        "d = 64, h = 1,024 takes 2.00 [1.90, 2.10] ms and another 4.000 [3.990, 4.010] ms" in text
    )
    assert "each of its terms. At the largest number of them it runs at 80.0 [78.0, 82.0] %" in text
