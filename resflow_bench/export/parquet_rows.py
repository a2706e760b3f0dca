"""Parquet, a file for each suite: every row and column, replicates and pictures included."""

from __future__ import annotations

from pathlib import Path

from resflow_bench.export.rows import ExportedRows
from resflow_bench.files import written_whole


def write(rows: ExportedRows, out: Path) -> list[Path]:
    """Write `<suite>.parquet`."""
    files = []
    for suite, frame in rows.frames.items():
        files.append(out / f"{suite}.parquet")
        with written_whole(files[-1]) as stream:
            frame.to_parquet(stream, index=False)
    return files
