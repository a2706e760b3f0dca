"""CSV, a file for each suite: every row and metric, without formulas to a spreadsheet."""

from __future__ import annotations

from pathlib import Path

from resflow_bench.export.rows import ExportedRows, write_text
from resflow_bench.files import csv_text
from resflow_bench.lab.store import BESIDE


def write(rows: ExportedRows, out: Path) -> list[Path]:
    """Write `<suite>.csv`, with the columns of `show --format csv`."""
    return [
        write_text(out / f"{suite}.csv", csv_text(frame.drop(columns=[*BESIDE], errors="ignore")))
        for suite, frame in rows.frames.items()
    ]
