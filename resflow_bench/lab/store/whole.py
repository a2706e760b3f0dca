"""RunFiles of a run: which of its files are damaged, and which cells a resume would measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from resflow_bench.lab.store.parts import StoreError, counted, parts_in, read_part
from resflow_bench.lab.store.run import Run


@dataclass
class RunFiles:
    """The files of a run, read.

    damaged: a sentence for each damaged file.
    ok, failed: ids of the cells whose rows count, by their status; skipped ones are ok.
    """

    damaged: list[str] = field(default_factory=list)
    ok: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)


def parts_of(run: Run) -> list[Path]:
    """The parts of all suites of a run, to inspect."""
    return [part for suite in run.suites for part in parts_in(run.path / suite)]


def inspect(run: Run, read: Callable[[Path], object] = lambda _: None) -> RunFiles:
    """Read every file of a run.

    Args:
        read: is called after each part.
    """
    found = RunFiles()
    try:
        _ = run.about
    except StoreError as error:
        found.damaged.append(str(error))
    for suite in run.suites:
        tables: list[pa.Table] = []
        for part in parts_in(run.path / suite):
            try:
                tables.append(read_part(part))
            except StoreError as error:
                found.damaged.append(str(error))
            except FileNotFoundError:  # a live run has just rewritten it
                continue
            read(part)
        for table, counts in zip(tables, counted(tables) if tables else [], strict=True):
            rows = table.filter(counts)
            for row in rows.select(["cell", "status"]).to_pylist():
                (found.failed if row["status"] == "failed" else found.ok).add(row["cell"])
    return found
