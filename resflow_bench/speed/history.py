"""asv's results of many commits as files for Apache Otava, which finds change points in them.

Otava pins its own libraries, so it runs in a separate environment.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from resflow_bench.speed.asv_results import AsvError, AsvResults


def export_otava(results: Path, out: Path, worse: Mapping[tuple[str, str], str]) -> list[str]:
    """Write `<suite>.csv`, a line per commit, and `otava.yaml` to `out`; return the suites' names.

    Args:
        out: a folder, created if it is missing.
        worse: (suite, metric) -> "more", "less" or "other", the direction that is worse. Otava
            knows two directions, so a metric with "other" is exported as its absolute value.

    Raises:
        AsvError: if there are no results, or a file is damaged.
    """
    suites: dict[str, dict[str, dict[str, float]]] = {}
    directions: dict[str, int] = {}
    history = AsvResults(results)
    for commit in history.commits():
        for row in history.rows(commit):
            if row.status != "ok":
                continue
            # Otava splits a name at commas, and reads dots as levels.
            name = f"{row.cell}:{row.metric}".replace(", ", "/").replace(".", "_")
            value = median(row.samples)
            direction = worse.get((row.suite, row.metric))
            value = abs(value) if direction == "other" else value
            suites.setdefault(row.suite, {}).setdefault(commit, {})[name] = value
            directions[name] = 1 if direction == "less" else -1
    if not suites:
        raise AsvError(f"`{results}` holds no number of a commit; `make asv-history` measures it.")
    out.mkdir(parents=True, exist_ok=True)
    when = history.dated()
    tests: dict[str, Any] = {}
    for suite, by_commit in sorted(suites.items()):
        names = sorted({name for values in by_commit.values() for name in values})
        ordered = sorted(by_commit, key=lambda commit: when[commit])
        with (out / f"{suite}.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, ["time", "commit", *names])
            writer.writeheader()
            for commit in ordered:
                time = f"{datetime.fromtimestamp(when[commit] / 1000, UTC):%Y-%m-%d %H:%M:%S +0000}"
                writer.writerow({"time": time, "commit": commit, **by_commit[commit]})
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
