"""Parts: immutable Parquet files of whole cells' rows, and which of a cell's rows count.

    part-<number>-<digest>.parquet

A part is written under a hidden name, synced, renamed, so that what exists is whole. Its digest is
of its bytes. Its number is larger than that of every part in the folder, whatever the clock says;
the time in nanoseconds is only its least value, so that parts of two runs that were merged keep
their order. Of the rows of a cell in several parts, those that did not fail come before those that
failed, then those of the part with the larger number (then name) count. So a part is superseded by
greater ones alone: two processes that remove superseded rows at once cannot lose any. Many small
parts that follow each other are merged into one, which has the number of the last of them.
"""

from __future__ import annotations

import hashlib
import io
import re
import time
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import takewhile
from math import nan
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from resflow_bench import __version__
from resflow_bench.files import parquet_table, written_whole
from resflow_bench.lab.axes import AXES
from resflow_bench.lab.cells import Cell
from resflow_bench.lab.observe import Result
from resflow_bench.lab.suite import Suite

COLUMNS = {
    "suite": "string",
    "cell": "string",
    "status": "string",
    "message": "string",
    "metric": "string",
    "value": "float64",
    "unit": "string",
    "standard_error": "float64",
    "ci_low": "float64",
    "ci_high": "float64",
    "n": "int64",
}
"""The columns that every suite has, before one for each of its axes."""

REPLICATES = "replicates"  # after the axes: independent values whose mean or the like is `value`
PICTURE = "picture"  # the last column of some suites: bytes of an .npz file, null in most rows
BESIDE = (REPLICATES, PICTURE)  # columns that no table shows

MANY, LARGE = 100, 2**20
"""Small parts that are merged into one, and bytes from which a part is left as it is: a run of any
length has few parts, and no row is written often."""

_MARK = b"resflow_bench"
_AXIS_TYPES = {int: "Int64", float: "float64", str: "string"}
_STATUSES = ("ok", "failed", "skipped")
_EMPTY = {"message": "", "metric": "", "unit": "", "n": 0}  # what other tools may write as null


class StoreError(Exception):
    """A request to the results folder that failed; the message has the cause and the remedy."""


def axis_columns(columns: Iterable[str]) -> list[str]:
    """The columns of a frame that are axes."""
    return [column for column in columns if column not in COLUMNS and column not in BESIDE]


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows without the columns that no table shows."""
    return frame.drop(columns=list(BESIDE), errors="ignore")


def table_of(suite: Suite, rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as a table with the suite's columns."""
    beside = BESIDE if suite.has_pictures else (REPLICATES,)
    return pa.Table.from_pylist(rows, _schema((*COLUMNS, *suite.axes, *beside)))


@cache
def _schema(columns: tuple[str, ...]) -> pa.Schema:
    types = COLUMNS | {axis.name: _AXIS_TYPES[axis.kind] for axis in AXES.values()}
    plain = {name: pd.Series(dtype=types[name]) for name in columns if name not in BESIDE}
    schema = pa.Schema.from_pandas(pd.DataFrame(plain), preserve_index=False)
    metadata = {**schema.metadata, _MARK: __version__.encode()}
    beside = {REPLICATES: pa.list_(pa.float64()), PICTURE: pa.binary()}
    for name in (name for name in BESIDE if name in columns):
        schema = schema.append(pa.field(name, beside[name]))
    return schema.with_metadata(metadata)


def rows_of(result: Result) -> Iterator[dict[str, Any]]:
    """One row per metric; one row without a metric where the cell failed or was skipped."""
    cell = result.cell
    common = {"suite": cell.suite, "cell": cell.id, "status": result.status, **cell.axes}
    if not result.observations:
        nothing = {"metric": "", "value": nan, "unit": "", "n": 0}
        missing = dict.fromkeys(("standard_error", "ci_low", "ci_high"), nan)
        yield common | nothing | missing | {"message": result.message}
    for observation in result.observations:
        yield common | vars(observation)


def write_part(folder: Path, table: pa.Table) -> None:
    """Write a part whose number is larger than that of every other part in the folder.

    Raises:
        OSError: if it cannot be written; nothing of it remains then.
    """
    _write(folder, table, max([time.time_ns(), *(1 + _order(part)[0] for part in _listed(folder))]))


def _write(folder: Path, table: pa.Table, number: int) -> Path:
    stream = io.BytesIO()
    pq.write_table(table, stream)
    content = stream.getvalue()
    part = folder / f"part-{number:020d}-{_digest(content)}.parquet"
    with written_whole(part) as file:
        file.write(content)
    return part


def small_parts(folder: Path) -> list[Path]:
    """The newest parts, back to the first that is large; empty if they are few.

    Raises:
        OSError: one is not there any more.
    """
    newest = takewhile(lambda part: part.stat().st_size < LARGE, reversed(_listed(folder)))
    parts = list(newest)[::-1]
    return parts if len(parts) >= MANY else []


def merge_small_parts(folder: Path) -> None:
    """Put the `small_parts` into one, which has the number of the last of them.

    The same rows count before, meanwhile and after, and if the process is killed.

    Raises:
        OSError: one is not there any more, or the folder cannot be written.
        StoreError: one is damaged.
    """
    if not (parts := small_parts(folder)):
        return
    tables = [read_part(part) for part in parts]
    rows = [table.filter(counts) for table, counts in zip(tables, counted(tables), strict=True)]
    merged = _write(folder, together(rows), _order(parts[-1])[0])
    for part in parts:
        if part != merged:  # after a kill between these lines, the next merger may be the same
            part.unlink(missing_ok=True)


