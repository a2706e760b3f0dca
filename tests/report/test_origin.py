"""The line under the title of a page: where its numbers are from."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from typing import Any

import pandas as pd
import pytest

from resflow_bench.report import origin as module
from resflow_bench.report.origin import origin, repository

RUN: dict[str, Any] = {
    "device": {"cpu": "AMD EPYC", "cuda:0": "NVIDIA H200"},
    "threads": {"torch": 2},
    "start": "2026-11-28T23:50:09+00:00",
    "end": "2026-11-29T00:53:29+00:00",
    "commit": "23684d137db18df601b7d8c4b7e982ff319739f3",
    "dirty": False,
}
CPU, CUDA = (pd.DataFrame({"device": [name, None]}) for name in ("cpu", "cuda:0"))


def test_a_run_has_its_machine_its_days_and_its_commit() -> None:
    """The accelerator is named where something was measured on it."""
    rest = ["28 November 2026 to 29 November 2026", "commit 23684d13"]
    assert origin([RUN], [CPU, pd.DataFrame()]) == ["cpu AMD EPYC, 2 threads", *rest]
    both = "cpu AMD EPYC, cuda:0 NVIDIA H200, 2 threads"
    assert origin([RUN], [CPU, CUDA]) == [both, *rest]


def test_runs_are_told_together() -> None:
    single = RUN | {"threads": {"torch": 1}, "end": None, "dirty": True}
    others = [RUN | {"commit": c * 9, "device": {"cpu": c}} for c in "abc"]
    assert origin([single], [CPU]) == [
        *("cpu AMD EPYC, 1 thread", "28 November 2026", "commit 23684d13 and changes")
    ]
    assert origin([RUN, single], [CPU])[0] == "cpu AMD EPYC, 1 and 2 threads"
    machines, _, commits = origin(others, [CPU])
    assert machines == "cpu a, 2 threads; cpu b, 2 threads; 1 more"
    assert commits == "commit aaaaaaaa; commit bbbbbbbb; 1 more"


def test_what_an_old_record_lacks_is_left_out() -> None:
    assert origin([], []) == []
    assert origin([{"run": "a", "start": "yesterday", "commit": None}], [CPU]) == []


@pytest.mark.parametrize(
    ("urls", "expected"),
    [
        (["Documentation, https://a.org", "Repository, https://b.org/x"], "https://b.org/x"),
        (["Documentation, https://a.org"], ""),
        (None, ""),
    ],
)
def test_the_repository_is_the_package_s(urls, expected, monkeypatch) -> None:
    class Named:
        def get_all(self, field: str) -> list[str] | None:
            assert field == "Project-URL"
            return urls

    monkeypatch.setattr(module, "metadata", lambda package: Named())
    assert repository() == expected


def test_a_package_that_is_not_installed_has_no_repository(monkeypatch) -> None:
    def missing(package: str) -> None:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(module, "metadata", missing)
    assert repository() == ""
