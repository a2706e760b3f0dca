"""Wide tables, one row per cell, from long ones; and cells in words."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from numbers import Integral
from typing import Any

import pandas as pd

from resflow_bench.lab.store import PICTURE, axis_columns

SUFFIXES = {"value": "", "ci_low": "_low", "ci_high": "_high", "standard_error": "_se", "n": "_n"}
# An axis to its letter in formulas; any other axis is shown by its value alone.
SYMBOLS = {
    "dim": "d",
    "lipschitz": "K",
    "n_terms": "N",
    "n_exact": "n₀",
    "n_probes": "m",
    "batch_size": "B",
    "width": "h",
    "tolerance": "tol",
    "error": "ε",
    "max_steps": "steps",
}


def axes(frame: pd.DataFrame) -> list[str]:
    """The axis columns of a long frame (all but the fixed ones), or of a `wide` one."""
    names = list(frame.columns)
    if "metric" in names:
        return axis_columns(names)
    return names[names.index("status") + 1 : names.index("message")]


def wide(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per cell: `cell`, `status`, the axes, `message`, then the metrics.

    A metric ``y`` becomes ``y``, ``y_low``, ``y_high``, ``y_se`` and ``y_n``. Failed and skipped
    cells stay, their metrics NaN. Where a cell was measured twice (two runs side by side), its last
    rows count. Where the rows have pictures, so have the cells. A wide frame is returned as it is.
    """
    if "metric" not in frame:
        return frame
    last = frame.drop_duplicates("cell", keep="last").set_index("cell")
    notes = _messages(frame).reindex(last.index, fill_value="")
    head = last[["status", *axes(frame)]].assign(message=notes)
    if PICTURE in frame:
        head[PICTURE] = frame.groupby("cell")[PICTURE].last()
    ok = frame[frame["status"] == "ok"].drop_duplicates(["cell", "metric"], keep="last")
    metrics = ok.pivot(index="cell", columns="metric", values=list(SUFFIXES))
    metrics.columns = [metric + SUFFIXES[column] for column, metric in metrics.columns]
    order = sorted(metrics.columns, key=lambda name: re.sub("_(low|high|se|n)$", "", name))
    return head.join(metrics[order].astype(float)).reset_index()


def units(frame: pd.DataFrame) -> dict[str, str]:
    """Metric to unit."""
    ok = frame[frame["status"] == "ok"].drop_duplicates("metric")
    return dict(zip(ok["metric"], ok["unit"], strict=True))


def heading(metric: str, unit: str) -> str:
    """A column's head, with the unit unless the metric is a pure number or named by its unit."""
    return metric if unit in ("", "1", metric) else f"{metric} ({unit})"


def main_metrics(chosen: Iterable[str], measured: Iterable[str]) -> list[str]:
    """The chosen metrics that were measured; all that were if there is none."""
    measured = list(measured)
    return [metric for metric in chosen if metric in measured] or measured


def in_order(cells: pd.DataFrame, first: str, violated: Collection[str] = ()) -> pd.DataFrame:
    """The finished cells: those `violated`, then those of the query `first`, then all others."""
    cells = cells[cells["status"] == "ok"]
    rank = 2 * cells["cell"].isin(violated)
    if first:
        rank[cells.query(first).index] += 1
    return cells.loc[rank.sort_values(ascending=False, kind="stable").index]


def varying(cells: pd.DataFrame, names: Iterable[str]) -> list[str]:
    """The axes among `names` that differ between these cells; `model` always."""
    return [name for name in names if name == "model" or cells[name].nunique(dropna=False) > 1]


def label(cell: Mapping[Any, Any], names: Iterable[str]) -> str:
    """A cell in words, as ``init, K = 0.9, N = 10, gaussian``."""
    known = [(name, spoken(cell[name])) for name in names if not pd.isna(cell[name])]
    return ", ".join(f"{SYMBOLS[k]} = {v}" if k in SYMBOLS else v for k, v in known)


def plain(value: Any) -> str:
    """An axis' value in words; the empty string where a cell has no such axis."""
    if pd.isna(value):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def spoken(value: Any) -> str:
    """`plain`, with commas at the thousands of a whole number."""
    return f"{value:,}" if isinstance(value, Integral) else plain(value)


def _messages(frame: pd.DataFrame) -> pd.Series:
    """The distinct messages of each cell that has some, as one string."""
    said = frame[frame["message"].fillna("") != ""].drop_duplicates(["cell", "message"])
    return said.groupby("cell", sort=False)["message"].agg("; ".join)
