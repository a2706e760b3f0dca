"""Figures of the documentation that are those of published rows, looked up there.

A table headed "suite, metric | published cell | value" names the row of each figure. The table of
docs/gpu.md names calls, whose axes stand here.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "results" / "published" / "runs"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HEAD = "| suite, metric | published cell | value |"

OURS_ALONE = {"mode": None, "truncation": None, "per": None, "n_traced": None, "expansion": None}
FIXED = {"truncation": "fixed", "n_terms": 10, "probe": "rademacher", "n_probes": 2, "mode": None}
ROULETTE = {"truncation": "roulette", "per": "example", "mode": None}
EVALUATION, USUAL = {"mode": "evaluation"}, {"mode": "roulette"}
CALLS = {
    "log-prob, ten fixed terms, two probes": {"operation": "log_prob", **FIXED},
    "its gradient": {"operation": "gradient", **FIXED},
    "training step with Adam and the update of the norms": {"operation": "train_step", **FIXED},
    "log-prob, roulette per example, two probes": {"operation": "log_prob", **ROULETTE},
    "log-prob in evaluation, their terms": {"operation": "log_prob", **EVALUATION},
    "log-prob in training mode": {"operation": "log_prob", **USUAL},
    "its gradient in training mode": {"operation": "gradient", **USUAL},
    "training step": {"operation": "train_step", **USUAL},
    "update of the norms": {"operation": "update", **EVALUATION},
    "sample": {"operation": "sample", **OURS_ALONE},
    "inverse to a certified error of 1e-3": {"operation": "inversion", **EVALUATION},
}
"""A call in docs/gpu.md -> the axes that its row has; None is an axis that it does not have."""


@cache
def published(suite: str) -> pd.DataFrame:
    """All published rows of the suite."""
    return pd.concat([pd.read_parquet(part) for part in PUBLISHED.glob(f"*/{suite}/*.parquet")])


def row_of(suite: str, metric: str, axes: dict[str, object]) -> pd.Series:
    """The one published row of these axes, of which there may be several measurements alike."""
    rows = published(suite)
    rows = rows[(rows["status"] == "ok") & (rows["metric"] == metric)]
    for axis, value in axes.items():
        if value is None:
            rows = rows[rows[axis].isna()] if axis in rows else rows
            continue
        rows = rows[rows[axis].notna()]
        kind = float if pd.api.types.is_numeric_dtype(rows[axis]) else str
        rows = rows[rows[axis].map(kind) == kind(value)]
    assert len(rows) == 1, f"{suite} {metric} {axes}: {len(rows)} published rows"
    return rows.iloc[0]


def numbers(text: str) -> list[tuple[float, float]]:
    """(number, half a unit of its last digit) of each number in the text."""
    plain = text.replace("−", "-").replace("∞", "inf")
    found = re.findall(r"-?(?:inf|\d[\d,]*(?:\.\d+)?(?:e-?\d+)?)", plain)
    return [(float(one.replace(",", "")), _half(one.replace(",", ""))) for one in found]


def _half(number: str) -> float:
    mantissa, _, exponent = number.partition("e")
    decimals = len(mantissa.partition(".")[2])
    return 0.5 * 10.0 ** (int(exponent or 0) - decimals)


def disagreement(text: str, row: pd.Series) -> str:
    """The printed numbers that are not the row's value and ends to the digits that are printed."""
    measured = [row["value"], row["ci_low"], row["ci_high"]]
    printed = numbers(text)
    assert len(printed) in (1, 3), f"a value, or a value [low, high]; got {text}"
    wrong = [
        f"{number:g} is {value:.6g}"
        for (number, half), value in zip(printed, measured, strict=False)
        if number != value and not abs(number - value) <= 1.0001 * half
    ]
    return "; ".join(wrong)


def tables(page: str) -> list[tuple[str, str, dict[str, object], str]]:
    """(suite, metric, axes, the printed value) of the lines of a page's tables of rows."""
    found, inside, name = [], False, ""
    for line in page.splitlines():
        if line == HEAD:
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("|--"):
            first, cell, value = (part.strip() for part in line.strip("|").split("|"))
            name = first or name
            suite, metric = re.findall(r"`(\w+)`", name)
            axes = dict(one.split("=") for one in re.findall(r"`([^`]+)`", cell)[0].split())
            found.append((suite, metric, axes, value.partition(":")[0]))
    return found


LINES = [(page.name, *line) for page in PAGES for line in tables(page.read_text("utf-8"))]


def test_there_are_looked_up_figures() -> None:
    assert {name for name, *_ in LINES} >= {"comparisons.md"}


@pytest.mark.parametrize(("page", "suite", "metric", "axes", "value"), LINES)
def test_a_figure_is_that_of_its_published_row(page, suite, metric, axes, value) -> None:
    assert not disagreement(value, row_of(suite, metric, axes)), page


def test_a_wrong_figure_is_seen() -> None:
    row = pd.Series({"value": -1.0266, "ci_low": -1.2979, "ci_high": -0.7552})
    assert disagreement("−1.03 [−1.30, −0.76]", row) == ""
    assert disagreement("−1.61 [−1.30, −0.76]", row) == "-1.61 is -1.0266"
    assert disagreement("−1.03 [−1.31, −0.75]", row) == "-1.31 is -1.2979; -0.75 is -0.7552"
    assert disagreement("−1.02", row) != "" == disagreement("−1.0", row)
    assert disagreement("1,027", pd.Series({"value": 1027.0, "ci_low": 0, "ci_high": 0})) == ""
    lines = [HEAD, "|---|---|---|", "| `a`, `b` | `c=1 d=e` | 2 |", "| | `c=2`, said | 3: so |"]
    found = tables("\n".join([*lines, "", "| x |"]))
    assert found == [("a", "b", {"c": "1", "d": "e"}, "2"), ("a", "b", {"c": "2"}, "3")]


def launches() -> list[tuple[str, str, str, str]]:
    """(call, implementation, launches, waits) of the table of docs/gpu.md."""
    text = (ROOT / "docs" / "gpu.md").read_text("utf-8")
    head, _, *lines = text.partition("| call | ")[2].partition("\n\n")[0].splitlines()
    names = [name.split()[0] for name in head.strip("| ").split(" | ")]
    found = []
    for line in lines:
        call, *cells = (part.strip() for part in line.strip().removesuffix("|")[1:].split("|"))
        for name, cell in zip(names, cells, strict=True):
            if counts := re.match(r"([\d,]+), (\d+)", cell):
                found.append((call, name, *counts.groups()))
    return found


@pytest.mark.parametrize(("call", "name", "n_launches", "n_waits"), launches())
def test_launches_are_those_of_published_rows(call, name, n_launches, n_waits) -> None:
    axes = {"architecture": "mlp", "batch_size": 8, "implementation": name, **CALLS[call]}
    for metric, printed in (("n_launches", n_launches), ("n_waits", n_waits)):
        assert not disagreement(printed, row_of("launches", metric, axes)), metric


def test_commits_are_those_of_published_runs() -> None:
    measured = {json.loads(p.read_text())["commit"][:8] for p in PUBLISHED.glob("*/run.json")}
    named = set(re.findall(r"\b[0-9a-f]{8}\b", (ROOT / "docs" / "results.md").read_text("utf-8")))
    assert named
    assert named <= measured


def test_the_readme_has_the_first_of_them() -> None:
    _, _, n_launches, n_waits = launches()[0]
    assert f"launches {n_launches} kernels and never makes the host wait" in " ".join(
        (ROOT / "README.md").read_text("utf-8").split()
    )
    assert n_waits == "0"
