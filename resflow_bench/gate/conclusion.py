"""The conclusion of the gate: one exit code, and its text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from resflow_bench.analysis.layouts import json_text, objects, table_text
from resflow_bench.analysis.words import number
from resflow_bench.gate.judge import FINE, NO_BASE, OPEN, UNJUDGED, WORSE

PASSED, REGRESSION, FAILED, TOO_LITTLE, UNDECIDED = 0, 1, 3, 4, 5

SAYS = {
    PASSED: "nothing is shown to be worse by more than its margin",
    REGRESSION: "REGRESSION",
    FAILED: "FAILED: a cell gave no number",
    TOO_LITTLE: "TOO LITTLE MEASURED: nothing can be said about NEW",
    UNDECIDED: "UNDECIDED: too noisy to judge; measure more rounds or draws",
}

QUIET = [UNJUDGED, NO_BASE, "skipped"]  # printed as counts, one for each reason


@dataclass(frozen=True)
class Conclusion:
    """The end of a comparison.

    code: the command's exit code.
    reason: the numbers behind a code other than 0.
    table: the verdicts, from `judge`.
    """

    code: int
    reason: str
    table: pd.DataFrame

    def words(self, layout: str) -> str:
        """The conclusion in layout text, markdown or json, ending in a newline."""
        if layout == "json":
            whole = {"code": self.code, "says": SAYS[self.code], "reason": self.reason}
            return json_text(whole | {"rows": objects(self.table)})
        counts = self.table["verdict"].value_counts()
        totals = ", ".join(f"{n} {verdict}" for verdict, n in counts.items()) or "nothing compared"
        head = f"gate: {SAYS[self.code]}{self.reason and f' ({self.reason})'}"
        bad = self.table[~self.table["verdict"].isin([FINE, *QUIET])]
        blocks = [head, f"{totals}."]
        if len(bad):
            order = ["open", "p"]
            bad = bad.assign(open=bad["verdict"] == OPEN).sort_values(order, na_position="first")
            blocks.append(table_text(bad.drop(columns="open"), layout))
        if len(quiet := self.table[self.table["verdict"].isin(QUIET)]):
            reasons = quiet.groupby(["verdict", "reason"], sort=False).size()
            mark = "- " if layout == "markdown" else ""
            blocks.append("\n".join(f"{mark}{v}, {n}: {why}" for (v, why), n in reasons.items()))
        if len(blind := self.table[np.isinf(self.table["detectable"])]):
            each = ", ".join(f"{name} ({n})" for name, n in blind["metric"].value_counts().items())
            blocks.append(f"Too few samples to detect any change: {each}.")
        if len(detectable := _detectable(self.table)):
            title = "The smallest change for the worse that is detected four times in five:"
            blocks.append(f"{title}\n\n{table_text(detectable, layout)}")
        return "\n\n".join(blocks) + "\n"


def conclude(
    table: pd.DataFrame, allowed: Iterable[str] = (), max_undecided: float = 0.5
) -> Conclusion:
    """A regression counts first, then failures, then gaps, then undecided metrics.

    Args:
        table: from `judge`.
        allowed: a skipped cell is no gap if its name contains one of these, in any case.
        max_undecided: the largest share of the random metrics that may be undecided; and of all
            metrics, the largest share that may be missing from BASE.
    """
    verdicts = table["verdict"]
    is_tested = verdicts.isin([FINE, WORSE, OPEN])
    tested, n_random = int(is_tested.sum()), int((is_tested & table["detectable"].notna()).sum())
    n_open, n_lost = int((verdicts == OPEN).sum()), int((verdicts == NO_BASE).sum())
    gaps = table[verdicts.isin(["missing", "skipped"])]
    allows = tuple(text.lower() for text in allowed)
    excused = (gaps["verdict"] == "skipped") & gaps["cell"].map(
        lambda cell: any(text in cell.lower() for text in allows)
    ).astype(bool)
    gaps = gaps[~excused]
    for code, n, what in (
        (REGRESSION, int((verdicts == WORSE).sum()), "metrics worse"),
        (FAILED, int((verdicts == "failed").sum()), "cells or metrics failed in NEW"),
        (TOO_LITTLE, len(gaps), "cells or metrics missing or skipped in NEW"),
    ):
        if n:
            return Conclusion(code, f"{what}: {n}", table)
    if not tested:
        return Conclusion(TOO_LITTLE, "nothing could be judged", table)
    if n_lost > max_undecided * (tested + n_lost):
        return Conclusion(TOO_LITTLE, f"{n_lost} of {tested + n_lost} metrics have no BASE", table)
    if n_open > max_undecided * n_random:
        return Conclusion(UNDECIDED, f"{n_open} of {n_random} random metrics", table)
    return Conclusion(PASSED, "", table)


def _detectable(table: pd.DataFrame) -> pd.DataFrame:
    """Per metric, the smallest detectable change: median, worst, and median share of BASE."""
    tested = table[table["verdict"].isin([FINE, WORSE, OPEN]) & np.isfinite(table["detectable"])]
    tested = tested.assign(share=tested["detectable"] / tested["base"].abs())
    lines = [
        {
            "metric": metric,
            "unit": unit,
            "n": len(rows),
            "median": number(rows["detectable"].median()),
            "worst": number(rows["detectable"].max()),
            "of BASE, median": _percent(rows["share"].median()),
        }
        for (metric, unit), rows in tested.groupby(["metric", "unit"], sort=False)
    ]
    return pd.DataFrame(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 10 else ""
