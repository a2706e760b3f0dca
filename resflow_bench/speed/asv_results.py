"""The reader of asv's result files: the rows of a commit, with their samples.

asv promises no stable file format, so asv is pinned and the reader is tested on files that asv
writes. No other module reads them.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import isnan
from pathlib import Path
from typing import Any

UNITS = {"seconds": "s"}

UNKNOWN_CODE = (
    "measured in an existing environment; asv records that under a commit that it did not check out"
)
SKIPPED = "skipped.jsonl"  # beside asv's results: why a benchmark was skipped


class AsvError(Exception):
    """asv's results cannot be read; the message gives the reason and the remedy."""


@dataclass(frozen=True)
class Row:
    """The result of a benchmark at one point of its parameters.

    suite: the benchmark's module.
    cell: `Class.method(parameters)`.
    metric: `wall_s` for a `time_` method, else the part of the name after `track_` or `peakmem_`.
    samples: for a time, the median of each round, which is one process; for a tracked value, the
        samples that the method returned.
    version: of the benchmark; results of different versions are not comparable.
    where: `machine/environment`.
    """

    suite: str
    cell: str
    metric: str
    status: str
    message: str
    unit: str
    samples: tuple[float, ...]
    version: str
    where: str


class AsvResults:
    """The contents of asv's `results_dir`, read once.

    Raises:
        AsvError: if a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = sorted(file for file in folder.glob("*/*.json") if file.name != "machine.json")
        self._measured = [_load(file) | {"machine": file.parent.name} for file in files]
        for file, data in zip(files, self._measured, strict=True):
            for name in ("commit_hash", "env_name", "date", "result_columns", "results"):
                if name not in data:
                    raise AsvError(f"`{file}` has no `{name}`; move it away.")
        self._described = _load(folder / "benchmarks.json") if files else {}
        self._skipped = _reasons(folder / SKIPPED)

    def dated(self) -> dict[str, int]:
        """Commit with results -> its date, in milliseconds since 1970."""
        return {str(data["commit_hash"]): int(data["date"]) for data in self._measured}

    def commits(self) -> list[str]:
        """The commits with results, the newest first."""
        when = self.dated()
        return sorted(when, key=lambda commit: -when[commit])

    def rows(self, commit: str) -> list[Row]:
        """The rows of the commit whose hash begins with `commit`, on all machines and environments.

        Raises:
            AsvError: if no commit with results, or several, begin with it.
        """
        known = self.commits()
        matching = [name for name in known if name.startswith(commit)]
        if len(matching) != 1:
            newest = ", ".join(name[:8] for name in known[:3]) or "none"
            raise AsvError(
                f"`{self.folder}` holds results of {len(matching) or 'no'} commits that begin with "
                f"`{commit}`; the newest there: {newest}. `make asv-pair` measures two."
            )
        files = [data for data in self._measured if data["commit_hash"] == matching[0]]
        return [row for data in files for row in _rows(data, self._described, self._skipped)]


def _load(file: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(file.read_bytes())  # accepts NaN, which asv writes
    except (OSError, ValueError) as error:
        raise AsvError(f"`{file}` cannot be read ({error}); move it away.") from None
    if not isinstance(loaded, dict):
        raise AsvError(f"`{file}` holds no JSON object; move it away.")
    return loaded


def _reasons(file: Path) -> dict[tuple[str, str], str]:
    """(commit, `Class(cell)`) -> why it was last skipped, as `benchmark.skip` has written it."""
    try:
        lines = file.read_text().splitlines() if file.exists() else []
        return {(commit, name): reason for commit, name, reason in map(json.loads, lines)}
    except (OSError, ValueError, TypeError) as error:
        raise AsvError(f"`{file}` cannot be read ({error}); move it away.") from None


def _rows(
    data: dict[str, Any], about: dict[str, Any], skipped: dict[tuple[str, str], str]
) -> Iterator[Row]:
    where = f"{data['machine']}/{data['env_name']}"
    for name, values in data["results"].items():
        columns = dict(zip(data["result_columns"], values, strict=False))
        described = about.get(name, {})
        module, method = name.split(".", 1) if "." in name else (name, name)
        kind = re.match(r".*?\b(track|peakmem|mem)_", method)
        metric = method[kind.end() :] if kind else "wall_s"
        points = list(product(*(columns.get("params") or [])))
        labels = [", ".join(map(_plain, point)) for point in points]
        if len({*labels}) < len(points):  # 1 beside '1'
            labels = [*map(", ".join, points)]
        results = columns["result"] or [None] * len(points)
        samples = columns.get("samples") or [None] * len(points)
        unit = str(described.get("unit", ""))
        for parameters, value, sample in zip(labels, results, samples, strict=True):
            label = f"{method}({parameters})" if columns.get("params") else method
            status, message, measured = _measured(value, sample, described)
            if status == "skipped":
                owner = re.sub(r"\.\w+", "", label, count=1)  # the class, which skips in setup
                message = skipped.get((data["commit_hash"], owner), "")
            if data["env_name"].startswith("existing"):
                status, message, measured = "skipped", UNKNOWN_CODE, ()
            yield Row(
                module, label, metric, status, message, UNITS.get(unit, unit), measured,
                str(columns.get("version", "")), where,
            )  # fmt: skip


def _measured(
    value: object, samples: Sequence[float] | None, described: dict[str, Any]
) -> tuple[str, str, tuple[float, ...]]:
    """(status, message, samples)."""
    if not described:
        return "failed", "asv's benchmarks.json no longer lists it", ()
    if value is None:
        return "failed", "it raised, or ran out of time; `asv run --show-stderr` shows why", ()
    if not isinstance(value, int | float):
        return "failed", f"it returned {value!r}, which is not a number", ()
    if isnan(value):
        return "skipped", "", ()
    is_timed = described.get("type") == "time" and "repeat" in described
    if samples is None:
        if is_timed:
            return "failed", "asv stored no samples; measure with `--record-samples`", ()
        return "ok", "", (float(value),)
    if not is_timed:
        return "ok", "", tuple(map(float, samples))
    n_rounds, repeat = int(described["rounds"]), described["repeat"]
    is_fixed = repeat and not isinstance(repeat, list)  # else at most so many: 0, or (min, max, s)
    if not is_fixed:
        repeat = repeat[1] if repeat else 5 if n_rounds > 1 else 10  # asv's default
    per_round = int(repeat)
    if not is_fixed and len(samples) % (n_rounds * per_round):
        return "ok", "", (float(value),)  # asv stores no limits of unequal rounds: one sample
    if not samples or len(samples) % (n_rounds * per_round):
        # After a crash in one round, asv loses the rounds before it and continues.
        message = f"{len(samples)} samples, where {n_rounds} rounds of {per_round} were requested"
        return "failed", message, ()
    rounds = [sorted(samples[i : i + per_round]) for i in range(0, len(samples), per_round)]
    middle = per_round // 2
    return "ok", "", tuple((r[middle] + r[-1 - middle]) / 2 for r in rounds)


def _plain(text: str) -> str:
    """A parameter as it stands in the benchmark: a for `'a'`."""
    try:
        return str(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return text
