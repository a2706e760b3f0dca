"""Long rows to one row per cell, and the words that a reader meets for a cell and a number."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from resflow_bench.lab.store import PICTURE, axis_columns

SUFFIXES = {
    "value": "",
    "ci_low": "_low",
    "ci_high": "_high",
    "standard_error": "_se",
    "n": "_n",
}
# The letters of the formulas; an axis that is not here is shown by its value alone.
SYMBOLS = {
    "dim": "d",
    "lipschitz": "K",
    "n_terms": "N",
    "n_exact": "n₀",
    "n_probes": "m",
    "batch_size": "B",
    "width": "h",
    "tolerance": "tol",
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

    A metric ``bias`` becomes ``bias``, ``bias_low``, ``bias_high``, ``bias_se`` and ``bias_n``.
    Failed and skipped cells stay, their metrics NaN. Where a cell was measured twice (two runs
    side by side), its last rows count. Where the rows have pictures, so have the cells.
    """
    last = frame.drop_duplicates("cell", keep="last").set_index("cell")
    notes = frame.groupby("cell", sort=False)["message"].agg(_distinct)
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


def varying(cells: pd.DataFrame, names: Iterable[str]) -> list[str]:
    """Those of the axes `names` that tell these cells apart; `model` always."""
    return [name for name in names if name == "model" or cells[name].nunique(dropna=False) > 1]


def label(cell: Mapping[Any, Any], names: Iterable[str]) -> str:
    """One cell in words, as ``trained, K = 0.9, N = 10, gaussian``."""
    known = [(name, plain(cell[name])) for name in names if not pd.isna(cell[name])]
    return ", ".join(f"{SYMBOLS[k]} = {v}" if k in SYMBOLS else v for k, v in known)


def plain(value: Any) -> str:
    """An axis' value in words: the empty string where a cell has no such axis."""
    if pd.isna(value):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def decay(law: str) -> float:
    """lim P(M >= j+1) / P(M >= j) of a roulette's law: 1 - stop if geometric, 0 if Poisson."""
    from resflow_bench.logdet import law_named  # torch, which nothing else here needs

    return law_named(law).decay


def number(value: float, digits: int = 3) -> str:
    """A number to `digits` significant digits, as ``1,240``, ``0.0123``, ``4.1e-7``."""
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "–")
    if value == 0.0:
        return "0"
    if not 1e-4 <= abs(value) < 1e7:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    elif abs(value) >= 10 ** (digits - 1):
        text = f"{value:,.0f}"
    else:
        text = f"{value:.{digits - 1 - math.floor(math.log10(abs(value)))}f}"
    return "−" + text[1:] if value < 0 else text


def with_interval(value: float, low: float, high: float) -> str:
    """``0.591 [0.588, 0.594]``, to the second digit of the half-width; without one, the value."""
    half = (high - low) / 2
    if math.isnan(half) or half == 0.0:
        return number(value)
    three = (value, low, high)
    size = max(abs(x) for x in three if math.isfinite(x))
    if math.isinf(half) or not 1e-3 <= size < 1e7:
        value_, low_, high_ = (number(x) for x in three)
    else:
        decimals = min(max(0, 1 - math.floor(math.log10(half) + 1e-9)), 6)
        value_, low_, high_ = (_signed(f"{x:,.{decimals}f}") for x in three)
    return f"{value_} [{low_}, {high_}]"


def _signed(text: str) -> str:
    """A hyphen becomes a minus, and goes where nothing but zeros is left."""
    return text.lstrip("-") if not text.strip("-0.,") else text.replace("-", "−", 1)


def _distinct(messages: pd.Series) -> str:
    return "; ".join(dict.fromkeys(m for m in messages if isinstance(m, str) and m))
