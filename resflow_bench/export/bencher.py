"""Bencher Metric Format: JSON for https://bencher.dev, which tracks benchmarks over commits.

Source: https://bencher.dev/docs/reference/bencher-metric-format/: benchmark to measure to an object
with value and, optionally, lower_value and upper_value; names of benchmarks have at most 1,024
characters, those of measures 64.
"""

from __future__ import annotations

import math
from pathlib import Path

from resflow_bench.analysis.layouts import json_text
from resflow_bench.export.rows import ExportedRows
from resflow_bench.files import write_whole

MAX_BENCHMARK, MAX_MEASURE = 1024, 64


def write(rows: ExportedRows, out: Path) -> list[Path]:
    """Write `bencher.json`, for `bencher run --adapter json --file bencher.json`.

    A benchmark is a cell, a measure a metric. Numbers that are not finite are left out.
    """
    benchmarks: dict[str, dict[str, dict[str, float]]] = {}
    for one in rows.measurements():
        ends = {"value": one.value, "lower_value": one.low, "upper_value": one.high}
        if math.isfinite(one.value):
            finite = {name: end for name, end in ends.items() if math.isfinite(end)}
            measures = benchmarks.setdefault(one.name[:MAX_BENCHMARK], {})
            measures[one.metric[:MAX_MEASURE]] = finite
    return [write_whole(out / "bencher.json", json_text(benchmarks))]
