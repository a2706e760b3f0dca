"""The only writer of results/runs: run folders, their provenance and their rows.

    results/runs/<run>/run.json                              provenance, status
    results/runs/<run>/<suite>/part-<time>-<digest>.parquet  rows of one or more whole cells

A part is immutable: written under a hidden name, synced, renamed, so that what exists is whole, and
its name holds a digest of its bytes. Parts are ordered by their names, which begin with the time. A
cell may stand in several (it failed and was measured again on resume, or two runs were merged); its
last part counts. `pandas` reads a suite's folder as it is.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from math import nan
from pathlib import Path
from secrets import token_hex
from shlex import quote
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from resflow_bench import __version__
from resflow_bench.files import parquet_table, written_whole
from resflow_bench.lab.axes import axis_named
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

_MARK = b"resflow_bench"
_AXIS_TYPES = {int: "Int64", float: "float64", str: "string"}
SECONDS_BUFFERED = 1.0
"""Syncing a part takes milliseconds, so cells that take less share one; a kill -9 costs no more."""


class StoreError(Exception):
    """A request to the results folder that failed; the message has the cause and the remedy."""


def axis_columns(columns: Iterable[str]) -> list[str]:
    """The columns of a frame that are axes."""
    return [column for column in columns if column not in COLUMNS and column not in BESIDE]


def _schema(suite: Suite) -> pa.Schema:
    types = COLUMNS | {axis: _AXIS_TYPES[axis_named(axis).kind] for axis in suite.axes}
    empty = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in types.items()})
    schema = pa.Schema.from_pandas(empty, preserve_index=False)
    schema = schema.append(pa.field(REPLICATES, pa.list_(pa.float64())))
    if suite.has_pictures:
        schema = schema.append(pa.field(PICTURE, pa.binary()))
    return schema.with_metadata({**schema.metadata, _MARK: __version__.encode()})


def _rows(result: Result) -> Iterator[dict[str, Any]]:
    """One row per metric; one row without a metric where the cell failed or was skipped."""
    cell = result.cell
    common = {"suite": cell.suite, "cell": cell.id, "status": result.status, **cell.axes}
    if not result.observations:
        nothing = {"metric": "", "value": nan, "unit": "", "n": 0}
        missing = dict.fromkeys(("standard_error", "ci_low", "ci_high"), nan)
        yield common | nothing | missing | {"message": result.message}
    for observation in result.observations:
        yield common | vars(observation)


def _write_part(folder: Path, table: pa.Table) -> None:
    stream = io.BytesIO()
    pq.write_table(table, stream)
    content = stream.getvalue()
    name = f"part-{time.time_ns():020d}-{_digest(content)}.parquet"
    with written_whole(folder / name) as file:
        file.write(content)


def _read_part(path: Path) -> pa.Table:
    reason = "its bytes or columns are not those that were written"
    try:
        content = path.read_bytes()
        table = parquet_table(io.BytesIO(content))
        # A part that another tool rewrote lacks the mark, and its name holds no digest of it.
        whole = _MARK not in (table.schema.metadata or {}) or path.stem.endswith(_digest(content))
        if whole and table.column_names[: len(COLUMNS)] == list(COLUMNS):
            return table
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
    raise StoreError(
        f"part `{path}` is damaged ({reason}); move it away, then `resflow-bench run --resume "
        f"{path.parents[1].name} --results {quote(str(path.parents[3]))}` measures its cells again."
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


class Run:
    """One run's folder. Rows are appended cell by cell and are on disk about a second later."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self._buffer: dict[str, tuple[pa.Schema, list[dict[str, Any]]]] = {}
        self._flushed = time.monotonic()

    @property
    def about(self) -> dict[str, Any]:
        """The content of `run.json`; a run that is not finished, or was killed, has no `end`.

        Raises:
            StoreError: if it is damaged.
        """
        file = self.path / "run.json"
        try:
            about = json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            raise StoreError(
                f"`{file}` cannot be read ({error}); put back a copy, or move `{self.path}` away."
            ) from None
        if not isinstance(about, dict):
            raise StoreError(f"`{file}` holds no JSON object; move `{self.path}` away.")
        return about

    def write_about(self, about: dict[str, Any]) -> None:
        """Replace `run.json`."""
        with written_whole(self.path / "run.json") as file:
            file.write(json.dumps(about, indent=2).encode() + b"\n")

    def append(self, suite: Suite, result: Result) -> None:
        """Add a cell's rows; all of them reach the disk in one part."""
        if suite.name not in self._buffer:
            self._buffer[suite.name] = (_schema(suite), [])
        self._buffer[suite.name][1].extend(_rows(result))
        if time.monotonic() - self._flushed > SECONDS_BUFFERED:
            self.flush()

    def flush(self) -> None:
        """Write every appended row to disk.

        Raises:
            StoreError: if they cannot be written.
        """
        for suite, (schema, rows) in self._buffer.items():
            folder = self.path / suite
            try:
                folder.mkdir(exist_ok=True)
                _write_part(folder, pa.Table.from_pylist(rows, schema))
            except OSError as error:
                raise StoreError(
                    f"`{folder}` takes no more rows ({error.strerror}); make room, then "
                    f"`resflow-bench run --resume {self.name} "
                    f"--results {quote(str(self.path.parents[1]))}`."
                ) from error
        self._buffer.clear()
        self._flushed = time.monotonic()

    @property
    def suites(self) -> list[str]:
        """The suites that it has rows of."""
        return sorted({part.parent.name for part in self.path.glob("*/part-*.parquet")})

    def frame(self, suite: str) -> pd.DataFrame:
        """A suite's rows, ordered by the cells' axes and then as measured.

        The order does not depend on which cell was measured first.

        Raises:
            StoreError: if there are none, or a part is damaged.
        """
        parts = sorted((self.path / suite).glob("part-*.parquet"))
        if not parts:
            raise StoreError(
                f"run `{self.name}` holds no rows of suite `{suite}`; "
                f"it holds those of {', '.join(self.suites) or 'no suite'}."
            )
        tables = [_read_part(part) for part in parts]
        frame = pa.concat_tables(tables, promote_options="default").to_pandas(use_threads=False)
        part = pd.Series(np.repeat(np.arange(len(tables)), [len(table) for table in tables]))
        frame = frame[part == part.groupby(frame["cell"]).transform("max")]
        axes = axis_columns(frame.columns)
        return frame.sort_values([*axes, "cell"], kind="stable", ignore_index=True)

    def frames(self) -> dict[str, pd.DataFrame]:
        return {suite: self.frame(suite) for suite in self.suites}

    def done(self) -> set[str]:
        """The ids of the cells that need not be measured again: all with rows that did not fail.

        Raises:
            StoreError: if a part is damaged.
        """
        frames = self.frames().values()
        return {cell for frame in frames for cell in frame["cell"][frame["status"] != "failed"]}

    def drop_superseded(self) -> None:
        """Remove superseded rows, so that a plain reader of the folder sees each cell once."""
        for suite in self.suites:
            later: set[str] = set()
            for part in sorted((self.path / suite).glob("part-*.parquet"), reverse=True):
                table = _read_part(part)
                cells = table["cell"].to_pylist()
                counts = [cell not in later for cell in cells]
                if not all(counts):
                    if any(counts):
                        _write_part(part.parent, table.filter(counts))
                    part.unlink()
                later.update(cells)


