"""What the gate says in the end: one exit code, and the words for it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from resflow_bench.analysis.tables import number
from resflow_bench.gate.judge import FINE, NO_BASE, OPEN, UNJUDGED, WORSE

PASSED, REGRESSION, FAILED, TOO_LITTLE, UNDECIDED = 0, 1, 3, 4, 5

SAYS = {
    PASSED: "nothing is shown to be worse by more than its margin",
    REGRESSION: "REGRESSION",
    FAILED: "FAILED: a cell gave no number",
    TOO_LITTLE: "TOO LITTLE MEASURED: this says nothing of NEW",
    UNDECIDED: "UNDECIDED: too noisy to say; measure more rounds or draws",
}

QUIET = [UNJUDGED, NO_BASE, "skipped"]
"""Verdicts that are counted by their reasons."""

MAX_LINES = 40
"""Of a table: more is in the other formats."""


@dataclass(frozen=True)
class Outcome:
    """code: what the command exits with. reason: why, if it is not 0. table: `gate.judge`'s."""

    code: int
    reason: str
    table: pd.DataFrame

    def words(self, layout: str) -> str:
        """As text, markdown or json, with its last newline."""
        if layout == "json":
            return self._json()
        counts = self.table["verdict"].value_counts()
        said = ", ".join(f"{n} {verdict}" for verdict, n in counts.items()) or "nothing compared"
        head = f"gate: {SAYS[self.code]}{self.reason and f' ({self.reason})'}"
        bad = self.table[~self.table["verdict"].isin([FINE, *QUIET])]
        blocks = [head, f"{said}."]
        if len(bad):
            order = ["open", "p"]
            bad = bad.assign(open=bad["verdict"] == OPEN).sort_values(order, na_position="first")
            blocks.append(_table(bad.drop(columns="open"), layout))
        if len(left := self.table[self.table["verdict"].isin(QUIET)]):
            reasons = left.groupby(["verdict", "reason"], sort=False).size()
            lines = (f"{v}, {n}: {why}" for (v, why), n in reasons.items())
            blocks.append(_listed(lines, layout))
        if len(blind := self.table[np.isinf(self.table["detectable"])]):
            each = ", ".join(f"{name} ({n})" for name, n in blind["metric"].value_counts().items())
            blocks.append(f"So few samples that no change would be found: {each}.")
        if len(detectable := _detectable(self.table)):
            title = "The smallest change for the worse that would be found four times in five:"
            blocks.append(f"{title}\n\n{_table(detectable, layout)}")
        return "\n\n".join(blocks) + "\n"

    def _json(self) -> str:
        rows = self.table.replace({np.nan: None, np.inf: "inf", -np.inf: "-inf"})
        whole = {"code": self.code, "says": SAYS[self.code], "reason": self.reason}
        return json.dumps(whole | {"rows": rows.to_dict(orient="records")}, indent=1) + "\n"


def conclude(
    table: pd.DataFrame, allowed: Iterable[str] = (), max_undecided: float = 0.5
) -> Outcome:
    """A regression weighs most, then what failed, what is missing, and what is undecided.

    Args:
        table: of `judge`.
        allowed: a skipped cell is no gap if its name holds one of these, in capitals or not.
        max_undecided: the share of what was tested, and is random, above which the gate has no
            power; and of what was asked, above which too much of BASE is missing to compare with.
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
        (REGRESSION, int((verdicts == WORSE).sum()), "metrics are worse"),
        (FAILED, int((verdicts == "failed").sum()), "cells or metrics failed in NEW"),
        (TOO_LITTLE, len(gaps), "are missing or skipped in NEW, and BASE or the suite has them"),
    ):
        if n:
            return Outcome(code, f"{n} {what}", table)
    if not tested:
        return Outcome(TOO_LITTLE, "nothing could be judged", table)
    if n_lost > max_undecided * (tested + n_lost):
        return Outcome(TOO_LITTLE, f"{n_lost} of {tested + n_lost} have no BASE", table)
    if n_open > max_undecided * n_random:
        return Outcome(UNDECIDED, f"{n_open} of {n_random}", table)
    return Outcome(PASSED, "", table)


def _detectable(table: pd.DataFrame) -> pd.DataFrame:
    """Per metric: how many were tested, the median and the worst, in its unit and of BASE."""
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


def _listed(lines: Iterable[str], layout: str) -> str:
    return "\n".join(f"- {line}" if layout == "markdown" else line for line in lines)


def _table(rows: pd.DataFrame, layout: str) -> str:
    """The first lines, in columns."""
    kept = [name for name in rows if rows[name].notna().any()]
    shown = rows[kept].head(MAX_LINES).map(_cell)
    more = f"\n... and {len(rows) - MAX_LINES} more" if len(rows) > MAX_LINES else ""
    if layout == "text":
        return shown.to_string(index=False) + more
    lines = [list(shown.columns), ["---"] * shown.shape[1], *shown.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + more


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else number(value)
    return str(value).replace("|", "/").replace("\n", " ")
