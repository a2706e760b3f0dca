"""JSON, a file for each suite: a list of one object per row."""

from __future__ import annotations

from pathlib import Path

from resflow_bench.analysis.layouts import json_text, objects
from resflow_bench.export.rows import ExportedRows, write_text
from resflow_bench.lab.store import BESIDE


def write(rows: ExportedRows, out: Path) -> list[Path]:
    """Write `<suite>.json`; a missing value is null, an infinite one a string."""
    return [
        write_text(
            out / f"{suite}.json",
            json_text(objects(frame.drop(columns=[*BESIDE], errors="ignore"))),
        )
        for suite, frame in rows.frames.items()
    ]
