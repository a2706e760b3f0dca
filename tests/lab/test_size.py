"""Runs of many cells: work in proportion to the cells, counted and not timed."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import product
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import toys
from made_up import SUITES, make_frames

from resflow_bench import threads
from resflow_bench.analysis.margins import Margins
from resflow_bench.analysis.tables import wide
from resflow_bench.gate.judge import judge
from resflow_bench.gate.samples import of_runs
from resflow_bench.lab import Cell, Context, Observation, Result
from resflow_bench.lab.plan import Plan, begin
from resflow_bench.lab.store import Run, Store, parts
from resflow_bench.lab.store.parts import merge_small_parts, read_parts, small_parts, write_part
from resflow_bench.lab.sweep import sweep
from resflow_bench.lab.workers import Job, Preparation, Task, _Agenda, shared
from resflow_bench.report.page import write_report

CONTEXT = Context(0, {}, Path())


def result(dim: int, status: str = "ok", value: float = 1.0) -> Result:
    cell = Cell("rows", {"dim": dim})
    if status == "ok":
        return Result(cell, "ok", (Observation("a", value, "1", 0.1, value - 1, value + 1),))
    return Result(cell, "failed", message="no")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Store(tmp_path).create({"preset": "smoke"})


def pandas_calls(function: Callable[[], object]) -> int:
    """The number of calls of functions of pandas."""
    calls = Counter[bool]()

    def count(frame, event, _) -> None:
        calls[event == "call" and "/pandas/" in frame.f_code.co_filename] += 1

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls[True]


# --- a long run has few parts


def test_a_run_of_any_length_has_few_parts(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MANY", 10)
    read, listed = Counter[int](), Counter[int]()
    real_read, real_list = parts.read_part, parts._listed

    def read_part(part: Path) -> pa.Table:
        read[n] += 1
        return real_read(part)

    def list_parts(folder: Path) -> list[Path]:
        found = real_list(folder)
        listed[n] += len(found)
        return found

    monkeypatch.setattr(parts, "read_part", read_part)
    monkeypatch.setattr(parts, "_listed", list_parts)
    for dim in range(1, 151):
        n = 50 if dim <= 50 else 100
        run.append(toys.ROWS, result(dim))
        run.flush()
        assert len(list((run.path / "rows").glob("part-*"))) < 10
    assert 1.5 * read[50] < read[100] < 2.5 * read[50]
    assert 1.5 * listed[50] < listed[100] < 2.5 * listed[50]
    assert run.frame("rows")["dim"].tolist() == list(range(1, 151))
    assert not [file for file in run.path.rglob("*") if file.name.startswith(".")]


def test_a_large_part_is_left_as_it_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MANY", 3)
    run.append(toys.ROWS, result(1))
    run.flush()
    (first,) = (run.path / "rows").iterdir()
    monkeypatch.setattr(parts, "LARGE", first.stat().st_size)
    for dim in range(2, 9):
        run.append(toys.ROWS, result(dim))
        run.flush()
    assert len(list((run.path / "rows").iterdir())) == 8


def test_a_damaged_part_ends_no_measurement(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MANY", 3)
    for dim in range(1, 6):
        run.append(toys.ROWS, result(dim))
        run.flush()
        if dim == 1:
            (first,) = (run.path / "rows").iterdir()
            first.write_bytes(first.read_bytes()[:-9])
    assert len(list((run.path / "rows").iterdir())) == 5


@pytest.mark.parametrize("seed", range(8))
def test_the_same_rows_count_before_meanwhile_and_after(
    run: Run, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """The merger is killed at each removal of a part, then another begins."""
    draw = random.Random(seed)
    monkeypatch.setattr(parts, "MANY", 3)
    folder = run.path / "rows"
    folder.mkdir()
    for value in range(8):
        status = draw.choice(["ok", "failed"])
        several = [result(dim, status, value) for dim in draw.sample([1, 2, 3], 2)]
        rows = [row for one in several for row in parts.rows_of(one)]
        write_part(folder, parts.table_of(toys.ROWS, rows))
    monkeypatch.setattr(parts, "LARGE", 10**9)
    expected, done = run.frame("rows"), run.done()
    left, remove = 0, Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        remove(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    for killed_at in (*range(1, 4), 100):
        left = killed_at
        with suppress(KeyboardInterrupt):
            merge_small_parts(folder)
        pd.testing.assert_frame_equal(run.frame("rows"), expected)
        assert run.done() == done
    assert len(small_parts(folder)) == 0
    assert len(read_parts(folder)) < 3


def test_a_part_that_comes_meanwhile_still_counts_as_the_last(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in (1.0, 2.0):
        run.append(toys.ROWS, result(1, value=value))
        run.flush()
    monkeypatch.setattr(parts, "MANY", 2)
    late = [parts.table_of(toys.ROWS, list(parts.rows_of(result(1, value=3.0))))]

    def read_part(part: Path) -> pa.Table:
        if late:
            write_part(part.parent, late.pop())
        return real(part)

    real = parts.read_part
    monkeypatch.setattr(parts, "read_part", read_part)
    merge_small_parts(run.path / "rows")
    assert len(list((run.path / "rows").iterdir())) == 2
    assert run.frame("rows")["value"].tolist() == [3.0]


def test_each_part_is_read_a_fixed_number_of_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan((toys.ROWS,), "smoke")
    run = begin(plan, Store(tmp_path), {})
    monkeypatch.setattr("resflow_bench.lab.store.run.SECONDS_BUFFERED", 0.0)
    sweep(plan, run)
    read, real = Counter[Path](), parts.read_part

    def read_part(part: Path) -> pa.Table:
        read[part] += 1
        return real(part)

    monkeypatch.setattr(parts, "read_part", read_part)
    assert sweep(plan, run).n_kept == 6
    assert len(read) == 6
    assert set(read.values()) == {3}  # what is done, what is superseded, whether all is there


# --- cells and jobs


def test_a_sweep_makes_each_cell_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, real = Counter[str](), Cell.__post_init__

    def count(cell: Cell) -> None:
        real(cell)
        made[str(cell)] += 1

    monkeypatch.setattr(Cell, "__post_init__", count)
    plan = Plan((toys.ROWS,), "smoke")
    sweep(plan, begin(plan, Store(tmp_path), {}))
    assert len(made) == 6
    assert set(made.values()) == {1}


def test_the_jobs_of_a_process_share_one_suite() -> None:
    one, two = (Task(toys.ROWS, Cell("rows", {"dim": dim}), CONTEXT) for dim in (1, 2))
    first, second = (pickle.loads(pickle.dumps(task)) for task in (one, two))
    assert first.suite is second.suite
    assert (first.suite, first.cell, second.cell) == (toys.ROWS, one.cell, two.cell)


def test_libraries_with_threads_are_sought_once_for_many_cells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sought = Counter[str]()

    class Controller:
        def __init__(self) -> None:
            sought["all"] += 1

        def limit(self, limits: int) -> AbstractContextManager[None]:
            return nullcontext()

    monkeypatch.setattr(threads, "ThreadpoolController", Controller)
    threads._loaded.cache_clear()
    for _ in range(5):
        with threads.one_thread():
            pass
    assert sought["all"] == 1
    monkeypatch.setitem(sys.modules, "imported_since", threads)
    with threads.one_thread():
        pass
    assert sought["all"] == 2
    threads._loaded.cache_clear()


def jobs_of(n_dims: int, n_terms: int) -> list[Job]:
    """A preparation for each dim, then the tasks of all dims in turn."""
    axes = [{"n_terms": n, "dim": dim} for n, dim in product(range(n_terms), range(n_dims))]
    cells = [Cell("prepared", one) for one in axes]
    groups = [[cell for cell in cells if cell["dim"] == dim] for dim in range(n_dims)]
    preparations = [Preparation(toys.PREPARED, group, CONTEXT) for group in groups]
    return [*preparations, *(Task(toys.PREPARED, cell, CONTEXT) for cell in cells)]


@pytest.mark.parametrize("seed", range(5))
def test_the_next_job_is_the_first_that_can_begin(seed: int) -> None:
    draw, jobs = random.Random(seed), jobs_of(3, 4)
    agenda, left, unprepared = _Agenda(jobs), list(jobs), {shared(job) for job in jobs[:3]}
    busy: list[Job] = []
    while left or busy:
        assert agenda.is_left == bool(left)
        if busy and draw.random() < 0.3:
            job = busy.pop(draw.randrange(len(busy)))
            if isinstance(job, Preparation):
                agenda.prepared(job)
                unprepared.discard(shared(job))
        can = (job for job in left if isinstance(job, Preparation) or shared(job) not in unprepared)
        first = next(can, None)
        assert agenda.take() is first
        if first is not None:
            left = [job for job in left if job is not first]
            busy.append(first)


def test_jobs_that_wait_are_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Counter[int]()

    def count(job: Job) -> tuple[object, ...]:
        asked[n] += 1
        return shared(job)

    monkeypatch.setattr("resflow_bench.lab.workers.shared", count)
    for n in (100, 200):
        agenda = _Agenda(jobs_of(1, n))
        preparation = agenda.take()
        assert [agenda.take() for _ in range(n)] == [None] * n
        assert preparation is not None
        agenda.prepared(preparation)
        assert all(agenda.take() for _ in range(n))
    assert asked[200] < 2.1 * asked[100]


# --- what is read from many rows


def frame_of(n: int, run: Run, value: float) -> pd.DataFrame:
    for dim in range(1, n + 1):
        run.append(toys.ROWS, result(dim, "failed" if dim % 3 == 0 else "ok", value))
    run.flush()
    return run.frame("rows")


@pytest.fixture
def frames(tmp_path: Path) -> dict[int, list[pd.DataFrame]]:
    store = Store(tmp_path)
    runs = [store.create({"preset": "smoke"}) for _ in range(4)]
    values, sizes = (1.0, 1.5, 1.0, 1.5), (30, 30, 90, 90)
    made = [frame_of(n, run, v) for n, run, v in zip(sizes, runs, values, strict=True)]
    return {30: made[:2], 90: made[2:]}


def test_a_table_of_cells_takes_no_call_for_each(frames: dict[int, list[pd.DataFrame]]) -> None:
    few, many = (pandas_calls(lambda n=n: wide(frames[n][0])) for n in (30, 90))
    assert (many - few) / 60 < 20


def test_the_gate_makes_no_frame_for_each_cell(frames: dict[int, list[pd.DataFrame]]) -> None:
    margins = Margins({"rows": SUITES["bias"].claims.metrics})

    def compare(n: int) -> None:
        base, new = (of_runs([{"rows": frame}], margins) for frame in frames[n])
        assert len(judge(base, new, margins)) == n

    few, many = (pandas_calls(lambda n=n: compare(n)) for n in (30, 90))
    assert (many - few) / 60 < 200  # values taken from columns; a frame takes thousands


def test_the_page_makes_one_table_of_each_suite_s_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pivoted, real = Counter[str](), pd.DataFrame.pivot

    def pivot(frame: pd.DataFrame, **options: object) -> pd.DataFrame:
        pivoted[frame["suite"].iloc[0]] += 1
        return real(frame, **options)

    monkeypatch.setattr("resflow_bench.report.page.rendered", lambda *_: [])
    monkeypatch.setattr(pd.DataFrame, "pivot", pivot)
    frames = make_frames()
    write_report(frames, [], tmp_path, SUITES)
    assert pivoted == dict.fromkeys(frames, 1)


def test_commands_that_read_rows_import_no_torch(run: Run) -> None:
    run.append(toys.ROWS, result(1))
    run.flush()
    script = (
        "import sys\nfrom resflow_bench.cli.group import cli\nimport resflow_bench.cli\n"
        "for command in (['show', name], ['compare', name, name]):\n"
        "    cli([*command, '--results', results], standalone_mode=False)\n"
        "print('torch' in sys.modules, 'pandas' in sys.modules)"
    )
    lines = f"name, results = {run.name!r}, {str(run.path.parents[1])!r}\n{script}"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False True"