def parts_in(folder: Path) -> list[Path]:
    """The parts of a suite's folder, in their order.

    A listing that is read while rows move from one part to another may show neither of the two; of
    two equal listings that follow each other, none does.
    """
    before, found = None, _listed(folder)
    while found != before:
        before, found = found, _listed(folder)
    return found


def _listed(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"), key=_order)


def _order(part: Path) -> tuple[int, str]:
    number = re.match(r"part-(\d+)", part.name)
    return (int(number[1]) if number else 0), part.name


def read_parts(folder: Path) -> dict[Path, pa.Table]:
    """Every part's rows, in the order of the parts; parts may come and go meanwhile.

    Raises:
        StoreError: a part is damaged.
    """
    while True:
        parts = parts_in(folder)
        try:
            return {part: read_part(part) for part in parts}
        except FileNotFoundError as error:
            if parts_in(folder) == parts:
                raise _damaged(Path(error.filename), "it is a link to nothing") from None


def read_part(part: Path) -> pa.Table:
    """The rows of a part of this package or another tool, with the types that this package writes.

    Raises:
        StoreError: it is damaged, or lacks a column, or has one that no cast makes what is needed.
        FileNotFoundError: it is not there.
    """
    try:
        content = part.read_bytes()
        table = parquet_table(io.BytesIO(content))
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(part, " ".join(str(error).split())) from error
    # A part that another tool rewrote lacks the mark, and its name holds no digest of it.
    is_ours = _MARK in (table.schema.metadata or {})
    if is_ours and not part.stem.endswith(_digest(content)):
        raise _damaged(part, "its bytes are not those that were written")
    try:
        table = _conformed(table)
        if not is_ours:
            _check_cells(table)
    except ValueError as error:
        raise _damaged(part, str(error)) from error
    return table


def _damaged(part: Path, reason: str) -> StoreError:
    run = part.absolute().parents[1]
    return StoreError(
        f"part `{part}` is damaged ({reason}); move it away, then `resflow-bench run --resume "
        f"{run.name} --results {quote(str(part.parents[3]))}` measures its cells again."
    )


def _conformed(table: pa.Table) -> pa.Table:
    """The table with our columns and types, if no value changes by that.

    Raises:
        ValueError: it names the column that is missing, unknown or of another type.
    """
    names = [name for name in table.column_names if not re.fullmatch(r"__index_level_\d+__", name)]
    if missing := [name for name in COLUMNS if name not in names]:
        raise ValueError(f"it has no column `{missing[0]}`")
    if unknown := [name for name in names if name not in (*COLUMNS, *AXES, *BESIDE)]:
        raise ValueError(f"this version knows no column `{unknown[0]}`; a newer one may")
    if len(set(names)) < len(names):
        raise ValueError("two of its columns have one name")
    axes = axis_columns(names)
    schema = _schema((*COLUMNS, *axes, *(name for name in BESIDE if name in names)))
    if table.schema.equals(schema):
        return table.replace_schema_metadata(schema.metadata)
    columns = [_cast(table[name], schema.field(name)) for name in schema.names]
    return pa.table(columns, schema=schema)


def _cast(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    found, needed = column.type, field.type
    if not pa.types.is_null(found) and _family(found) != _family(needed):
        raise ValueError(f"its column `{field.name}` holds {found}, not {needed}")
    if pa.types.is_floating(found) and pa.types.is_integer(needed):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, found), column)
    try:
        column = column.cast(needed)
    except pa.ArrowException as error:
        why = " ".join(str(error).split())
        raise ValueError(f"its column `{field.name}` is not {needed}: {why}") from error
    if field.name in _EMPTY and column.null_count:
        column = column.fill_null(_EMPTY[field.name])
    if field.name == "status" and (others := set(column.to_pylist()) - set(_STATUSES)):
        raise ValueError(f"its column `status` holds {min(map(str, others))!r}")
    if field.name in ("suite", "cell") and column.null_count:
        raise ValueError(f"its column `{field.name}` has rows without a value")
    return column


def _check_cells(table: pa.Table) -> None:
    """Refuse cells whose axes are not those that their ids are made of."""
    axes = axis_columns(table.column_names)
    key = ["suite", "cell", *axes]
    for row in table.group_by(key, use_threads=False).aggregate([]).to_pylist():
        values = {name: row[name] for name in axes if row[name] is not None}
        try:
            is_same = Cell(row["suite"], values).id == row["cell"]
        except (TypeError, ValueError, OverflowError):
            is_same = False
        if not is_same:
            raise ValueError(
                f"the id of its cell `{row['cell']}` is not made of its axes {', '.join(values)}; "
                "one is missing or was changed"
            )


def _family(kind: pa.DataType) -> str:
    """Types between which a cast either keeps every value or fails."""
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    return re.sub(r"^large_|_view$|^fixed_size_|[<\[].*", "", str(kind))


def counted(tables: list[pa.Table]) -> list[np.ndarray]:
    """For each table, in the order of the parts: which of its rows count."""
    cells = np.concatenate([table["cell"].to_numpy() for table in tables])
    failed = np.concatenate([pc.equal(table["status"], "failed").to_numpy() for table in tables])
    part = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    rank = pd.Series(part + len(tables) * ~failed.astype(bool))
    counts = (rank == rank.groupby(cells).transform("max")).to_numpy()
    return np.split(counts, np.cumsum([len(table) for table in tables])[:-1])


def together(tables: Iterable[pa.Table]) -> pa.Table:
    """The tables as one, with every axis that one of them has."""
    tables = list(tables)
    names = dict.fromkeys(name for table in tables for name in table.column_names)
    beside = (name for name in BESIDE if name in names)
    schema = _schema((*COLUMNS, *axis_columns(names), *beside))
    table = pa.concat_tables(tables, promote_options="default")
    return table.select(schema.names).cast(schema)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
