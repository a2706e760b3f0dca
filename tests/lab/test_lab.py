"""Cells, the store and the sweep, on toy suites: what is asked is measured once and kept."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import toys

from resflow_bench.cli.choices import parse, parse_assignment
from resflow_bench.cli.group import this_machine
from resflow_bench.lab import Cell, Context, Grid, Observation, Preset, Result, Suite
from resflow_bench.lab.axes import AXES
from resflow_bench.lab.plan import Plan, begin, go_on
from resflow_bench.lab.provenance import provenance
from resflow_bench.lab.store import COLUMNS, Run, Store, StoreError, merge
from resflow_bench.lab.sweep import Tally, sweep


def run_of(plan: Plan, results: Path, jobs: int = 1) -> tuple[Run, Tally]:
    run = begin(plan, Store(results))
    return run, sweep(plan, run, jobs)


# --- axes and cells


def test_values_are_parsed_by_their_axis() -> None:
    assert parse_assignment("lipschitz=0.83,0.5") == ("lipschitz", (0.83, 0.5))
    assert parse_assignment("n_terms=7, 7,8") == ("n_terms", (7, 8))
    laws = ("geometric(0.5)", "poisson(2)")
    assert parse_assignment("roulette=geometric( .50 ),poisson(2.0)") == ("roulette", laws)


@pytest.mark.parametrize("name", AXES)
def test_an_axis_offers_a_value_that_it_takes(name: str) -> None:
    axis = AXES[name]
    assert axis.check(parse(axis, axis.example)) is None


@pytest.mark.parametrize(
    "text",
    [
        *("lipschitz=1.2", "lipschitz=0", "lipschitz=nan", "lipschitz=abc", "lipschitz="),
        *("n_terms=0", "n_terms=2.5", "dim=-1", "n_probes=0", "n_exact=-1", "tolerance=inf"),
        *("model=nope", "probe=cauchy", "dtype=int8", "device=nowhere", "device=meta"),
        *("roulette=geometric(1)", "roulette=geometric(x)", "roulette=poisson(inf)"),
        *("roulette=uniform(2)", "operation=none", "truncation=none", "nope=", "dim"),
    ],
)
def test_a_refusal_names_the_value_and_a_remedy(text: str) -> None:
    name, _, value = text.partition("=")
    with pytest.raises(ValueError, match=f"`{name}`") as refusal:
        parse_assignment(text)
    assert value in str(refusal.value)
    assert f"{name}=" in str(refusal.value) or "the axes are" in str(refusal.value)


def test_a_cell_is_known_by_its_axes_whatever_their_order_or_form() -> None:
    cell = Cell("bias", {"dim": 64, "lipschitz": 0.5})
    same = Cell("bias", {"lipschitz": 0.5, "dim": 64})
    assert cell == same
    assert {cell} == {same}
    # Pinned: results of years must go on matching.
    assert cell.id == "5bc0aecec12b"
    assert Cell("bias", {"lipschitz": 1}).id == Cell("bias", {"lipschitz": 1.0}).id
    assert len({cell.id, Cell("variance", cell.axes).id, Cell("bias", {"dim": 64}).id}) == 3
    assert cell.get("n_terms") is None
    assert str(cell) == "bias dim=64 lipschitz=0.5"


def test_seeds_depend_on_seed_cell_and_stream_alone() -> None:
    cell, other = Cell("bias", {"dim": 1}), Cell("bias", {"dim": 2})
    context = Context(0, {}, Path("a"))
    seeds = {
        context.generator_seed(cell),
        context.generator_seed(other),
        context.generator_seed(cell, "points"),
        Context(1, {}, Path("a")).generator_seed(cell),
    }
    assert len(seeds) == 4
    assert Context(0, {"n": 1}, Path("b")).generator_seed(cell) == context.generator_seed(cell)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_axes_that_do_not_exist_are_impossible() -> None:
    with pytest.raises(ValueError, match="no axis is called `speed`"):
        Cell("bias", {"speed": 1})
    with pytest.raises(ValueError, match="no axis is called `speed`"):
        Suite("s", "?", ("speed",), {}, toys.measure_rows)
    with pytest.raises(ValueError, match="must name every axis"):
        Suite("s", "?", ("dim",), {"smoke": Preset((Grid({"n_terms": (1,)}),))}, toys.measure_rows)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, {(1, 1, None), (2, 1, None), (9, None, "roulette")}),
        ({"dim": (3, 4)}, {(3, 1, None), (4, 1, None)}),
        ({"dim": (9,)}, {(9, 1, None), (9, None, "roulette")}),
        ({"n_terms": (5,)}, {(1, 5, None), (2, 5, None), (9, None, "roulette")}),
        ({"truncation": ("fixed",)}, {(1, 1, None), (2, 1, None)}),
        ({"n_exact": (4,)}, {(1, 1, None), (2, 1, None), (9, None, "roulette")}),
    ],
)
def test_overrides_replace_free_axes_and_select_by_pinned_ones(
    overrides: dict[str, tuple[int | str, ...]], expected: set[tuple[object, ...]]
) -> None:
    grids = (
        Grid({"dim": (1, 2), "n_terms": (1,)}),
        Grid({"n_exact": (3,)}, {"truncation": "roulette", "dim": 9}),
        Grid({"dim": (), "n_terms": (1,)}),  # asks for nothing, and --set dim does not wake it
    )
    suite = Suite("s", "?", ("dim", "n_terms", "n_exact", "truncation"),
                  {"smoke": Preset(grids)}, toys.measure_rows)  # fmt: skip
    cells = suite.cells("smoke", overrides)
    assert {(c["dim"], c.get("n_terms"), c.get("truncation")) for c in cells} == expected
    assert len(cells) == len(expected)


def test_a_plan_refuses_what_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match="no preset `full`"):
        Plan((toys.ROWS,), "full")
    with pytest.raises(ValueError, match="axis `probe` belongs to no suite"):
        Plan((toys.ROWS,), "smoke", {"probe": ("gaussian",)})
    preset = Preset((Grid({}, {"dim": 1}),))
    suite = Suite("rows", "?", ("dim",), {"quick": preset}, toys.measure_rows)
    with pytest.raises(ValueError, match="no cell of rows at preset `quick` has dim=7"):
        Plan((suite,), "quick", {"dim": (7,)})


# --- the store


def test_rows_have_the_contract_s_columns_and_types(tmp_path: Path) -> None:
    run, _ = run_of(Plan((toys.ROWS,), "quick"), tmp_path)
    frame = run.frame("rows")
    axes = dict.fromkeys(("dim", "n_terms", "n_exact"), "Int64")
    axes |= dict.fromkeys(("truncation", "device"), "string")
    expected = COLUMNS | axes | {"replicates": "object"}
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == expected
    pinned = frame[frame["truncation"] == "roulette"]
    assert pinned["n_terms"].isna().all()
    # Plain pandas reads the same rows, and what it writes in their place is taken.
    plain = pd.read_parquet(run.path / "rows")
    assert {name: str(kind) for name, kind in plain.dtypes.items()} == expected
    (part,) = (run.path / "rows").glob("*")
    plain.assign(value=0.0).to_parquet(part)
    assert set(run.frame("rows")["value"]) == {0.0}


def test_what_a_cell_became_is_in_its_rows(tmp_path: Path) -> None:
    run, tally = run_of(Plan((toys.MIXED,), "smoke"), tmp_path)
    frame = run.frame("mixed").set_index("n_terms")
    assert list(frame["status"]) == ["ok", "skipped", "failed", "failed", "failed"]
    assert frame["message"].to_dict() == {
        1: "",
        2: "does not apply",
        3: "did not converge",
        4: "ValueError: two lines",
        5: "ValueError: metric `nothing` is NaN; leave it out or raise Failure.",
    }
    assert list(frame["value"].isna()) == [False, True, True, True, True]
    assert list(frame["metric"]) == ["dim", "", "", "", ""]
    assert (len(tally.failed), len(tally.skipped)) == (3, 1)
    assert (tally.n_total, tally.n_done, tally.n_kept) == (5, 5, 0)


def test_the_last_part_of_a_cell_counts_and_the_others_can_be_dropped(tmp_path: Path) -> None:
    run = Store(tmp_path).create({"preset": "smoke"})
    one, two = Cell("rows", {"dim": 1}), Cell("rows", {"dim": 2})
    run.append(toys.ROWS, Result(one, "failed", message="first"))
    run.append(toys.ROWS, Result(two, "ok", (Observation("a", 2.0, "1"),)))
    run.flush()
    assert run.done() == {two.id}
    run.append(toys.ROWS, Result(one, "ok", tuple(Observation(m, 1.0, "1") for m in "ba")))
    run.flush()
    expected = [(1, "b", 1.0), (1, "a", 1.0), (2, "a", 2.0)]
    assert list(run.frame("rows")[["dim", "metric", "value"]].itertuples(index=False)) == expected
    assert len(pd.read_parquet(run.path / "rows")) == 4
    run.drop_superseded()
    assert list(run.frame("rows")[["dim", "metric", "value"]].itertuples(index=False)) == expected
    assert len(pd.read_parquet(run.path / "rows")) == 3
    assert run.done() == {one.id, two.id}


def test_a_part_that_was_not_finished_is_not_there(tmp_path: Path) -> None:
    run, _ = run_of(Plan((toys.ROWS,), "smoke"), tmp_path)
    before = run.frame("rows")
    (part,) = (run.path / "rows").glob("*")
    (run.path / "rows" / f".{part.name}.0.tmp").write_bytes(part.read_bytes()[:100])
    pd.testing.assert_frame_equal(run.frame("rows"), before)
    assert len(pd.read_parquet(run.path / "rows")) == len(before)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_part_is_named_and_nothing_is_lost(tmp_path: Path, damage: str) -> None:
    plan = Plan((toys.ROWS,), "smoke")
    run, _ = run_of(plan, tmp_path)
    before = run.frame("rows")
    (part,) = (run.path / "rows").glob("*")
    content = bytearray(part.read_bytes())
    if damage == "flipped":
        content[len(content) // 4] ^= 1
    elif damage == "foreign":
        pd.DataFrame({"a": [1]}).to_parquet(part)
        content = bytearray(part.read_bytes())
    part.write_bytes({"cut": content[:-50], "empty": b""}.get(damage, content))
    with pytest.raises(StoreError, match=f"{part.name}` is damaged .*--resume {run.name}"):
        run.frame("rows")
    with pytest.raises(StoreError, match="is damaged"):
        sweep(plan, run)
    part.rename(tmp_path / "away")  # the remedy that the message names
    sweep(plan, run)
    pd.testing.assert_frame_equal(run.frame("rows"), before)


def test_a_run_can_be_moved_and_merged(tmp_path: Path) -> None:
    small = Plan((toys.ROWS,), "smoke", {"dim": (1, 2)}, seed=0)
    other = Plan((toys.ROWS,), "smoke", {"dim": (2, 3)}, seed=1)
    (first, _), (second, _) = run_of(small, tmp_path / "a"), run_of(other, tmp_path / "b")
    both = merge([first, second])["rows"]
    assert sorted(both["dim"].unique()) == [1, 2, 3]
    latter = second.frame("rows")
    pd.testing.assert_frame_equal(
        both[both["dim"] == 2].reset_index(drop=True),
        latter[latter["dim"] == 2].reset_index(drop=True),
    )
    second.path.rename(tmp_path / "a" / "runs" / second.name)
    moved = Store(tmp_path / "a").open(second.name)
    pd.testing.assert_frame_equal(moved.frame("rows"), latter)
    assert [run.name for run in Store(tmp_path / "a").runs()] == [first.name, second.name]
    for part in moved.path.glob("rows/*"):  # parts of two runs may lie in one folder
        part.rename(first.path / "rows" / part.name)
    assert sorted(first.frame("rows")["dim"].unique()) == [1, 2, 3]


def test_a_folder_that_holds_nothing_says_how_to_fill_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "none")
    for ask in (store.runs, lambda: store.open("a")):
        with pytest.raises(StoreError, match=r"holds no run; measure one with `resflow-bench run`"):
            ask()
    assert not (tmp_path / "none").exists()
    run = Store(tmp_path).create({"preset": "smoke"})
    with pytest.raises(StoreError, match=f"no run called `b`; the newest there: {run.name}"):
        Store(tmp_path).open("b")
    with pytest.raises(StoreError, match="holds no rows of suite `bias`"):
        run.frame("bias")
    assert run.done() == set()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(StoreError, match="cannot be written"):
        Store(tmp_path / "file").create({"preset": "smoke"})
    assert (tmp_path / "file").read_text() == "kept"


def test_a_disk_that_takes_no_more_is_named(tmp_path: Path) -> None:
    """And the remedy is a command that can be pasted, whatever the folder's name."""
    run = Store(tmp_path / "a b").create({"preset": "smoke"})
    (run.path / "rows").write_text("in the way")
    run.append(toys.ROWS, Result(Cell("rows", {"dim": 1}), "failed"))
    with pytest.raises(StoreError, match=r"takes no more rows .*--resume .* '.*a b'`"):
        run.flush()


