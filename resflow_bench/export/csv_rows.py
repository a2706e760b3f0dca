"""CSV, a file for each suite: every row and metric, without formulas to a spreadsheet."""

from __future__ import annotations

from pathlib import Path

from resflow_bench.export.rows import ExportedRows
from resflow_bench.files import csv_text, write_whole
from resflow_bench.lab.store import readable


def write(rows: ExportedRows, out: Path) -> list[Path]:
    """Write `<suite>.csv`, with the columns of `show --format csv`."""
    return [
        write_whole(out / f"{suite}.csv", csv_text(readable(frame)))
        for suite, frame in rows.frames.items()
    ]
