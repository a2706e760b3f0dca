"""The sentences that a reader should take away, and the words that they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from resflow_bench.analysis.tables import wide, with_interval

if TYPE_CHECKING:
    from resflow_bench.lab.cells import Suite

HOW_MANY = 3


def findings(frames: Mapping[str, pd.DataFrame], suites: Mapping[str, Suite]) -> list[str]:
    """At most `HOW_MANY` sentences, in the order of their ranks over all suites.

    Args:
        frames: suite to long frame of rows.
        suites: name to suite, whose `claims.findings` the sentences are.
    """
    found = [
        (finding, name)
        for name, suite in suites.items()
        if len(frames.get(name, ()))
        for finding in suite.claims.findings
    ]
    cells = {name: wide(frames[name]) for _, name in found}
    found.sort(key=lambda pair: pair[0].rank)
    said = (finding.find(cells[name]) for finding, name in found)
    return [sentence for sentence in said if sentence][:HOW_MANY]


def measured(cells: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The finished cells that have all these columns; none if a column is missing altogether."""
    if not set(columns) <= set(cells):
        return cells.head(0)
    return cells[cells["status"] == "ok"].dropna(subset=list(columns))


def interval(cell: pd.Series, metric: str, factor: float = 1.0) -> str:
    """``0.591 [0.588, 0.594]``: the metric with its interval, times `factor`."""
    return with_interval(*(factor * cell[f"{metric}{end}"] for end in ("", "_low", "_high")))