@pytest.mark.parametrize("content", ["", "[1]", '{"suites": ["rows"'])
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    run = Store(tmp_path).create({"preset": "smoke"})
    (run.path / "run.json").write_text(content)
    with pytest.raises(StoreError, match=r"run\.json"):
        _ = run.about
    assert Store(tmp_path).open(run.name).suites == []


def test_a_record_says_where_its_numbers_come_from(tmp_path: Path) -> None:
    plan = Plan((toys.ROWS,), "smoke", {"dim": (1, 2)}, seed=3)
    run = begin(plan, Store(tmp_path), this_machine())
    assert run.about["status"] == "running"
    assert run.about["end"] is None
    sweep(plan, run)
    about = run.about
    assert about["status"] == "finished"
    assert about["start"] < about["end"]
    assert about["arguments"] == ["run", "rows", "--preset=smoke", "--seed=3", "--set=dim=1,2"]
    assert about.items() >= provenance().items()
    assert about["versions"]["torch"]
    assert about["device"]["cpu"]
    assert about["threads"]["cores"] >= 1
    assert about["doctor"].keys() >= {"threads", "load", "frequency", "code"}
    assert all(sign.keys() == {"found", "remedy"} for sign in about["doctor"].values())
    assert {"commit", "dirty", "seed", "preset"} <= about.keys()
    assert Plan.recorded(json.loads(json.dumps(about)), toys.SUITES.__getitem__) == plan
    with pytest.raises(ValueError, match="does not say"):
        Plan.recorded({"preset": "smoke"}, toys.SUITES.__getitem__)


