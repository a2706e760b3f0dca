"""Tables of rows as text for a terminal, as Markdown, and as JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd

from resflow_bench.analysis.words import number, terminal_width

MAX_LINES = 40  # of a table that is printed for people; json has all of them


def table_text(rows: pd.DataFrame, layout: str, most: int = MAX_LINES) -> str:
    """The first `most` rows as a table, layout text or markdown, without empty columns."""
    filled = [name for name in rows if rows[name].notna().any()]
    shown = rows[filled].head(most).map(_cell)
    more = f"\n... and {len(rows) - most} more" if len(rows) > most else ""
    if layout == "text":
        return shown.to_string(index=False, line_width=terminal_width()) + more
    heads = [_cell(name) for name in shown.columns]
    lines = [heads, ["---"] * len(heads), *shown.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + more


def all_rows(frame: pd.DataFrame) -> str:
    """Every row, to six digits; messages last, empty columns left out."""
    order = sorted(frame.columns, key=lambda name: name == "message")
    shown = frame[order].astype(object).where(frame.notna(), "")
    filled = [name for name in order if (shown[name] != "").any()]
    width = terminal_width()
    return shown[filled].to_string(index=False, float_format="{:.6g}".format, line_width=width)


def objects(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """One object per row for JSON; a missing value is null, an infinite one a string."""

    def plain(value: Any) -> Any:
        return None if pd.isna(value) else str(value) if value in (math.inf, -math.inf) else value

    records = rows.to_dict(orient="records")
    return [{str(name): plain(value) for name, value in row.items()} for row in records]


def json_text(content: Any) -> str:
    """JSON of objects and lists, indented, ending in a newline."""
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _cell(value: object) -> str:
    if value is None or isinstance(value, float):
        return "" if value is None or math.isnan(value) else number(value)
    return "" if value is pd.NA else str(value).replace("|", "/").replace("\n", " ")
