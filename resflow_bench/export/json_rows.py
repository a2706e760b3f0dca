"""JSON, a file for each suite: a list of one object per row."""

from __future__ import annotations

from pathlib import Path

from resflow_bench.analysis.layouts import json_text, objects
from resflow_bench.export.rows import ExportedRows
from resflow_bench.files import write_whole
from resflow_bench.lab.store import readable


def write(rows: ExportedRows, out: Path) -> list[Path]:
    """Write `<suite>.json`; a missing value is null, an infinite one a string."""
    return [
        write_whole(
            out / f"{suite}.json",
            json_text(objects(readable(frame))),
        )
        for suite, frame in rows.frames.items()
    ]
