"""The suites that train: their numbers from dense algebra, their resumption, skips and pictures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import reference
import torch
from click.testing import CliRunner
from made_up import SUITES

import suites
from resflow_bench.analysis.findings import findings
from resflow_bench.analysis.rules import AtLeast
from resflow_bench.analysis.tables import axes, wide
from resflow_bench.analysis.verdicts import judge
from resflow_bench.architectures import linear_flow
from resflow_bench.cli import cli
from resflow_bench.data import density_named
from resflow_bench.flows import ResidualBlock
from resflow_bench.lab import (
    Cell,
    Context,
    Grid,
    Observation,
    Preset,
    Result,
    Skip,
    Suite,
    pack,
    unpack,
)
from resflow_bench.lab.plan import Plan, begin
from resflow_bench.lab.store import COLUMNS, PICTURE, REPLICATES, Store, merge
from resflow_bench.lab.sweep import sweep
from resflow_bench.logdet import Fixed, LogDetEstimator, Rademacher
from resflow_bench.models.catalogue import held_out
from resflow_bench.report.page import write_report
from resflow_bench.training import weights
from suites import trained as training_of_suites
from suites.density import measure as measure_density
from suites.density.measure import density_recipe
from suites.training_gap import measure as measure_training
from suites.training_gap.measure import gap_recipe

FLOW = {"dataset": "checkerboard", "architecture": "mlp", "lipschitz": 0.9, "device": "cpu"}
FIXED = {"truncation": "fixed", "n_terms": 1}
ROULETTE = {"truncation": "roulette", "roulette": "geometric(0.3)", "n_exact": 4}
ONE_PROBE = {"probe": "rademacher", "n_probes": 1}
EFFORT = {
    **{"n_points": 6, "max_draws": 3000, "half_width": 0.05, "n_grid": 60, "n_samples": 50},
    **{"n_copies": 0, "n_times": 0},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


def gap_cell(truncation: dict = FIXED, **changed: object) -> Cell:
    settings = {**FLOW, **ONE_PROBE, **truncation, "step": 12, "dtype": "float64", **changed}
    return Cell("training_gap", settings)  # type: ignore[arg-type]


def density_cell(**changed: object) -> Cell:
    return Cell("density", {**FLOW, "step": 12, "dtype": "float32", **changed})  # type: ignore[arg-type]


def observe(cell: Cell, results: Path, seed: int = 0, **effort: int) -> dict[str, Observation]:
    """Metric -> observation of one cell."""
    context = Context(seed=seed, effort=EFFORT | effort, results=results)
    return {o.metric: o for o in suites.load(cell.suite).measure(cell, context)}


def flow_and_points(cell: Cell, results: Path, n: int) -> tuple[torch.nn.Module, torch.Tensor]:
    recipe = gap_recipe(cell) if cell.suite == "training_gap" else density_recipe(cell)
    flow = weights.trained(recipe, results, print, cell["step"])
    flow.align()
    return flow.double().requires_grad_(False), held_out(cell["dataset"], n).double()


def jacobian_of(function, x: torch.Tensor) -> np.ndarray:
    """By autograd, example by example."""
    one = torch.autograd.functional.jacobian
    return np.stack([one(lambda v: function(v[None])[0], row).numpy() for row in x])


def log_probs(flow: torch.nn.Module, x: torch.Tensor, sign: float = 1.0) -> np.ndarray:
    """ln N(f(x); 0, I) + ln|det df/dx|, the Jacobian of the whole flow by autograd."""
    z = flow(x)
    base = -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))
    return base.numpy() + sign * np.linalg.slogdet(jacobian_of(flow, x))[1]


def test_the_gap_is_that_of_the_jacobians(results: Path) -> None:
    """Every number of a cell from autograd's Jacobians; the gap of two terms is told from one's.

    99 % intervals stretched to four standard errors; they see a gap of 1e-4 bit/dim.
    """
    cell = gap_cell()
    seen = observe(cell, results)
    flow, x = flow_and_points(cell, results, 6)
    bits = 1 / (2 * math.log(2))
    exact = log_probs(flow, x).mean() * bits
    assert seen["log_prob_exact"].value == pytest.approx(exact, abs=1e-9)
    with torch.no_grad():
        blocks = [(b.branch, v) for b, v in flow.inputs(x) if isinstance(b, ResidualBlock)]
    jacobians = [jacobian_of(branch, v) for branch, v in blocks]

    def expected(n_terms: int) -> float:
        each = (np.trace(reference.series(j, n_terms)) - reference.log_det(j)
                for block in jacobians for j in block)  # fmt: skip
        return bits * sum(each) / 6

    gap = seen["gap"]
    assert seen["gap_expected"].value == pytest.approx(expected(1), rel=1e-9)
    reach = 4 / 2.576 * (gap.ci_high - gap.value)
    assert abs(gap.value - expected(1)) <= reach
    assert abs(gap.value - expected(2)) > reach  # the twin
    bound = 8 * reference.log_tail(0.9, 1) / math.log(2)
    assert seen["gap_bound"].value == pytest.approx(bound, rel=1e-9)
    norms = [np.linalg.norm(j, 2) for block in jacobians for j in block]
    assert seen["norm_realised"].value == pytest.approx(max(norms))
    assert max(norms) <= seen["lipschitz_certified"].value <= 0.9 * (1 + 1e-6)
    for name, truth in (("objective", exact + expected(1)), ("unbiased", exact)):
        found = seen[f"log_prob_{name}"]
        assert abs(found.value - truth) <= 4 / 2.576 * (found.ci_high - found.value)
        assert found.ci_high - found.value <= 0.05 * 1.2


def test_a_roulette_has_no_gap(results: Path) -> None:
    seen = observe(gap_cell(ROULETTE), results)
    gap = seen["gap"]
    assert abs(gap.value) <= 4 / 2.576 * (gap.ci_high - gap.value)
    assert seen["gap_expected"].value == seen["gap_bound"].value == 0.0


class Killed(BaseException):
    """What nothing on the way may catch."""


def test_a_training_that_was_killed_goes_on_to_the_same_numbers(tmp_path, monkeypatch) -> None:
    """Cells on the way see what they would have seen alone, and so do those after the kill."""
    cells = [gap_cell(step=step) for step in (6, 3)]
    context = Context(0, EFFORT, tmp_path / "killed")
    heard: list[str] = []

    def say(message: str) -> None:
        heard.append(message)
        if len(heard) == 5:
            raise Killed

    monkeypatch.setattr(weights, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    with pytest.raises(Killed):
        measure_training.prepare_gaps(cells, Context(0, EFFORT, context.results, say))
    assert "step 3/3" in heard[2]  # the shortest first
    assert "step 5/6" in heard[4]
    assert heard[4].endswith("by fixed(1)")
    heard.clear()
    heard.extend(["again"] * 5)
    measure_training.prepare_gaps(cells, Context(0, EFFORT, context.results, say))
    assert "step 6/6" in heard[5]
    n_steps = len(heard)
    for cell in cells:
        seen = observe(cell, context.results)
        assert observe(cell, tmp_path / f"alone-{cell['step']}") == seen
    measure_training.prepare_gaps(cells, Context(0, EFFORT, context.results, say))
    assert len(heard) == n_steps  # nothing was trained twice
    assert observe(cells[0], context.results) != observe(cells[1], context.results)


def test_what_cannot_be_trained_is_skipped(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RESFLOW_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(Skip, match="ends at step=2000; got step=2001"):
        observe(gap_cell(step=2001), tmp_path)
    for cell in (gap_cell(dataset="mnist"), density_cell(dataset="mnist")):
        with pytest.raises(Skip, match=r"mnist found no folder .*nowhere"):
            observe(cell, tmp_path)
    with pytest.raises(Skip, match=r"is for images .*got examples of shape"):
        observe(density_cell(architecture="conv"), tmp_path)
    for suite, cell in (("training_gap", gap_cell(step=2001)), ("density", None)):
        cell = cell or density_cell(dataset="mnist")  # noqa: PLW2901
        suites.load(suite).prepare([cell], Context(0, EFFORT, tmp_path))
    assert not list(tmp_path.glob("models/*"))


def test_a_density_is_exact_and_held_to_the_truth(results: Path) -> None:
    """ln p from autograd's Jacobian of the whole flow; p on the grid integrates to one.

    With the log-det's sign turned, neither would hold.
    """
    cell = density_cell(dataset="moons")
    seen = observe(cell, results, n_points=40)
    flow, x = flow_and_points(cell, results, 40)
    mine = log_probs(flow, x)
    # The flow is measured with its float32 parameters, aligned in float32.
    assert seen["log_prob"].value == pytest.approx(mine.mean(), abs=1e-5)
    assert abs(log_probs(flow, x, sign=-1.0).mean() - mine.mean()) > 1e-2
    assert seen["log_prob"].standard_error == pytest.approx(mine.std(ddof=1) / 40**0.5, rel=1e-4)
    bits = seen["bits_per_dim"]
    assert bits.value == pytest.approx(-mine.mean() / (2 * math.log(2)), abs=1e-5)
    assert bits.ci_low < bits.value < bits.ci_high
    true = density_named("moons").log_prob(x).numpy()
    assert seen["log_prob_true"].value == pytest.approx(true.mean())
    divergence = seen["divergence"]
    assert divergence.value == pytest.approx((true - mine).mean(), abs=1e-5)
    assert divergence.standard_error == pytest.approx((true - mine).std(ddof=1) / 40**0.5, rel=1e-4)

    assert seen["log_prob"].picture is not None
    arrays = unpack(seen["log_prob"].picture)
    area = (2 * float(arrays["reach"]) / 60) ** 2
    assert arrays["true"].sum() * area == pytest.approx(1.0, abs=1e-3)
    # The square cuts the tails of a flow that is hardly trained.
    assert 0.9 < arrays["learned"].sum() * area < 1.0
    row, column = 20, 45  # y and x
    ticks = float(arrays["reach"]) * (2 * np.arange(60) + 1 - 60) / 60
    point = torch.tensor([[ticks[column], ticks[row]]])
    assert arrays["learned"][row, column] == pytest.approx(np.exp(log_probs(flow, point)[0]), 1e-4)
    assert arrays["samples"].shape == (50, 2)


@pytest.mark.parametrize("n_terms", [None, 1])
def test_in_many_dimensions_the_density_is_an_unbiased_estimate(
    results, monkeypatch, n_terms
) -> None:
    """|z| < 4 over 6 seeds, and no dense Jacobian; with one term, the named twin, |z| > 4.

    Of a linear flow, whose J is not small: one term is off by a quarter of a nat and more.
    """
    flow = linear_flow("symmetric", 2, 0.9)
    monkeypatch.setattr(training_of_suites, "trained", lambda *_: flow)
    cell = density_cell()
    exact = observe(cell, results)["log_prob"].value
    monkeypatch.setattr(measure_density, "MAX_EXACT_DIM", 1)
    if n_terms is not None:
        twin = LogDetEstimator(Rademacher(), Fixed(n_terms))
        monkeypatch.setattr(measure_density, "finite_moments_estimator", lambda *_, **__: twin)
    seen = [observe(cell, results, seed, n_grid=2, n_samples=1) for seed in range(6)]
    assert "unbiased estimate" in seen[0]["log_prob"].message
    assert "norm_realised" not in seen[0]
    off = np.array([o["log_prob"].value for o in seen]) - exact
    z = abs(off.mean()) / (off.std(ddof=1) / 6**0.5)
    assert 0 < z < 4 if n_terms is None else z > 4


def test_images_show_samples_beside_test_images(results: Path) -> None:
    cell = density_cell(dataset="digits", step=1)
    seen = observe(cell, results, n_points=4)
    arrays = unpack(seen["log_prob"].picture or b"")
    for name in ("data", "samples"):
        assert arrays[name].shape == (1, 4 * 8, 6 * 8)
        assert arrays[name].dtype == np.uint8
    third = held_out("digits", 3)[2, 0].numpy()  # of the first row
    assert np.abs(arrays["data"][0, :8, 16:24] - 255 * third).max() <= 0.51
    assert "divergence" not in seen
    assert seen["bits_per_dim"].value == pytest.approx(
        math.log2(17) - seen["log_prob"].value / (64 * math.log(2))
    )


# --- pictures in the store


def draw(cell: Cell, context: Context) -> tuple[Observation, ...]:
    """Two metrics, a picture on the first; none in the second cell."""
    picture = pack(square=np.full((2, 2), cell["dim"])) if cell["dim"] < 2 else None
    return Observation("a", 1.0, "1", picture=picture), Observation("b", 2.0, "1")


GRID = Grid({"dim": (1, 2), "device": ("cpu",)})
DRAWN = Suite("drawn", "?", ("dim", "device"), {"smoke": Preset((GRID,))}, draw, has_pictures=True)


def test_a_picture_comes_back_from_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plan = Plan((DRAWN,), "smoke")
    run = begin(plan, store)
    sweep(plan, run)
    frame = run.frame("drawn")
    assert list(frame) == [*COLUMNS, "dim", "device", REPLICATES, PICTURE]
    assert axes(frame) == ["dim", "device"]
    assert frame[PICTURE].notna().tolist() == [True, False, False, False]
    assert unpack(frame[PICTURE][0])["square"].tolist() == [[1, 1], [1, 1]]
    plain = pd.read_parquet(run.path / "drawn")
    assert plain[PICTURE][0] == frame[PICTURE][0]
    cells = wide(frame)
    assert cells[PICTURE][0] == frame[PICTURE][0]
    assert pd.isna(cells[PICTURE][1])
    assert axes(cells) == ["dim", "device"]

    arguments = ["show", run.name, "--results", str(tmp_path), "--format"]
    for layout in ("table", "csv", "json"):
        shown = CliRunner().invoke(cli, [*arguments, layout])
        assert shown.exit_code == 0
        assert "drawn" in shown.output or layout == "table"
        assert PICTURE not in shown.output
    page = write_report({"drawn": frame}, [], tmp_path / "report", {})
    assert PICTURE not in (page.parent / "tables" / "drawn.csv").read_text()


def test_rows_from_before_pictures_are_read_beside_new_ones(tmp_path: Path) -> None:
    """A part without the column, as an older version wrote it, in the same run and in another."""
    store = Store(tmp_path)
    plan = Plan((DRAWN,), "smoke")
    old, new = begin(plan, store), begin(plan, store)
    sweep(plan, new)
    cells = plan.cells(DRAWN)
    before = Suite("drawn", "?", DRAWN.axes, DRAWN.presets, draw)
    old.append(before, Result(cells[0], "ok", draw(cells[0], Context(0, {}, tmp_path))))
    old.flush()
    (part,) = (old.path / "drawn").glob("*")
    assert PICTURE not in pq.read_table(part).column_names
    assert PICTURE not in old.frame("drawn")
    assert PICTURE not in wide(old.frame("drawn"))
    merged = merge([old, new])["drawn"]
    assert merged[PICTURE].notna().sum() == 1
    assert merge([new, old])["drawn"][PICTURE].notna().sum() == 0  # of a cell, the last rows count
    sweep(plan, old)  # resumed: the missing cell, with the column
    frame = old.frame("drawn")
    assert len(frame) == 4
    assert axes(frame) == ["dim", "device"]


# --- words and figures


def rows(suite: str, *cells: dict[str, object]) -> pd.DataFrame:
    """A long frame; a metric is a number or (value, half-width), all else is an axis."""
    lines = []
    for index, cell in enumerate(cells):
        metrics = {k: v for k, v in cell.items() if isinstance(v, tuple)}
        own = {k: v for k, v in cell.items() if k not in metrics}
        common = {"suite": suite, "cell": str(index), "status": "ok", "message": "", "n": 100}
        for metric, (value, half) in metrics.items():
            interval = {"standard_error": half / 2.576}
            interval |= {"ci_low": value - half, "ci_high": value + half}
            lines.append(common | interval | {"metric": metric, "value": value, "unit": "1"} | own)
    return pd.DataFrame(lines)


def test_at_least_is_at_most_of_the_negatives() -> None:
    cells = [{"dataset": "moons", "divergence": (value, 0.1)} for value in (0.5, -0.5, 0.05, -0.05)]
    judged = judge({"density": rows("density", *cells)}, SUITES)
    assert judged["verdict"].tolist() == ["holds", "violated", "undecided", "undecided"]
    assert judged["detail"][0] == "0.50 [0.40, 0.60], at least 0"
    assert AtLeast("divergence", 0.0).metrics == ("divergence",)


def gap_rows() -> pd.DataFrame:
    cells = []
    for k in (0.7, 0.97):
        for step in (100, 300):
            for n_terms in (1.0, 2.0, math.nan):
                gap = 0.0 if math.isnan(n_terms) else k * step / 1000 / n_terms**3
                exact = -1.4 + step / 1000
                settings = {"n_terms": n_terms, "roulette": None, "truncation": "fixed"}
                if math.isnan(n_terms):
                    settings = ROULETTE | {"n_terms": n_terms}
                cells.append(
                    {**FLOW, "lipschitz": k, "step": step, **settings}
                    | {"log_prob_objective": (exact + gap, 0.01), "gap": (gap, 0.001)}
                    | {"log_prob_unbiased": (exact, 0.01), "log_prob_exact": (exact, 0.0)}
                    | {"gap_expected": (gap, 0.0), "gap_bound": (5.0 * bool(gap), 0.0)}
                )
    return rows("training_gap", *cells)


def test_a_training_s_gap_is_judged_told_and_drawn(tmp_path: Path) -> None:
    frame = gap_rows()
    judged = judge({"training_gap": frame}, SUITES)
    assert judged["statement"].value_counts().to_dict() == {
        "gap as expected": 12,
        "gap within bound": 8,
        "no gap with a roulette": 4,
    }
    assert set(judged["verdict"]) == {"holds"}
    (said,) = findings({"training_gap": frame}, SUITES)
    assert said.startswith("Trained for 300 steps on checkerboard at K = 0.97 with 1 term, ")
    assert "0.2910 [0.2900, 0.2920] bit/dim" in said
    assert "log-likelihood at −0.8090 bit/dim, and the exact value is −1.100." in said
    assert "With a roulette the largest gap of 4 cells is 0.0000 [−0.0010, 0.0010]" in said
    page = write_report({"training_gap": frame}, [], tmp_path, SUITES)
    assert page.read_text(encoding="utf-8").count("<figure") == 2  # two figures in two widths


def test_pictures_are_drawn(results: Path, tmp_path: Path) -> None:
    """And the true density stands beside the learned one, on one scale of colours."""
    from suites.density.figures import images, planes

    square = np.arange(4.0).reshape(2, 2)
    plane = pack(learned=square, true=2 * square, samples=np.zeros((3, 2)), reach=2.0)
    blank = np.zeros((1, 8, 8), np.uint8)
    sheet = pack(samples=blank, data=blank, tiles=np.array([2, 2]))
    common = {"architecture": "mlp", "lipschitz": 0.9, "step": 100, "bits_per_dim": (2.0, 0.1)}
    cells = [
        common | {"dataset": "moons", "log_prob": (-3.0, 0.1), "divergence": (0.5, 0.1)},
        common | {"dataset": "moons", "log_prob": (-2.0, 0.1), "divergence": (0.1, 0.1)},
        common | {"dataset": "digits", "log_prob": (90.0, 1.0)},
    ]
    frame = rows("density", *cells)
    shown = {"0": pack(learned=square), "1": plane, "2": sheet}
    first = ~frame["cell"].duplicated()
    frame[PICTURE] = [shown[c] if f else None for c, f in zip(frame["cell"], first, strict=True)]
    for columns in (1, 3):
        drawn = planes(wide(frame), columns)
        assert drawn is not None
        pixels = [image for ax in drawn.axes for image in ax.get_images()]
        assert [np.asarray(p.get_array()).tolist() for p in pixels] == [
            (2 * square).tolist(),
            square.tolist(),
        ]
        assert {p.get_clim() for p in pixels} == {(0.0, 6.0)}
        assert "0.100 nat" in drawn.subfigs[0].get_suptitle()
        sheets = images(wide(frame), columns)
        assert sheets is not None
        assert len(sheets.axes) == 2
        for figure in (drawn, sheets):
            figure.draw_without_rendering()
            width, height = figure.get_size_inches()
            inside = figure.get_tightbbox()
            assert -0.02 <= inside.x0 < inside.x1 <= width + 0.02
            assert -0.02 <= inside.y0 < inside.y1 <= height + 0.02
    text = write_report({"density": frame}, [], tmp_path, SUITES).read_text(encoding="utf-8")
    assert text.count("<figure") == 2
    assert "data:image/png;base64" in text
    assert planes(wide(frame.drop(columns=PICTURE)), 3) is None
