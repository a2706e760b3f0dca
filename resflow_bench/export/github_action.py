"""JSON for github-action-benchmark, which draws a history and alerts on it.

Source: https://github.com/benchmark-action/github-action-benchmark, "customSmallerIsBetter" and
"customBiggerIsBetter": a list of objects with name, unit, value, and optionally range and extra.
"""

from __future__ import annotations

import math
from pathlib import Path

from resflow_bench.analysis.layouts import json_text
from resflow_bench.export.rows import ExportedRows, Measurement
from resflow_bench.files import write_whole

FILES = {"more": "smaller-is-better.json", "less": "bigger-is-better.json"}


def write(rows: ExportedRows, out: Path) -> list[Path]:
    """Write a file for each of the two directions that the action knows.

    Left out are numbers that are not finite, and metrics whose suite names no direction, or of
    which any change is worse.
    """
    entries: dict[str, list[dict[str, object]]] = {direction: [] for direction in FILES}
    for one in rows.measurements():
        if one.worse in entries and math.isfinite(one.value):
            entries[one.worse].append(_entry(one, rows.runs))
    return [
        write_whole(out / FILES[worse], json_text(several)) for worse, several in entries.items()
    ]


def _entry(one: Measurement, runs: tuple[str, ...]) -> dict[str, object]:
    half = (one.high - one.low) / 2
    entry: dict[str, object] = {"name": f"{one.name}: {one.metric}", "unit": one.unit}
    entry["value"] = one.value
    if math.isfinite(half) and half > 0:
        entry["range"] = f"± {half:.3g}"
        entry["extra"] = f"99 % interval [{one.low:.6g}, {one.high:.6g}]\nn = {one.n}\n"
    entry["extra"] = f"{entry.get('extra', '')}run {', '.join(runs)}"
    return entry
