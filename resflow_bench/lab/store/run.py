"""The only writer of results/runs: run folders, their provenance and their rows.

    results/runs/<run>/run.json                                provenance, status
    results/runs/<run>/<suite>/part-<number>-<digest>.parquet  rows of one or more whole cells

A cell may stand in several parts (it failed and was measured again on resume, or two runs were
merged); `parts` says which of its rows count. `pandas` reads a suite's folder as it is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from shlex import quote
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from resflow_bench.files import written_whole
from resflow_bench.lab.observe import Result
from resflow_bench.lab.store.parts import (
    StoreError,
    axis_columns,
    counted,
    merge_small_parts,
    read_parts,
    rows_of,
    small_parts,
    table_of,
    together,
    write_part,
)
from resflow_bench.lab.store.writers import WHOLE, Shard, Writers
from resflow_bench.lab.suite import Suite

SECONDS_BUFFERED = 1.0
"""Syncing a part takes milliseconds, so cells that take less share one; a kill -9 costs no more."""

_RECORD: dict[str, type] = {
    **dict.fromkeys(("run", "preset", "start", "end", "status", "commit", "platform"), str),
    **dict.fromkeys(("set", "files", "questions", "versions", "device", "threads"), dict),
    **dict.fromkeys(("suites", "arguments", "resumed"), list),
    **{"doctor": dict, "seed": int, "dirty": bool, "git_error": str, "n_steps_done": int},
}
"""The types of the fields of `run.json`; any of them may be missing, or null."""

_INNER: dict[str, type] = {
    **dict.fromkeys(("suites", "arguments"), str),
    "set": list,
    "resumed": dict,
}
"""The types of the items of some of them."""


class Run:
    """One run's folder. Rows are appended cell by cell and are on disk about a second later."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self._writers = Writers(path)
        self._buffer: dict[str, tuple[Suite, list[dict[str, Any]]]] = {}
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
        except (OSError, ValueError, RecursionError) as error:
            raise StoreError(
                f"`{file}` cannot be read ({error}); put back a copy, or move `{self.path}` away."
            ) from None
        if not isinstance(about, dict):
            raise StoreError(f"`{file}` holds no JSON object; move `{self.path}` away.")
        for name, value in about.items():
            if wrong := _misfits(name, value):
                raise StoreError(
                    f"`{file}` holds {wrong[0]!r} in its field `{name}`; put back a copy, or move "
                    f"`{self.path}` away."
                )
        return about

    def write_about(self, about: dict[str, Any]) -> None:
        """Replace `run.json`.

        Raises:
            StoreError: if it cannot be written.
        """
        try:
            with written_whole(self.path / "run.json") as file:
                file.write(json.dumps(about, indent=2).encode() + b"\n")
        except OSError as error:
            raise self._unwritable(error) from error

    def revise(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Change fields of `run.json`; no other process can come between.

        Args:
            change: from the present record to the fields that change.
        """
        with self._exclusive():
            about = self.about
            self.write_about(about | change(about))

    def begin_writing(self, shard: Shard = WHOLE) -> bool:
        """Become the only writer of a shard's cells; False where the file system has no locks.

        It ends with `end_writing`, or with this process. A second call, before it has ended, does
        nothing.

        Raises:
            HeldError: another process is a writer of some of these cells.
            StoreError: the folder cannot be written.
        """
        try:
            return self._writers.enter(shard)
        except OSError as error:
            raise self._unwritable(error) from error

    def end_writing(self) -> bool:
        """Write the rest, and stop being a writer; True if another process still is one."""
        try:
            self.flush()
        finally:
            self._writers.leave()
        with self._exclusive():
            return self._writers.are_there

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        try:
            with self._writers.exclusive():
                yield
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> StoreError:
        return StoreError(
            f"`{self.path}` cannot be written ({error.strerror}); make room there, or make it "
            "writable, then resume the run."
        )

    def append(self, suite: Suite, result: Result) -> None:
        """Add a cell's rows; all of them reach the disk in one part."""
        self._buffer.setdefault(suite.name, (suite, []))[1].extend(rows_of(result))
        if time.monotonic() - self._flushed > SECONDS_BUFFERED:
            self.flush()

    def flush(self) -> None:
        """Write every appended row to disk.

        Raises:
            StoreError: if they cannot be written.
        """
        for name in list(self._buffer):
            folder = self.path / name
            try:
                folder.mkdir(exist_ok=True)
                write_part(folder, table_of(*self._buffer[name]))
            except OSError as error:
                raise StoreError(
                    f"`{folder}` takes no more rows ({error.strerror}); make room, then "
                    f"`resflow-bench run --resume {self.name} "
                    f"--results {quote(str(self.path.parents[1]))}`."
                ) from error
            del self._buffer[name]
            with suppress(OSError, StoreError):  # the rows are safe, and merging can wait
                if small_parts(folder):
                    with self._exclusive():  # another process may have merged them by now
                        merge_small_parts(folder)
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
        if not (tables := list(read_parts(self.path / suite).values())):
            raise StoreError(
                f"run `{self.name}` holds no rows of suite `{suite}`; "
                f"it holds those of {', '.join(self.suites) or 'no suite'}."
            )
        counts = np.concatenate(counted(tables))
        frame = together(tables).to_pandas(use_threads=False)[counts]
        axes = axis_columns(frame.columns)
        return frame.sort_values([*axes, "cell"], kind="stable", ignore_index=True)

    def frames(self) -> dict[str, pd.DataFrame]:
        return {suite: self.frame(suite) for suite in self.suites}

    def done(self) -> set[str]:
        """The ids of the cells that need not be measured again: all with rows that did not fail.

        Raises:
            StoreError: if a part is damaged.
        """
        return {
            cell
            for suite in self.suites
            for table in read_parts(self.path / suite).values()
            for cell in table.filter(pc.not_equal(table["status"], "failed"))["cell"].to_pylist()
        }

    def measured(self) -> set[str]:
        """The ids of the cells that have rows, those of failures included.

        Raises:
            StoreError: if a part is damaged.
        """
        return {cell for suite in self.suites for table in read_parts(self.path / suite).values()
                for cell in table["cell"].to_pylist()}  # fmt: skip

    def drop_superseded(self) -> None:
        """Remove superseded rows, so that a plain reader of the folder sees each cell once.

        Raises:
            StoreError: if a part is damaged, or the folder cannot be written.
        """
        with self._exclusive():
            for suite in self.suites:
                parts = read_parts(self.path / suite)
                counts = zip(parts, counted(list(parts.values())), strict=True)
                mixed = {part: rows for part, rows in counts if not rows.all()}
                left = [parts[part].filter(rows) for part, rows in mixed.items() if rows.any()]
                if left:
                    write_part(self.path / suite, together(left))
                for part in mixed:
                    part.unlink(missing_ok=True)


def _misfits(name: str, value: Any) -> list[Any]:
    """The value of a field of `run.json`, or its items, of another type than they should have."""
    kind, inner = _RECORD.get(name, object), _INNER.get(name, object)
    if value is None:
        return []
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in items if not isinstance(item, inner)]


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
        except OSError as error:
            raise StoreError(
                f"results folder `{self.results}` cannot be written ({error.strerror}); "
                "name another with --results DIR."
            ) from None
        run.write_about({"run": name} | about)
        return run

    def runs(self) -> list[Run]:
        """Every run, the oldest first.

        Raises:
            StoreError: if there is none, or a `run.json` is damaged.
        """
        return sorted(self._runs(), key=lambda run: str(run.about.get("start")))

    def folders(self) -> list[Run]:
        """Every folder of a run, those without a `run.json` included, by name.

        Raises:
            StoreError: if there is none.
        """
        folders = sorted(path for path in (self.results / "runs").glob("*") if path.is_dir())
        return [Run(path) for path in folders] or self._runs()

    def open(self, name: str) -> Run:
        """The run of that name.

        Raises:
            StoreError: if there is none.
        """
        if not name:
            raise StoreError("the name of the run is empty; is a variable of the shell not set?")
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
    return merge_rows(run.frames() for run in runs)


def merge_rows(several: Iterable[Mapping[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """Every suite's rows; of a cell that several have, those of the last."""
    merged: dict[str, pd.DataFrame] = {}
    for frames in several:
        for suite, frame in frames.items():
            if suite in merged:
                before = merged[suite]
                kept = before[~before["cell"].isin(frame["cell"])]
                frame = pd.concat([kept, frame], ignore_index=True)  # noqa: PLW2901
            merged[suite] = frame
    return merged
