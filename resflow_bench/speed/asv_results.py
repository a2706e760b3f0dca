"""The reader of asv's result files: the rows of a commit, with their samples.

asv promises no stable file format, so asv is pinned and the reader is tested on files that asv
writes. No other module reads them.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import product
from math import isnan, prod
from pathlib import Path
from typing import Any, TypeVar

UNITS = {"seconds": "s"}

UNKNOWN_CODE = (
    "measured in an existing environment; asv records that under a commit that it did not check out"
)
MAX_SHOWN = 120  # characters of a value that a message quotes
MAX_POINTS = 100_000  # of the parameters of one benchmark
SKIPPED = "skipped.jsonl"  # beside asv's results: why a benchmark was skipped

# Exceptions of a parser that meets another form than it expects.
DAMAGE = (
    OSError, AttributeError, IndexError, OverflowError, RecursionError, TypeError, ValueError,
)  # fmt: skip

T = TypeVar("T")


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
    """The contents of asv's `results_dir`, read and checked once.

    Raises:
        AsvError: if a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = sorted(file for file in folder.glob("*/*.json") if file.name != "machine.json")
        about = parsed(folder / "benchmarks.json", _described) if files else {}
        skipped = parsed(folder / SKIPPED, _reasons) if (folder / SKIPPED).exists() else {}
        self._measured = [parsed(file, partial(_measured, file, about, skipped)) for file in files]

    def dated(self) -> dict[str, int]:
        """Commit with results -> its date, in milliseconds since 1970."""
        return {one.commit: one.date for one in self._measured}

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
        return [row for one in self._measured if one.commit == matching[0] for row in one.rows]


@dataclass(frozen=True)
class _ResultFile:
    """The contents of one file: the rows of one commit in one place."""

    commit: str
    date: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class _Listed:
    """The entry of a benchmark in `benchmarks.json`.

    n_rounds: processes of a benchmark that is timed; 0 for any other.
    per_round: its samples in each of them; at most so many unless `is_fixed`.
    """

    unit: str
    n_rounds: int = 0
    per_round: int = 0
    is_fixed: bool = True


def parsed(file: Path, parse: Callable[[bytes], T]) -> T:
    """`parse` of a file's bytes.

    Raises:
        AsvError: the file cannot be read, or `parse` met another form than asv's.
    """
    try:
        return parse(file.read_bytes())
    except KeyError as error:
        why = f"it has no `{error.args[0]}`"
    except DAMAGE as error:
        why = " ".join(str(error).split())[:MAX_SHOWN]
    raise AsvError(f"`{file}` cannot be read ({why}); move it away.")


def of_kind(kind: type[T], value: object) -> T:
    """The value, refused with a TypeError if JSON has another kind of value there."""
    if isinstance(value, kind):
        return value
    raise TypeError(f"{value!r:.{MAX_SHOWN}} stands where asv has a {kind.__name__}")


def _loads(content: str | bytes) -> Any:
    """The JSON in a text, which may have NaN, as asv writes it.

    Raises:
        ValueError: it is no JSON, or half a surrogate pair stands in it, which nothing can print.
    """
    loaded = json.loads(content)
    json.dumps(loaded, ensure_ascii=False).encode()
    return loaded


def _reasons(content: bytes) -> dict[tuple[str, str], str]:
    """(commit, `Class(cell)`) -> why it was last skipped, as `benchmark.skip` has written it."""
    lines = map(_loads, content.decode().splitlines())
    return {(commit, name): of_kind(str, reason) for commit, name, reason in lines}


def _described(content: bytes) -> dict[str, _Listed]:
    about = of_kind(dict, _loads(content))
    return {
        name: _benchmark(of_kind(dict, one)) for name, one in about.items() if name != "version"
    }


def _benchmark(described: Mapping[str, Any]) -> _Listed:
    unit = of_kind(str, described.get("unit", ""))
    unit = UNITS.get(unit, unit)
    if described.get("type") != "time" or "repeat" not in described:
        return _Listed(unit)
    n_rounds, repeat = int(described["rounds"]), described["repeat"]
    is_fixed = repeat and not isinstance(repeat, list)  # else at most so many: 0, or (min, max, s)
    if not is_fixed:
        repeat = repeat[1] if repeat else 5 if n_rounds > 1 else 10  # asv's default
    if min(n_rounds, int(repeat)) < 1:
        raise ValueError(f"a benchmark has {n_rounds} rounds of {repeat} samples")
    return _Listed(unit, n_rounds, int(repeat), bool(is_fixed))


