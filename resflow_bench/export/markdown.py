"""Markdown, a file for each suite: a table of its cells, each metric with its 99 % interval."""

from __future__ import annotations

from pathlib import Path

from resflow_bench.analysis.layouts import table_text
from resflow_bench.analysis.words import with_interval
from resflow_bench.export.rows import ExportedRows
from resflow_bench.files import write_whole


def write(rows: ExportedRows, out: Path) -> list[Path]:
    """Write `<suite>.md`: the axes that vary, then the metrics of the suite's table on the page."""
    return [
        write_whole(
            out / f"{suite}.md",
            table_text(table := rows.table(suite, with_interval), "markdown", len(table)) + "\n",
        )
        for suite in rows.frames
    ]
