"""Runs' rows, and asv's history, as files for other tools: one module for each format.

A module has `write(rows, out)`, which writes files to the folder `out` and returns them.
"""

FORMATS = {
    "csv": "csv_rows",
    "parquet": "parquet_rows",
    "json": "json_rows",
    "latex": "latex",
    "markdown": "markdown",
    "github-action-benchmark": "github_action",
    "bencher": "bencher",
}
"""Name to module. Otava's, of asv's history instead of rows, is `otava`."""