# --- the sweep


def test_numbers_depend_neither_on_workers_nor_order_nor_company(tmp_path: Path) -> None:
    alone, _ = run_of(Plan((toys.ROWS,), "smoke"), tmp_path)
    expected = alone.frame("rows")
    assert set(expected[expected["metric"] == "threads"]["value"]) == {1.0}
    shared, _ = run_of(Plan((toys.MIXED, toys.ROWS), "smoke"), tmp_path, jobs=2)
    pd.testing.assert_frame_equal(shared.frame("rows"), expected, check_exact=True)
    backwards, _ = run_of(Plan((toys.ROWS,), "smoke", {"dim": (6, 5, 4, 3, 2, 1)}), tmp_path)
    pd.testing.assert_frame_equal(backwards.frame("rows"), expected, check_exact=True)
    one, _ = run_of(Plan((toys.ROWS,), "smoke", {"dim": (4,)}), tmp_path)
    company = expected[expected["dim"] == 4].reset_index(drop=True)
    pd.testing.assert_frame_equal(one.frame("rows"), company, check_exact=True)
    reseeded, _ = run_of(Plan((toys.ROWS,), "smoke", seed=1), tmp_path)
    means = expected["metric"] == "mean"
    assert (reseeded.frame("rows")["value"] != expected["value"])[means].all()


