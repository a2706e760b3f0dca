"""Parts: their order, parts of other tools, a reader beside a writer, records of any shape."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from threading import Thread

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toys

from resflow_bench.lab import Cell, Observation, Result
from resflow_bench.lab.plan import Plan
from resflow_bench.lab.store import Run, Store, StoreError, parts
from resflow_bench.lab.store.parts import read_part, write_part
from resflow_bench.lab.sweep import sweep

PLAN = Plan((toys.ROWS,), "smoke")
ONE, TWO = Cell("rows", {"dim": 1}), Cell("rows", {"dim": 2})


def ok(cell: Cell, value: float = 1.0) -> Result:
    return Result(cell, "ok", (Observation("a", value, "1"),))


def failed(cell: Cell) -> Result:
    return Result(cell, "failed", message="no")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Store(tmp_path).create({"preset": "smoke"})


def write(run: Run, *results: Result) -> None:
    for result in results:
        run.append(toys.ROWS, result)
    run.flush()


def values(run: Run) -> dict[int, float]:
    frame = run.frame("rows")
    assert not frame.duplicated(["cell", "metric"]).any()
    return dict(zip(frame["dim"], frame["value"], strict=True))


# --- an order that no clock makes


@pytest.mark.parametrize("clock", [lambda: 10, lambda: -5, lambda: 4 * 10**18])
def test_the_last_counts_whatever_the_clock_says(run: Run, monkeypatch, clock) -> None:
    """Measured while the clock is ahead, again after it was put right."""
    write(run, failed(ONE), ok(TWO))
    monkeypatch.setattr(parts.time, "time_ns", clock)
    write(run, ok(ONE, 7.0), ok(TWO, 8.0))
    assert values(run) == {1: 7.0, 2: 8.0}
    run.drop_superseded()
    assert values(run) == {1: 7.0, 2: 8.0}
    assert len(pd.read_parquet(run.path / "rows")) == 2


def test_a_result_beats_a_failure_in_whichever_part_they_are(run: Run) -> None:
    """Two runs that were merged: the later one may be the one that failed."""
    write(run, ok(ONE, 7.0), failed(TWO))
    write(run, failed(ONE), ok(TWO, 8.0))
    assert values(run) == {1: 7.0, 2: 8.0}
    run.drop_superseded()
    assert values(run) == {1: 7.0, 2: 8.0}
    assert run.done() == {ONE.id, TWO.id}


def test_parts_named_by_the_clock_keep_their_order(run: Run) -> None:
    """Those of earlier versions, and names of other tools, which come first."""
    folder = run.path / "rows"
    names = ["part-01795875828426879480-0.parquet", "part-x.parquet", "part-0.parquet"]
    for value, name in enumerate(names):
        write(run, ok(ONE, float(value)))
        (new,) = (part for part in folder.glob("part-*") if part.name not in names)
        pd.read_parquet(new).to_parquet(folder / name)
        new.unlink()
    assert values(run) == {1: 0.0}
    write(run, ok(ONE, 5.0))
    assert values(run) == {1: 5.0}


def test_a_kill_between_writing_and_removing_loses_nothing(run: Run, monkeypatch) -> None:
    write(run, failed(ONE), ok(TWO, 8.0))
    write(run, ok(ONE, 7.0))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            run.drop_superseded()
    assert len(list(run.path.glob("rows/part-*"))) == 3
    assert values(run) == {1: 7.0, 2: 8.0}
    run.drop_superseded()
    assert values(run) == {1: 7.0, 2: 8.0}
    assert len(pd.read_parquet(run.path / "rows")) == 2


def test_two_that_remove_superseded_rows_at_once_lose_nothing(run: Run, monkeypatch) -> None:
    """Without locks: the second begins where the first has read, and both remove what they read."""
    write(run, failed(ONE), ok(TWO, 8.0))
    write(run, ok(ONE, 7.0))
    other, before, calls = Run(run.path), write_part, []

    def between(folder: Path, table: pa.Table) -> None:
        if not calls:
            calls.append(1)
            monkeypatch.setattr(Run, "_exclusive", nothing)
            write(other, ok(ONE, 9.0))
            other.drop_superseded()
        before(folder, table)

    def nothing(_: Run) -> nullcontext[None]:
        return nullcontext()

    monkeypatch.setattr("resflow_bench.lab.store.run.write_part", between)
    run.drop_superseded()
    assert values(run) == {1: 9.0, 2: 8.0}
    run.drop_superseded()
    assert len(pd.read_parquet(run.path / "rows")) == 2


def test_a_listing_that_misses_what_moves_is_not_believed(run: Run, monkeypatch) -> None:
    """Rows that move from one part to another while a folder is listed may be seen in neither."""
    before, after = Path("part-1-a.parquet"), Path("part-2-b.parquet")
    listings = iter([[before], [], [after], [after]])
    monkeypatch.setattr(parts, "_listed", lambda folder: next(listings))
    assert parts.parts_in(run.path) == [after]


def test_a_reader_beside_a_writer_sees_every_finished_cell_once(run: Run) -> None:
    done: list[int] = []

    def write_and_tidy() -> None:
        for dim in range(1, 60):
            write(run, failed(Cell("rows", {"dim": dim})))
            write(run, ok(Cell("rows", {"dim": dim}), float(dim)))
            done.append(dim)
            Run(run.path).drop_superseded()

    write(run, ok(Cell("rows", {"dim": 1000}), 1000.0))
    writer, reader = Thread(target=write_and_tidy), Run(run.path)
    writer.start()
    n_read = 0
    while writer.is_alive():
        known = list(done)
        seen = values(reader)
        assert {dim: float(dim) for dim in known}.items() <= seen.items()
        n_read += 1
    writer.join()
    assert n_read > 5
    assert len(values(reader)) == 60


# --- parts of other tools


def measured(run: Run) -> tuple[Path, pd.DataFrame]:
    sweep(PLAN, run)
    (part,) = run.path.glob("rows/part-*")
    return part, run.frame("rows")


CASTS: dict[str, Callable[[pa.Table], pa.Table]] = {
    "string": lambda t: t.cast(_with(t, "cell", pa.string())),
    "large_string": lambda t: t.cast(_with(t, "cell", pa.large_string())),
    "dictionary": lambda t: _set(t, "metric", t["metric"].dictionary_encode()),
    "int32": lambda t: t.cast(_with(t, "dim", pa.int32())),
    "float_axis": lambda t: t.cast(_with(t, "dim", pa.float64())),
    "null_axis": lambda t: _set(t, "n_exact", pa.nulls(len(t))),
    "nan_axis": lambda t: _set(t, "n_exact", pa.array([np.nan] * len(t))),
    "missing_axis": lambda t: t.drop_columns(["truncation", "n_exact"]),
    "no_replicates": lambda t: t.drop_columns(["replicates"]),
    "null_message": lambda t: _set(t, "message", pa.nulls(len(t))),
    "order": lambda t: t.select(sorted(t.column_names)),
    "index": lambda t: t.append_column("__index_level_0__", pa.array(range(len(t)))),
    "list": lambda t: t.cast(_with(t, "replicates", pa.large_list(pa.float32()))),
}


def _set(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


def _with(table: pa.Table, name: str, kind: pa.DataType) -> pa.Schema:
    return table.schema.set(table.column_names.index(name), pa.field(name, kind))


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("beside", [False, True])
def test_a_part_of_another_tool_is_cast_where_no_value_changes(
    run: Run, cast: str, beside: bool
) -> None:
    """Alone, and beside a part of ours."""
    part, frame = measured(run)
    table = CASTS[cast](pq.read_table(part)).replace_schema_metadata(None)
    if beside:
        half = pd.read_parquet(part)["dim"].to_numpy() % 2 == 0
        write_part(part.parent, read_part(part).filter(~half))
        table = table.filter(half)
    part.unlink()
    pq.write_table(table, part.with_name("part-1.parquet"))
    missing = {"missing_axis": ["truncation", "n_exact"], "no_replicates": ["replicates"]}
    gone = missing.get(cast, []) if not beside or cast == "no_replicates" else []
    expected = frame.drop(columns=gone)
    read = run.frame("rows")[expected.columns]
    by = ["dim", "metric"]
    pd.testing.assert_frame_equal(
        read.sort_values(by, ignore_index=True),
        expected.sort_values(by, ignore_index=True),
        check_exact=True,
    )


REFUSED: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "no metric": (lambda t: t.drop_columns(["metric"]), "no column `metric`"),
    "halves": (lambda t: _set(t, "dim", pa.array([1.5] * len(t))), "`dim` is not int64"),
    "text": (lambda t: _set(t, "dim", pa.array(["1"] * len(t))), "`dim` holds string, not int64"),
    "time": (lambda t: _set(t, "value", pa.array([0] * len(t), pa.timestamp("s"))), "`value`"),
    "status": (lambda t: _set(t, "status", pa.array(["done"] * len(t))), "`status` holds 'done'"),
    "cell": (lambda t: _set(t, "cell", pa.nulls(len(t))), "`cell` has rows without a value"),
    "newer": (lambda t: t.append_column("colour", pa.array(["red"] * len(t))), "column `colour`"),
    "axis": (lambda t: t.drop_columns(["dim"]), "axes n_terms, device; one is missing"),
    "law": (lambda t: _set(t, "device", pa.array(["?"] * len(t))), "one is missing or was changed"),
    "twice": (lambda t: t.append_column("value", t["value"]), "one name"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_part_that_cannot_be_cast_is_named_with_its_column(run: Run, why: str) -> None:
    part, _ = measured(run)
    change, words = REFUSED[why]
    table = change(pq.read_table(part)).replace_schema_metadata(None)
    pq.write_table(table, part)
    with pytest.raises(StoreError, match=f"{part.name}` is damaged .*{words}.*--resume"):
        run.frame("rows")


def test_infinite_and_absent_values_are_kept(run: Run) -> None:
    part, frame = measured(run)
    foreign = frame.assign(value=np.inf, standard_error=None, ci_low=-np.inf, ci_high=np.nan)
    foreign.to_parquet(part)
    read = run.frame("rows")
    assert np.isposinf(read["value"]).all()
    assert read["standard_error"].isna().all()
    assert (read["ci_low"] == -np.inf).all()


def test_a_part_cut_or_flipped_at_any_place_is_noticed(run: Run) -> None:
    """Save a flip in the mark that says who wrote it, which changes no row."""
    part, frame = measured(run)
    content = part.read_bytes()
    n_noticed = 0
    for place in np.linspace(0, len(content) - 1, 64).astype(int):
        flipped = bytearray(content)
        flipped[place] ^= 16
        for damaged in (content[:place], flipped):
            part.write_bytes(damaged)
            try:
                read = run.frame("rows")
            except StoreError:
                n_noticed += 1
            else:
                pd.testing.assert_frame_equal(read, frame)
    assert n_noticed >= 126


# --- run.json


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("seed", "0"), ("seed", True), ("suites", "rows"), ("suites", [1]), ("set", {"dim": 1})),
        *(("arguments", 3), ("questions", []), ("versions", "2"), ("dirty", "no")),
        *(("resumed", ["x"]), ("start", 5), ("suites", [None])),
    ],
)
def test_a_field_of_another_type_is_named(run: Run, name: str, value: object) -> None:
    (run.path / "run.json").write_text(json.dumps({"run": run.name, name: value}))
    with pytest.raises(StoreError, match=f"run.json` holds .* in its field `{name}`; put back"):
        _ = run.about


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "[" * 100_000, "\xff", '{"seed": 1e999}'])
def test_a_record_that_is_none_is_refused(run: Run, content: str) -> None:
    (run.path / "run.json").write_text(content, encoding="latin-1")
    with pytest.raises(StoreError, match=r"run\.json"):
        _ = run.about


def test_a_failed_write_leaves_no_half(run: Run, monkeypatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    before = run.about
    monkeypatch.setattr(os, "fsync", full)
    run.append(toys.ROWS, ok(ONE))
    with pytest.raises(StoreError, match="takes no more rows"):
        run.flush()
    with pytest.raises(StoreError, match="cannot be written"):
        run.revise(lambda _: {"seed": 5})
    monkeypatch.undo()
    assert run.about == before
    assert not [file for file in run.path.rglob("*") if file.name.startswith(".")]
    run.flush()
    assert values(run) == {1: 1.0}, "nothing is lost, and nothing written twice"


def test_a_hundred_thousand_cells_are_read_in_seconds(run: Run) -> None:
    """Not quadratic: ten parts of ten thousand cells."""
    table = read_part(_part_of(run, ok(ONE)))
    ids = np.char.mod("%012x", np.arange(100_000))
    for some in np.split(ids, 10):
        rows = table.take(np.zeros(len(some), int))
        write_part(
            run.path / "rows", _set(rows, "cell", pa.array(some, rows.schema.field("cell").type))
        )
    start = time.perf_counter()
    assert len(run.done()) == 100_001
    run.drop_superseded()
    assert time.perf_counter() - start < 10


def _part_of(run: Run, result: Result) -> Path:
    write(run, result)
    (part,) = run.path.glob("rows/part-*")
    return part
