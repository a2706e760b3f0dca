"""asv's results of many commits as files for Apache Otava, which finds change points in them.

Otava pins its own libraries, so it runs in a separate environment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import pandas as pd

from resflow_bench.files import csv_text, write_whole
from resflow_bench.speed.asv_results import AsvError, AsvResults

TIME = "%Y-%m-%d %H:%M:%S +0000"
MAX_NAME = 100
"""Characters of a suite's name that its files have: file systems allow 255 bytes."""

Key = TypeVar("Key", str, tuple[str, str])


def export_otava(results: Path, out: Path, worse: Mapping[tuple[str, str], str]) -> list[str]:
    """Write `<name>.csv`, a line per commit, and `otava.yaml` to `out`; return the names.

    A name is a suite's, with `_` for what is no letter, digit, `_` or `-`, and with a number where
    another suite has it already, in upper or lower case.

    Args:
        out: a folder, created if it is missing.
        worse: (suite, metric) -> "more", "less" or "other", the direction that is worse. Otava
            knows two directions, so a metric with "other" is exported as its absolute value.

    Raises:
        AsvError: if there are no results, a file is damaged, or `out` cannot be written.
    """
    suites: dict[str, dict[str, dict[tuple[str, str], float]]] = {}
    history = AsvResults(results)
    for commit in history.commits():
        for row in history.rows(commit):
            if row.status == "ok":
                value = median(row.samples)
                value = abs(value) if worse.get((row.suite, row.metric)) == "other" else value
                by_commit = suites.setdefault(row.suite, {})
                by_commit.setdefault(commit, {})[row.cell, row.metric] = value
    if not suites:
        raise AsvError(f"`{results}` holds no number of a commit; `make asv-history` measures it.")
    when = history.dated()
    named = _distinct({suite: re.sub(r"[^A-Za-z0-9_-]", "_", suite)[:MAX_NAME] for suite in suites})
    tests: dict[str, Any] = {}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for suite, name in sorted(named.items()):
            by_commit, file = suites[suite], out / f"{name}.csv"
            columns = _distinct({k: _column(*k) for values in by_commit.values() for k in values})
            lines = [
                {"time": f"{datetime.fromtimestamp(when[commit] / 1000, UTC):{TIME}}"}
                | {"commit": commit}
                | {column: by_commit[commit].get(key) for key, column in columns.items()}
                for commit in sorted(by_commit, key=lambda commit: when[commit])
            ]
            write_whole(file, csv_text(pd.DataFrame(lines)))
            tests[name] = {
                **{"type": "csv", "file": str(file.resolve())},
                **{"time_column": "time", "attributes": ["commit"]},
                "metrics": {
                    column: {
                        **{"column": column, "scale": 1},
                        "direction": 1 if worse.get((suite, metric)) == "less" else -1,
                    }
                    for (_, metric), column in columns.items()
                },
                "csv_options": {"delimiter": ",", "quote_char": '"'},
            }
        write_whole(
            out / "otava.yaml", json.dumps({"tests": tests}, indent=1) + "\n"
        )  # JSON is YAML
    except OSError as error:
        raise AsvError(
            f"`{out}` cannot be written ({error.strerror}); name another folder."
        ) from error
    return list(tests)


def _column(cell: str, metric: str) -> str:
    """The name of a column: Otava splits names at commas, and reads dots as levels."""
    name = f"{cell}:{metric}".replace(", ", "/").replace(".", "_")
    return re.sub(r"^\W|[\x00-\x1f]", "_", name)


def _distinct(names: Mapping[Key, str]) -> dict[Key, str]:
    """The names in their order; one that is taken, in upper or lower case, with a number."""
    numbers, taken = count(2), set[str]()
    distinct: dict[Key, str] = {}
    for key, name in sorted(names.items(), key=lambda item: item[::-1]):
        free = name
        while free.casefold() in taken:
            free = f"{name}-{next(numbers)}"
        taken.add(free.casefold())
        distinct[key] = free
    return distinct