def _measured(
    file: Path,
    about: Mapping[str, _Listed],
    skipped: Mapping[tuple[str, str], str],
    content: bytes,
) -> _ResultFile:
    data = of_kind(dict, _loads(content))
    commit, date = of_kind(str, data["commit_hash"]), of_kind(int, data["date"])
    if not re.fullmatch("[0-9a-f]+", commit):
        raise ValueError(f"{commit!r:.{MAX_SHOWN}} is no hash of a commit")
    datetime.fromtimestamp(date / 1000, UTC)  # refuses a number that is no time
    reasons = {owner: reason for (of, owner), reason in skipped.items() if of == commit}
    where = f"{file.parent.name}/{of_kind(str, data['env_name'])}"
    rows: list[Row] = []
    names = of_kind(list, data["result_columns"])
    for name, values in of_kind(dict, data["results"]).items():
        columns = dict(zip(names, of_kind(list, values), strict=False))
        rows += _rows(name, columns, about.get(name), reasons, where)
    return _ResultFile(commit, date, tuple(rows))


def _rows(
    name: str,
    columns: Mapping[str, Any],
    described: _Listed | None,
    reasons: Mapping[str, str],
    where: str,
) -> Iterator[Row]:
    module, method = name.split(".", 1) if "." in name else (name, name)
    kind = re.match(r".*?\b(track|peakmem|mem)_", method)
    metric = method[kind.end() :] if kind else "wall_s"
    parameters = [of_kind(list, values) for values in columns.get("params") or []]
    results, samples = columns["result"], columns.get("samples")
    n_points = prod(map(len, parameters))
    sizes = {len(of_kind(list, values)) for values in (results, samples) if values}
    if n_points > MAX_POINTS or sizes - {n_points}:
        raise ValueError(f"`{name:.{MAX_SHOWN}}` has {n_points} points, and results of {sizes}")
    points = [*product(*parameters)]
    labels = [", ".join(map(_plain, point)) for point in points]
    if len({*labels}) < len(points):  # 1 beside '1'
        labels = [*map(", ".join, points)]
    nothing = [None] * n_points
    for label, value, sample in zip(labels, results or nothing, samples or nothing, strict=True):
        cell = f"{method}({label})" if parameters else method
        status, message, numbers = _judged(value, sample, described)
        if status == "skipped":
            owner = re.sub(r"\.\w+", "", cell, count=1)  # the class, which skips in setup
            message = reasons.get(owner, "")
        if where.split("/")[1].startswith("existing"):
            status, message, numbers = "skipped", UNKNOWN_CODE, ()
        unit = described.unit if described else ""
        version = str(columns.get("version", ""))
        yield Row(module, cell, metric, status, message, unit, numbers, version, where)


def _judged(
    value: object, samples: list[float] | None, described: _Listed | None
) -> tuple[str, str, tuple[float, ...]]:
    """(status, message, samples)."""
    if described is None:
        return "failed", "asv's benchmarks.json no longer lists it", ()
    if value is None:
        return "failed", "it raised, or ran out of time; `asv run --show-stderr` shows why", ()
    if not isinstance(value, int | float):
        return "failed", f"it returned {value!r:.{MAX_SHOWN}}, which is not a number", ()
    if isnan(value):
        return "skipped", "", ()
    n_rounds, per_round = described.n_rounds, described.per_round
    if samples is None or not (samples or n_rounds):
        if n_rounds:
            return "failed", "asv stored no samples; measure with `--record-samples`", ()
        return "ok", "", (float(value),)
    samples = [1.0 * sample for sample in samples]  # unlike `float`, refuses text
    if not n_rounds:
        return "ok", "", tuple(samples)
    n_lost = len(samples) % (n_rounds * per_round)
    if not described.is_fixed and n_lost:
        return "ok", "", (float(value),)  # asv stores no limits of unequal rounds: one sample
    if not samples or n_lost:
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
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two if it is deep
        return text