class Store:
    """The runs in a results folder."""

    def __init__(self, results: Path) -> None:
        self.results = results

    def create(self, about: dict[str, Any]) -> Run:
        """A new run, named by its preset, the time (UTC) and four random digits.

        Raises:
            StoreError: if the folder cannot be written.
        """
        name = f"{about['preset']}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{token_hex(2)}"
        run = Run(self.results / "runs" / name)
        try:
            run.path.mkdir(parents=True)
            run.write_about({"run": name} | about)
        except OSError as error:
            raise StoreError(
                f"results folder `{self.results}` cannot be written ({error.strerror}); "
                "name another with --results DIR."
            ) from None
        return run

    def runs(self) -> list[Run]:
        """Every run, the oldest first.

        Raises:
            StoreError: if there is none, or a `run.json` is damaged.
        """
        return sorted(self._runs(), key=lambda run: str(run.about.get("start")))

    def open(self, name: str) -> Run:
        """The run of that name.

        Raises:
            StoreError: if there is none.
        """
        runs = {run.name: run for run in self._runs()}
        if name not in runs:
            newest = sorted(runs, key=lambda name: name[-20:])[-3:]  # they end in their time
            raise StoreError(
                f"results folder `{self.results}` holds no run called `{name}`; "
                f"the newest there: {', '.join(newest)}."
            )
        return runs[name]

    def _runs(self) -> list[Run]:
        runs = [Run(file.parent) for file in (self.results / "runs").glob("*/run.json")]
        if not runs:
            raise StoreError(
                f"results folder `{self.results}` holds no run; measure one with "
                "`resflow-bench run`, or name another folder with --results DIR."
            )
        return runs


def merge(runs: Iterable[Run]) -> dict[str, pd.DataFrame]:
    """Every suite's rows; of a cell that several runs hold, those of the last.

    Raises:
        StoreError: if a part is damaged.
    """
    merged: dict[str, pd.DataFrame] = {}
    for run in runs:
        for suite, frame in run.frames().items():
            if suite in merged:
                before = merged[suite]
                kept = before[~before["cell"].isin(frame["cell"])]
                frame = pd.concat([kept, frame], ignore_index=True)  # noqa: PLW2901
            merged[suite] = frame
    return merged
