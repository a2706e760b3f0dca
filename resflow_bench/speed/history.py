"""What asv has measured of many commits, for Apache Otava, which finds change points in it.

Otava pins libraries of its own, so it runs in an environment of its own.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from resflow_bench.speed.asv_results import AsvError, AsvResults, Row


def export_otava(results: Path, out: Path, worse: Mapping[tuple[str, str], str]) -> list[str]:
    """Write `<suite>.csv`, a line a commit, and `otava.yaml` to `out`; the suites' names.

    Args:
        results: asv's `results_dir`.
        out: a folder, made if need be.
        worse: (suite, metric) to "more", "less" or "other", the direction that is worse. Otava
            knows two directions; a metric that is worse in either is exported as its absolute
            value.

    Raises:
        AsvError: there are no results, or a file is damaged.
    """
    suites: dict[str, dict[str, dict[str, float]]] = {}
    directions: dict[str, int] = {}
    history = AsvResults(results)
    if not history.commits():
        raise AsvError(f"`{results}` holds no results; `asv run` makes some.")
    for commit in history.commits():
        for row in history.rows(commit):
            if row.status != "ok":
                continue
            name = _name(row)
            value = median(row.samples)
            direction = worse.get((row.suite, row.metric))
            value = abs(value) if direction == "other" else value
            suites.setdefault(row.suite, {}).setdefault(commit, {})[name] = value
            directions[name] = 1 if direction == "less" else -1
    out.mkdir(parents=True, exist_ok=True)
    when = history.dated()
    tests: dict[str, Any] = {}
    for suite, found in sorted(suites.items()):
        names = sorted({name for values in found.values() for name in values})
        ordered = sorted(found, key=lambda commit: when[commit])
        with (out / f"{suite}.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["time", "commit", *names])
            for commit in ordered:
                time = datetime.fromtimestamp(when[commit] / 1000, UTC)
                values = (found[commit].get(name, "") for name in names)
                writer.writerow([f"{time:%Y-%m-%d %H:%M:%S +0000}", commit, *values])
        tests[suite] = {
            **{"type": "csv", "file": str((out / f"{suite}.csv").resolve())},
            **{"time_column": "time", "attributes": ["commit"]},
            "metrics": {
                name: {"column": name, "direction": directions[name], "scale": 1} for name in names
            },
            "csv_options": {"delimiter": ",", "quote_char": '"'},
        }
    (out / "otava.yaml").write_text(json.dumps({"tests": tests}, indent=1) + "\n")  # JSON is YAML
    return list(tests)


def _name(row: Row) -> str:
    """Otava cuts names at commas and dots stand for levels."""
    return f"{row.cell}:{row.metric}".replace(", ", "/").replace(".", "_")