def test_exclusive_suites_come_last_and_on_all_threads(tmp_path: Path) -> None:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run, _ = run_of(Plan((toys.ALONE, toys.MIXED), "smoke"), tmp_path)
    finally:
        torch.set_num_threads(threads)
    frame = run.frame("rows")
    assert set(frame[frame["metric"] == "threads"]["value"]) == {2.0}


def test_a_worker_that_is_killed_costs_its_cell_alone(tmp_path: Path) -> None:
    run, tally = run_of(Plan((toys.CRASH,), "smoke"), tmp_path, jobs=2)
    frame = run.frame("mixed")
    ok = frame["n_terms"] == 1
    assert set(frame[ok]["status"]) == {"ok"}
    assert set(frame[~ok]["status"]) == {"failed"}
    assert frame[~ok]["message"].str.contains("killed by SIGKILL").all()
    assert len(frame) == tally.n_done == 4


@pytest.mark.parametrize(("jobs", "error"), [(1, KeyError), (2, RuntimeError)])
def test_a_mistake_of_ours_is_no_row_but_what_was_measured_stays(
    tmp_path: Path, jobs: int, error: type[Exception], capfd: pytest.CaptureFixture[str]
) -> None:
    run = begin(Plan((toys.MISTAKE,), "smoke"), Store(tmp_path))
    with pytest.raises(error):
        sweep(Plan((toys.MISTAKE,), "smoke"), run, jobs)
    assert jobs == 1 or "a mistake of ours" in capfd.readouterr().err
    assert run.about["status"] == "interrupted"
    if run.suites:  # the other worker may not have come to it
        assert set(run.frame("mixed")["n_terms"]) == {1}


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_sweep_needs_no_main_thread(tmp_path: Path, jobs: int) -> None:
    """Notebooks and schedulers call it in another, where Python handles no signal."""
    plan = Plan((toys.MISTAKE,), "smoke")
    run = begin(plan, Store(tmp_path))
    with ThreadPoolExecutor() as other:
        first, _ = other.submit(run_of, Plan((toys.ROWS,), "smoke"), tmp_path, jobs).result()
        failure = other.submit(sweep, plan, run).exception()
    assert first.about["status"] == "finished"
    assert isinstance(failure, KeyError)
    assert run.about["status"] == "interrupted"


