"""The line under a page's title: package, machine, date and commit of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime
from importlib.metadata import PackageNotFoundError, metadata
from typing import Any

import pandas as pd

MOST = 2  # distinct machines or commits that the line names
HOST = "cpu"


def origin(provenance: Sequence[Mapping[str, Any]], frames: Iterable[pd.DataFrame]) -> list[str]:
    """Machine and threads by device, dates, and commits; what no record says is left out.

    Args:
        provenance: the `run.json` of each run.
        frames: rows, whose column `device` names the devices that were measured on.
    """
    on = {HOST} | {
        str(device).split(":")[0]
        for frame in frames
        if "device" in frame
        for device in frame["device"].dropna().unique()
    }
    facts = (
        _few(_machines(provenance, on)),
        _dates(record.get(end) for record in provenance for end in ("start", "end")),
        _few(commit for record in provenance if (commit := _commit(record))),
    )
    return [fact for fact in facts if fact]


def repository(package: str = "resflow_bench") -> str:
    """The address of the repository, as the installed package names it; "" if it names none."""
    try:
        named = metadata(package).get_all("Project-URL") or []
    except PackageNotFoundError:
        return ""
    pairs = (line.partition(", ")[::2] for line in named)
    return next((address for label, address in pairs if label.lower() == "repository"), "")


def _machines(provenance: Sequence[Mapping[str, Any]], on: set[str]) -> list[str]:
    """``cpu AMD EPYC, cuda:0 NVIDIA H200, 1 and 2 threads`` for each set of devices."""
    threads: dict[str, set[int]] = {}
    for record in provenance:
        devices = (record.get("device") or {}).items()
        name = ", ".join(f"{key} {model}" for key, model in devices if key.split(":")[0] in on)
        threads.setdefault(name, set()).add((record.get("threads") or {}).get("torch") or 0)
    return [
        f"{name}, {' and '.join(map(str, known))} thread{'s' * (known != [1])}" if known else name
        for name, counts in threads.items()
        if name
        for known in [sorted(counts - {0})]
    ]


def _dates(times: Iterable[object]) -> str:
    """The day, or the first and the last, as ``28 November 2026``."""
    days: set[date] = set()
    for time in times:
        with suppress(ValueError):  # a run without an end, or a record that is not ours
            days.add(datetime.fromisoformat(str(time)).date())
    ends = dict.fromkeys((min(days), max(days))) if days else ()
    return " to ".join(f"{day.day} {day:%B %Y}" for day in ends)


def _commit(record: Mapping[str, Any]) -> str:
    if not record.get("commit"):
        return ""
    return f"commit {record['commit'][:8]}{' and changes' if record.get('dirty') else ''}"


def _few(words: Iterable[str]) -> str:
    """The first `MOST` distinct ones, and the number of others."""
    distinct = list(dict.fromkeys(words))
    more = [f"{len(distinct) - MOST} more"] if len(distinct) > MOST else []
    return "; ".join([*distinct[:MOST], *more])