def test_failed_cells_and_no_others_are_measured_again(tmp_path: Path) -> None:
    plan = Plan((toys.MIXED, toys.REPAIRED), "smoke")
    (tmp_path / "broken").touch()
    run, tally = run_of(plan, tmp_path)
    assert len(tally.failed) == 3 + 3
    (tmp_path / "broken").unlink()
    changed = go_on(run)
    assert set(changed) <= {"dirty"}  # by whoever edits the checkout meanwhile
    again = sweep(plan, run)
    assert (again.n_total, again.n_done, again.n_kept) == (8, 8, 2)
    assert len(again.failed) == 3
    assert len(run.about["resumed"]) == 1
    whole, _ = run_of(plan, tmp_path)
    for suite in ("mixed", "repaired"):
        pd.testing.assert_frame_equal(run.frame(suite), whole.frame(suite), check_exact=True)
        plain = pd.read_parquet(run.path / suite)
        assert len(plain) == len(run.frame(suite)), "superseded rows are gone"


def test_listeners_hear_of_preparations_cells_and_the_time_left(tmp_path: Path) -> None:
    heard: list[tuple[int, float, str]] = []
    plan = Plan((toys.ROWS,), "smoke")
    run = begin(plan, Store(tmp_path))
    sweep(plan, run, 1, lambda now: heard.append((now.n_done, now.seconds_left, now.message)))
    said = [message for _, _, message in heard]
    assert said[0] == "preparing 6 cells"
    assert said[1] == "preparing rows failed: ArithmeticError: loss is not finite"
    assert said[2:] == [str(cell) for cell in plan.cells(toys.ROWS)]
    assert [n for n, _, _ in heard] == [0, 0, 1, 2, 3, 4, 5, 6]
    left = [seconds for _, seconds, _ in heard]
    assert left[0] != left[0], "nothing is known before the first cell"
    assert left[2] > 0.0
    assert left[-1] == 0.0


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("exclusive", [False, True])
def test_cells_wait_for_their_preparation_which_is_made_once(
    jobs: int, exclusive: bool, tmp_path: Path
) -> None:
    suite = replace(toys.PREPARED, exclusive=exclusive)
    plan = Plan((suite, toys.MIXED), "smoke")
    run, heard, done = begin(plan, Store(tmp_path)), [], []
    tally = sweep(
        plan, run, jobs, lambda now: heard.append(now.message), lambda one: done.append(one.name)
    )
    assert tally.n_done == 11
    frame = run.frame("prepared")
    assert list(frame["status"]) == ["ok"] * 6
    assert set(frame["value"]) == {2.0}
    said = {message.split(" (")[0] for message in heard}  # without the number of failed cells
    assert {f"preparing dim {dim}" for dim in (1, 2, 3)} <= said
    assert sorted(done) == ["mixed", "prepared"]


def test_a_sweep_costs_less_than_five_milliseconds_a_cell(tmp_path: Path) -> None:
    """400 cells whose measure takes microseconds; what is left is the sweep's and the store's."""
    plan = Plan((toys.MIXED,), "smoke", {"dim": tuple(range(1, 401)), "n_terms": (1,)})
    run = begin(plan, Store(tmp_path))
    start = time.perf_counter()
    sweep(plan, run)
    cost = (time.perf_counter() - start) / 400
    assert cost < 5e-3, f"{1e3 * cost:.2f} ms"
